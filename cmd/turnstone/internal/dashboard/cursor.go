package dashboard

import (
	"context"
	"iter"

	"turnstone/store"
	"turnstone/turn"
)

// turns are taken by whoever reads the log: one at a time, however many ask.
type turns chan struct{}

// take takes a turn, which is to be given back.
func (t turns) take(ctx context.Context) error {
	select {
	case t <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t turns) give() { <-t }

// cursor goes through a log. Moving on a little costs no more than the events between.
type cursor struct {
	source Source
	turns  turns // whoever has one has the rest
	state  *turn.State
	wall   int64 // no record of state is of later
}

// nearby is after how many records a snapshot is looked for.
const nearby = 4096

// view calls f with the state within b. F may fold the records that follow into it, unless it fails.
func (c *cursor) view(ctx context.Context, b store.Bound, f func(*turn.State) error) error {
	if err := c.turns.take(ctx); err != nil {
		return err
	}
	defer c.turns.give()
	state := c.state
	c.state = nil // what an error leaves is between two moments
	if state != nil && b.Seq >= state.Seq() && b.Wall >= c.wall {
		cut := false
		_, err := store.FoldWithin(state, atMost(c.source.Records(ctx, state.Seq()+1), nearby, &cut), b)
		if err != nil {
			return err
		}
		if cut {
			state = nil
		}
	} else {
		state = nil
	}
	if state == nil {
		var err error
		if state, err = c.source.StateWithin(ctx, b); err != nil {
			return err
		}
	}
	if err := f(state); err != nil {
		return err
	}
	c.state, c.wall = state, b.Wall
	return nil
}

// atMost yields the first n of records, and sets cut where there are more.
func atMost(records iter.Seq2[turn.Record, error], n int, cut *bool) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		for r, err := range records {
			if n == 0 {
				*cut = true
				return
			}
			n--
			if !yield(r, err) {
				return
			}
		}
	}
}
