package replay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"turnstone/turn"
)

// Change is what became of one thing in the state.
type Change struct {
	What       string            `json:"what"`  // "added", "changed" or "removed"
	Thing      Thing             `json:"thing"` // what changed
	Allocation turn.AllocationID `json:"allocation,omitempty"`
	Client     string            `json:"client,omitempty"`
	Username   string            `json:"username,omitempty"`
	Peer       string            `json:"peer,omitempty"`
	Channel    string            `json:"channel,omitempty"`
	Until      time.Time         `json:"until,omitzero"`
	Was        time.Time         `json:"was,omitzero"` // the end it had before
	Detail     string            `json:"detail,omitempty"`

	key   key
	after *item // nil where it is gone
}

// Thing is a sort of thing that a state holds.
type Thing string

// The things there are.
const (
	Allocation  Thing = "allocation"
	Permission  Thing = "permission"
	Channel     Thing = "channel"
	Connection  Thing = "connection"
	Usage       Thing = "usage"
	Reservation Thing = "reservation"
)

// Whats of a Change.
const (
	added   = "added"
	changed = "changed"
	removed = "removed"
)

// key tells things apart.
type key struct {
	thing      Thing
	allocation turn.AllocationID
	peer       netip.AddrPort // a permission's has no port
	channel    turn.ChannelNumber
	connection turn.ConnectionID
	path       turn.Path
	relayed    netip.AddrPort // a reservation's
}

// item is one thing as it is.
type item struct {
	key   key
	until int64 // wall time, 0 where it has no end of its own
	facts facts
}

// facts are what can change of an item but its end.
type facts struct {
	client, next       turn.FiveTuple
	adrift             bool
	relayed            [2]netip.AddrPort
	each               [2]int64 // ends of the relayed addresses, where there are two
	username           string
	token              string
	ticket             uint32
	toPeer, toClient   turn.Count
	dataConnection     turn.FiveTuple
	reservationOfOwner string
}

// itemsOf are the things that are or belong to a.
func itemsOf(a *turn.Allocation) []item {
	if a == nil {
		return nil
	}
	own := item{key{thing: Allocation, allocation: a.ID}, a.Deadline.Wall, facts{
		client: a.FiveTuple, next: a.Next, adrift: a.Adrift, username: a.Username, token: string(a.Token), ticket: a.Ticket,
	}}
	copy(own.facts.relayed[:], a.Relayed)
	for i, d := range a.Until {
		own.facts.each[i] = d.Wall
	}
	list := []item{own}
	add := func(k key, until int64, f facts) {
		k.allocation = a.ID
		list = append(list, item{k, until, f})
	}
	for _, p := range a.Permissions {
		add(key{thing: Permission, peer: netip.AddrPortFrom(p.Peer, 0)}, p.Deadline.Wall, facts{})
	}
	for _, c := range a.Channels {
		add(key{thing: Channel, peer: c.Peer, channel: c.Number}, c.Deadline.Wall, facts{})
	}
	for _, c := range a.Connections {
		until := c.Deadline.Wall
		if c.Client.Client.IsValid() {
			until = 0
		}
		add(key{thing: Connection, peer: c.Peer, connection: c.ID}, until, facts{dataConnection: c.Client})
	}
	for _, u := range a.Usage {
		add(key{thing: Usage, peer: u.Peer, channel: u.Channel, path: u.Path}, 0, facts{toPeer: u.ToPeer, toClient: u.ToClient})
	}
	return list
}

func reservations(s *turn.State) []item {
	var list []item
	for _, r := range s.Reservations() {
		list = append(list, item{key{thing: Reservation, relayed: r.Relayed}, r.Deadline.Wall, facts{reservationOfOwner: r.Username}})
	}
	return list
}

// owner is of whom a change says that it is.
type owner struct{ client, username string }

func ownerOf(a *turn.Allocation) owner {
	if a == nil {
		return owner{}
	}
	return owner{a.FiveTuple.Client.String(), a.Username}
}

// compare yields what differs from one list of items to the other, those with a key that f takes: what is gone
// first, the rest in the order of after.
func compare(before, after []item, of owner, f Filter) (out []Change) {
	had, has := map[key]*item{}, map[key]bool{}
	for i := range before {
		had[before[i].key] = &before[i]
	}
	for i := range after {
		has[after[i].key] = true
	}
	for i := range before {
		if b := &before[i]; !has[b.key] && f.takes(b.key) {
			out = append(out, changeOf(b, nil, of))
		}
	}
	for i := range after {
		a := &after[i]
		b := had[a.key]
		if f.takes(a.key) && (b == nil || b.until != a.until || b.facts != a.facts) {
			out = append(out, changeOf(b, a, of))
		}
	}
	return out
}

// changeOf describes the step from one item to the other, one of which may be nil.
func changeOf(before, after *item, of owner) Change {
	c := Change{What: changed, Client: of.client, Username: of.username, after: after}
	one := after
	switch {
	case before == nil:
		c.What = added
	case after == nil:
		c.What, one = removed, before
	}
	c.key = one.key
	c.Thing, c.Allocation = one.key.thing, one.key.allocation
	if n := one.key.channel; n != 0 {
		c.Channel = n.String()
	}
	if p := one.key.peer; p.IsValid() {
		c.Peer = p.String()
		if p.Port() == 0 {
			c.Peer = p.Addr().String()
		}
	}
	if before != nil {
		c.Was = wall(before.until)
	}
	if after != nil {
		c.Until = wall(after.until)
	}
	if c.Until.Equal(c.Was) {
		c.Was = time.Time{}
	}
	if one.key.thing == Reservation {
		c.Username = one.facts.reservationOfOwner
	}
	c.Detail = detail(before, after)
	return c
}

func wall(ns int64) time.Time {
	if ns == 0 {
		return time.Time{}
	}
	return time.Unix(0, ns).UTC().Truncate(time.Millisecond)
}

// detail says what else is to be known of a change.
func detail(before, after *item) string {
	if after == nil {
		return ""
	}
	var was facts
	if before != nil {
		was = before.facts
	}
	f := after.facts
	var parts []string
	say := func(format string, args ...any) { parts = append(parts, fmt.Sprintf(format, args...)) }
	switch after.key.thing {
	case Allocation:
		allocationDetail(before == nil, was, f, say)
	case Connection:
		switch {
		case f.dataConnection != was.dataConnection:
			say("bound by %v", f.dataConnection.Client)
		case before == nil:
			say("waits to be bound")
		}
	case Usage:
		say("%d packets (%d bytes) to the peer, %d (%d) to the client, by %v", f.toPeer.Packets, f.toPeer.Bytes, f.toClient.Packets, f.toClient.Bytes, after.key.path)
	case Reservation:
		say("of %v", after.key.relayed)
	}
	return strings.Join(parts, ", ")
}

func allocationDetail(fresh bool, was, f facts, say func(string, ...any)) {
	if fresh {
		say("over %v, relayed %s", f.client.Protocol, addresses(f.relayed))
		return
	}
	if f.client != was.client {
		say("client was %v", was.client.Client)
	}
	switch {
	case f.next == was.next:
	case f.next.Client.IsValid():
		say("its client is moving to %v", f.next.Client)
	default:
		say("its client moves no more")
	}
	if f.adrift != was.adrift && f.adrift {
		say("its client is nowhere")
	}
	if f.relayed != was.relayed {
		say("relayed %s, was %s", addresses(f.relayed), addresses(was.relayed))
	}
	if f.relayed == was.relayed && f.each != was.each && f.each[0] != f.each[1] {
		for i, r := range f.relayed {
			say("%v until %s", r, wall(f.each[i]).Format(time.RFC3339))
		}
	}
	if f.token != was.token {
		say("another access token")
	}
	if f.ticket != was.ticket {
		say("mobility ticket %d", f.ticket)
	}
}

func addresses(list [2]netip.AddrPort) string {
	text := list[0].String()
	if list[1].IsValid() {
		text += " and " + list[1].String()
	}
	return text
}

// Follows says whether c is only the end of what was counted for an allocation.
func (c Change) Follows() bool { return c.What == removed && c.Thing == Usage }

// String is c for people who know the day.
func (c Change) String() string {
	var b strings.Builder
	switch c.Thing {
	case Allocation:
		fmt.Fprintf(&b, "allocation %v", c.Allocation)
		if c.What == added {
			fmt.Fprintf(&b, " for %s at %s", named(c.Username), c.Client)
		}
	case Permission:
		fmt.Fprintf(&b, "permission for %s", c.Peer)
	case Channel:
		fmt.Fprintf(&b, "channel %s to %s", c.Channel, c.Peer)
	case Connection:
		fmt.Fprintf(&b, "connection with %s", c.Peer)
	case Usage:
		switch {
		case c.Channel != "":
			fmt.Fprintf(&b, "usage of channel %s to %s", c.Channel, c.Peer)
		case c.Peer != "":
			fmt.Fprintf(&b, "usage with %s", c.Peer)
		default:
			b.WriteString("usage by indications")
		}
	case Reservation:
		fmt.Fprintf(&b, "reservation for %s", named(c.Username))
	}
	switch {
	case c.What == removed:
		b.WriteString(" gone")
	case !c.Until.IsZero():
		fmt.Fprintf(&b, " until %s", clock(c.Until))
		if !c.Was.IsZero() {
			fmt.Fprintf(&b, " (was %s)", clock(c.Was))
		}
	}
	if c.Detail != "" {
		b.WriteString(": " + c.Detail)
	}
	return b.String()
}

func clock(t time.Time) string { return t.Format("15:04:05.000") }

func named(user string) string {
	if user == "" {
		return "nobody"
	}
	return user
}

// Compare yields what differs from one state to the other, of what f takes, by allocation.
func Compare(before, after *turn.State, f Filter) []Change {
	var out []Change
	for a := range union(before, after) {
		was, is := before.Allocation(a), after.Allocation(a)
		if (was == nil || !f.takesOwner(was)) && (is == nil || !f.takesOwner(is)) {
			continue
		}
		of := ownerOf(is)
		if is == nil {
			of = ownerOf(was)
		}
		out = append(out, compare(itemsOf(was), itemsOf(is), of, f)...)
	}
	return append(out, compareReservations(reservations(before), reservations(after), f)...)
}

// compareReservations is compare for what belongs to no allocation.
func compareReservations(before, after []item, f Filter) (out []Change) {
	for _, c := range compare(before, after, owner{}, f) {
		if f.TakesReservation(c.Username) {
			out = append(out, c)
		}
	}
	return out
}

// union yields the allocations of two states in the order of their ids.
func union(before, after *turn.State) func(func(turn.AllocationID) bool) {
	return func(yield func(turn.AllocationID) bool) {
		var ids []turn.AllocationID
		for _, s := range []*turn.State{before, after} {
			for a := range s.Allocations() {
				ids = append(ids, a.ID)
			}
		}
		slices.Sort(ids)
		for _, id := range slices.Compact(ids) {
			if !yield(id) {
				return
			}
		}
	}
}
