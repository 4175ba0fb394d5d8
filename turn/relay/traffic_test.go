package relay

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// trafficVariable holds a traffic as JSON where the test binary runs as a process of
// clients and peers for a benchmark, whose CPU is not the server's.
const trafficVariable = "TURNSTONE_TEST_TRAFFIC"

// traffic is what clients send to peers that echo it.
type traffic struct {
	Server  netip.AddrPort
	Clients int
	Rounds  int // of each client
	Window  int // datagrams in flight
	Size    int // bytes of each
	Gap     time.Duration
}

// trafficResult is what became of it.
type trafficResult struct {
	Echoed, Lost int
	P50, P99     time.Duration // of a round trip: twice through the relay
	Elapsed      time.Duration
}

func TestTrafficOfManyClients(t *testing.T) {
	if text := os.Getenv(trafficVariable); text != "" {
		var f traffic
		if err := json.Unmarshal([]byte(text), &f); err != nil {
			t.Fatal(err)
		}
		out, err := json.Marshal(f.run(t))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Printf("\nresult %s\n", out)
		return
	}
	g := serveTest(t, nil)
	f := traffic{Server: g.addr, Clients: 20, Rounds: 50, Window: 4, Size: 160}
	if r := f.run(t); r.Lost != 0 || r.Echoed != 4000 {
		t.Errorf("got %+v, want 4000 echoed and none lost", r)
	}
	c := g.Counters()
	if c.ToPeerPackets != 4000 || c.ToClientPackets != 4000 {
		t.Errorf("got %d and %d packets relayed, want 4000 each", c.ToPeerPackets, c.ToClientPackets)
	}
}

func (f traffic) run(t testing.TB) (out trafficResult) {
	clients := make([]*client, f.Clients)
	var echoes sync.WaitGroup
	for i := range clients {
		peer := peerOf(t)
		echoes.Go(func() { peer.echo() })
		c := &client{endpointUDP: listenUDP(t, netip.AddrPortFrom(serverIP, 0)), server: f.Server, user: "alice", password: "secret"}
		c.allocate().bind(0x4000, peer.addr)
		clients[i] = c
	}
	var mu sync.Mutex // guards out and trips
	var trips []time.Duration
	var all sync.WaitGroup
	begun := time.Now()
	for _, c := range clients {
		all.Go(func() {
			took, lost := c.talk(f)
			mu.Lock()
			defer mu.Unlock()
			trips = append(trips, took...)
			out.Lost += lost
		})
	}
	all.Wait()
	out.Elapsed = time.Since(begun)
	slices.Sort(trips)
	out.Echoed = len(trips)
	if len(trips) > 0 {
		out.P50, out.P99 = trips[len(trips)/2], trips[len(trips)*99/100]
	}
	return out
}

// echo sends back what comes until the socket is closed.
func (e *endpointUDP) echo() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := e.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		if _, err := e.conn.WriteToUDPAddrPort(b[:n], from); err != nil {
			return
		}
	}
}

// talk sends window after window by channel 0x4000.
func (c *client) talk(f traffic) (took []time.Duration, lost int) {
	frame := channelData(0x4000, make([]byte, f.Size))
	b := make([]byte, 1<<16)
	took = make([]time.Duration, 0, f.Rounds*f.Window)
	for range f.Rounds {
		sent := time.Now()
		for range f.Window {
			if _, err := c.conn.WriteToUDPAddrPort(frame, c.server); err != nil {
				c.t.Error(err)
				return took, lost
			}
		}
		if err := c.conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
			c.t.Error(err)
		}
		for i := range f.Window {
			n, _, err := c.conn.ReadFromUDPAddrPort(b)
			if err != nil {
				lost += f.Window - i
				break
			}
			if n != f.Size+turn.ChannelHeader {
				c.t.Errorf("got %d bytes, want %d", n, f.Size+turn.ChannelHeader)
			}
			took = append(took, time.Since(sent))
		}
		if f.Gap > 0 {
			time.Sleep(f.Gap)
		}
	}
	return took, lost
}

// apart runs f in a process of its own.
func (f traffic) apart(t testing.TB) (r trafficResult) {
	t.Helper()
	text, err := json.Marshal(f)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestTrafficOfManyClients$", "-test.v")
	cmd.Env = append(os.Environ(), trafficVariable+"="+string(text))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for line := range bytes.Lines(out) {
		if text, ok := bytes.CutPrefix(line, []byte("result ")); ok {
			if err := json.Unmarshal(text, &r); err != nil {
				t.Fatal(err)
			}
		}
	}
	return r
}

// processorTime is what this process has used of the CPUs.
func processorTime(t testing.TB) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRelay reports the server's CPU for a datagram relayed either way, and the
// 99th percentile of a round trip, with clients and peers in another process.
func BenchmarkRelay(b *testing.B) {
	for _, load := range []struct {
		name string
		traffic
	}{
		{"flood", traffic{Clients: 100, Window: 8, Size: 160}},
		{"burst", traffic{Clients: 4, Window: 32, Size: 1200}},
		{"steady", traffic{Clients: 100, Window: 1, Size: 160, Gap: 20 * time.Millisecond}},
	} {
		b.Run(load.name, func(b *testing.B) {
			g := serveTest(b, nil)
			load.Server = g.addr
			load.Rounds = max(b.N/load.Clients/load.Window, 1)
			before := processorTime(b)
			r := load.apart(b)
			used := processorTime(b) - before
			c := g.Counters()
			b.ReportMetric(float64(used.Nanoseconds())/float64(c.ToPeerPackets+c.ToClientPackets), "cpu-ns/packet")
			b.ReportMetric(float64(r.P50.Microseconds()), "p50-us")
			b.ReportMetric(float64(r.P99.Microseconds()), "p99-us")
			b.ReportMetric(float64(r.Echoed)*2/r.Elapsed.Seconds(), "packets/s")
			b.ReportMetric(float64(r.Lost), "lost")
		})
	}
}
