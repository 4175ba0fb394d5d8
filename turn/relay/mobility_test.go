package relay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

const mobilityTicket stun.AttrType = 0x8030

func withTickets(c *Config) { c.Settings.Rules.Tickets = turn.NewTickets([32]byte{5}) }

func ticketOf(t testing.TB, m *stun.Message) stun.Setter {
	t.Helper()
	v, err := m.Get(mobilityTicket)
	if err != nil || len(v) == 0 {
		t.Fatalf("got ticket %x, %v", v, err)
	}
	return attribute{mobilityTicket, v}
}

// mobile makes an allocation of a client that may move, with channel 0x4000 to peer, and yields its ticket.
func (c *client) mobile(peer netip.AddrPort) stun.Setter {
	c.t.Helper()
	m := c.greet().do(0, stun.MethodAllocate, udpTransport, attribute{mobilityTicket, nil})
	c.relayed = relayedOf(c.t, m)
	c.bind(0x4000, peer)
	return ticketOf(c.t, m)
}

// come moves an allocation to c, and yields the next ticket.
func (c *client) come(ticket stun.Setter) stun.Setter {
	c.t.Helper()
	if c.nonce == "" {
		c.greet()
	}
	return ticketOf(c.t, c.do(0, stun.MethodRefresh, ticket))
}

// wantPath has data go from c by channel 0x4000 to peer, from a relayed address.
func (c *client) wantPath(peer *endpointUDP, relayed netip.AddrPort) {
	c.t.Helper()
	c.send(c.server, channelData(0x4000, []byte("up..")))
	if from := peer.want([]byte("up..")); from != relayed {
		c.t.Fatalf("got data from %v, want it from %v", from, relayed)
	}
}

// wantBack has data come from peer to c.
func (c *client) wantBack(peer *endpointUDP, relayed netip.AddrPort) {
	c.t.Helper()
	peer.send(relayed, []byte("down"))
	got, _ := c.receive(5 * time.Second)
	if n, data, err := turn.ParseChannelData(got); err != nil || n != 0x4000 || string(data) != "down" {
		c.t.Fatalf("got %.40x, want the data of the peer on its channel", got)
	}
}

func (g *rig) left() []turn.FiveTupleLeft { return eventsOf[turn.FiveTupleLeft](g.store) }

// wantLeft waits for what is n-th in the log to be that a five-tuple was left for a reason.
func (g *rig) wantLeft(n int, why turn.Reason) {
	g.t.Helper()
	eventually(g.t, "a five-tuple is left", func() bool { return len(g.left()) >= n })
	if got := g.left(); len(got) != n || got[n-1].Reason != why {
		g.t.Fatalf("got %v, want %d, the last for %v", got, n, why)
	}
}

// TestClientMoves has a client go on from another port (RFC 8016 section 3.2.2): what it had serves until data comes
// from the new one, and its port, channel and permission stay.
func TestClientMoves(t *testing.T) {
	g := serveTest(t, withTickets)
	peer, home, away := peerOf(t), g.client("alice"), g.client("alice").greet()
	ticket := home.mobile(peer.addr)
	home.wantPath(peer, home.relayed)
	m := away.message(stun.MethodRefresh, ticket)
	first, again := away.exchange(m), away.exchange(m)
	if !bytes.Equal(first.Raw, again.Raw) {
		t.Errorf("the retransmission got\n%x, want\n%x", again.Raw, first.Raw)
	}
	home.wantBack(peer, home.relayed)
	home.wantPath(peer, home.relayed)
	away.wantNothing()
	away.wantPath(peer, home.relayed)
	away.wantBack(peer, home.relayed)
	g.wantLeft(1, turn.ReasonMoved)
	eventually(t, "what was left is not relayed for", func() bool { return g.listeners()[0].seats.get(home.addr) == nil })
	home.send(g.addr, channelData(0x4000, []byte("late")))
	peer.wantNothing()
	home.wantNothing()
	home.do(437, stun.MethodRefresh)
	away.permit(netip.AddrPortFrom(peerIP, 9))
	away.do(400, stun.MethodRefresh, ticketOf(t, again))
	home.come(ticketOf(t, again))
	home.wantPath(peer, home.relayed)
	home.wantBack(peer, home.relayed)
	g.wantLeft(2, turn.ReasonMoved)
	if got := g.Allocations(); got != 1 {
		t.Errorf("got %d allocations, want 1", got)
	}
}

// TestSendIndicationArrives: it is data too.
func TestSendIndicationArrives(t *testing.T) {
	g := serveTest(t, withTickets)
	peer, home, away := peerOf(t), g.client("alice"), g.client("alice")
	away.come(home.mobile(peer.addr))
	away.send(g.addr, channelData(0x4009, []byte("of no channel")))
	away.indicate(netip.AddrPortFrom(relayIP, 9), []byte("without permission"))
	home.wantBack(peer, home.relayed)
	away.indicate(peer.addr, []byte("up.."))
	peer.want([]byte("up.."))
	away.wantBack(peer, home.relayed)
	g.wantLeft(1, turn.ReasonMoved)
}

func TestMoveIsDurableBeforeItIsAnswered(t *testing.T) {
	g := serveTest(t, withTickets)
	peer, home, away := peerOf(t), g.client("alice"), g.client("alice").greet()
	ticket := home.mobile(peer.addr)
	goOn := g.store.stall()
	defer goOn()
	away.send(g.addr, away.message(stun.MethodRefresh, ticket).Raw)
	<-g.store.entered
	away.wantNothing()
	away.send(g.addr, channelData(0x4000, []byte("early"))) // nobody knows yet who this is
	peer.wantNothing()
	home.wantPath(peer, home.relayed)
	goOn()
	if a := away.answer(5 * time.Second); a == nil || code(a) != 0 {
		t.Fatalf("got %v, want success", a)
	}
	away.wantPath(peer, home.relayed)
}

// TestMovesOutliveTheServer restarts it before data has come from the new five-tuple.
func TestMovesOutliveTheServer(t *testing.T) {
	g := serveTest(t, withTickets)
	peer, home, away := peerOf(t), g.client("alice"), g.client("alice")
	ticket := home.mobile(peer.addr)
	next := away.come(ticket)
	g = g.again(nil)
	home.wantBack(peer, home.relayed)
	home.wantPath(peer, home.relayed)
	away.wantPath(peer, home.relayed)
	away.wantBack(peer, home.relayed)
	g.wantLeft(1, turn.ReasonMoved)
	g = g.again(nil)
	away.wantBack(peer, home.relayed)
	away.wantPath(peer, home.relayed)
	home.come(next)
	home.wantPath(peer, home.relayed)
	g.wantLeft(2, turn.ReasonMoved)
}

// TestMovesOfALostRecord has the log fail under a move, and under what follows it.
func TestMovesOfALostRecord(t *testing.T) {
	for _, keep := range []bool{false, true} {
		g := serveTest(t, withTickets)
		peer, home, away := peerOf(t), g.client("alice"), g.client("alice").greet()
		m := away.message(stun.MethodRefresh, home.mobile(peer.addr))
		g.lose(away, m, keep, 0)
		home.wantPath(peer, home.relayed)
		home.wantBack(peer, home.relayed)
		ticketOf(t, away.exchange(m))
		g.store.failNext(keep, 0)
		away.wantPath(peer, home.relayed)
		eventually(t, "the log is recovered", func() bool { return g.Counters().Recoveries == 2 && g.Ready() })
		away.wantBack(peer, home.relayed)
		g.wantLeft(1, turn.ReasonMoved)
		away.wantBack(peer, home.relayed)
		home.do(437, stun.MethodRefresh)
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStreamOfAMobileClientBreaks: its allocation waits for it, and is relayed for where it comes back.
func TestStreamOfAMobileClientBreaks(t *testing.T) {
	g := serveTest(t, func(c *Config) { withStreams(t)(c); withTickets(c) })
	for i, p := range protocols[1:] {
		peer, c := peerOf(t), g.streamClient(p)
		ticket := c.mobile(peer.addr)
		c.wantPath(peer, c.relayed)
		_ = c.stream.Close()
		g.wantLeft(2*i+1, turn.ReasonStreamClosed)
		before := g.Counters().Drops["adrift"]
		peer.send(c.relayed, []byte("to nobody"))
		eventually(t, "it is dropped", func() bool { return g.Counters().Drops["adrift"] == before+1 })
		back := g.streamClient(p)
		back.come(ticket)
		back.wantBack(peer, c.relayed) // at once: the old five-tuple is gone
		back.wantPath(peer, c.relayed)
		_ = back.stream.Close()
		g.wantLeft(2*i+2, turn.ReasonStreamClosed)
	}
	if got := g.Allocations(); got != len(protocols)-1 {
		t.Errorf("got %d allocations, want those that wait", got)
	}
	eventually(t, "no stream counts any more", func() bool { return g.crowd.size() == 0 && g.crowd.sources() == 0 })
}

// TestClientMovesBetweenTransports goes from UDP to each stream and back. That the old stream ends
// makes way for the new five-tuple without data from there.
func TestClientMovesBetweenTransports(t *testing.T) {
	g := serveTest(t, func(c *Config) { withStreams(t)(c); withTickets(c) })
	for i, p := range protocols[1:] {
		peer, home, back := peerOf(t), g.client("alice"), g.client("alice")
		home.server, back.server = g.listens(turn.UDP), g.listens(turn.UDP)
		ticket := home.mobile(peer.addr)
		c := g.streamClient(p)
		ticket = c.come(ticket)
		home.wantBack(peer, home.relayed)
		c.wantPath(peer, home.relayed)
		c.wantBack(peer, home.relayed)
		g.wantLeft(2*i+1, turn.ReasonMoved)
		back.come(ticket)
		c.wantBack(peer, home.relayed)
		_ = c.stream.Close()
		g.wantLeft(2*i+2, turn.ReasonStreamClosed)
		eventually(t, "data goes by the new five-tuple", func() bool { return g.listeners()[0].seats.get(back.addr).of().at.Load().client == back.addr })
		back.wantBack(peer, home.relayed)
		back.wantPath(peer, home.relayed)
	}
}

// TestMobileStreamsOutliveTheServer: the stream does not, the allocation waits for its client.
func TestMobileStreamsOutliveTheServer(t *testing.T) {
	g := serveTest(t, func(c *Config) { withStreams(t)(c); withTickets(c) })
	peer, c := peerOf(t), g.streamClient(turn.TLS)
	ticket := c.mobile(peer.addr)
	g.streamClient(turn.TCP).allocate() // which ends
	g = g.again(nil)
	g.wantLeft(1, turn.ReasonRestart)
	if got := g.Allocations(); got != 1 {
		t.Errorf("got %d allocations, want the one of the mobile client", got)
	}
	back := g.client("alice")
	back.server = g.listens(turn.UDP)
	back.come(ticket)
	back.wantBack(peer, c.relayed)
	back.wantPath(peer, c.relayed)
}

// TestListenerOfAMobileClientIsGone: it may come to another one.
func TestListenerOfAMobileClientIsGone(t *testing.T) {
	g := serveTest(t, func(c *Config) {
		withTickets(c)
		c.Listeners = append(c.Listeners, Listener{Address: freePort(t, serverIP), Protocol: turn.UDP})
	})
	peer, c := peerOf(t), g.client("alice")
	ticket := c.mobile(peer.addr)
	g = g.again(func(c *Config) { c.Listeners = c.Listeners[1:] })
	g.wantLeft(1, turn.ReasonListenerGone)
	back := g.client("alice")
	back.come(ticket)
	back.wantBack(peer, c.relayed)
	back.wantPath(peer, c.relayed)
}

// TestMobilityIsForbidden where there are no tickets.
func TestMobilityIsForbidden(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").greet()
	c.do(405, stun.MethodAllocate, udpTransport, attribute{mobilityTicket, nil})
	c.allocate()
	g.client("alice").greet().do(405, stun.MethodRefresh, attribute{mobilityTicket, make([]byte, 40)})
}
