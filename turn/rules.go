package turn

import (
	"net/netip"
	"slices"
	"time"
)

// Room says how much the disk of the log still takes.
type Room uint8

// Rooms. Below the soft limit new allocations are refused, at the hard limit
// everything that does not end something.
const (
	RoomFine Room = iota
	RoomLow
	RoomNone
)

func (r Room) String() string {
	return [...]string{"fine", "low", "none"}[r]
}

// Relay is one address that relayed transport addresses are made of, and the
// address clients and peers know it by where a 1:1 NAT stands in front.
type Relay struct {
	IP       netip.Addr `cbor:"1,keyasint"`
	External netip.Addr `cbor:"2,keyasint"` // IP itself without a NAT
}

// Mapped says whether a NAT stands in front of l.
func (l Relay) Mapped() bool { return l.External.IsValid() && l.External != l.IP }

// Rules are the configuration that decisions follow. Only the writer changes
// them, and only between decisions.
type Rules struct {
	Policy Policy
	Relays []Relay      // at most one per family
	Own    []netip.Addr // further addresses of this host: none of its services is reachable through the relay

	FirstPort, LastPort uint16 // of relayed transport addresses, both included

	MaxAllocations  int // in total; 0: no limit
	MaxPerOwner     int // see [Owner]; 0: no limit
	MaxPerRealm     int // 0: no limit
	MaxPermissions  int // per allocation
	MaxChannels     int // per allocation
	DefaultLifetime time.Duration
	MaxLifetime     time.Duration
	LastChannel     ChannelNumber // ChannelLast, or ChannelLastRFC5766

	Realms []string // besides the one that all other names stand for

	Alternates      []Alternate // where clients are sent while this server drains
	AlternateDomain string      // that the certificates there are for, empty: as here
	Redirect        bool        // they are sent there always

	Pseudonyms *Pseudonyms // that users may be called by, nil for none

	Tickets *Tickets // of clients that move, nil: they may not

	Storage  Room
	Draining bool // no new allocations

	NoConnections bool // no allocations for TCP (RFC 6062)
}

// relay is the address relayed transport addresses of a family (4 or 6) are made of.
func (r *Rules) relay(v4 bool) (Relay, bool) {
	for _, l := range r.Relays {
		if l.IP.Is4() == v4 {
			return l, true
		}
	}
	return Relay{}, false
}

// Private is the form in which an address is held: an external address of this
// relay is the relay address behind it.
func (r *Rules) Private(a netip.AddrPort) netip.AddrPort {
	for _, l := range r.Relays {
		if l.External == a.Addr() {
			return netip.AddrPortFrom(l.IP, a.Port())
		}
	}
	return a
}

// Shown is the form in which clients see an address: the opposite of Private.
func (r *Rules) Shown(a netip.AddrPort) netip.AddrPort {
	for _, l := range r.Relays {
		if l.IP == a.Addr() && l.External.IsValid() {
			return netip.AddrPortFrom(l.External, a.Port())
		}
	}
	return a
}

// permits says whether peer, in its private form, may have a permission.
func (r *Rules) permits(peer netip.Addr) bool {
	verdict := r.Policy.Judge(peer)
	if shown := r.Shown(netip.AddrPortFrom(peer, 0)).Addr(); shown != peer {
		verdict = max(verdict, r.Policy.Judge(shown))
	}
	switch verdict {
	case Allowed:
		return true
	case Denied:
		return false
	}
	return verdict == Unlisted || r.isRelay(peer)
}

func (r *Rules) isRelay(a netip.Addr) bool {
	return slices.ContainsFunc(r.Relays, func(l Relay) bool { return l.IP == a })
}

// Guarded says whether only live allocations are reachable at a, in its private
// form: it is an address of this host, and no allow entry names exactly it.
func (r *Rules) Guarded(a netip.Addr) bool {
	if !r.isRelay(a) && !slices.Contains(r.Own, a) {
		return false
	}
	return !r.Policy.AllowsExactly(a) && !r.Policy.AllowsExactly(r.Shown(netip.AddrPortFrom(a, 0)).Addr())
}

// same says whether q is of the user that username in realm is.
func (r *Rules) same(q *Request, realm, username string) bool {
	named := q.Username == username || r.Pseudonyms.stands(q.Username, username) || r.Pseudonyms.stands(username, q.Username)
	return named && (q.Realm == realm || r.realm(q.Realm) == r.realm(realm))
}

// realm is name where it is one of several realms, and else empty: the realm
// that can be called anew without an end to the allocations in it.
func (r *Rules) realm(name string) string {
	if slices.Contains(r.Realms, name) {
		return name
	}
	return ""
}

// lifetime is what a client that asks for q's LIFETIME gets (RFC 8656 section
// 7.2): what it asks for within the cap, and never less than the default; with an
// access token no more than that grants (RFC 7635 section 9).
func (r *Rules) lifetime(q *Request) uint32 {
	seconds := uint32(r.DefaultLifetime / time.Second)
	if q.hasLifetime {
		seconds = max(seconds, min(q.lifetime, uint32(r.MaxLifetime/time.Second)))
	}
	if q.tokenLeft > 0 {
		seconds = uint32(min(time.Duration(seconds), q.tokenLeft/time.Second))
	}
	return seconds
}
