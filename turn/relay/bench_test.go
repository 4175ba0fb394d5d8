package relay

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstone/store"
	"turnstone/turn"

	"github.com/pion/stun/v3"
	"github.com/rs/zerolog"
)

// benchClients is how many clients ask at once.
const benchClients = 256

// durableRig is a server on a real log in a directory of the test.
func durableRig(tb testing.TB) *rig {
	tb.Helper()
	l, err := store.Open(tb.TempDir(), store.Options{})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { l.Close() })
	return serveTest(tb, func(c *Config) { c.Log, c.State, c.Logger = l, l.State(), zerolog.Nop() })
}

// fastClient asks with as little work as can be: the machine is the server's.
type fastClient struct {
	conn      *net.UDPConn
	nonce     string
	integrity stun.MessageIntegrity
	message   *stun.Message
	buffer    [2048]byte
}

func (g *rig) fastClient() *fastClient {
	g.t.Helper()
	conn, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(serverIP, 0)), net.UDPAddrFromAddrPort(g.addr))
	if err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { conn.Close() })
	c := &fastClient{conn: conn, integrity: stun.NewLongTermIntegrity("alice", "example.org", "secret"), message: stun.New()}
	c.ask(g.t, stun.MethodAllocate)
	return c
}

// ask sends a request until it is answered, and yields how long that took.
func (c *fastClient) ask(tb testing.TB, method stun.Method, attributes ...stun.Setter) time.Duration {
	set := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attributes...)
	if c.nonce != "" {
		set = append(set, stun.NewUsername("alice"), stun.NewRealm("example.org"), stun.NewNonce(c.nonce), c.integrity)
	}
	if err := c.message.Build(set...); err != nil {
		tb.Error(err)
		return 0
	}
	begun := time.Now()
	for range 20 {
		if _, err := c.conn.Write(c.message.Raw); err != nil {
			tb.Error(err)
			return 0
		}
		if err := c.conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			tb.Error(err)
		}
		n, err := c.conn.Read(c.buffer[:])
		if err != nil {
			continue
		}
		took := time.Since(begun)
		if c.nonce == "" {
			m := &stun.Message{Raw: slices.Clone(c.buffer[:n])}
			var nonce stun.Nonce
			if err := m.Decode(); err != nil || nonce.GetFrom(m) != nil {
				tb.Errorf("got no nonce")
			}
			c.nonce = nonce.String()
		} else if class := c.buffer[0]; class != 1 {
			tb.Errorf("got a refusal to %v", method)
		}
		return took
	}
	tb.Errorf("got no answer to %v", method)
	return 0
}

// together has 256 clients do b.N things, and reports the rate and the 99th percentile.
func together(b *testing.B, do func(client, i int) time.Duration) {
	b.Helper()
	var next atomic.Int64
	took := make([][]time.Duration, benchClients)
	var all sync.WaitGroup
	b.ResetTimer()
	for w := range benchClients {
		all.Go(func() {
			for i := int(next.Add(1)) - 1; i < b.N; i = int(next.Add(1)) - 1 {
				took[w] = append(took[w], do(w, i))
			}
		})
	}
	all.Wait()
	b.StopTimer()
	flat := slices.Sorted(slices.Values(slices.Concat(took...)))
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "ops/s")
	b.ReportMetric(float64(flat[len(flat)*99/100].Microseconds())/1000, "p99-ms")
}

func BenchmarkAllocate(b *testing.B) {
	g := durableRig(b)
	clients := make([]*fastClient, b.N)
	for i := range clients {
		clients[i] = g.fastClient()
	}
	together(b, func(_, i int) time.Duration { return clients[i].ask(b, stun.MethodAllocate, udpTransport) })
	reportBatches(b, g)
}

func BenchmarkChannelBind(b *testing.B) {
	g := durableRig(b)
	clients := make([]*fastClient, benchClients)
	for i := range clients {
		clients[i] = g.fastClient()
		clients[i].ask(b, stun.MethodAllocate, udpTransport)
	}
	together(b, func(c, i int) time.Duration {
		n := turn.ChannelFirst + turn.ChannelNumber(i/benchClients%1000)
		peer := netip.AddrPortFrom(peerIP, 10000+uint16(n))
		return clients[c].ask(b, stun.MethodChannelBind, channelNumber(n), peerAddress(peer))
	})
	reportBatches(b, g)
}

// reportBatches reports how many events share a commit.
func reportBatches(b *testing.B, g *rig) {
	c := g.Counters()
	b.ReportMetric(float64(c.Events)/float64(c.Commits), "events/commit")
}
