package audit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/maphash"
	"maps"
	"math"
	"slices"
	"time"

	"turnstone/store"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Summary says what was searched, and how.
type Summary struct {
	First     turn.Seq  `json:"first"` // of the events there are
	Last      turn.Seq  `json:"last"`
	From      time.Time `json:"from,omitzero"` // of the first, where nothing matched
	To        time.Time `json:"to,omitzero"`   // of the last
	Indexed   turn.Seq  `json:"indexed"`       // up to where the index was used; what follows was folded
	Forgotten turn.Seq  `json:"forgotten"`     // up to where there are rows that nobody can read, since keys were erased; 0: none
	Matched   int       `json:"matched"`
	More      bool      `json:"more"` // there are more rows than were asked for
}

// Found is told of each row that matches, until it says that it wants no more.
type Found func(Answer) (more bool, err error)

// Query finds the rows that f wants, as of the end of the log, in the order in which they ended: what is open comes last.
// It brings the index up to date first where that is far behind, and says so to p. Limit is how many rows there are at most, 0 for all.
func (x *Index) Query(ctx context.Context, f Filter, limit int, p Progress, found Found) (s Summary, err error) {
	told := map[uint64]bool{} // what was told before the index turned out to be damaged is not told twice
	s, err = x.query(ctx, f, limit, p, told, found)
	if x.bad(err) && !x.options.ReadOnly { // lazy or not
		if err := x.renew(); err != nil {
			return s, err
		}
		s, err = x.query(ctx, f, limit, p, told, found)
	}
	if x.bad(err) {
		err = fmt.Errorf("search %s: %w", x.name, err)
	}
	return s, err
}

func (x *Index) query(ctx context.Context, f Filter, limit int, p Progress, told map[uint64]bool, found Found) (s Summary, err error) {
	behind, err := x.Behind()
	if err != nil {
		return s, err
	}
	if err := x.catchUp(ctx, behind, p); err != nil {
		return s, err
	}
	q := query{index: x, found: found, limit: limit, summary: &s, told: told}
	if err := q.load(ctx); err != nil {
		return s, err
	}
	q.matcher = matcher{Filter: f, mappings: q.builder.mappings}
	q.lookups = q.matcher.lookups()
	s.Indexed = q.last
	for _, k := range q.blocks {
		if q.done {
			break
		}
		if err = ctx.Err(); err == nil {
			err = q.block(k)
		}
		if err != nil {
			return s, err
		}
	}
	for _, id := range slices.Sorted(maps.Keys(q.split)) {
		if err := q.splitRow(id); err != nil {
			return s, err
		}
	}
	if err = q.rest(); err == nil && s.Matched == 0 {
		err = q.beginning()
	}
	return s, err
}

// uselessBlocks is how many blocks a lazy index may be behind and still be used where it cannot be written.
const uselessBlocks = 64

// catchUp brings x up to date where it is so many events behind that folding them would take long.
func (x *Index) catchUp(ctx context.Context, behind turn.Seq, p Progress) error {
	if behind <= x.options.blockEvents*5/4 || x.options.ReadOnly {
		return nil
	}
	x.life.RLock()
	readOnly := x.readOnly
	x.life.RUnlock()
	if readOnly {
		if err := x.write(behind > uselessBlocks*x.options.blockEvents); err != nil {
			return err
		}
		x.life.RLock()
		readOnly = x.readOnly
		x.life.RUnlock()
	}
	if readOnly {
		return nil
	}
	return x.Advance(ctx, p)
}

// query is one search.
type query struct {
	matcher
	index   *Index
	lookups [][]value
	found   Found
	limit   int
	done    bool
	told    map[uint64]bool // by rowID
	summary *Summary

	last    turn.Seq // of the blocks
	blocks  []blockHead
	builder *Builder                       // of all that follows
	split   map[turn.AllocationID]struct{} // allocations that blocks have parts of
	ciphers map[uint64]*cipher
	decoder decoder
}

// load reads what blocks there are, and folds what is in none.
func (q *query) load(ctx context.Context) error {
	x := q.index
	c, err := x.load(true)
	if err != nil {
		return err
	}
	q.last, q.builder, q.split, q.ciphers = c.last, c.builder, map[turn.AllocationID]struct{}{}, map[uint64]*cipher{}
	if c.last == 0 { // there is nothing in the index
		starts, err := x.source.Segments(true)
		if err != nil {
			return err
		}
		if len(starts) > 0 && starts[0].First > 1 {
			if err := x.begin(c, starts[0].First); err != nil {
				return err
			}
			q.last = c.last
		}
	}
	if err := q.heads(); err != nil {
		return err
	}
	return q.fold(ctx)
}

// heads reads the heads of the blocks, which have to follow one another.
func (q *query) heads() error {
	err := q.index.view(func(tx *bbolt.Tx) error {
		return eachHead(tx, func(_ []byte, h blockHead) error {
			if n := len(q.blocks); n > 0 && q.blocks[n-1].Last >= h.First {
				return errBlock
			}
			if h.Last <= q.last {
				q.blocks = append(q.blocks, h)
			}
			return nil
		})
	})
	if err != nil {
		return err
	}
	if n := len(q.blocks); n > 0 && q.blocks[n-1].Last != q.last {
		return errBlock
	}
	q.summary.First = q.last + 1
	if len(q.blocks) > 0 {
		q.summary.First = q.blocks[0].First
	}
	for _, h := range q.blocks {
		for _, id := range h.Parts {
			q.split[id] = struct{}{}
		}
	}
	return nil
}

// fold adds what is behind the blocks.
func (q *query) fold(ctx context.Context) error {
	for r, err := range q.index.source.Records(q.last + 1) {
		if errors.Is(err, store.ErrRetired) {
			return errStale // the index ends in what is gone
		}
		if err != nil {
			return err
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		q.builder.Add(r)
	}
	for id := range q.builder.parts {
		q.split[id] = struct{}{}
	}
	q.summary.Last = q.builder.last
	q.summary.To = time.Unix(0, q.builder.moment.Wall).UTC()
	return nil
}

// cipher is that of a block. All that are not sealed have the same.
func (q *query) cipher(h *blockHead) (*cipher, error) {
	segment := h.Segment
	if !h.Sealed {
		segment = 0
	}
	c := q.ciphers[segment]
	if c == nil {
		var err error
		if c, err = q.index.cipherFor(segment, h.Sealed); err != nil {
			return nil, err
		}
		q.ciphers[segment] = c
	}
	return c, nil
}

// read calls f with a block, in a transaction.
func (q *query) read(h blockHead, f func(*block, *cipher) error) error {
	c, err := q.cipher(&h)
	var missing *store.KeyError
	if errors.As(err, &missing) {
		q.summary.Forgotten = max(q.summary.Forgotten, h.Last)
		return nil
	}
	if err != nil {
		return err
	}
	return q.index.view(func(tx *bbolt.Tx) error {
		blocks := tx.Bucket(blocksName)
		if blocks == nil {
			return errStale
		}
		in := blocks.Bucket(binary.BigEndian.AppendUint64(nil, uint64(h.First)))
		if in == nil { // its events have gone meanwhile
			return nil
		}
		return f(newBlock(h, in), c)
	})
}

// block tells of the rows of one block that match. Those of split allocations are put aside.
func (q *query) block(h blockHead) error {
	from, to := q.window()
	if h.From > to || h.To < from {
		return nil
	}
	var rows []Row
	err := q.read(h, func(b *block, c *cipher) error {
		return b.each(q.lookups, from, to, c, &q.decoder, func(r *Row) (bool, error) {
			if _, split := q.split[r.Allocation]; (r.Allocation == 0 || !split) && q.match(r) {
				rows = append(rows, *r)
			}
			return q.limit == 0 || q.summary.Matched+len(rows) <= q.limit, nil
		})
	})
	if err != nil {
		return err
	}
	return q.tell(rows)
}

// tell tells of rows, outside of any transaction: whoever is told may take long.
func (q *query) tell(rows []Row) error {
	for i := range rows {
		if q.done {
			return nil
		}
		if q.limit > 0 && q.summary.Matched == q.limit {
			q.summary.More, q.done = true, true
			return nil
		}
		q.summary.Matched++
		id := rowID(&rows[i])
		if q.told[id] {
			continue
		}
		q.told[id] = true
		more, err := q.found(q.answer(&rows[i]))
		if err != nil {
			return err
		}
		q.done = !more
	}
	return nil
}

var rowSeed = maphash.MakeSeed()

// rowID tells rows apart: an allocation is itself whatever has become of it.
func rowID(r *Row) uint64 {
	if r.Allocation != 0 {
		return uint64(r.Allocation) << 1
	}
	return maphash.Bytes(rowSeed, encodeRow(r)) | 1
}

// splitRow tells of an allocation that is in several blocks, if all of it matches.
func (q *query) splitRow(id turn.AllocationID) error {
	if q.done || q.Allocation != 0 && id != q.Allocation {
		return nil
	}
	var whole *Row
	add := func(r *Row) {
		if whole == nil {
			one := *r
			whole = &one
			return
		}
		whole.absorb(r)
	}
	find := [][]value{{{termAllocation, string(number64(uint64(id)))}}}
	for _, h := range q.blocks {
		err := q.read(h, func(b *block, c *cipher) error {
			return b.each(find, math.MinInt64, math.MaxInt64, c, &q.decoder, func(r *Row) (bool, error) {
				if r.Allocation == id {
					add(r)
				}
				return true, nil
			})
		})
		if err != nil {
			return err
		}
	}
	for _, r := range []*Row{q.builder.held(id), q.builder.over[id], q.builder.parts[id]} {
		if r != nil {
			add(r)
		}
	}
	if q.builder.err != nil {
		return q.builder.err
	}
	if whole == nil || !q.match(whole) {
		return nil
	}
	return q.tell([]Row{*whole})
}

// rest tells of what no block has.
func (q *query) rest() error {
	if err := q.builder.wake(q.sight()); err != nil {
		return err
	}
	var rows []Row
	q.builder.each(func(r *Row) {
		if _, split := q.split[r.Allocation]; (r.Allocation == 0 || !split) && q.match(r) {
			rows = append(rows, *r)
		}
	})
	sortRows(rows)
	return q.tell(rows)
}

// beginning says when the log begins.
func (q *query) beginning() error {
	for r, err := range q.index.source.Records(q.summary.First) {
		if errors.Is(err, store.ErrRetired) {
			return nil
		}
		if err != nil {
			return err
		}
		q.summary.From = r.Moment.WallTime()
		break
	}
	return nil
}
