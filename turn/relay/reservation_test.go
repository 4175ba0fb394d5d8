package relay

import (
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

var pairOfPorts = attribute{stun.AttrEvenPort, []byte{0x80}}

// reserve allocates with a reservation, and yields the reserved address and its token.
func (c *client) reserve() (netip.AddrPort, stun.Setter) {
	c.t.Helper()
	if c.nonce == "" {
		c.greet()
	}
	return c.reserved(c.do(0, stun.MethodAllocate, udpTransport, pairOfPorts))
}

// reserved is what the answer m says of the reservation.
func (c *client) reserved(m *stun.Message) (netip.AddrPort, stun.Setter) {
	c.t.Helper()
	c.relayed = relayedOf(c.t, m)
	v, err := m.Get(stun.AttrReservationToken)
	if err != nil || len(v) != 8 || c.relayed.Port()%2 != 0 {
		c.t.Fatalf("got relayed address %v and token %x, %v", c.relayed, v, err)
	}
	return netip.AddrPortFrom(c.relayed.Addr(), c.relayed.Port()+1), attribute{stun.AttrReservationToken, v}
}

// wantRelayed redeems token, and wants next to relay.
func (c *client) wantRelayed(next netip.AddrPort, token stun.Setter) {
	c.t.Helper()
	c.relayed = relayedOf(c.t, c.do(0, stun.MethodAllocate, udpTransport, token))
	if c.relayed != next {
		c.t.Fatalf("got relayed address %v for the token, want %v", c.relayed, next)
	}
	peer := peerOf(c.t)
	c.bind(0x4000, peer.addr)
	c.send(c.server, channelData(0x4000, []byte("ping")))
	if from := peer.want([]byte("ping")); from != next {
		c.t.Errorf("got a datagram from %v, want %v", from, next)
	}
	peer.send(next, []byte("pong"))
	c.want(channelData(0x4000, []byte("pong")))
}

func TestReservedPortWaitsForItsToken(t *testing.T) {
	g := serveTest(t, nil)
	rtp, rtcp, other := g.client("alice"), g.client("alice").greet(), g.client("bob").greet()
	next, token := rtp.reserve()
	if !taken(t, next) {
		t.Fatalf("%v is not bound, want it held", next)
	}
	peerOf(t).send(next, []byte("nobody's"))
	rtp.do(0, stun.MethodRefresh, lifetime(0))
	other.do(508, stun.MethodAllocate, udpTransport, token)
	rtcp.wantRelayed(next, token)
	g.client("alice").greet().do(508, stun.MethodAllocate, udpTransport, token)
	rtcp.do(0, stun.MethodRefresh, lifetime(0))
	eventually(t, "the port is free", func() bool { return !taken(t, next) })
}

// TestReservationOverAnotherTransport brings the token on a stream: any five-tuple of the user may.
func TestReservationOverAnotherTransport(t *testing.T) {
	g := serveTest(t, withStreams(t))
	for _, p := range protocols[1:] {
		next, token := g.client("alice").reserve()
		c := g.streamClient(p).greet()
		if got := relayedOf(t, c.do(0, stun.MethodAllocate, udpTransport, token)); got != next {
			t.Errorf("%v: got relayed address %v for the token, want %v", p, got, next)
		}
		peer := peerOf(t)
		c.permit(peer.addr)
		c.indicate(peer.addr, []byte("on"))
		if from := peer.want([]byte("on")); from != next {
			t.Errorf("%v: got a datagram from %v, want %v", p, from, next)
		}
	}
}

func TestReservationOutlivesTheServer(t *testing.T) {
	g := serveTest(t, nil)
	rtp, rtcp := g.client("alice"), g.client("alice").greet()
	next, token := rtp.reserve()
	again := g.again(nil)
	if !taken(t, next) {
		t.Fatalf("%v is not bound, want it held", next)
	}
	rtcp.wantRelayed(next, token)
	if got := again.Allocations(); got != 2 {
		t.Errorf("got %d allocations, want 2", got)
	}
}

func TestReservationWhosePortIsTakenEnds(t *testing.T) {
	g := serveTest(t, nil)
	next, token := g.client("alice").reserve()
	rtcp := g.client("alice").greet()
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	listenUDP(t, next)
	again := g.again(nil)
	revoked := eventsOf[turn.ReservationRevoked](again.store)
	if len(revoked) != 1 || revoked[0] != (turn.ReservationRevoked{Relayed: next, Reason: turn.ReasonPortTaken}) {
		t.Errorf("got %v, want the reservation of %v revoked", revoked, next)
	}
	if got := again.Allocations(); got != 1 {
		t.Errorf("got %d allocations, want the one that reserved", got)
	}
	rtcp.do(508, stun.MethodAllocate, udpTransport, token)
}

func TestReservationExpiresAndItsPortIsFree(t *testing.T) {
	clock, late := lateClock(t)
	g := serveTest(t, func(c *Config) { c.Clock = clock })
	next, token := g.client("alice").reserve()
	late.Store(-int64(31 * time.Second))
	eventually(t, "the reservation expires", func() bool { return len(eventsOf[turn.ReservationExpired](g.store)) == 1 })
	eventually(t, "its port is free", func() bool { return !taken(t, next) })
	g.client("alice").greet().do(508, stun.MethodAllocate, udpTransport, token)
}

func TestReservationsOfALostRecord(t *testing.T) {
	for _, keep := range []bool{false, true} {
		g := serveTest(t, nil)
		rtp, rtcp := g.client("alice").greet(), g.client("alice").greet()
		m := rtp.message(stun.MethodAllocate, udpTransport, pairOfPorts)
		g.lose(rtp, m, keep, 0)
		kept := g.store.state().Reservations()
		if got := len(kept); (got == 1) != keep {
			t.Fatalf("keep=%v: got %d reservations on the disk", keep, got)
		}
		g.pool.mu.Lock()
		if got := len(g.pool.m); got != len(kept) {
			t.Errorf("keep=%v: got %d sockets held, want %d", keep, got, len(kept))
		}
		g.pool.mu.Unlock()
		next, token := rtp.reserved(rtp.exchange(m))
		redeem := rtcp.message(stun.MethodAllocate, udpTransport, token)
		g.lose(rtcp, redeem, keep, 0)
		if got := relayedOf(t, rtcp.exchange(redeem)); got != next {
			t.Errorf("keep=%v: got %v for the token, want %v", keep, got, next)
		}
		if got := g.Allocations(); got != 2 {
			t.Errorf("keep=%v: got %d allocations, want 2", keep, got)
		}
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
	}
}
