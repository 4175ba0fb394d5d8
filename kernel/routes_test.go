package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestRoute(t *testing.T) {
	n := newNetwork(t)
	n.via(default4, router4)
	n.via(distantNet6, router6)
	n.must(n.h.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.64/26")), Gw: other4.AsSlice(), MTU: 1400}))
	for _, p := range []string{"203.0.113.128/28", "2001:db8:ffff:1::/64"} {
		n.must(n.h.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix(p)), Type: unix.RTN_BLACKHOLE}))
	}
	n.must(n.h.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.144/28")), Type: unix.RTN_PROHIBIT}))
	lo := n.link(n.h, "lo").Attrs().Index
	n.must(n.h.RouteAdd(&netlink.Route{Dst: ipNet(netip.MustParsePrefix("203.0.113.160/28")), LinkIndex: lo}))
	n.must(n.h.RouteAdd(&netlink.Route{
		Dst: ipNet(netip.MustParsePrefix("203.0.113.176/28")), LinkIndex: lo, Type: unix.RTN_LOCAL,
		Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}))
	left, right := n.index(0), n.index(1)
	rows := []struct {
		name, source, destination string
		route                     Route
		reason                    Reason
	}{
		{"OnLink4", "192.0.2.1", "192.0.2.77", Route{Gateway{Link: left, Address: netip.MustParseAddr("192.0.2.77")}, 0}, ""},
		{"OnLink6", "2001:db8:b::1", "2001:db8:b::77", Route{Gateway{Link: right, Address: netip.MustParseAddr("2001:db8:b::77")}, 0}, ""},
		{"OnLinkFromAnotherLinksAddress", "192.0.2.1", "198.51.100.9", Route{Gateway{Link: right, Address: netip.MustParseAddr("198.51.100.9")}, 0}, ""},
		{"Via4", "192.0.2.1", "203.0.113.7", Route{Gateway{Link: left, Address: router4}, 0}, ""},
		{"Via6", "2001:db8:a::1", "2001:db8:ffff::7", Route{Gateway{Link: left, Address: router6}, 0}, ""},
		{"LongestPrefixWithMTU", "198.51.100.1", "203.0.113.65", Route{Gateway{Link: right, Address: other4}, 1400}, ""},
		{"NoRoute6", "2001:db8:a::1", "2001:db8:eeee::1", Route{}, ReasonNoRoute},
		{"BlackHole4", "192.0.2.1", "203.0.113.130", Route{}, ReasonNoRoute},
		{"BlackHole6", "2001:db8:a::1", "2001:db8:ffff:1::1", Route{}, ReasonNoRoute},
		{"Prohibited", "192.0.2.1", "203.0.113.145", Route{}, ReasonNoRoute},
		{"Loopback", "192.0.2.1", "203.0.113.161", Route{}, ReasonLoopback},
		{"OwnAddress4", "192.0.2.1", "198.51.100.1", Route{}, ReasonLocal},
		{"OwnAddress6", "2001:db8:a::1", "2001:db8:b::1", Route{}, ReasonLocal},
		{"OwnSourceAddress", "192.0.2.1", "192.0.2.1", Route{}, ReasonLocal},
		{"OwnLoopbackAddress", "192.0.2.1", "127.0.0.9", Route{}, ReasonLocal},
		{"OwnPrefix", "192.0.2.1", "203.0.113.177", Route{}, ReasonLocal},
		{"FromOwnPrefix", "203.0.113.177", "192.0.2.77", Route{Gateway{Link: left, Address: netip.MustParseAddr("192.0.2.77")}, 0}, ""},
		{"SubnetBroadcast", "192.0.2.1", "192.0.2.255", Route{}, ReasonNotUnicast},
		{"Broadcast", "192.0.2.1", "255.255.255.255", Route{}, ReasonNotUnicast},
		{"Multicast4", "192.0.2.1", "233.252.0.1", Route{}, ReasonNotUnicast},
		{"Multicast6", "2001:db8:a::1", "ff02::1", Route{}, ReasonNotUnicast},
		{"LinkLocal6", "2001:db8:a::1", "fe80::1", Route{}, ReasonLinkLocal},
		{"ForeignSource4", "192.0.2.200", "203.0.113.7", Route{}, ReasonSource},
		{"ForeignSource6", "2001:db8:a::200", "2001:db8:ffff::7", Route{}, ReasonSource},
		{"Families", "192.0.2.1", "2001:db8:ffff::7", Route{}, ReasonFamilies},
	}
	followed, asked := n.router(), n.router()
	asked.fib, asked.large = nil, true
	for _, c := range rows {
		t.Run(c.name, func(t *testing.T) {
			for name, r := range map[string]*Router{"followed": followed, "asked": asked} {
				route, why := r.Route(netip.MustParseAddr(c.source), netip.MustParseAddr(c.destination))
				if route != c.route || why != c.reason {
					t.Errorf("%s: got %+v %q, want %+v %q", name, route, why, c.route, c.reason)
				}
			}
		})
	}
	if len(followed.answers) > 0 {
		t.Errorf("the kernel was asked %d times where routes are plain", len(followed.answers))
	}
}

func TestRouteIsReplaced(t *testing.T) {
	n := newNetwork(t)
	n.via(distantNet4, router4)
	n.via(distantNet6, router6)
	r := n.router()
	before := netip.MustParseAddr("192.0.2.77")
	n.via(distantNet4, other4)
	n.via(distantNet6, other6)
	c := n.await(r, "both routes lead elsewhere", func() bool {
		a, _ := r.Route(host4, distant4)
		b, _ := r.Route(host6, distant6)
		return a.Gateway == Gateway{Link: n.index(1), Address: other4} && b.Gateway == Gateway{Link: n.index(1), Address: other6}
	})
	if !c.Touches(host4, distant4) || !c.Touches(host6, distant6) || c.Touches(host4, before) {
		t.Errorf("got the change %+v, want one of %s and %s", c, distantNet4, distantNet6)
	}
	n.must(n.h.RouteDel(&netlink.Route{Dst: ipNet(distantNet4), Gw: other4.AsSlice()}))
	c = n.await(r, "the route is gone", func() bool {
		_, why := r.Route(host4, distant4)
		return why == ReasonNoRoute
	})
	if !c.Touches(host4, distant4) {
		t.Errorf("got the change %+v, want one of %s", c, distantNet4)
	}
}

func TestPolicyRule(t *testing.T) {
	n := newNetwork(t)
	n.via(default4, router4)
	n.via(default6, router6)
	r := n.router()
	for _, own := range []netip.Addr{second4, second6} {
		gateway, all := other4, default4
		if own.Is6() {
			gateway, all = other6, default6
		}
		n.must(n.h.RouteAdd(&netlink.Route{Dst: ipNet(all), Gw: gateway.AsSlice(), Table: 100}))
		rule := netlink.NewRule()
		rule.Src, rule.Table = ipNet(netip.PrefixFrom(own, own.BitLen())), 100
		if rule.Family = unix.AF_INET; own.Is6() {
			rule.Family = unix.AF_INET6
		}
		n.must(n.h.RuleAdd(rule))
		first, far := host4, distant4
		if own.Is6() {
			first, far = host6, distant6
		}
		c := n.await(r, "the rule is heeded", func() bool {
			a, _ := r.Route(own, far)
			return a.Gateway == Gateway{Link: n.index(1), Address: gateway}
		})
		if !c.All {
			t.Errorf("got the change %+v, want all", c)
		}
		a, why := r.Route(first, far)
		if a.Gateway.Link != n.index(0) || why != "" {
			t.Errorf("from %s: got %+v %q, want the router on link %d", first, a, why, n.index(0))
		}
		n.must(n.h.RuleDel(rule))
		n.await(r, "the rule is gone", func() bool {
			a, _ := r.Route(own, far)
			return a.Gateway.Link == n.index(0)
		})
	}
}

func TestPathMTU(t *testing.T) {
	for name, large := range map[string]bool{"Followed": false, "Asked": true} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.via(default4, router4)
			n.via(default6, router6)
			n.narrow()
			r := n.router()
			if large {
				r.fib, r.large = nil, true
			}
			n.lower(r, host4, second4, distant4)
			n.lower(r, host6, second6, distant6)
			later := n.router()
			for _, p := range []endpoints{{host4, distant4}, {host6, distant6}} {
				if a, why := later.Route(p.source, p.destination); a.MTU != 1300 || why != "" {
					t.Errorf("a router made later, to %s: got %+v %q, want an MTU of 1300", p.destination, a, why)
				}
			}
			if _, err := r.PathMTU(host6, netip.MustParseAddr("192.0.2.2")); err == nil {
				t.Error("got a path MTU between families")
			}
		})
	}
}

// lower has the path from own to far lowered, and holds r to it for both sources.
func (n *network) lower(r *Router, own, second, far netip.Addr) {
	n.Helper()
	mtu, err := r.PathMTU(own, far)
	n.must(err)
	if mtu != 1500 {
		n.Errorf("to %s: got a path MTU of %d before anything was said, want 1500", far, mtu)
	}
	before, why := r.Route(second, far)
	if before.MTU != 0 || why != "" {
		n.Errorf("from %s to %s: got %+v %q before anything was said, want no MTU", second, far, before, why)
	}
	n.tooBig(own, far)
	if mtu, err = r.PathMTU(own, far); err != nil || mtu != 1300 {
		n.Errorf("to %s: got a path MTU of %d, %v, want 1300", far, mtu, err)
	}
	for _, source := range []netip.Addr{own, second} {
		after, why := r.Route(source, far)
		if after.MTU != 1300 || why != "" || after.Gateway != before.Gateway {
			n.Errorf("from %s to %s: got %+v %q, want an MTU of 1300", source, far, after, why)
		}
	}
}

// narrow has the router on the left forward to the distant networks, by a link with an MTU of 1300.
func (n *network) narrow() {
	n.Helper()
	h := n.outside[0]
	n.must(h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "narrow", MTU: 1300}, PeerName: "beyond", PeerMTU: 1300}))
	for _, name := range []string{"narrow", "beyond"} {
		n.must(h.LinkSetUp(n.link(h, name)))
	}
	n.addresses(h, n.link(h, "narrow"), netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:ffff::1"))
	n.must(h.RouteAdd(&netlink.Route{Dst: ipNet(default4), Gw: host4.AsSlice()}))
	n.must(h.RouteAdd(&netlink.Route{Dst: ipNet(default6), Gw: host6.AsSlice()}))
	n.in(n.far[0], func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
}

// tooBig sends what is too large for the path, and waits for the error.
func (n *network) tooBig(source, destination netip.Addr) {
	n.Helper()
	n.in(n.ns, func() error {
		c, err := net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)), net.UDPAddrFromAddrPort(netip.AddrPortFrom(destination, 9)))
		if err != nil {
			return err
		}
		defer c.Close()
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		raw, err := c.SyscallConn()
		if err != nil {
			return err
		}
		var failed error
		err = raw.Control(func(fd uintptr) {
			if source.Is4() {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)
			} else {
				failed = unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO)
			}
		})
		if err := errors.Join(err, failed); err != nil {
			return err
		}
		if _, err := c.Write(make([]byte, 1400)); err != nil {
			return err
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, unix.EMSGSIZE) {
			return fmt.Errorf("a packet that is too large: %w", errors.Join(err, errors.New("want it refused")))
		}
		return nil
	})
}
