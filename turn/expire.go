package turn

import (
	"cmp"
	"slices"
	"time"
)

// Expire yields events for at most limit of the things that are over at m, which
// must be of the boot of the state's last record. The earliest come first,
// allocations before what they hold, reservations before allocations, and bans behind all of these.
func Expire(s *State, m Moment, limit int) []Event {
	s.ends.build(s.allocations)
	over := s.ends.within(m.Uptime)
	slices.SortFunc(over, func(a, b *Allocation) int { return cmp.Or(cmp.Compare(a.end, b.end), cmp.Compare(a.ID, b.ID)) })
	lapsed := s.reservations.over(m)
	var events []Event
	add := func(e Event) bool {
		if len(events) == limit {
			return false
		}
		events = append(events, e)
		return true
	}
	until := func(end time.Duration) bool {
		for ; len(lapsed) > 0 && lapsed[0].Deadline.Uptime <= end; lapsed = lapsed[1:] {
			if !add(ReservationExpired{Relayed: lapsed[0].Relayed}) {
				return false
			}
		}
		return true
	}
	for _, a := range over {
		if !until(a.end) {
			return events
		}
		for _, e := range a.overdue(m) {
			if !add(e) {
				return events
			}
		}
	}
	if !until(m.Uptime) {
		return events
	}
	for _, e := range s.bans.over(m) {
		if !add(e) {
			break
		}
	}
	return events
}

// live is what is left of a at m, nil for nothing, and the events that end the rest:
// the log may not say yet that it is over.
func (s *State) live(a *Allocation, m Moment) (*Allocation, []Event) {
	if a == nil || (s.ends.built && a.end > m.Uptime) {
		return a, nil
	}
	over := a.overdue(m)
	switch {
	case len(over) == 0:
		return a, nil
	case a.Deadline.Passed(m):
		return nil, over
	}
	left := *a
	left.Channels = slices.DeleteFunc(slices.Clone(a.Channels), func(c Channel) bool {
		return c.Deadline.Passed(m) || a.DeadlineFor(c.Peer.Addr()).Passed(m)
	})
	left.Permissions = slices.DeleteFunc(slices.Clone(a.Permissions), func(p Permission) bool {
		return p.Deadline.Passed(m) || a.DeadlineFor(p.Peer).Passed(m)
	})
	left.Connections = slices.DeleteFunc(slices.Clone(a.Connections), func(c Connection) bool {
		return !c.bound() && c.Deadline.Passed(m) || a.DeadlineFor(c.Peer.Addr()).Passed(m)
	})
	for i, d := range a.Until {
		if d.Passed(m) {
			left.keep(1 - i)
		}
	}
	return &left, over
}

// count counts the allocations and reservations that are live at m: all, those of h, and those in its realm.
func (s *State) count(h Holder, m Moment) (all, owned, realm int) {
	all, owned, realm = len(s.allocations)+len(s.reservations.list), s.byOwner[h], s.byRealm[h.realm]
	over := func(of Holder) {
		all--
		if of == h {
			owned--
		}
		if of.realm == h.realm {
			realm--
		}
	}
	s.ends.build(s.allocations)
	for _, a := range s.ends.within(m.Uptime) {
		if a.Deadline.Passed(m) {
			over(HolderOf(a.Realm, a.Username))
		}
	}
	for _, r := range s.reservations.over(m) {
		over(HolderOf(r.Realm, r.Username))
	}
	return all, owned, realm
}

// overdue are the events that end what is over of a at m.
func (a *Allocation) overdue(m Moment) []Event {
	if a.Deadline.Passed(m) {
		return []Event{AllocationExpired{Allocation: a.ID}}
	}
	var events []Event
	for i, d := range a.Until {
		if d.Passed(m) {
			events = append(events, RelayedExpired{Allocation: a.ID, Relayed: a.Relayed[i]})
		}
	}
	for _, c := range a.Channels {
		if c.Deadline.Passed(m) && !a.DeadlineFor(c.Peer.Addr()).Passed(m) {
			events = append(events, ChannelExpired{Allocation: a.ID, Channel: c.Number})
		}
	}
	for _, c := range a.Connections {
		if !c.bound() && c.Deadline.Passed(m) && !a.DeadlineFor(c.Peer.Addr()).Passed(m) {
			events = append(events, PeerDisconnected{Allocation: a.ID, Connection: c.ID, Reason: ReasonUnbound})
		}
	}
	for _, p := range a.Permissions {
		if p.Deadline.Passed(m) && !a.DeadlineFor(p.Peer).Passed(m) {
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

// Reconcile yields what a new configuration revokes at m: the allocations of users g does not know any
// more, or who are banned, their reservations, and the channels and permissions of peers r forbids.
// Bans go on where users are called by pseudonyms now.
func Reconcile(s *State, r *Rules, g *Gate, m Moment) []Event {
	why := func(realm, username string, since Moment) Reason {
		switch {
		case !g.Knows(realm, username, since):
			return ReasonUserRemoved
		case s.banned(r, realm, username, m):
			return ReasonBanned
		}
		return 0
	}
	var events []Event
	for a := range s.Allocations() {
		if reason := why(a.Realm, a.Username, a.Created); reason != 0 {
			events = append(events, AllocationDeleted{Allocation: a.ID, Reason: reason})
			continue
		}
		for _, c := range a.Channels {
			if !r.permits(c.Peer.Addr()) {
				events = append(events, ChannelRevoked{Allocation: a.ID, Channel: c.Number, Reason: ReasonPolicy})
			}
		}
		for _, c := range a.Connections {
			if !r.permits(c.Peer.Addr()) {
				events = append(events, PeerDisconnected{Allocation: a.ID, Connection: c.ID, Reason: ReasonPolicy})
			}
		}
		for _, p := range a.Permissions {
			if !r.permits(p.Peer) {
				events = append(events, PermissionRevoked{Allocation: a.ID, Peer: p.Peer, Reason: ReasonPolicy})
			}
		}
	}
	for _, held := range s.reservations.list {
		if reason := why(held.Realm, held.Username, held.Made); reason != 0 {
			events = append(events, ReservationRevoked{Relayed: held.Relayed, Reason: reason})
		}
	}
	return append(events, s.bans.hidden(g, m)...)
}
