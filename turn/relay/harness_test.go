package relay

import (
	"bytes"
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"turnstone/internal/testenv"
	"turnstone/turn"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

// Addresses of the tests, all of them this host: the relay's is guarded, the peers' are not.
var (
	serverIP = netip.MustParseAddr("127.0.0.1")
	relayIP  = netip.MustParseAddr("127.0.0.2")
	peerIP   = netip.MustParseAddr("127.0.0.3")
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// journal keeps the lines a server logs.
type journal struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (j *journal) Write(b []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.buf.Write(b)
}

func (j *journal) count(text string) int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Count(j.buf.String(), text)
}

// rig is a server under test with everything around it.
type rig struct {
	*Server
	t      testing.TB
	store  *memoryLog
	log    *journal
	config Config
	addr   netip.AddrPort
	cancel context.CancelFunc
	done   chan error
}

func testGate(users ...string) *turn.Gate {
	c := turn.GateConfig{Realm: "example.org", NonceLifetime: time.Hour, NonceKey: [32]byte{1}, CredentialGrace: -1}
	for _, u := range users {
		c.Users = append(c.Users, turn.User{Name: u, Password: "secret"})
	}
	return turn.NewGate(c)
}

func testRules() turn.Rules {
	return turn.Rules{
		Policy:    turn.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		Relays:    []turn.Relay{{IP: relayIP, External: relayIP}},
		FirstPort: 20000, LastPort: 60000, MaxPermissions: 1024, MaxChannels: 1024,
		DefaultLifetime: 10 * time.Minute, MaxLifetime: time.Hour, LastChannel: turn.ChannelLastRFC5766,
	}
}

func testSettings() Settings {
	return Settings{Gate: testGate("alice", "bob"), Rules: testRules(), UnauthRate: 100, UnauthBurst: 1000}
}

// freePort is [testenv.Port].
func freePort(t testing.TB, ip netip.Addr) netip.AddrPort {
	t.Helper()
	a, err := testenv.Port(ip)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// newRig makes a server over real sockets with a log in memory, which is not running yet.
func newRig(t testing.TB, adjust func(*Config)) *rig {
	t.Helper()
	g := &rig{t: t, store: newMemoryLog(), log: &journal{}}
	g.config = Config{
		Settings: testSettings(), Log: g.store, Logger: zerolog.New(g.log), Version: "test", PID: 1, Shards: 2,
	}
	g.config.Listeners = []Listener{{Address: freePort(t, serverIP), Protocol: turn.UDP}}
	if adjust != nil {
		adjust(&g.config)
	}
	if l, ok := g.config.Log.(*memoryLog); ok {
		g.store = l
	}
	if g.config.State == nil {
		g.config.State = g.store.state()
	}
	s, err := New(g.config)
	if err != nil {
		t.Fatal(err)
	}
	g.Server, g.addr = s, g.config.Listeners[0].Address
	return g
}

// run serves until the test or stop ends it.
func (g *rig) run() *rig {
	ctx, cancel := context.WithCancel(context.Background())
	g.cancel, g.done = cancel, make(chan error, 1)
	go func() { g.done <- g.Run(ctx, func() string { return "test" }) }()
	g.t.Cleanup(func() { _ = g.stop() })
	return g
}

// stop ends the server and yields what Run returned; again, nil.
func (g *rig) stop() error {
	g.t.Helper()
	if g.cancel == nil {
		return nil
	}
	g.cancel()
	g.cancel = nil
	select {
	case err := <-g.done:
		return err
	case <-time.After(20 * time.Second):
		g.t.Fatal("the server does not stop")
		return nil
	}
}

func serveTest(t testing.TB, adjust func(*Config)) *rig {
	t.Helper()
	return newRig(t, adjust).run()
}

// again stops g and starts a server on its log.
func (g *rig) again(adjust func(*Config)) *rig {
	g.t.Helper()
	if err := g.stop(); err != nil {
		g.t.Fatalf("stop: %v", err)
	}
	return serveTest(g.t, func(c *Config) {
		logger := c.Logger
		*c = g.config
		c.State, c.Logger = nil, logger
		if adjust != nil {
			adjust(c)
		}
	})
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it does not come to pass that %s", what)
		}
	}
}

func ctxFor(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// flow is the flow of c.
func (g *rig) flow(c *client) *flow {
	g.t.Helper()
	f := g.listeners()[0].seats.get(c.addr).of()
	if f == nil {
		g.t.Fatalf("%v has no flow", c.addr)
	}
	return f
}
