package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// A reader that stays long keeps pages from being reused: these bound what one read
// transaction copies, and for how long it does where the disk is slow.
const (
	chunkSize = 1 << 20
	chunkTime = 20 * time.Millisecond
)

// ErrRetired says that events were asked for whose segments are not in the log any more.
var ErrRetired = errors.New("the events were retired from the log")

// source is a file that read transactions can be had of, one at a time.
type source interface {
	view(func(*bbolt.Tx) error) error
	name() string
	keyring() *Keyring
}

func (l *Log) name() string { return l.dir + "/" + FileName }

func (l *Log) keyring() *Keyring { return l.keys }

// Keys are the keys of the encrypted segments of l.
func (l *Log) Keys() *Keyring { return l.keys }

func (l *Log) view(f func(*bbolt.Tx) error) error {
	l.life.RLock()
	defer l.life.RUnlock()
	if l.db == nil {
		return l.unavailable()
	}
	return guard(l.name(), func() error { return l.db.View(f) })
}

// unavailable says why there is no file. Called with life held.
func (l *Log) unavailable() error {
	if l.closed {
		return os.ErrClosed
	}
	return ErrUnavailable
}

// Records yields the records of the log as it is now, from the one that holds
// from. The first error is the last thing it yields.
func (l *Log) Records(from turn.Seq) iter.Seq2[turn.Record, error] {
	return decoded(Raw(l, from), l.keys)
}

// Raw yields the records of s in their stored form, from the one that holds
// from, a chunk at a time. What is retired is read from the archives of s, where it has some.
func Raw(s source, from turn.Seq) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		at := position{seq: max(from, 1), seek: true}
		for {
			var chunk [][]byte
			err := s.view(func(tx *bbolt.Tx) (err error) {
				chunk, err = at.chunk(tx)
				return err
			})
			if errors.Is(err, ErrRetired) {
				next := readArchived(s, at.seq, yield)
				if next == at.seq {
					return
				}
				at = position{seq: next, seek: true}
				continue
			}
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
	if p.segment == nil {
		if err := p.find(segments); err != nil || p.segment == nil {
			return nil, err
		}
	}
	var out [][]byte
	end := time.Now().Add(chunkTime)
	for size := 0; ; {
		b := segments.Bucket(p.segment)
		if b == nil {
			return nil, fmt.Errorf("read at %d: %w", p.seq, ErrRetired)
		}
		c := b.Cursor()
		for k, v := p.start(c); k != nil; k, v = c.Next() {
			if size >= chunkSize || len(out)&15 == 15 && time.Now().After(end) {
				return out, nil
			}
			out = append(out, bytes.Clone(v))
			size += len(v)
			p.seq = seqOf(k) + 1
		}
		next, _ := segments.Cursor().Seek(key(number(p.segment) + 1))
		if next == nil {
			return out, nil
		}
		p.segment = bytes.Clone(next)
	}
}

// start moves c to the record p is at: the one that holds p.seq, or the first after it.
func (p *position) start(c *bbolt.Cursor) (k, v []byte) {
	if p.seek {
		p.seek = false
		if k, _ = c.Seek(key(uint64(p.seq) + 1)); k == nil {
			k, v = c.Last()
		} else {
			k, v = c.Prev()
		}
		if len(k) != 1 && lastOf(k, v) >= p.seq {
			return k, v
		}
	}
	if k, v = c.Seek(key(uint64(p.seq))); len(k) == 1 { // the header
		k, v = c.Next()
	}
	return k, v
}

// find looks for the last segment that begins at or before p.seq. There is none in an empty log.
func (p *position) find(segments *bbolt.Bucket) error {
	c := segments.Cursor()
	for k, _ := c.Last(); k != nil; k, _ = c.Prev() {
		b := segments.Bucket(k)
		if b == nil {
			return &CorruptError{Err: fmt.Errorf("segment %d is no bucket", number(k))}
		}
		if first, _ := b.Cursor().Seek(key(0)); first == nil || seqOf(first) <= p.seq {
			p.segment = bytes.Clone(k)
			return nil
		}
	}
	if k, _ := c.First(); k != nil {
		return fmt.Errorf("read at %d: %w", p.seq, ErrRetired)
	}
	return nil
}

// lastOf is the last sequence of the record v, whose key is k.
func lastOf(k, v []byte) turn.Seq {
	if len(v) < recordHeader {
		return seqOf(k)
	}
	return seqOf(k) + turn.Seq(binary.BigEndian.Uint32(v[13:])) - 1
}

// firstInside is the first sequence of the record v.
func firstInside(v []byte) turn.Seq {
	if len(v) < recordHeader {
		return 0
	}
	return turn.Seq(binary.BigEndian.Uint64(v[5:]))
}

// lastInside is the last sequence of the record v.
func lastInside(v []byte) turn.Seq {
	if len(v) < recordHeader {
		return 0
	}
	return firstInside(v) + turn.Seq(binary.BigEndian.Uint32(v[13:])) - 1
}

// wallOf is the wall time of the record v, which has a header.
func wallOf(v []byte) int64 { return int64(binary.BigEndian.Uint64(v[41:])) }

// seqOf is the sequence in a record's key.
func seqOf(k []byte) turn.Seq { return turn.Seq(number(k)) }

func number(k []byte) (n uint64) {
	for _, x := range k {
		n = n<<8 | uint64(x)
	}
	return n
}

// batch is decoded records, the last of which may be an error instead.
type batch struct {
	records []turn.Record
	err     error
}

// batchEvents is how many events of small records go from one goroutine to the other at once.
const batchEvents = 1024

// decoded decodes records in a goroutine of its own, a few batches ahead of whoever takes them.
func decoded(raw iter.Seq2[[]byte, error], keys *Keyring) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		batches, stop, done := make(chan batch, 4), make(chan struct{}), make(chan struct{})
		defer func() { close(stop); <-done }()
		go func() {
			defer close(done)
			defer close(batches)
			for b := range decodeAll(raw, keys) {
				select {
				case batches <- b:
				case <-stop:
					return
				}
			}
		}()
		for b := range batches {
			for _, r := range b.records {
				if !yield(r, nil) {
					return
				}
			}
			if b.err != nil {
				yield(turn.Record{}, b.err)
				return
			}
		}
	}
}

func decodeAll(raw iter.Seq2[[]byte, error], keys *Keyring) iter.Seq[batch] {
	return func(yield func(batch) bool) {
		var b batch
		events := 0
		known := &names{}
		for one, err := range raw {
			var r turn.Record
			if err == nil {
				r, err = decodeRecord(one, known, keys)
			}
			if b.err = err; err != nil {
				break
			}
			b.records = append(b.records, r)
			if events += len(r.Events); events >= batchEvents {
				if !yield(b) {
					return
				}
				b, events = batch{records: make([]turn.Record, 0, len(b.records))}, 0
			}
		}
		yield(b)
	}
}
