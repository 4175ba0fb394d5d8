package relay

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// drops waits until the server has dropped n datagrams for a reason.
func (g *rig) drops(why Drop, n uint64) {
	g.t.Helper()
	end := time.Now().Add(5 * time.Second)
	for g.Counters().Drops[why.String()] != n {
		if time.Now().After(end) {
			g.t.Fatalf("got %d drops for %v, want %d; all: %v", g.Counters().Drops[why.String()], why, n, g.Counters().Drops)
		}
		time.Sleep(time.Millisecond)
	}
}

func TestChannelDataLengths(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	for _, n := range []int{0, 1, 2, 3, 4, 5, 160, 1199, 1472, 9000, 65000} {
		data := bytes.Repeat([]byte{byte(n)}, n)
		c.send(c.server, channelData(0x4000, data))
		peer.want(data)
		padded := append(channelData(0x4000, data), make([]byte, -n&3)...)
		c.send(c.server, padded)
		peer.want(data)
		peer.send(c.relayed, data)
		c.want(channelData(0x4000, data))
	}
}

func TestMalformedFramesAreDropped(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	whole := channelData(0x4000, []byte("data"))
	frames := [][]byte{
		{}, {0x40}, whole[:3], // no header
		whole[:7], // shorter than it says
		binary.BigEndian.AppendUint32(nil, 0xffff), // neither
		{0x80, 0x60, 0, 0, 0},                      // RTP
		make([]byte, 19),                           // too short for STUN
	}
	for _, f := range frames {
		c.send(c.server, f)
	}
	g.drops(DropMalformed, uint64(len(frames)))
	c.send(c.server, channelData(0x4001, []byte("data")))
	g.drops(DropNoChannel, 1)
	stranger := g.client("bob")
	stranger.send(stranger.server, whole)
	stranger.indicate(peer.addr, []byte("data"))
	g.drops(DropNoAllocation, 2)
	c.indicate(netip.MustParseAddrPort("127.0.0.9:9"), []byte("data"))
	c.indicate(netip.MustParseAddrPort("[2001:db8::1]:9"), []byte("data"))
	c.indicate(netip.AddrPortFrom(peerIP, 0), []byte("data"))
	g.drops(DropNoPermission, 3)
	unknown := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication),
		peerAddress(peer.addr), attribute{stun.AttrData, []byte("x")}, attribute{0x7ffe, nil})
	c.send(c.server, unknown.Raw)
	g.drops(DropUnsupported, 1)
	peer.wantNothing()
	c.wantNothing()
	if got := g.Counters().ToPeerPackets; got != 0 {
		t.Errorf("got %d packets counted as relayed, want 0", got)
	}
}

func TestSendAndDataIndications(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	peer.send(c.relayed, []byte("early"))
	g.drops(DropNoPermission, 1)
	c.permit(peer.addr)
	for _, n := range []int{0, 1, 2, 3, 4, 1200, 60000} {
		data := bytes.Repeat([]byte{1}, n)
		c.indicate(peer.addr, data)
		if from := peer.want(data); from != c.relayed {
			t.Errorf("got a datagram from %v, want %v", from, c.relayed)
		}
		peer.send(c.relayed, data)
		c.wantData(peer.addr, data)
	}
	c.bind(0x4000, peer.addr)
	peer.send(c.relayed, []byte("by channel"))
	c.want(channelData(0x4000, []byte("by channel")))
}

func TestOwnAddressReachesOnlyLiveAllocations(t *testing.T) {
	g := serveTest(t, nil)
	a, b := g.client("alice").allocate(), g.client("bob").allocate()
	service := listenUDP(t, netip.AddrPortFrom(relayIP, 0)) // a service of this host
	a.permit(b.relayed)
	b.permit(a.relayed)

	a.indicate(service.addr, []byte("attack"))
	g.drops(DropGuarded, 1)
	a.do(403, stun.MethodChannelBind, channelNumber(0x4002), peerAddress(service.addr))
	service.send(a.relayed, []byte("attack"))
	g.drops(DropGuarded, 2)
	service.wantNothing()
	a.wantNothing()

	a.indicate(b.relayed, []byte("hello"))
	b.wantData(a.relayed, []byte("hello"))
	a.bind(0x4000, b.relayed)
	a.send(a.server, channelData(0x4000, []byte("hello")))
	b.wantData(a.relayed, []byte("hello"))

	// The channel outlives the allocation it leads to, and whoever gets the port is not reached.
	b.do(0, stun.MethodRefresh, lifetime(0))
	heir := listenUDP(t, b.relayed)
	a.send(a.server, channelData(0x4000, []byte("attack")))
	g.drops(DropGuarded, 3)
	heir.wantNothing()
}

// option sets a socket option of e.
func (e *endpointUDP) option(level, name, value int) {
	e.t.Helper()
	setOption(e.t, e.conn, level, name, value)
}

func setOption(t testing.TB, conn syscall.Conn, level, name, value int) {
	t.Helper()
	raw, err := conn.SyscallConn()
	if err == nil {
		var inner error
		err = raw.Control(func(fd uintptr) { inner = unix.SetsockoptInt(int(fd), level, name, value) })
		if err == nil {
			err = inner
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// wantHop receives data and wants the TTL and TOS of its header.
func (e *endpointUDP) wantHop(want hop) {
	e.t.Helper()
	b, oob := make([]byte, 2048), make([]byte, 256)
	if err := e.conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
		e.t.Fatal(err)
	}
	_, n, _, _, err := e.conn.ReadMsgUDPAddrPort(b, oob)
	if err != nil {
		e.t.Fatal(err)
	}
	list, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil {
		e.t.Fatal(err)
	}
	var d datagram
	for _, m := range list {
		d.read(uint32(m.Header.Level), uint32(m.Header.Type), m.Data)
	}
	if d.hop != want {
		e.t.Errorf("got TTL and TOS %+v, want %+v", d.hop, want)
	}
}

func TestTTLFallsByOneAndTOSIsKept(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	const tos = 46<<2 | 1 // EF, and a bit of ECN
	for _, e := range []*endpointUDP{c.endpointUDP, peer} {
		e.option(unix.SOL_IP, unix.IP_RECVTTL, 1)
		e.option(unix.SOL_IP, unix.IP_RECVTOS, 1)
		e.option(unix.SOL_IP, unix.IP_TTL, 9)
		e.option(unix.SOL_IP, unix.IP_TOS, tos)
	}
	c.send(c.server, channelData(0x4000, []byte("x")))
	peer.wantHop(hop{ttl: 8, tos: tos})
	c.indicate(peer.addr, []byte("x"))
	peer.wantHop(hop{ttl: 8, tos: tos})
	peer.send(c.relayed, []byte("x"))
	c.wantHop(hop{ttl: 8, tos: tos})

	c.option(unix.SOL_IP, unix.IP_TTL, 1)
	peer.option(unix.SOL_IP, unix.IP_TTL, 1)
	c.send(c.server, channelData(0x4000, []byte("x")))
	c.indicate(peer.addr, []byte("x"))
	peer.send(c.relayed, []byte("x"))
	g.drops(DropTTL, 3)
	peer.wantNothing()
	c.wantNothing()
	if got := code(c.exchange(c.message(stun.MethodBinding))); got != 0 {
		t.Errorf("got code %d to a Binding with TTL 1, want success: it is not relayed", got)
	}
}

// TestDatagramsOfStreamsHaveTheUsualHeader: the TTL and TOS of a TCP connection are not those of what is sent in it.
func TestDatagramsOfStreamsHaveTheUsualHeader(t *testing.T) {
	g := serveTest(t, withStreams(t))
	c, peer := g.streamClient(turn.TCP).allocate(), peerOf(t)
	for _, name := range []int{unix.IP_RECVTTL, unix.IP_RECVTOS} {
		peer.option(unix.SOL_IP, name, 1)
	}
	for name, value := range map[int]int{unix.IP_TTL: 9, unix.IP_TOS: 46 << 2} {
		setOption(t, c.stream.(*net.TCPConn), unix.SOL_IP, name, value)
	}
	c.bind(0x4000, peer.addr)
	c.send(c.server, turn.AppendChannelData(nil, 0x4000, []byte("x")))
	peer.wantHop(hop{ttl: 64})
	c.indicate(peer.addr, []byte("x"))
	peer.wantHop(hop{ttl: 64})
}

func TestMixedFamilies(t *testing.T) {
	v6 := netip.MustParseAddr("::1")
	g := serveTest(t, func(c *Config) {
		c.Listeners = append(c.Listeners, Listener{Address: freePort(t, v6), Protocol: turn.UDP})
		c.Settings.Rules.Relays = append(c.Settings.Rules.Relays, turn.Relay{IP: v6, External: v6})
		c.Settings.Rules.Policy.Allow = append(c.Settings.Rules.Policy.Allow, netip.MustParsePrefix("::1/128"))
	})
	for _, clientIP := range []netip.Addr{serverIP, v6} {
		for i, peer := range []*endpointUDP{peerOf(t), listenUDP(t, netip.AddrPortFrom(v6, 0))} {
			c := g.client("alice")
			if clientIP == v6 {
				c.endpointUDP = listenUDP(t, netip.AddrPortFrom(v6, 0))
				c.server = g.config.Listeners[1].Address
			}
			c.greet()
			family := attribute{stun.AttrRequestedAddressFamily, []byte{byte(i + 1), 0, 0, 0}}
			c.relayed = relayedOf(t, c.do(0, stun.MethodAllocate, udpTransport, family))
			c.bind(0x4000, peer.addr)
			c.send(c.server, channelData(0x4000, []byte("there")))
			if from := peer.want([]byte("there")); from != c.relayed {
				t.Errorf("client %v peer %v: got a datagram from %v, want %v", clientIP, peer.addr, from, c.relayed)
			}
			peer.send(c.relayed, []byte("back"))
			c.want(channelData(0x4000, []byte("back")))
			if clientIP == v6 && peer.addr.Addr() == v6 {
				peer.option(unix.SOL_IPV6, unix.IPV6_UNICAST_HOPS, 1)
				peer.send(c.relayed, []byte("late"))
				g.drops(DropTTL, 1)
			}
		}
	}
}

func TestClosedPeerPortLosesNothingElse(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	closed := freePort(t, peerIP)
	c.bind(0x4000, peer.addr)
	c.bind(0x4001, closed)
	for i := range 50 {
		data := []byte{byte(i)}
		c.send(c.server, channelData(0x4001, data)) // comes back as ICMP port unreachable
		c.send(c.server, channelData(0x4000, data))
		peer.want(data)
		peer.send(c.relayed, data)
		c.want(channelData(0x4000, data))
	}
	if got := g.Counters().Drops[DropSend.String()]; got != 0 {
		t.Errorf("got %d datagrams the kernel did not take, want 0", got)
	}
}

func TestFullPeerDoesNotHoldUpOthers(t *testing.T) {
	g := serveTest(t, nil)
	c, full, peer := g.client("alice").allocate(), peerOf(t), peerOf(t)
	full.option(unix.SOL_SOCKET, unix.SO_RCVBUF, 1) // and it never reads
	c.bind(0x4000, full.addr)
	c.bind(0x4001, peer.addr)
	data := make([]byte, 8000)
	for range 200 {
		for range 5 {
			c.send(c.server, channelData(0x4000, data))
		}
		c.send(c.server, channelData(0x4001, data))
		peer.want(data)
	}
}

func TestClientThatDoesNotReadDoesNotHoldUpOthers(t *testing.T) {
	g := serveTest(t, nil)
	deaf, c, peer := g.client("alice").allocate(), g.client("bob").allocate(), peerOf(t)
	deaf.option(unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	deaf.bind(0x4000, peer.addr)
	c.bind(0x4000, peer.addr)
	data := make([]byte, 8000)
	for range 200 {
		for range 5 {
			peer.send(deaf.relayed, data)
		}
		peer.send(c.relayed, data)
		c.want(channelData(0x4000, data))
	}
}
