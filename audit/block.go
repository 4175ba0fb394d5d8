package audit

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"iter"
	"math"
	"slices"

	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// A block is the rows that are complete once its events are read. It is a bucket named by its first sequence, all numbers
// big-endian:
//
//	h            what blockHead holds
//	r, number    a row; they are in the order of their beginnings
//	s, number    for some rows, one after the other, the first and last wall time
//	t, posting   term and number of row, in order, from this one on: the posting lists
//
// Behind each value is a CRC-32C of it, of the block and of its key, so that what is read is checked and the rest is
// not read. A value of postings begins with the one that the next begins with, so that nothing between them can be missing.
type block struct {
	head  blockHead
	get   func(key []byte) []byte
	below func(key []byte) (k, v []byte) // the last key that is not behind it

	spans  []byte // that were read last
	number int    // of them
}

// blockHead is what has to be known of every block to leave it out.
type blockHead struct {
	First, Last turn.Seq
	Segment     uint64
	From, To    int64 // wall times of its rows, the first and the last
	Rows        int
	Sealed      bool                // its rows are encrypted, and its terms keyed
	Parts       []turn.AllocationID // that it has parts of
}

const (
	blockFormat = 1

	spanSize    = 8 + 8
	postingSize = 8 + 4
	perSpans    = 240 // entries in a value
	perPostings = 320
)

var headKey = []byte{'h'}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errBlock says that a block is damaged.
var errBlock = errors.New("a block of the index is damaged")

// keyOf is the key of value n of a sort.
func keyOf(sort byte, n int) []byte { return binary.BigEndian.AppendUint32([]byte{sort}, uint32(n)) }

func checksum(block turn.Seq, key, value []byte) uint32 {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(block))
	return crc32.Update(crc32.Update(crc32.Checksum(b[:], castagnoli), castagnoli, key), castagnoli, value)
}

// closed puts a checksum behind the value of a key.
func closed(block turn.Seq, key, value []byte) []byte {
	return binary.BigEndian.AppendUint32(value, checksum(block, key, value))
}

// opened checks and takes off the checksum.
func opened(block turn.Seq, key, value []byte) ([]byte, error) {
	n := len(value) - crc32.Size
	if n < 0 || binary.BigEndian.Uint32(value[n:]) != checksum(block, key, value[:n]) {
		return nil, errBlock
	}
	return value[:n], nil
}

func (h *blockHead) encode() []byte {
	b := []byte{blockFormat}
	sealed := uint64(0)
	if h.Sealed {
		sealed = 1
	}
	for _, n := range []uint64{uint64(h.First), uint64(h.Last), h.Segment, uint64(h.From), uint64(h.To), uint64(h.Rows), sealed, uint64(len(h.Parts))} {
		b = binary.BigEndian.AppendUint64(b, n)
	}
	for _, id := range h.Parts {
		b = binary.BigEndian.AppendUint64(b, uint64(id))
	}
	return closed(h.First, headKey, b)
}

// eachHead calls f with the key and the head of each block, in order.
func eachHead(tx *bbolt.Tx, f func(k []byte, h blockHead) error) error {
	blocks := tx.Bucket(blocksName)
	if blocks == nil {
		return nil
	}
	return blocks.ForEachBucket(func(k []byte) error {
		h, err := parseHead(turn.Seq(binary.BigEndian.Uint64(k)), blocks.Bucket(k).Get(headKey))
		if err != nil {
			return err
		}
		return f(k, h)
	})
}

func parseHead(first turn.Seq, b []byte) (h blockHead, err error) {
	const fixed = 1 + 8*8
	if b, err = opened(first, headKey, b); err != nil || len(b) < fixed || b[0] != blockFormat {
		return h, errBlock
	}
	at := func(i int) uint64 { return binary.BigEndian.Uint64(b[1+8*i:]) }
	h = blockHead{
		First: turn.Seq(at(0)), Last: turn.Seq(at(1)), Segment: at(2), From: int64(at(3)), To: int64(at(4)), Rows: int(at(5)), Sealed: at(6) == 1,
	}
	if parts := at(7); uint64(len(b)-fixed) != parts*8 || h.First != first || h.First > h.Last {
		return h, errBlock
	}
	for i := fixed; i < len(b); i += 8 {
		h.Parts = append(h.Parts, turn.AllocationID(binary.BigEndian.Uint64(b[i:])))
	}
	return h, nil
}

// context is what row i is encrypted for.
func (h *blockHead) context(i int) string { return fmt.Sprintf("audit block %d row %d", h.First, i) }

// posting is a term and a row that has it.
type posting struct {
	term term
	row  uint32
}

func (p posting) bytes() []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, uint64(p.term)), p.row)
}

func comparePosting(a, b posting) int {
	switch {
	case a.term < b.term:
		return -1
	case a.term > b.term:
		return 1
	}
	return int(a.row) - int(b.row)
}

// lastPosting stands behind all others.
var lastPosting = bytes.Repeat([]byte{0xff}, postingSize)

// pair is a key and its value.
type pair struct{ key, value []byte }

// encodeBlock makes the values of a block of rows, which are in order, in the order of their keys. What its head does not say
// of them is filled in.
func encodeBlock(h blockHead, rows []Row, c *cipher) (out []pair, err error) {
	h.From, h.To, h.Rows, h.Sealed = math.MaxInt64, math.MinInt64, len(rows), c.sealed()
	put := func(key, value []byte) { out = append(out, pair{key, closed(h.First, key, value)}) }
	var spans []byte
	var list []posting
	out = append(out, pair{key: headKey})
	for i := range rows {
		r := &rows[i]
		one, err := c.seal(h.context(i), encodeRow(r))
		if err != nil {
			return nil, err
		}
		put(keyOf('r', i), one)
		lo, hi := r.bounds()
		h.From, h.To = min(h.From, lo), max(h.To, hi)
		spans = binary.BigEndian.AppendUint64(spans, uint64(lo))
		spans = binary.BigEndian.AppendUint64(spans, uint64(hi))
		if r.Kind == KindPart {
			h.Parts = append(h.Parts, r.Allocation)
		}
		valuesOf(r, func(v value) {
			t, failed := c.term(v)
			err = errors.Join(err, failed)
			list = append(list, posting{t, uint32(i)})
		})
		if err != nil {
			return nil, err
		}
	}
	n := 0
	for s := range slices.Chunk(spans, perSpans*spanSize) {
		put(keyOf('s', n), slices.Clone(s))
		n++
	}
	slices.SortFunc(list, comparePosting)
	list = slices.Compact(list)
	for from := 0; from == 0 || from < len(list); from += perPostings {
		to := min(from+perPostings, len(list))
		key, value := []byte{'t'}, bytes.Clone(lastPosting)
		if from > 0 {
			key = append(key, list[from].bytes()...)
		} else {
			key = append(key, posting{}.bytes()...)
		}
		if to < len(list) {
			value = list[to].bytes()
		}
		for _, p := range list[from:to] {
			value = append(value, p.bytes()...)
		}
		put(key, value)
	}
	out[0].value = h.encode()
	return out, nil
}

// bounds are the first and last wall time of row i.
func (b *block) bounds(i int) (lo, hi int64, err error) {
	n := i / perSpans
	if b.spans == nil || b.number != n {
		key := keyOf('s', n)
		v, err := opened(b.head.First, key, b.get(key))
		if err != nil || len(v) != min(perSpans, b.head.Rows-n*perSpans)*spanSize {
			return 0, 0, errBlock
		}
		b.spans, b.number = v, n
	}
	e := b.spans[i%perSpans*spanSize:]
	return int64(binary.BigEndian.Uint64(e)), int64(binary.BigEndian.Uint64(e[8:])), nil
}

// plain is the stored form of row i.
func (b *block) plain(i int, c *cipher) ([]byte, error) {
	key := keyOf('r', i)
	one, err := opened(b.head.First, key, b.get(key))
	if err != nil {
		return nil, err
	}
	return c.open(b.head.context(i), one)
}

// row is row i, decoded by d.
func (b *block) row(i int, c *cipher, d *decoder) (Row, error) {
	one, err := b.plain(i, c)
	if err != nil {
		return Row{}, err
	}
	return d.row(one)
}

// find yields the rows that have t.
func (b *block) find(t term) iter.Seq2[uint32, error] {
	return func(yield func(uint32, error) bool) {
		at := posting{term: t}.bytes()
		for {
			key, raw := b.below(append([]byte{'t'}, at...))
			v, err := opened(b.head.First, key, raw)
			if err != nil || len(key) != 1+postingSize || len(v)%postingSize != 0 || len(v) == 0 {
				yield(0, errBlock)
				return
			}
			next, list := v[:postingSize], v[postingSize:]
			if bytes.Compare(next, at) <= 0 {
				yield(0, errBlock) // what lies between is missing
				return
			}
			n := len(list) / postingSize
			for i := searchTerm(list, t); i < n; i++ {
				e := list[i*postingSize:]
				if term(binary.BigEndian.Uint64(e)) != t {
					return
				}
				if !yield(binary.BigEndian.Uint32(e[8:]), nil) {
					return
				}
			}
			if term(binary.BigEndian.Uint64(next)) != t || bytes.Equal(next, lastPosting) {
				return
			}
			at = bytes.Clone(next)
		}
	}
}

// searchTerm is the first of a list of postings whose term is t or behind it.
func searchTerm(list []byte, t term) int {
	lo, hi := 0, len(list)/postingSize
	for lo < hi {
		mid := (lo + hi) / 2
		if term(binary.BigEndian.Uint64(list[mid*postingSize:])) < t {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo
}

// candidates are the rows of b that have one value of each of the lists in common with what is looked for, in order. All
// is set where there is nothing to look for.
func (b *block) candidates(lookups [][]value, c *cipher) (rows []uint32, all bool, err error) {
	for k, l := range lookups {
		var found []uint32
		for _, v := range l {
			t, err := c.term(v)
			if err != nil {
				return nil, false, err
			}
			for row, err := range b.find(t) {
				if err != nil || int(row) >= b.head.Rows {
					return nil, false, errBlock
				}
				found = append(found, row)
			}
		}
		slices.Sort(found)
		found = slices.Compact(found)
		if k > 0 {
			found = common(rows, found)
		}
		if rows = found; len(rows) == 0 {
			return nil, false, nil
		}
	}
	return rows, len(lookups) == 0, nil
}

// common are the elements of both lists, which are in order.
func common(a, b []uint32) []uint32 {
	out := a[:0]
	for _, x := range a {
		for len(b) > 0 && b[0] < x {
			b = b[1:]
		}
		if len(b) > 0 && b[0] == x {
			out = append(out, x)
		}
	}
	return out
}

// each calls f with the rows of b that lookups find, or all, as far as they lie within from..to. It stops where f says so.
func (b *block) each(lookups [][]value, from, to int64, c *cipher, d *decoder, f func(*Row) (bool, error)) error {
	rows, all, err := b.candidates(lookups, c)
	if err != nil {
		return err
	}
	n := len(rows)
	if all {
		n = b.head.Rows
	}
	for k := range n {
		i := k
		if !all {
			i = int(rows[k])
		}
		lo, hi, err := b.bounds(i)
		if err != nil {
			return err
		}
		if lo > to || hi < from {
			continue
		}
		r, err := b.row(i, c, d)
		if err != nil {
			return err
		}
		if more, err := f(&r); err != nil || !more {
			return err
		}
	}
	return nil
}

// newBlock is the block with head h in a bucket.
func newBlock(h blockHead, in *bbolt.Bucket) *block {
	cursor := in.Cursor()
	return &block{head: h, get: in.Get, below: func(key []byte) (k, v []byte) {
		if k, v = cursor.Seek(key); !bytes.Equal(k, key) {
			if k == nil {
				return cursor.Last()
			}
			return cursor.Prev()
		}
		return k, v
	}}
}
