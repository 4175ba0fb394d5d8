package kernel

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"turnstone/turn"
)

const (
	tickEvery = time.Second
	walkEvery = 5  // ticks between two walks over the index
	fullEvery = 30 // ticks between two full rounds, which also lower the listeners' guards
	countStep = 1000
)

// settlement is a batch of slots and hops whose grace period is over.
type settlement struct {
	slots []retired
	hops  []uint32
	upTo  turn.Seq // everything revoked up to there is among it, or was before
	err   error
}

// walk is what the index held.
type walk struct {
	all map[Key]ref
	err error
}

// waiter waits for a sequence: to be applied, or also to have settled.
type waiter struct {
	seq    turn.Seq
	settle bool
	done   chan struct{}
}

// ErrStopped says that the datapath does not run any more.
var ErrStopped = errors.New("the kernel datapath has stopped")

// Run follows the log, the host's network and the clock until ctx ends. What is in the kernel stays.
func (d *Datapath) Run(ctx context.Context, record Recorder) error {
	inner, cancel := context.WithCancel(ctx)
	var aside sync.WaitGroup
	aside.Go(func() { d.follow(inner) })
	aside.Go(func() { d.events.run(inner, record, d.log) })
	err := d.loop(inner)
	cancel()
	close(d.done)
	aside.Wait()
	if d.inGrace {
		<-d.settled
	}
	if d.walking {
		<-d.walks
	}
	d.testify()
	return errors.Join(err, d.close())
}

// follow reads the log. After an error, as while it is opened again, it starts over where it was.
func (d *Datapath) follow(ctx context.Context) {
	from := d.applied + 1
	for ctx.Err() == nil {
		for rec, err := range d.config.Log.Tail(ctx, from) {
			if err != nil {
				break
			}
			select {
			case d.records <- rec:
				from = rec.Last() + 1
			case <-ctx.Done():
				return
			}
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

func (d *Datapath) loop(ctx context.Context) error {
	tick, usage := time.NewTicker(tickEvery), time.NewTicker(usageEvery)
	defer tick.Stop()
	defer usage.Stop()
	more := make(chan struct{})
	close(more)
	for {
		var next <-chan struct{}
		if len(d.counting) > 0 {
			next = more
		}
		select {
		case rec := <-d.records:
			if err := d.apply(rec); err != nil {
				return err
			}
		case <-d.router.Changes():
			d.changed()
		case s := <-d.settled:
			d.settle(s)
		case w := <-d.walks:
			d.walked(w)
		case f := <-d.requests:
			f()
		case <-tick.C:
			d.tick()
		case <-usage.C:
			d.counting = slices.Collect(maps.Keys(d.r.tallies))
		case <-next:
			d.count()
		case <-ctx.Done():
			return nil
		}
		d.resolveNew()
		d.retire()
	}
}

// apply brings the maps to a record of the log, and tells who waited for that.
func (d *Datapath) apply(rec turn.Record) error {
	if rec.Last() <= d.applied {
		return nil
	}
	if rec.First != d.applied+1 {
		return fmt.Errorf("follow the log: record %d follows %d", rec.First, d.applied)
	}
	if err := d.r.apply(rec); err != nil {
		return err
	}
	d.applied = rec.Last()
	d.wake()
	return d.oops()
}

// resolveNew asks for the next hops of gateways that the step before began to use.
func (d *Datapath) resolveNew() {
	if !d.r.gateways.fresh {
		return
	}
	d.r.gateways.fresh = false
	d.resolveOpen()
}

// resolveOpen asks for the next hops of gateways that have none yet.
func (d *Datapath) resolveOpen() {
	for via, g := range d.r.gateways.of {
		if g.hop == 0 {
			d.resolve(via)
		}
	}
}

// changed follows the host's network: what a change does not touch is not looked at.
func (d *Datapath) changed() {
	c, err := d.router.Take()
	if err != nil {
		d.log.Warn().Err(err).Msg("the host's network could not be read")
		c.All = true
	}
	if c.Empty() {
		return
	}
	for _, via := range c.Gateways {
		d.resolve(via)
	}
	if c.All || len(c.Links) > 0 {
		d.relink()
		return
	}
	diff := d.r.newDiff()
	for a := range d.r.state.Allocations() {
		if touched(a, &c) {
			diff.allocation(a.ID)
		}
	}
	diff.write()
}

// touched says whether a route of a may have changed.
func touched(a *turn.Allocation, c *Change) bool {
	if len(c.Prefixes) == 0 {
		return false
	}
	if c.Touches(a.FiveTuple.Server.Addr(), a.FiveTuple.Client.Addr()) {
		return true
	}
	for i := range a.Channels {
		peer := a.Channels[i].Peer.Addr()
		if r, ok := a.RelayedFor(peer); ok && c.Touches(r.Addr(), peer) {
			return true
		}
	}
	return false
}

// relink starts over with the interfaces: one came, went or changed.
func (d *Datapath) relink() {
	d.attached.plan(d.links())
	d.attached.placeAll()
	if err := d.attached.attach(); err != nil {
		d.log.Warn().Err(err).Msg("not every interface takes the program")
	}
	d.attached.sense()
	d.r.full()
	d.resolveAll()
}

// retire begins a grace period for what was revoked, unless one is under way.
func (d *Datapath) retire() {
	if d.inGrace {
		return
	}
	batch, hops := d.r.retire()
	if len(batch) == 0 && len(hops) == 0 {
		d.free = d.applied
		d.wake()
		return
	}
	d.inGrace = true
	s := settlement{slots: batch, hops: hops, upTo: d.applied}
	go func() { // Run waits for it
		s.err = d.tables.grace()
		d.settled <- s
	}()
}

func (d *Datapath) settle(s settlement) {
	d.inGrace = false
	if s.err != nil { // quarantined: tried again with whatever is revoked next
		d.log.Error().Err(s.err).Msg("no grace period: revoked slots stay out of use")
		d.r.slots.retiring = append(d.r.slots.retiring, s.slots...)
		d.r.gateways.retired = append(d.r.gateways.retired, s.hops...)
		d.failures++
		return
	}
	d.events.add(d.r.settle(s.slots, s.hops)...)
	d.free = max(d.free, s.upTo)
	d.wake()
}

// wake tells those whose sequence has come.
func (d *Datapath) wake() {
	d.waiters = slices.DeleteFunc(d.waiters, func(w waiter) bool {
		reached := d.applied
		if w.settle {
			reached = d.free
		}
		if reached < w.seq {
			return false
		}
		close(w.done)
		return true
	})
}

// tick looks after what somebody else may have changed, and tries again what failed.
func (d *Datapath) tick() {
	d.ticks++
	d.repair("record", d.r.checkRecords())
	n, err := d.pins.repin(d.objects, d.layout)
	if err != nil {
		d.log.Warn().Err(err).Msg("maps could not be pinned again")
	}
	links, pins := d.attached.check()
	pins.added += n
	d.repair("link", links)
	d.repair("pin", pins)
	if links.added > 0 || d.attached.vacated() {
		d.relink()
	} else if ways, hops := d.attached.sense(); hops {
		d.r.dirty = d.r.dirty || ways
		d.resolveAll()
	}
	switch {
	case d.r.dirty, d.ticks%fullEvery == 0:
		d.r.full()
		d.resolveOpen()
		d.keepNeighbours()
	case len(d.r.waiting) > 0:
		d.r.retry()
	}
	if d.ticks%walkEvery == 0 {
		d.r.lowerListeners()
	}
	if d.ticks%walkEvery == 0 && !d.walking {
		d.walking = true
		go func() { // Run waits for it
			all, err := d.tables.index.all()
			d.walks <- walk{all, err}
		}()
	}
	d.probePaths()
	d.testify()
	_ = d.oops()
}

func (d *Datapath) keepNeighbours() {
	needed := map[Gateway]bool{}
	for via := range d.r.gateways.of {
		needed[via] = true
	}
	if err := d.router.Keep(needed); err != nil {
		d.log.Warn().Err(err).Msg("neighbours that are not needed any more could not be let go")
	}
}

func (d *Datapath) walked(w walk) {
	d.walking = false
	if w.err != nil {
		d.log.Warn().Err(w.err).Msg("the index could not be walked")
		return
	}
	d.repair("index", d.r.sweep(w.all))
}

// repair tells of drift that was put right.
func (d *Datapath) repair(what string, n drift) {
	if !n.any() {
		return
	}
	d.repaired.added += n.added
	d.repaired.changed += n.changed
	d.repaired.removed += n.removed
	d.log.Warn().Str("what", what).Uint64("added", n.added).Uint64("changed", n.changed).Uint64("removed", n.removed).
		Msg("somebody else changed the kernel's side: it is put right")
	d.events.add(n.event(what))
}

// count tells the log some of the usage that changed.
func (d *Datapath) count() {
	n := min(countStep, len(d.counting))
	for _, id := range d.counting[:n] {
		d.events.add(d.r.usageOf(id)...)
	}
	d.counting = d.counting[n:]
}

// ask runs f between two steps of the loop and waits for it.
func (d *Datapath) ask(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case d.requests <- func() { f(); close(done) }:
	case <-ctx.Done():
		return ctx.Err()
	case <-d.done:
		return ErrStopped
	}
	<-done
	return nil
}

// await waits until a sequence is applied, and for settle until nothing revoked up to it is in use.
func (d *Datapath) await(ctx context.Context, seq turn.Seq, settle bool) error {
	w := waiter{seq: seq, settle: settle, done: make(chan struct{})}
	err := d.ask(ctx, func() {
		d.waiters = append(d.waiters, w)
		d.wake()
	})
	if err != nil {
		return err
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-d.done:
		return ErrStopped
	}
}

// Withdraw returns when nothing is relayed any more that the events up to a sequence revoked.
func (d *Datapath) Withdraw(ctx context.Context, up turn.Seq) error { return d.await(ctx, up, false) }

// Settle returns when nothing that the events up to a sequence revoked is in use by a packet on its
// way, and its last usage is on its way to the log.
func (d *Datapath) Settle(ctx context.Context, up turn.Seq) error { return d.await(ctx, up, true) }

// Flush has all usage that changed recorded, as before the end.
func (d *Datapath) Flush(ctx context.Context) error {
	err := d.ask(ctx, func() {
		for id := range d.r.tallies {
			d.events.add(d.r.usageOf(id)...)
		}
	})
	if err != nil {
		return err
	}
	return d.events.flushed(ctx)
}
