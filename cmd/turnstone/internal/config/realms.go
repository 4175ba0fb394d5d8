package config

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"turnstone/turn"
	"turnstone/turn/relay"
)

// realms are the realms besides the one called first.
func (c *Config) realms(first string, own []netip.Addr, listeners []relay.Listener, p *problems) []turn.RealmConfig {
	var out []turn.RealmConfig
	from := map[string]string{} // origin or listener, and the realm that has it
	for i, s := range c.Auth.Realms {
		r, err := readRealm(s, own, listeners)
		taken := func(what string) {
			if other, is := from[what]; is && err == nil {
				err = fmt.Errorf("%s belongs to %q already", what, other)
			}
			from[what] = r.Name
		}
		if err == nil && (r.Name == first || slices.ContainsFunc(out, func(o turn.RealmConfig) bool { return o.Name == r.Name })) {
			err = fmt.Errorf("%q is a realm already", r.Name)
		}
		for _, o := range r.Origins {
			taken(o)
		}
		for _, l := range r.Listeners {
			taken(fmt.Sprintf("%v://%v", l.Protocol, l.Address))
		}
		if err != nil {
			p.check("auth.realms", fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		out = append(out, r)
	}
	for i, s := range c.Auth.RealmUsers {
		name, rest, found := strings.Cut(s, "/")
		if !found {
			p.check("auth.realm-users", fmt.Errorf("entry %d: not of the form REALM/NAME:PASSWORD", i+1))
			continue
		}
		u, err := user(rest)
		name, _ = turn.OpaqueString(name) // one that cannot be prepared is no realm
		at := slices.IndexFunc(out, func(r turn.RealmConfig) bool { return r.Name == name })
		switch {
		case err == nil && at < 0:
			err = errors.New("its realm is none of auth.realms")
			fallthrough
		case err != nil:
			p.check("auth.realm-users", fmt.Errorf("entry %d: %w", i+1, err))
		default:
			out[at].Users = append(out[at].Users, u)
		}
	}
	return out
}

// readRealm reads NAME=FROM...
func readRealm(s string, own []netip.Addr, listeners []relay.Listener) (r turn.RealmConfig, err error) {
	name, from, found := strings.Cut(s, "=")
	if !found || strings.Contains(name, "/") || len(strings.Fields(from)) == 0 {
		return r, fmt.Errorf("%q is not of the form NAME=ORIGIN or NAME=LISTENER", s)
	}
	if r.Name, err = realmName(strings.TrimSpace(name)); err != nil {
		return r, fmt.Errorf("the name: %w", err)
	}
	for _, f := range strings.Fields(from) {
		switch scheme, host, isURL := strings.Cut(f, "://"); {
		case !isURL || scheme == "" || host == "":
			return r, fmt.Errorf("%q is neither an origin like https://app.example.org nor a listener", f)
		case !slices.Contains(transports, scheme):
			r.Origins = append(r.Origins, strings.ToLower(f))
			continue
		}
		var p problems
		for _, l := range (&Config{Listen: []string{f}}).listeners(own, &p) {
			if !slices.Contains(listeners, l) {
				p = append(p, fmt.Errorf("%s is not listened on", f))
				break
			}
			r.Listeners = append(r.Listeners, turn.Listen{Protocol: l.Protocol, Address: l.Address})
		}
		if err := errors.Join(p...); err != nil {
			return r, err
		}
	}
	return r, nil
}

// transports are the schemes of listeners.
var transports = []string{"udp", "tcp", "tls", "dtls"}
