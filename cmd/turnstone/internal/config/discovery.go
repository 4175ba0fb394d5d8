package config

import (
	"net/netip"
	"slices"

	"turnstone/turn"
	"turnstone/turn/relay"
)

// discoveries are the listeners at which RFC 5780 is served. Behind a 1:1 NAT nobody here knows how their
// addresses look from outside.
func (c *Config) discoveries(listeners []relay.Listener, relays []turn.Relay, p *problems) []turn.Discovery {
	p.check("stun-discovery", oneOf(c.StunDiscovery, "auto", "off"))
	if c.StunDiscovery != "auto" {
		return nil
	}
	var plain []netip.AddrPort
	for _, l := range listeners {
		hidden := slices.ContainsFunc(relays, func(r turn.Relay) bool { return r.External != r.IP && r.IP.Is4() == l.Address.Addr().Is4() })
		if l.Protocol == turn.UDP && !hidden {
			plain = append(plain, l.Address)
		}
	}
	return turn.FindDiscoveries(plain)
}
