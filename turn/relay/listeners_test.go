package relay

import (
	"errors"
	"net"
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// at is a client of another listener of g.
func (g *rig) clientAt(user string, l Listener) *client {
	g.t.Helper()
	c := g.client(user)
	c.server = l.Address
	return c
}

// reloads has g serve at other listeners.
func (g *rig) reloads(list ...Listener) {
	g.t.Helper()
	s := testSettings()
	s.Listeners = list
	if err := g.Reload(ctxFor(g.t), s); err != nil {
		g.t.Fatalf("reload: %v", err)
	}
}

// open says whether somebody listens at l.
func open(t *testing.T, l Listener) bool {
	t.Helper()
	err := TryListen(l)
	if err != nil && !errors.Is(err, unix.EADDRINUSE) {
		t.Fatal(err)
	}
	return err != nil
}

func TestReloadAddsAListener(t *testing.T) {
	g := serveTest(t, nil)
	first, second := g.config.Listeners[0], Listener{Address: freePort(t, serverIP), Protocol: turn.UDP}
	third := Listener{Address: second.Address, Protocol: turn.TCP}
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	g.reloads(first, second, third)
	d := g.clientAt("bob", second).allocate()
	d.bind(0x4000, peer.addr)
	for _, one := range []*client{c, d} {
		one.send(one.server, channelData(0x4000, []byte("ping")))
		from := peer.want([]byte("ping"))
		peer.send(from, []byte("pong"))
		one.want(channelData(0x4000, []byte("pong")))
	}
	conn, err := net.Dial("tcp", third.Address.String())
	if err != nil {
		t.Fatalf("the listener over TCP: %v", err)
	}
	conn.Close()
}

func TestReloadKeepsAListenerForItsAllocations(t *testing.T) {
	g := serveTest(t, nil)
	first, second := g.config.Listeners[0], Listener{Address: freePort(t, serverIP), Protocol: turn.UDP}
	c, stranger, peer := g.client("alice").allocate(), g.client("bob"), peerOf(t)
	c.bind(0x4000, peer.addr)
	if code(stranger.exchange(stranger.message(stun.MethodBinding))) != 0 {
		t.Fatal("a stranger is not answered before the reload")
	}
	g.reloads(second)
	if got := g.Retired(); len(got) != 1 || got[0] != first {
		t.Errorf("retired: got %v, want %v", got, first)
	}
	stranger.send(first.Address, stranger.message(stun.MethodBinding).Raw)
	stranger.wantNothing()
	c.do(0, stun.MethodRefresh)
	c.send(c.server, channelData(0x4000, []byte("on")))
	peer.want([]byte("on"))
	c.do(0, stun.MethodRefresh, lifetime(0))
	eventually(t, "the listener is closed once nothing is left", func() bool { return !open(t, first) })
	if got := g.Retired(); len(got) != 0 {
		t.Errorf("retired: got %v, want nothing", got)
	}
	g.clientAt("bob", second).allocate()
	g.reloads(first, second) // and back
	g.client("alice").allocate()
}

func TestRetiredListenerComesBack(t *testing.T) {
	g := serveTest(t, nil)
	first, second := g.config.Listeners[0], Listener{Address: freePort(t, serverIP), Protocol: turn.UDP}
	c := g.client("alice").allocate()
	g.reloads(second)
	g.reloads(second, first)
	c.do(0, stun.MethodRefresh, lifetime(0))
	g.client("bob").allocate() // at once: it was not closed
	if got := g.Retired(); len(got) != 0 {
		t.Errorf("retired: got %v, want nothing", got)
	}
}

func TestReloadWithAListenerThatIsTakenChangesNothing(t *testing.T) {
	g := serveTest(t, nil)
	free := Listener{Address: freePort(t, serverIP), Protocol: turn.UDP}
	taken := Listener{Address: listenUDP(t, netip.AddrPortFrom(serverIP, 0)).addr, Protocol: turn.UDP}
	s := testSettings()
	s.Listeners, s.Gate, s.Digest = []Listener{free, taken}, testGate("carol"), [32]byte{7}
	if err := g.Reload(ctxFor(t), s); !errors.Is(err, unix.EADDRINUSE) {
		t.Fatalf("reload: got %v, want %v", err, unix.EADDRINUSE)
	}
	if open(t, free) {
		t.Error("the other listener stays open")
	}
	g.client("alice").allocate()
	if got := eventsOf[turn.ConfigChanged](g.store); len(got) != 0 {
		t.Errorf("got %v in the log, want nothing", got)
	}
}

func TestReloadTellsTheLogWhatChanged(t *testing.T) {
	g := serveTest(t, nil)
	s := testSettings()
	s.Digest, s.Changed = [32]byte{9}, []turn.SettingChange{{Setting: "realm", Before: `"a"`, After: `"b"`}}
	if err := g.Reload(ctxFor(t), s); err != nil {
		t.Fatal(err)
	}
	got := eventsOf[turn.SettingsChanged](g.store)
	if len(got) != 1 || len(got[0].Changes) != 1 || got[0].Changes[0] != s.Changed[0] {
		t.Errorf("got %v, want one with %v", got, s.Changed)
	}
}

func TestReloadChangesTheCap(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	s := testSettings()
	s.Caps = turn.Caps{turn.ScopeAllocation: turn.NewCap(1)}
	if err := g.Reload(ctxFor(t), s); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the cap drops", func() bool {
		c.send(c.server, channelData(0x4000, make([]byte, 1000)))
		return g.Counters().Drops[DropMeter.String()] > 0
	})
}

func TestAlive(t *testing.T) {
	g := serveTest(t, nil)
	if err := g.Alive(time.Second); err != nil {
		t.Errorf("a server that runs: %v", err)
	}
	stuck, end := make(chan struct{}), make(chan struct{})
	go func() { _ = g.View(ctxFor(t), func(*turn.State) { close(stuck); <-end }) }()
	<-stuck
	var err *StuckError
	if got := g.Alive(20 * time.Millisecond); !errors.As(got, &err) || err.Part != "the writer" {
		t.Errorf("a writer that does not go on: got %v, want a StuckError of the writer", got)
	}
	close(end)
	eventually(t, "it lives again", func() bool { return g.Alive(time.Second) == nil })
	h := g.shards[0]
	h.turns.Add(1) // it has begun a round that does not end
	if got := g.Alive(20 * time.Millisecond); !errors.As(got, &err) {
		t.Errorf("a loop that does not go round: got %v, want a StuckError", got)
	}
	h.turns.Add(1)
}
