package test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

const (
	attrData         stun.AttrType = 0x0013
	attrDontFragment stun.AttrType = 0x001A
)

// narrow gives lo the MTU of Ethernet.
func (s *space) narrow() {
	s.t.Helper()
	s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(lo, 1500)
	})
}

// tap is a raw socket that sees UDP datagrams to an IPv4 address with their headers.
type tap struct {
	t testing.TB
	f *os.File
}

func (s *space) tap(a netip.Addr) *tap {
	s.t.Helper()
	var fd int
	s.do(func() (err error) {
		if fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.IPPROTO_UDP); err != nil {
			return err
		}
		return unix.Bind(fd, &unix.SockaddrInet4{Addr: a.As4()})
	})
	f := os.NewFile(uintptr(fd), "tap")
	s.t.Cleanup(func() { _ = f.Close() })
	return &tap{s.t, f}
}

// next is the length of the payload of the next datagram, or of a train of them that lo does not take apart, and
// whether it has DF.
func (p *tap) next() (length int, df bool) {
	p.t.Helper()
	b := make([]byte, 1<<16)
	if err := p.f.SetReadDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
	n, err := p.f.Read(b)
	if err != nil || n < 28 {
		p.t.Fatalf("got %d bytes, %v, want a datagram", n, err)
	}
	return n - 28, b[6]&0x40 != 0
}

// indicate sends a Send indication.
func (c *client) indicate(peer netip.AddrPort, data []byte, setters ...stun.Setter) {
	all := append([]stun.Setter{
		stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication),
		xor(peer),
		stun.RawAttribute{Type: attrData, Value: data},
	}, setters...)
	c.send(stun.MustBuild(all...).Raw)
}

var dontFragment = stun.RawAttribute{Type: attrDontFragment}

// TestDontFragment looks at what is on the wire: DF is set for what is asked for, and for nothing else.
func TestDontFragment(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.narrow()
	d := startDaemon(t, s, onLoopback...)
	c := newClient(t, s, "127.0.0.1:20000", server4)
	c.must(c.request(stun.MethodAllocate, transport(), dontFragment))
	peer := addr("127.0.0.5:4000")
	s.listen(peer)
	c.bind(0x4000, peer)
	wire := s.tap(peer.Addr())
	// The burst has them side by side, and as trains; larger ones than the link takes are dropped.
	burst := []struct {
		count, size int
		whole       bool
	}{{1, 100, false}, {1, 101, true}, {1, 102, false}, {3, 103, true}, {2, 104, false}, {1, 1472, true}, {1, 1473, true}, {2, 2000, true}, {1, 2000, false}, {1, 50, true}}
	for _, b := range burst {
		for range b.count {
			if b.whole {
				c.indicate(peer, make([]byte, b.size), dontFragment)
			} else {
				c.indicate(peer, make([]byte, b.size))
			}
		}
	}
	for _, b := range burst {
		if b.whole && b.size > 1472 {
			continue
		}
		for got := 0; got < b.count*b.size; {
			n, df := wire.next()
			if got += n; df != b.whole || n%b.size != 0 || got > b.count*b.size {
				t.Fatalf("got %d bytes with DF %t, want %d datagrams of %d with DF %t", n, df, b.count, b.size, b.whole)
			}
		}
	}
	c.sendChannel(0x4000, make([]byte, 77))
	if n, df := wire.next(); n != 77 || df {
		t.Errorf("got %d bytes with DF %t by a channel, want 77 without", n, df)
	}
	const dropped = `turnstone_dropped_total{reason="mtu"} 3`
	eventually(t, "the three that are too large are counted", func() error {
		if _, body := d.get("/metrics"); !strings.Contains(body, dropped) {
			return fmt.Errorf("the metrics lack %s", dropped)
		}
		return nil
	})
}

// TestDontFragmentIsIgnored sends more than the link takes where a datagram goes from one family to the other, or from IPv6
// to IPv6: it arrives in fragments, with DONT-FRAGMENT as without (RFC 8656 section 13).
func TestDontFragmentIsIgnored(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.narrow()
	startDaemon(t, s, onLoopback...)
	for _, row := range []struct{ name, client, server, peer string }{
		{"IPv4ToIPv6", "127.0.0.1:20000", server4, "[::1]:4000"},
		{"IPv6ToIPv6", "[::1]:20000", server6, "[::1]:4001"},
		{"IPv6ToIPv4", "[::1]:20001", server6, "127.0.0.5:4000"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newClient(t, s, row.client, row.server)
			peer := addr(row.peer)
			family := byte(1)
			if peer.Addr().Is6() {
				family = 2
			}
			c.must(c.request(stun.MethodAllocate, transport(), stun.RawAttribute{Type: attrRequestedFamily, Value: []byte{family, 0, 0, 0}}, dontFragment))
			conn := s.listen(peer)
			c.bind(0x4000, peer)
			for _, data := range [][]byte{make([]byte, 100), make([]byte, 3000), []byte("the last")} {
				c.indicate(peer, data, dontFragment)
				if err := conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
					t.Fatal(err)
				}
				b := make([]byte, 1<<16)
				if n, _, err := conn.ReadFromUDP(b); err != nil || !bytes.Equal(b[:n], data) {
					t.Fatalf("got %d bytes, %v, want %d", n, err, len(data))
				}
			}
			if family == 1 {
				wire := s.tap(peer.Addr())
				c.indicate(peer, make([]byte, 99), dontFragment)
				if n, df := wire.next(); n != 99 || df {
					t.Errorf("got %d bytes with DF %t, want 99 without", n, df)
				}
			}
		})
	}
}

// TestDontFragmentOfStreams holds that it is heeded in either family where nothing came in a datagram (RFC 8656 section 15).
func TestDontFragmentOfStreams(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.narrow()
	d := startDaemon(t, s, append(onLoopback, onStreams(t)...)...)
	for i, peer := range []netip.AddrPort{addr("127.0.0.5:4000"), addr("[::1]:4000")} {
		conn, _ := dial(t, s, "tcp")
		c := newStreamClient(t, conn, server4)
		family := byte(1 + i)
		c.must(c.request(stun.MethodAllocate, transport(), stun.RawAttribute{Type: attrRequestedFamily, Value: []byte{family, 0, 0, 0}}))
		at := s.listen(peer)
		c.bind(0x4000, peer)
		c.indicate(peer, make([]byte, 2000), dontFragment)
		c.indicate(peer, make([]byte, 3000))
		if err := at.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 1<<16)
		if n, _, err := at.ReadFromUDP(b); err != nil || n != 3000 {
			t.Errorf("%v: got %d bytes, %v, want the 3000 that may be fragmented", peer, n, err)
		}
		dropped := fmt.Sprintf(`turnstone_dropped_total{reason="mtu"} %d`, i+1)
		eventually(t, "the one that may not is counted", func() error {
			if _, body := d.get("/metrics"); !strings.Contains(body, dropped) {
				return fmt.Errorf("the metrics lack %s", dropped)
			}
			return nil
		})
	}
}
