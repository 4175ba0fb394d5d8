package coturn

import (
	"net/netip"
	"slices"
	"strings"

	"turnstone/turn"
)

// private are the networks of RFC 1918.
var private = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("172.16.0.0/12"), netip.MustParsePrefix("192.168.0.0/16")}

const (
	mappedReason = "an IPv4-mapped address is judged as the IPv4 address it is"
	ownReason    = "clients of this server reach each other anyway, and to allow its own address would open every service on it"
	maybeOwn     = "if this is an address of the server itself, leave it out: clients reach each other anyway, and it opens every service of the host"
)

func deniedPeer(t *translation, e *entry) (verdict, error) {
	list, err := networks(e.word())
	if err != nil {
		return verdict{}, err
	}
	list = slices.DeleteFunc(list, mapped)
	if len(list) == 0 {
		return verdict{fate: Anyway, reason: mappedReason}, nil
	}
	// What is special stays out of the list: an entry would hold for the server's own relay address too.
	list = slices.DeleteFunc(list, turn.SpecialNetwork)
	if len(list) == 0 {
		return verdict{fate: Anyway, reason: "private and special addresses are refused unless peers.allow names them"}, nil
	}
	return t.add("peers.deny", e, texts(list)...), nil
}

func allowedPeer(t *translation, e *entry) (verdict, error) {
	list, err := networks(e.word())
	if err != nil {
		return verdict{}, err
	}
	list = slices.DeleteFunc(list, mapped)
	if len(list) == 0 {
		return verdict{fate: Dropped, reason: mappedReason + ": allow that one if it should be"}, nil
	}
	if len(list) > 1 || !list[0].IsSingleIP() {
		return t.add("peers.allow", e, texts(list)...), nil
	}
	if own := list[0].Addr(); slices.Contains(t.own(), own) && !slices.ContainsFunc(t.denied(), func(p netip.Prefix) bool {
		return p.Contains(own) && !turn.SpecialNetwork(p)
	}) {
		return verdict{fate: Anyway, reason: ownReason}, nil
	}
	v := t.add("peers.allow", e, texts(list)...)
	v.reason = maybeOwn
	return v, nil
}

// loopbackPeers opens the loopback, and the services on it that the host has at the usual addresses.
func loopbackPeers(t *translation, e *entry) (verdict, error) {
	v := t.add("peers.allow", e, "127.0.0.0/8", "127.0.0.1/32", "::1/128")
	v.reason = "this opens every service of the host: for tests only"
	return v, nil
}

func texts(list []netip.Prefix) (out []string) {
	for _, p := range list {
		out = append(out, p.String())
	}
	return out
}

// own are the addresses that the file says are the server's.
func (t *translation) own() (out []netip.Addr) {
	for _, k := range []string{"listening-ip", "relay-ip", "external-ip"} {
		for _, e := range t.all(k) {
			public, private, _ := cutAddresses(e.word())
			for _, s := range []string{public, private} {
				if a, err := address(s); err == nil && !a.IsUnspecified() {
					out = append(out, a)
				}
			}
		}
	}
	return out
}

// cutAddresses splits PUBLIC/PRIVATE.
func cutAddresses(s string) (public, private string, named bool) { return strings.Cut(s, "/") }

// denied are the networks that the file denies.
func (t *translation) denied() (out []netip.Prefix) {
	for _, e := range t.all("denied-peer-ip") {
		list, _ := networks(e.word()) // complained of where the line is translated
		out = append(out, list...)
	}
	return out
}

// deniesPrivate says whether the file denies all private networks, as turnstone does.
func (t *translation) deniesPrivate() bool {
	denied := t.denied()
	return !slices.ContainsFunc(private, func(p netip.Prefix) bool {
		return !slices.ContainsFunc(denied, func(d netip.Prefix) bool { return d.Bits() <= p.Bits() && d.Contains(p.Addr()) })
	})
}
