package test

import (
	"bytes"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/pion/transport/v3/stdnet"
	"github.com/pion/turn/v4"
)

// TestPionClient relays both ways through allocations of pion's client.
func TestPionClient(t *testing.T) {
	for _, row := range []struct{ name, client, server string }{
		{"IPv4", "127.0.0.1:0", server4},
		{"IPv6", "[::1]:0", server6}, // this client cannot ask for an IPv6 relay
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			d := startDaemon(t, s, onLoopback...)
			peer := s.listen(addr("127.0.0.1:0"))
			c, relayed := pionAllocate(t, s, row.client, row.server)
			if err := c.CreatePermission(peer.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			got := d.allocations()
			if len(got) != 1 || got[c.LocalAddr()].Relayed[0] != relayed.LocalAddr().String() || len(got[c.LocalAddr()].Permissions) != 1 {
				t.Errorf("allocations of %s: got %+v, want one with %v and a permission", c.LocalAddr(), got, relayed.LocalAddr())
			}
			// The first goes by a Send indication, later ones by the channel that the client binds meanwhile.
			for i := range 50 {
				echo(t, relayed, peer, fmt.Appendf(nil, "datagram %d", i))
			}
			eventually(t, "the client binds a channel", func() error {
				echo(t, relayed, peer, []byte("once more"))
				if n := len(d.allocations()[c.LocalAddr()].Channels); n != 1 {
					return fmt.Errorf("%d channels", n)
				}
				return nil
			})
			if err := relayed.Close(); err != nil { // a Refresh with lifetime 0
				t.Fatal(err)
			}
			eventually(t, "the allocation is gone", func() error {
				if n := d.status().Allocations; n != 0 {
					return fmt.Errorf("%d allocations", n)
				}
				return nil
			})
			d.stop()
			d.verify()
		})
	}
}

// TestPionClientRefreshes sees the client's own refreshes in the log.
func TestPionClientRefreshes(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, append(onLoopback, "--default-lifetime", "2s", "--max-lifetime", "2s")...)
	peer := s.listen(addr("127.0.0.1:0"))
	c, relayed := pionAllocate(t, s, "127.0.0.1:0", server4)
	if err := c.CreatePermission(peer.LocalAddr()); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the client refreshes", func() error {
		n := 0
		for _, e := range d.events() {
			if e.Kind == "AllocationRefreshed" {
				n++
			}
		}
		if n < 3 {
			return fmt.Errorf("%d refreshes", n)
		}
		return nil
	})
	echo(t, relayed, peer, []byte("longer than its first lifetime"))
}

// pionClient is a pion client that knows where it is.
type pionClient struct {
	*turn.Client
	conn net.PacketConn
}

func (c pionClient) LocalAddr() string { return c.conn.LocalAddr().String() }

// bothFamilies lets the client have a server with an IPv6 address.
type bothFamilies struct{ *stdnet.Net }

func (bothFamilies) ResolveUDPAddr(_, address string) (*net.UDPAddr, error) {
	return net.ResolveUDPAddr("udp", address)
}

func pionAllocate(t *testing.T, s *space, at, server string) (pionClient, net.PacketConn) {
	t.Helper()
	conn := s.listen(addr(at))
	c, relayed := pionOn(t, conn, server, username, password, realm)
	return pionClient{c, conn}, relayed
}

// pionAs makes an allocation as somebody, from 127.0.0.1.
func pionAs(t *testing.T, s *space, server, username, password, realm string) (*turn.Client, net.PacketConn) {
	t.Helper()
	return pionOn(t, s.listen(addr("127.0.0.1:0")), server, username, password, realm)
}

func pionOn(t *testing.T, conn net.PacketConn, server, username, password, realm string) (*turn.Client, net.PacketConn) {
	t.Helper()
	c, err := turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: server, Username: username, Password: password, Realm: realm, Conn: conn, Net: bothFamilies{new(stdnet.Net)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	relayed, err := c.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	return c, relayed
}

// echo sends payload from the relayed address to the peer and back.
func echo(t *testing.T, relayed, peer net.PacketConn, payload []byte) {
	t.Helper()
	from := relayed
	for _, leg := range []struct {
		name     string
		out, in  net.PacketConn
		to, want string
	}{
		{"to the peer", relayed, peer, peer.LocalAddr().String(), from.LocalAddr().String()},
		{"to the client", peer, relayed, from.LocalAddr().String(), peer.LocalAddr().String()},
	} {
		to, err := net.ResolveUDPAddr("udp", leg.to)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leg.out.WriteTo(payload, to); err != nil {
			t.Fatalf("%s: %v", leg.name, err)
		}
		got := make([]byte, 2048)
		if err := leg.in.SetReadDeadline(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		}
		n, source, err := leg.in.ReadFrom(got)
		if err != nil {
			t.Fatalf("%s: %v", leg.name, err)
		}
		if !bytes.Equal(got[:n], payload) || source.String() != leg.want {
			t.Fatalf("%s: got %q from %v, want %q from %s", leg.name, got[:n], source, payload, leg.want)
		}
	}
}
