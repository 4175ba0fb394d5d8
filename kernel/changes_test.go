package kernel

import (
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestLinkDownUpAndDeleted(t *testing.T) {
	n := newNetwork(t)
	n.via(distantNet4, router4)
	n.via(distantNet6, router6)
	r := n.router()
	g := n.left(router4)
	n.resolved(r, g)

	n.must(n.outside[0].LinkSetDown(n.ends[0])) // and the carrier with it
	// The kernel itself tells of a lost carrier up to a second late.
	c := n.within(2*time.Second, r, "the carrier is lost", func() bool {
		_, why := r.Hop(g)
		return why == ReasonLinkDown
	})
	if !slices.Equal(c.Links, []int{g.Link}) || !slices.Contains(c.Gateways, g) {
		t.Errorf("got the change %+v, want one of link %d and its gateway", c, g.Link)
	}
	n.must(n.outside[0].LinkSetUp(n.ends[0]))
	n.within(4*patience, r, "the carrier is back", func() bool {
		_, why := r.Hop(g)
		return why == ""
	})

	n.must(n.h.LinkSetDown(n.links[0]))
	c = n.within(time.Second, r, "the routes are gone", func() bool {
		_, why4 := r.Route(host4, distant4)
		_, why6 := r.Route(second6, distant6)
		return why4 == ReasonNoRoute && why6 == ReasonNoRoute
	})
	if !c.Touches(host4, distant4) || !c.Touches(second6, distant6) || c.Touches(second4, other4) {
		t.Errorf("got the change %+v, want one of the routes through link %d alone", c, g.Link)
	}
	n.must(n.h.LinkSetUp(n.links[0]))
	n.via(distantNet4, router4)
	n.await(r, "the route is back, and its router", func() bool {
		route, _ := r.Route(host4, distant4)
		_, why := r.Hop(g)
		return route.Gateway == g && why == ""
	})

	n.must(n.h.LinkDel(n.links[0]))
	c = n.within(time.Second, r, "the link is gone", func() bool {
		_, why := r.Hop(g)
		_, there := r.Link(g.Link)
		return why == ReasonNoLink && !there
	})
	if !slices.Contains(c.Links, g.Link) || !c.Touches(host4, distant4) {
		t.Errorf("got the change %+v, want one of link %d and its routes", c, g.Link)
	}
	if _, why := r.Route(host4, distant4); why != ReasonSource {
		t.Errorf("got %q from an address that is gone, want %q", why, ReasonSource)
	}
	n.must(r.Keep(nil))
}

// TestLinkReadForAnothersNews holds that a link is told of that changed by the time another's news had all read.
func TestLinkReadForAnothersNews(t *testing.T) {
	n := newNetwork(t)
	r := n.router()
	g := n.left(router4)
	n.resolved(r, g)
	n.must(n.h.LinkSetDown(n.links[0]))
	c, err := r.digest(&news{links: map[int]bool{n.index(1): true}})
	n.must(err)
	if !slices.Equal(c.Links, []int{g.Link}) || !slices.Equal(c.Gateways, []Gateway{g}) || !c.Touches(host4, nobody4) {
		t.Errorf("got the change %+v, want one of link %d, its gateway and its routes", c, g.Link)
	}
}

func TestMTUOfALinkChanges(t *testing.T) {
	n := newNetwork(t)
	n.via(default4, router4)
	r := n.router()
	g := n.left(router4)
	n.resolved(r, g)
	n.must(n.h.LinkSetMTU(n.links[0], 1400))
	c := n.within(time.Second, r, "the new MTU is known", func() bool {
		h, _ := r.Hop(g)
		return h.MTU == 1400
	})
	if !c.Touches(host4, distant4) || !slices.Contains(c.Gateways, g) {
		t.Errorf("got the change %+v, want one of routes and gateway of the link", c)
	}
}

func TestLostChangesAreReadAnew(t *testing.T) {
	n := newNetwork(t)
	r := n.router()
	g := n.left(router4)
	n.resolved(r, g)
	n.must(r.feed.socket.SetReceiveBufferSize(4096, true))
	r.feed.mu.Lock() // its goroutine hears nothing
	for i := range 1000 {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(i)}), 32)
		route := &netlink.Route{Dst: ipNet(p), Gw: router4.AsSlice()}
		n.must(n.h.RouteAdd(route))
		n.must(n.h.RouteDel(route))
	}
	n.via(default4, router4)
	n.neighbour(0, router4, hardware(3, 9), netlink.NUD_PERMANENT)
	r.feed.mu.Unlock()
	c := n.await(r, "what was lost is known", func() bool {
		route, _ := r.Route(host4, distant4)
		h, _ := r.Hop(g)
		return route.Gateway == g && h.Destination == [6]byte(hardware(3, 9))
	})
	if !c.All {
		t.Errorf("got the change %+v, want all", c)
	}
	n.via(distantNet4, other4)
	n.await(r, "it follows again", func() bool {
		route, _ := r.Route(host4, distant4)
		return route.Gateway.Address == other4
	})
}

func TestFailedTakeIsTriedAgain(t *testing.T) {
	n := newNetwork(t)
	r := n.router()
	var closed *nl.NetlinkSocket
	n.in(n.ns, func() (err error) {
		closed, err = nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
		return err
	})
	closed.Close()
	working := r.requests
	n.via(default4, router4)
	<-r.Changes()
	r.requests = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: closed}}
	for range 2 {
		if c, err := r.Take(); err == nil || !c.All {
			t.Errorf("got %+v, %v from a Take that cannot ask, want an error and all", c, err)
		}
	}
	select {
	case <-r.Changes():
		t.Error("got told to try again at once, want a pause")
	default:
	}
	r.requests = working
	n.await(r, "the route is known", func() bool {
		route, _ := r.Route(host4, distant4)
		return route.Gateway.Address == router4
	})
}

func TestManyRoutesAreAskedOfTheKernel(t *testing.T) {
	n := newNetwork(t)
	n.via(default4, router4)
	r := n.router()
	if r.fib == nil {
		t.Fatal("got few routes not followed")
	}
	n.manyRoutes(fibLimit + 1)
	n.await(r, "it gives up following", func() bool { return r.fib == nil })
	for _, c := range []struct {
		destination netip.Addr
		want        netip.Addr
	}{{distant4, router4}, {netip.MustParseAddr("10.0.0.77"), router4}} {
		if route, why := r.Route(host4, c.destination); route.Gateway.Address != c.want || why != "" {
			t.Errorf("to %s: got %+v %q, want it via %s", c.destination, route, why, c.want)
		}
	}
	n.via(distantNet4, other4)
	change := n.await(r, "a change is noticed", func() bool {
		route, _ := r.Route(host4, distant4)
		return route.Gateway.Address == other4
	})
	if !change.Touches(host4, distant4) {
		t.Errorf("got %+v, want a change of %s", change, distantNet4)
	}
	if _, why := r.Route(router4, distant4); why != ReasonSource {
		t.Errorf("got %q from a foreign address, want %q", why, ReasonSource)
	}
	n.must(n.h.LinkSetDown(n.links[1]))
	n.await(r, "the route goes with its link", func() bool {
		route, _ := r.Route(host4, distant4)
		return route.Gateway.Address == router4
	})
}

// manyRoutes adds some through the router on the left.
func (n *network) manyRoutes(count int) {
	n.Helper()
	for i := range count {
		p := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 32)
		n.must(n.h.RouteAdd(&netlink.Route{Dst: ipNet(p), Gw: router4.AsSlice()}))
	}
}

func TestCloseLeavesNothing(t *testing.T) {
	n := newNetwork(t)
	before := goleak.IgnoreCurrent()
	descriptors := descriptorsOpen(t)
	for range 10 {
		r := n.open()
		r.Hop(n.left(router4))
		n.must(r.Close())
		n.must(r.Close())
	}
	goleak.VerifyNone(t, before)
	if after := descriptorsOpen(t); after != descriptors {
		t.Errorf("got %d descriptors open, want %d as before", after, descriptors)
	}
}

// descriptorsOpen counts the descriptors of this process.
func descriptorsOpen(t *testing.T) int {
	t.Helper()
	all, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(all)
}
