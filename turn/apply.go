package turn

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// Lifetimes of what a request grants (RFC 8656 sections 9 and 12).
const (
	PermissionLifetime = 300 * time.Second
	ChannelLifetime    = 600 * time.Second
)

// Fold applies a whole record. An error means that r does not follow the
// state: a damaged log, or a bug. The state is then not to be used any more.
func (s *State) Fold(r Record) error {
	if r.First != s.seq+1 {
		return fmt.Errorf("fold record %d: the state is at %d", r.First, s.seq)
	}
	s.Begin(r.Moment)
	for _, e := range r.Events {
		if err := s.Apply(e); err != nil {
			return err
		}
	}
	return nil
}

// Begin starts a record at m: answers whose time is over are forgotten, and
// where m is of another boot all deadlines are carried over to it. A record
// that will hold no event is not begun.
func (s *State) Begin(m Moment) {
	if s.seq > 0 && m.Boot != s.moment.Boot {
		s.rebase(m)
	}
	s.moment = m
	s.answers.prune(m)
}

func (s *State) rebase(m Moment) {
	move := func(d *Deadline) { *d = d.Rebase(s.moment, m) }
	for _, a := range s.allocations {
		move(&a.Deadline)
		for i := range a.Until {
			move(&a.Until[i])
		}
		a.last()
		for i := range a.Permissions {
			move(&a.Permissions[i].Deadline)
		}
		for i := range a.Channels {
			move(&a.Channels[i].Deadline)
		}
		for i := range a.Connections {
			move(&a.Connections[i].Deadline)
		}
	}
	s.reservations.rebase(move)
	s.bans.rebase(move)
	for i := range s.answers.live() {
		move(&s.answers.live()[i].until)
	}
	s.ends.forget()
}

// Apply takes the next event, of the record begun last. An error means that
// the event contradicts the state.
func (s *State) Apply(e Event) error {
	if err := s.apply(e); err != nil {
		return fmt.Errorf("apply event %d (%T): %w", s.seq+1, e, err)
	}
	s.seq++
	return nil
}

func (s *State) apply(e Event) error {
	switch e := e.(type) {
	case AllocationCreated:
		return s.created(e)
	case AllocationRefreshed:
		return s.on(e.Allocation, func(a *Allocation) error { s.refreshed(a, e); return nil })
	case AllocationDeleted:
		return s.on(e.Allocation, func(a *Allocation) error {
			if e.Tx != (TransactionID{}) {
				s.answer(a, KindAllocationRefreshed, e.Tx, 0)
			}
			s.remove(a)
			return nil
		})
	case AllocationExpired:
		return s.on(e.Allocation, func(a *Allocation) error { s.remove(a); return nil })
	case PermissionInstalled:
		return s.on(e.Allocation, func(a *Allocation) error {
			s.permit(a, e.Peer)
			s.answer(a, KindPermissionInstalled, e.Tx, 0)
			return nil
		})
	case PermissionExpired:
		return s.on(e.Allocation, func(a *Allocation) error { return s.unpermit(a, e.Peer) })
	case PermissionRevoked:
		return s.on(e.Allocation, func(a *Allocation) error { return s.unpermit(a, e.Peer) })
	case ChannelBound:
		return s.on(e.Allocation, func(a *Allocation) error { return s.bound(a, e) })
	case ChannelExpired:
		return s.on(e.Allocation, func(a *Allocation) error { return s.unbind(a, e.Channel) })
	case ChannelRevoked:
		return s.on(e.Allocation, func(a *Allocation) error { return s.unbind(a, e.Channel) })
	case RelayedRefreshed:
		return s.on(e.Allocation, func(a *Allocation) error { return s.prolonged(a, e) })
	case RelayedDeleted:
		return s.on(e.Allocation, func(a *Allocation) error {
			if e.Tx != (TransactionID{}) {
				s.answer(a, KindAllocationRefreshed, e.Tx, 0)
			}
			return s.unrelay(a, e.Relayed)
		})
	case RelayedExpired:
		return s.on(e.Allocation, func(a *Allocation) error { return s.unrelay(a, e.Relayed) })
	case FamilyRefused:
		return s.on(e.Allocation, func(a *Allocation) error {
			t := transactionOf(a.FiveTuple, KindAllocationCreated, e.Tx)
			s.answers.amend(t, func(given *answer) { given.lacks = lack{family: e.Family, code: e.Code} })
			return nil
		})
	case TokenAccepted:
		return s.on(e.Allocation, func(a *Allocation) error {
			if len(e.Token) == 0 {
				return errors.New("the access token is none")
			}
			a.Token = e.Token
			return nil
		})
	case PeerConnected:
		return s.on(e.Allocation, func(a *Allocation) error { return s.connected(a, e) })
	case ConnectionBound:
		return s.on(e.Allocation, func(a *Allocation) error { return s.connectionBound(a, e) })
	case PeerDisconnected:
		return s.on(e.Allocation, func(a *Allocation) error { return s.disconnected(a, e.Connection) })
	case ReservationMade:
		return s.on(e.Allocation, func(a *Allocation) error { return s.reserve(a, e) })
	case ReservationExpired:
		return s.unreserve(e.Relayed)
	case ReservationRevoked:
		return s.unreserve(e.Relayed)
	case UsageRecorded:
		if a := s.allocations[e.Allocation]; a != nil { // the last usage may follow the end
			a.used(e)
		}
		return nil
	case TicketIssued:
		return s.on(e.Allocation, func(a *Allocation) error { return s.ticketed(a, e) })
	case AllocationMoved:
		return s.on(e.Allocation, func(a *Allocation) error { return s.moved(a, e) })
	case FiveTupleLeft:
		return s.on(e.Allocation, func(a *Allocation) error { return s.left(a, e) })
	case ClientRedirected:
		return s.redirected(e)
	case UserBanned:
		return s.ban(e)
	case UserUnbanned:
		return s.unban(e)
	case EpochBegan:
		s.log, s.epoch = e.Log, e.Epoch
		return nil
	case SegmentSealed:
		s.sealed = e.Segment
		return nil
	case SnapshotTaken:
		s.snapshot = e
		return nil
	case ConfigChanged:
		s.config = e.Digest
		return nil
	case RelaysChanged:
		s.served = e.Relays
		return nil
	case RefusalsCounted, AttemptsRefused, ServerStarted, ServerStopped, ClockWentBack, LogRecovered,
		SegmentRetired, SettingsChanged, SegmentArchived, ArchiveRemoved, SegmentForgotten, SegmentClosed, RollbackFound, SliceTaken, OriginNoted, OperatorActed, ProgramAttached, ProgramReplaced, DriftRepaired:
		return nil
	}
	return fmt.Errorf("unknown kind %d", e.Kind())
}

// on runs f on the allocation id.
func (s *State) on(id AllocationID, f func(*Allocation) error) error {
	a := s.allocations[id]
	if a == nil {
		return fmt.Errorf("there is no allocation %d", id)
	}
	return f(a)
}

func (s *State) created(e AllocationCreated) error {
	switch {
	case e.Allocation <= s.last:
		return fmt.Errorf("allocation %d does not follow %d", e.Allocation, s.last)
	case s.byFiveTuple[e.FiveTuple] != nil:
		return fmt.Errorf("%v has allocation %d already", e.FiveTuple, s.byFiveTuple[e.FiveTuple].ID)
	case len(e.Relayed) == 0, len(e.Relayed) > 2, len(e.Relayed) == 2 && sameFamily(e.Relayed[0].Addr(), e.Relayed[1].Addr()):
		return fmt.Errorf("relayed addresses %v", e.Relayed)
	}
	for _, r := range e.Relayed {
		if s.byRelayed[r] != nil {
			return fmt.Errorf("%v is relayed by allocation %d already", r, s.byRelayed[r].ID)
		}
	}
	a := &Allocation{
		ID: e.Allocation, FiveTuple: e.FiveTuple, Relayed: e.Relayed, Transport: e.Transport,
		Username: e.Username, Realm: e.Realm, Created: s.moment,
		Deadline: s.moment.After(time.Duration(e.Lifetime) * time.Second),
	}
	if len(a.Relayed) == 2 {
		a.Until = []Deadline{a.Deadline, a.Deadline}
	}
	for _, r := range e.Relayed {
		if held := s.reservations.byRelayed[r]; held != nil {
			s.release(held)
		}
	}
	s.last = a.ID
	s.insert(a)
	s.answer(a, KindAllocationCreated, e.Tx, e.Lifetime)
	return nil
}

// insert puts a into every index.
func (s *State) insert(a *Allocation) {
	s.allocations[a.ID] = a
	for t := range a.FiveTuples() {
		s.byFiveTuple[t] = a
	}
	for _, r := range a.Relayed {
		s.byRelayed[r] = a
		s.usePort(r)
	}
	for i := range a.Connections {
		s.byConnection[a.Connections[i].ID] = a
	}
	s.own(HolderOf(a.Realm, a.Username))
	s.ends.add(a)
}

// usePort keeps the port of r from being proposed.
func (s *State) usePort(r netip.AddrPort) {
	if s.ports[r.Addr()] == nil {
		s.ports[r.Addr()] = new(portSet)
	}
	s.ports[r.Addr()].add(r.Port())
}

// remove takes a out of every index.
func (s *State) remove(a *Allocation) {
	s.ends.remove(a)
	delete(s.allocations, a.ID)
	for t := range a.FiveTuples() {
		delete(s.byFiveTuple, t)
	}
	for _, r := range a.Relayed {
		delete(s.byRelayed, r)
		s.ports[r.Addr()].remove(r.Port())
	}
	for i := range a.Connections {
		delete(s.byConnection, a.Connections[i].ID)
	}
	s.disown(HolderOf(a.Realm, a.Username))
}

// own adds one to what h has.
func (s *State) own(h Holder) {
	s.byOwner[h]++
	s.byRealm[h.realm]++
}

// disown takes one from what h has.
func (s *State) disown(h Holder) {
	if s.byOwner[h]--; s.byOwner[h] == 0 {
		delete(s.byOwner, h)
	}
	if s.byRealm[h.realm]--; s.byRealm[h.realm] == 0 {
		delete(s.byRealm, h.realm)
	}
}

func (s *State) refreshed(a *Allocation, e AllocationRefreshed) {
	old := a.Deadline.Uptime
	a.Deadline = s.moment.After(time.Duration(e.Lifetime) * time.Second)
	s.ends.granted(a, old, a.Deadline.Uptime)
	for i := range a.Until {
		old, a.Until[i] = a.Until[i].Uptime, a.Deadline
		s.ends.granted(a, old, a.Deadline.Uptime)
	}
	s.answer(a, KindAllocationRefreshed, e.Tx, e.Lifetime)
}

func (s *State) permit(a *Allocation, peer netip.Addr) {
	i, known := slices.BinarySearchFunc(a.Permissions, peer, comparePermission)
	if !known {
		a.Permissions = slices.Insert(a.Permissions, i, Permission{Peer: peer})
	}
	p := &a.Permissions[i]
	old := p.Deadline.Uptime
	p.Deadline = s.moment.After(PermissionLifetime)
	s.ends.granted(a, old, p.Deadline.Uptime)
}

func (s *State) unpermit(a *Allocation, peer netip.Addr) error {
	i, known := slices.BinarySearchFunc(a.Permissions, peer, comparePermission)
	if !known {
		return fmt.Errorf("allocation %d has no permission for %v", a.ID, peer)
	}
	old := a.Permissions[i].Deadline.Uptime
	a.Permissions = slices.Delete(a.Permissions, i, i+1)
	s.ends.ended(a, old)
	return nil
}

func (s *State) bound(a *Allocation, e ChannelBound) error {
	i, known := slices.BinarySearchFunc(a.Channels, e.Channel, compareChannel)
	if to := a.ChannelTo(e.Peer); (to != nil && to.Number != e.Channel) || (known && a.Channels[i].Peer != e.Peer) {
		return fmt.Errorf("allocation %d binds channel %v to %v against another binding", a.ID, e.Channel, e.Peer)
	}
	if !known {
		a.Channels = slices.Insert(a.Channels, i, Channel{Number: e.Channel, Peer: e.Peer})
	}
	c := &a.Channels[i]
	old := c.Deadline.Uptime
	c.Deadline = s.moment.After(ChannelLifetime)
	s.ends.granted(a, old, c.Deadline.Uptime)
	s.permit(a, e.Peer.Addr())
	s.answer(a, KindChannelBound, e.Tx, 0)
	return nil
}

func (s *State) unbind(a *Allocation, n ChannelNumber) error {
	i, known := slices.BinarySearchFunc(a.Channels, n, compareChannel)
	if !known {
		return fmt.Errorf("allocation %d has no channel %v", a.ID, n)
	}
	old := a.Channels[i].Deadline.Uptime
	a.Channels = slices.Delete(a.Channels, i, i+1)
	s.ends.ended(a, old)
	return nil
}

func (a *Allocation) used(e UsageRecorded) {
	u := Usage{Channel: e.Channel, Peer: e.Peer, Path: e.Path, ToPeer: e.ToPeer, ToClient: e.ToClient}
	i, known := slices.BinarySearchFunc(a.Usage, u, compareUsage)
	if known {
		a.Usage[i] = u
		return
	}
	a.Usage = slices.Insert(a.Usage, i, u)
}

// answer remembers that tx was answered with success, at each five-tuple of a: it is repeated where it came from.
func (s *State) answer(a *Allocation, k Kind, tx TransactionID, lifetime uint32) {
	given := answer{allocation: a.ID, lifetime: lifetime}
	if k == KindAllocationCreated {
		for i, r := range a.Relayed {
			given.addresses[i] = pack(r)
		}
	}
	t := transactionOf(a.FiveTuple, k, tx)
	if a.Ticket == 0 {
		s.answers.remember(t, given, s.moment)
		return
	}
	for ft := range a.FiveTuples() {
		t = transactionOf(ft, k, tx)
		given.ticket = 0
		if before := s.answers.get(t); before != nil {
			given.ticket = before.ticket // of a move that came with it
		}
		s.answers.remember(t, given, s.moment)
	}
}
