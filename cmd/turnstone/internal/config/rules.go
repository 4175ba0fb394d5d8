package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"turnstone/turn"
	"turnstone/turn/relay"
)

// rules are the rules of c, except for the relay addresses.
func (c *Config) rules(own []netip.Addr, listeners []relay.Listener, p *problems) turn.Rules {
	r := turn.Rules{
		MaxAllocations: c.Limits.MaxAllocations, MaxPerOwner: c.Limits.MaxAllocationsPerUser, MaxPerRealm: c.Limits.MaxAllocationsPerRealm,
		MaxPermissions: c.Limits.MaxPermissions, MaxChannels: c.Limits.MaxChannels,
		DefaultLifetime: time.Duration(c.Limits.DefaultLifetime), MaxLifetime: time.Duration(c.Limits.MaxLifetime),
		LastChannel: turn.ChannelLastRFC5766, Own: own,
	}
	for _, l := range listeners {
		if !slices.Contains(r.Own, l.Address.Addr()) {
			r.Own = append(r.Own, l.Address.Addr())
		}
	}
	if c.Limits.ChannelRange == "rfc8656" {
		r.LastChannel = turn.ChannelLast
	}
	r.NoConnections = c.Peers.Connections == "off"
	p.check("peers.connections", oneOf(c.Peers.Connections, "on", "off"))
	c.Limits.check(p)
	var err error
	r.FirstPort, r.LastPort, err = portRange(c.RelayPorts)
	p.check("relay-ports", err)
	r.Policy.Allow, err = networks(c.Peers.Allow)
	p.check("peers.allow", err)
	r.Policy.Deny, err = networks(c.Peers.Deny)
	p.check("peers.deny", err)
	return r
}

// caps are the caps of l.
func (l *Limits) caps() (c turn.Caps) {
	for s, rate := range [...]int{turn.ScopeAllocation: l.MaxBandwidth, turn.ScopeUser: l.MaxBandwidthPerUser, turn.ScopeTotal: l.MaxBandwidthTotal} {
		c[s] = turn.NewCap(uint64(max(rate, 0)))
	}
	return c
}

func (l *Limits) check(p *problems) {
	for _, n := range []struct {
		key          string
		value, least int
	}{
		{"max-allocations", l.MaxAllocations, 0},
		{"max-allocations-per-user", l.MaxAllocationsPerUser, 0},
		{"max-allocations-per-realm", l.MaxAllocationsPerRealm, 0},
		{"max-bandwidth", l.MaxBandwidth, 0},
		{"max-bandwidth-per-user", l.MaxBandwidthPerUser, 0},
		{"max-bandwidth-total", l.MaxBandwidthTotal, 0},
		{"max-permissions", l.MaxPermissions, 1},
		{"max-channels", l.MaxChannels, 1},
		{"max-streams", l.MaxStreams, 1},
		{"max-idle-streams", l.MaxIdleStreams, 1},
		{"unauth-rate", l.UnauthRate, 0},
		{"unauth-burst", l.UnauthBurst, 0},
	} {
		if n.value < n.least {
			p.check("limits."+n.key, fmt.Errorf("%d is less than %d", n.value, n.least))
		}
	}
	switch {
	case l.DefaultLifetime < Duration(time.Second):
		p.check("limits.default-lifetime", fmt.Errorf("%s is less than 1s", l.DefaultLifetime))
	case l.MaxLifetime < l.DefaultLifetime:
		p.check("limits.max-lifetime", fmt.Errorf("%s is less than the default lifetime, %s", l.MaxLifetime, l.DefaultLifetime))
	case l.MaxLifetime > Duration(24*time.Hour):
		p.check("limits.max-lifetime", fmt.Errorf("%s is more than 24h", l.MaxLifetime))
	}
	p.check("limits.channel-range", oneOf(l.ChannelRange, "rfc5766", "rfc8656"))
	p.check("limits.icmp-errors", oneOf(l.ICMPErrors, "probing", "all", "none"))
}

// portRange reads FIRST-LAST.
func portRange(s string) (first, last uint16, err error) {
	a, b, found := strings.Cut(s, "-")
	if !found {
		b = a
	}
	lo, err1 := strconv.ParseUint(strings.TrimSpace(a), 10, 16)
	hi, err2 := strconv.ParseUint(strings.TrimSpace(b), 10, 16)
	if errors.Join(err1, err2) != nil || lo == 0 || lo > hi {
		return 0, 0, fmt.Errorf("%q is no range of ports like 49152-65535", s)
	}
	return uint16(lo), uint16(hi), nil
}

// networks reads CIDRs; an address alone is the network of just it.
func networks(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no network like 192.0.2.0/24", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
