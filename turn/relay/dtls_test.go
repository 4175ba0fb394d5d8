package relay

import (
	"bytes"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	mrand "math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/dtls/v3"
	"github.com/pion/stun/v3"
)

// TestDTLSKeepsNothingBeforeTheCookie holds the DTLS listener to the order of RFC 6347 section 4.2.1: nothing is kept of a client that has not
// returned its cookie.
func TestDTLSKeepsNothingBeforeTheCookie(t *testing.T) {
	g := serveTest(t, withStreams(t))
	a := g.listeners()[slices.Index(protocols, turn.DTLS)].accepts[0].(*dtlsAccepter)
	known := func() int {
		a.mu.Lock()
		defer a.mu.Unlock()
		return len(a.assocs)
	}
	hello := clientHello(t)
	for range 100 {
		e := listenUDP(t, netip.AddrPortFrom(serverIP, 0))
		e.send(g.listens(turn.DTLS), hello)
		answer, _ := e.receive(5 * time.Second)
		if len(answer) < dtlsRecord+dtlsHandshake || answer[dtlsRecord] != dtlsTypeVerify {
			t.Fatalf("got %x, want a HelloVerifyRequest", answer)
		}
		if len(answer) > len(hello) {
			t.Errorf("the answer has %d bytes, the question %d", len(answer), len(hello))
		}
	}
	if n := known(); n != 0 {
		t.Errorf("%d clients are known that have returned no cookie", n)
	}
	old := bytes.Clone(hello)
	old[dtlsRecord+dtlsHandshake+1] = 0xff // DTLS 1.0
	e := listenUDP(t, netip.AddrPortFrom(serverIP, 0))
	e.send(g.listens(turn.DTLS), old)
	if answer, _ := e.receive(5 * time.Second); len(answer) != dtlsRecord+2 || answer[0] != dtlsTypeAlert {
		t.Errorf("got %x to a hello of DTLS 1.0, want an alert", answer)
	}
	one, other := listenUDP(t, netip.AddrPortFrom(serverIP, 0)), listenUDP(t, netip.AddrPortFrom(serverIP, 0))
	one.send(g.listens(turn.DTLS), hello)
	answer, _ := one.receive(5 * time.Second)
	cookie := answer[len(answer)-cookieBytes:]
	other.send(g.listens(turn.DTLS), withCookie(hello, cookie)) // which is not its own
	if answer, _ := other.receive(5 * time.Second); len(answer) < dtlsRecord+dtlsHandshake || answer[dtlsRecord] != dtlsTypeVerify {
		t.Errorf("got %x to somebody else's cookie, want a HelloVerifyRequest", answer)
	}
	if n := known(); n != 0 {
		t.Errorf("%d clients are known by somebody else's cookie", n)
	}
}

func TestDTLSClientComesAgainFromItsPort(t *testing.T) {
	g := serveTest(t, withStreams(t))
	dial := func(at netip.AddrPort) (*client, *endpointUDP) {
		t.Helper()
		socket := listenUDP(t, at)
		c, err := dtls.ClientWithOptions(socket.conn, net.UDPAddrFromAddrPort(g.listens(turn.DTLS)), dtls.WithInsecureSkipVerify(true))
		if err != nil {
			t.Fatal(err)
		}
		if err := c.HandshakeContext(ctxFor(t)); err != nil {
			t.Fatal(err)
		}
		return g.clientOn(c, turn.DTLS), socket
	}
	first, socket := dial(netip.AddrPortFrom(serverIP, 0))
	first.allocate()
	socket.conn.Close() // it is killed, and says nothing
	second, _ := dial(first.addr)
	second.allocate()
	if first.relayed == second.relayed {
		t.Error("the second client has the relayed address of the first")
	}
	eventually(t, "only the second allocation is left", func() bool {
		return g.store.state().Len() == 1 && g.store.state().ByRelayed(second.relayed) != nil
	})
}

// clientHello is what a DTLS client begins with.
func clientHello(t testing.TB) []byte {
	t.Helper()
	server := listenUDP(t, netip.AddrPortFrom(serverIP, 0))
	c, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(server.addr), dtls.WithInsecureSkipVerify(true))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.Handshake() }()
	hello, _ := server.receive(5 * time.Second)
	_ = c.Close()
	if p, _, ok := parsePart(hello); !ok || !p.whole() {
		t.Fatalf("%x is no ClientHello", hello)
	}
	return hello
}

// withCookie is the opposite of withoutCookie.
func withCookie(hello, cookie []byte) []byte {
	at := dtlsHello + 1 + int(hello[dtlsHello])
	out := append(append([]byte(nil), hello[:at]...), byte(len(cookie)))
	out = append(append(out, cookie...), hello[at+1:]...)
	grow := func(at int) {
		n := int(out[at])<<8 | int(out[at+1])
		n += len(cookie)
		out[at], out[at+1] = byte(n>>8), byte(n)
	}
	grow(dtlsRecord - 2)
	grow(dtlsRecord + 2)
	grow(dtlsRecord + 10)
	out[dtlsSequence+1]++
	out[10]++
	return out
}

func TestWithoutCookieIsTheFirstHello(t *testing.T) {
	hello := clientHello(t)
	if got := withoutCookie(withCookie(hello, make([]byte, cookieBytes))); !bytes.Equal(got, hello) {
		t.Errorf("got  %x\nwant %x", got, hello)
	}
}

// partsOf cuts a ClientHello in one record at the given places of its message: pairs of a beginning and an end.
func partsOf(hello []byte, cuts ...[2]int) (out [][]byte) {
	for i, c := range cuts {
		b := append([]byte(nil), hello[:dtlsRecord+dtlsHandshake]...)
		b = append(b, hello[dtlsRecord+dtlsHandshake+c[0]:dtlsRecord+dtlsHandshake+c[1]]...)
		put := func(at, n int) { b[at], b[at+1], b[at+2] = byte(n>>16), byte(n>>8), byte(n) }
		put(dtlsSequence+2, c[0])
		put(dtlsSequence+5, c[1]-c[0])
		binary.BigEndian.PutUint16(b[dtlsRecord-2:], uint16(len(b)-dtlsRecord))
		b[10] += byte(i)
		out = append(out, b)
	}
	return out
}

// proven is a socket with a ClientHello that has the cookie it was given.
func (g *rig) proven() (*endpointUDP, []byte) {
	g.t.Helper()
	hello := clientHello(g.t)
	e := listenUDP(g.t, netip.AddrPortFrom(serverIP, 0))
	e.send(g.listens(turn.DTLS), hello)
	answer, _ := e.receive(5 * time.Second)
	if len(answer) < cookieBytes {
		g.t.Fatalf("got %x, want a HelloVerifyRequest", answer)
	}
	return e, withCookie(hello, answer[len(answer)-cookieBytes:])
}

// dtlsListener is that of g.
func (g *rig) dtlsListener() *dtlsAccepter {
	return g.listeners()[slices.Index(protocols, turn.DTLS)].accepts[0].(*dtlsAccepter)
}

func (l *partialHellos) len() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.order.Len()
}

// wantServerHello wants the answer to a whole ClientHello.
func (e *endpointUDP) wantServerHello() {
	e.t.Helper()
	answer, _ := e.receive(5 * time.Second)
	if len(answer) <= dtlsRecord || answer[0] != dtlsTypeHandshake || answer[dtlsRecord] != 2 {
		e.t.Fatalf("got %.80x, want a ServerHello", answer)
	}
}

// TestDTLSClientsThatFragment has a real client send its ClientHello in parts, with the cookie and without.
func TestDTLSClientsThatFragment(t *testing.T) {
	g := serveTest(t, withStreams(t))
	names := []string{"stun.turn"}
	for range 15 {
		names = append(names, strings.Repeat("x", 250))
	}
	for name, options := range map[string][]dtls.ClientOption{
		"SmallMTU":  {dtls.WithMTU(100)},
		"LongHello": {dtls.WithMTU(1200), dtls.WithSupportedProtocols(names...)},
		"Both":      {dtls.WithMTU(128), dtls.WithSupportedProtocols(names...)},
	} {
		t.Run(name, func(t *testing.T) {
			options = append(options, dtls.WithInsecureSkipVerify(true))
			conn, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(g.listens(turn.DTLS)), options...)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			if err := conn.HandshakeContext(ctxFor(t)); err != nil {
				t.Fatal(err)
			}
			c, peer := g.clientOn(conn, turn.DTLS).allocate(), peerOf(t)
			c.bind(0x4000, peer.addr)
			c.send(c.server, turn.AppendChannelData(nil, 0x4000, []byte("data")))
			peer.want([]byte("data"))
			c.do(0, stun.MethodRefresh, lifetime(0))
		})
	}
	if n := g.dtlsListener().partials.len(); n != 0 {
		t.Errorf("%d messages are still put together", n)
	}
}

// TestDTLSPartsInAnyOrder sends the parts that follow the first as a network may deliver them.
func TestDTLSPartsInAnyOrder(t *testing.T) {
	g := serveTest(t, withStreams(t))
	to := g.listens(turn.DTLS)
	for name, send := range map[string]func(e *endpointUDP, hello []byte, n int){
		"InOrder": func(e *endpointUDP, hello []byte, n int) {
			for _, b := range partsOf(hello, [2]int{0, 60}, [2]int{60, 61}, [2]int{61, n}) {
				e.send(to, b)
			}
		},
		"Backwards": func(e *endpointUDP, hello []byte, n int) {
			for _, b := range partsOf(hello, [2]int{0, 60}, [2]int{80, n}, [2]int{70, 80}, [2]int{60, 70}) {
				e.send(to, b)
			}
		},
		"Overlapping": func(e *endpointUDP, hello []byte, n int) {
			for _, b := range partsOf(hello, [2]int{0, 60}, [2]int{10, 70}, [2]int{50, n}, [2]int{0, 60}) {
				e.send(to, b)
			}
		},
		"InOneDatagram": func(e *endpointUDP, hello []byte, n int) {
			e.send(to, slices.Concat(partsOf(hello, [2]int{0, 60}, [2]int{60, 80}, [2]int{80, n})...))
		},
		"SentTwice": func(e *endpointUDP, hello []byte, n int) {
			for _, b := range partsOf(hello, [2]int{0, 60}, [2]int{0, 60}, [2]int{60, n}) {
				e.send(to, b)
			}
		},
		"FirstOneLate": func(e *endpointUDP, hello []byte, n int) { // which its client repeats with the first
			for _, b := range partsOf(hello, [2]int{60, n}, [2]int{0, 60}, [2]int{60, n}) {
				e.send(to, b)
			}
		},
		"WithOtherParts": func(e *endpointUDP, hello []byte, n int) {
			parts := partsOf(hello, [2]int{0, 60}, [2]int{60, n})
			other := partsOf(hello, [2]int{60, n})[0]
			other[dtlsRecord+3]++ // of a longer message
			late := partsOf(hello, [2]int{60, n})[0]
			late[dtlsSequence+1]++ // of another message
			for _, b := range [][]byte{parts[0], other, late, []byte("noise"), parts[1]} {
				e.send(to, b)
			}
		},
		"SecondFirstPartOfAnother": func(e *endpointUDP, hello []byte, n int) { // that has no cookie
			parts := partsOf(hello, [2]int{0, 60}, [2]int{60, n})
			e.send(to, parts[0])
			e.send(to, clientHello(e.t))
			if answer, _ := e.receive(5 * time.Second); len(answer) <= dtlsRecord || answer[dtlsRecord] != dtlsTypeVerify {
				e.t.Errorf("got %x, want a HelloVerifyRequest", answer)
			}
			e.send(to, parts[1])
		},
	} {
		t.Run(name, func(t *testing.T) {
			e, hello := g.proven()
			e.t = t
			send(e, hello, len(hello)-dtlsRecord-dtlsHandshake)
			e.wantServerHello()
		})
	}
	if n := g.dtlsListener().partials.len(); n != 0 {
		t.Errorf("%d messages are still put together", n)
	}
}

// TestDTLSHostileParts holds that parts cost nothing before the cookie, and little after it.
func TestDTLSHostileParts(t *testing.T) {
	g := serveTest(t, func(c *Config) {
		withStreams(t)(c)
		c.Streams.MaxIdle, c.Streams.Handshake = 8, time.Hour
	})
	to, partials := g.listens(turn.DTLS), &g.dtlsListener().partials
	hello := clientHello(t)
	n := len(hello) - dtlsRecord - dtlsHandshake
	e := listenUDP(t, netip.AddrPortFrom(serverIP, 0))
	verified := func(what string, b []byte) {
		t.Helper()
		e.send(to, b)
		answer, _ := e.receive(5 * time.Second)
		if len(answer) <= dtlsRecord || answer[dtlsRecord] != dtlsTypeVerify || len(answer) > len(b) {
			t.Fatalf("got %x to %s, want a HelloVerifyRequest that is no longer", answer, what)
		}
	}
	for name, b := range map[string][]byte{
		"a part that does not begin": partsOf(hello, [2]int{60, n})[0],
		"one too short for a cookie": partsOf(hello, [2]int{0, 35})[0],
		"an empty one":               partsOf(hello, [2]int{0, 0})[0],
		"one beyond its message":     func() []byte { b := partsOf(hello, [2]int{1, n})[0]; b[dtlsSequence+4] = 2; return b }(),
		"a far offset":               func() []byte { b := partsOf(hello, [2]int{1, n})[0]; b[dtlsSequence+2] = 255; return b }(),
	} {
		e.send(to, b)
		verified("the hello after "+name, hello) // and nothing before it
	}
	verified("a part without a cookie", partsOf(hello, [2]int{0, 60})[0])
	giant := bytes.Clone(partsOf(hello, [2]int{0, 60})[0])
	giant[dtlsRecord+1] = 255
	verified("the first part of 16 MiB", giant)
	if partials.len() != 0 || g.crowd.sources() != 0 {
		t.Fatalf("%d messages are put together for clients that have returned no cookie", partials.len())
	}
	e, hello = g.proven()
	giant = bytes.Clone(partsOf(hello, [2]int{0, 60})[0])
	giant[dtlsRecord+1] = 1
	dropped := g.Counters().Drops[DropMalformed.String()]
	e.send(to, giant)
	eventually(t, "the first part of 64 KiB is dropped", func() bool { return g.Counters().Drops[DropMalformed.String()] > dropped })
	if partials.len() != 0 {
		t.Fatal("a message of 64 KiB is put together")
	}
	for range 12 {
		e, hello = g.proven()
		e.send(to, partsOf(hello, [2]int{0, 60})[0])
	}
	eventually(t, "four are refused", func() bool { return g.Counters().StreamsRefused == 4 })
	if n := partials.len(); n != 8 {
		t.Errorf("%d messages are put together for one source, want 8", n)
	}
	if !g.crowd.waits(sourceOf(netip.MustParseAddr("192.0.2.1")), 1) { // others are not touched by it
		t.Error("another source has no room")
	}
	g.crowd.counts(sourceOf(netip.MustParseAddr("192.0.2.1")), -1)
	partials.clear()
	if n := g.crowd.sources(); n != 0 {
		t.Errorf("%d sources are counted, want none", n)
	}
}

func TestPartialHellosAreBounded(t *testing.T) {
	var w crowd
	l := &partialHellos{crowd: &w, limit: func() int { return 1 }, life: time.Hour}
	hello := withCookie(clientHello(t), make([]byte, cookieBytes))
	n := len(hello) - dtlsRecord - dtlsHandshake
	parts := partsOf(hello, [2]int{0, 60}, [2]int{60, n})
	first, _, _ := parsePart(parts[0])
	last, _, _ := parsePart(parts[1])
	client := func(i int) netip.AddrPort {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, byte(i >> 8), byte(i)}), 1000)
	}
	for i := range maxPartial + 10 {
		if !l.begin(client(i), first, "c") {
			t.Fatalf("client %d is refused, want the oldest to make room", i)
		}
	}
	if l.len() != maxPartial || w.sources() != maxPartial {
		t.Errorf("%d messages of %d sources, want %d", l.len(), w.sources(), maxPartial)
	}
	if _, ok := l.add(client(9), last, nil); ok {
		t.Error("the oldest ones are there, want them gone")
	}
	if h, _ := l.add(client(10), last, nil); h == nil {
		t.Error("the others are not there")
	}
	l.clear()
	l.life = time.Millisecond
	if !l.begin(client(0), first, "c") {
		t.Fatal("there is no room after all")
	}
	eventually(t, "a message that is not finished is forgotten", func() bool { return l.len() == 0 && w.sources() == 0 })
}

// TestDTLSCertificateFitsTheClient has certificates of two kinds of keys, of which a client takes one by its name or for
// its cipher suites; who takes none is told so.
func TestDTLSCertificateFitsTheClient(t *testing.T) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	certificates := []tls.Certificate{certificateOf(t, "rsa.example.org", key), certificateFor(t, "ec.example.org")}
	g := serveTest(t, func(c *Config) {
		withStreams(t)(c)
		c.Streams.TLS.GetCertificate = func(h *tls.ClientHelloInfo) (*tls.Certificate, error) {
			for i := range certificates {
				if h.SupportsCertificate(&certificates[i]) == nil {
					return &certificates[i], nil
				}
			}
			return &certificates[0], nil
		}
	})
	ofRSA, ofEC := dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256
	for _, row := range []struct {
		name   string
		server string
		suites []dtls.CipherSuiteID
		want   string
	}{
		{"First", "", []dtls.CipherSuiteID{ofRSA, ofEC}, "rsa.example.org"},
		{"Name", "rsa.example.org", []dtls.CipherSuiteID{ofEC, ofRSA}, "rsa.example.org"},
		{"OtherName", "ec.example.org", []dtls.CipherSuiteID{ofRSA, ofEC}, "ec.example.org"},
		{"Suites", "", []dtls.CipherSuiteID{ofEC}, "ec.example.org"},
		{"NameAndSuites", "ec.example.org", []dtls.CipherSuiteID{ofEC}, "ec.example.org"},
		{"NoneOfThem", "", []dtls.CipherSuiteID{dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM}, ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			conn, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(g.listens(turn.DTLS)),
				dtls.WithInsecureSkipVerify(true), dtls.WithServerName(row.server), dtls.WithCipherSuites(row.suites...))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { _ = conn.Close() })
			err = conn.HandshakeContext(ctxFor(t))
			if row.want == "" {
				if err == nil || !strings.Contains(err.Error(), "InsufficientSecurity") {
					t.Errorf("got %v, want an alert", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			state, _ := conn.ConnectionState()
			shown, err := x509.ParseCertificate(state.PeerCertificates[0])
			if err != nil || shown.DNSNames[0] != row.want {
				t.Errorf("got a certificate for %v, %v, want %s", shown.DNSNames, err, row.want)
			}
		})
	}
}

// TestWishes holds what is read of a hello that a library wrote.
func TestWishes(t *testing.T) {
	server := listenUDP(t, netip.AddrPortFrom(serverIP, 0))
	c, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(server.addr),
		dtls.WithServerName("turn.example.org"), dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256))
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = c.Handshake() }()
	hello, _ := server.receive(5 * time.Second)
	_ = c.Close()
	for _, hello := range [][]byte{hello, withCookie(hello, make([]byte, cookieBytes))} {
		w := wishes(hello)
		if w.ServerName != "turn.example.org" || !slices.Contains(w.CipherSuites, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256) ||
			!slices.Contains(w.SupportedCurves, tls.X25519) || !slices.Contains(w.SignatureSchemes, tls.ECDSAWithP256AndSHA256) {
			t.Errorf("got %+v of %x", w, hello)
		}
		for n := dtlsHello; n < len(hello); n++ {
			_ = wishes(hello[:n]) // it is cut short, and nothing more
		}
	}
}

func FuzzParsePart(f *testing.F) {
	hello := clientHello(f)
	n := len(hello) - dtlsRecord - dtlsHandshake
	f.Add(hello)
	f.Add(withCookie(hello, make([]byte, cookieBytes)))
	f.Add(slices.Concat(partsOf(hello, [2]int{0, 60}, [2]int{60, n})...))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, rest, ok := parsePart(b)
		if !ok {
			return
		}
		if len(p.record)+len(rest) != len(b) || p.offset+len(p.body) > p.length {
			t.Errorf("%x: got %+v and %d bytes behind it", b, p, len(rest))
		}
		cookie, ok := p.cookie()
		if !ok {
			return
		}
		_, _ = p.old(), p.random()
		if answer := helloVerify(p.record, make([]byte, cookieBytes)); answer[dtlsRecord] != dtlsTypeVerify || len(answer) > len(b) {
			t.Errorf("the answer to %x is %x", b, answer)
		}
		if !p.whole() {
			return
		}
		_ = wishes(p.record)
		before := withoutCookie(p.record)
		if q, _, ok := parsePart(before); !ok || !q.whole() || len(before) != len(p.record)-len(cookie) {
			t.Errorf("%x without its cookie is %x", b, before)
		}
	})
}

// FuzzHelloInParts chops a message by the bytes of cuts, and has the parts come in some order, some of them twice.
func FuzzHelloInParts(f *testing.F) {
	f.Add([]byte{10, 20, 30}, uint64(1))
	f.Add([]byte{0, 255, 1, 1, 1, 7}, uint64(7))
	hello := withCookie(clientHello(f), make([]byte, cookieBytes))
	n := len(hello) - dtlsRecord - dtlsHandshake
	f.Fuzz(func(t *testing.T, cuts []byte, seed uint64) {
		source := mrand.New(mrand.NewPCG(seed, 1)) //nolint:gosec // a test
		spans, from := [][2]int{}, 60
		for _, c := range cuts {
			to := min(from+int(c), n)
			spans = append(spans, [2]int{max(0, from-int(c)/2), to}, [2]int{from, to})
			from = to
		}
		spans = append(spans, [2]int{from, n})
		source.Shuffle(len(spans), func(i, j int) { spans[i], spans[j] = spans[j], spans[i] })
		first, _, _ := parsePart(partsOf(hello, [2]int{0, 60})[0])
		m := newHelloMessage(first)
		for _, b := range partsOf(hello, spans...) {
			if p, _, ok := parsePart(b); ok {
				m.add(p)
			} else if b[dtlsSequence+5] != 0 || binary.BigEndian.Uint16(b[dtlsSequence+6:]) != 0 {
				t.Errorf("%x is no part", b)
			}
		}
		clear(m.record[5:11])
		want := bytes.Clone(hello)
		clear(want[5:11])
		if m.lacks != 0 || !bytes.Equal(m.record, want) {
			t.Errorf("%v: lacks %d bytes\ngot  %x\nwant %x", spans, m.lacks, m.record, want)
		}
	})
}
