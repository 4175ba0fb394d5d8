package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"turnstone/bpf"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Within which time the daemon notices what somebody else changed, and how much longer a busy machine may take.
const (
	tickTime  = time.Second
	sweepTime = 10 * time.Second
	slowness  = time.Second
)

// pinned is what a daemon of a lab has pinned: one layout, and a link for each interface.
type pinned struct {
	l     *lab
	maps  string // directory
	links map[string]string
}

func (l *lab) pinned() *pinned {
	l.t.Helper()
	versions, err := filepath.Glob(filepath.Join(pinsRoot, l.instance, "v*"))
	if err != nil || len(versions) != 1 {
		l.t.Fatalf("got layouts %v (%v), want one", versions, err)
	}
	p := &pinned{l: l, maps: versions[0], links: map[string]string{}}
	for _, name := range []string{"relay0", "relay1"} {
		p.links[name] = filepath.Join(pinsRoot, l.instance, "link-"+strconv.Itoa(l.ifindex(name)))
	}
	return p
}

// ifindex is of an interface of the relay.
func (l *lab) ifindex(name string) (index int) {
	l.t.Helper()
	l.relay.do(func() error {
		nic, err := netlink.LinkByName(name)
		if err == nil {
			index = nic.Attrs().Index
		}
		return err
	})
	return index
}

// open opens a map.
func (p *pinned) open(name string) *ebpf.Map {
	p.l.t.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(p.maps, name), nil)
	if err != nil {
		p.l.t.Fatal(err)
	}
	p.l.t.Cleanup(func() { _ = m.Close() })
	return m
}

// editRecord changes the first record of a kind.
func (p *pinned) editRecord(kind bpf.TurnstoneFlowKind, edit func(*bpf.TurnstoneFlow)) error {
	flows := p.open("flows")
	for slot := range flows.MaxEntries() {
		var f bpf.TurnstoneFlow
		if err := flows.Lookup(slot, &f); err != nil {
			return err
		}
		if f.Generation != 0 && f.Kind == uint8(kind) {
			edit(&f)
			return flows.Put(slot, f)
		}
	}
	return fmt.Errorf("no record of kind %d", kind)
}

// entries are the index entries of IPv4 by key.
func (p *pinned) entries() map[bpf.TurnstoneFlowKey4]bpf.TurnstoneSlotRef {
	out := map[bpf.TurnstoneFlowKey4]bpf.TurnstoneSlotRef{}
	var k bpf.TurnstoneFlowKey4
	var v bpf.TurnstoneSlotRef
	for all := p.open("index4").Iterate(); all.Next(&k, &v); {
		out[k] = v
	}
	return out
}

// editGateway changes what the gateways in use stand at.
func (p *pinned) editGateway(edit func(at uint64) uint64) error {
	gateways := p.open("gateways")
	for n := range uint32(16) {
		var at uint64
		if err := gateways.Lookup(n, &at); err != nil {
			return err
		}
		if at == 0 {
			continue
		}
		if err := gateways.Put(n, edit(at)); err != nil {
			return err
		}
	}
	return nil
}

// attachedLink opens the pinned link of an interface.
func (p *pinned) attachedLink(name string) (link.Link, error) {
	return link.LoadPinnedLink(p.links[name], nil)
}

// detach takes the program off an interface, as bpftool link detach does.
func (p *pinned) detach(name string) error {
	on, err := p.attachedLink(name)
	if err != nil {
		return err
	}
	return errors.Join(on.Detach(), on.Close())
}

// drift counts what was repaired.
type drift struct{ added, changed, removed int }

func (d drift) covers(e drift) bool {
	return d.added >= e.added && d.changed >= e.changed && d.removed >= e.removed
}

// repaired waits for the log to say that of what there is so much was repaired since a moment. It yields when that was,
// and how much in all.
func (d *daemon) repaired(what string, want drift, since time.Time) (at time.Time, sum drift) {
	d.t.Helper()
	eventually(d.t, what+" is repaired", func() error {
		sum = drift{}
		for _, e := range d.events() {
			if e.Kind != "DriftRepaired" || e.Event["what"] != what || e.Time.Before(since) || sum.covers(want) {
				continue
			}
			count := func(name string) int {
				n, _ := e.Event[name].(float64) // left out where it is 0
				return int(n)
			}
			at = e.Time
			sum = drift{sum.added + count("added"), sum.changed + count("changed"), sum.removed + count("removed")}
		}
		if !sum.covers(want) {
			return fmt.Errorf("the log says %+v", sum)
		}
		return nil
	})
	return at, sum
}

// TestKernelIsRepaired changes by hand what the kernel holds: it is noticed in time, put right, and told to the log.
func TestKernelIsRepaired(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4)
	d.offloaded(4)
	p := l.pinned()
	for _, row := range []struct {
		name   string
		what   string
		within time.Duration
		want   drift
		damage func() error
	}{
		{"RecordsEdited", "record", tickTime, drift{changed: 3}, func() error {
			return errors.Join(
				p.editRecord(bpf.TurnstoneFlowKindFLOW_TO_PEER, func(f *bpf.TurnstoneFlow) { f.OutDestinationPort[1]++ }),
				p.editRecord(bpf.TurnstoneFlowKindFLOW_TO_CLIENT, func(f *bpf.TurnstoneFlow) { f.Deadline += uint64(time.Hour) }),
				p.editRecord(bpf.TurnstoneFlowKindFLOW_GUARD, func(f *bpf.TurnstoneFlow) { f.Generation = 0 }),
			)
		}},
		{"GatewaysCleared", "record", tickTime, drift{changed: 2}, func() error {
			return p.editGateway(func(uint64) uint64 { return 0 })
		}},
		{"NextHopsEdited", "record", tickTime, drift{changed: 2}, func() error {
			hops := p.open("next_hops")
			var errs []error
			errs = append(errs, p.editGateway(func(at uint64) uint64 {
				var h bpf.TurnstoneNextHop
				errs = append(errs, hops.Lookup(uint32(at), &h))
				h.Destination[5]++
				errs = append(errs, hops.Put(uint32(at), h))
				return at
			}))
			return errors.Join(errs...)
		}},
		{"InterfacesEdited", "link", tickTime, drift{changed: 2}, func() error {
			i := uint32(l.ifindex("relay0"))
			return errors.Join(
				p.open("interfaces").Put(i, bpf.TurnstoneInterface{Ifindex: i, Mac: [6]byte{2}}),
				p.open("egress").Delete(uint32(l.ifindex("relay1"))),
			)
		}},
		{"LinkDetached", "link", tickTime, drift{added: 1}, func() error { return p.detach("relay0") }},
		{"SomeUnpinned", "pin", tickTime, drift{added: 3}, func() error {
			return errors.Join(os.Remove(p.links["relay1"]), os.Remove(filepath.Join(p.maps, "meters")), os.Remove(filepath.Join(p.maps, "program")))
		}},
		// Twelve maps, the program and two links.
		{"AllUnpinned", "pin", tickTime, drift{added: 15}, func() error { return os.RemoveAll(filepath.Join(pinsRoot, l.instance)) }},
		{"IndexEdited", "index", sweepTime, drift{added: 1, changed: 1, removed: 1}, func() error {
			index := p.open("index4")
			var errs []error
			for k, v := range p.entries() {
				switch k.RemotePort {
				case [2]byte{5001 >> 8, 5001 & 0xff}: // the client's ChannelData: it is gone
					k.RemotePort[1]++ // and somebody else's may go by its record
					errs = append(errs, index.Put(k, v))
					k.RemotePort[1]--
					errs = append(errs, index.Delete(k))
				case [2]byte{6001 >> 8, 6001 & 0xff}: // the peer's datagrams go by another record
					v.Slot++
					errs = append(errs, index.Put(k, v))
				}
			}
			return errors.Join(errs...)
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			d.t, c.t, l.t = t, t, t
			began := time.Now()
			if err := row.damage(); err != nil {
				t.Fatal(err)
			}
			at, got := d.repaired(row.what, row.want, began.Add(-time.Millisecond)) // the log has milliseconds
			if took := at.Sub(began); took > row.within+slowness {
				t.Errorf("it was noticed after %v, want within %v", took, row.within)
			}
			if got != row.want && row.name != "AllUnpinned" { // some of it may have been pinned again in between
				t.Errorf("got the repair of %+v told, want of %+v", got, row.want)
			}
			d.offloaded(4)
			d.wantByKernel("after the repair", map[string]uint64{"to-peer": 50, "to-client": 50}, func() {
				c.talk(50, func(int) int { return 100 })
			})
			for _, name := range p.links {
				if _, err := os.Stat(name); err != nil {
					t.Errorf("the link is not pinned: %v", err)
				}
			}
		})
	}
	d.t, c.t, l.t = t, t, t
	if other := l.second(); !strings.Contains(other, "is held by another turnstone") {
		t.Errorf("another daemon of the instance says %q after the pins were removed, want that it is held", other)
	}
}

// second starts another daemon of the instance, which must not start, and yields what it says.
func (l *lab) second() string {
	l.t.Helper()
	d := newDaemon(l.t, l.relay, append(l.flags(), "--listen", "udp://"+labServer4+":3480")...)
	d.flags = d.flags[4:] // without the listeners of the first
	d.launch()
	if code := d.wait(); code != 1 {
		l.t.Errorf("another daemon of the instance: got exit code %d, want 1", code)
	}
	said, err := os.ReadFile(d.stderr())
	if err != nil {
		l.t.Fatal(err)
	}
	return string(said)
}

// TestKernelHoldsItsInterfaces has others put their hands on the links: ip link set xdp off cannot, and a program that
// takes the place of one that was detached has it until it goes.
func TestKernelHoldsItsInterfaces(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4)
	d.offloaded(4)
	p := l.pinned()
	l.relay.do(func() error {
		nic, err := netlink.LinkByName("relay0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetXdpFd(nic, -1); !errors.Is(err, unix.EBUSY) {
			t.Errorf("ip link set relay0 xdp off: got %v, want %v", err, unix.EBUSY)
		}
		return nil
	})
	talk := func() { c.talk(50, func(int) int { return 100 }) }
	d.wantByKernel("after ip link set xdp off", map[string]uint64{"to-peer": 50, "to-client": 50}, talk)

	foreign, err := ebpf.NewProgram(passProgram)
	if err != nil {
		t.Fatal(err)
	}
	defer foreign.Close()
	if err := p.detach("relay1"); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	var on link.Link
	l.relay.do(func() (err error) {
		on, err = link.AttachXDP(link.XDPOptions{Program: foreign, Interface: l.ifindex("relay1"), Flags: link.XDPDriverMode})
		return err
	})
	reason := func() (mode, reason string) {
		for _, i := range d.kernel().Interfaces {
			if i.Interface == "relay1" {
				return i.Mode, i.Reason
			}
		}
		return "", ""
	}
	eventually(t, "the other program is left alone", func() error {
		if mode, why := reason(); mode != "" || !strings.Contains(why, "another program") {
			return fmt.Errorf("mode %q, reason %q", mode, why)
		}
		return nil
	})
	if at, _ := d.repaired("link", drift{added: 1}, began.Add(-time.Millisecond)); at.Sub(began) > tickTime+slowness {
		t.Errorf("it was noticed after %v, want within %v", at.Sub(began), tickTime)
	}
	before := d.status()
	talk()
	if got := d.status().ToPeer.Packets - before.ToPeer.Packets; got != 50 {
		t.Errorf("userspace relayed %d packets, want 50", got)
	}
	for _, w := range d.carried(d.allocations()[c.addr()].ID) {
		if w.Kernel || !strings.Contains(w.Reason, "another program") {
			t.Errorf("got %+v, want userspace because of another program", w)
		}
	}
	if err := on.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the program is attached again", func() error {
		if mode, why := reason(); mode != "native" {
			return fmt.Errorf("mode %q, reason %q", mode, why)
		}
		return nil
	})
	d.offloaded(4)
	d.wantByKernel("after the other program went", map[string]uint64{"to-peer": 50, "to-client": 50}, talk)
}
