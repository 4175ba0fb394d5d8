package main

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/doctor"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/rs/zerolog"
)

// advice is something an operator may want to change. Nothing in it keeps the daemon from serving.
type advice struct {
	level zerolog.Level
	text  string
}

// advise looks at a configuration and the host it is for.
func advise(r config.Resolved) []advice {
	const sysctl = "/proc/sys/net/ipv4/"
	local, _ := os.ReadFile(sysctl + "ip_local_port_range") // what cannot be read gives no advice
	reserved, _ := os.ReadFile(sysctl + "ip_local_reserved_ports")
	out := advisePorts(r.Rules.FirstPort, r.Rules.LastPort, string(local), string(reserved))
	out = append(append(out, adviseHook(r.Hook.URL)...), adviseDashboard(r.Dashboard, r.Token)...)
	if r.UsersElsewhere > 0 {
		out = append(out, advice{zerolog.WarnLevel, fmt.Sprintf(
			"%d users in %s are of realms that are neither realm nor in auth.realms: they cannot get in", r.UsersElsewhere, r.UsersFile)})
	}
	return append(append(out, adviseAddresses(r)...), adviseKeys(r.Gate)...)
}

// adviseKeys says that users of a realm with nothing but an MD5 key hold all the others to MD5.
func adviseKeys(g turn.GateConfig) (out []advice) {
	for _, r := range append([]turn.RealmConfig{{Name: g.Realm, Users: g.Users}}, g.Realms...) {
		old := 0
		for _, u := range r.Users {
			if u.Key != nil && u.KeySHA256 == nil {
				old++
			}
		}
		if old > 0 {
			out = append(out, advice{zerolog.InfoLevel, fmt.Sprintf(
				"of %d users of the realm %q only the MD5 key is known, so SHA-256 is offered to no client there: give their passwords, or both keys",
				old, r.Name)})
		}
	}
	return out
}

// adviseHook warns of a hook whose answers others can read: they are as good as passwords.
func adviseHook(at string) []advice {
	u, err := url.Parse(at)
	if err != nil || u.Scheme != "http" || staysHere(u.Hostname()) {
		return nil
	}
	return []advice{{zerolog.WarnLevel, "auth.http-url is not https: whoever is on the way to the hook reads the keys of users, and can let anybody in"}}
}

// adviseDashboard warns of a token that others can read.
func adviseDashboard(at, token string) []advice {
	if host, _, err := net.SplitHostPort(at); err != nil || token == "" || staysHere(host) {
		return nil
	}
	return []advice{{zerolog.WarnLevel, "the dashboard has no TLS: whoever is on the way to it reads its token, and can end allocations; have it on loopback, and forward a port"}}
}

// staysHere says whether nothing that is sent to host leaves this one.
func staysHere(host string) bool {
	a, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && a.IsLoopback()
}

// advisePorts warns of relayed ports that the host gives to other sockets too: while the daemon is away,
// one of them can be taken, and its allocation ends with the next start.
func advisePorts(first, last uint16, local, reserved string) []advice {
	relayed := doctor.Ports{First: first, Last: last}
	given, overlaps := doctor.Overlap(relayed, local, reserved)
	if !overlaps {
		return nil
	}
	return []advice{{zerolog.WarnLevel, fmt.Sprintf(
		"relay ports %v overlap net.ipv4.ip_local_port_range (%v): another program can take one while the daemon is down, "+
			"which ends that allocation; reserve them with %s", relayed, given, doctor.Reserve(relayed, reserved))}}
}

// adviseAddresses says of a relay address that only its own network reaches, while clients elsewhere may be served.
func adviseAddresses(r config.Resolved) (out []advice) {
	for _, l := range r.Rules.Relays {
		if global(l.External) || !listensBeyond(r.Listeners, l.IP) {
			continue
		}
		out = append(out, advice{zerolog.InfoLevel, fmt.Sprintf(
			"relayed addresses are on %s, which peers on the internet cannot reach: behind a NAT say the public address with --external-ip", l.External)})
	}
	return out
}

func global(a netip.Addr) bool { return !a.IsPrivate() && !a.IsLoopback() && !a.IsLinkLocalUnicast() }

// listensBeyond says whether clients outside the host are served in the family of a.
func listensBeyond(listeners []relay.Listener, a netip.Addr) bool {
	for _, l := range listeners {
		if at := l.Address.Addr(); at.Is4() == a.Is4() && !at.IsLoopback() {
			return true
		}
	}
	return false
}
