package store

import (
	"encoding/binary"
	"fmt"
	"math/bits"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

const (
	zeroStep   = 1 << 20
	zeroMargin = 512 << 10
)

// headKey is the key of a segment's header; it sorts before every record.
var headKey = []byte{0}

// key is the big-endian form of a number.
func key(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// Append makes r durable: it is on disk when Append returns nil. After an error nobody knows, and
// nothing but Recover may follow.
func (l *Log) Append(r turn.Record) error {
	l.life.RLock()
	defer l.life.RUnlock()
	l.write.Lock()
	defer l.write.Unlock()
	raw, next, into, err := l.place(r)
	if err != nil {
		return err
	}
	err = l.commit(func(tx *bbolt.Tx) error {
		if err := l.sign(tx); err != nil {
			return err
		}
		if err := noteRetired(tx, r.Events); err != nil {
			return err
		}
		return put(tx, into, &l.chain, r.First, raw)
	})
	if err != nil {
		return fmt.Errorf("append at %d: %w", r.First, err)
	}
	l.renew = l.renew && into.number == l.segment.number
	l.chain, l.segment, l.signed = next, into, true
	for _, e := range r.Events {
		if e, ok := e.(turn.EpochBegan); ok {
			l.id, l.epoch = e.Log, e.Epoch
		}
	}
	l.tails.publish(r)
	return nil
}

// sign has the file know which version writes it, with the first record that does.
func (l *Log) sign(tx *bbolt.Tx) error {
	if l.signed || l.options.Version == "" {
		return nil
	}
	return tx.Bucket(migrations.Meta).Put(migrations.WriterKey, []byte(l.options.Version))
}

// commit runs f in a transaction of its own and makes it durable. Called with life and write
// held. After an error, which may be of the disk, it refuses to go on until Recover.
func (l *Log) commit(f func(*bbolt.Tx) error) error {
	if l.db == nil {
		return l.unavailable()
	}
	if l.failed != nil {
		return fmt.Errorf("an earlier commit failed: %w", l.failed)
	}
	l.zeroAhead()
	if l.failed = l.db.transact(f); l.failed != nil {
		return l.failed
	}
	l.countFree()
	return nil
}

// countFree notes how many bytes of the file are free.
func (l *Log) countFree() {
	s := l.db.Stats()
	l.free.Store(int64(s.FreePageN+s.PendingPageN) * int64(l.db.Info().PageSize))
}

// put writes raw, the record at first, into a segment, which begins where c stands if this is its first.
func put(tx *bbolt.Tx, into segment, c *chain, first turn.Seq, raw []byte) (err error) {
	segments := tx.Bucket(migrations.Segments)
	segments.FillPercent = 1
	var b *bbolt.Bucket
	if into.first == first {
		if b, err = segments.CreateBucket(key(into.number)); err == nil {
			err = b.Put(headKey, c.header(first))
		}
	} else if b = segments.Bucket(key(into.number)); b == nil {
		err = fmt.Errorf("segment %d is gone", into.number)
	}
	if err != nil {
		return err
	}
	b.FillPercent = 1
	return b.Put(key(uint64(first)), raw)
}

// zeroAhead writes zeros behind the part of the file that is in use, before it
// is needed: a commit that overwrites blocks syncs in half the time of one that
// has the file system allocate them. It is no more than that, so errors are
// left to the commit.
func (l *Log) zeroAhead() {
	used := l.highWater()
	if used+zeroMargin < l.zeroed {
		return
	}
	from := max(used, l.zeroed)
	n, _ := l.db.file.WriteAt(zeros[:], from)
	l.zeroed = from + max(int64(n), zeroStep/4) // where there is no room, not each time again
}

var zeros [zeroStep]byte

// header is what a segment that begins at first needs to be read without the
// ones before it: where the chain and the tree stood.
func (c *chain) header(first turn.Seq) []byte {
	b := binary.BigEndian.AppendUint64([]byte{recordFormat}, uint64(first))
	b = append(b, c.last[:]...)
	for _, p := range c.tree.peaks {
		b = append(b, p[:]...)
	}
	return b
}

func (c *chain) headerSize() int { return 1 + 8 + len(c.last)*(1+len(c.tree.peaks)) }

// parseHeader is the opposite of header.
func parseHeader(b []byte) (chain, error) {
	const fixed = 1 + 8 + len(Hash{})
	var c chain
	if len(b) < fixed || b[0] != recordFormat {
		return c, fmt.Errorf("a header of %d bytes", len(b))
	}
	c.tree.size = binary.BigEndian.Uint64(b[1:]) - 1
	if peaks := bits.OnesCount64(c.tree.size); len(b) != fixed+peaks*len(Hash{}) {
		return c, fmt.Errorf("a header of %d bytes with %d events before it", len(b), c.tree.size)
	}
	copy(c.last[:], b[9:])
	for rest := b[fixed:]; len(rest) > 0; rest = rest[len(Hash{}):] {
		c.tree.peaks = append(c.tree.peaks, Hash(rest[:len(Hash{})]))
	}
	return c, nil
}
