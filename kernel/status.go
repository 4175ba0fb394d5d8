package kernel

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"slices"
	"sync"
	"time"

	"turnstone/bpf"
	"turnstone/turn"

	"github.com/cilium/ebpf"
)

// Status is how the kernel's side is.
type Status struct {
	Directory  string          `json:"directory"` // of the pins
	Layout     string          `json:"layout"`
	Applied    turn.Seq        `json:"applied"`
	Lag        uint64          `json:"lag"` // events that are durable and not applied yet
	Interfaces []Interface     `json:"interfaces"`
	Flows      int             `json:"flows"`    // in the maps, guards included
	Slots      int             `json:"slots"`    // in use, those of flows that just ended included
	Capacity   int             `json:"capacity"` // slots there are
	Gateways   int             `json:"gateways"`
	Unresolved int             `json:"unresolved"` // gateways without a next hop
	Absent     map[Reason]int  `json:"absent"`     // flows the kernel does not carry, by reason
	Memory     uint64          `json:"memory"`     // bytes of all maps
	Drift      Drift           `json:"drift"`      // repaired since the start
	Failures   uint64          `json:"failures"`   // writes that failed
	Verdicts   []VerdictCounts `json:"verdicts"`
}

// Relayed is what the program has relayed each way. A datagram from one allocation to another counts in both.
func (s *Status) Relayed() (toPeer, toClient turn.Count) {
	for _, v := range s.Verdicts {
		n := turn.Count{Packets: v.Packets, Bytes: v.Bytes}
		switch v.Verdict {
		case VerdictToPeer.String():
			toPeer = toPeer.Plus(n)
		case VerdictToClient.String():
			toClient = toClient.Plus(n)
		case VerdictToChannel.String():
			toPeer, toClient = toPeer.Plus(n), toClient.Plus(n)
		}
	}
	return toPeer, toClient
}

// Interface is one the program is attached to, or why not.
type Interface struct {
	Name   string  `json:"interface"`
	Index  int     `json:"ifindex"`
	Mode   XDPMode `json:"mode"`
	Reason Reason  `json:"reason"`
}

// Drift is what somebody else changed and was put right.
type Drift struct {
	Added   uint64 `json:"added"`
	Changed uint64 `json:"changed"`
	Removed uint64 `json:"removed"`
}

// VerdictCounts is how often the program left by a verdict. Bytes are payload.
type VerdictCounts struct {
	Verdict string `json:"verdict"`
	Packets uint64 `json:"packets"`
	Bytes   uint64 `json:"bytes"`
}

// Status describes the datapath.
func (d *Datapath) Status(ctx context.Context) (s Status, err error) {
	err = d.ask(ctx, func() { s = d.status() })
	if err != nil {
		return s, err
	}
	s.Verdicts, err = d.verdicts.read()
	return s, err
}

func (d *Datapath) status() Status {
	head, _ := d.config.Log.Head()
	s := Status{
		Directory: d.pins.dir, Layout: hex.EncodeToString(d.layout[:8]), Applied: d.applied, Lag: uint64(head - min(head, d.applied)),
		Interfaces: d.interfaces(), Flows: len(d.r.held), Slots: d.r.slots.used(), Capacity: int(d.r.slots.end) - 1,
		Gateways: len(d.r.gateways.of), Absent: map[Reason]int{}, Memory: d.memory(), Failures: d.failures,
		Drift: Drift{d.repaired.added, d.repaired.changed, d.repaired.removed},
	}
	for _, g := range d.r.gateways.of {
		if g.hop == 0 {
			s.Unresolved++
		}
	}
	for _, of := range d.r.absent {
		for _, why := range of {
			s.Absent[why]++
		}
	}
	return s
}

// interfaces are those the program is attached to, or wanted on.
func (d *Datapath) interfaces() []Interface {
	var out []Interface
	for i, a := range d.attached.at {
		out = append(out, Interface{Name: a.link.Name, Index: i, Mode: a.mode, Reason: a.reason})
	}
	slices.SortFunc(out, func(a, b Interface) int { return cmp.Compare(a.Index, b.Index) })
	return out
}

// memory is what the kernel has set aside for the maps, in bytes.
func (d *Datapath) memory() (sum uint64) {
	for _, m := range mapsOf(d.objects) {
		if info, err := m.Info(); err == nil {
			if n, ok := info.Memlock(); ok {
				sum += n
			}
		}
	}
	return sum
}

// verdictCounters reads the program's counters, from any goroutine.
type verdictCounters struct {
	mu   sync.Mutex // guards cpus while it is open
	cpus *ebpf.Map  // nil: closed
}

func (v *verdictCounters) close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.cpus = nil
}

// read sums the counters of all CPUs up.
func (v *verdictCounters) read() ([]VerdictCounts, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.cpus == nil {
		return nil, ErrStopped
	}
	var each []bpf.TurnstoneCpu
	if err := v.cpus.Lookup(uint32(0), &each); err != nil {
		return nil, fmt.Errorf("read the verdicts: %w", err)
	}
	out := make([]VerdictCounts, Verdicts)
	for i := range out {
		out[i].Verdict = Verdict(i).String()
		for _, c := range each {
			out[i].Packets += c.Verdicts[i].Packets
			out[i].Bytes += c.Verdicts[i].Bytes
		}
	}
	return out, nil
}

// Verdicts reads the program's counters, one for each verdict.
func (d *Datapath) Verdicts() ([]VerdictCounts, error) { return d.verdicts.read() }

// Carried says of a direction of a channel whether the kernel relays it, and if not, why.
type Carried struct {
	Channel   turn.ChannelNumber `json:"channel"`
	Direction Kind               `json:"direction"`
	Kernel    bool               `json:"kernel"`
	Reason    Reason             `json:"reason"`
	Packets   uint64             `json:"packets"` // relayed by the kernel since the allocation was created
	Bytes     uint64             `json:"bytes"`
}

// Carries says of every channel of an allocation whether the kernel relays it.
func (d *Datapath) Carries(ctx context.Context, id turn.AllocationID) (out []Carried, err error) {
	err = d.ask(ctx, func() { out = d.carriesOf(id) })
	return out, err
}

func (d *Datapath) carriesOf(id turn.AllocationID) (out []Carried) {
	a := d.r.state.Allocation(id)
	if a == nil {
		return nil
	}
	for _, w := range desired(a, d.r.s) {
		if w.Kind == Guard {
			continue
		}
		c := Carried{Channel: w.channelOf(), Direction: w.Kind, Reason: d.r.absent[id][w.Key]}
		if h := d.r.held[w.Key]; h != nil && c.Reason == "" {
			c.Kernel = true
			if g := d.r.gateways.of[h.via]; g != nil && g.hop == 0 {
				c.Kernel, c.Reason = false, g.reason
			}
		}
		if y := d.r.tallies[id][w.bindingOf()]; y != nil {
			sum := d.tables.total(y)[direction(w.Kind)]
			c.Packets, c.Bytes = sum.Packets, sum.Bytes
		}
		out = append(out, c)
	}
	return out
}

// Repair compares everything with the log and the routes at once, and puts right what differs.
func (d *Datapath) Repair(ctx context.Context) (fixed Drift, err error) {
	var problem error
	err = d.ask(ctx, func() {
		before := d.repaired
		all, e := d.tables.index.all()
		if problem = e; e != nil {
			return
		}
		d.tick()
		d.repair("index", d.r.sweep(all))
		d.r.full()
		d.resolveAll()
		problem = d.oops()
		now := d.repaired
		fixed = Drift{now.added - before.added, now.changed - before.changed, now.removed - before.removed}
	})
	if err == nil {
		err = problem
	}
	return fixed, err
}

// Row is a flow as the maps have it.
type Row struct {
	Slot       uint32             `json:"slot"`
	Generation uint32             `json:"generation"`
	Kind       Kind               `json:"kind"`
	Allocation turn.AllocationID  `json:"allocation"`
	Remote     string             `json:"remote"`
	Local      string             `json:"local"`
	Channel    turn.ChannelNumber `json:"channel"`
	From       string             `json:"from"` // it leaves with
	To         string             `json:"to"`
	OutChannel turn.ChannelNumber `json:"out_channel"`
	Deadline   time.Duration      `json:"deadline"` // boot time, ns
	Packets    uint64             `json:"packets"`
	Bytes      uint64             `json:"bytes"`
}
