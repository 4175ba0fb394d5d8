package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"unicode/utf8"

	"turnstone/turn"
)

// maxDomain bounds a name in ALTERNATE-DOMAIN, in bytes (RFC 8489 section 14.16).
const maxDomain = 255

// alternates reads where clients are sent, and when.
func (c *Config) alternates(r *turn.Rules, p *problems) {
	for _, s := range c.AlternateServers {
		a, err := alternate(s)
		if err == nil && slices.ContainsFunc(r.Alternates, func(o turn.Alternate) bool {
			return o.Protocol == a.Protocol && o.Address.Addr().Is4() == a.Address.Addr().Is4()
		}) {
			err = fmt.Errorf("%q is the second of its transport and address family, one is possible", s)
		}
		p.check("alternate-servers", err)
		r.Alternates = append(r.Alternates, a)
	}
	if r.AlternateDomain = c.AlternateDomain; len(r.AlternateDomain) > maxDomain || !utf8.ValidString(r.AlternateDomain) {
		p.check("alternate-domain", fmt.Errorf("%q is no name", r.AlternateDomain))
	}
	p.check("redirect", oneOf(c.Redirect, "drain", "always"))
	if r.Redirect = c.Redirect == "always"; r.Redirect && len(c.AlternateServers) == 0 {
		p.check("redirect", errors.New("there are no alternate-servers"))
	}
}

// alternate reads IP:PORT or SCHEME://IP:PORT.
func alternate(s string) (a turn.Alternate, err error) {
	if strings.Contains(s, "://") {
		a.Protocol, a.Address, err = listenAddress(s)
	} else {
		a.Address, err = netip.ParseAddrPort(s)
		a.Address = turn.Canonical(a.Address)
	}
	if err != nil || a.Address.Port() == 0 || a.Address.Addr().IsUnspecified() {
		return a, fmt.Errorf("%q is no address like 192.0.2.1:3478 or tls://192.0.2.1:5349", s)
	}
	return a, nil
}
