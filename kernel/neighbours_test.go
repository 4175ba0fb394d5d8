package kernel

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
)

// entry is what the kernel says of a neighbour.
func (n *network) entry(a netip.Addr) (netlink.Neigh, bool) {
	n.Helper()
	all, err := n.h.NeighList(0, 0)
	n.must(err)
	for _, e := range all {
		if b, ok := netip.AddrFromSlice(e.IP); ok && b.Unmap() == a {
			return e, true
		}
	}
	return netlink.Neigh{}, false
}

func (n *network) left(a netip.Addr) Gateway { return Gateway{Link: n.index(0), Address: a} }

func TestHopResolvesAndKeeps(t *testing.T) {
	n := newNetwork(t)
	r := n.router()
	for _, a := range []netip.Addr{router4, router6} {
		g := n.left(a)
		begun := time.Now()
		if _, why := r.Hop(g); why != ReasonUnresolved {
			t.Errorf("%s: got %q at first, want %q", a, why, ReasonUnresolved)
		}
		if d := time.Since(begun); d > 100*time.Millisecond {
			t.Errorf("%s: Hop took %s, want no wait", a, d)
		}
		c := n.await(r, "the router is resolved", func() bool {
			_, why := r.Hop(g)
			return why == ""
		})
		t.Logf("%s: resolved after %s", a, time.Since(begun))
		if len(c.Gateways) != 1 || c.Gateways[0] != g {
			t.Errorf("%s: got changes of gateways %v, want %v", a, c.Gateways, g)
		}
		want := Hop{Link: g.Link, Source: [6]byte(hardware(1, 0)), Destination: [6]byte(hardware(2, 0)), MTU: 1500}
		if h, _ := r.Hop(g); h != want {
			t.Errorf("%s: got the hop %+v, want %+v", a, h, want)
		}
		e, _ := n.entry(a)
		if e.Flags&netlink.NTF_EXT_LEARNED == 0 || e.FlagsExt&netlink.NTF_EXT_MANAGED == 0 {
			t.Errorf("%s: got flags %#x and %#x, want the neighbour managed and learned", a, e.Flags, e.FlagsExt)
		}
	}
}

func TestHopFollowsAMACAddress(t *testing.T) {
	n := newNetwork(t)
	n.in(n.far[0], func() error { // the router says so when its address changes
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/conf/end/arp_notify", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/end/ndisc_notify", []byte("1"), 0))
	})
	r := n.router()
	want := []Gateway{n.left(router4), n.left(router6)}
	for _, g := range want {
		n.resolved(r, g)
	}
	r.Hop(n.left(nobody4))
	mac := hardware(3, 0)
	n.must(n.outside[0].LinkSetHardwareAddr(n.ends[0], mac))
	c := n.within(time.Second, r, "the new address is noticed", func() bool {
		a, _ := r.Hop(want[0])
		b, _ := r.Hop(want[1])
		return a.Destination == [6]byte(mac) && b.Destination == [6]byte(mac)
	})
	for _, g := range want {
		if !slices.Contains(c.Gateways, g) {
			t.Errorf("got changes of %v, want %v among them", c.Gateways, g)
		}
	}
	if c.All || len(c.Prefixes) > 0 || len(c.Links) > 0 || slices.Contains(c.Gateways, n.left(nobody4)) {
		t.Errorf("got the change %+v, want one of the gateways %v alone", c, want)
	}
}

func TestHopByState(t *testing.T) {
	n := newNetwork(t)
	n.must(n.outside[0].AddrDel(n.ends[0], &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(router4, 24))})) // nobody answers
	r := n.router()
	mac := hardware(3, 0)
	for _, c := range []struct {
		name  string
		state int
		kept  bool // without our doing
	}{
		{"Stale", netlink.NUD_STALE, false},
		{"Reachable", netlink.NUD_REACHABLE, false},
		{"Delay", netlink.NUD_DELAY, false},
		{"Probe", netlink.NUD_PROBE, false},
		{"Permanent", netlink.NUD_PERMANENT, true},
		{"NoARP", netlink.NUD_NOARP, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			n.neighbour(0, router4, mac, c.state)
			r := n.router()
			h, why := r.Hop(n.left(router4))
			if why != "" || h.Destination != [6]byte(mac) {
				t.Errorf("got %+v %q, want the neighbour's address", h, why)
			}
			e, _ := n.entry(router4)
			if got := e.FlagsExt&netlink.NTF_EXT_MANAGED == 0; got != c.kept {
				t.Errorf("got it left alone: %t, want %t", got, c.kept)
			}
			n.must(n.h.NeighDel(&netlink.Neigh{LinkIndex: n.index(0), IP: router4.AsSlice()}))
		})
	}
	g := n.left(nobody4)
	n.await(r, "the neighbour fails", func() bool {
		_, why := r.Hop(g)
		return why == ReasonFailed
	})
	n.must(n.outside[0].AddrAdd(n.ends[0], &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(nobody4, 24))}))
	// The kernel tries a managed neighbour again every five seconds.
	n.within(4*patience, r, "the neighbour answers after all", func() bool {
		_, why := r.Hop(g)
		return why == ""
	})
}

func TestKeep(t *testing.T) {
	n := newNetwork(t)
	first := n.router()
	n.resolved(first, n.left(router4))
	n.resolved(first, n.left(router6))
	n.must(first.Close())
	if _, ok := n.entry(router4); !ok {
		t.Fatal("the neighbour went with its router: a frozen datapath needs it")
	}

	// Others': one that was there, one that another program manages, one that an administrator took over from us.
	there, managed, taken := netip.MustParseAddr("192.0.2.50"), netip.MustParseAddr("192.0.2.51"), netip.MustParseAddr("192.0.2.52")
	n.neighbour(0, there, hardware(3, 0), netlink.NUD_PERMANENT)
	n.must(n.h.NeighSet(&netlink.Neigh{
		LinkIndex: n.index(0), IP: managed.AsSlice(), Flags: netlink.NTF_EXT_LEARNED, FlagsExt: netlink.NTF_EXT_MANAGED,
	}))
	r := n.router()
	for _, a := range []netip.Addr{there, managed, taken, nobody4, nobody6, router6} {
		r.Hop(n.left(a))
	}
	n.neighbour(0, taken, hardware(3, 1), netlink.NUD_PERMANENT)

	n.must(r.Keep(map[Gateway]bool{n.left(router6): true, n.left(nobody4): true, n.left(nobody6): false}))
	for a, want := range map[netip.Addr]bool{
		router4: false, router6: true, nobody4: true, nobody6: false, there: true, managed: true, taken: true,
	} {
		if _, got := n.entry(a); got != want {
			t.Errorf("%s: got it there: %t, want %t", a, got, want)
		}
	}
	n.must(r.Keep(nil))
	for a, want := range map[netip.Addr]bool{router6: false, nobody4: false, there: true, managed: true, taken: true} {
		if _, got := n.entry(a); got != want {
			t.Errorf("with nothing needed, %s: got it there: %t, want %t", a, got, want)
		}
	}
	if h := n.resolved(r, n.left(taken)); h.Destination != [6]byte(hardware(3, 1)) {
		t.Errorf("got %+v of the neighbour that an administrator took over, want its address", h)
	}
	if e, _ := n.entry(taken); e.State != netlink.NUD_PERMANENT || e.FlagsExt != 0 {
		t.Errorf("got %+v of it, want it as the administrator made it", e)
	}

	// One that is let go and wanted again before the kernel has told of either is ours none the less.
	again := n.left(router4)
	n.resolved(r, again)
	n.must(r.Keep(nil))
	r.Hop(again)
	n.resolved(r, again)
	n.must(r.Keep(nil))
	if _, ok := n.entry(router4); ok {
		t.Error("a neighbour that was let go and wanted again is left behind")
	}
}

func TestFlushedNeighbourIsResolvedAgain(t *testing.T) {
	n := newNetwork(t)
	r := n.router()
	g := n.left(router4)
	n.resolved(r, g)
	n.must(n.h.NeighDel(&netlink.Neigh{LinkIndex: n.index(0), IP: router4.AsSlice()}))
	c := n.within(time.Second, r, "it is missed", func() bool { return !r.valid(g.Link, router4) })
	if len(c.Gateways) != 1 {
		t.Errorf("got the change %+v, want %v", c, g)
	}
	// Where a packet was on its way, the kernel keeps it as failed, and tries again every five seconds.
	n.within(4*patience, r, "it is there again", func() bool {
		_, why := r.Hop(g)
		return why == ""
	})
}
