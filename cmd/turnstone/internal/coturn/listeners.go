package coturn

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

const notSecure = "neither TLS nor DTLS is served, for which it takes cert and pkey"

// listens is a line that says where clients are served; finish puts them together.
func listens(_ *translation, e *entry) (verdict, error) {
	var err error
	switch e.key {
	case "listening-ip":
		if e.word() != "" {
			_, err = e.address()
		}
	case "listening-port":
		_, err = e.port()
	}
	return verdict{fate: Mapped, setting: "listen"}, err
}

func listensTLS(t *translation, e *entry) (verdict, error) {
	if _, err := e.port(); err != nil {
		return verdict{}, err
	}
	if tls, dtls := t.secure(); !tls && !dtls {
		return verdict{fate: Dropped, reason: notSecure}, nil
	}
	return verdict{fate: Mapped, setting: "listen"}, nil
}

// certified says whether the file has a certificate with its key.
func (t *translation) certified() bool { return t.last("cert") != nil && t.last("pkey") != nil }

// secure says whether TLS and DTLS are served.
func (t *translation) secure() (tls, dtls bool) {
	off := t.on("no-dtls") || t.last("dtls") != nil && !t.on("dtls")
	return t.certified() && !t.on("no-tls"), t.certified() && !off
}

// auxiliary is one more address for clients.
func auxiliary(_ *translation, e *entry) (verdict, error) {
	at, err := netip.ParseAddrPort(e.word())
	if err != nil || at.Port() == 0 {
		return verdict{}, fmt.Errorf("%q is no address like 192.0.2.1:3478", e.word())
	}
	return verdict{fate: Mapped, setting: "listen"}, nil
}

// finish puts together what several lines make up, and says what the file leaves to the server.
func (t *translation) finish() error {
	t.listen()
	s := t.result.settings
	if s["listen"] == nil {
		return fmt.Errorf("%s: it serves no transport", t.result.file)
	}
	if s["auth.users"] == nil && s["auth.secrets"] == nil {
		t.absent("user", "it has neither users nor secrets, so coturn relays for everybody: turnstone serves a demo credential until auth.users or auth.secrets is set")
	}
	if t.last("realm") == nil {
		t.absent("realm", "coturn takes the domain of the host, turnstone the realm turnstone")
	}
	if !t.deniesPrivate() {
		t.absent("denied-peer-ip", "coturn relays to private addresses unless they are denied, turnstone to none: peers.allow opens those that are needed")
	}
	return nil
}

// listen makes the listeners: each address with each transport that is on.
func (t *translation) listen() {
	var hosts []netip.Addr
	for _, e := range t.all("listening-ip") {
		a := netip.IPv4Unspecified()
		if e.word() != "" {
			a, _ = e.address() // complained of already
		}
		hosts = append(hosts, a)
	}
	if len(hosts) == 0 {
		hosts = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
	}
	plain, secure := t.ports()
	tls, dtls := t.secure()
	t.listenOn("udp", t.on("no-udp"), hosts, plain)
	t.listenOnAlternatePort(hosts)
	t.listenOn("tcp", t.on("no-tcp") || tls && plain == secure, hosts, plain)
	t.listenOn("tls", !tls, hosts, secure)
	t.listenOn("dtls", !dtls || plain == secure && !t.on("no-udp"), hosts, secure)
	for _, e := range t.all("aux-server") {
		if at, err := netip.ParseAddrPort(e.word()); err == nil {
			t.listenOn("udp", t.on("no-udp"), []netip.Addr{at.Addr()}, int(at.Port()))
			t.listenOn("tcp", t.on("no-tcp"), []netip.Addr{at.Addr()}, int(at.Port()))
		}
	}
}

// ports are those without and with TLS.
func (t *translation) ports() (plain, secure int) {
	return nonzero(t.number("listening-port", 0), 3478), nonzero(t.number("tls-listening-port", 0), 5349)
}

// listenOn adds listeners for a transport, unless it is off.
func (t *translation) listenOn(transport string, off bool, hosts []netip.Addr, port int) {
	if off {
		return
	}
	for _, h := range hosts {
		t.add("listen", nil, transport+"://"+netip.AddrPortFrom(h, uint16(port)).String())
	}
}

func nonzero(n, otherwise int) int {
	if n == 0 {
		return otherwise
	}
	return n
}

// relayIP takes the first address of each family.
func relayIP(t *translation, e *entry) (verdict, error) {
	a, err := e.address()
	if err != nil {
		return verdict{}, err
	}
	if a.IsUnspecified() {
		return verdict{}, fmt.Errorf("%s is not one address", a)
	}
	if s := t.result.settings["relay-ip"]; s != nil && slices.ContainsFunc(s.list, func(other string) bool {
		b, err := netip.ParseAddr(other)
		return err == nil && b.Is4() == a.Is4() && a != b
	}) {
		return verdict{fate: Dropped, reason: "one relay address for each family is used, and an earlier line has it"}, nil
	}
	return t.add("relay-ip", e, a.String()), nil
}

// externalIP takes PUBLIC, or PUBLIC/PRIVATE, which makes PRIVATE a relay address.
func externalIP(t *translation, e *entry) (verdict, error) {
	public, private, named := cutAddresses(e.word())
	a, err := address(public)
	if err != nil {
		return verdict{}, err
	}
	if !named {
		return t.add("external-ip", e, a.String()), nil
	}
	b, err := address(private)
	if err != nil {
		return verdict{}, err
	}
	relays := t.all("relay-ip")
	if !slices.ContainsFunc(relays, func(r *entry) bool { c, err := r.address(); return err == nil && c.Is4() == b.Is4() }) {
		relay := *e
		relay.value = b.String()
		if v, err := relayIP(t, &relay); err != nil || v.fate != Mapped {
			return v, err
		}
	}
	if !slices.Contains(t.relays(), b) {
		return verdict{fate: Dropped, reason: fmt.Sprintf("%s is not the relay address of its family", b)}, nil
	}
	return t.add("external-ip", e, a.String()+"/"+b.String()), nil
}

// relays are the relay addresses: the first that the file names of each family, and those mapped to outside.
func (t *translation) relays() (out []netip.Addr) {
	take := func(a netip.Addr) {
		if !slices.ContainsFunc(out, func(b netip.Addr) bool { return a.Is4() == b.Is4() }) {
			out = append(out, a)
		}
	}
	for _, e := range t.all("relay-ip") {
		if a, err := e.address(); err == nil {
			take(a)
		}
	}
	for _, e := range t.all("external-ip") {
		if _, private, named := cutAddresses(e.word()); named {
			if a, err := address(private); err == nil {
				take(a)
			}
		}
	}
	return out
}

// ports takes the range, from whichever of both ends is there.
func ports(t *translation, e *entry) (verdict, error) {
	if n, err := e.port(); err != nil || n == 0 {
		return verdict{}, fmt.Errorf("%q is no port", e.word())
	}
	first, last := t.number("min-port", 49152), t.number("max-port", 65535)
	if first > last {
		return verdict{}, fmt.Errorf("min-port %d is above max-port %d", first, last)
	}
	return t.set("relay-ports", strconv.Itoa(first)+"-"+strconv.Itoa(last), e), nil
}
