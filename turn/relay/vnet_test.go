package relay

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/logging"
	"github.com/pion/stun/v3"
	"github.com/pion/transport/v3/vnet"
)

// virtual is a server on a network that is not the host's.
type virtual struct {
	*rig
	router *vnet.Router
}

// newVirtual runs a server at 192.0.2.1 of a virtual network.
func newVirtual(t testing.TB, adjust func(*Config)) *virtual {
	t.Helper()
	router, err := vnet.NewRouter(&vnet.RouterConfig{CIDR: "192.0.2.0/24", LoggerFactory: logging.NewDefaultLoggerFactory()})
	if err != nil {
		t.Fatal(err)
	}
	v := &virtual{router: router}
	n := v.host(t, "192.0.2.1")
	if err := router.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { router.Stop() })
	ip := netip.MustParseAddr("192.0.2.1")
	v.rig = serveTest(t, func(c *Config) {
		c.Net = n
		c.Listeners = []Listener{{Address: netip.AddrPortFrom(ip, 3478), Protocol: turn.UDP}}
		c.Settings.Rules.Relays = []turn.Relay{{IP: ip, External: ip}}
		if adjust != nil {
			adjust(c)
		}
	})
	return v
}

func (v *virtual) host(t testing.TB, ip string) *vnet.Net {
	t.Helper()
	n, err := vnet.NewNet(&vnet.NetConfig{StaticIPs: []string{ip}})
	if err != nil {
		t.Fatal(err)
	}
	if err := v.router.AddNet(n); err != nil {
		t.Fatal(err)
	}
	return n
}

// virtualHost is a socket on the virtual network.
type virtualHost struct {
	t      testing.TB
	conn   net.PacketConn
	server net.Addr
}

func (v *virtual) client(t testing.TB, ip string) *virtualHost {
	t.Helper()
	c, err := v.host(t, ip).ListenPacket("udp4", ip+":5000")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &virtualHost{t: t, conn: c, server: net.UDPAddrFromAddrPort(v.addr)}
}

func (h *virtualHost) send(b []byte) { h.sendTo(h.server, b) }

func (h *virtualHost) sendTo(to net.Addr, b []byte) {
	h.t.Helper()
	if _, err := h.conn.WriteTo(b, to); err != nil {
		h.t.Fatal(err)
	}
}

// receive is the next datagram, nil where none comes in time.
func (h *virtualHost) receive(wait time.Duration) []byte {
	h.t.Helper()
	if err := h.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		h.t.Fatal(err)
	}
	b := make([]byte, 1<<16)
	n, _, err := h.conn.ReadFrom(b)
	var timeout net.Error
	if errors.Is(err, os.ErrDeadlineExceeded) || errors.As(err, &timeout) && timeout.Timeout() {
		return nil
	}
	if err != nil {
		h.t.Fatal(err)
	}
	return b[:n]
}

func (h *virtualHost) exchange(set ...stun.Setter) *stun.Message {
	h.t.Helper()
	h.send(stun.MustBuild(append([]stun.Setter{stun.TransactionID}, set...)...).Raw)
	m := &stun.Message{Raw: h.receive(5 * time.Second)}
	if err := m.Decode(); err != nil {
		h.t.Fatal(err)
	}
	return m
}

func TestVirtualNetwork(t *testing.T) {
	g := newVirtual(t, nil)
	c, peer := g.client(t, "192.0.2.10"), g.client(t, "192.0.2.20")
	peerAddr := netip.MustParseAddrPort("192.0.2.20:5000")
	var nonce stun.Nonce
	if err := nonce.GetFrom(c.exchange(stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpTransport)); err != nil {
		t.Fatal(err)
	}
	ask := func(method stun.Method, set ...stun.Setter) *stun.Message {
		t.Helper()
		set = append([]stun.Setter{stun.NewType(method, stun.ClassRequest)}, set...)
		m := c.exchange(append(set, stun.NewUsername("alice"), stun.NewRealm("example.org"), nonce,
			stun.NewLongTermIntegrity("alice", "example.org", "secret"))...)
		if code(m) != 0 {
			t.Fatalf("got code %d to a %v request, want success", code(m), method)
		}
		return m
	}
	relayed := net.UDPAddrFromAddrPort(relayedOf(t, ask(stun.MethodAllocate, udpTransport)))
	ask(stun.MethodCreatePermission, peerAddress(peerAddr))
	c.send(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), peerAddress(peerAddr),
		attribute{stun.AttrData, []byte("send")}).Raw)
	if got := peer.receive(5 * time.Second); string(got) != "send" {
		t.Fatalf("got %q, want send", got)
	}
	peer.sendTo(relayed, []byte("data"))
	m := &stun.Message{Raw: c.receive(5 * time.Second)}
	if err := m.Decode(); err != nil || m.Type.Method != stun.MethodData {
		t.Fatalf("got %v (%v), want a Data indication", m, err)
	}
	ask(stun.MethodChannelBind, channelNumber(0x4000), peerAddress(peerAddr))
	c.send(channelData(0x4000, []byte("channel")))
	if got := peer.receive(5 * time.Second); string(got) != "channel" {
		t.Fatalf("got %q, want channel", got)
	}
	peer.sendTo(relayed, []byte("back"))
	if got := c.receive(5 * time.Second); string(got) != string(channelData(0x4000, []byte("back"))) {
		t.Fatalf("got %x, want ChannelData", got)
	}
	ask(stun.MethodRefresh, lifetime(0))
	c.send(channelData(0x4000, []byte("late")))
	if got := peer.receive(quiet); got != nil {
		t.Errorf("got %q after the end, want nothing", got)
	}
}
