package relay

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v3"
	"github.com/pires/go-proxyproto"
)

// write sends b on the stream.
func (e *endpointUDP) write(b []byte) {
	e.t.Helper()
	if _, err := e.stream.Write(b); err != nil {
		e.t.Fatalf("write to the stream: %v", err)
	}
}

// read is the next frame of the stream, as it was written.
func (e *endpointUDP) read(wait time.Duration) ([]byte, error) {
	if err := e.stream.SetReadDeadline(time.Now().Add(wait)); err != nil {
		return nil, err
	}
	if _, ok := e.stream.(*dtls.Conn); ok {
		b := make([]byte, 1<<16)
		n, err := e.stream.Read(b)
		return b[:n:n], err
	}
	b := make([]byte, 4)
	if _, err := io.ReadFull(e.stream, b); err != nil {
		return nil, err
	}
	n, err := turn.StreamFrame(append(b, 0x21, 0x12, 0xa4, 0x42)[:4])
	if err != nil {
		return nil, err
	}
	b = append(b[:4], make([]byte, n-4)...)
	_, err = io.ReadFull(e.stream, b[4:])
	return b, err
}

// certificateFor is a certificate that says nothing but a name.
func certificateFor(t testing.TB, name string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return certificateOf(t, name, key)
}

// certificateOf is certificateFor with a key.
func certificateOf(t testing.TB, name string, key crypto.Signer) tls.Certificate {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: []string{name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// protocols are those of a rig that serves all of them, in the order of its listeners.
var protocols = []turn.Protocol{turn.UDP, turn.TCP, turn.TLS, turn.DTLS}

// withStreams has a server listen on every protocol.
func withStreams(t testing.TB) func(*Config) {
	certificate := certificateFor(t, "turn.example.org")
	return func(c *Config) {
		c.Listeners = nil
		for _, p := range protocols {
			c.Listeners = append(c.Listeners, Listener{Address: freePort(t, serverIP), Protocol: p})
		}
		c.Streams.TLS = &tls.Config{
			NextProtos:     []string{"stun.turn", "stun.nat-discovery"},
			GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &certificate, nil },
		}
	}
}

// listens is the address of the listener of p.
func (g *rig) listens(p turn.Protocol) netip.AddrPort {
	return g.config.Listeners[slices.Index(protocols, p)].Address
}

// dial connects to the listener of p.
func (g *rig) dial(p turn.Protocol) net.Conn {
	g.t.Helper()
	c, err := g.tryDial(p)
	if err != nil {
		g.t.Fatalf("dial %v: %v", p, err)
	}
	g.t.Cleanup(func() { _ = c.Close() })
	return c
}

func (g *rig) tryDial(p turn.Protocol) (net.Conn, error) {
	to := g.listens(p)
	switch p {
	case turn.DTLS:
		c, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(to), dtls.WithInsecureSkipVerify(true))
		if err != nil {
			return nil, err
		}
		return c, c.HandshakeContext(ctxFor(g.t))
	case turn.TLS:
		return tls.Dial("tcp", to.String(), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test made the certificate
	}
	return net.Dial("tcp", to.String())
}

// streamClient is a client on a stream of p.
func (g *rig) streamClient(p turn.Protocol) *client {
	g.t.Helper()
	return g.clientOn(g.dial(p), p)
}

func (g *rig) clientOn(conn net.Conn, p turn.Protocol) *client {
	at := netip.MustParseAddrPort(conn.LocalAddr().String())
	return &client{endpointUDP: &endpointUDP{t: g.t, stream: conn, addr: at}, server: g.listens(p), user: "alice", password: "secret"}
}

func TestStreamsRelay(t *testing.T) {
	g := serveTest(t, withStreams(t))
	for _, p := range protocols[1:] {
		t.Run(p.String(), func(t *testing.T) {
			c, peer := g.streamClient(p).allocate(), peerOf(t)
			c.permit(peer.addr)
			c.indicate(peer.addr, []byte("send"))
			if from := peer.want([]byte("send")); from != c.relayed {
				t.Errorf("got it from %v, want %v", from, c.relayed)
			}
			peer.send(c.relayed, []byte("data"))
			c.wantData(peer.addr, []byte("data"))
			c.bind(0x4000, peer.addr)
			for _, size := range []int{0, 1, 2, 3, 4, 5, 1200, 8000, 60000} {
				if p == turn.DTLS && size > 8000 {
					continue // the client's library takes no more
				}
				data := make([]byte, size)
				_, _ = rand.Read(data)
				c.send(c.server, turn.AppendChannelData(nil, 0x4000, data))
				peer.want(data)
				peer.send(c.relayed, data)
				c.want(turn.AppendChannelData(nil, 0x4000, data))
			}
			c.do(0, stun.MethodRefresh, lifetime(0))
			c.send(c.server, turn.AppendChannelData(nil, 0x4000, []byte("late")))
			peer.wantNothing()
			c.allocate() // the stream goes on
		})
	}
}

func TestStreamIsReadAsItComes(t *testing.T) {
	g := serveTest(t, withStreams(t))
	c, peer := g.streamClient(turn.TCP).allocate(), peerOf(t)
	if err := peer.conn.SetReadBuffer(4 << 20); err != nil {
		t.Fatal(err)
	}
	c.bind(0x4000, peer.addr)
	source := mrand.New(mrand.NewPCG(7, 7)) //nolint:gosec // a test
	var stream []byte
	var want [][]byte
	for i := range 400 {
		if i%10 == 9 {
			stream = append(stream, c.message(stun.MethodRefresh).Raw...)
			continue
		}
		data := bytes.Repeat([]byte{byte(i)}, source.IntN(200))
		stream = append(stream, turn.AppendChannelData(nil, 0x4000, data)...)
		want = append(want, data)
	}
	go func() {
		for len(stream) > 0 {
			n := min(1+source.IntN(500), len(stream))
			if source.IntN(4) == 0 {
				n = min(1, len(stream))
			}
			_, _ = c.stream.Write(stream[:n])
			stream = stream[n:]
		}
	}()
	for i, data := range want {
		if got, _ := peer.receive(5 * time.Second); !bytes.Equal(got, data) {
			t.Fatalf("frame %d: got %x, want %x; %+v", i, got, data, g.Counters())
		}
	}
	for range 40 {
		if a := c.answer(5 * time.Second); a == nil || code(a) != 0 {
			t.Fatalf("got %v, want the answer to each refresh", a)
		}
	}
}

func TestAllocationEndsWithItsStream(t *testing.T) {
	g := serveTest(t, withStreams(t))
	for _, p := range protocols[1:] {
		t.Run(p.String(), func(t *testing.T) {
			c := g.streamClient(p).allocate()
			five := turn.FiveTuple{Client: c.addr, Server: c.server, Protocol: p}
			if err := c.stream.Close(); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the allocation ends", func() bool { return g.allocation(five) == nil })
			g.wantDeleted(turn.ReasonStreamClosed)
		})
	}
}

// allocation is the allocation of a five-tuple by the log, nil for none.
func (g *rig) allocation(t turn.FiveTuple) *turn.Allocation { return g.store.state().ByFiveTuple(t) }

// wantDeleted wants the last allocation that ended to have done so for a reason.
func (g *rig) wantDeleted(want turn.Reason) {
	g.t.Helper()
	ends := eventsOf[turn.AllocationDeleted](g.store)
	if len(ends) == 0 || ends[len(ends)-1].Reason != want {
		g.t.Errorf("got the ends %+v, want the last for the reason %v", ends, want)
	}
}

func TestHalfClosedStreamGetsItsAnswers(t *testing.T) {
	g := serveTest(t, withStreams(t))
	c := g.streamClient(turn.TCP).greet()
	for range 20 {
		c.write(c.message(stun.MethodAllocate, udpTransport).Raw)
	}
	if err := c.stream.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if a := c.answer(5 * time.Second); a == nil || (code(a) == 0) != (i == 0) {
			t.Fatalf("answer %d: got %v, want success once and 437 then", i, a)
		}
	}
	if b, err := c.read(5 * time.Second); !errors.Is(err, io.EOF) {
		t.Errorf("got %x (%v), want the end", b, err)
	}
	eventually(t, "the allocation ends", func() bool { return g.store.state().Len() == 0 })
}

func TestRestartEndsStreams(t *testing.T) {
	g := serveTest(t, withStreams(t))
	udp := (&client{endpointUDP: listenUDP(t, netip.AddrPortFrom(serverIP, 0)), server: g.listens(turn.UDP), user: "alice", password: "secret"}).allocate()
	var streams []*client
	for _, p := range protocols[1:] {
		streams = append(streams, g.streamClient(p).allocate())
	}
	g = g.again(nil)
	s := g.store.state()
	if s.Len() != 1 || s.ByRelayed(udp.relayed) == nil {
		t.Errorf("got %d allocations after the restart, want that of the UDP client", s.Len())
	}
	g.wantDeleted(turn.ReasonRestart)
	for _, c := range streams {
		if b, err := c.read(5 * time.Second); err == nil {
			t.Errorf("%v: got %x, want the end of the stream", c.server, b)
		}
	}
	udp.do(0, stun.MethodRefresh)
}

func TestKilledServerLeavesNoStreamBehind(t *testing.T) {
	g := serveTest(t, withStreams(t))
	for _, p := range protocols[1:] {
		g.streamClient(p).allocate()
	}
	left := g.store.copy() // as a killed server leaves it
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	after := serveTest(t, func(c *Config) {
		logger := c.Logger
		*c = g.config
		c.Log, c.State, c.Logger = left, left.state(), logger
	})
	if n := after.store.state().Len(); n != 0 {
		t.Errorf("got %d allocations after the start, want none", n)
	}
	after.wantDeleted(turn.ReasonRestart)
}

func TestStreamsAreCutOff(t *testing.T) {
	g := serveTest(t, func(c *Config) {
		withStreams(t)(c)
		c.Streams.Handshake, c.Streams.Idle, c.Streams.Stall = time.Second, 300*time.Millisecond, 300*time.Millisecond
	})
	ends := func(t *testing.T, c *client) {
		t.Helper()
		b, err := c.read(10 * time.Second)
		for err == nil {
			b, err = c.read(10 * time.Second)
		}
		if errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("got %x and no end, want the end of the stream", b)
		}
	}
	for name, first := range map[string][]byte{
		"Silent":          nil,
		"Noise":           bytes.Repeat([]byte{0xff}, 100),
		"HTTP":            []byte("GET / HTTP/1.1\r\n\r\n"),
		"HalfFrame":       {0, 1, 0, 8, 0x21, 0x12, 0xa4, 0x42},
		"NoMagicCookie":   {0, 1, 0, 0, 1, 2, 3, 4},
		"LengthNotOfSTUN": {0, 1, 0, 7, 0x21, 0x12, 0xa4, 0x42},
		"LongHello":       append([]byte{0, 1, 0xff, 0xf0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 20000)...),
		"LongChannelData": append([]byte{0x40, 0, 0xff, 0xf0}, make([]byte, 20000)...),
	} {
		t.Run(name, func(t *testing.T) {
			c := g.streamClient(turn.TCP)
			c.t = t
			c.write(first)
			ends(t, c)
		})
	}
	t.Run("NoHandshake", func(t *testing.T) {
		conn, err := net.Dial("tcp", g.listens(turn.TLS).String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		ends(t, g.clientOn(conn, turn.TLS))
	})
	for _, p := range []turn.Protocol{turn.TLS, turn.DTLS} {
		t.Run("Silent/"+p.String(), func(t *testing.T) {
			c := g.streamClient(p)
			c.t = t
			ends(t, c)
		})
	}
	t.Run("NoHandshake/dtls", func(t *testing.T) {
		refused := g.Counters().StreamsRefused
		e, hello := g.proven()
		e.send(g.listens(turn.DTLS), hello)
		e.wantServerHello()
		eventually(t, "the handshake is given up", func() bool { return g.Counters().StreamsRefused > refused && g.crowd.sources() == 0 })
	})
	t.Run("HalfAHello/dtls", func(t *testing.T) {
		e, hello := g.proven()
		e.send(g.listens(turn.DTLS), partsOf(hello, [2]int{0, 60})[0])
		partials := &g.dtlsListener().partials
		eventually(t, "the message is put together", func() bool { return partials.len() == 1 })
		eventually(t, "it is given up", func() bool { return partials.len() == 0 && g.crowd.sources() == 0 })
	})
	t.Run("NothingReads", func(t *testing.T) {
		c, peer := g.streamClient(turn.TCP).allocate(), peerOf(t)
		if err := c.stream.(*net.TCPConn).SetReadBuffer(4096); err != nil {
			t.Fatal(err)
		}
		c.bind(0x4000, peer.addr)
		data := make([]byte, 1200)
		eventually(t, "the stream is cut off", func() bool {
			for range 100 {
				peer.send(c.relayed, data)
			}
			return g.Counters().StreamsCutOff > 0
		})
		if g.Counters().Drops[DropBacklog.String()] == 0 {
			t.Error("got no drop for want of room, want some before the stream is cut off")
		}
		eventually(t, "its allocation ends", func() bool { return g.store.state().Len() == 0 })
	})
	t.Run("WithAllocation", func(t *testing.T) {
		c := g.streamClient(turn.TCP).allocate()
		if b, err := c.read(time.Second); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("got %x (%v) on a silent stream with an allocation, want it to go on", b, err)
		}
		c.do(0, stun.MethodRefresh, lifetime(0))
		ends(t, c)
	})
}

// TestClientsThatLeaveAreNotCutOff has clients go away while data is on its way to them.
func TestClientsThatLeaveAreNotCutOff(t *testing.T) {
	g := serveTest(t, withStreams(t))
	data := make([]byte, 1200)
	for range 30 {
		c, peer := g.streamClient(turn.TCP).allocate(), peerOf(t)
		c.bind(0x4000, peer.addr)
		for range 20 {
			peer.send(c.relayed, data)
		}
		_ = c.stream.Close() // with a reset, for what was not read
		eventually(t, "its allocation ends", func() bool {
			peer.send(c.relayed, data)
			return g.store.state().Len() == 0
		})
	}
	if n := g.Counters().StreamsCutOff; n != 0 {
		t.Errorf("got %d streams cut off, want none", n)
	}
}

func TestStreamsAreBounded(t *testing.T) {
	g := serveTest(t, func(c *Config) {
		withStreams(t)(c)
		c.Streams.Max, c.Streams.MaxIdle = 4, 2
	})
	alive := func(c *client) bool {
		c.write(c.message(stun.MethodBinding).Raw)
		b, _ := c.read(5 * time.Second)
		return b != nil
	}
	open := func() *client { return g.streamClient(turn.TCP) }
	refused := func(c *client) bool {
		_, err := c.read(5 * time.Second)
		return err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
	}
	a, b := open(), open()
	if !alive(a) || !alive(b) {
		t.Fatal("got no answer on a stream within the bounds")
	}
	if !refused(open()) {
		t.Fatal("a third stream without an allocation is open, want 2 at most")
	}
	eventually(t, "the third is forgotten", func() bool { return g.crowd.size() == 2 })
	a.allocate()
	b.allocate()
	c := open()
	d := open()
	if !alive(c) || !alive(d) {
		t.Fatal("those with an allocation count as streams without")
	}
	if !refused(open()) {
		t.Fatal("a fifth stream is open, want 4 at most")
	}
	a.stream.Close()
	eventually(t, "a stream that ends makes room", func() bool { return g.crowd.size() < 4 })
	b.do(0, stun.MethodRefresh, lifetime(0))
	c.stream.Close()
	eventually(t, "another makes room", func() bool { return g.crowd.size() < 3 })
	if !refused(open()) {
		t.Error("a stream whose allocation has ended does not count as one without")
	}
	b.stream.Close()
	d.stream.Close()
	eventually(t, "all streams are forgotten", func() bool { return g.crowd.size() == 0 && g.crowd.sources() == 0 })
}

func (w *crowd) size() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

func (w *crowd) sources() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.idle)
}

func TestProxiesSayWhoTheClientIs(t *testing.T) {
	g := serveTest(t, func(c *Config) {
		withStreams(t)(c)
		c.Streams.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.9/32")}
	})
	client, server := netip.MustParseAddrPort("192.0.2.7:4321"), g.listens(turn.TCP)
	header := func(version byte) []byte {
		h := &proxyproto.Header{
			Version: version, Command: proxyproto.PROXY, TransportProtocol: proxyproto.TCPv4,
			SourceAddr: net.TCPAddrFromAddrPort(client), DestinationAddr: net.TCPAddrFromAddrPort(server),
		}
		b, err := h.Format()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	dialFrom := func(ip string, p turn.Protocol) net.Conn {
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
		conn, err := d.Dial("tcp", g.listens(p).String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	for _, p := range []turn.Protocol{turn.TCP, turn.TLS} {
		conn := dialFrom("127.0.0.9", p)
		if _, err := conn.Write(header(2)); err != nil {
			t.Fatal(err)
		}
		if p == turn.TLS {
			conn = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test made the certificate
		}
		g.clientOn(conn, p).allocate()
		if g.allocation(turn.FiveTuple{Client: client, Server: g.listens(p), Protocol: p}) == nil {
			t.Errorf("%v: there is no allocation of %v", p, client)
		}
	}
	for name, c := range map[string]struct {
		from  string
		first []byte
	}{
		"without a header":   {"127.0.0.9", g.clientOn(dialFrom("127.0.0.9", turn.TCP), turn.TCP).message(stun.MethodBinding).Raw},
		"with version 1":     {"127.0.0.9", header(1)},
		"from somebody else": {"127.0.0.8", header(2)},
	} {
		e := g.clientOn(dialFrom(c.from, turn.TCP), turn.TCP)
		e.write(c.first)
		if b, err := e.read(5 * time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: got %x (%v), want the end of the stream", name, b, err)
		}
	}
}

func TestStreamRequestsSurviveAReload(t *testing.T) {
	g := serveTest(t, withStreams(t))
	c := g.streamClient(turn.TCP).allocate()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for range 50 {
			if err := g.Reload(ctxFor(t), testSettings()); err != nil {
				t.Errorf("reload: %v", err)
			}
		}
	}()
	for running := true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		c.do(0, stun.MethodRefresh) // each is answered, though nobody repeats it
	}
}

func TestStreamsOutliveAFailureOfTheLog(t *testing.T) {
	g := serveTest(t, withStreams(t))
	c, gone := g.streamClient(turn.TCP).allocate(), g.streamClient(turn.TCP).allocate()
	g.store.failNext(false, 2)
	gone.stream.Close()
	eventually(t, "the log is open again", func() bool { return g.Counters().Recoveries > 0 && g.Ready() })
	eventually(t, "the allocation of the stream that ended meanwhile ends", func() bool { return g.store.state().Len() == 1 })
	c.do(0, stun.MethodRefresh)
}
