package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// atlas is what the routes of a law lead to and come from, by family.
type atlas struct {
	family       int
	sources      []netip.Addr // the last is not the host's
	destinations []netip.Addr
	prefixes     []netip.Prefix
	routers      []netip.Addr // two on the left, of which the second does not answer, two on the right
}

var atlases = []atlas{
	{
		unix.AF_INET,
		all("192.0.2.1", "198.51.100.1", "192.0.2.200"),
		all("203.0.113.1", "203.0.113.70", "203.0.113.130", "203.0.113.200", "192.0.2.77", "192.0.2.255", "198.51.100.9", "198.51.100.1", "10.0.0.1"),
		ranges("0.0.0.0/0", "203.0.112.0/23", "203.0.113.0/24", "203.0.113.0/25", "203.0.113.64/26", "203.0.113.128/25", "203.0.113.130/32", "192.0.2.64/26", "198.51.100.0/24", "198.51.100.1/32"),
		all("192.0.2.254", "192.0.2.99", "198.51.100.254", "198.51.100.99"),
	},
	{
		unix.AF_INET6,
		all("2001:db8:a::1", "2001:db8:b::1", "2001:db8:a::200"),
		all("2001:db8:ffff::1", "2001:db8:ffff:1::1", "2001:db8:ffff:1::2", "2001:db8:fffe::1", "2001:db8:a::77", "2001:db8:b::9", "2001:db8:b::1", "2001:db8:a::", "2001:db8:c::1"),
		ranges("::/0", "2001:db8::/32", "2001:db8:ffff::/48", "2001:db8:ffff:1::/64", "2001:db8:ffff:1::2/128", "2001:db8:a::40/122", "2001:db8:b::/64", "2001:db8:b::1/128"),
		all("2001:db8:a::fe", "2001:db8:a::99", "2001:db8:b::fe", "2001:db8:b::99"),
	},
}

func all(texts ...string) (out []netip.Addr) {
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func ranges(texts ...string) (out []netip.Prefix) {
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// TestRouteEqualsTheKernels holds what Route says against what the kernel says of all pairs, over random
// tables and changes of them. A pair is asked for again only if a Change touches it.
func TestRouteEqualsTheKernels(t *testing.T) {
	for name, large := range map[string]bool{"Followed": false, "Asked": true} {
		t.Run(name, func(t *testing.T) {
			n := newNetwork(t)
			n.in(n.ns, func() error { // IPv6 addresses outlive that their link is set down
				return os.WriteFile("/proc/sys/net/ipv6/conf/all/keep_addr_on_down", []byte("1"), 0)
			})
			reasons := map[Reason]int{}
			done, refused := 0, map[string]int{}
			rapid.Check(t, func(rt *rapid.T) {
				n.reset()
				l := &law{network: n, known: map[endpoints]saying{}, reasons: reasons, neighbours: !large, refused: refused}
				for range rapid.IntRange(0, 12).Draw(rt, "before") {
					done += l.act(rt)
				}
				l.r = n.open()
				defer func() {
					if err := l.r.Close(); err != nil {
						rt.Error(err)
					}
				}()
				if large {
					l.r.fib, l.r.large = nil, true
				}
				l.hold(rt)
				for range rapid.IntRange(1, 6).Draw(rt, "rounds") {
					for range rapid.IntRange(1, 3).Draw(rt, "changes") {
						done += l.act(rt)
					}
					l.hold(rt)
				}
			})
			t.Logf("%d changes took effect, others were refused: %v; answers: %v", done, refused, reasons)
		})
	}
}

// saying is what is said of a pair.
type saying struct {
	route  Route
	reason Reason
}

func (k saying) String() string {
	g := k.route.Gateway
	return fmt.Sprintf("%s on link %d, MTU %d %q", g.Address, g.Link, k.route.MTU, k.reason)
}

type law struct {
	*network
	r          *Router
	known      map[endpoints]saying
	reasons    map[Reason]int
	refused    map[string]int
	neighbours bool // change, too
}

// one is drawn by its index, which is shorter to tell.
func one[T any](t *rapid.T, what string, of []T) T {
	return of[rapid.IntRange(0, len(of)-1).Draw(t, what)]
}

// act makes a random change, and yields 1 if it took effect.
func (l *law) act(t *rapid.T) int {
	a := one(t, "family", atlases)
	kinds := []string{"add", "add", "add", "add", "delete", "delete", "rule", "unrule", "down", "up", "mtu"}
	if l.neighbours {
		kinds = append(kinds, "neighbour", "neighbour")
	}
	kind := rapid.SampledFrom(kinds).Draw(t, "kind")
	link := one(t, "link", l.links[:])
	var err error
	switch kind {
	case "add":
		if r := l.route(t, a); a.family == unix.AF_INET && r.Dst.String() == default4.String() {
			err = l.h.RouteAdd(r) // the kernel's choice between equal ones is a matter of what it chose before
		} else {
			err = l.h.RouteAppend(r)
		}
	case "delete":
		err = l.h.RouteDel(&netlink.Route{
			Dst: ipNet(one(t, "prefix", a.prefixes)), Table: rapid.SampledFrom([]int{unix.RT_TABLE_MAIN, 100}).Draw(t, "table"),
		})
	case "rule":
		err = l.h.RuleAdd(rule(t, a))
	case "unrule":
		var rules []netlink.Rule
		if rules, err = l.h.RuleList(a.family); err == nil {
			rules = slices.DeleteFunc(rules, func(r netlink.Rule) bool { return r.Priority < 1000 || r.Priority > 1003 })
			if len(rules) > 0 {
				r := one(t, "rule", rules)
				r.Family = a.family
				err = l.h.RuleDel(&r)
			}
		}
	case "down":
		err = l.h.LinkSetDown(link)
	case "up":
		err = l.h.LinkSetUp(link)
	case "mtu":
		err = l.h.LinkSetMTU(link, rapid.IntRange(1300, 1303).Draw(t, "mtu"))
	case "neighbour":
		i := rapid.IntRange(0, len(a.routers)-1).Draw(t, "router")
		state := rapid.SampledFrom([]int{netlink.NUD_PERMANENT, netlink.NUD_STALE, netlink.NUD_FAILED, netlink.NUD_REACHABLE}).Draw(t, "state")
		e := &netlink.Neigh{LinkIndex: l.index(i / 2), IP: a.routers[i].AsSlice(), HardwareAddr: hardware(3, byte(i)), State: netlink.NUD_STALE}
		if err = l.h.NeighSet(e); err == nil && state != e.State { // the kernel does not tell of one that was nothing and fails by decree
			e.State = state
			err = l.h.NeighSet(e)
		}
	}
	if err != nil {
		l.refused[fmt.Sprintf("%s: %v", kind, err)]++
		return 0
	}
	return 1
}

// route is a random one.
func (l *law) route(t *rapid.T, a atlas) *netlink.Route {
	r := &netlink.Route{
		Family: a.family, Dst: ipNet(one(t, "prefix", a.prefixes)),
		Table:    rapid.SampledFrom([]int{unix.RT_TABLE_MAIN, unix.RT_TABLE_MAIN, unix.RT_TABLE_MAIN, 100, unix.RT_TABLE_DEFAULT}).Draw(t, "table"),
		Priority: rapid.SampledFrom([]int{0, 0, 10, 20}).Draw(t, "metric"),
		MTU:      rapid.SampledFrom([]int{0, 0, 0, 1290, 1400, 9000}).Draw(t, "mtu"),
	}
	router := func(name string) netip.Addr { return one(t, name, a.routers) }
	switch rapid.SampledFrom([]string{"via", "via", "via", "link", "hops", "black hole", "throw", "tos"}).Draw(t, "to") {
	case "via":
		r.Gw = router("router").AsSlice()
	case "link":
		r.LinkIndex = one(t, "link", l.links[:]).Attrs().Index
		if a.family == unix.AF_INET {
			r.Scope = netlink.SCOPE_LINK
		}
	case "hops":
		for _, g := range []netip.Addr{router("first"), router("second")} {
			r.MultiPath = append(r.MultiPath, &netlink.NexthopInfo{Gw: g.AsSlice()})
		}
	case "black hole":
		r.Type = rapid.SampledFrom([]int{unix.RTN_BLACKHOLE, unix.RTN_UNREACHABLE, unix.RTN_PROHIBIT}).Draw(t, "type")
	case "throw":
		r.Type = unix.RTN_THROW
	case "tos":
		r.Gw, r.Tos = router("router").AsSlice(), 16
	}
	return r
}

func rule(t *rapid.T, a atlas) *netlink.Rule {
	r := netlink.NewRule()
	r.Family, r.Priority = a.family, rapid.IntRange(1000, 1003).Draw(t, "priority")
	r.Table = rapid.SampledFrom([]int{100, 100, unix.RT_TABLE_MAIN}).Draw(t, "table")
	switch rapid.IntRange(0, 3).Draw(t, "rule") {
	case 0:
		s := one(t, "from", a.sources)
		r.Src = ipNet(netip.PrefixFrom(s, s.BitLen()))
	case 1:
		r.Dst = ipNet(one(t, "to", a.prefixes))
	case 2:
		r.SuppressPrefixlen, r.Table = 0, unix.RT_TABLE_MAIN
	}
	return r
}

// reset takes back what a law changed.
func (n *network) reset() {
	n.Helper()
	for i, l := range n.links {
		n.must(n.h.LinkSetUp(l))
		n.must(n.h.LinkSetMTU(l, 1500))
		neighbours, err := n.h.NeighList(n.index(i), 0)
		n.must(err)
		for _, e := range neighbours {
			if e.State != netlink.NUD_NOARP {
				_ = n.h.NeighDel(&e) // gone already
			}
		}
	}
	for _, a := range atlases {
		rules, err := n.h.RuleList(a.family)
		n.must(err)
		for _, r := range rules {
			if r.Priority >= 1000 && r.Priority < 2000 {
				r.Family = a.family
				n.must(n.h.RuleDel(&r))
			}
		}
		for {
			routes, err := n.h.RouteListFiltered(a.family, &netlink.Route{Table: unix.RT_TABLE_UNSPEC}, netlink.RT_FILTER_TABLE)
			n.must(err)
			routes = slices.DeleteFunc(routes, func(r netlink.Route) bool { return r.Protocol == unix.RTPROT_KERNEL })
			if len(routes) == 0 {
				break
			}
			for _, r := range routes {
				_ = n.h.RouteDel(&r) // gone already, or expired
			}
		}
	}
	for i, own := range [][]netip.Addr{{host4, host6}, {second4, second6}} { // the kernel's routes, had they been deleted
		for _, a := range own {
			bits := 64
			if a.Is4() {
				bits = 24
			}
			address := &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits)), Flags: unix.IFA_F_NODAD}
			n.must(n.h.AddrDel(n.links[i], address))
			n.must(n.h.AddrAdd(n.links[i], address))
		}
	}
}

// hold compares all pairs, and goes on while changes may still be on their way.
func (l *law) hold(t *rapid.T) {
	deadline := time.After(patience)
	for {
		for more := true; more; {
			select {
			case <-l.r.Changes():
				l.take(t)
			default:
				more = false
			}
		}
		wrong := l.wrong()
		if wrong == "" {
			break
		}
		select {
		case <-l.r.Changes():
			l.take(t)
		case <-time.After(10 * time.Millisecond): // what the kernel says depends on time as well
		case <-deadline:
			t.Fatal(wrong)
		}
	}
	for _, k := range l.known {
		l.reasons[k.reason]++
	}
}

func (l *law) take(t *rapid.T) {
	c, err := l.r.Take()
	if err != nil {
		t.Fatal(err)
	}
	for p := range l.known {
		if c.Touches(p.source, p.destination) {
			delete(l.known, p)
		}
	}
}

// wrong is the first difference between what was last said of a pair and what the kernel says.
func (l *law) wrong() string {
	for _, a := range atlases {
		for _, s := range a.sources {
			for _, d := range a.destinations {
				p := endpoints{s, d}
				got, ok := l.known[p]
				if !ok {
					got.route, got.reason = l.r.Route(s, d)
					l.known[p] = got
				}
				if want := l.kernels(p); got != want {
					return fmt.Sprintf("from %s to %s: got %s, want %s", s, d, got, want)
				}
			}
		}
	}
	return ""
}

// kernels is what the kernel says of p.
func (l *law) kernels(p endpoints) (k saying) {
	if p.source == atlases[0].sources[2] || p.source == atlases[1].sources[2] {
		return saying{reason: ReasonSource}
	}
	found, err := l.h.RouteGetWithOptions(p.destination.AsSlice(), &netlink.RouteGetOptions{SrcAddr: p.source.AsSlice()})
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL):
		return saying{reason: ReasonNoRoute}
	case err != nil || len(found) != 1:
		return saying{reason: Reason(fmt.Sprintf("%d routes, %v", len(found), err))}
	}
	r := found[0]
	switch r.Type {
	case unix.RTN_LOCAL, unix.RTN_ANYCAST:
		return saying{reason: ReasonLocal}
	case unix.RTN_BROADCAST:
		return saying{reason: ReasonNotUnicast}
	}
	k.route.Gateway = Gateway{Link: r.LinkIndex, Address: p.destination}
	if g, ok := netip.AddrFromSlice(r.Gw); ok {
		k.route.Gateway.Address = g
	}
	link, err := l.h.LinkByIndex(r.LinkIndex)
	l.must(err)
	if r.MTU != 0 && r.MTU < link.Attrs().MTU {
		k.route.MTU = uint32(r.MTU)
	}
	return k
}

func TestEqualDefaultRoutes(t *testing.T) {
	n := newNetwork(t)
	r := n.router()
	n.neighbour(0, router4, hardware(2, 0), netlink.NUD_REACHABLE)
	n.neighbour(1, other4, hardware(2, 1), netlink.NUD_REACHABLE)
	for _, g := range []netip.Addr{router4, other4} {
		n.must(n.h.RouteAppend(&netlink.Route{Dst: ipNet(default4), Gw: g.AsSlice()}))
	}
	l := &law{network: n}
	agree := func(link int) func() bool {
		return func() bool {
			route, _ := r.Route(host4, distant4)
			return route == l.kernels(endpoints{host4, distant4}).route && route.Gateway.Link == n.index(link)
		}
	}
	first := 0
	if l.kernels(endpoints{host4, distant4}).route.Gateway.Link == n.index(1) {
		first = 1
	}
	n.await(r, "both say the same", agree(first))
	n.neighbour(first, []netip.Addr{router4, other4}[first], hardware(2, 0), netlink.NUD_FAILED)
	c := n.await(r, "both choose the router that is left", agree(1-first))
	if !c.Touches(host4, distant4) {
		t.Errorf("got the change %+v, want one of the default route", c)
	}
}

// TestRouterThatFails holds that of IPv6 a worse route is taken while the router of a better one fails.
func TestRouterThatFails(t *testing.T) {
	n := newNetwork(t)
	n.via(default6, other6)
	n.neighbour(0, nobody6, hardware(3, 0), netlink.NUD_STALE)
	n.via(distantNet6, nobody6)
	r := n.router()
	l := &law{network: n}
	p := endpoints{host6, distant6}
	for _, c := range []struct {
		state int
		want  netip.Addr
	}{{netlink.NUD_FAILED, other6}, {netlink.NUD_STALE, nobody6}} {
		state, want := c.state, c.want
		n.neighbour(0, nobody6, hardware(3, 0), state)
		c := n.await(r, "the router is noticed", func() bool {
			route, _ := r.Route(p.source, p.destination)
			return route.Gateway.Address == want
		})
		if kernels := l.kernels(p); kernels.route.Gateway.Address != want {
			t.Fatalf("the kernel says %s, want %s", kernels, want)
		}
		if state == netlink.NUD_FAILED && !c.Touches(p.source, p.destination) {
			t.Errorf("got the change %+v, want one of %s", c, distantNet6)
		}
	}
}

// TestRouteLapses holds that a route is not believed in for longer than the kernel does.
func TestRouteLapses(t *testing.T) {
	n := newNetwork(t)
	n.lapsing(1)
	r := n.router()
	if _, why := r.Route(host6, distant6); why != "" {
		t.Fatalf("got %q of a route that is there for a second, want none", why)
	}
	if len(r.answers) > 0 {
		t.Error("the kernel was asked of a route that has not lapsed")
	}
	deadline := time.Now().Add(patience)
	for why := Reason(""); why != ReasonNoRoute; _, why = r.Route(host6, distant6) { // nobody tells of it
		if why != "" || time.Now().After(deadline) {
			t.Fatalf("got %q of a route that has lapsed, want %q", why, ReasonNoRoute)
		}
		runtime.Gosched()
	}
}

// TestLastMomentsOfARoute holds that what the kernel says of a route that has lapsed here, and not yet there, is
// not believed in for ever: less than a hundredth of a second before, it says nothing of an end.
func TestLastMomentsOfARoute(t *testing.T) {
	n := newNetwork(t)
	n.via(distantNet6, router6)
	r := n.router()
	l := r.fib.tables[fibKey{unix.RT_TABLE_MAIN, distantNet6}]
	l[0].until = time.Now()
	if _, why := r.Route(host6, distant6); why != "" {
		t.Fatalf("got %q of a route that the kernel has, want none", why)
	}
	if a := r.answers[endpoints{host6, distant6}]; a.until.IsZero() {
		t.Error("the kernel's answer is kept for ever")
	}
}

// TestSourceRoutes holds that IPv6 routes for some sources are heeded.
func TestSourceRoutes(t *testing.T) {
	n := newNetwork(t)
	n.via(default6, router6)
	r := n.router()
	n.neighbour(1, other6, hardware(2, 1), netlink.NUD_PERMANENT) // so that nothing else has the kernel asked
	n.raw6(distantNet6, other6, netip.PrefixFrom(second6, 128))
	n.await(r, "the source is heeded", func() bool {
		a, _ := r.Route(host6, distant6)
		b, _ := r.Route(second6, distant6)
		return a.Gateway.Link == n.index(0) && b.Gateway.Link == n.index(1)
	})
}

// lapsing adds a route to the distant network that lapses after some seconds.
func (n *network) lapsing(seconds uint32) {
	n.Helper()
	n.raw6(distantNet6, router6, netip.Prefix{}, nl.NewRtAttr(rtaExpires, nl.Uint32Attr(seconds)))
}

// rtaExpires is RTA_EXPIRES, in seconds.
const rtaExpires = 23

// raw6 adds an IPv6 route that the netlink package has no form for.
func (n *network) raw6(to netip.Prefix, gateway netip.Addr, from netip.Prefix, more ...*nl.RtAttr) {
	n.Helper()
	n.in(n.ns, func() error {
		q := nl.NewNetlinkRequest(unix.RTM_NEWROUTE, unix.NLM_F_CREATE|unix.NLM_F_EXCL|unix.NLM_F_ACK)
		q.AddData(&nl.RtMsg{RtMsg: unix.RtMsg{
			Family: unix.AF_INET6, Table: unix.RT_TABLE_MAIN, Protocol: unix.RTPROT_STATIC, Type: unix.RTN_UNICAST,
			Dst_len: uint8(to.Bits()), Src_len: uint8(max(from.Bits(), 0)),
		}})
		q.AddData(nl.NewRtAttr(unix.RTA_DST, to.Addr().AsSlice()))
		q.AddData(nl.NewRtAttr(unix.RTA_GATEWAY, gateway.AsSlice()))
		if from.IsValid() {
			q.AddData(nl.NewRtAttr(unix.RTA_SRC, from.Addr().AsSlice()))
		}
		for _, a := range more {
			q.AddData(a)
		}
		_, err := q.Execute(unix.NETLINK_ROUTE, 0)
		return err
	})
}

// BenchmarkRoute resolves 100,000 pairs, as after a start.
func BenchmarkRoute(b *testing.B) {
	for name, policy := range map[string]bool{"Plain": false, "Policy": true} {
		b.Run(name, func(b *testing.B) {
			n := newNetwork(b)
			n.via(default4, router4)
			n.via(default6, router6)
			for i := range 50 {
				n.via(netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 16+i%9), other4)
			}
			if policy {
				rule := netlink.NewRule()
				rule.Src, rule.Table = ipNet(netip.PrefixFrom(second4, 32)), 100
				n.must(n.h.RuleAdd(rule))
			}
			var pairs []endpoints
			for i := range uint32(50_000) {
				far4, far6 := distant4.As4(), distant6.As16()
				far4[0] = 11 + byte(i>>16)
				copy(far4[1:], []byte{byte(i >> 8), byte(i), 1})
				copy(far6[12:], []byte{byte(i >> 16), byte(i >> 8), byte(i), 1})
				pairs = append(pairs, endpoints{host4, netip.AddrFrom4(far4)}, endpoints{host6, netip.AddrFrom16(far6)})
			}
			r := n.router()
			r.neighbours[neighbourKey{n.index(0), router6}] = neighbour{state: netlink.NUD_REACHABLE, mac: [6]byte(hardware(2, 0))}
			for b.Loop() {
				clear(r.answers)
				for _, p := range pairs {
					if _, why := r.Route(p.source, p.destination); why != "" {
						b.Fatalf("from %s to %s: %s", p.source, p.destination, why)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Milliseconds())/float64(b.N), "ms/100k-pairs")
		})
	}
}
