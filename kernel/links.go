package kernel

import (
	"bytes"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

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

// Reasons for which the program cannot serve a link.
const (
	ReasonNoLink      Reason = "no such link"
	ReasonLinkDown    Reason = "link is down"
	ReasonLoopback    Reason = "link is the loopback"
	ReasonNotEthernet Reason = "link is not Ethernet"
	ReasonNoARP       Reason = "link resolves no neighbours"
	ReasonTunnel      Reason = "link is a tunnel"
	ReasonEnslaved    Reason = "link belongs to a bridge, bond or VRF"
	ReasonVLAN        Reason = "VLAN device of a kind the program does not tag for"
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

// Link is the link with an ifindex.
func (r *Router) Link(index int) (Link, bool) {
	l, ok := r.links[index]
	return l, ok
}

// LinkByName is the link with a name.
func (r *Router) LinkByName(name string) (Link, bool) {
	for _, l := range r.links {
		if l.Name == name {
			return l, true
		}
	}
	return Link{}, false
}

// LinkByAddress is the link on which this host has an address.
func (r *Router) LinkByAddress(a netip.Addr) (Link, bool) {
	i, ok := r.addresses[a]
	if !ok && r.fib != nil {
		var f fibRoute
		f, ok = r.fib.local(a)
		i = f.link
	}
	if !ok {
		return Link{}, false
	}
	return r.Link(i)
}

// links are the links by ifindex.
type links map[int]Link

func (r *Router) readLinks() error {
	var all links
	err := whole(func() error {
		all = links{}
		var broken error
		err := r.dump(unix.RTM_GETLINK, unix.RTM_NEWLINK, nl.NewIfInfomsg(unix.AF_UNSPEC), func(m []byte) bool {
			var l Link
			l, broken = parseLink(m)
			all[l.Index] = l
			return broken == nil
		})
		if err == nil {
			err = broken
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("read links: %w", err)
	}
	r.links = all
	return nil
}

func parseLink(m []byte) (Link, error) {
	n, err := netlink.LinkDeserialize(nil, m)
	if err != nil {
		return Link{}, fmt.Errorf("read a link: %w", err)
	}
	l := linkOf(n)
	err = attributes(m[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
		if kind == unix.IFLA_AF_SPEC {
			if mtu := mtu6(value); mtu != 0 {
				l.MTU6 = min(mtu, l.MTU)
			}
		}
	})
	return l, err
}

// linkOf is n in our form.
func linkOf(n netlink.Link) Link {
	a := n.Attrs()
	l := Link{
		Index: a.Index, Name: a.Name, Kind: LinkKind(n.Type()), MTU: uint32(a.MTU), MTU6: uint32(a.MTU),
		Up: a.RawFlags&unix.IFF_UP != 0 && a.RawFlags&unix.IFF_LOWER_UP != 0, Master: a.MasterIndex,
	}
	copy(l.MAC[:], a.HardwareAddr)
	switch {
	case a.RawFlags&unix.IFF_LOOPBACK != 0:
		l.Kind = LinkLoopback
	case l.Kind == "device":
		l.Kind = LinkPhysical
	case l.Kind == "tuntap":
		l.Kind = LinkTun
	}
	l.Unfit = unfit(&l, a)
	v, ok := n.(*netlink.Vlan)
	if !ok {
		return l
	}
	l.Parent, l.VLAN = a.ParentIndex, uint16(v.VlanId)
	standard := v.VlanProtocol == netlink.VLAN_PROTOCOL_8021Q || v.VlanProtocol == netlink.VLAN_PROTOCOL_UNKNOWN
	here := a.NetNsID < 0 // and not below a device of another namespace
	if l.Unfit == "" && (!standard || !here || l.Parent == 0 || l.VLAN == 0) {
		l.Unfit = ReasonVLAN
	}
	return l
}

// tunnels are the kinds of links that look like Ethernet and wrap what they send.
var tunnels = map[LinkKind]bool{
	"vxlan": true, "geneve": true, "gretap": true, "ip6gretap": true, "erspan": true, "ip6erspan": true,
	"l2tpeth": true, "macsec": true, "batadv": true, "amt": true,
}

func unfit(l *Link, a *netlink.LinkAttrs) Reason {
	switch {
	case l.Kind == LinkLoopback:
		return ReasonLoopback
	case tunnels[l.Kind]:
		return ReasonTunnel
	case a.EncapType != "ether" || len(a.HardwareAddr) != len(l.MAC):
		return ReasonNotEthernet
	case a.RawFlags&unix.IFF_NOARP != 0:
		return ReasonNoARP
	case a.MasterIndex != 0:
		return ReasonEnslaved
	}
	return ""
}

// inet6MTU is where the kernel's list of IPv6 settings of a link has the MTU (DEVCONF_MTU6).
const inet6MTU = 2

// mtu6 is the MTU for IPv6 in the address families of a link, 0 if they do not say.
func mtu6(families []byte) (mtu uint32) {
	_ = attributes(families, func(family uint16, value []byte) {
		if family != unix.AF_INET6 {
			return
		}
		_ = attributes(value, func(kind uint16, settings []byte) {
			if kind == unix.IFLA_INET6_CONF && len(settings) >= 4*(inet6MTU+1) {
				mtu = number(settings[4*inet6MTU:])
			}
		})
	})
	return mtu
}

// egress is the device and tag with which frames of the link with an ifindex leave.
func (ls links) egress(index int) (device int, vlan uint16, why Reason) {
	l, ok := ls[index]
	switch {
	case !ok:
		return 0, 0, ReasonNoLink
	case l.Unfit != "":
		return 0, 0, l.Unfit
	case l.Kind != LinkVLAN:
		return index, 0, ""
	}
	lower, ok := ls[l.Parent]
	switch {
	case !ok:
		return 0, 0, ReasonNoLink
	case lower.Unfit != "":
		return 0, 0, lower.Unfit
	case lower.Kind == LinkVLAN:
		return 0, 0, ReasonVLAN
	}
	return l.Parent, l.VLAN, ""
}

// upper is the opposite of egress: the link whose frames leave by a device with a tag.
func (ls links) upper(device int, vlan uint16) (Link, bool) {
	if vlan == 0 {
		l, ok := ls[device]
		return l, ok
	}
	for _, l := range ls {
		if l.Kind == LinkVLAN && l.Parent == device && l.VLAN == vlan && l.Unfit == "" {
			return l, true
		}
	}
	return Link{}, false
}

func (r *Router) readAddresses() error {
	var all map[netip.Addr]int
	err := whole(func() error {
		all = map[netip.Addr]int{}
		return r.dump(unix.RTM_GETADDR, unix.RTM_NEWADDR, nl.NewIfAddrmsg(unix.AF_UNSPEC), func(m []byte) bool {
			h := nl.DeserializeIfAddrmsg(m)
			a, ok := parseAddress(m[h.Len():])
			if at, taken := all[a]; ok && (!taken || int(h.Index) < at) {
				all[a] = int(h.Index)
			}
			return true
		})
	})
	if err != nil {
		return fmt.Errorf("read addresses: %w", err)
	}
	r.addresses = all
	return nil
}

// parseAddress finds the host's own address: the local one of a point-to-point link, too.
func parseAddress(b []byte) (a netip.Addr, ok bool) {
	var local, address []byte
	err := attributes(b, func(kind uint16, value []byte) {
		switch kind {
		case unix.IFA_LOCAL:
			local = value
		case unix.IFA_ADDRESS:
			address = value
		}
	})
	if local == nil {
		local = address
	}
	a, ok = netip.AddrFromSlice(local)
	return a, ok && err == nil
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

// XDP asks the kernel for the programs that are attached to a link, ours and others': of their
// coming and going no Change tells.
func (r *Router) XDP(index int) ([]XDP, error) {
	h := nl.NewIfInfomsg(unix.AF_UNSPEC)
	h.Index = int32(index)
	answer, err := r.request(unix.RTM_GETLINK, 0, h).Execute(unix.NETLINK_ROUTE, unix.RTM_NEWLINK)
	if err != nil {
		return nil, fmt.Errorf("read link %d: %w", index, err)
	}
	var out []XDP
	for _, m := range answer {
		err := attributes(m[unix.SizeofIfInfomsg:], func(kind uint16, value []byte) {
			if kind == unix.IFLA_XDP {
				out = parseXDP(value)
			}
		})
		if err != nil {
			return nil, err
		}
	}
	return out, nil
}

func parseXDP(b []byte) (out []XDP) {
	_ = attributes(b, func(kind uint16, value []byte) {
		mode, ok := map[uint16]XDPMode{
			unix.IFLA_XDP_DRV_PROG_ID: XDPNative, unix.IFLA_XDP_SKB_PROG_ID: XDPGeneric, unix.IFLA_XDP_HW_PROG_ID: XDPOffload,
		}[kind]
		if ok {
			out = append(out, XDP{Mode: mode, Program: number(value)})
		}
	})
	return out
}

// Driver asks the kernel for the name of a link's driver.
func (r *Router) Driver(index int) (string, error) {
	l, ok := r.links[index]
	if !ok {
		return "", fmt.Errorf("driver of link %d: %w", index, &net.OpError{Op: "ioctl", Err: unix.ENODEV})
	}
	info, err := unix.IoctlGetEthtoolDrvinfo(r.devices, l.Name)
	if err != nil {
		return "", fmt.Errorf("driver of %s: %w", l.Name, err)
	}
	name, _, _ := bytes.Cut(info.Driver[:], []byte{0})
	return string(name), nil
}
