package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"turnstone/internal/testenv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Addresses of a network: the host's, and those of its neighbours on its first two links.
var (
	host4, host6       = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8:a::1")
	second4, second6   = netip.MustParseAddr("198.51.100.1"), netip.MustParseAddr("2001:db8:b::1")
	router4, router6   = netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("2001:db8:a::fe")
	other4, other6     = netip.MustParseAddr("198.51.100.254"), netip.MustParseAddr("2001:db8:b::fe")
	nobody4, nobody6   = netip.MustParseAddr("192.0.2.99"), netip.MustParseAddr("2001:db8:a::99")
	distant4, distant6 = netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8:ffff::7")
	default4, default6 = netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")
	distantNet4        = netip.MustParsePrefix("203.0.113.0/24")
	distantNet6        = netip.MustParsePrefix("2001:db8:ffff::/48")
)

// patience is how long a test waits for what has no bound of its own.
const patience = 5 * time.Second

// network is a host with two links, each to a namespace of its own in which routers answer. The namespaces
// have no names: they end with the last descriptor in them.
type network struct {
	testing.TB
	ns      netns.NsHandle
	h       *netlink.Handle    // of the host
	far     [2]netns.NsHandle  // at the other end of each link
	outside [2]*netlink.Handle // of the same
	links   [2]netlink.Link    // "left" and "right", here
	ends    [2]netlink.Link    // "end" of each, there
}

// newNetwork makes a network. It is gone when the test ends.
func newNetwork(t testing.TB) *network {
	t.Helper()
	testenv.Root(t)
	n := &network{TB: t}
	n.ns, n.h = newNamespace(t)
	for i, name := range []string{"left", "right"} {
		n.far[i], n.outside[i] = newNamespace(t)
		n.must(n.h.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, MTU: 1500, HardwareAddr: hardware(1, byte(i))},
			PeerName:  "end", PeerHardwareAddr: hardware(2, byte(i)), PeerNamespace: netlink.NsFd(n.far[i]),
		}))
		n.links[i], n.ends[i] = n.link(n.h, name), n.link(n.outside[i], "end")
		n.must(n.h.LinkSetUp(n.links[i]))
		n.must(n.outside[i].LinkSetUp(n.ends[i]))
	}
	for i := range n.links { // what is sent before that is dropped
		n.active(n.h, n.links[i])
		n.active(n.outside[i], n.ends[i])
	}
	n.addresses(n.h, n.links[0], host4, host6)
	n.addresses(n.h, n.links[1], second4, second6)
	n.addresses(n.outside[0], n.ends[0], router4, router6)
	n.addresses(n.outside[1], n.ends[1], other4, other6)
	return n
}

// active waits until a link sends.
func (n *network) active(h *netlink.Handle, l netlink.Link) {
	n.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		now, err := h.LinkByIndex(l.Attrs().Index)
		n.must(err)
		own, err := h.AddrList(l, unix.AF_INET6) // its link-local address, which solicits
		if errors.Is(err, netlink.ErrDumpInterrupted) {
			continue
		}
		n.must(err)
		if now.Attrs().OperState == netlink.OperUp && len(own) > 0 && own[0].Flags&unix.IFA_F_TENTATIVE == 0 {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("link %s is not up within %s", l.Attrs().Name, patience)
		}
	}
}

// newNamespace makes a namespace with nothing but lo, which is up.
func newNamespace(t testing.TB) (ns netns.NsHandle, h *netlink.Handle) {
	t.Helper()
	onThread(t, func() (err error) {
		if ns, err = netns.New(); err != nil {
			return err
		}
		// Addresses are there at once, and nobody asks the tests' networks for routers.
		for _, setting := range []string{"default/accept_dad", "all/accept_dad", "default/router_solicitations"} {
			if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+setting, []byte("0"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	t.Cleanup(func() { _ = ns.Close() })
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(h.Close)
	lo, err := h.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := h.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	return ns, h
}

// onThread runs f on a thread of its own, which ends with it.
func onThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// in runs f in a namespace.
func (n *network) in(ns netns.NsHandle, f func() error) {
	n.Helper()
	onThread(n, func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return f()
	})
}

// router makes one that is closed when the test ends.
func (n *network) router() *Router {
	n.Helper()
	r := n.open()
	n.Cleanup(func() {
		if err := r.Close(); err != nil {
			n.Error(err)
		}
	})
	return r
}

// open makes a router that the caller closes.
func (n *network) open() (r *Router) {
	n.Helper()
	n.in(n.ns, func() (err error) {
		r, err = NewRouter()
		return err
	})
	return r
}

func (n *network) must(err error) {
	n.Helper()
	if err != nil {
		n.Fatal(err)
	}
}

func (n *network) link(h *netlink.Handle, name string) netlink.Link {
	n.Helper()
	l, err := h.LinkByName(name)
	n.must(err)
	return l
}

// index is the ifindex of a link of the host.
func (n *network) index(link int) int { return n.links[link].Attrs().Index }

func (n *network) addresses(h *netlink.Handle, l netlink.Link, all ...netip.Addr) {
	n.Helper()
	for _, a := range all {
		bits := 64
		if a.Is4() {
			bits = 24
		}
		n.must(h.AddrAdd(l, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits)), Flags: unix.IFA_F_NODAD}))
	}
	for _, a := range all {
		n.local(h, a)
	}
}

// local waits until the host takes what is sent to an address of its own: the kernel adds the route of an IPv6 address
// in its own time.
func (n *network) local(h *netlink.Handle, a netip.Addr) {
	n.Helper()
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		routes, err := h.RouteGet(a.AsSlice())
		if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
			return
		}
		if time.Now().After(deadline) {
			n.Fatalf("%s is no address of the host within %s: %v, %v", a, patience, routes, err)
		}
	}
}

// via adds or replaces the route to p through a router.
func (n *network) via(p netip.Prefix, gateway netip.Addr) {
	n.Helper()
	n.must(n.h.RouteReplace(&netlink.Route{Dst: ipNet(p), Gw: gateway.AsSlice()}))
}

// neighbour tells the host of the MAC address of one, in a state.
func (n *network) neighbour(link int, a netip.Addr, mac net.HardwareAddr, state int) {
	n.Helper()
	n.must(n.h.NeighSet(&netlink.Neigh{LinkIndex: n.index(link), IP: a.AsSlice(), HardwareAddr: mac, State: state}))
}

// await takes changes until is holds, and yields all of them as one.
func (n *network) await(r *Router, what string, is func() bool) (sum Change) {
	n.Helper()
	return n.within(patience, r, what, is)
}

func (n *network) within(limit time.Duration, r *Router, what string, is func() bool) (sum Change) {
	n.Helper()
	deadline := time.After(limit)
	for !is() {
		select {
		case <-r.Changes():
			c, err := r.Take()
			n.must(err)
			sum.merge(&c)
		case <-deadline:
			n.Fatalf("%s: not within %s", what, limit)
		}
	}
	return sum
}

// merge adds c to sum.
func (c *Change) merge(d *Change) {
	c.All = c.All || d.All
	c.Prefixes = append(c.Prefixes, d.Prefixes...)
	for _, g := range d.Gateways {
		if !slices.Contains(c.Gateways, g) {
			c.Gateways = append(c.Gateways, g)
		}
	}
	for _, l := range d.Links {
		if !slices.Contains(c.Links, l) {
			c.Links = append(c.Links, l)
		}
	}
}

// resolved waits until g has a hop.
func (n *network) resolved(r *Router, g Gateway) Hop {
	n.Helper()
	n.await(r, fmt.Sprintf("%s is resolved", g.Address), func() bool {
		_, why := r.Hop(g)
		return why == ""
	})
	h, _ := r.Hop(g)
	return h
}

func hardware(b ...byte) net.HardwareAddr {
	return append(net.HardwareAddr{0x00, 0x00, 0x5e, 0x00, 0x53, 0x00}[:6-len(b)], b...)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
