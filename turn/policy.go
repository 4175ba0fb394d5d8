package turn

import (
	"encoding/binary"
	"net/netip"
	"slices"
)

// Policy says which peers may be reached. The zero Policy forbids what every
// relay on the internet must: see [Policy.Permits].
type Policy struct {
	Allow []netip.Prefix // wins over everything
	Deny  []netip.Prefix
}

// forbidden are the peers nobody is relayed to unless an allow entry says so:
// addresses that lead into the host, its network, or its cloud's control plane.
var forbidden = prefixes(
	"0.0.0.0/8",        // this network, unspecified (RFC 1122)
	"10.0.0.0/8",       // private (RFC 1918)
	"100.64.0.0/10",    // shared, CGNAT (RFC 6598); 100.100.100.200 is Alibaba's metadata
	"127.0.0.0/8",      // loopback
	"168.63.129.16/32", // Azure's platform address
	"169.254.0.0/16",   // link-local (RFC 3927), metadata of most clouds
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // IETF protocol assignments; 192.0.0.192 is Oracle's metadata
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarking (RFC 2544)
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, broadcast
	"::/128",           // unspecified
	"::1/128",          // loopback
	"100::/64",         // discard only (RFC 6666)
	"fc00::/7",         // unique local (RFC 4193); the metadata services of AWS and Google
	"fe80::/10",        // link-local
	"fec0::/10",        // site-local (RFC 3879)
	"ff00::/8",         // multicast
	"64:ff9b:1::/48",   // local-use NAT64 (RFC 8215): its embedding is not known
	"::ffff:0:0:0/96",  // IPv4-translated (RFC 2765)
	"2001:10::/28",     // ORCHID (RFC 4843)
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// Verdict is what a [Policy] says of an address.
type Verdict uint8

// Verdicts, from the weakest to the strongest.
const (
	Unlisted Verdict = iota // neither list names it, and it is no special address
	Special                 // it is an address no relay on the internet should reach
	Denied                  // a deny entry names it
	Allowed                 // an allow entry names it
)

// Judge looks a up in the allow list, the deny list and the special addresses, in
// this order. An IPv6 address that carries an IPv4 address inside (compatible,
// 6to4, Teredo, NAT64) is what the worse of both is.
func (p *Policy) Judge(a netip.Addr) Verdict {
	a = a.Unmap().WithZone("")
	if contains(p.Allow, a) {
		return Allowed
	}
	verdict := p.judgeOne(a)
	for _, inner := range embedded(a) {
		verdict = max(verdict, p.judgeOne(inner))
	}
	return verdict
}

func (p *Policy) judgeOne(a netip.Addr) Verdict {
	switch {
	case contains(p.Deny, a):
		return Denied
	case contains(forbidden, a):
		return Special
	}
	return Unlisted
}

// Permits says whether a, which is not one of the relay's own addresses, may be a peer.
func (p *Policy) Permits(a netip.Addr) bool {
	v := p.Judge(a)
	return v == Unlisted || v == Allowed
}

// SpecialNetwork says whether all of p is forbidden as [Special].
func SpecialNetwork(p netip.Prefix) bool {
	return slices.ContainsFunc(forbidden, func(f netip.Prefix) bool { return f.Bits() <= p.Bits() && f.Contains(p.Addr()) })
}

// AllowsExactly says whether an allow entry names just a (a /32 or /128): only
// such an entry opens the host's own services.
func (p *Policy) AllowsExactly(a netip.Addr) bool {
	return slices.Contains(p.Allow, netip.PrefixFrom(a, a.BitLen()))
}

func contains(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

var (
	ipv4Compatible = netip.MustParsePrefix("::/96")
	nat64          = netip.MustParsePrefix("64:ff9b::/96")
	teredo         = netip.MustParsePrefix("2001::/32")
	sixToFour      = netip.MustParsePrefix("2002::/16")
)

// embedded are the IPv4 addresses that a leads to: IPv4-compatible (RFC 4291),
// NAT64 (RFC 6052), Teredo's server and client (RFC 4380), 6to4 (RFC 3056), ISATAP (RFC 5214).
func embedded(a netip.Addr) []netip.Addr {
	if !a.Is6() {
		return nil
	}
	b := a.As16()
	at := func(i int) netip.Addr { return netip.AddrFrom4([4]byte(b[i : i+4])) }
	switch {
	case ipv4Compatible.Contains(a), nat64.Contains(a):
		return []netip.Addr{at(12)}
	case sixToFour.Contains(a):
		return []netip.Addr{at(2)}
	case teredo.Contains(a):
		client := [4]byte{}
		binary.BigEndian.PutUint32(client[:], ^binary.BigEndian.Uint32(b[12:]))
		return []netip.Addr{at(4), netip.AddrFrom4(client)}
	case b[9] == 0 && b[10] == 0x5e && b[11] == 0xfe && b[8]&^0x02 == 0:
		return []netip.Addr{at(12)}
	}
	return nil
}
