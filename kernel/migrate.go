package kernel

import (
	"errors"
	"fmt"
	"path/filepath"
	"unsafe"

	"turnstone/bpf"
	"turnstone/turn"

	"github.com/cilium/ebpf"
)

// drainLayout takes over the counters and meters of the maps pinned in dir, which have another layout and which no program
// uses any more, for the bindings that r has. The owners of its slots say whose they are.
func drainLayout(dir string, r *reconciler) (err error) {
	var opened []*ebpf.Map
	defer func() {
		for _, m := range opened {
			err = errors.Join(err, m.Close())
		}
	}()
	open := func(name string) *ebpf.Map {
		m, e := ebpf.LoadPinnedMap(filepath.Join(dir, name), nil)
		if e != nil {
			err = errors.Join(err, e)
			return nil
		}
		opened = append(opened, m)
		return m
	}
	owners, counts, flows, meters := open(bpf.TurnstoneMapOwners), open(bpf.TurnstoneMapUsage), open(bpf.TurnstoneMapFlows), open(bpf.TurnstoneMapMeters)
	if err != nil {
		return err
	}
	if owners.ValueSize() != uint32(unsafe.Sizeof(bpf.TurnstoneOwner{})) || flows.ValueSize() != uint32(unsafe.Sizeof(bpf.TurnstoneFlow{})) ||
		counts.ValueSize() != uint32(unsafe.Sizeof(bpf.TurnstoneCounter{})) || meters.ValueSize() != uint32(unsafe.Sizeof(bpf.TurnstoneMeter{})) {
		return fmt.Errorf("%s: records of another shape", dir)
	}
	t := &tables{}
	defer func() { err = errors.Join(err, t.close()) }()
	var counters []bpf.TurnstoneCounter
	if err := errors.Join(share(t, &t.owners, owners), share(t, &t.flows, flows), share(t, &t.meters, meters), share(t, &counters, counts)); err != nil {
		return err
	}
	t.usage = newSharedUsage(counters, len(t.flows))
	for s := 1; s < len(t.flows); s++ {
		if t.flows[s].Kind == 0 || t.flows[s].Kind == uint8(Guard) {
			continue
		}
		r.drainSlot(t, uint32(s))
	}
	return nil
}

// drainSlot adds what a slot of another layout has counted to the past of its binding, and what it has taken to its meters.
func (r *reconciler) drainSlot(old *tables, slot uint32) {
	f := flowOf(&old.flows[slot])
	o := &old.owners[slot]
	id := turn.AllocationID(o.Allocation)
	if r.state.Allocation(id) == nil {
		return
	}
	r.meters.drain(old.meters, id, direction(f.Kind), f.Meter)
	sum := turn.Count{Packets: o.BasePackets, Bytes: o.BaseBytes}.Plus(old.usage.read(slot))
	y, d := r.tallyOf(id, f.bindingOf()), direction(f.Kind)
	if sum.Packets <= y.past[d].Packets {
		return
	}
	y.past[d] = sum
	if now := y.slots[d]; now != 0 {
		r.t.owners[now].BasePackets, r.t.owners[now].BaseBytes = sum.Packets, sum.Bytes
	}
}
