package coturn

import (
	"fmt"
	"net/netip"
	"strings"
)

// networks are the networks that make up FIRST-LAST, one address, or a network.
func networks(s string) ([]netip.Prefix, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return []netip.Prefix{p.Masked()}, nil
	}
	from, to, isRange := strings.Cut(s, "-")
	if !isRange {
		to = from
	}
	first, err1 := netip.ParseAddr(strings.TrimSpace(from))
	last, err2 := netip.ParseAddr(strings.TrimSpace(to))
	if err1 != nil || err2 != nil || first.BitLen() != last.BitLen() || last.Less(first) || first.Zone()+last.Zone() != "" {
		return nil, fmt.Errorf("%q is no address and no range like 192.0.2.0-192.0.2.255", s)
	}
	return cover(first, last), nil
}

// cover is the shortest list of networks that hold first to last and nothing else.
func cover(first, last netip.Addr) (out []netip.Prefix) {
	for {
		p := netip.PrefixFrom(first, first.BitLen())
		for p.Bits() > 0 {
			wider := netip.PrefixFrom(first, p.Bits()-1)
			if wider.Masked().Addr() != first || last.Less(end(wider)) {
				break
			}
			p = wider
		}
		out = append(out, p)
		if end(p) == last {
			return out
		}
		first = end(p).Next()
	}
}

// end is the last address of p.
func end(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As16()
	skip := 128 - p.Addr().BitLen()
	for i := skip + p.Bits(); i < 128; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a := netip.AddrFrom16(b)
	if p.Addr().Is4() {
		return a.Unmap()
	}
	return a
}

// mapped says whether p holds only IPv4-mapped addresses.
func mapped(p netip.Prefix) bool { return p.Addr().Is4In6() && p.Bits() >= 96 }
