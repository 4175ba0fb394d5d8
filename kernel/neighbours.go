package kernel

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Hop is what a frame for a gateway looks like.
type Hop struct {
	Link        int    // ifindex the frame leaves by
	VLAN        uint16 // tag, 0 for none
	Source      [6]byte
	Destination [6]byte
	MTU         uint32 // of the link, bytes of IP packet
}

// Reasons for which a gateway has no hop.
const (
	ReasonUnresolved Reason = "the neighbour is not resolved yet"
	ReasonFailed     Reason = "the neighbour does not answer"
)

// told is what was last said of a gateway.
type told struct {
	hop    Hop
	reason Reason
}

// neighbourKey names a neighbour: it is of the VLAN device, where there is one.
type neighbourKey struct {
	link    int
	address netip.Addr
}

// neighbour is what the kernel knows of one.
type neighbour struct {
	state    uint16
	managed  bool // the kernel keeps it resolved
	learned  bool // somebody told the kernel of it, who keeps it
	protocol uint8
	mac      [6]byte
	failed   bool // it did not answer, and has not since
}

// neighbourOwner marks our neighbours. It is none of the values that rtnetlink.h has for who made a route (RTPROT).
const neighbourOwner = 115

// Of a neighbour in one of these states the MAC address is good.
const validStates = netlink.NUD_PERMANENT | netlink.NUD_NOARP | netlink.NUD_REACHABLE |
	netlink.NUD_PROBE | netlink.NUD_STALE | netlink.NUD_DELAY

// lasting are the states that are good without anybody's doing.
const lasting = netlink.NUD_PERMANENT | netlink.NUD_NOARP

func (n neighbour) valid() bool { return n.state&validStates != 0 && n.mac != [6]byte{} }

// kept says whether n needs no request to stay resolved.
func (n neighbour) kept() bool { return n.managed || n.learned || n.state&lasting != 0 }

// ours says whether n is here by our request.
func (n neighbour) ours() bool { return n.managed && n.protocol == neighbourOwner }

// Hop says what frames for g look like. Where the neighbour is not resolved it asks the kernel to
// resolve it and to keep it so, and returns at once with a reason; Changes then tells when to ask again.
func (r *Router) Hop(g Gateway) (Hop, Reason) {
	h, why := r.hop(g)
	r.told[g] = told{h, why}
	return h, why
}

func (r *Router) hop(g Gateway) (Hop, Reason) {
	upper, ok := r.links.upper(g.Link, g.VLAN)
	lower, there := r.links[g.Link]
	switch {
	case !ok || !there:
		return Hop{}, ReasonNoLink
	case upper.Unfit != "":
		return Hop{}, upper.Unfit
	case lower.Unfit != "":
		return Hop{}, lower.Unfit
	case !upper.Up || !lower.Up:
		return Hop{}, ReasonLinkDown
	}
	k := neighbourKey{upper.Index, g.Address}
	var failure error
	if !r.neighbours[k].kept() {
		failure = r.resolve(k)
	}
	n := r.neighbours[k]
	switch {
	case n.valid():
		return Hop{
			Link: g.Link, VLAN: g.VLAN, Source: upper.MAC, Destination: n.mac, MTU: min(upper.MTU, lower.MTU),
		}, ""
	case failure != nil:
		return Hop{}, Reason(failure.Error())
	case n.failed:
		return Hop{}, ReasonFailed
	}
	return Hop{}, ReasonUnresolved
}

// valid says whether a neighbour is resolved.
func (r *Router) valid(link int, address netip.Addr) bool {
	return r.neighbours[neighbourKey{link, address}].valid()
}

// key names the neighbour of g.
func (r *Router) key(g Gateway) (neighbourKey, bool) {
	l, ok := r.links.upper(g.Link, g.VLAN)
	return neighbourKey{l.Index, g.Address}, ok
}

// resolve asks the kernel to resolve a neighbour and to keep it so, unless somebody else sees to it.
func (r *Router) resolve(k neighbourKey) error {
	err := r.set(k, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	if errors.Is(err, unix.EEXIST) {
		n, there, err := r.find(k)
		if err != nil {
			return err
		}
		if there && n.kept() {
			return nil // what it is like, the feed tells, and that it changed
		}
		return r.set(k, unix.NLM_F_CREATE|unix.NLM_F_REPLACE)
	}
	return err
}

// set makes a neighbour one that is kept resolved. What is known of it stays.
func (r *Router) set(k neighbourKey, flags int) error {
	h := &netlink.Ndmsg{Family: afInet(k.address), Index: uint32(k.link), Flags: netlink.NTF_EXT_LEARNED}
	q := r.request(unix.RTM_NEWNEIGH, unix.NLM_F_ACK|flags, h)
	q.AddData(nl.NewRtAttr(netlink.NDA_DST, k.address.AsSlice()))
	q.AddData(nl.NewRtAttr(netlink.NDA_FLAGS_EXT, nl.Uint32Attr(netlink.NTF_EXT_MANAGED)))
	q.AddData(nl.NewRtAttr(netlink.NDA_PROTOCOL, nl.Uint8Attr(neighbourOwner)))
	if _, err := q.Execute(unix.NETLINK_ROUTE, 0); err != nil {
		return fmt.Errorf("have the neighbour %s resolved: %w", k.address, err)
	}
	n := r.neighbours[k]
	n.managed, n.learned, n.protocol = true, true, neighbourOwner
	r.neighbours[k], r.mine[k] = n, true
	return nil
}

// find asks the kernel for a neighbour.
func (r *Router) find(k neighbourKey) (n neighbour, there bool, err error) {
	h := &netlink.Ndmsg{Family: afInet(k.address), Index: uint32(k.link)}
	q := r.request(unix.RTM_GETNEIGH, 0, h)
	q.AddData(nl.NewRtAttr(netlink.NDA_DST, k.address.AsSlice()))
	out, err := q.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if errors.Is(err, unix.ENOENT) || err == nil && len(out) == 0 {
		return n, false, nil
	}
	if err != nil {
		return n, false, fmt.Errorf("read the neighbour %s: %w", k.address, err)
	}
	_, n, err = parseNeighbour(out[0])
	return n, err == nil, err
}

// Keep lets go of every gateway that Hop was asked for, or an earlier process left behind, and that is
// not needed. Neighbours of others are never touched.
func (r *Router) Keep(needed map[Gateway]bool) error {
	keys := make(map[neighbourKey]bool, len(needed))
	for g := range r.told {
		if !needed[g] {
			delete(r.told, g)
		}
	}
	for g := range needed {
		if k, ok := r.key(g); ok && needed[g] {
			keys[k] = true
		}
	}
	var errs []error
	for k := range r.mine {
		if !keys[k] {
			errs = append(errs, r.release(k))
		}
	}
	return errors.Join(errs...)
}

// release deletes a neighbour if it is still ours: its next user resolves it anew.
func (r *Router) release(k neighbourKey) error {
	n, there, err := r.find(k)
	if err != nil && !errors.Is(err, unix.ENODEV) {
		return err
	}
	if there && !n.ours() {
		delete(r.mine, k)
		return nil
	}
	if there {
		h := &netlink.Ndmsg{Family: afInet(k.address), Index: uint32(k.link)}
		q := r.request(unix.RTM_DELNEIGH, unix.NLM_F_ACK, h)
		q.AddData(nl.NewRtAttr(netlink.NDA_DST, k.address.AsSlice()))
		_, err := q.Execute(unix.NETLINK_ROUTE, 0)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.ENODEV) {
			return fmt.Errorf("delete the neighbour %s: %w", k.address, err)
		}
	}
	delete(r.mine, k)
	delete(r.neighbours, k)
	return nil
}

// readNeighbours reads them anew, and takes over those that an earlier process of ours left.
func (r *Router) readNeighbours() error {
	all := map[neighbourKey]neighbour{}
	var broken error
	err := whole(func() error {
		clear(all)
		return r.dump(unix.RTM_GETNEIGH, unix.RTM_NEWNEIGH, &netlink.Ndmsg{Family: unix.AF_UNSPEC}, func(m []byte) bool {
			var k neighbourKey
			var n neighbour
			if k, n, broken = parseNeighbour(m); k.address.IsValid() {
				all[k] = n
			}
			return broken == nil
		})
	})
	if err = errors.Join(err, broken); err != nil {
		return fmt.Errorf("read neighbours: %w", err)
	}
	r.neighbours = all
	clear(r.mine)
	for k, n := range all {
		if n.ours() {
			r.mine[k] = true
		}
	}
	return nil
}

// hear takes over what the kernel tells of a neighbour. The news is whether it is good for anything else than before.
func (r *Router) hear(k neighbourKey, n neighbour, there bool, about *news) {
	old, had := r.neighbours[k]
	if there {
		n.failed = n.state&netlink.NUD_FAILED != 0 || old.failed && !n.valid()
		r.neighbours[k] = n
		if n.ours() {
			r.mine[k] = true
		} else {
			delete(r.mine, k)
		}
	} else {
		n = neighbour{}
		delete(r.neighbours, k)
		delete(r.mine, k)
	}
	if had != there || old.valid() != n.valid() || old.failed != n.failed || old.mac != n.mac || old.kept() != n.kept() {
		about.neighbours[k] = true
	}
	if old.valid() != n.valid() || (old.state^n.state)&(netlink.NUD_FAILED|netlink.NUD_REACHABLE) != 0 {
		about.usable[k] = true
	}
}

// revisit asks again for the gateways that touched says, as Hop does, and yields those of which it
// would say something else.
func (r *Router) revisit(touched func(Gateway, neighbourKey) bool) (changed []Gateway) {
	for g, before := range r.told {
		if k, ok := r.key(g); ok && !touched(g, k) {
			continue
		}
		if h, why := r.hop(g); h != before.hop || why != before.reason {
			changed = append(changed, g)
		}
	}
	return changed
}

// parseNeighbour reads a neighbour message. The address is not valid if it is none of IP.
func parseNeighbour(m []byte) (k neighbourKey, n neighbour, err error) {
	var h netlink.Ndmsg
	if len(m) < h.Len() {
		return k, n, errors.New("read a neighbour: message too short")
	}
	native := nl.NativeEndian()
	k.link = int(native.Uint32(m[4:]))
	n.state = native.Uint16(m[8:])
	n.learned = m[10]&netlink.NTF_EXT_LEARNED != 0
	n.failed = n.state&netlink.NUD_FAILED != 0
	if m[0] != unix.AF_INET && m[0] != unix.AF_INET6 || m[10]&netlink.NTF_PROXY != 0 {
		return k, n, nil
	}
	err = attributes(m[h.Len():], func(kind uint16, value []byte) {
		switch kind {
		case netlink.NDA_DST:
			k.address, _ = netip.AddrFromSlice(value)
		case netlink.NDA_LLADDR:
			if len(value) == len(n.mac) {
				n.mac = [6]byte(value)
			}
		case netlink.NDA_FLAGS_EXT:
			n.managed = number(value)&netlink.NTF_EXT_MANAGED != 0
		case netlink.NDA_PROTOCOL:
			if len(value) > 0 {
				n.protocol = value[0]
			}
		}
	})
	return k, n, err
}
