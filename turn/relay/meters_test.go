package relay

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// trickle is a cap that lets one burst through, of 65 datagrams of 1000 bytes, and then next to nothing.
var trickle = turn.NewCap(1)

const burstOfTrickle = 65

func withCap(s turn.Scope) func(*Config) { return func(c *Config) { c.Caps[s] = trickle } }

// meteredOut counts what was relayed and what was dropped for want of room under the cap of a scope.
func (g *rig) meteredOut(s turn.Scope) (toPeer, toClient, dropped uint64) {
	n := g.Counters()
	return n.ToPeerPackets, n.ToClientPackets, n.Drops[dropOver[s].String()]
}

// wantMetered waits until n datagrams of 1000 bytes have been relayed in a direction or dropped, and wants so many relayed.
func (g *rig) wantMetered(s turn.Scope, direction int, n, relayed uint64) {
	g.t.Helper()
	var to [2]uint64
	eventually(g.t, "all is relayed or dropped", func() bool {
		var dropped uint64
		to[toPeer], to[toClient], dropped = g.meteredOut(s)
		return to[toPeer]+to[toClient]+dropped == n
	})
	if to[direction] != relayed || to[1-direction] != 0 {
		g.t.Errorf("got %d datagrams to peers and %d to clients, want %d in direction %d", to[toPeer], to[toClient], relayed, direction)
	}
}

// flood sends n datagrams of 1000 bytes to peer, by a channel and by indications in turn.
func (c *client) flood(peer netip.AddrPort, n int) {
	c.t.Helper()
	for i := range n {
		if payload := make([]byte, 1000); i%2 == 0 {
			c.send(c.server, channelData(0x4000, payload))
		} else {
			c.indicate(peer, payload)
		}
	}
}

// TestCapsOfUsersAndInTotal has two clients of a user flood a peer, one of them on a stream, and then another user.
func TestCapsOfUsersAndInTotal(t *testing.T) {
	for _, c := range []struct {
		name  string
		scope turn.Scope
		want  uint64
	}{
		{"Allocation", turn.ScopeAllocation, 3 * burstOfTrickle},
		{"User", turn.ScopeUser, 2 * burstOfTrickle},
		{"Total", turn.ScopeTotal, burstOfTrickle},
	} {
		t.Run(c.name, func(t *testing.T) {
			g := serveTest(t, func(config *Config) { withStreams(t)(config); withCap(c.scope)(config) })
			peer := peerOf(t)
			alice, streamed, bob := g.client("alice"), g.streamClient(turn.TLS), g.client("bob")
			alice.server, bob.server = g.listens(turn.UDP), g.listens(turn.UDP)
			for _, one := range []*client{alice, streamed, bob} {
				one.allocate()
				one.bind(0x4000, peer.addr)
			}
			for _, one := range []*client{alice, streamed, bob} {
				one.flood(peer.addr, 100)
			}
			g.wantMetered(c.scope, toPeer, 300, c.want)
		})
	}
}

func TestCapsHoldForWhatPeersSend(t *testing.T) {
	g := serveTest(t, withCap(turn.ScopeUser))
	peer := peerOf(t)
	for i := range 2 {
		one := g.client("alice").allocate()
		if one.permit(peer.addr); i == 0 {
			one.bind(0x4000, peer.addr)
		}
		for range 50 {
			peer.send(one.relayed, make([]byte, 1000))
		}
	}
	g.wantMetered(turn.ScopeUser, toClient, 100, burstOfTrickle)
}

// TestCapOfAUserEndsWithWhatItHas: who comes again begins with what an idle meter has.
func TestCapOfAUserEndsWithWhatItHas(t *testing.T) {
	g := serveTest(t, withCap(turn.ScopeUser))
	peer := peerOf(t)
	one, two := g.client("alice").allocate(), g.client("alice").allocate()
	one.bind(0x4000, peer.addr)
	one.flood(peer.addr, 100)
	g.wantMetered(turn.ScopeUser, toPeer, 100, burstOfTrickle)
	one.do(0, stun.MethodRefresh, lifetime(0))
	two.bind(0x4000, peer.addr)
	two.flood(peer.addr, 10)
	g.wantMetered(turn.ScopeUser, toPeer, 110, burstOfTrickle)
	two.do(0, stun.MethodRefresh, lifetime(0))
	three := g.client("alice").allocate()
	three.bind(0x4000, peer.addr)
	three.flood(peer.addr, 100)
	g.wantMetered(turn.ScopeUser, toPeer, 210, 2*burstOfTrickle)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if got := len(g.flows.meters.users); got != 0 {
		t.Errorf("words of %d users are left of flows that have ended", got)
	}
}

// meteringFake is a Datapath that has words for users and the total alone.
type meteringFake struct {
	kernelFake
	mu       sync.Mutex // guards the fields below
	users    map[turn.Holder]*[2]uint64
	total    [2]uint64
	taken    uint32
	released []uint32
}

func (m *meteringFake) TakeMeters(_ turn.AllocationID, user turn.Holder) (words [2]turn.Words, number uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.users[user] == nil {
		m.users[user] = new([2]uint64)
	}
	for d := range words {
		words[d][turn.ScopeUser], words[d][turn.ScopeTotal] = &m.users[user][d], &m.total[d]
	}
	m.taken++
	return words, m.taken
}

func (m *meteringFake) ReleaseMeters(number uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.released = append(m.released, number)
	for _, words := range m.users {
		atomic.StoreUint64(&words[toPeer], 0)
	}
}

// TestCapsHoldWithWhatADatapathRelays has it take all that alice may, before her allocation is known to it and after.
func TestCapsHoldWithWhatADatapathRelays(t *testing.T) {
	g := serveTest(t, withCap(turn.ScopeUser))
	peer, alice := peerOf(t), g.client("alice").allocate()
	alice.bind(0x4000, peer.addr)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	again := newRig(t, func(c *Config) {
		logger := c.Logger
		*c = g.config
		c.State, c.Logger = nil, logger
	})
	fake := &meteringFake{users: map[turn.Holder]*[2]uint64{}}
	fake.users[turn.HolderOf("example.org", "alice")] = &[2]uint64{1 << 62, 0}
	again.Carry(fake)
	again.run()
	later, bob := again.client("alice").allocate(), again.client("bob").allocate()
	for _, c := range []*client{later, bob} {
		c.bind(0x4000, peer.addr)
	}
	for _, c := range []*client{alice, later, bob} {
		c.flood(peer.addr, 20)
	}
	again.wantMetered(turn.ScopeUser, toPeer, 60, 20)
	for _, c := range []*client{later, alice, bob} {
		c.do(0, stun.MethodRefresh, lifetime(0))
	}
	eventually(t, "what was taken is given back", func() bool {
		fake.mu.Lock()
		defer fake.mu.Unlock()
		return slices.Equal(fake.released, []uint32{2, 1, 3})
	})
}

// TestCapsHoldWhereADatapathGoes: what was taken from its words stays taken, although they are somebody else's now.
func TestCapsHoldWhereADatapathGoes(t *testing.T) {
	g := newRig(t, withCap(turn.ScopeUser))
	fake := &meteringFake{users: map[turn.Holder]*[2]uint64{turn.HolderOf("example.org", "alice"): {1 << 62, 0}}}
	g.Carry(fake)
	g.run()
	peer, alice := peerOf(t), g.client("alice").allocate()
	alice.bind(0x4000, peer.addr)
	if err := g.Uncarry(ctxFor(t)); err != nil {
		t.Fatal(err)
	}
	alice.flood(peer.addr, 20)
	g.wantMetered(turn.ScopeUser, toPeer, 20, 0)
	if err := g.CarryOn(ctxFor(t), nil, g.config.Settings.Caps); err != nil {
		t.Fatal(err)
	}
}

// TestConnectionsWaitForTheirCaps relays more than a burst over a connection at a low rate.
func TestConnectionsWaitForTheirCaps(t *testing.T) {
	g := serveTest(t, func(c *Config) {
		withStreams(t)(c)
		c.Caps = turn.Caps{turn.NewCap(100_000), turn.NewCap(90_000), turn.NewCap(110_000)}
	})
	l, at := listenTCP(t)
	c := g.streamClient(turn.TCP).allocateTCP()
	id := connectionOf(t, c.do(0, stun.MethodConnect, peerAddress(at)))
	peer := acceptOne(t, l)
	data := g.bindData(turn.TCP, id)
	began := time.Now()
	exchangeBytes(t, data.stream, peer, 300_000)
	// What goes beyond a burst and the last chunk takes its time: 170,000 bytes at the rate of the user.
	if took := time.Since(began); took < time.Second {
		t.Errorf("300,000 bytes took %v, want at least a second at 90,000 a second", took)
	}
}
