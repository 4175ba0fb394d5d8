package kernel

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// card is a link of the kernel's, of which edits make what no kernel here has.
func card(index int, name string, edits ...func(*netlink.LinkAttrs)) netlink.LinkAttrs {
	a := netlink.NewLinkAttrs()
	a.Index, a.Name, a.MTU, a.EncapType, a.HardwareAddr = index, name, 1500, "ether", hardware(1, byte(index))
	a.RawFlags = unix.IFF_UP | unix.IFF_LOWER_UP
	for _, edit := range edits {
		edit(&a)
	}
	return a
}

func vlan(tag int, protocol netlink.VlanProtocol, a netlink.LinkAttrs) *netlink.Vlan {
	return &netlink.Vlan{LinkAttrs: a, VlanId: tag, VlanProtocol: protocol}
}

func parent(index int) func(*netlink.LinkAttrs) {
	return func(a *netlink.LinkAttrs) { a.ParentIndex = index }
}

func TestUnfit(t *testing.T) {
	master := func(a *netlink.LinkAttrs) { a.MasterIndex = 9 }
	for _, c := range []struct {
		name string
		link netlink.Link
		kind LinkKind
		want Reason
	}{
		{"Card", &netlink.Device{LinkAttrs: card(2, "eth0")}, LinkPhysical, ""},
		{"Loopback", &netlink.Device{LinkAttrs: card(1, "lo", func(a *netlink.LinkAttrs) { a.RawFlags |= unix.IFF_LOOPBACK })}, LinkLoopback, ReasonLoopback},
		{"Veth", &netlink.Veth{LinkAttrs: card(2, "veth0")}, LinkVeth, ""},
		{"Enslaved", &netlink.Veth{LinkAttrs: card(2, "veth0", master)}, LinkVeth, ReasonEnslaved},
		{"Bridge", &netlink.Bridge{LinkAttrs: card(2, "br0")}, LinkBridge, ""},
		{"Bond", netlink.NewLinkBond(card(2, "bond0")), LinkBond, ""},
		{"Tap", &netlink.Tuntap{LinkAttrs: card(2, "tap0")}, LinkTun, ""},
		{"Tun", &netlink.Tuntap{LinkAttrs: card(2, "tun0", func(a *netlink.LinkAttrs) { a.EncapType, a.HardwareAddr = "none", nil })}, LinkTun, ReasonNotEthernet},
		{"InfiniBand", &netlink.Device{LinkAttrs: card(2, "ib0", func(a *netlink.LinkAttrs) { a.EncapType, a.HardwareAddr = "infiniband", make([]byte, 20) })}, LinkPhysical, ReasonNotEthernet},
		{"NoARP", &netlink.Device{LinkAttrs: card(2, "eth0", func(a *netlink.LinkAttrs) { a.RawFlags |= unix.IFF_NOARP })}, LinkPhysical, ReasonNoARP},
		{"VXLAN", &netlink.Vxlan{LinkAttrs: card(2, "vxlan0")}, "vxlan", ReasonTunnel},
		{"VLAN", vlan(100, netlink.VLAN_PROTOCOL_8021Q, card(3, "eth0.100", parent(2))), LinkVLAN, ""},
		{"ServiceVLAN", vlan(100, netlink.VLAN_PROTOCOL_8021AD, card(3, "eth0.100", parent(2))), LinkVLAN, ReasonVLAN},
		{"PriorityVLAN", vlan(0, netlink.VLAN_PROTOCOL_8021Q, card(3, "eth0.0", parent(2))), LinkVLAN, ReasonVLAN},
		{"VLANOfAnotherNamespace", vlan(100, netlink.VLAN_PROTOCOL_8021Q, card(3, "eth0.100", parent(2), func(a *netlink.LinkAttrs) { a.NetNsID = 0 })), LinkVLAN, ReasonVLAN},
		{"EnslavedVLAN", vlan(100, netlink.VLAN_PROTOCOL_8021Q, card(3, "eth0.100", parent(2), master)), LinkVLAN, ReasonEnslaved},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := linkOf(c.link)
			if l.Unfit != c.want || l.Kind != c.kind {
				t.Errorf("got %s %q, want %s %q", l.Kind, l.Unfit, c.kind, c.want)
			}
			if !l.Up {
				t.Error("got it down, want up")
			}
		})
	}
}

func TestVLANDevice(t *testing.T) {
	narrow := func(a *netlink.LinkAttrs) { a.MTU = 1400 }
	r := &Router{
		links: links{}, answers: map[endpoints]answer{}, mine: map[neighbourKey]bool{}, told: map[Gateway]told{},
		neighbours: map[neighbourKey]neighbour{
			{3, router4}: {state: netlink.NUD_PERMANENT, mac: [6]byte(hardware(2, 3))},
			{2, router4}: {state: netlink.NUD_PERMANENT, mac: [6]byte(hardware(2, 2))},
		},
	}
	for _, l := range []netlink.Link{
		&netlink.Device{LinkAttrs: card(2, "eth0")},
		vlan(100, netlink.VLAN_PROTOCOL_8021Q, card(3, "eth0.100", parent(2), narrow)),
		vlan(200, netlink.VLAN_PROTOCOL_8021Q, card(4, "eth0.100.200", parent(3))),
		vlan(101, netlink.VLAN_PROTOCOL_8021Q, card(5, "gone.101", parent(77))),
		&netlink.Bridge{LinkAttrs: card(9, "br0")},
		&netlink.Device{LinkAttrs: card(6, "eth1", func(a *netlink.LinkAttrs) { a.MasterIndex = 9 })},
		vlan(102, netlink.VLAN_PROTOCOL_8021Q, card(7, "eth1.102", parent(6))),
		vlan(103, netlink.VLAN_PROTOCOL_8021Q, card(8, "eth0.103", parent(2), func(a *netlink.LinkAttrs) { a.RawFlags = 0 })),
	} {
		r.links[l.Attrs().Index] = linkOf(l)
	}
	for _, c := range []struct {
		name  string
		route fibRoute
		want  Route
		why   Reason
	}{
		{"Card", fibRoute{link: 2, gateway: router4}, Route{Gateway{2, 0, router4}, 0}, ""},
		{"Tagged", fibRoute{link: 3, gateway: router4}, Route{Gateway{2, 100, router4}, 0}, ""},
		{"TaggedOnLink", fibRoute{link: 3}, Route{Gateway{2, 100, distant4}, 0}, ""},
		{"TaggedWithMTU", fibRoute{link: 3, mtu: 1300}, Route{Gateway{2, 100, distant4}, 1300}, ""},
		{"TwoTags", fibRoute{link: 4}, Route{}, ReasonVLAN},
		{"BelowIsGone", fibRoute{link: 5}, Route{}, ReasonNoLink},
		{"BelowIsEnslaved", fibRoute{link: 7}, Route{}, ReasonEnslaved},
		{"Encapsulated", fibRoute{link: 2, encapsulated: true}, Route{}, ReasonEncapsulated},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.route.kind = unix.RTN_UNICAST
			if got, why := r.by(c.route, distant4); got != c.want || why != c.why {
				t.Errorf("got %+v %q, want %+v %q", got, why, c.want, c.why)
			}
		})
	}
	for g, want := range map[Gateway]Hop{
		{2, 0, router4}:   {2, 0, [6]byte(hardware(1, 2)), [6]byte(hardware(2, 2)), 1500},
		{2, 100, router4}: {2, 100, [6]byte(hardware(1, 3)), [6]byte(hardware(2, 3)), 1400},
	} {
		if h, why := r.Hop(g); h != want || why != "" {
			t.Errorf("%+v: got the hop %+v %q, want %+v", g, h, why, want)
		}
	}
	for g, want := range map[Gateway]Reason{
		{2, 99, router4}: ReasonNoLink, {2, 103, router4}: ReasonLinkDown, {6, 0, router4}: ReasonEnslaved, {77, 0, router4}: ReasonNoLink,
	} {
		if _, why := r.Hop(g); why != want {
			t.Errorf("%+v: got %q, want %q", g, why, want)
		}
	}
	delete(r.links, 3)
	gone := r.revisit(func(_ Gateway, k neighbourKey) bool { return k.link == 3 })
	if len(gone) != 1 || gone[0] != (Gateway{2, 100, router4}) {
		t.Errorf("got changes of %v when the VLAN device went, want of its gateway", gone)
	}
}

func TestLinkByAddress(t *testing.T) {
	n := newNetwork(t)
	lo := n.link(n.h, "lo")
	n.must(n.h.RouteAdd(&netlink.Route{
		Dst: ipNet(distantNet4), LinkIndex: lo.Attrs().Index, Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST,
	}))
	r := n.router()
	for a, want := range map[netip.Addr]string{
		host4: "left", host6: "left", second4: "right", second6: "right", distant4: "lo",
		netip.MustParseAddr("127.0.0.1"): "lo", netip.IPv6Loopback(): "lo", router4: "", distant6: "", netip.MustParseAddr("192.0.2.255"): "",
	} {
		if l, ok := r.LinkByAddress(a); l.Name != want || ok != (want != "") {
			t.Errorf("%s: got %q %t, want %q", a, l.Name, ok, want)
		}
	}
	l, ok := r.LinkByName("right")
	if other, _ := r.Link(n.index(1)); !ok || l != other || l.Kind != LinkVeth || l.MAC != [6]byte(hardware(1, 1)) || l.MTU != 1500 || l.MTU6 != 1500 || !l.Up {
		t.Errorf("got %+v, want the veth as it was made", l)
	}
	if _, ok := r.LinkByName("none"); ok {
		t.Error("got a link that is not there")
	}

	moved := netip.MustParseAddr("192.0.2.3")
	n.addresses(n.h, n.links[1], moved)
	n.await(r, "the new address is known", func() bool {
		l, _ := r.LinkByAddress(moved)
		return l.Name == "right"
	})
	n.must(n.h.AddrDel(n.links[1], &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(moved, 24))}))
	n.await(r, "the address is gone", func() bool {
		_, ok := r.LinkByAddress(moved)
		return !ok
	})
}

func TestXDP(t *testing.T) {
	n := newNetwork(t)
	load(t, Sizes{Channels: 1, Allocations: 1, Listeners: 1}, testSettings) // or skip
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Instructions: asm.Instructions{asm.LoadImm(asm.R0, 2, asm.DWord), asm.Return()}, License: "GPL",
	})
	n.must(err)
	defer p.Close()
	info, err := p.Info()
	n.must(err)
	id, _ := info.ID()
	r := n.router()
	for mode, flags := range map[XDPMode]link.XDPAttachFlags{XDPNative: link.XDPDriverMode, XDPGeneric: link.XDPGenericMode} {
		if got, err := r.XDP(n.index(0)); err != nil || len(got) != 0 {
			t.Errorf("%s: got %v, %v before, want none", mode, got, err)
		}
		var l link.Link
		n.in(n.ns, func() (err error) {
			l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: n.index(0), Flags: flags})
			return err
		})
		got, err := r.XDP(n.index(0))
		if err != nil || len(got) != 1 || got[0] != (XDP{mode, uint32(id)}) {
			t.Errorf("got %v, %v, want program %d in %s mode", got, err, id, mode)
		}
		n.must(l.Close())
	}
	if _, err := r.XDP(9999); err == nil {
		t.Error("got programs of a link that is not there")
	}
	if d, err := r.Driver(n.index(0)); d != "veth" || err != nil {
		t.Errorf("got the driver %q, %v, want veth", d, err)
	}
	if _, err := r.Driver(9999); err == nil {
		t.Error("got the driver of a link that is not there")
	}
}
