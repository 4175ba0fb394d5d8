package kernel

import (
	"errors"
	"net/netip"
	"time"
)

// errNotYet is what an unfinished path returns.
var errNotYet = errors.New("not yet built")

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

// Hop is what a frame for a gateway looks like.
type Hop struct {
	Link        int    // ifindex the frame leaves by
	VLAN        uint16 // tag, 0 for none
	Source      [6]byte
	Destination [6]byte
	MTU         uint32 // of the link, bytes of IP packet
}

// Reasons that are about routes, links and neighbours.
const (
	ReasonLocal        Reason = "local: the peer is this host"
	ReasonNoRoute      Reason = "no route"
	ReasonSource       Reason = "source is not an address of this host"
	ReasonFamilies     Reason = "source and destination are of different families"
	ReasonNotUnicast   Reason = "not a unicast address"
	ReasonLinkLocal    Reason = "link-local address"
	ReasonEncapsulated Reason = "route through a tunnel"
	ReasonNoLink       Reason = "no such link"
	ReasonLinkDown     Reason = "link is down"
	ReasonLoopback     Reason = "loopback"
	ReasonNotEthernet  Reason = "link is not Ethernet"
	ReasonTunnel       Reason = "link is a tunnel"
	ReasonEnslaved     Reason = "link belongs to a bridge, bond or VRF"
	ReasonVLAN         Reason = "VLAN device of a kind the program cannot tag for"
	ReasonUnresolved   Reason = "neighbour not resolved yet"
	ReasonFailed       Reason = "neighbour does not answer"
)

// Change is what a change of the host's network touches.
type Change struct {
	All      bool           // all may have changed, the rest of this says nothing
	Prefixes []netip.Prefix // a route whose source or destination lies in one may have changed
	Gateways []Gateway      // known to [Router.Hop], which may now answer otherwise
	Links    []int          // ifindexes of links that came, went or changed
}

// Empty says whether nothing of interest changed.
func (c *Change) Empty() bool {
	return !c.All && len(c.Prefixes) == 0 && len(c.Gateways) == 0 && len(c.Links) == 0
}

// Touches says whether the route from source to destination has to be asked for again.
func (c *Change) Touches(source, destination netip.Addr) bool {
	if c.All {
		return true
	}
	for _, p := range c.Prefixes {
		if p.Contains(source) || p.Contains(destination) {
			return true
		}
	}
	return false
}

// LinkKind is the driver model of a link: what the kernel calls its kind.
type LinkKind string

// Kinds of links that matter here; others bear the kernel's name for them.
const (
	LinkPhysical LinkKind = "physical" // has no kind: a real or virtual card
	LinkLoopback LinkKind = "loopback"
	LinkVeth     LinkKind = "veth"
	LinkVLAN     LinkKind = "vlan"
	LinkBridge   LinkKind = "bridge"
	LinkBond     LinkKind = "bond"
	LinkMACVLAN  LinkKind = "macvlan"
	LinkTun      LinkKind = "tun"
)

// Link is a network interface.
type Link struct {
	Index  int
	Name   string
	Kind   LinkKind
	MAC    [6]byte
	MTU    uint32 // bytes of IP packet
	MTU6   uint32 // the same of IPv6, which may be less
	Up     bool   // set up, and has carrier
	Master int    // ifindex of the bridge, bond or VRF it belongs to, 0 for none
	Parent int    // ifindex of the device below a VLAN device, 0 for none
	VLAN   uint16 // tag of a VLAN device
	Unfit  Reason // why the program cannot serve it, whatever its state; empty: it can
}

// XDPMode is how a program is attached to a link.
type XDPMode string

// Modes of XDP.
const (
	XDPNative  XDPMode = "native"
	XDPGeneric XDPMode = "generic"
	XDPOffload XDPMode = "offload"
)

// XDP is a program that is attached to a link.
type XDP struct {
	Mode    XDPMode
	Program uint32 // id
}

// Router follows the routes, links and neighbours of the network namespace it was made in, and keeps
// the neighbours that it is asked for resolved. It belongs to one goroutine, but for Changes. What it
// answers is as of the last Take.
type Router struct{}

// NewRouter reads the routes, links and neighbours of the calling thread's network namespace.
func NewRouter() (*Router, error) { return nil, errNotYet }

// Close ends the subscription and waits for its goroutine. The neighbours stay as they are: a frozen
// datapath needs them.
func (r *Router) Close() error { return errNotYet }

// Route says how packets from source, an address of this host, to destination leave. It never waits for
// a neighbour. The reason is empty if they can leave by the program.
func (r *Router) Route(source, destination netip.Addr) (Route, Reason) {
	return Route{}, Reason(errNotYet.Error())
}

// PathMTU asks the kernel how large an IP packet from source to destination may be: for use when an
// ICMP error came. Route knows of it until it lapses.
func (r *Router) PathMTU(source, destination netip.Addr) (uint32, error) { return 0, errNotYet }

// Hop says what frames for g look like. Where the neighbour is not resolved it asks the kernel to
// resolve it and to keep it so, and returns at once with a reason; Changes then tells when to ask again.
func (r *Router) Hop(g Gateway) (Hop, Reason) { return Hop{}, Reason(errNotYet.Error()) }

// Keep lets go of every gateway that Hop was asked for, or an earlier process left behind, and that is
// not needed. Neighbours of others are never touched.
func (r *Router) Keep(needed map[Gateway]bool) error { return errNotYet }

// Changes delivers when there is something to Take. It is never closed.
func (r *Router) Changes() <-chan struct{} { return nil }

// Take brings what Route, Hop and Link answer up to date and says what that touches. On an error all may
// have changed and the next Take tries again.
func (r *Router) Take() (Change, error) { return Change{All: true}, errNotYet }

// Link is the link with an ifindex.
func (r *Router) Link(index int) (Link, bool) { return Link{}, false }

// LinkByName is the link with a name.
func (r *Router) LinkByName(name string) (Link, bool) { return Link{}, false }

// LinkByAddress is the link on which this host has an address.
func (r *Router) LinkByAddress(a netip.Addr) (Link, bool) { return Link{}, false }

// XDP asks the kernel for the programs that are attached to a link, ours and others': of their
// coming and going no Change tells.
func (r *Router) XDP(index int) ([]XDP, error) { return nil, errNotYet }

// Driver asks the kernel for the name of a link's driver.
func (r *Router) Driver(index int) (string, error) { return "", errNotYet }

// timeout bounds a request to the kernel.
const timeout = 2 * time.Second
