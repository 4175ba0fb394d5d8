package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Gateway names a next hop: frames for it leave by one link, with one tag, for one MAC address.
type Gateway struct {
	Link    int        // ifindex of the device frames leave by: of a VLAN device the lower one
	VLAN    uint16     // 802.1Q tag they leave with, 0 for none
	Address netip.Addr // of the neighbour: the router, or the destination where it is on link
}

// Route is how a destination is reached.
type Route struct {
	Gateway Gateway
	MTU     uint32 // bytes of IP packet, where route or path allow less than the next hop; else 0
}

// Reasons for which a route is not for the program.
const (
	ReasonLocal        Reason = "the peer is this host"
	ReasonNoRoute      Reason = "no route"
	ReasonSource       Reason = "the source is not an address of this host"
	ReasonFamilies     Reason = "source and destination are of different families"
	ReasonNotUnicast   Reason = "not a unicast address"
	ReasonLinkLocal    Reason = "link-local address"
	ReasonEncapsulated Reason = "the route leads through a tunnel"
)

// endpoints are what a route is asked for.
type endpoints struct{ source, destination netip.Addr }

// answer is what the kernel said of endpoints.
type answer struct {
	route  Route
	reason Reason
	mtu    uint32    // of the path
	until  time.Time // it lapses; zero: when something changes
}

// answerLimit is the number of answers that are kept.
const answerLimit = 1 << 18

// Route says how packets from source, an address of this host, to destination leave. It never waits for
// a neighbour. The reason is empty if they can leave by the program.
func (r *Router) Route(source, destination netip.Addr) (Route, Reason) {
	switch {
	case !source.IsValid() || source.Is4() != destination.Is4() || !destination.IsValid():
		return Route{}, ReasonFamilies
	case destination.IsMulticast() || destination.IsUnspecified() || destination == limitedBroadcast:
		return Route{}, ReasonNotUnicast
	case destination.Is6() && destination.IsLinkLocalUnicast():
		return Route{}, ReasonLinkLocal
	}
	p := endpoints{source, destination}
	if a, ok := r.answers[p]; ok && (a.until.IsZero() || time.Now().Before(a.until)) {
		return a.route, a.reason
	}
	lapsed := false
	if r.fib != nil && !r.lowered[destination] {
		f, found, sure := r.fib.match(destination, r.valid)
		switch {
		case !sure: // the kernel is asked
			lapsed = f.lapsed()
		case !r.isLocal(source):
			return Route{}, ReasonSource
		case !found:
			return Route{}, ReasonNoRoute
		default:
			return r.by(f, destination)
		}
	}
	a, err := r.ask(p)
	if err != nil {
		return Route{}, Reason(err.Error())
	}
	if lapsed && a.until.IsZero() { // in its last moments the kernel says the same of a route as if it stayed
		a.until = time.Now().Add(time.Second)
		r.answers[p] = a
	}
	return a.route, a.reason
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// PathMTU asks the kernel how large an IP packet from source to destination may be: for use when an
// ICMP error came. Route knows of it until it lapses, for every source.
func (r *Router) PathMTU(source, destination netip.Addr) (uint32, error) {
	p := endpoints{source, destination}
	before := r.answers[p]
	a, err := r.ask(p)
	switch {
	case err != nil:
		return 0, err
	case a.mtu == 0:
		return 0, fmt.Errorf("path MTU from %s to %s: %s", source, destination, a.reason)
	case !a.until.IsZero():
		r.lowered[destination] = true
	}
	if a.mtu != before.mtu { // nor are the answers for other sources good
		maps.DeleteFunc(r.answers, func(o endpoints, _ answer) bool { return o.destination == destination && o != p })
	}
	return a.mtu, nil
}

// isLocal says whether this host has an address.
func (r *Router) isLocal(a netip.Addr) bool {
	if _, ok := r.addresses[a]; ok {
		return true
	}
	if r.fib != nil {
		_, ok := r.fib.local(a)
		return ok
	}
	own, err := r.ask(endpoints{a, a})
	return err == nil && own.reason == ReasonLocal
}

// ask has the kernel route p, and keeps what it says.
func (r *Router) ask(p endpoints) (answer, error) {
	var a answer
	f, err := r.query(p)
	switch {
	case errors.Is(err, unix.ENETUNREACH), errors.Is(err, unix.EHOSTUNREACH), // none, unreachable
		errors.Is(err, unix.EACCES), errors.Is(err, unix.EINVAL): // prohibited, a black hole
		a.reason = ReasonNoRoute
	case err != nil:
		return a, fmt.Errorf("route from %s to %s: %w", p.source, p.destination, err)
	default:
		a.route, a.reason = r.by(f, p.destination)
		a.mtu, a.until = r.mtu(f, p.destination), f.until
	}
	if p.source != p.destination && !r.isLocal(p.source) {
		a.route, a.reason = Route{}, ReasonSource
	}
	if len(r.answers) >= answerLimit {
		clear(r.answers)
	}
	r.answers[p] = a
	return a, nil
}

// query asks the kernel for the route of p.
func (r *Router) query(p endpoints) (f fibRoute, err error) {
	h := &nl.RtMsg{}
	h.Family, h.Dst_len = afInet(p.destination), uint8(p.destination.BitLen())
	h.Src_len = h.Dst_len
	q := r.request(unix.RTM_GETROUTE, 0, h)
	q.AddData(nl.NewRtAttr(unix.RTA_DST, p.destination.AsSlice()))
	q.AddData(nl.NewRtAttr(unix.RTA_SRC, p.source.AsSlice()))
	out, err := q.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWROUTE)
	if err != nil {
		return f, err
	}
	if len(out) == 0 {
		return f, errors.New("the kernel gave no answer")
	}
	_, _, f, err = parseRoute(out[0])
	return f, err
}

// by is the route that f is for destination.
func (r *Router) by(f fibRoute, destination netip.Addr) (Route, Reason) {
	switch f.kind {
	case unix.RTN_UNICAST:
	case unix.RTN_LOCAL, unix.RTN_ANYCAST:
		return Route{}, ReasonLocal
	case unix.RTN_BROADCAST, unix.RTN_MULTICAST:
		return Route{}, ReasonNotUnicast
	default:
		return Route{}, ReasonNoRoute
	}
	if f.encapsulated {
		return Route{}, ReasonEncapsulated
	}
	device, vlan, why := r.links.egress(f.link)
	if why != "" {
		return Route{}, why
	}
	via := Route{Gateway: Gateway{Link: device, VLAN: vlan, Address: f.gateway}}
	if !f.gateway.IsValid() {
		via.Gateway.Address = destination
	}
	if mtu := r.mtu(f, destination); mtu < r.links[f.link].MTU {
		via.MTU = mtu
	}
	return via, ""
}

// mtu is what f allows for packets to destination.
func (r *Router) mtu(f fibRoute, destination netip.Addr) uint32 {
	l := r.links[f.link]
	mtu := l.MTU
	if destination.Is6() {
		mtu = l.MTU6
	}
	if f.mtu != 0 {
		mtu = min(mtu, f.mtu)
	}
	return mtu
}

// forget drops the answers that c touches.
func (r *Router) forget(c *Change) {
	switch {
	case c.All:
		clear(r.answers)
	case len(c.Prefixes) > 0:
		for p := range r.answers {
			if c.Touches(p.source, p.destination) {
				delete(r.answers, p)
			}
		}
	}
}

func afInet(a netip.Addr) uint8 {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
