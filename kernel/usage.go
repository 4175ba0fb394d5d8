package kernel

import (
	"net/netip"

	"turnstone/turn"
)

// binding names a channel of an allocation with its peer: what usage is counted for.
type binding struct {
	channel turn.ChannelNumber
	peer    netip.AddrPort
}

// bindingOf is the binding f belongs to, zero for a guard.
func (f *Flow) bindingOf() binding {
	switch f.Kind {
	case ToPeer:
		return binding{f.Channel, f.Destination}
	case ToClient:
		return binding{f.OutChannel, f.Remote}
	}
	return binding{}
}

// tally is what the kernel has relayed for a binding since its allocation was
// created. The counter of a slot begins at zero: past is what earlier slots counted.
type tally struct {
	past     [2]turn.Count // by direction
	slots    [2]uint32     // that count now, 0 for none
	recorded [2]turn.Count
}

// direction is the place of a kind of flow in a tally.
func direction(k Kind) int {
	if k == ToClient {
		return 1
	}
	return 0
}

// total is what a binding has relayed by now, in each direction.
func (t *tables) total(y *tally) (sum [2]turn.Count) {
	for d := range sum {
		sum[d] = y.past[d]
		if y.slots[d] != 0 {
			sum[d] = sum[d].Plus(t.usage.read(y.slots[d]))
		}
	}
	return sum
}

// count yields the event that tells the log what it does not know of b yet, nil where there is nothing.
func (r *reconciler) count(id turn.AllocationID, b binding, y *tally) turn.Event {
	sum := r.t.total(y)
	if sum == y.recorded {
		return nil
	}
	y.recorded = sum
	return turn.UsageRecorded{
		Allocation: id, Channel: b.channel, Peer: b.peer, Path: turn.PathKernel, ToPeer: sum[0], ToClient: sum[1],
	}
}

// tallyOf is the tally of a binding. A new one goes on from what the log knows.
func (r *reconciler) tallyOf(id turn.AllocationID, b binding) *tally {
	of := r.tallies[id]
	if of == nil {
		of = map[binding]*tally{}
		r.tallies[id] = of
	}
	y := of[b]
	if y == nil {
		y = &tally{}
		if a := r.state.Allocation(id); a != nil {
			for _, u := range a.Usage {
				if u.Path == turn.PathKernel && u.Channel == b.channel && u.Peer == b.peer {
					y.past = [2]turn.Count{u.ToPeer, u.ToClient}
					y.recorded = y.past
				}
			}
		}
		of[b] = y
	}
	return y
}

// usageOf yields what the log does not know yet of an allocation.
func (r *reconciler) usageOf(id turn.AllocationID) []turn.Event {
	var events []turn.Event
	for b, y := range r.tallies[id] {
		if e := r.count(id, b, y); e != nil {
			events = append(events, e)
		}
	}
	return events
}
