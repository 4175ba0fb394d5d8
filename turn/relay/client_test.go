package relay

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// quiet is for how long nothing comes before a test believes that nothing will.
const quiet = 150 * time.Millisecond

// endpointUDP is a socket of a client or a peer, or the stream of a client.
type endpointUDP struct {
	t      testing.TB
	conn   *net.UDPConn
	stream net.Conn // in place of conn
	addr   netip.AddrPort
}

// listenUDP opens a socket at a.
func listenUDP(t testing.TB, a netip.AddrPort) *endpointUDP {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
	if err != nil {
		t.Fatal(err)
	}
	e := &endpointUDP{t: t, conn: c, addr: turn.Canonical(c.LocalAddr().(*net.UDPAddr).AddrPort())}
	t.Cleanup(func() { c.Close() })
	return e
}

func (e *endpointUDP) send(to netip.AddrPort, b []byte) {
	e.t.Helper()
	if e.stream != nil {
		e.write(b)
		return
	}
	if _, err := e.conn.WriteToUDPAddrPort(b, to); err != nil {
		e.t.Fatalf("send to %v: %v", to, err)
	}
}

// receive is the next datagram, nil where none comes in time.
func (e *endpointUDP) receive(wait time.Duration) ([]byte, netip.AddrPort) {
	e.t.Helper()
	if e.stream != nil {
		b, err := e.read(wait)
		if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) {
			e.t.Fatal(err)
		}
		return b, netip.AddrPort{}
	}
	b := make([]byte, 1<<16)
	if err := e.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		e.t.Fatal(err)
	}
	n, from, err := e.conn.ReadFromUDPAddrPort(b)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, netip.AddrPort{}
	}
	if err != nil {
		e.t.Fatal(err)
	}
	return b[:n:n], turn.Canonical(from)
}

// want receives exactly b.
func (e *endpointUDP) want(b []byte) netip.AddrPort {
	e.t.Helper()
	got, from := e.receive(5 * time.Second)
	if got == nil {
		e.t.Fatalf("got nothing, want %d bytes %.40x", len(b), b)
	}
	if string(got) != string(b) {
		e.t.Fatalf("got %d bytes %.40x, want %d bytes %.40x", len(got), got, len(b), b)
	}
	return from
}

// wantNothing fails if a datagram comes.
func (e *endpointUDP) wantNothing() {
	e.t.Helper()
	if got, from := e.receive(quiet); got != nil {
		e.t.Fatalf("got %d bytes %.40x from %v, want nothing", len(got), got, from)
	}
}

// peerOf is a socket at an address of the peers.
func peerOf(t testing.TB) *endpointUDP {
	t.Helper()
	return listenUDP(t, netip.AddrPortFrom(peerIP, 0))
}

// drain drops what comes until it is quiet.
func (e *endpointUDP) drain() {
	e.t.Helper()
	for {
		if b, _ := e.receive(quiet); b == nil {
			return
		}
	}
}

// client is a raw STUN client.
type client struct {
	*endpointUDP
	server   netip.AddrPort
	user     string
	password string
	nonce    string
	relayed  netip.AddrPort
}

func (g *rig) client(user string) *client {
	g.t.Helper()
	return &client{endpointUDP: listenUDP(g.t, netip.AddrPortFrom(serverIP, 0)), server: g.addr, user: user, password: "secret"}
}

// message builds a request that is authenticated once a nonce is known.
func (c *client) message(method stun.Method, attributes ...stun.Setter) *stun.Message {
	c.t.Helper()
	set := append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, attributes...)
	if c.nonce != "" {
		set = append(set, stun.NewUsername(c.user), stun.NewRealm("example.org"), stun.NewNonce(c.nonce),
			stun.NewLongTermIntegrity(c.user, "example.org", c.password))
	}
	return stun.MustBuild(set...)
}

// answer is the next STUN message, nil where none comes in time.
func (c *client) answer(wait time.Duration) *stun.Message {
	c.t.Helper()
	b, _ := c.receive(wait)
	if b == nil {
		return nil
	}
	m := &stun.Message{Raw: b}
	if err := m.Decode(); err != nil {
		c.t.Fatalf("got %.40x, which is no STUN: %v", b, err)
	}
	return m
}

// exchange sends m and yields its answer.
func (c *client) exchange(m *stun.Message) *stun.Message {
	c.t.Helper()
	c.send(c.server, m.Raw)
	a := c.answer(5 * time.Second)
	switch {
	case a == nil:
		c.t.Fatalf("got no answer to %v", m.Type)
	case a.TransactionID != m.TransactionID:
		c.t.Fatalf("got %v of another transaction, want an answer to %v", a.Type, m.Type)
	}
	return a
}

// code is the error code of an answer, 0 for success.
func code(m *stun.Message) int {
	if m.Type.Class == stun.ClassSuccessResponse {
		return 0
	}
	var e stun.ErrorCodeAttribute
	if e.GetFrom(m) != nil {
		return -1
	}
	return int(e.Code)
}

// greet gets a nonce.
func (c *client) greet() *client {
	c.t.Helper()
	c.nonce = ""
	a := c.exchange(c.message(stun.MethodAllocate, udpTransport))
	if code(a) != 401 {
		c.t.Fatalf("got code %d to a request without credentials, want 401", code(a))
	}
	var n stun.Nonce
	if err := n.GetFrom(a); err != nil {
		c.t.Fatal(err)
	}
	c.nonce = n.String()
	return c
}

// do sends a request and wants its code.
func (c *client) do(want int, method stun.Method, attributes ...stun.Setter) *stun.Message {
	c.t.Helper()
	a := c.exchange(c.message(method, attributes...))
	if got := code(a); got != want {
		c.t.Fatalf("got code %d to a %v request, want %d", got, method, want)
	}
	return a
}

func (c *client) allocate() *client {
	c.t.Helper()
	if c.nonce == "" {
		c.greet()
	}
	c.relayed = relayedOf(c.t, c.do(0, stun.MethodAllocate, udpTransport))
	return c
}

func relayedOf(t testing.TB, m *stun.Message) netip.AddrPort {
	t.Helper()
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, stun.AttrXORRelayedAddress); err != nil {
		t.Fatal(err)
	}
	ip, _ := netip.AddrFromSlice(x.IP)
	return turn.Canonical(netip.AddrPortFrom(ip, uint16(x.Port)))
}

func (c *client) permit(peer netip.AddrPort) {
	c.t.Helper()
	c.do(0, stun.MethodCreatePermission, peerAddress(peer))
}

func (c *client) bind(n turn.ChannelNumber, peer netip.AddrPort) {
	c.t.Helper()
	c.do(0, stun.MethodChannelBind, channelNumber(n), peerAddress(peer))
}

// indicate sends data to peer in a Send indication.
func (c *client) indicate(peer netip.AddrPort, data []byte) {
	c.t.Helper()
	m := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), peerAddress(peer),
		attribute{stun.AttrData, data})
	c.send(c.server, m.Raw)
}

// wantData receives data of peer in a Data indication.
func (c *client) wantData(peer netip.AddrPort, data []byte) {
	c.t.Helper()
	m := c.answer(5 * time.Second)
	if m == nil || m.Type != stun.NewType(stun.MethodData, stun.ClassIndication) {
		c.t.Fatalf("got %v, want a Data indication", m)
	}
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, stun.AttrXORPeerAddress); err != nil {
		c.t.Fatal(err)
	}
	if ip, _ := netip.AddrFromSlice(x.IP); netip.AddrPortFrom(ip.Unmap(), uint16(x.Port)) != peer {
		c.t.Fatalf("got data of %v, want %v", x, peer)
	}
	if got, err := m.Get(stun.AttrData); err != nil || string(got) != string(data) {
		c.t.Fatalf("got data %.40x (%v), want %.40x", got, err, data)
	}
}

// attribute is a STUN attribute with a value as it stands.
type attribute struct {
	kind  stun.AttrType
	value []byte
}

func (a attribute) AddTo(m *stun.Message) error {
	m.Add(a.kind, a.value)
	return nil
}

var udpTransport = attribute{stun.AttrRequestedTransport, []byte{17, 0, 0, 0}}

func lifetime(seconds uint32) stun.Setter {
	return attribute{stun.AttrLifetime, binary.BigEndian.AppendUint32(nil, seconds)}
}

func channelNumber(n turn.ChannelNumber) stun.Setter {
	return attribute{stun.AttrChannelNumber, []byte{byte(n >> 8), byte(n), 0, 0}}
}

// peerAddress is an XOR-PEER-ADDRESS.
type peerAddress netip.AddrPort

func (p peerAddress) AddTo(m *stun.Message) error {
	a := netip.AddrPort(p)
	return stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
}

// channelData frames data for a channel, without padding.
func channelData(n turn.ChannelNumber, data []byte) []byte {
	b := make([]byte, turn.ChannelHeader, turn.ChannelHeader+len(data))
	turn.PutChannelHeader(b, n, len(data))
	return append(b, data...)
}
