package store

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"os"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// chunkSize bounds what one read transaction copies, in bytes: a reader that
// stays long keeps pages from being reused.
const chunkSize = 1 << 20

// source is a file that read transactions can be had of, one at a time.
type source interface {
	view(func(*bbolt.Tx) error) error
	name() string
}

func (l *Log) name() string { return l.dir + "/" + FileName }

func (l *Log) view(f func(*bbolt.Tx) error) error {
	l.life.RLock()
	defer l.life.RUnlock()
	if l.db == nil {
		return os.ErrClosed
	}
	return guard(l.name(), func() error { return l.db.View(f) })
}

// Records yields the records of the log as it is now, from the one that holds
// from. The first error is the last thing it yields.
func (l *Log) Records(from turn.Seq) iter.Seq2[turn.Record, error] { return decoded(Raw(l, from)) }

// Raw yields the records of s in their stored form, from the one that holds
// from, a chunk at a time.
func Raw(s source, from turn.Seq) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		at := position{seq: max(from, 1), seek: true}
		for {
			var chunk [][]byte
			err := s.view(func(tx *bbolt.Tx) (err error) {
				chunk, err = at.chunk(tx)
				return err
			})
			if err != nil {
				yield(nil, inFile(s.name(), err))
				return
			}
			if len(chunk) == 0 {
				return
			}
			for _, raw := range chunk {
				if !yield(raw, nil) {
					return
				}
			}
		}
	}
}

// inFile puts the name of the file into what is known of damage.
func inFile(file string, err error) error {
	var damage *CorruptError
	if errors.As(err, &damage) && damage.File == "" {
		damage.File = file
	}
	return err
}

// position is where a reader stands: at the record of seq, in a segment.
type position struct {
	segment []byte // key of the segment, nil: not looked for yet
	seq     turn.Seq
	seek    bool // seq may lie within a record
}

// chunk copies the records from p on, up to the chunk size, and moves p behind
// them. It is empty at the end of the log.
func (p *position) chunk(tx *bbolt.Tx) ([][]byte, error) {
	segments := tx.Bucket(migrations.Segments)
	if segments == nil {
		return nil, &CorruptError{Err: errors.New("there are no segments")}
	}
	if p.segment == nil && !p.find(segments) {
		return nil, nil
	}
	var out [][]byte
	for size := 0; size < chunkSize; {
		b := segments.Bucket(p.segment)
		if b == nil {
			return nil, fmt.Errorf("read at %d: the segment was retired", p.seq)
		}
		c := b.Cursor()
		k, v := p.start(c)
		for ; k != nil && size < chunkSize; k, v = c.Next() {
			out = append(out, bytes.Clone(v))
			size += len(v)
			p.seq = seqOf(k) + 1
		}
		if k != nil {
			break
		}
		next, _ := segments.Cursor().Seek(key(number(p.segment) + 1))
		if next == nil {
			break
		}
		p.segment = bytes.Clone(next)
	}
	return out, nil
}

// start moves c to the record p is at: the one that holds p.seq, or the first after it.
func (p *position) start(c *bbolt.Cursor) (k, v []byte) {
	k, v = c.Seek(key(uint64(p.seq)))
	if p.seek {
		p.seek = false
		if k == nil || seqOf(k) != p.seq {
			if k, v = c.Prev(); k == nil {
				k, v = c.Last()
			}
		}
	}
	if len(k) == 1 { // the header
		k, v = c.Next()
	}
	return k, v
}

// find looks for the last segment that begins at or before p.seq.
func (p *position) find(segments *bbolt.Bucket) bool {
	c := segments.Cursor()
	for k, _ := c.Last(); k != nil; k, _ = c.Prev() {
		p.segment = bytes.Clone(k)
		if first, _ := segments.Bucket(k).Cursor().Seek(key(0)); first == nil || seqOf(first) <= p.seq {
			return true
		}
	}
	return p.segment != nil
}

// seqOf is the sequence in a record's key.
func seqOf(k []byte) turn.Seq { return turn.Seq(number(k)) }

func number(k []byte) (n uint64) {
	for _, x := range k {
		n = n<<8 | uint64(x)
	}
	return n
}

// decoded decodes records in a goroutine of its own, a batch ahead of whoever takes them.
func decoded(raw iter.Seq2[[]byte, error]) iter.Seq2[turn.Record, error] {
	type item struct {
		record turn.Record
		err    error
	}
	const batch = 256
	return func(yield func(turn.Record, error) bool) {
		batches, stop, done := make(chan []item, 4), make(chan struct{}), make(chan struct{})
		defer func() { close(stop); <-done }()
		go func() {
			defer close(done)
			defer close(batches)
			var items []item
			send := func() bool {
				select {
				case batches <- items:
					items = make([]item, 0, batch)
					return true
				case <-stop:
					return false
				}
			}
			for b, err := range raw {
				var r turn.Record
				if err == nil {
					r, err = Decode(b)
				}
				items = append(items, item{r, err})
				if (len(items) == batch && !send()) || err != nil {
					break
				}
			}
			send()
		}()
		for items := range batches {
			for _, i := range items {
				if !yield(i.record, i.err) || i.err != nil {
					return
				}
			}
		}
	}
}
