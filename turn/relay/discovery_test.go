package relay

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// serveDiscovery serves at two addresses with two ports each. The first is where clients begin.
func serveDiscovery(t *testing.T) (g *rig, d turn.Discovery) {
	t.Helper()
	d.Addresses = [2]netip.Addr{serverIP, peerIP}
	g = serveTest(t, func(c *Config) {
		c.Listeners = nil
		for i := range d.Ports {
			d.Ports[i] = freePort(t, serverIP).Port()
		}
		for _, ip := range d.Addresses {
			for _, port := range d.Ports {
				c.Listeners = append(c.Listeners, Listener{Address: netip.AddrPortFrom(ip, port), Protocol: turn.UDP})
			}
		}
		c.Settings.Gate = turn.NewGate(turn.GateConfig{Realm: "example.org", NonceLifetime: time.Hour, Discoveries: []turn.Discovery{d}})
	})
	return g, d
}

// TestDiscoveryAnswersFromWhereItIsAsked sends Binding requests with CHANGE-REQUEST (RFC 5780 section 6.1).
func TestDiscoveryAnswersFromWhereItIsAsked(t *testing.T) {
	g, d := serveDiscovery(t)
	c := g.client("")
	for flags, want := range map[byte]netip.AddrPort{
		0: netip.AddrPortFrom(d.Addresses[0], d.Ports[0]), 2: netip.AddrPortFrom(d.Addresses[0], d.Ports[1]),
		4: netip.AddrPortFrom(d.Addresses[1], d.Ports[0]), 6: netip.AddrPortFrom(d.Addresses[1], d.Ports[1]),
	} {
		c.send(g.addr, c.message(stun.MethodBinding, attribute{stun.AttrChangeRequest, []byte{0, 0, 0, flags}}).Raw)
		b, from := c.receive(5 * time.Second)
		var origin stun.ResponseOrigin
		m := &stun.Message{Raw: b}
		if err := m.Decode(); err != nil || from != want {
			t.Fatalf("flags %d: got an answer from %v, %v, want it from %v", flags, from, err, want)
		}
		if err := origin.GetFrom(m); err != nil || origin.Port != int(want.Port()) || origin.IP.String() != want.Addr().String() {
			t.Errorf("flags %d: got RESPONSE-ORIGIN %v, %v, want %v", flags, origin, err, want)
		}
	}
}

func TestDiscoveryAnswersToAnotherPort(t *testing.T) {
	g, _ := serveDiscovery(t)
	c, other := g.client(""), g.client("")
	port := binary.BigEndian.AppendUint16(nil, other.addr.Port())
	m := c.message(stun.MethodBinding, attribute{stun.AttrResponsePort, append(port, 0, 0)})
	c.send(g.addr, m.Raw)
	a := other.answer(5 * time.Second)
	var mapped stun.XORMappedAddress
	if a == nil || a.TransactionID != m.TransactionID || mapped.GetFrom(a) != nil || mapped.Port != int(c.addr.Port()) {
		t.Fatalf("got %v at the other port, with %v, want the answer with %v", a, mapped, c.addr)
	}
	c.wantNothing()
}

func TestDiscoveryAnswersWithPadding(t *testing.T) {
	g, _ := serveDiscovery(t)
	c := g.client("")
	a := c.exchange(c.message(stun.MethodBinding, attribute{stun.AttrPadding, make([]byte, 1500)}))
	if v, err := a.Get(stun.AttrPadding); err != nil || len(v) != 1500 {
		t.Errorf("got %d bytes of PADDING, %v, want 1500", len(v), err)
	}
}
