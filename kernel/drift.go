package kernel

import (
	"sync/atomic"

	"turnstone/bpf"
	"turnstone/turn"
)

// drift counts what differed from what the reconciler had written.
type drift struct{ added, changed, removed uint64 }

func (d drift) any() bool { return d != drift{} }

func (d drift) event(what string) turn.Event {
	return turn.DriftRepaired{What: what, Added: d.added, Changed: d.changed, Removed: d.removed}
}

// load takes over what the maps hold: flows of an earlier run go on relaying while it is worked
// out which of them are still wanted. What names no good record is removed.
func (r *reconciler) load() error {
	all, err := r.t.index.all()
	if err != nil {
		return err
	}
	r.gateways.load()
	var stray []Key
	used := make([]bool, len(r.t.flows))
	for k, at := range all {
		f, ok := r.recorded(k, at)
		if !ok {
			stray = append(stray, k)
			continue
		}
		used[at.slot] = true
		r.held[k] = f
		r.list(f)
		r.slots.generation = max(r.slots.generation, at.generation)
	}
	r.fail(r.t.index.delete(stray))
	r.loadSlots(used)
	r.loadTallies()
	return nil
}

// recorded is the flow that an index entry names, false where its record is not k's.
func (r *reconciler) recorded(k Key, at ref) (*held, bool) {
	if at.slot == 0 || int(at.slot) >= len(r.t.flows) || at.generation == 0 {
		return nil, false
	}
	raw := r.t.flows[at.slot]
	f := flowOf(&raw)
	if raw.Generation != at.generation || f.Key != k {
		return nil, false
	}
	f.Allocation = turn.AllocationID(r.t.owners[at.slot].Allocation)
	return &held{Flow: f, ref: at, via: unknown, raw: raw}, true
}

// loadSlots finds the free slots. One that has a record but no key is retired.
func (r *reconciler) loadSlots(used []bool) {
	r.t.revoke(0) // nobody's
	for s := len(used) - 1; s > 0; s-- {
		raw := &r.t.flows[s]
		r.slots.generation = max(r.slots.generation, raw.Generation)
		switch {
		case used[s], raw.Kind != 0:
			if r.slots.next <= uint32(s) {
				r.slots.next = uint32(s) + 1
			}
			if !used[s] {
				r.t.revoke(uint32(s))
				f := flowOf(raw)
				f.Allocation = turn.AllocationID(r.t.owners[s].Allocation)
				r.drop(&held{Flow: f, ref: ref{slot: uint32(s)}, via: unknown})
			}
		case uint32(s) < r.slots.next:
			r.slots.free = append(r.slots.free, uint32(s))
		}
	}
}

// loadTallies goes on counting where the owners of slots say that the run before was.
func (r *reconciler) loadTallies() {
	for _, h := range r.held {
		b := h.bindingOf()
		if b.channel == 0 {
			continue
		}
		y, d := r.tallyOf(h.Allocation, b), direction(h.Kind)
		o := &r.t.owners[h.slot]
		base := turn.Count{Packets: o.BasePackets, Bytes: o.BaseBytes}
		c := r.t.usage.read(h.slot)
		known := y.recorded[d]
		if sum := base.Plus(c); sum.Packets < known.Packets { // a crash lost the base
			base = turn.Count{Packets: known.Packets - min(c.Packets, known.Packets), Bytes: known.Bytes - min(c.Bytes, known.Bytes)}
			o.BasePackets, o.BaseBytes = base.Packets, base.Bytes
		}
		y.past[d], y.slots[d] = base, h.slot
	}
}

// adopt works out whether the flow h of an earlier run has the gateway and meter that w wants.
func (r *reconciler) adopt(h *held, w *want) {
	n, ok := r.gateways.take(w.via, h.Gateway)
	if !ok {
		return
	}
	if n != h.Gateway {
		r.gateways.release(n)
		return
	}
	if h.Meter != 0 && (!w.metered || !r.meters.adopt(h.Allocation, r.holderOf(h.Allocation), h.Meter)) {
		r.gateways.release(n)
		return
	}
	h.via = w.via
}

// checkRecords compares each record with what was written, and replaces those that differ.
func (r *reconciler) checkRecords() (d drift) {
	var again []*want
	for _, h := range r.held {
		at := &r.t.flows[h.slot]
		if *at == h.raw {
			continue
		}
		d.changed++
		atomic.StoreUint32(&at.Generation, 0)
		again = append(again, &want{Flow: h.Flow, via: h.via, metered: h.Meter != 0})
	}
	d.changed += r.gateways.check() + r.meters.check()
	r.grant(again)
	return d
}

// sweep compares a walk over the index, which may be a little old, with what was
// written. What differs is looked up again before it is put right.
func (r *reconciler) sweep(all map[Key]ref) (d drift) {
	var missing []*want
	for k, h := range r.held {
		if all[k] == h.ref {
			continue
		}
		now, ok, err := r.t.index.lookup(k)
		switch {
		case err != nil:
			r.fail(err)
		case !ok:
			d.added++
			missing = append(missing, &want{Flow: h.Flow, via: h.via, metered: h.Meter != 0})
		case now != h.ref:
			d.changed++
			missing = append(missing, &want{Flow: h.Flow, via: h.via, metered: h.Meter != 0})
		}
	}
	var extra []Key
	for k := range all {
		if r.held[k] != nil {
			continue
		}
		if _, ok, err := r.t.index.lookup(k); err != nil {
			r.fail(err)
		} else if ok {
			extra = append(extra, k)
		}
	}
	d.removed += uint64(len(extra))
	if len(extra) > 0 {
		r.fail(r.t.index.delete(extra))
	}
	r.grant(missing)
	return d
}

// clearAll revokes everything: the maps are the projection of another log.
func (r *reconciler) clearAll() {
	list := make([]*held, 0, len(r.held))
	for _, h := range r.held {
		list = append(list, h)
	}
	r.revoke(list)
	for i := range r.slots.retiring { // what was counted there is about the other log's allocations
		r.slots.retiring[i].binding = binding{}
	}
	clear(r.tallies)
	*r.t.meta = bpf.TurnstoneProjection{}
}
