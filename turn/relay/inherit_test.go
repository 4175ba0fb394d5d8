package relay

import (
	"encoding/binary"
	"net/netip"
	"sync"
	"testing"

	"turnstone/turn"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// left stops g and yields the sockets that it leaves.
func (g *rig) leaveAll() []Socket {
	g.t.Helper()
	g.Leave()
	if err := g.stop(); err != nil {
		g.t.Fatal(err)
	}
	list := g.Sockets()
	g.t.Cleanup(func() {
		for _, k := range list {
			_ = unix.Close(k.FD) // those that a server took are its own to close
		}
	})
	return list
}

// handed are duplicates of list, for a server to take.
func handed(t *testing.T, list []Socket) []Socket {
	t.Helper()
	out := make([]Socket, len(list))
	for i, k := range list {
		fd, err := unix.FcntlInt(uintptr(k.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Fatal(err)
		}
		k.FD = fd
		out[i] = k
	}
	return out
}

func TestInheritedSocketsLoseNothing(t *testing.T) {
	const packets = 200 // each way, while nobody reads
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	list := g.leaveAll()
	if want := len(g.shards) + 1; len(list) != want {
		t.Fatalf("got %d sockets left, want %d: one of the listener for each shard, and one relayed", len(list), want)
	}
	payload := func(i int) []byte { return binary.BigEndian.AppendUint32(make([]byte, 96), uint32(i)) }
	for i := range packets {
		c.send(c.server, channelData(0x4000, payload(i)))
		peer.send(c.relayed, payload(i))
	}
	next := g.again(func(c *Config) { c.Inherited = handed(t, list) })
	for i := range packets {
		peer.want(payload(i))
		c.want(channelData(0x4000, payload(i)))
	}
	c.do(0, stun.MethodRefresh)
	if got := next.log.count("a socket of the process before"); got != 0 {
		t.Errorf("got %d sockets that nobody has, want none", got)
	}
}

func TestFewerShardsServeAllInheritedSockets(t *testing.T) {
	g := serveTest(t, func(c *Config) { c.Shards = 4 })
	clients := make([]*client, 16) // of many ports, so that each socket has some
	peer := peerOf(t)
	for i := range clients {
		clients[i] = g.client("alice").allocate()
		clients[i].bind(0x4000, peer.addr)
	}
	list := g.leaveAll()
	g.again(func(c *Config) { c.Inherited, c.Shards = handed(t, list), 1 })
	for _, c := range clients {
		c.send(c.server, channelData(0x4000, []byte("ping")))
		peer.want([]byte("ping"))
	}
	for _, c := range clients {
		peer.send(c.relayed, []byte("pong"))
		c.want(channelData(0x4000, []byte("pong")))
	}
}

func TestOneInheritedSocketIsSharedByShards(t *testing.T) {
	at := netip.AddrPortFrom(serverIP, freePort(t, serverIP).Port())
	fd, err := bindUDP(at, 0, false) // as the service manager would: nobody may bind beside it
	if err != nil {
		t.Fatal(err)
	}
	g := serveTest(t, func(c *Config) {
		c.Listeners, c.Shards = []Listener{{Address: at, Protocol: turn.UDP}}, 3
		c.Inherited = []Socket{{Address: at, FD: fd}}
	})
	peer := peerOf(t)
	for range 8 {
		c := g.client("alice").allocate()
		c.bind(0x4000, peer.addr)
		c.send(c.server, channelData(0x4000, []byte("ping")))
		peer.send(peer.want([]byte("ping")), []byte("pong"))
		c.want(channelData(0x4000, []byte("pong")))
	}
}

func TestInheritedSocketsThatDoNotFitAreClosed(t *testing.T) {
	g := serveTest(t, nil)
	stays, ends := g.client("alice").allocate(), g.client("bob").allocate()
	list := g.leaveAll()
	k := &keeperFake{}
	g.again(func(c *Config) {
		c.Inherited, c.Keeper = handed(t, list), k
		c.Settings.Gate = testGate("alice") // bob is gone
	})
	for _, l := range list {
		_ = unix.Close(l.FD)
	}
	if taken(t, ends.relayed) {
		t.Error("the socket of an allocation that has ended is open")
	}
	if !taken(t, stays.relayed) {
		t.Error("the socket of an allocation that goes on is closed")
	}
	forgotten := 0
	for _, f := range k.list("forget") {
		if f.Address == ends.relayed && f.Relayed {
			forgotten++
		}
	}
	if forgotten != 1 {
		t.Errorf("got %v forgotten, want the socket of %v", k.list("forget"), ends.relayed)
	}
}

// keeperFake notes what it is told.
type keeperFake struct {
	mu    sync.Mutex // guards calls
	calls map[string][]Socket
}

func (k *keeperFake) note(what string, s Socket) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.calls == nil {
		k.calls = map[string][]Socket{}
	}
	k.calls[what] = append(k.calls[what], s)
}

func (k *keeperFake) Keep(s Socket)   { k.note("keep", s) }
func (k *keeperFake) Forget(s Socket) { k.note("forget", s) }

func (k *keeperFake) list(what string) []Socket {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.calls[what]
}

func TestKeeperKeepsWhatIsServed(t *testing.T) {
	k := &keeperFake{}
	g := serveTest(t, func(c *Config) { c.Keeper = k })
	eventually(t, "the server runs", g.Ready)
	if got := k.list("keep"); len(got) != len(g.shards) || got[0].Address != g.addr || got[0].Relayed {
		t.Errorf("at the start: got %v kept, want the listener for each of %d shards", got, len(g.shards))
	}
	c, d := g.client("alice").allocate(), g.client("bob").allocate()
	if got := k.list("keep"); len(got) != len(g.shards)+2 || got[len(got)-1].Address != d.relayed || !got[len(got)-1].Relayed {
		t.Errorf("got %v kept, want the two relayed addresses too", got)
	}
	c.do(0, stun.MethodRefresh, lifetime(0))
	eventually(t, "what ended is forgotten", func() bool { return len(k.list("forget")) == 1 })
	if got := k.list("forget")[0]; got.Address != c.relayed {
		t.Errorf("got %v forgotten, want %v", got.Address, c.relayed)
	}
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	if got := k.list("forget"); len(got) != 1 {
		t.Errorf("when the process ends: got %v forgotten, want nothing more", got[1:])
	}
}
