package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"

	"turnstone/turn"
	"turnstone/turn/relay"
)

// hostAddresses are the addresses of the interfaces, link-local ones excepted.
func hostAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && !ip.Unmap().IsLinkLocalUnicast() {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// listeners are the addresses of c.Listen, those that stand for every address of the host spelt out.
func (c *Config) listeners(own []netip.Addr, p *problems) []relay.Listener {
	var out []relay.Listener
	for _, s := range c.Listen {
		at, err := listenAddress(s)
		if err != nil {
			p.check("listen", err)
			continue
		}
		addrs := []netip.Addr{at.Addr()}
		if at.Addr().IsUnspecified() {
			addrs = slices.DeleteFunc(slices.Clone(own), func(a netip.Addr) bool { return a.Is4() != at.Addr().Is4() })
		}
		for _, a := range addrs {
			l := relay.Listener{Address: netip.AddrPortFrom(a, at.Port()), Protocol: turn.UDP}
			if !slices.Contains(out, l) {
				out = append(out, l)
			}
		}
	}
	if len(out) == 0 && len(*p) == 0 {
		p.check("listen", errors.New("no address to listen on"))
	}
	return out
}

func listenAddress(s string) (netip.AddrPort, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return netip.AddrPort{}, fmt.Errorf("%q is no address like udp://192.0.2.1:3478", s)
	}
	switch u.Scheme {
	case "udp":
	case "tcp", "tls", "dtls":
		return netip.AddrPort{}, fmt.Errorf("%q: %s is not supported yet, only udp", s, u.Scheme)
	default:
		return netip.AddrPort{}, fmt.Errorf("%q: unknown transport %q", s, u.Scheme)
	}
	host := u.Host
	if u.Port() == "" {
		host += ":3478"
	}
	at, err := netip.ParseAddrPort(host)
	if err != nil || at.Port() == 0 || (u.Path != "" && u.Path != "/") {
		return netip.AddrPort{}, fmt.Errorf("%q is no address like udp://192.0.2.1:3478", s)
	}
	return turn.Canonical(at), nil
}
