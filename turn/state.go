package turn

import (
	"cmp"
	"iter"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// State is the fold of a log up to a sequence. It is not safe for concurrent
// use: one goroutine owns it. What its methods return is for reading only, and
// holds until the next Apply.
type State struct {
	seq      Seq
	moment   Moment // of the last record
	log      LogID
	epoch    uint64
	last     AllocationID
	sealed   uint64
	snapshot SnapshotTaken
	config   [32]byte // digest of the configuration in force
	served   []Relay  // of the last RelaysChanged

	allocations  map[AllocationID]*Allocation
	byFiveTuple  map[FiveTuple]*Allocation
	byRelayed    map[netip.AddrPort]*Allocation
	byConnection map[ConnectionID]*Allocation
	byOwner      map[Holder]int // allocations and reservations
	byRealm      map[string]int // the same
	ports        map[netip.Addr]*portSet
	ends         ends
	answers      answers

	reservations reservations
	bans         bans
}

// NewState is the state before the first event.
func NewState() *State {
	return &State{
		allocations:  map[AllocationID]*Allocation{},
		byFiveTuple:  map[FiveTuple]*Allocation{},
		byRelayed:    map[netip.AddrPort]*Allocation{},
		byConnection: map[ConnectionID]*Allocation{},
		byOwner:      map[Holder]int{},
		byRealm:      map[string]int{},
		ports:        map[netip.Addr]*portSet{},
		answers:      newAnswers(),

		reservations: newReservations(),
	}
}

// Seq is the sequence of the last event applied.
func (s *State) Seq() Seq { return s.seq }

// Moment is the moment of the last record.
func (s *State) Moment() Moment { return s.moment }

// Log names the log this is the fold of, zero before its first event.
func (s *State) Log() LogID { return s.log }

// Epoch is the epoch of the log, from 1.
func (s *State) Epoch() uint64 { return s.epoch }

// LastSealed is the number of the last segment that was sealed, zero for none.
func (s *State) LastSealed() uint64 { return s.sealed }

// LastSnapshot is the last snapshot that was taken; its At is zero for none.
func (s *State) LastSnapshot() SnapshotTaken { return s.snapshot }

// Config is the digest of the configuration in force, zero before the first.
func (s *State) Config() [32]byte { return s.config }

// Relays are the relay's addresses as the last [RelaysChanged] has them, none where no NAT was ever in front of one.
func (s *State) Relays() []Relay { return s.served }

// Len is the number of allocations.
func (s *State) Len() int { return len(s.allocations) }

// Grants are how many of what allocations hold there are, and of bans.
type Grants struct{ Permissions, Channels, Connections, Reservations, Bans int }

// Grants counts what all allocations hold, what is reserved, and who is banned.
func (s *State) Grants() (g Grants) {
	for _, a := range s.allocations {
		g.Permissions += len(a.Permissions)
		g.Channels += len(a.Channels)
		g.Connections += len(a.Connections)
	}
	g.Reservations, g.Bans = len(s.Reservations()), len(s.Bans())
	return g
}

// Allocation is the allocation id, nil where there is none.
func (s *State) Allocation(id AllocationID) *Allocation { return s.allocations[id] }

// ByFiveTuple is the allocation of a five-tuple, nil where there is none.
func (s *State) ByFiveTuple(t FiveTuple) *Allocation { return s.byFiveTuple[t] }

// ByRelayed is the allocation with the relayed transport address a, nil where there is none.
func (s *State) ByRelayed(a netip.AddrPort) *Allocation { return s.byRelayed[a] }

// relays says whether peer is the relayed transport address of an allocation for transport that is live at m.
func (s *State) relays(peer netip.AddrPort, transport uint8, m Moment) bool {
	a := s.byRelayed[peer]
	return a != nil && a.Transport == transport && !a.Deadline.Passed(m)
}

// Owned counts the allocations and reservations of an owner (see [Owner]) in a realm.
func (s *State) Owned(realm, owner string) int { return s.byOwner[Holder{realm, owner}] }

// Holder is whom allocations and reservations count for, and whose caps they take from.
type Holder struct{ realm, owner string }

// HolderOf is the holder of what a user (see [Owner]) has in a realm.
func HolderOf(realm, username string) Holder { return Holder{realm, Owner(username)} }

// Allocations walks the allocations in the order of their ids.
func (s *State) Allocations() iter.Seq[*Allocation] {
	return func(yield func(*Allocation) bool) {
		for _, id := range slices.Sorted(maps.Keys(s.allocations)) {
			if !yield(s.allocations[id]) {
				return
			}
		}
	}
}

// NextDeadline is the uptime at which the next thing ends, false where nothing will.
func (s *State) NextDeadline() (time.Duration, bool) {
	next, some := s.bans.next, s.bans.some
	sooner := func(end time.Duration) {
		if !some || end < next {
			next, some = end, true
		}
	}
	if list := s.reservations.list; len(list) > 0 {
		sooner(list[0].Deadline.Uptime)
	}
	s.ends.build(s.allocations)
	if a := s.ends.first(); a != nil {
		sooner(a.end)
	}
	return next, some
}

// Allocation is one client's allocation (RFC 8656 section 2.2).
type Allocation struct {
	ID          AllocationID
	FiveTuple   FiveTuple
	Relayed     []netip.AddrPort // one, or one per family
	Transport   uint8
	Username    string
	Realm       string
	Token       SealedToken // that its client proved itself by, nil for none
	Ticket      uint32      // number of its client's last mobility ticket, 0 for a client that does not move
	Next        FiveTuple   // where its client is moving to, zero for nowhere
	Spare       bool        // the ticket before the last one is good too
	Adrift      bool        // FiveTuple is where its client was, and it is nowhere now
	Created     Moment
	Deadline    Deadline     // of all of it: the last of Until, where there are two
	Until       []Deadline   // of each relayed address, where there are two
	Permissions []Permission // by peer
	Channels    []Channel    // by number
	Connections []Connection // of TCP, by id
	Usage       []Usage      // by channel, peer and path

	end   time.Duration // earliest deadline of this and all it holds, or before it where stale
	stale bool
	index int // in the heap of ends
}

// Permission lets one peer address send to the client (RFC 8656 section 9).
type Permission struct {
	Peer     netip.Addr `cbor:"1,keyasint"`
	Deadline Deadline   `cbor:"2,keyasint"`
}

// Channel binds a number to a peer (RFC 8656 section 12).
type Channel struct {
	Number   ChannelNumber  `cbor:"1,keyasint"`
	Peer     netip.AddrPort `cbor:"2,keyasint"`
	Deadline Deadline       `cbor:"3,keyasint"`
}

// Usage is the last [UsageRecorded] of one binding on one path.
type Usage struct {
	Channel  ChannelNumber  `cbor:"1,keyasint"`
	Peer     netip.AddrPort `cbor:"2,keyasint"`
	Path     Path           `cbor:"3,keyasint"`
	ToPeer   Count          `cbor:"4,keyasint"`
	ToClient Count          `cbor:"5,keyasint"`
}

// Permission is the permission for peer, nil where there is none.
func (a *Allocation) Permission(peer netip.Addr) *Permission {
	if i, ok := slices.BinarySearchFunc(a.Permissions, peer, comparePermission); ok {
		return &a.Permissions[i]
	}
	return nil
}

// Channel is the channel n, nil where it is not bound.
func (a *Allocation) Channel(n ChannelNumber) *Channel {
	if i, ok := slices.BinarySearchFunc(a.Channels, n, compareChannel); ok {
		return &a.Channels[i]
	}
	return nil
}

// ChannelTo is the channel bound to peer, nil where there is none.
func (a *Allocation) ChannelTo(peer netip.AddrPort) *Channel {
	for i := range a.Channels {
		if a.Channels[i].Peer == peer {
			return &a.Channels[i]
		}
	}
	return nil
}

// RelayedFor is the relayed transport address of the family of peer, false where
// the allocation has none.
func (a *Allocation) RelayedFor(peer netip.Addr) (netip.AddrPort, bool) {
	for _, r := range a.Relayed {
		if sameFamily(r.Addr(), peer) {
			return r, true
		}
	}
	return netip.AddrPort{}, false
}

// DeadlineFor is when the relayed transport address of the family of peer ends, which a has.
func (a *Allocation) DeadlineFor(peer netip.Addr) Deadline {
	for i, d := range a.Until {
		if sameFamily(a.Relayed[i].Addr(), peer) {
			return d
		}
	}
	return a.Deadline
}

func sameFamily(a, b netip.Addr) bool { return a.Is4() == b.Is4() }

func comparePermission(p Permission, peer netip.Addr) int { return p.Peer.Compare(peer) }

func compareChannel(c Channel, n ChannelNumber) int { return cmp.Compare(c.Number, n) }

func compareUsage(a, b Usage) int {
	return cmp.Or(cmp.Compare(a.Channel, b.Channel), a.Peer.Compare(b.Peer), cmp.Compare(a.Path, b.Path))
}

// earliest is the first deadline among a and all it holds.
func (a *Allocation) earliest() time.Duration {
	end := a.Deadline.Uptime
	for i := range a.Until {
		end = min(end, a.Until[i].Uptime)
	}
	for i := range a.Permissions {
		end = min(end, a.Permissions[i].Deadline.Uptime)
	}
	for i := range a.Channels {
		end = min(end, a.Channels[i].Deadline.Uptime)
	}
	for i := range a.Connections {
		if c := &a.Connections[i]; !c.bound() {
			end = min(end, c.Deadline.Uptime)
		}
	}
	return end
}
