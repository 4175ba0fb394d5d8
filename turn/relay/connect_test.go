package relay

import (
	"bytes"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

var tcpTransport = attribute{stun.AttrRequestedTransport, []byte{6, 0, 0, 0}}

// allocateTCP makes an allocation that takes connections.
func (c *client) allocateTCP() *client {
	c.t.Helper()
	c.greet()
	c.relayed = relayedOf(c.t, c.do(0, stun.MethodAllocate, tcpTransport))
	return c
}

// connectionOf is the CONNECTION-ID of a message.
func connectionOf(t testing.TB, m *stun.Message) turn.ConnectionID {
	t.Helper()
	v, err := m.Get(stun.AttrConnectionID)
	if err != nil || len(v) != 4 {
		t.Fatalf("got CONNECTION-ID %x (%v) in %v, want 4 bytes", v, err, m)
	}
	return turn.ConnectionID(binary.BigEndian.Uint32(v))
}

func connectionID(id turn.ConnectionID) stun.Setter {
	return attribute{stun.AttrConnectionID, binary.BigEndian.AppendUint32(nil, uint32(id))}
}

// listenTCP is a peer that takes connections.
func listenTCP(t testing.TB) (l *net.TCPListener, at netip.AddrPort) {
	t.Helper()
	l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(peerIP, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l, l.Addr().(*net.TCPAddr).AddrPort()
}

func acceptOne(t testing.TB, l *net.TCPListener) *net.TCPConn {
	t.Helper()
	if err := l.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	c, err := l.AcceptTCP()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// bindData binds a connection from a data connection of its own.
func (g *rig) bindData(p turn.Protocol, id turn.ConnectionID) *client {
	g.t.Helper()
	data := g.streamClient(p).greet()
	data.do(0, stun.MethodConnectionBind, connectionID(id))
	return data
}

// exchangeBytes sends size bytes both ways at once, and wants them to come as they were sent.
func exchangeBytes(t testing.TB, a, b net.Conn, size int) {
	t.Helper()
	ab, ba := make([]byte, size), make([]byte, size)
	_, _ = rand.Read(ab)
	_, _ = rand.Read(ba)
	deadline := time.Now().Add(20 * time.Second)
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(deadline); err != nil {
			t.Fatal(err)
		}
	}
	done := make(chan error, 4)
	send := func(c net.Conn, data []byte) { _, err := c.Write(data); done <- err }
	receive := func(c net.Conn, want []byte) {
		got := make([]byte, len(want))
		_, err := io.ReadFull(c, got)
		if err == nil && !bytes.Equal(got, want) {
			err = errors.New("the bytes that came are not those that were sent")
		}
		done <- err
	}
	go send(a, ab)
	go send(b, ba)
	go receive(a, ba)
	go receive(b, ab)
	for range 4 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

func wantEnd(t testing.TB, c net.Conn) {
	t.Helper()
	if err := c.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, err := c.Read(make([]byte, 1))
	if n > 0 || err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("got %d bytes (%v), want the end of the connection", n, err)
	}
}

func TestConnect(t *testing.T) {
	g := serveTest(t, withStreams(t))
	for _, p := range []turn.Protocol{turn.TCP, turn.TLS} {
		t.Run(p.String(), func(t *testing.T) {
			l, at := listenTCP(t)
			c := g.streamClient(p).allocateTCP()
			id := connectionOf(t, c.do(0, stun.MethodConnect, peerAddress(at)))
			peer := acceptOne(t, l)
			if from := addrOf(peer); from != c.relayed {
				t.Errorf("the peer is connected to from %v, want %v", from, c.relayed)
			}
			c.do(446, stun.MethodConnect, peerAddress(at))
			if _, err := peer.Write([]byte("before")); err != nil { // is kept for the client
				t.Fatal(err)
			}
			data := g.streamClient(p).greet()
			data.do(400, stun.MethodConnectionBind, connectionID(id+1))
			data.do(400, stun.MethodConnectionBind)
			data.do(0, stun.MethodConnectionBind, connectionID(id))
			got := make([]byte, 6)
			if _, err := io.ReadFull(data.stream, got); err != nil || string(got) != "before" {
				t.Fatalf("got %q (%v), want what the peer sent before", got, err)
			}
			exchangeBytes(t, data.stream, peer, 3<<20)
			g.streamClient(p).greet().do(400, stun.MethodConnectionBind, connectionID(id)) // is bound already
			if err := peer.CloseWrite(); err != nil {
				t.Fatal(err)
			}
			wantEnd(t, data.stream)
			if _, err := data.stream.Write([]byte("still")); err != nil {
				t.Fatal(err)
			}
			got = make([]byte, 5)
			if _, err := io.ReadFull(peer, got); err != nil || string(got) != "still" {
				t.Errorf("got %q (%v) after half of it was closed, want still", got, err)
			}
			data.stream.Close()
			eventually(t, "the connection is gone", func() bool { return len(g.store.state().ByRelayed(c.relayed).Connections) == 0 })
			c.do(0, stun.MethodRefresh, lifetime(0))
			eventually(t, "usage is in the log", func() bool {
				for _, u := range eventsOf[turn.UsageRecorded](g.store) {
					if u.Peer == at && u.ToPeer.Bytes == 3<<20+5 && u.ToClient.Bytes == 3<<20+6 {
						return true
					}
				}
				return false
			})
		})
	}
}

func TestConnectionBindWithDataBehindIt(t *testing.T) {
	g := serveTest(t, withStreams(t))
	l, at := listenTCP(t)
	c := g.streamClient(turn.TCP).allocateTCP()
	id := connectionOf(t, c.do(0, stun.MethodConnect, peerAddress(at)))
	peer := acceptOne(t, l)
	data := g.streamClient(turn.TCP).greet()
	data.write(append(data.message(stun.MethodConnectionBind, connectionID(id)).Raw, "at once"...))
	if a := data.answer(5 * time.Second); a == nil || code(a) != 0 {
		t.Fatalf("got %v, want success", a)
	}
	got := make([]byte, 7)
	if _, err := io.ReadFull(peer, got); err != nil || string(got) != "at once" {
		t.Errorf("got %q (%v), want what came with the request", got, err)
	}
	exchangeBytes(t, data.stream, peer, 1000)
}

func TestPeerConnects(t *testing.T) {
	g := serveTest(t, withStreams(t))
	c := g.streamClient(turn.TCP).allocateTCP()
	from := func() *net.TCPConn {
		t.Helper()
		conn, err := net.DialTCP("tcp", &net.TCPAddr{IP: peerIP.AsSlice()}, net.TCPAddrFromAddrPort(c.relayed))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	wantEnd(t, from()) // it has no permission
	c.permit(netip.AddrPortFrom(peerIP, 1))
	peer := from()
	m := c.answer(5 * time.Second)
	if m == nil || m.Type != stun.NewType(stun.MethodConnectionAttempt, stun.ClassIndication) {
		t.Fatalf("got %v, want a ConnectionAttempt indication", m)
	}
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, stun.AttrXORPeerAddress); err != nil || x.Port != peer.LocalAddr().(*net.TCPAddr).Port {
		t.Errorf("got peer %v (%v), want %v", x, err, peer.LocalAddr())
	}
	id := connectionOf(t, m)
	bob := g.streamClient(turn.TCP)
	bob.user = "bob"
	bob.greet().do(441, stun.MethodConnectionBind, connectionID(id))
	data := g.bindData(turn.TCP, id)
	exchangeBytes(t, data.stream, peer, 1<<20)
	c.do(0, stun.MethodRefresh, lifetime(0))
	wantEnd(t, data.stream)
	wantEnd(t, peer)
}

func TestConnectErrors(t *testing.T) {
	g := serveTest(t, withStreams(t))
	l, at := listenTCP(t)
	udp := (&client{endpointUDP: listenUDP(t, netip.AddrPortFrom(serverIP, 0)), server: g.listens(turn.UDP), user: "alice", password: "secret"}).greet()
	udp.do(400, stun.MethodAllocate, tcpTransport)
	udp.allocate()
	udp.do(403, stun.MethodConnect, peerAddress(at))
	udp.do(400, stun.MethodConnectionBind, connectionID(1))
	c := g.streamClient(turn.TCP).greet()
	c.do(437, stun.MethodConnect, peerAddress(at))
	for _, with := range []stun.Setter{
		attribute{stun.AttrDontFragment, nil}, attribute{stun.AttrEvenPort, []byte{0}}, attribute{stun.AttrReservationToken, make([]byte, 8)},
	} {
		c.do(400, stun.MethodAllocate, tcpTransport, with)
	}
	c.allocateTCP()
	c.do(400, stun.MethodConnect)
	c.do(403, stun.MethodConnect, peerAddress(netip.MustParseAddrPort("10.0.0.1:1")))
	c.do(443, stun.MethodConnect, peerAddress(netip.MustParseAddrPort("[2001:db8::1]:1")))
	c.do(403, stun.MethodConnect, peerAddress(netip.AddrPortFrom(relayIP, 1)))         // a port of this host
	c.do(403, stun.MethodConnect, peerAddress(udp.relayed))                            // which relays no connections
	c.do(403, stun.MethodChannelBind, channelNumber(0x4000), peerAddress(at))          // of a TCP allocation
	c.do(400, stun.MethodConnectionBind, connectionID(1))                              // on the control connection
	udp.do(403, stun.MethodChannelBind, channelNumber(0x4000), peerAddress(c.relayed)) // which relays no datagrams
	l.Close()
	c.do(447, stun.MethodConnect, peerAddress(at))
	c.permit(at)
	c.indicate(at, []byte("no datagrams"))
	c.send(c.server, turn.AppendChannelData(nil, 0x4000, []byte("no datagrams")))
	c.do(0, stun.MethodRefresh)
}

func TestTwoTCPAllocationsMeet(t *testing.T) {
	g := serveTest(t, withStreams(t))
	a, b := g.streamClient(turn.TCP).allocateTCP(), g.streamClient(turn.TLS).allocateTCP()
	b.permit(a.relayed)
	here := connectionOf(t, a.do(0, stun.MethodConnect, peerAddress(b.relayed)))
	there := connectionOf(t, b.answer(5*time.Second))
	exchangeBytes(t, g.bindData(turn.TCP, here).stream, g.bindData(turn.TLS, there).stream, 1<<20)
}

func TestSlowPeerHoldsUpItsClientAlone(t *testing.T) {
	g := serveTest(t, withStreams(t))
	l, at := listenTCP(t)
	c := g.streamClient(turn.TCP).allocateTCP()
	data := g.bindData(turn.TCP, connectionOf(t, c.do(0, stun.MethodConnect, peerAddress(at))))
	peer := acceptOne(t, l)
	if err := data.stream.SetWriteDeadline(time.Now().Add(500 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	sent, err := data.stream.Write(make([]byte, 64<<20))
	if !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a peer that reads nothing took %d bytes (%v), want the client to be held up", sent, err)
	}
	c.do(0, stun.MethodRefresh)
	data.stream.Close()
	if err := peer.SetReadDeadline(time.Now().Add(20 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if got, err := io.Copy(io.Discard, peer); err != nil || got != int64(sent) {
		t.Errorf("the peer got %d bytes (%v), want the %d that were sent", got, err, sent)
	}
}

func TestConnectionsEndWithTheServer(t *testing.T) {
	g := serveTest(t, withStreams(t))
	l, at := listenTCP(t)
	c := g.streamClient(turn.TCP).allocateTCP()
	data := g.bindData(turn.TCP, connectionOf(t, c.do(0, stun.MethodConnect, peerAddress(at))))
	peer := acceptOne(t, l)
	g = g.again(nil)
	wantEnd(t, data.stream)
	wantEnd(t, peer)
	if n := g.store.state().Len(); n != 0 {
		t.Errorf("got %d allocations after the restart, want none", n)
	}
}

func TestConnectionsOutliveAFailureOfTheLog(t *testing.T) {
	g := serveTest(t, withStreams(t))
	l, at := listenTCP(t)
	c := g.streamClient(turn.TCP).allocateTCP()
	data := g.bindData(turn.TCP, connectionOf(t, c.do(0, stun.MethodConnect, peerAddress(at))))
	peer := acceptOne(t, l)
	other, at2 := listenTCP(t)
	g.store.failNext(false, 1)
	c.write(c.message(stun.MethodConnect, peerAddress(at2)).Raw)
	lost := acceptOne(t, other)
	eventually(t, "the log is open again", func() bool { return g.Counters().Recoveries > 0 && g.Ready() })
	wantEnd(t, lost) // it never was
	exchangeBytes(t, data.stream, peer, 1<<20)
	if got := g.store.state().ByRelayed(c.relayed).Connections; len(got) != 1 || got[0].Peer != at {
		t.Errorf("got connections %+v, want that with %v", got, at)
	}
}
