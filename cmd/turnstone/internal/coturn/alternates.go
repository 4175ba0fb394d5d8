package coturn

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const taken = "one server for each transport and address family is possible, and an earlier line has them; coturn takes turns among several"

// alternate is a line that sends clients over some transports to another server, which is at a port of its own where the line says none.
func alternate(port uint16, transports ...string) key {
	return func(t *translation, e *entry) (verdict, error) {
		at, err := endpoint(e.word(), port)
		if err != nil {
			return verdict{}, err
		}
		tls, dtls := t.secure()
		served := slices.DeleteFunc(slices.Clone(transports), func(s string) bool { return s == "tls" && !tls || s == "dtls" && !dtls })
		if len(served) == 0 {
			return verdict{fate: Dropped, reason: notSecure}, nil
		}
		v := verdict{fate: Dropped, reason: taken}
		for _, transport := range served {
			if t.goesElsewhere(transport, at.Addr().Is4()) {
				continue
			}
			source := e
			if v.fate == Mapped { // it is named already
				source = nil
			}
			v = t.add("alternate-servers", source, transport+"://"+at.String())
			t.set("redirect", "always", nil)
		}
		return v, nil
	}
}

// goesElsewhere says whether an earlier line sends the clients of a transport and an address family to another server.
func (t *translation) goesElsewhere(transport string, v4 bool) bool {
	s := t.result.settings["alternate-servers"]
	return s != nil && slices.ContainsFunc(s.list, func(other string) bool {
		rest, same := strings.CutPrefix(other, transport+"://")
		at, err := netip.ParseAddrPort(rest)
		return same && err == nil && at.Addr().Is4() == v4
	})
}

// endpoint reads IP, IP:PORT, [IP] or [IP]:PORT. Without a port, and with zero, it is the one given.
func endpoint(s string, port uint16) (netip.AddrPort, error) {
	at, err := netip.ParseAddrPort(s)
	if err != nil {
		inner, bracketed := strings.CutPrefix(s, "[")
		if bracketed {
			inner = strings.TrimSuffix(inner, "]")
		}
		a, err := address(inner)
		if err != nil {
			return netip.AddrPort{}, fmt.Errorf("%q is no address like 192.0.2.1 or 192.0.2.1:3478: a name has to be looked up first", s)
		}
		at = netip.AddrPortFrom(a, 0)
	}
	if at.Port() != 0 {
		port = at.Port()
	}
	at = netip.AddrPortFrom(at.Addr().Unmap(), port)
	if at.Addr().IsUnspecified() || at.Addr().Zone() != "" {
		return netip.AddrPort{}, fmt.Errorf("%q is not one address", s)
	}
	return at, nil
}

// discovery is a line that asks for RFC 5780, which takes two addresses of a family; listen adds their second port.
func discovery(t *translation, e *entry) (verdict, error) {
	if e.key == "alt-listening-port" {
		if _, err := e.port(); err != nil {
			return verdict{}, err
		}
	}
	if reason := t.undiscovered(); reason != "" {
		return verdict{fate: Dropped, reason: reason}, nil
	}
	return verdict{fate: Mapped, setting: "listen"}, nil
}

// undiscovered is why nothing of RFC 5780 is served, empty where it is.
func (t *translation) undiscovered() string {
	var v4, v6 []netip.Addr
	for _, e := range t.all("listening-ip") {
		a, err := e.address()
		switch {
		case err != nil || a.IsUnspecified() || slices.Contains(v4, a) || slices.Contains(v6, a):
		case a.Is4():
			v4 = append(v4, a)
		default:
			v6 = append(v6, a)
		}
	}
	plain, secure := t.ports()
	_, dtls := t.secure()
	port := t.alternatePort()
	switch {
	case t.on("no-rfc5780"):
		return "no-rfc5780 is on"
	case t.on("no-udp"):
		return "NAT behaviour discovery (RFC 5780) is served over UDP, which is off"
	case len(t.all("external-ip")) > 0:
		return "behind a 1:1 NAT nobody here knows how the second address looks from outside, so NAT behaviour discovery (RFC 5780) is not served"
	case max(len(v4), len(v6)) < 2:
		return nat5780
	case port > 65535 || port == plain || dtls && port == secure:
		return "NAT behaviour discovery (RFC 5780) takes a second port, and this one is not free"
	}
	return ""
}

// alternatePort is the second port of RFC 5780.
func (t *translation) alternatePort() int {
	plain, _ := t.ports()
	return nonzero(t.number("alt-listening-port", 0), plain+1)
}

// listenOnAlternatePort adds the second port of the addresses at which NAT behaviour is discovered.
func (t *translation) listenOnAlternatePort(hosts []netip.Addr) {
	if (t.last("alt-listening-port") != nil || t.on("rfc5780")) && t.undiscovered() == "" {
		t.listenOn("udp", false, hosts, t.alternatePort())
	}
}
