package test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"testing"

	"github.com/pion/stun/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// A lab with routers has hosts behind two of them on each side of the relay: host i of a side is behind router i.
var (
	routedClients4 = [2]string{"203.0.113.1", "203.0.113.2"}
	routedClients6 = [2]string{"2001:db8:c::1", "2001:db8:c::2"}
	routedPeers4   = [2]string{"203.0.113.129", "203.0.113.130"}
	routedPeers6   = [2]string{"2001:db8:d::1", "2001:db8:d::2"}
)

// Second routers. The first are the lab's client and peer.
const (
	secondClientSide4, secondClientSide6 = "192.0.2.3", "2001:db8:1::3"
	secondPeerSide4, secondPeerSide6     = "198.51.100.3", "2001:db8:2::3"
)

// routedLab is a lab with routers: spaces by side and router.
type routedLab struct {
	*lab
	clients, peers [2]*space
}

// newRoutedLab joins the sides to the relay in either order, so that either has the interface with the lower index.
func newRoutedLab(t *testing.T, peersFirst bool) *routedLab {
	t.Helper()
	l := &lab{t: t, clients: newSpace(t), relay: newSpace(t), peer: newSpace(t)}
	l.instance = fmt.Sprintf("test-%d-%d", os.Getpid(), labs.Add(1))
	sides := []func(){
		func() {
			l.join(l.clients, []string{labClient4 + "/24", labClient6 + "/64"}, "relay0", []string{labServer4 + "/24", labServer6 + "/64"})
		},
		func() {
			l.join(l.peer, []string{labPeer4 + "/24", labPeer6 + "/64"}, "relay1", []string{labRelay4 + "/24", labRelay6 + "/64"})
		},
	}
	if peersFirst {
		slices.Reverse(sides)
	}
	for _, join := range sides {
		join()
	}
	t.Cleanup(l.unpin)
	r := &routedLab{lab: l}
	r.clients = [2]*space{l.clients, l.secondRouter(l.clients, secondClientSide4+"/24", secondClientSide6+"/64")}
	r.peers = [2]*space{l.peer, l.secondRouter(l.peer, secondPeerSide4+"/24", secondPeerSide6+"/64")}
	for i := range 2 {
		r.behind(r.clients[i], labServer4, labServer6, routedClients4[i], routedClients6[i])
		r.behind(r.peers[i], labRelay4, labRelay6, routedPeers4[i], routedPeers6[i])
	}
	l.relay.do(func() error {
		return errors.Join(
			hostRoute(routedClients4[0], labClient4), hostRoute(routedClients4[1], secondClientSide4),
			hostRoute(routedClients6[0], labClient6), hostRoute(routedClients6[1], secondClientSide6),
			hostRoute(routedPeers4[0], labPeer4), hostRoute(routedPeers4[1], secondPeerSide4),
			hostRoute(routedPeers6[0], labPeer6), hostRoute(routedPeers6[1], secondPeerSide6),
		)
	})
	return r
}

// secondRouter makes a space with another MAC address on the link of first.
func (l *lab) secondRouter(first *space, addrs ...string) *space {
	l.t.Helper()
	s := newSpace(l.t)
	first.do(func() error {
		lower, err := netlink.LinkByName("far0")
		if err != nil {
			return err
		}
		return netlink.LinkAdd(&netlink.Macvlan{
			LinkAttrs: netlink.LinkAttrs{Name: "far1", ParentIndex: lower.Attrs().Index, Namespace: netlink.NsFd(s.net)},
			Mode:      netlink.MACVLAN_MODE_BRIDGE,
		})
	})
	s.do(func() error { return addAddresses("far1", addrs) })
	return s
}

// behind puts a host behind the router in s, which reaches everybody through the relay.
func (l *lab) behind(s *space, relay4, relay6 string, host ...string) {
	l.t.Helper()
	s.do(func() error {
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		for _, h := range host {
			a := &netlink.Addr{IPNet: netlink.NewIPNet(net.ParseIP(h)), Flags: unix.IFA_F_NODAD}
			if err := netlink.AddrAdd(lo, a); err != nil {
				return fmt.Errorf("add %s to lo: %w", h, err)
			}
		}
		name := "far0"
		if _, err := netlink.LinkByName("far1"); err == nil {
			name = "far1"
		}
		return errors.Join(defaultRoute(name, relay4), defaultRoute(name, relay6))
	})
}

// defaultRoute has everything that is not on a link go by a gateway.
func defaultRoute(name, gateway string) error {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	return netlink.RouteReplace(&netlink.Route{LinkIndex: nic.Attrs().Index, Gw: net.ParseIP(gateway)})
}

// hostRoute has what is for host go by a gateway.
func hostRoute(host, gateway string) error {
	return netlink.RouteReplace(&netlink.Route{Dst: netlink.NewIPNet(net.ParseIP(host)), Gw: net.ParseIP(gateway)})
}

// TestKernelRelaysBetweenGateways has clients and peers behind different routers of two interfaces, and of one.
func TestKernelRelaysBetweenGateways(t *testing.T) {
	for name, peersFirst := range map[string]bool{"ClientsFirst": false, "PeersFirst": true} {
		t.Run(name, func(t *testing.T) {
			l := newRoutedLab(t, peersFirst)
			d := l.start("--allow-peer", "203.0.113.0/24", "--allow-peer", "2001:db8::/32")
			v6 := func(a string) string { return "[" + a + "]" }
			for i, row := range []struct {
				client    int
				at        string
				server    string
				peerSpace *space
				peer      string
				family    byte
			}{
				{0, routedClients4[0], labServer4, l.peers[1], routedPeers4[1], familyIPv4},
				{1, routedClients4[1], labServer4, l.peers[0], routedPeers4[0], familyIPv4},
				{1, v6(routedClients6[1]), v6(labServer6), l.peers[1], v6(routedPeers6[1]), familyIPv6},
				{0, v6(routedClients6[0]), v6(labServer6), l.peers[0], routedPeers4[0], familyIPv4},
				{1, routedClients4[1], labServer4, l.peers[0], v6(routedPeers6[0]), familyIPv6},
				// On the client's own side, behind the other router: back by the interface it came on.
				{0, routedClients4[0], labServer4, l.clients[1], routedClients4[1], familyIPv4},
				{1, v6(routedClients6[1]), v6(labServer6), l.clients[0], v6(routedClients6[0]), familyIPv6},
			} {
				what := fmt.Sprintf("call %d, from %s to %s", i, row.at, row.peer)
				peer := row.peerSpace.listen(addr(fmt.Sprintf("%s:%d", row.peer, 6001+i)))
				go reflect(peer)
				c := talkerOf(newClient(t, l.clients[row.client], fmt.Sprintf("%s:%d", row.at, 5001+i), row.server+":3478"), 0x4001)
				c.must(c.request(stun.MethodAllocate, transport(), requested(row.family)))
				c.bind(c.channel, peer.LocalAddr().(*net.UDPAddr).AddrPort())
				d.offloaded(3 * (i + 1))
				const n = 300
				d.wantByKernel(what, map[string]uint64{"to-peer": n, "to-client": n}, func() {
					c.talk(n, func(i int) int { return 8 + i*4%1200 })
				})
				d.wantUsage(c, n)
			}
			if got := d.kernel().Gateways; got != 8 {
				t.Errorf("got %d gateways, want 8: two of each family on each side", got)
			}
		})
	}
}
