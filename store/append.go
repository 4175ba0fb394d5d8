package store

import (
	"encoding/binary"
	"fmt"
	"os"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

const (
	// pageCost is what bbolt adds to a record, from above: key, element header.
	pageCost = 8 + 16

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
	if l.db == nil {
		return fmt.Errorf("append at %d: %w", r.First, os.ErrClosed)
	}
	next := l.chain.clone()
	raw, err := next.encode(r)
	if err != nil {
		return err
	}
	into := l.segment
	if into.number == 0 || into.size+pagesOf(len(raw)) > l.options.SegmentSize {
		into = segment{number: into.number + 1, first: r.First}
	}
	into.size += pagesOf(len(raw))
	l.zeroAhead()
	if err := guard(l.dir, func() error { return l.commit(r.First, into, raw) }); err != nil {
		return fmt.Errorf("append at %d: %w", r.First, err)
	}
	l.chain, l.segment = next, into
	s := l.db.Stats()
	l.free.Store(int64(s.FreePageN+s.PendingPageN) * int64(l.db.Info().PageSize))
	l.tails.publish(r)
	return nil
}

// pagesOf bounds the bytes of pages that a record of n bytes takes: small ones
// share a page, large ones have pages of their own.
func pagesOf(n int) int {
	n += pageCost
	if n <= 1024 {
		return n
	}
	return (n+4095)&^4095 + 4096
}

// commit writes raw, the record at first, into a segment, which is begun if this is its first.
func (l *Log) commit(first turn.Seq, into segment, raw []byte) error {
	tx, err := l.db.Begin(true)
	if err != nil {
		return err
	}
	segments := tx.Bucket(migrations.Segments)
	segments.FillPercent = 1
	var b *bbolt.Bucket
	if into.first == first {
		if b, err = segments.CreateBucket(key(into.number)); err == nil {
			err = b.Put(headKey, l.chain.header(first))
		}
	} else if b = segments.Bucket(key(into.number)); b == nil {
		err = fmt.Errorf("segment %d is gone", into.number)
	}
	if err == nil {
		b.FillPercent = 1
		err = b.Put(key(uint64(first)), raw)
	}
	if err != nil {
		_ = tx.Rollback()
		return err
	}
	return tx.Commit()
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
	f, err := os.OpenFile(l.db.Path(), os.O_WRONLY, 0)
	if err != nil {
		return
	}
	defer f.Close()
	from := max(used, l.zeroed)
	if n, err := f.WriteAt(make([]byte, zeroStep), from); err == nil {
		l.zeroed = from + int64(n)
	}
}

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

// parseHeader is the opposite of header.
func parseHeader(b []byte) (chain, error) {
	const fixed = 1 + 8 + len(Hash{})
	var c chain
	if len(b) < fixed || (len(b)-fixed)%len(Hash{}) != 0 || b[0] != recordFormat {
		return c, fmt.Errorf("a segment header of %d bytes", len(b))
	}
	c.tree.size = binary.BigEndian.Uint64(b[1:]) - 1
	copy(c.last[:], b[9:])
	for rest := b[fixed:]; len(rest) > 0; rest = rest[len(Hash{}):] {
		c.tree.peaks = append(c.tree.peaks, Hash(rest[:len(Hash{})]))
	}
	return c, nil
}
