package main

import (
	"context"
	"errors"
	"fmt"

	"turnstone/turn"
)

// errNoHistory says that an allocation was not made in what there is of a log.
var errNoHistory = errors.New("it was not made in what there is of the log")

// searchSpan is how many events are read one after the other.
const searchSpan = 4096

// created is the sequence at which the allocation id was made. Since allocations are numbered in the order in which
// they are made, looking at some places of the log is enough.
func (s *logSource) created(ctx context.Context, id turn.AllocationID) (turn.Seq, error) {
	low, high, err := s.span(ctx)
	if err != nil {
		return 0, err
	}
	for low+searchSpan < high {
		middle := low + (high-low)/2
		_, made, err := s.nextCreated(ctx, middle, high)
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
		seq, made, err := s.nextCreated(ctx, low, high)
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
func (s *logSource) nextCreated(ctx context.Context, from, until turn.Seq) (turn.Seq, turn.AllocationID, error) {
	for r, err := range decodeEach(s.raw(ctx, from), s.keys(ctx)) {
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
