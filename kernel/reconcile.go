package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"turnstone/bpf"
	"turnstone/turn"
)

// reconciler makes the maps what the log wants. It is logic over tables: no
// goroutine, no clock, no sockets. Whatever fails leaves it dirty, and a full round puts it right.
type reconciler struct {
	t     *tables
	s     surroundings
	state *turn.State // the fold of the log, its own

	held      map[Key]*held
	of        map[turn.AllocationID][]*held // 0: guards of listeners
	slots     *slots
	gateways  *gateways
	meters    *meters
	tallies   map[turn.AllocationID]map[binding]*tally
	pending   map[turn.AllocationID]int            // slots of it that wait for a grace period
	absent    map[turn.AllocationID]map[Key]Reason // wanted, and not in the maps
	waiting   map[turn.AllocationID]struct{}       // have something absent that may find room
	listeners []netip.AddrPort
	until     map[netip.AddrPort]time.Duration // the last deadline on a listener
	stale     bool                             // until may be later than that

	round uint64 // of looking at one allocation
	dirty bool   // a write failed: the maps may be anything
	errs  []error
}

func newReconciler(t *tables, s surroundings, state *turn.State, listeners []netip.AddrPort, caps turn.Caps) *reconciler {
	r := &reconciler{
		t: t, s: s, state: state,
		held: map[Key]*held{}, of: map[turn.AllocationID][]*held{},
		slots: newSlots(len(t.flows)), gateways: newGateways(t), meters: newMeters(t, caps),
		tallies: map[turn.AllocationID]map[binding]*tally{}, pending: map[turn.AllocationID]int{}, absent: map[turn.AllocationID]map[Key]Reason{},
		waiting: map[turn.AllocationID]struct{}{}, listeners: listeners, until: map[netip.AddrPort]time.Duration{},
	}
	return r
}

// fail notes an error; the next full round starts over.
func (r *reconciler) fail(err error) {
	if err != nil {
		r.dirty = true
		r.errs = append(r.errs, err)
	}
}

// apply folds a record of the log and brings the maps to it.
func (r *reconciler) apply(rec turn.Record) error {
	touched := map[turn.AllocationID]struct{}{}
	for _, e := range rec.Events {
		if id := allocationOf(e); id != 0 {
			touched[id] = struct{}{}
		}
	}
	boot := r.state.Moment().Boot
	if err := r.state.Fold(rec); err != nil {
		return fmt.Errorf("fold the log for the kernel: %w", err)
	}
	if r.state.Moment().Boot != boot {
		r.full()
		return nil
	}
	d := r.newDiff()
	for id := range touched {
		d.allocation(id)
	}
	d.write()
	for id := range touched {
		a := r.state.Allocation(id)
		r.raise(a)
		r.stale = r.stale || a == nil
	}
	if r.state.Len() == 0 {
		clear(r.until)
	}
	r.guardListeners()
	return nil
}

// allocationOf is the allocation whose flows e may change, 0 for none.
func allocationOf(e turn.Event) turn.AllocationID {
	switch e := e.(type) {
	case turn.AllocationCreated:
		return e.Allocation
	case turn.AllocationRefreshed:
		return e.Allocation
	case turn.AllocationDeleted:
		return e.Allocation
	case turn.AllocationExpired:
		return e.Allocation
	case turn.PermissionInstalled:
		return e.Allocation
	case turn.PermissionExpired:
		return e.Allocation
	case turn.PermissionRevoked:
		return e.Allocation
	case turn.ChannelBound:
		return e.Allocation
	case turn.ChannelExpired:
		return e.Allocation
	case turn.ChannelRevoked:
		return e.Allocation
	case turn.RelayedRefreshed:
		return e.Allocation
	case turn.RelayedDeleted:
		return e.Allocation
	case turn.RelayedExpired:
		return e.Allocation
	case turn.AllocationMoved:
		return e.Allocation
	case turn.FiveTupleLeft:
		return e.Allocation
	}
	return 0
}

// full brings everything to what the log and the routes want, and forgets what failed before.
func (r *reconciler) full() {
	r.dirty = false
	d := r.newDiff()
	for id := range r.of {
		if id != 0 && r.state.Allocation(id) == nil {
			d.allocation(id)
		}
	}
	for a := range r.state.Allocations() {
		d.allocation(a.ID)
	}
	d.write()
	r.stale = true
	r.lowerListeners()
}

// lowerListeners brings the guards of the listeners back to what the allocations that are left need.
func (r *reconciler) lowerListeners() {
	if !r.stale {
		return
	}
	r.stale = false
	clear(r.until)
	for a := range r.state.Allocations() {
		r.raise(a)
	}
	r.guardListeners()
}

// raise has the guards of a's listeners live as long as a may.
func (r *reconciler) raise(a *turn.Allocation) {
	if a == nil {
		return
	}
	for t := range a.FiveTuples() {
		r.until[t.Server] = max(r.until[t.Server], a.Deadline.Uptime)
	}
}

// guardListeners brings the guards of the listeners up to the last deadline of their allocations.
func (r *reconciler) guardListeners() {
	wants := make([]want, 0, len(r.listeners))
	for _, l := range r.listeners {
		if until := r.until[l]; until > 0 {
			wants = append(wants, listenerGuard(l, until, r.s))
		}
	}
	d := r.newDiff()
	d.add(0, wants)
	d.write()
}

// retry gives what found no room another chance.
func (r *reconciler) retry() {
	d := r.newDiff()
	for id := range r.waiting {
		if id != 0 {
			d.allocation(id)
		}
	}
	d.write()
	if _, ok := r.waiting[0]; ok {
		r.guardListeners()
	}
}

// diff is a change of the maps: what to revoke, then what to grant.
type diff struct {
	r      *reconciler
	revoke []*held
	grant  []*want
}

func (r *reconciler) newDiff() *diff { return &diff{r: r} }

// allocation adds the difference of one allocation. Deadlines are moved at once.
func (d *diff) allocation(id turn.AllocationID) {
	var wants []want
	if a := d.r.state.Allocation(id); a != nil {
		wants = desired(a, d.r.s)
	}
	d.add(id, wants)
}

func (d *diff) add(id turn.AllocationID, wants []want) {
	r := d.r
	r.round++
	delete(r.waiting, id)
	delete(r.absent, id)
	for i := range wants {
		w := &wants[i]
		if w.reason != "" {
			r.miss(id, w.Key, w.reason)
			continue
		}
		h := r.held[w.Key]
		if h != nil && h.Allocation == id {
			h.wanted = r.round
		}
		if h == nil || h.Allocation != id || !r.stays(h, w) {
			d.grant = append(d.grant, w) // and takes the key over where it has one
		}
	}
	for _, h := range r.of[id] {
		if h.wanted != r.round {
			d.revoke = append(d.revoke, h)
		}
	}
}

// stays says whether the record of h may go on for w, and moves its deadline if it may.
func (r *reconciler) stays(h *held, w *want) bool {
	if h.via == unknown {
		r.adopt(h, w)
	}
	w.Gateway, w.Meter = h.Gateway, h.Meter
	if h.via != w.via || w.metered != (h.Meter != 0) || !h.same(&w.Flow) {
		return false
	}
	if h.Deadline != w.Deadline {
		h.Deadline, h.raw.Deadline = w.Deadline, uint64(w.Deadline)
		r.t.extend(h.slot, h.raw.Deadline)
	}
	return true
}

// miss notes why a flow is not in the maps.
func (r *reconciler) miss(id turn.AllocationID, k Key, why Reason) {
	if r.absent[id] == nil {
		r.absent[id] = map[Key]Reason{}
	}
	r.absent[id][k] = why
}

// write carries the difference out: first what ends, then what begins.
func (d *diff) write() {
	d.r.revoke(d.revoke)
	for len(d.grant) > 0 {
		n := min(len(d.grant), grantBatch)
		d.r.grant(d.grant[:n])
		d.grant = d.grant[n:]
	}
}

// grantBatch bounds the entries of one system call.
const grantBatch = 4096

// revoke ends flows: generation, then key. Their slots are free after a grace period.
func (r *reconciler) revoke(list []*held) {
	keys := make([]Key, 0, len(list))
	for _, h := range list {
		r.t.revoke(h.slot)
		keys = append(keys, h.Key)
		r.drop(h)
		delete(r.held, h.Key)
		r.unlist(h)
	}
	if len(keys) > 0 {
		r.fail(r.t.index.delete(keys)) // what is left behind names no record
	}
}

// drop lets the slot of h, whose record is revoked, wait for its grace period.
func (r *reconciler) drop(h *held) {
	o := retired{slot: h.slot, allocation: h.Allocation, kind: h.Kind, binding: h.bindingOf(), gateway: h.Gateway, meter: h.Meter}
	if h.via == unknown {
		o.gateway, o.meter = 0, 0
	}
	r.pending[h.Allocation]++
	r.slots.retiring = append(r.slots.retiring, o)
}

// grant makes flows: record, generation, key. A key that another record has goes over to the new one
// without a gap.
func (r *reconciler) grant(wants []*want) {
	keys, refs := make([]Key, 0, len(wants)), make([]ref, 0, len(wants))
	made := make([]*held, 0, len(wants))
	for _, w := range wants {
		h, why := r.prepare(w)
		if why != "" {
			r.miss(w.Allocation, w.Key, why)
			r.waiting[w.Allocation] = struct{}{}
			continue
		}
		keys, refs, made = append(keys, w.Key), append(refs, h.ref), append(made, h)
	}
	for len(keys) > 0 {
		n, err := r.t.index.put(keys, refs)
		for _, h := range made[:n] {
			r.hold(h)
		}
		keys, refs, made = keys[n:], refs[n:], made[n:]
		if err != nil {
			r.refuse(made[0], err)
			keys, refs, made = keys[1:], refs[1:], made[1:]
		}
	}
}

// prepare publishes the record of w, which no key names yet.
func (r *reconciler) prepare(w *want) (*held, Reason) {
	at, ok := r.slots.take()
	if !ok {
		return nil, ReasonFull
	}
	h := &held{Flow: w.Flow, ref: at, via: w.via}
	if h.Gateway, ok = r.gateways.take(w.via, 0); !ok {
		r.slots.free = append(r.slots.free, at.slot)
		return nil, ReasonFull
	}
	h.Meter = 0
	if w.metered {
		if h.Meter, ok = r.meters.take(w.Allocation, r.holderOf(w.Allocation), direction(w.Kind)); !ok {
			r.gateways.release(h.Gateway)
			r.slots.free = append(r.slots.free, at.slot)
			return nil, ReasonFull
		}
	}
	y := turn.Count{}
	if b := w.bindingOf(); b.channel != 0 {
		y = r.tallyOf(w.Allocation, b).past[direction(w.Kind)]
	}
	r.t.owners[at.slot] = bpf.TurnstoneOwner{
		Allocation: uint64(w.Allocation), Channel: uint16(w.channelOf()), BasePackets: y.Packets, BaseBytes: y.Bytes,
	}
	h.raw = h.record()
	r.t.publish(at.slot, h.raw, at.generation)
	h.raw.Generation = at.generation
	return h, ""
}

// holderOf is whose an allocation is.
func (r *reconciler) holderOf(id turn.AllocationID) turn.Holder {
	if a := r.state.Allocation(id); a != nil {
		return turn.HolderOf(a.Realm, a.Username)
	}
	return turn.Holder{}
}

// hold notes that the maps have h. The record that had its key before is revoked.
func (r *reconciler) hold(h *held) {
	if old := r.held[h.Key]; old != nil {
		r.t.revoke(old.slot)
		r.drop(old)
		r.unlist(old)
	}
	r.held[h.Key] = h
	r.list(h)
	if b := h.bindingOf(); b.channel != 0 {
		r.tallyOf(h.Allocation, b).slots[direction(h.Kind)] = h.slot
	}
}

// list puts h among what the maps have of its allocation.
func (r *reconciler) list(h *held) {
	of := r.of[h.Allocation]
	h.place = len(of)
	r.of[h.Allocation] = append(of, h)
}

// unlist is the opposite of list.
func (r *reconciler) unlist(h *held) {
	of := r.of[h.Allocation]
	last := len(of) - 1
	of[h.place] = of[last]
	of[h.place].place = h.place
	of[last] = nil
	if last == 0 {
		delete(r.of, h.Allocation)
		return
	}
	r.of[h.Allocation] = of[:last]
}

// refuse takes back h, whose key could not be written: that flow stays in userspace.
func (r *reconciler) refuse(h *held, err error) {
	r.t.revoke(h.slot)
	r.drop(h)
	r.waiting[h.Allocation] = struct{}{}
	if errors.Is(err, errFull) {
		r.miss(h.Allocation, h.Key, ReasonFull)
		return
	}
	r.miss(h.Allocation, h.Key, ReasonWrite)
	r.fail(err)
}

// retire yields what waits for a grace period that has not begun.
func (r *reconciler) retire() (batch []retired, hops []uint32) {
	batch, hops = r.slots.retiring, r.gateways.retired
	r.slots.retiring, r.gateways.retired = nil, nil
	return batch, hops
}

// settle frees what retire yielded, after a grace period, and says what its last usage was.
func (r *reconciler) settle(batch []retired, hops []uint32) (events []turn.Event) {
	r.gateways.settled(hops)
	ended := map[turn.AllocationID]struct{}{}
	var clear []uint32
	for _, o := range batch {
		if r.pending[o.allocation]--; r.pending[o.allocation] == 0 {
			delete(r.pending, o.allocation)
		}
		if o.binding.channel != 0 {
			r.settleTally(o)
			ended[o.allocation] = struct{}{}
		}
		r.gateways.release(o.gateway)
		r.meters.release(o.meter)
		clear = append(clear, o.slot)
	}
	for id := range ended {
		events = append(events, r.usageOf(id)...)
		if r.state.Allocation(id) == nil && len(r.of[id]) == 0 && r.pending[id] == 0 {
			delete(r.tallies, id)
		}
	}
	r.t.usage.clear(clear)
	for _, s := range clear {
		r.t.flows[s] = bpf.TurnstoneFlow{}
		r.t.owners[s] = bpf.TurnstoneOwner{}
	}
	r.slots.free = append(r.slots.free, clear...)
	return events
}

// settleTally adds what a slot has counted to the past of its binding.
func (r *reconciler) settleTally(o retired) {
	d := direction(o.kind)
	y := r.tallyOf(o.allocation, o.binding)
	y.past[d] = y.past[d].Plus(r.t.usage.read(o.slot))
	if y.slots[d] == o.slot {
		y.slots[d] = 0
	}
	if now := y.slots[d]; now != 0 {
		r.t.owners[now].BasePackets, r.t.owners[now].BaseBytes = y.past[d].Packets, y.past[d].Bytes
	}
}
