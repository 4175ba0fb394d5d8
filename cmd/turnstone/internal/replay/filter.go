// Package replay says what becomes of a relay's state from one event, or one moment, to another.
package replay

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"turnstone/turn"
)

// Filter says what is of interest. The zero Filter takes everything. It is the value of flags.
type Filter struct {
	Allocation turn.AllocationID
	Client     Address
	Peer       Address
	Channel    turn.ChannelNumber
	User       string // the whole name, or that of a time-limited one ("expiry:user") without the expiry

	Pseudonyms [2]string // that User may be called by too, empty for none
}

// Empty says whether f takes everything.
func (f Filter) Empty() bool { return f == Filter{} }

// Address is an address with or without a port, or none.
type Address struct {
	addr netip.Addr
	port uint16
	any  bool // port
}

// ParseAddress reads ADDR, ADDR:PORT or [ADDR]:PORT.
func ParseAddress(s string) (Address, error) {
	if addr, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return Address{addr: addr.Unmap(), any: true}, nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return Address{}, fmt.Errorf("%q is neither an address nor ADDR:PORT", s)
	}
	return Address{addr: a.Addr().Unmap(), port: a.Port()}, nil
}

func (a Address) set() bool { return a.addr.IsValid() }

// is says whether p is a. A p without a port (0) is the address with any.
func (a Address) is(p netip.AddrPort) bool {
	return p.Addr() == a.addr && (a.any || p.Port() == 0 || p.Port() == a.port)
}

// Takes says whether a is of interest: it is the allocation, its client's and its user's, and it has, or had until it
// was recorded last, to do with the peer and the channel.
func (f Filter) Takes(a *turn.Allocation) bool {
	return f.takesOwner(a) &&
		(!f.Peer.set() || slices.ContainsFunc(a.Permissions, func(p turn.Permission) bool { return f.Peer.is(netip.AddrPortFrom(p.Peer, 0)) }) ||
			slices.ContainsFunc(a.Channels, func(c turn.Channel) bool { return f.Peer.is(c.Peer) }) ||
			slices.ContainsFunc(a.Connections, func(c turn.Connection) bool { return f.Peer.is(c.Peer) }) ||
			slices.ContainsFunc(a.Usage, func(u turn.Usage) bool { return f.Peer.is(u.Peer) })) &&
		(f.Channel == 0 || a.Channel(f.Channel) != nil)
}

// TakesReservation says whether a reservation of a user is of interest: it belongs to no allocation, client or peer.
func (f Filter) TakesReservation(user string) bool {
	return f.Allocation == 0 && !f.Client.set() && !f.Peer.set() && f.Channel == 0 && f.takesUser(user)
}

// takesOwner is Takes without what the allocation holds.
func (f Filter) takesOwner(a *turn.Allocation) bool {
	return (f.Allocation == 0 || a.ID == f.Allocation) &&
		(!f.Client.set() || f.Client.is(a.FiveTuple.Client) || f.Client.is(a.Next.Client)) && f.takesUser(a.Username)
}

func (f Filter) takesUser(name string) bool {
	if f.User == "" || name == f.User || turn.Owner(name) == f.User {
		return true
	}
	return name != "" && (slices.Contains(f.Pseudonyms[:], name) || slices.Contains(f.Pseudonyms[:], turn.Owner(name)))
}

// takes says whether a change, which is of an owner that f takes, is of interest.
func (f Filter) takes(k key) bool {
	return (!f.Peer.set() || f.Peer.is(k.peer)) && (f.Channel == 0 || k.channel == f.Channel)
}
