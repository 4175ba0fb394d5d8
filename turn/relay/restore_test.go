package relay

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

func TestAllocationsComeBack(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	other := peerOf(t)
	bystander := listenUDP(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.4"), 0))
	m := c.message(stun.MethodRefresh)
	if got := code(c.exchange(m)); got != 0 {
		t.Fatalf("got code %d, want success", got)
	}
	next := g.again(nil)
	if got := next.Allocations(); got != 1 {
		t.Fatalf("got %d allocations, want 1", got)
	}
	c.send(c.server, channelData(0x4000, []byte("ping")))
	if from := peer.want([]byte("ping")); from != c.relayed {
		t.Errorf("got a datagram from %v, want the same relayed address %v", from, c.relayed)
	}
	peer.send(c.relayed, []byte("pong"))
	c.want(channelData(0x4000, []byte("pong")))
	other.send(c.relayed, []byte("data")) // the permission is for the address
	c.wantData(other.addr, []byte("data"))
	bystander.send(c.relayed, []byte("no"))
	c.wantNothing()
	if got := code(c.exchange(m)); got != 0 {
		t.Errorf("got code %d to a retransmission from before, want success", got)
	}
	if got := len(eventsOf[turn.AllocationRefreshed](next.store)); got != 1 {
		t.Errorf("got %d refreshes in the log, want one", got)
	}
	if got := len(eventsOf[turn.EpochBegan](next.store)); got != 1 {
		t.Errorf("got %d epochs, want one", got)
	}
}

func TestPortTakenMeanwhileEndsThatAllocationAlone(t *testing.T) {
	g := serveTest(t, nil)
	lost, stays, peer := g.client("alice").allocate(), g.client("bob").allocate(), peerOf(t)
	stays.bind(0x4000, peer.addr)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	listenUDP(t, lost.relayed)
	next := g.again(nil)
	deleted := eventsOf[turn.AllocationDeleted](next.store)
	if len(deleted) != 1 || deleted[0].Allocation != 1 || deleted[0].Reason != turn.ReasonPortTaken {
		t.Errorf("got %v, want allocation 1 deleted because its port is taken", deleted)
	}
	if got := next.log.count("cannot be bound again"); got != 1 {
		t.Errorf("got %d log lines about it, want 1", got)
	}
	stays.send(stays.server, channelData(0x4000, []byte("on")))
	peer.want([]byte("on"))
	lost.do(437, stun.MethodRefresh)
	if got := next.Allocations(); got != 1 {
		t.Errorf("got %d allocations, want 1", got)
	}
}

func TestListenerGoneEndsItsAllocations(t *testing.T) {
	g := serveTest(t, nil)
	g.client("alice").allocate()
	next := g.again(func(c *Config) {
		c.Listeners = []Listener{{Address: freePort(t, serverIP), Protocol: turn.UDP}}
	})
	deleted := eventsOf[turn.AllocationDeleted](next.store)
	if len(deleted) != 1 || deleted[0].Reason != turn.ReasonListenerGone {
		t.Errorf("got %v, want one deleted with its listener", deleted)
	}
	if got := next.Allocations(); got != 0 {
		t.Errorf("got %d allocations, want 0", got)
	}
}

func TestOverdueAtStartExpiresWithEvents(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").allocate()
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	host, err := HostClock()
	if err != nil {
		t.Fatal(err)
	}
	next := g.again(func(c *Config) { c.Clock = shifted(host, 601*time.Second) })
	if got := eventsOf[turn.AllocationExpired](next.store); len(got) != 1 {
		t.Errorf("got %v, want one AllocationExpired", got)
	}
	if taken(t, c.relayed) {
		t.Error("the port of an expired allocation is bound")
	}
}

func TestUserRemovedWhileDownIsRevokedAtStart(t *testing.T) {
	g := serveTest(t, nil)
	g.client("alice").allocate()
	next := g.again(func(c *Config) { c.Settings.Gate, c.Settings.Digest = testGate("bob"), [32]byte{9} })
	deleted := eventsOf[turn.AllocationDeleted](next.store)
	if len(deleted) != 1 || deleted[0].Reason != turn.ReasonUserRemoved {
		t.Errorf("got %v, want the removed user's allocation deleted", deleted)
	}
	if got := next.Allocations(); got != 0 {
		t.Errorf("got %d allocations, want 0", got)
	}
}

func TestAnotherBootRebasesAndTellsOfTheClock(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	before := g.store.state().Allocation(1).Deadline.Uptime - g.store.state().Moment().Uptime
	host, err := HostClock()
	if err != nil {
		t.Fatal(err)
	}
	next := g.again(func(c *Config) {
		c.Clock = func() turn.Moment {
			m := host()
			m.Boot, m.Wall = turn.BootID{2}, m.Wall-int64(time.Hour)
			return m
		}
	})
	if got := eventsOf[turn.ClockWentBack](next.store); len(got) != 1 || got[0].Nanoseconds < uint64(59*time.Minute) {
		t.Errorf("got %v, want one ClockWentBack by an hour", got)
	}
	s := next.store.state()
	if got := s.Allocation(1).Deadline.Uptime - s.Moment().Uptime; got > before || got < before-time.Second {
		t.Errorf("got %v left in the new boot, want what was left: %v", got, before)
	}
	c.send(c.server, channelData(0x4000, []byte("on")))
	peer.want([]byte("on"))
}

func TestUsageGoesOnAcrossRestartsAndCountsNothingTwice(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	for round := range 3 {
		c.send(c.server, channelData(0x4000, []byte("12345")))
		peer.want([]byte("12345"))
		c.indicate(peer.addr, []byte("123"))
		peer.want([]byte("123"))
		peer.send(c.relayed, []byte("1"))
		c.want(channelData(0x4000, []byte("1")))
		if round == 1 { // a rest in between makes no event of its own
			g = g.again(nil)
		}
		g = g.again(nil)
	}
	a := g.store.state().Allocation(1)
	want := []turn.Usage{
		{Path: turn.PathUserspace, ToPeer: turn.Count{Packets: 3, Bytes: 9}},
		{
			Channel: 0x4000, Peer: peer.addr, Path: turn.PathUserspace,
			ToPeer: turn.Count{Packets: 3, Bytes: 15}, ToClient: turn.Count{Packets: 3, Bytes: 3},
		},
	}
	if !slices.Equal(a.Usage, want) {
		t.Errorf("got usage %+v, want %+v", a.Usage, want)
	}
	if got := len(eventsOf[turn.UsageRecorded](g.store)); got != 6 {
		t.Errorf("got %d usage events, want 6: two a round", got)
	}
}

func TestUsageOfAChannelThatEndsAndIsBoundAgain(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	for range 2 {
		c.send(c.server, channelData(0x4000, []byte("12")))
		peer.want([]byte("12"))
		if err := g.Record(ctxFor(t), turn.ChannelRevoked{Allocation: 1, Channel: 0x4000, Reason: turn.ReasonOperator}); err != nil {
			t.Fatal(err)
		}
		c.bind(0x4000, peer.addr)
	}
	eventually(t, "the last usage is recorded", func() bool {
		used := eventsOf[turn.UsageRecorded](g.store)
		return len(used) == 2 && used[1].ToPeer == (turn.Count{Packets: 2, Bytes: 4})
	})
}

func TestStopIsClean(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").allocate()
	if !g.Ready() {
		t.Error("a running server is not ready")
	}
	wrong := g.client("alice").greet()
	wrong.password = "wrong"
	wrong.do(401, stun.MethodAllocate, udpTransport)
	if err := g.stop(); err != nil {
		t.Fatalf("stop: %v", err)
	}
	if g.Ready() {
		t.Error("a stopped server says that it is ready")
	}
	if err := g.View(ctxFor(t), func(*turn.State) {}); !errors.Is(err, ErrStopped) {
		t.Errorf("got %v from a stopped server, want %v", err, ErrStopped)
	}
	events := g.store.events()
	if last, ok := events[len(events)-1].(turn.ServerStopped); !ok || last.Signal != "test" {
		t.Errorf("got %v last in the log, want ServerStopped", events[len(events)-1])
	}
	if got := eventsOf[turn.AttemptsRefused](g.store); len(got) != 1 || got[0].Attempts[0].Code != 401 {
		t.Errorf("got %v, want the refusal counted", got)
	}
	if taken(t, c.relayed) || taken(t, g.addr) {
		t.Error("a stopped server has its sockets open")
	}
}

// shifted is clock with its boot-time and wall clocks ahead.
func shifted(clock func() turn.Moment, by time.Duration) func() turn.Moment {
	return func() turn.Moment {
		m := clock()
		m.Uptime, m.Wall = m.Uptime+by, m.Wall+int64(by)
		return m
	}
}
