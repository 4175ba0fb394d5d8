package turn

import (
	"cmp"
	"slices"
)

// Expire yields events for at most limit of the things that are over at m, which
// must be of the boot of the state's last record. The earliest come first,
// allocations before what they hold.
func Expire(s *State, m Moment, limit int) []Event {
	s.ends.build(s.allocations)
	var events []Event
	for _, a := range s.ends.overdue(m) {
		for _, e := range a.overdue(m) {
			if len(events) == limit {
				return events
			}
			events = append(events, e)
		}
	}
	return events
}

// overdue are the allocations in which something is over at m, the earliest first.
func (e *ends) overdue(m Moment) []*Allocation {
	var out []*Allocation
	for walk := []int{0}; len(walk) > 0; {
		i := walk[len(walk)-1]
		walk = walk[:len(walk)-1]
		if i < len(e.heap) && e.heap[i].end <= m.Uptime {
			out = append(out, e.heap[i])
			walk = append(walk, 2*i+1, 2*i+2)
		}
	}
	slices.SortFunc(out, func(a, b *Allocation) int { return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.ID, b.ID)) })
	return out
}

func (a *Allocation) overdue(m Moment) []Event {
	if a.Deadline.Passed(m) {
		return []Event{AllocationExpired{Allocation: a.ID}}
	}
	var events []Event
	for _, c := range a.Channels {
		if c.Deadline.Passed(m) {
			events = append(events, ChannelExpired{Allocation: a.ID, Channel: c.Number})
		}
	}
	for _, p := range a.Permissions {
		if p.Deadline.Passed(m) {
			events = append(events, PermissionExpired{Allocation: a.ID, Peer: p.Peer})
		}
	}
	return events
}

// Close ends the allocation id for a reason of the server's; no events where there is none.
func Close(s *State, id AllocationID, why Reason) []Event {
	if s.allocations[id] == nil {
		return nil
	}
	return []Event{AllocationDeleted{Allocation: id, Reason: why}}
}

// Reconcile yields what a new configuration revokes: the allocations of users
// g does not know any more, and the channels and permissions of peers r forbids.
func Reconcile(s *State, r *Rules, g *Gate) []Event {
	var events []Event
	for a := range s.Allocations() {
		if !g.Knows(a.Username) {
			events = append(events, AllocationDeleted{Allocation: a.ID, Reason: ReasonUserRemoved})
			continue
		}
		for _, c := range a.Channels {
			if !r.permits(c.Peer.Addr()) {
				events = append(events, ChannelRevoked{Allocation: a.ID, Channel: c.Number, Reason: ReasonPolicy})
			}
		}
		for _, p := range a.Permissions {
			if !r.permits(p.Peer) {
				events = append(events, PermissionRevoked{Allocation: a.ID, Peer: p.Peer, Reason: ReasonPolicy})
			}
		}
	}
	return events
}
