package main

import (
	"context"
	"iter"
	"sync"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/systemd"
)

// draining is whether, and until when, the daemon waits for its allocations to end.
type draining struct {
	mu      sync.Mutex // guards the fields below
	on      bool
	until   time.Time     // when the daemon ends in any case; zero: it goes on
	outcome string        // how the last drain with a deadline ended, empty before it has
	changed chan struct{} // closed when any of them does
}

func (d *draining) is() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.on
}

// set begins or ends a drain.
func (d *draining) set(on bool, until time.Time, outcome string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.on, d.until, d.outcome = on, until, outcome
	if d.changed != nil {
		close(d.changed)
	}
	d.changed = make(chan struct{})
}

func (d *draining) get() (until time.Time, outcome string, changed <-chan struct{}) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.changed == nil {
		d.changed = make(chan struct{})
	}
	return d.until, d.outcome, d.changed
}

// drainLook is how often a drain looks at how many allocations are left.
const drainLook = 100 * time.Millisecond

// Drain is for the admin interface. It ends a drain with a deadline too.
func (d *served) Drain(ctx context.Context, on bool) error {
	if err := d.relay.Drain(ctx, on); err != nil {
		return err
	}
	d.draining.set(on, time.Time{}, admin.Cancelled)
	d.log.Info().Bool("on", on).Msg("draining")
	return nil
}

// DrainOut is for the admin interface.
func (d *served) DrainOut(ctx context.Context, timeout time.Duration) (iter.Seq[admin.Drain], error) {
	if err := d.relay.Drain(ctx, true); err != nil {
		return nil, err
	}
	until := time.Now().Add(timeout)
	d.draining.set(true, until, "")
	d.log.Info().Dur("timeout", timeout).Int("allocations", d.relay.Allocations()).Msg("draining: the daemon ends when there are no allocations left, or then")
	return func(yield func(admin.Drain) bool) { d.drainSteps(ctx, until, yield) }, nil
}

// drainSteps yields how the drain until a moment goes, whenever that changes.
func (d *served) drainSteps(ctx context.Context, until time.Time, yield func(admin.Drain) bool) {
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	last := -1
	for {
		now, outcome, changed := d.draining.get()
		if outcome == "" && now != until {
			outcome = admin.Cancelled // another took its place
		}
		p := admin.Drain{State: admin.Draining, Allocations: d.relay.Allocations(), Left: max(0, time.Until(until)).Round(time.Second).String()}
		if outcome != "" {
			p.State = outcome
		}
		news := outcome != "" || (p.Allocations != last && p.Allocations > 0) // of none the outcome tells
		if (news && !yield(p)) || outcome != "" {
			return
		}
		last = p.Allocations
		select {
		case <-changed:
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// watchDrain ends the daemon at the end of a drain.
func (d *served) watchDrain(ctx context.Context) error {
	tick := time.NewTicker(drainLook)
	defer tick.Stop()
	for {
		until, _, changed := d.draining.get()
		look := tick.C
		if until.IsZero() {
			look = nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil
		case <-look:
			n := d.relay.Allocations()
			_ = systemd.Notify(systemd.Status("draining: %d allocations are left", n))
			switch {
			case n == 0:
				d.drainedOut(admin.Drained, n)
			case !time.Now().Before(until):
				d.drainedOut(admin.Deadline, n)
			}
		}
	}
}

// drainedOut ends the daemon.
func (d *served) drainedOut(outcome string, left int) {
	d.draining.set(true, time.Time{}, outcome)
	d.log.Info().Str("outcome", outcome).Int("allocations", left).Msg("the drain is over: the daemon ends")
	d.end("drain: " + outcome)
}
