package test

import (
	"crypto/tls"
	"net"
	"net/netip"
	"testing"

	"github.com/pion/stun/v3"
	"github.com/pires/go-proxyproto"
)

// TestLoadBalancer has a load balancer say whom it speaks for, over TCP and TLS, and check the relay's health.
func TestLoadBalancer(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, append(append(onLoopback, onStreams(t)...), "--proxy-protocol-from", "127.0.0.9/32")...)
	dialFrom := func(from, to string, h *proxyproto.Header) (conn net.Conn) {
		t.Helper()
		s.do(func() (err error) {
			out := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
			if conn, err = out.Dial("tcp", to); err == nil && h != nil {
				_, err = h.WriteTo(conn)
			}
			return err
		})
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	client := func(port uint16) *proxyproto.Header {
		return proxyproto.HeaderProxyFromAddrs(2, net.TCPAddrFromAddrPort(netip.AddrPortFrom(netip.MustParseAddr("192.0.2.7"), port)), net.TCPAddrFromAddrPort(addr(server4)))
	}
	newStreamClient(t, dialFrom("127.0.0.9", server4, client(4001)), server4).allocate()
	secure := tls.Client(dialFrom("127.0.0.9", tlsServer4, client(4002)), &tls.Config{InsecureSkipVerify: true}) //nolint:gosec // the test made the certificate
	newStreamClient(t, secure, tlsServer4).allocate()
	direct := newStreamClient(t, dialFrom("127.0.0.8", server4, nil), server4)
	direct.allocate()
	got := d.allocations()
	for at, protocol := range map[string]string{"192.0.2.7:4001": "tcp", "192.0.2.7:4002": "tls", direct.addr(): "tcp"} {
		if got[at].Protocol != protocol {
			t.Errorf("got %+v, want an allocation of %s over %s", got, at, protocol)
		}
	}
	health := newStreamClient(t, dialFrom("127.0.0.9", server4, &proxyproto.Header{Version: 2, Command: proxyproto.LOCAL}), server4)
	answer := health.must(build(stun.MethodBinding))
	var mapped stun.XORMappedAddress
	if err := mapped.GetFrom(answer); err != nil || mapped.String() != health.addr() {
		t.Errorf("got the mapped address %v, %v, want that of the load balancer itself, %s", mapped, err, health.addr())
	}
}
