package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"

	"turnstone/bpf"
	"turnstone/internal/testenv"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestFeatures(t *testing.T) {
	testenv.Root(t)
	list, err := Features()
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, f := range list {
		names = append(names, f.Group+" "+f.Name)
		if f.Err != nil {
			t.Errorf("%s %s: got %v, want it on a kernel that the program loads on", f.Group, f.Name, f.Err)
		}
	}
	for _, want := range []string{"program XDP", "map Hash", "map DevMap", "map ArrayOfMaps", "helper bpf_xdp_adjust_head", "helper bpf_ktime_get_boot_ns", "flag mmapable arrays"} {
		if !slices.Contains(names, want) {
			t.Errorf("got %v, want %q among them", names, want)
		}
	}
	if err := haveFrags(1 << 30); !errors.Is(err, ebpf.ErrNotSupported) {
		t.Errorf("a flag of no kernel: got %v, want %v", err, ebpf.ErrNotSupported)
	}
}

func TestTry(t *testing.T) {
	testenv.Root(t)
	c := Config{Listeners: []netip.AddrPort{netip.AddrPortFrom(host4, 3478)}, RelayFirst: 49152, RelayLast: 65535}
	l, err := Try(c)
	if err != nil || l.Clock != nil || l.Instructions == 0 || l.Instructions > 100_000 || !l.Compiled {
		t.Errorf("got %+v, %v, want at most 100,000 instructions, compiled, and one clock", l, err)
	}
	for port := range uint16(maxListenerPorts) {
		c.Listeners = append(c.Listeners, netip.AddrPortFrom(host4, 5000+port))
	}
	if _, err := Try(c); err == nil || !strings.Contains(err.Error(), "at most 8") {
		t.Errorf("nine ports of listeners: got %v, want a refusal", err)
	}
}

func TestMapBytes(t *testing.T) {
	testenv.Root(t)
	version, err := features.LinuxVersionCode()
	if err != nil {
		t.Fatal(err)
	}
	if version < 6<<16|4<<8 {
		t.Skip("before Linux 6.4 the kernel does not count the memory of maps, but estimates it by their sizes")
	}
	for _, s := range []Sizes{{Channels: 100, Allocations: 100, Listeners: 2}, {Channels: 16384, Allocations: 16384, Listeners: 2}} {
		got, err := MapBytes(s)
		if err != nil {
			t.Fatal(err)
		}
		o := load(t, s, testSettings)
		want := (&Datapath{objects: o}).memory()
		if got < want*9/10 || got > want*11/10 {
			t.Errorf("%+v: got %d bytes, want within a tenth of the %d that the kernel counts", s, got, want)
		}
	}
}

func TestCandidates(t *testing.T) {
	n := newNetwork(t)
	c := Config{
		Instance: fmt.Sprintf("probe-%d", os.Getpid()), Listeners: []netip.AddrPort{netip.AddrPortFrom(host4, 3478)}, Relays: []netip.Addr{host6, second4},
	}
	ask := func() []Candidate {
		t.Helper()
		var out []Candidate
		n.in(n.ns, func() (err error) {
			out, err = Candidates(c)
			return err
		})
		return out
	}
	got := ask()
	if len(got) != 2 || got[0].Link.Name != "left" || got[1].Link.Name != "right" {
		t.Fatalf("got %+v, want left and right", got)
	}
	if got[0].Driver != "veth" || !slices.Equal(got[0].Modes, []XDPMode{XDPGeneric}) || len(got[0].Attached) != 0 {
		t.Errorf("got %+v, want a veth, generic, with no program", got[0])
	}
	c.Mode = XDPNative
	if got := ask(); !slices.Equal(got[0].Modes, []XDPMode{XDPNative}) {
		t.Errorf("with a wish for native: got %v", got[0].Modes)
	}

	foreign, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Name: "theirs", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	n.must(err)
	t.Cleanup(func() { _ = foreign.Close() })
	n.in(n.ns, func() error { return netlink.LinkSetXdpFdWithFlags(n.links[1], foreign.FD(), unix.XDP_FLAGS_SKB_MODE) })
	o := load(t, Sizes{Channels: 1, Allocations: 1, Listeners: 1}, testSettings)
	var ours link.Link
	n.in(n.ns, func() (err error) {
		ours, err = link.AttachXDP(link.XDPOptions{Program: o.Turnstone, Interface: got[0].Link.Index, Flags: link.XDPGenericMode})
		return err
	})
	t.Cleanup(func() { _ = ours.Close() })

	got = ask()
	if a := got[1].Attached; len(a) != 1 || a[0].Name != "theirs" || a[0].Owner != OwnerOther || a[0].Mode != XDPGeneric {
		t.Errorf("right: got %+v, want theirs, another's, generic", a)
	}
	if a := got[0].Attached; len(a) != 1 || a[0].Name != bpf.TurnstoneProgTurnstone || a[0].Owner != OwnerOther {
		t.Errorf("left, not pinned: got %+v, want a turnstone of somebody else", a)
	}
	p, err := openPins(DefaultRoot, c.Instance)
	n.must(err)
	t.Cleanup(func() { _ = p.close() })
	n.must(ours.Pin(p.link(got[0].Link.Index)))
	t.Cleanup(func() { _ = os.RemoveAll(p.dir) })
	if a := ask()[0].Attached; len(a) != 1 || a[0].Owner != OwnerThis {
		t.Errorf("left, pinned: got %+v, want it known as ours", a)
	}
}

func TestTags(t *testing.T) {
	r := &Router{links: links{}, addresses: map[netip.Addr]int{host4: 3, host6: 2}}
	for _, l := range []netlink.Link{
		&netlink.Device{LinkAttrs: card(2, "eth0")}, vlan(100, netlink.VLAN_PROTOCOL_8021Q, card(3, "eth0.100", parent(2))),
	} {
		r.links[l.Attrs().Index] = linkOf(l)
	}
	d := &Datapath{router: r, config: Config{Relays: []netip.Addr{host4, host6}}}
	if got := d.tags(2); !slices.Equal(got, []uint16{100}) {
		t.Errorf("got tags %v, want 100", got)
	}
	d.config.Relays = []netip.Addr{host6}
	if got := d.tags(2); len(got) != 0 {
		t.Errorf("no address on the VLAN: got tags %v, want none", got)
	}
}
