package audit

import (
	"context"
	"time"

	"turnstone/turn"
)

// Keep keeps x up to date until ctx ends: it looks every so often whether another block is complete. Where many are, it works
// no more than half of the time, so that it is not in the way of what the daemon is there for. What fails it tells failed, and goes on.
func (x *Index) Keep(ctx context.Context, every time.Duration, failed func(error)) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		err := x.lookAfter(ctx, n%60 == 0)
		if err != nil && ctx.Err() == nil {
			failed(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// lookAfter brings x up to date where that is due, or anyway.
func (x *Index) lookAfter(ctx context.Context, anyway bool) error {
	due, err := x.due()
	if err != nil || !due && !anyway {
		return err
	}
	began := time.Now()
	return x.Advance(ctx, func(done, all turn.Seq) {
		if all-done <= 2*x.options.blockEvents {
			return
		}
		select {
		case <-time.After(time.Since(began)):
		case <-ctx.Done():
		}
		began = time.Now()
	})
}

// due says whether there is something to do: a block that is complete, or one whose events have gone.
func (x *Index) due() (bool, error) {
	behind, err := x.Behind()
	if err != nil || behind > x.options.blockEvents {
		return err == nil, err
	}
	starts, err := x.source.Segments(false)
	if err != nil || len(starts) == 0 {
		return false, err
	}
	c, err := x.load(false)
	if x.bad(err) {
		return true, nil
	}
	if err != nil {
		return false, err
	}
	gone := x.oldest.Swap(uint64(starts[0].First)) != uint64(starts[0].First)
	return gone || segmentOf(starts, c.last+1) != starts[len(starts)-1].Number, nil
}
