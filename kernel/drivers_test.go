package kernel

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"unsafe"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

func TestDriver(t *testing.T) {
	const all = sendsRedirected | sendsBuffers
	for _, c := range []struct {
		name   string
		kind   LinkKind
		mode   XDPMode
		can    abilities
		known  bool
		strips bool
		want   driver
	}{
		{"Native", LinkPhysical, XDPNative, all, true, false, driver{buffers: true}},
		{"NoBuffers", LinkPhysical, XDPNative, sendsRedirected, true, false, driver{}},
		{"NoRedirect", LinkPhysical, XDPNative, 0, true, false, driver{mute: true}},
		{"Generic", LinkPhysical, XDPGeneric, all, true, false, driver{}},
		{"GenericOfSuchADriver", LinkPhysical, XDPGeneric, 0, true, false, driver{}},
		{"NotAttached", LinkPhysical, "", 0, true, true, driver{strips: true}},
		{"Strips", LinkPhysical, XDPNative, all, true, true, driver{buffers: true, strips: true}},
		{"Veth", LinkVeth, XDPNative, all, true, true, driver{buffers: true}},
		{"VethToNobody", LinkVeth, XDPNative, 0, true, true, driver{mute: true}},
		{"VethBefore6.3", LinkVeth, XDPNative, 0, false, false, driver{}},
		{"CardBefore6.3", LinkPhysical, XDPNative, 0, false, false, driver{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := driverOf(&Link{Kind: c.kind}, c.mode, c.can, c.known, c.strips); got != c.want {
				t.Errorf("got %+v, want %+v", got, c.want)
			}
		})
	}
}

func TestDriversDecideWhatIsRelayed(t *testing.T) {
	at := func(edit func(one, two *attachment)) *attachments {
		one := &attachment{link: Link{Index: 2, Name: "eth0", Kind: LinkPhysical}, mode: XDPNative, driver: driver{buffers: true}}
		two := &attachment{link: Link{Index: 3, Name: "eth1", Kind: LinkPhysical}, mode: XDPNative}
		edit(one, two)
		return &attachments{at: map[int]*attachment{2: one, 3: two}}
	}
	for _, c := range []struct {
		name    string
		edit    func(one, two *attachment)
		buffers bool
		why     Reason // of sending by eth0
	}{
		{"Good", func(_, _ *attachment) {}, true, ""},
		{"NoBuffers", func(one, _ *attachment) { one.driver.buffers = false }, false, ""},
		{"Mute", func(one, _ *attachment) { one.driver.mute = true }, true, "interface eth0: " + ReasonMute},
		{"MuteAndAlone", func(one, two *attachment) { one.driver.mute, two.mode = true, "" }, true, ""},
		{"MuteVethAlone", func(one, two *attachment) { one.driver.mute, one.link.Kind, two.mode = true, LinkVeth, "" }, true, "interface eth0: " + ReasonMuteVeth},
		{"GenericBesideNative", func(one, _ *attachment) { one.mode = XDPGeneric }, false, "interface eth0: attached in generic mode, and others natively"},
	} {
		t.Run(c.name, func(t *testing.T) {
			port, buffers, why := at(c.edit).port(2)
			if why != c.why || why == "" && (port != 2 || buffers != c.buffers) {
				t.Errorf("got port %d, buffers %t, %q; want port 2, buffers %t, %q", port, buffers, why, c.buffers, c.why)
			}
		})
	}
}

// TestVLANAddressesNeedTheirTags has a device below a VLAN device take tags off, which no kernel here has.
func TestVLANAddressesNeedTheirTags(t *testing.T) {
	plain, tagged := netip.MustParseAddrPort("192.0.2.1:3478"), netip.MustParseAddrPort("198.51.100.1:50000")
	card := &attachment{link: Link{Index: 2, Name: "eth0", Kind: LinkPhysical}, mode: XDPNative}
	h := &host{&Datapath{
		loaded: testSettings,
		router: &Router{
			links:     links{2: card.link, 3: {Index: 3, Name: "eth0.100", Kind: LinkVLAN, Parent: 2, VLAN: 100}},
			addresses: map[netip.Addr]int{plain.Addr(): 2, tagged.Addr(): 3},
		},
		attached: &attachments{at: map[int]*attachment{2: card}},
	}}
	for _, strips := range []bool{false, true, false} {
		card.driver.strips = strips
		if tag, why := h.arrival(plain, true); tag != 0 || why != "" {
			t.Errorf("strips %t: got tag %d, %q for an address without tag, want none and no reason", strips, tag, why)
		}
		tag, why := h.arrival(tagged, false)
		if tag != 100 || (why != "") != strips {
			t.Errorf("strips %t: got tag %d, %q", strips, tag, why)
		}
		if strips && !strings.Contains(string(why), "ethtool -K eth0 rxvlan off") {
			t.Errorf("got the reason %q, want one with a remedy", why)
		}
	}
}

func TestAbilitiesOfVeth(t *testing.T) {
	n := newNetwork(t)
	load(t, Sizes{Channels: 1, Allocations: 1, Listeners: 1}, testSettings) // or skip
	r := n.router()
	if r.netdev == 0 {
		if !olderThan(t, 6, 3) {
			t.Fatal("got no netlink family of network devices")
		}
		t.Skip("kernels before 6.3 do not say what drivers can do")
	}
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Instructions: asm.Instructions{asm.LoadImm(asm.R0, 2, asm.DWord), asm.Return()}, License: "GPL",
		Flags: unix.BPF_F_XDP_HAS_FRAGS,
	})
	n.must(err)
	defer p.Close()
	s := &attachments{router: r, at: map[int]*attachment{n.index(0): {link: Link{Index: n.index(0), Kind: LinkVeth}, mode: XDPNative}}}
	want := func(what string, want driver, ways, hops bool) {
		t.Helper()
		gotWays, gotHops := s.sense()
		if got := s.at[n.index(0)].driver; got != want || gotWays != ways || gotHops != hops {
			t.Errorf("%s: got %+v, ways changed %t, hops %t; want %+v, %t, %t", what, got, gotWays, gotHops, want, ways, hops)
		}
	}
	want("nothing at the other end", driver{mute: true}, true, true)
	var l link.Link
	n.in(n.far[0], func() (err error) {
		l, err = link.AttachXDP(link.XDPOptions{Program: p, Interface: n.ends[0].Attrs().Index, Flags: link.XDPDriverMode})
		return err
	})
	want("a program at the other end", driver{buffers: true}, true, true)
	want("and again", driver{buffers: true}, false, false)
	n.must(l.Close())
	want("it has gone", driver{mute: true}, true, true)
	if _, _, err := r.abilities(9999); err == nil {
		t.Error("got the abilities of a link that is not there")
	}
}

// olderThan says whether the kernel is older than a release.
func olderThan(t *testing.T, major, minor int) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var gotMajor, gotMinor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &gotMajor, &gotMinor); err != nil {
		t.Fatal(err)
	}
	return gotMajor < major || gotMajor == major && gotMinor < minor
}

func TestStrips(t *testing.T) {
	n := newNetwork(t)
	r := n.router()
	for _, on := range []bool{true, false, true} {
		n.in(n.ns, func() error { return setEthtoolFlag(r, "left", flagVLAN, on) })
		if got := r.strips(n.index(0)); got != on {
			t.Errorf("got %t of a link whose stripping is %t", got, on)
		}
	}
	if r.strips(9999) {
		t.Error("got a link that is not there to strip tags")
	}
}

// setEthtoolFlag switches a feature of a link, as ethtool -K does.
func setEthtoolFlag(r *Router, name string, flag uint32, on bool) error {
	flags, err := r.ethtoolFlags(name)
	if err != nil {
		return err
	}
	flags &^= flag
	if on {
		flags |= flag
	}
	value := struct{ command, data uint32 }{unix.ETHTOOL_SFLAGS, flags}
	request := struct {
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte
	}{value: unsafe.Pointer(&value)}
	copy(request.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r.devices), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("set flags of %s: %w", name, errno)
	}
	return nil
}
