package main

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"turnstone/store"
	"turnstone/turn"
)

// errNoHistory says that an allocation was not made in what there is of a log.
var errNoHistory = errors.New("it was not made in what there is of the log")

// searchSpan is how many events are read one after the other.
const searchSpan = 4096

// searched is a log that something is looked for in.
type searched interface {
	// each decodes records one by one, as they are taken, from the one that holds from.
	each(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error]
	// span is the sequences of the first and the last event there are, 0 for none.
	span(ctx context.Context) (first, last turn.Seq, err error)
	stat(ctx context.Context) (store.Stat, error)
}

// oldest is the first moment that can be folded: that of the oldest snapshot.
func oldest(ctx context.Context, s searched) (turn.Seq, error) {
	st, err := s.stat(ctx)
	if err != nil {
		return 0, err
	}
	for _, p := range st.Snapshots {
		if p.At+1 >= st.First {
			return p.At, nil
		}
	}
	return 0, store.ErrRetired
}

// before is the moment right before the allocation id was made, or where that is not in the log any more, the first one that
// can be folded.
func before(ctx context.Context, s searched, id turn.AllocationID) (turn.Seq, error) {
	made, err := created(ctx, s, id)
	if err == nil || !errors.Is(err, errNoHistory) {
		return max(made, 1) - 1, err
	}
	first, _, err := s.span(ctx)
	if err != nil || first <= 1 {
		return 0, err
	}
	return oldest(ctx, s)
}

// created is the sequence at which the allocation id was made. Since allocations are numbered in the order in which
// they are made, looking at some places of the log is enough.
func created(ctx context.Context, s searched, id turn.AllocationID) (turn.Seq, error) {
	low, high, err := s.span(ctx)
	if err != nil {
		return 0, err
	}
	for low+searchSpan < high {
		middle := low + (high-low)/2
		_, made, err := nextCreated(ctx, s, middle, high)
		if err != nil {
			return 0, err
		}
		if made != 0 && made <= id {
			low = middle
		} else {
			high = middle
		}
	}
	for {
		seq, made, err := nextCreated(ctx, s, low, high)
		if err != nil {
			return 0, err
		}
		if made == id {
			return seq, nil
		}
		if made == 0 || made > id {
			return 0, fmt.Errorf("allocation %d: %w", id, errNoHistory)
		}
		low = seq + 1
	}
}

// nextCreated is the first allocation that was made at or after from, and where. It is 0 where none was in a record that begins
// at or before until.
func nextCreated(ctx context.Context, s searched, from, until turn.Seq) (turn.Seq, turn.AllocationID, error) {
	for r, err := range s.each(ctx, from) {
		if err != nil {
			return 0, 0, err
		}
		if r.First > until {
			break
		}
		for i, e := range r.Events {
			seq := r.First + turn.Seq(i)
			if made, ok := e.(turn.AllocationCreated); ok && seq >= from {
				return seq, made.Allocation, nil
			}
		}
	}
	return 0, 0, nil
}
