package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"turnstone/turn"
	"turnstone/turn/relay"
)

// relays are the relay addresses, and what stands for them outside.
func (c *Config) relays(h host, listeners []relay.Listener, p *problems) []turn.Relay {
	out, err := c.relayAddresses(h, listeners)
	p.check("relay-ip", err)
	if err == nil {
		p.check("external-ip", external(out, c.ExternalIP))
	}
	return out
}

func (c *Config) relayAddresses(h host, listeners []relay.Listener) ([]turn.Relay, error) {
	var out []turn.Relay
	for _, s := range c.RelayIP {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsUnspecified() || a.Zone() != "" {
			return nil, fmt.Errorf("%q is no address like 192.0.2.1", s)
		}
		a = a.Unmap()
		if slices.ContainsFunc(out, func(r turn.Relay) bool { return r.IP.Is4() == a.Is4() }) {
			return nil, fmt.Errorf("%s is the second address of its family, one is possible", s)
		}
		if err := h.bindable(a); err != nil {
			return nil, err
		}
		out = append(out, turn.Relay{IP: a, External: a})
	}
	if len(c.RelayIP) > 0 {
		return out, nil
	}
	for _, v4 := range []bool{true, false} {
		if a := likelyRelay(h.own, listeners, v4); a.IsValid() {
			out = append(out, turn.Relay{IP: a, External: a})
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no address that is listened on is one of this host: name one")
	}
	return out, nil
}

// likelyRelay is the address of a family that is most likely to be reached by
// peers: what is listened on first, global before private before loopback.
func likelyRelay(own []netip.Addr, listeners []relay.Listener, v4 bool) (best netip.Addr) {
	rank := func(a netip.Addr) int {
		switch {
		case a.IsLoopback():
			return 1
		case a.IsPrivate():
			return 2
		}
		return 3
	}
	for _, l := range listeners {
		a := l.Address.Addr()
		if a.Is4() == v4 && slices.Contains(own, a) && (!best.IsValid() || rank(a) > rank(best)) {
			best = a
		}
	}
	return best
}

// bindable says whether sockets can be opened at a.
func bindable(a netip.Addr) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return fmt.Errorf("%s is no address of this host: %w", a, err)
	}
	return conn.Close()
}

// external reads PUBLIC or PUBLIC/PRIVATE into relays.
func external(relays []turn.Relay, list []string) error {
	for _, s := range list {
		public, private, named := strings.Cut(s, "/")
		p, err := netip.ParseAddr(public)
		if err != nil {
			return fmt.Errorf("%q is no PUBLIC or PUBLIC/PRIVATE like 198.51.100.1/10.0.0.1", s)
		}
		p = p.Unmap()
		i := slices.IndexFunc(relays, func(r turn.Relay) bool {
			if named {
				return r.IP.String() == private
			}
			return r.IP.Is4() == p.Is4()
		})
		if i < 0 || relays[i].IP.Is4() != p.Is4() {
			return fmt.Errorf("%q belongs to no relay address", s)
		}
		relays[i].External = p
	}
	return nil
}
