package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"testing"

	"turnstone/bpf"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// benchFlows are how many flows a benchmark goes round. Families that are mixed have one.
func benchFlows(mixed bool) []int {
	if mixed {
		return []int{1}
	}
	return []int{1, 65536}
}

// lap is how many times a packet is relayed in one test run: its TTL allows no more.
const lap = 254

// way is one through the program, of packets that arrive with one family and leave with another.
type way struct {
	name   string
	kind   Verdict
	family [2]int // v4 or v6
}

// ways are those that are measured there and back.
var ways = []way{
	{"channel-and-peer/v4", VerdictToPeer, [2]int{v4, v4}},
	{"channel-and-peer/v6", VerdictToPeer, [2]int{v6, v6}},
	{"channel-and-peer/v4-v6", VerdictToPeer, [2]int{v4, v6}},
	{"channel-and-peer/v6-v4", VerdictToPeer, [2]int{v6, v4}},
	{"channel-to-channel/v4", VerdictToChannel, [2]int{v4, v4}},
	{"channel-to-channel/v6", VerdictToChannel, [2]int{v6, v6}},
	{"channel-to-channel/v4-v6", VerdictToChannel, [2]int{v4, v6}},
}

// benchClient is the i-th client of a benchmark, benchPeer the i-th peer, benchRelayed one of our relayed addresses.
func benchClient(family, i int) netip.AddrPort {
	if family == v4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, byte(18 + i>>16), byte(i >> 8), byte(i)}), 40000)
	}
	return netip.AddrPortFrom(documentation(1, i), 40000)
}

func benchPeer(family, i int) netip.AddrPort {
	if family == v4 {
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 19, byte(i >> 8), byte(i)}), 9000)
	}
	return netip.AddrPortFrom(documentation(3, i), 9000)
}

// documentation is the i-th address of one of the networks under 2001:db8::/32.
func documentation(network byte, i int) netip.Addr {
	a := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, network}
	binary.BigEndian.PutUint32(a[12:], uint32(i))
	return netip.AddrFrom16(a)
}

func benchRelayed(family, i int) netip.AddrPort {
	return netip.AddrPortFrom(sceneRelayed[family].Addr(), uint16(49152+i%16384))
}

// ring makes the flows of n bindings such that a packet goes round all of them: what
// one sends is what the next takes.
func (w way) ring(n int) []Flow {
	flows := make([]Flow, 0, 4*n)
	there, back := w.family[0], w.family[1]
	for i := range n {
		next := (i*40505 + 12345) & (n - 1) // all of them before one comes again
		if w.kind == VerdictToPeer {
			flows = append(flows,
				Flow{
					Key: Key{Remote: benchClient(there, i), Local: sceneListeners[there], Channel: 0x4000}, Kind: ToPeer,
					Source: benchPeer(back, i), Destination: benchRelayed(back, i),
				},
				Flow{
					Key: Key{Remote: benchPeer(back, i), Local: benchRelayed(back, i)}, Kind: ToClient,
					Source: benchClient(there, next), Destination: sceneListeners[there], OutChannel: 0x4000,
				})
			continue
		}
		// Two calls from channel to channel, of which the second calls the first one of the next.
		flows = append(flows, call(i, there, back, benchClient(back, n+i), 0)...)
		flows = append(flows, call(n+i, back, there, benchClient(there, next), 1)...)
	}
	for i := range flows {
		flows[i].Deadline, flows[i].Gateway = durationOf(noon), viaRing
	}
	return flows
}

// call is a channel to a relayed address, whose channel leaves as if its client came to a listener.
func call(i, arrives, leaves int, then netip.AddrPort, side uint16) []Flow {
	from := netip.AddrPortFrom(sceneRelayed[arrives].Addr(), uint16(i))
	to := netip.AddrPortFrom(sceneRelayed[arrives].Addr(), 50000+side)
	return []Flow{
		{
			Key: Key{Remote: benchClient(arrives, i), Local: sceneListeners[arrives], Channel: 0x4000}, Kind: ToPeer,
			Source: from, Destination: to, LocalPeer: true,
		},
		{
			Key: Key{Remote: from, Local: to}, Kind: ToClient,
			Source: then, Destination: sceneListeners[leaves], OutChannel: 0x4000,
		},
	}
}

// viaRing is the gateway back to where frames arrive, as the program is to take them again.
const viaRing = 50

// start is the packet as the i-th client sends it.
func (w way) start(i int) packet {
	family := w.family[0]
	return packet{
		to: ourStation, from: theirStation, ttl: 255, id: 1, df: true, payload: make([]byte, 160),
		source: benchClient(family, i), destination: sceneListeners[family], channel: 0x4000,
	}
}

// BenchmarkPath has one packet relayed from binding to binding by PROG_TEST_RUN. That every run was relayed is proven by the
// counters. The figure is the mean of both directions, as the kernel measures it; beside it those of the references, which take
// turns with the program: a machine is not equally fast at all times.
func BenchmarkPath(b *testing.B) {
	for _, w := range ways {
		for _, n := range benchFlows(w.family[0] != w.family[1]) {
			b.Run(fmt.Sprintf("%s/%d", w.name, n), func(b *testing.B) { w.run(b, n) })
		}
	}
}

func (w way) run(b *testing.B, n int) {
	flows := w.ring(n)
	l := newLab(b, Sizes{Channels: uint32(len(flows)), Allocations: 1, Listeners: 1})
	l.hop(viaRing, modelHop{ifindex: arrivalIf, port: openPort, to: ourStation, from: theirStation, mtu: 1500})
	l.fill(flows)
	net := newNetwork(b)
	net.forward()
	o := net.references(map[string]any{bpf.ReferenceVarFibIfindex: uint32(net.index(0))})
	for i, x := range []*ebpf.Program{l.o.Turnstone, o.Bounce, o.BounceFib} {
		net.dispatch(byte(i), x)
	}
	if err := netns.Set(net.ns); err != nil { // of this thread, which ends with the benchmark
		b.Fatal(err)
	}
	was := l.counters()
	samples := map[string][]float64{}
	take := func(unit string, x *ebpf.Program, frames ...packet) {
		var sum float64
		for _, f := range frames {
			took, err := timeRun(x, f.bytes(b))
			if err != nil {
				b.Fatalf("%s: %v", unit, err)
			}
			sum += took
		}
		samples[unit] = append(samples[unit], sum/float64(len(frames)))
	}
	there, back := net.bounced(w.family[0]), net.bounced(w.family[1])
	for b.Loop() {
		take(inNanoseconds, l.o.Turnstone, w.start(len(samples[inNanoseconds])&(n-1)))
		take("bounce-ns/packet", o.Bounce, there, back)
		take("bounce-fib-ns/packet", o.BounceFib, there, back)
	}
	w.prove(l, was, uint64(len(samples[inNanoseconds]))*lap)
	report(b, samples)
}

// inNanoseconds is the unit of the datapath's own figure.
const inNanoseconds = "ns/packet"

// bounced is a packet between two hosts to which the host of n is a router.
func (n *network) bounced(family int) packet {
	remote := [2]netip.Addr{distant4, distant6}[family]
	return packet{
		to: station(n.links[0].Attrs().HardwareAddr), from: theirStation, ttl: 255, id: 1, df: true, payload: make([]byte, 160),
		source: netip.AddrPortFrom(remote, 40000), destination: netip.AddrPortFrom(remote.Next(), 3478), channel: 0x4000,
	}
}

// fill makes flows known to the program, many a call.
func (l *lab) fill(flows []Flow) {
	l.Helper()
	keys, refs := make([]Key, 0, len(flows)), make([]ref, 0, len(flows))
	for i := range flows {
		slot := uint32(i + 1)
		l.tables.publish(slot, flows[i].record(), slot)
		keys, refs = append(keys, flows[i].Key), append(refs, ref{slot, slot})
	}
	if n, err := l.tables.index.put(keys, refs); n != len(keys) || err != nil {
		l.Fatalf("%d of %d keys are set: %v", n, len(keys), err)
	}
}

// prove fails unless all packets since the counters were as they are given were relayed by p, at least n of them, and as
// many by the usage of the flows. A run that a signal interrupts is begun again: there may be more.
func (w way) prove(l *lab, was [Verdicts]bpf.TurnstoneCounter, n uint64) {
	l.Helper()
	var relayed uint64
	for v, c := range l.counters() {
		d := c.Packets - was[v].Packets
		switch {
		case Verdict(v) == w.kind, w.kind == VerdictToPeer && Verdict(v) == VerdictToClient:
			relayed += d
		case d != 0 && Verdict(v) != VerdictNotOurs: // of that, a link has some of its own
			l.Errorf("%d packets came to %v", d, Verdict(v))
		}
	}
	if relayed < n {
		l.Errorf("%d packets were relayed, want %d", relayed, n)
	}
	want := relayed
	if w.kind == VerdictToChannel {
		want *= 2 // one for each allocation
	}
	var used uint64
	for slot := range uint32(l.tables.slots()) {
		used += l.tables.usage.read(slot).Packets
	}
	if used != want {
		l.Errorf("the flows have counted %d packets, want %d", used, want)
	}
}

// dispatch attaches a program to a link of its own, where nothing happens, so that the kernel calls it as it calls one in
// use. Else each test run of several packets waits for two grace periods.
func (n *network) dispatch(i byte, program *ebpf.Program) {
	n.Helper()
	name := fmt.Sprintf("idle%d", i)
	n.must(n.h.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "other" + name}))
	n.attach(n.ns, n.link(n.h, name).Attrs().Index, program)
}

// attach attaches a program natively until the benchmark ends.
func (n *network) attach(ns netns.NsHandle, ifindex int, program *ebpf.Program) link.Link {
	n.Helper()
	var on link.Link
	n.in(ns, func() (err error) {
		on, err = link.AttachXDP(link.XDPOptions{Program: program, Interface: ifindex, Flags: link.XDPDriverMode})
		return err
	})
	n.Cleanup(func() { n.must(on.Close()) })
	return on
}

// timeRun runs a packet round once, and yields the mean of a relaying in nanoseconds.
func timeRun(program *ebpf.Program, frame []byte) (float64, error) {
	action, took, err := program.Benchmark(frame, lap, nil)
	if err == nil && action != xdpTX {
		err = fmt.Errorf("action %d, want %d", action, xdpTX)
	}
	return float64(took.Nanoseconds()) + 0.5, err // the kernel rounds down
}

// report reports the median of the samples of each unit.
func report(b *testing.B, samples map[string][]float64) {
	b.Helper()
	for unit, of := range samples {
		slices.Sort(of)
		b.ReportMetric(of[len(of)/2], unit)
	}
	b.ReportMetric(0, "ns/op") // of this process, which makes packets
}

// forward makes the host a router to distant hosts, as bpf_fib_lookup wants it.
func (n *network) forward() {
	n.Helper()
	n.in(n.ns, func() error {
		return errors.Join(os.WriteFile("/proc/sys/net/ipv4/conf/all/forwarding", []byte("1"), 0),
			os.WriteFile("/proc/sys/net/ipv6/conf/all/forwarding", []byte("1"), 0))
	})
	n.via(distantNet4, router4)
	n.via(distantNet6, router6)
	mac := n.ends[0].Attrs().HardwareAddr
	n.neighbour(0, router4, mac, netlink.NUD_PERMANENT)
	n.neighbour(0, router6, mac, netlink.NUD_PERMANENT)
}

// references loads the programs to measure with.
func (n *network) references(settings map[string]any) *bpf.ReferenceObjects {
	n.Helper()
	spec, err := bpf.LoadReference()
	n.must(err)
	for name, v := range settings {
		n.must(spec.Variables[name].Set(v))
	}
	var o bpf.ReferenceObjects
	n.must(spec.LoadAndAssign(&o, nil))
	n.Cleanup(func() { n.must(o.Close()) })
	return &o
}
