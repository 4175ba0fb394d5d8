package audit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"turnstone/store"
	"turnstone/turn"
)

// Verified is what a verification of an index went through.
type Verified struct {
	Blocks    int      `json:"blocks"`
	Rows      int      `json:"rows"`
	Last      turn.Seq `json:"last"`      // the last event that the index holds
	Unproven  int      `json:"unproven"`  // rows of allocations that began before the log does: their end alone is in it
	Forgotten int      `json:"forgotten"` // blocks that nobody can read
	Gone      int      `json:"gone"`      // blocks of events, or behind some, that the log has no more
}

// VerifyFile verifies the index in a file, which is only read. There is nothing to say of one that is not there.
func VerifyFile(ctx context.Context, name string, s Source, keys *store.Keyring) (Verified, error) {
	x, err := Open(name, s, Options{ReadOnly: true, Keys: keys, Wait: time.Second})
	if err != nil {
		return Verified{}, err
	}
	v, err := x.Verify(ctx)
	return v, errors.Join(err, x.Close())
}

// Verify holds every block against the log: its rows have to be those that the records lead to, and what they can be found by
// has to be in its lists. What does not hold is a *store.CorruptError.
func (x *Index) Verify(ctx context.Context) (Verified, error) {
	v := verification{query: query{index: x, summary: &Summary{}, split: map[turn.AllocationID]struct{}{}, ciphers: map[uint64]*cipher{}}}
	err := v.run(ctx)
	var damage *store.CorruptError
	switch {
	case errors.Is(err, errStale):
		err = &store.CorruptError{File: x.name, Err: errStale}
	case (errors.Is(err, errBlock) || errors.Is(err, errRow)) && !errors.As(err, &damage):
		err = &store.CorruptError{File: x.name, Err: err}
	}
	return v.Verified, err
}

// verification is an index and the log beside it.
type verification struct {
	Verified
	query
	stored  *carried
	builder *Builder
	old     turn.AllocationID // up to this one they may have begun before the log
}

func (v *verification) run(ctx context.Context) error {
	var err error
	if v.stored, err = v.index.load(true); err != nil || v.stored.last == 0 {
		return err
	}
	v.query.last, v.Last = v.stored.last, v.stored.last
	if err := v.heads(); err != nil {
		return err
	}
	if err := v.skip(); err != nil {
		return err
	}
	if len(v.blocks) == 0 {
		return nil
	}
	if err := v.begin(); err != nil {
		return err
	}
	left := v.blocks
	for r, err := range v.index.source.Records(v.blocks[0].First) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if v.builder.last >= left[0].Last {
			if err := v.block(&left[0]); err != nil {
				return err
			}
			if left = left[1:]; len(left) == 0 {
				return v.open()
			}
			if left[0].First != r.First {
				return v.wrong(r.First, "a block is missing")
			}
		}
		v.builder.Add(r)
	}
	if len(left) == 1 && v.builder.last == left[0].Last {
		if err := v.block(&left[0]); err != nil {
			return err
		}
		return v.open()
	}
	return v.wrong(v.builder.last, "it goes on behind the end of the log")
}

// skip leaves out the blocks of events that are not there to be compared, or not what they go on from.
func (v *verification) skip() error {
	there, err := v.index.source.Segments(true)
	if err != nil || len(there) == 0 {
		return err
	}
	for ; len(v.blocks) > 0; v.blocks = v.blocks[1:] {
		first := v.blocks[0].First
		if first == 1 && there[0].First == 1 {
			return nil
		}
		if first >= there[0].First {
			if before, err := v.index.source.Before(first); err != nil || before != nil {
				return err
			}
		}
		v.Gone++
	}
	return nil
}

func (v *verification) wrong(at turn.Seq, format string, args ...any) error {
	return &store.CorruptError{File: v.index.name, Seq: at, Err: fmt.Errorf(format, args...)}
}

// begin has the builder stand before the first block.
func (v *verification) begin() error {
	c := &carried{builder: NewBuilder()}
	first := v.blocks[0].First
	if first > 1 {
		if err := v.index.begin(c, first); err != nil {
			return err
		}
	}
	v.builder = c.builder
	for r, err := range v.index.source.Records(first) {
		if err != nil {
			return err
		}
		for _, e := range r.Events {
			if made, ok := e.(turn.AllocationCreated); ok {
				v.old = made.Allocation - 1
				return nil
			}
		}
	}
	return nil
}

// proven says whether all of r is in the log.
func (v *verification) proven(r *Row) bool { return r.Allocation == 0 || r.Allocation > v.old }

// block holds a block against the rows that the records up to its end lead to.
func (v *verification) block(h *blockHead) error {
	want := v.builder.cut()
	want = slices.DeleteFunc(want, func(r Row) bool { return !v.proven(&r) })
	v.Blocks++
	read := false
	err := v.read(*h, func(b *block, c *cipher) error {
		read = true
		for i := range h.Rows {
			plain, err := b.plain(i, c)
			if err != nil {
				return err
			}
			got, err := v.decoder.row(plain)
			if err != nil {
				return err
			}
			if err := v.listed(b, c, i, &got); err != nil {
				return err
			}
			v.Rows++
			if !v.proven(&got) {
				v.Unproven++
				continue
			}
			if len(want) == 0 || !bytes.Equal(plain, encodeRow(&want[0])) {
				return v.wrong(h.First, "row %d of the block is not what the log says", i)
			}
			want = want[1:]
		}
		if len(want) > 0 {
			return v.wrong(h.First, "%d rows of the block are missing", len(want))
		}
		return nil
	})
	if err == nil && !read {
		v.Forgotten++
	}
	if errors.Is(err, errBlock) || errors.Is(err, errRow) {
		return v.wrong(h.First, "%w", err)
	}
	return err
}

// listed holds that row i of b can be found by all that it has, and in its time.
func (v *verification) listed(b *block, c *cipher, i int, r *Row) (err error) {
	lo, hi := r.bounds()
	if from, to, err := b.bounds(i); err != nil || from != lo || to != hi || lo < b.head.From || hi > b.head.To {
		return errors.Join(err, v.wrong(b.head.First, "row %d of the block is not in its time", i))
	}
	valuesOf(r, func(one value) {
		if err != nil {
			return
		}
		var t term
		if t, err = c.term(one); err != nil {
			return
		}
		for row, failed := range b.find(t) {
			if failed != nil {
				err = failed
				return
			}
			if int(row) == i {
				return
			}
		}
		err = v.wrong(b.head.First, "row %d of the block is missing in a list", i)
	})
	return err
}

// open holds what is open behind the last block against the log.
func (v *verification) open() error {
	want, err := v.openRows(v.builder)
	if err != nil {
		return err
	}
	got, err := v.openRows(v.stored.builder)
	if err != nil {
		return err
	}
	if len(want) != len(got) {
		return v.wrong(v.stored.last, "%d allocations are open behind the last block, the log has %d", len(got), len(want))
	}
	for i := range want {
		if !bytes.Equal(encodeRow(&want[i]), encodeRow(&got[i])) {
			return v.wrong(v.stored.last, "allocation %d, which is open behind the last block, is not what the log says", want[i].Allocation)
		}
	}
	return nil
}

func (v *verification) openRows(b *Builder) ([]Row, error) {
	rows, err := b.unwritten()
	return slices.DeleteFunc(rows, func(r Row) bool { return !v.proven(&r) }), err
}
