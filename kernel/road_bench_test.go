package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"turnstone/bpf"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// road is a network in which frames are made at one end of a link, go through a program at the other, come
// back, and are counted and dropped. All of it is done by one CPU, frame after frame.
type road struct {
	*network
	lab      *lab
	generate *ebpf.Program
	made     packet
	sunk     *ebpf.Variable
	drop     *ebpf.Program
}

// roadFrames is how many frames are sent at once.
const roadFrames = 1 << 17

// trip is what goes through the program: what arrives, and the flows by which it leaves.
type trip struct {
	name  string
	kind  Verdict
	mixed bool // it leaves with another family
	flows func(n int, hop uint32) []Flow
	made  packet
}

// trips are the single directions, the arriving family first.
func trips() (all []trip) {
	names := [2]string{"v4", "v6"}
	for _, kind := range []Verdict{VerdictToPeer, VerdictToClient, VerdictToChannel} {
		for _, f := range [][2]int{{v4, v4}, {v6, v6}, {v4, v6}, {v6, v4}} {
			all = append(all, newTrip(fmt.Sprintf("%v/%s-%s", kind, names[f[0]], names[f[1]]), kind, f[0], f[1]))
		}
	}
	return all
}

func newTrip(name string, kind Verdict, arrives, leaves int) trip {
	s := newScene(kind, arrives, arrives, leaves)
	remote := [2]netip.Addr{distant4, distant6}[arrives] // the host is a router to it: see bounced
	t := trip{name: name, kind: kind, mixed: arrives != leaves, made: s.in}
	t.made.source = netip.AddrPortFrom(remote, 0)
	t.made.payload = make([]byte, 160)
	binary.BigEndian.PutUint16(t.made.payload, 0xffff) // the opposite of port 0
	t.flows = func(n int, hop uint32) (flows []Flow) {
		for i := range n {
			first, second := s.flow, s.second
			first.Remote = netip.AddrPortFrom(remote, uint16(i))
			first.Gateway, first.Meter, first.Deadline = hop, 0, durationOf(noon)
			if kind == VerdictToChannel {
				first.Source = netip.AddrPortFrom(first.Source.Addr(), uint16(i))
				second.Remote = first.Source
				second.Gateway, second.Meter, second.Deadline = hop, 0, durationOf(noon)
				flows = append(flows, second)
			}
			flows = append(flows, first)
		}
		return flows
	}
	return t
}

// BenchmarkRoad has live frames relayed from and to a veth, and measures the CPU time of a frame, less that of the same frames
// if they are dropped where they arrive. The references take turns with the program.
func BenchmarkRoad(b *testing.B) {
	for _, t := range trips() {
		for _, n := range benchFlows(t.mixed) {
			b.Run(fmt.Sprintf("%s/%d", t.name, n), func(b *testing.B) { t.run(b, n) })
		}
	}
}

func (t trip) run(b *testing.B, n int) {
	r := newRoad(b, t, n)
	refs := r.references(nil)
	on := r.attach(r.ns, r.index(0), r.drop)
	samples := map[string][]float64{}
	programs := map[string]*ebpf.Program{
		inNanoseconds: r.lab.o.Turnstone, "bounce-ns/packet": refs.Bounce, "bounce-fib-ns/packet": refs.BounceFib,
	}
	relayed := way{kind: t.kind}
	for b.Loop() {
		r.must(on.Update(r.drop))
		base, _ := r.send(0)
		for unit, x := range programs {
			r.must(on.Update(x))
			was, took := r.sendAll()
			if unit == inNanoseconds {
				relayed.prove(r.lab, was, roadFrames)
			}
			samples[unit] = append(samples[unit], max(took-base, 0))
		}
	}
	report(b, samples)
}

// forgetUsage zeroes the usage of all slots.
func (l *lab) forgetUsage() {
	slots := make([]uint32, l.tables.slots())
	for i := range slots {
		slots[i] = uint32(i)
	}
	l.tables.usage.clear(slots)
}

// newRoad makes a road for a trip of n flows.
func newRoad(b *testing.B, t trip, n int) *road {
	r := &road{network: newNetwork(b)}
	r.forward()
	near, far := station(r.links[0].Attrs().HardwareAddr), station(r.ends[0].Attrs().HardwareAddr)
	ifindex := uint32(r.index(0))
	r.made = t.made
	r.made.to, r.made.from = near, far
	flows := t.flows(n, viaRing)
	r.lab = newLab(b, Sizes{Channels: uint32(len(flows)), Allocations: 1, Listeners: 1})
	r.lab.hop(viaRing, modelHop{ifindex: ifindex, port: openPort, to: far, from: near, mtu: 1500})
	r.lab.put(r.lab.o.Interfaces, ifindex%256, bpf.TurnstoneInterface{Ifindex: ifindex, Mac: near})
	r.lab.fill(flows)

	frame := r.made.bytes(b)
	var template [10]uint64
	words := min(len(template), len(frame)/8)
	if err := binary.Read(bytes.NewReader(frame), binary.NativeEndian, template[:words]); err != nil {
		b.Fatal(err)
	}
	payload := len(frame) - len(r.made.payload)
	maker := r.references(map[string]any{
		bpf.ReferenceVarTemplate: template, bpf.ReferenceVarTemplateWords: uint32(words), bpf.ReferenceVarSourceAt: uint32(r.made.udp()),
		bpf.ReferenceVarPayloadAt: uint32(payload), bpf.ReferenceVarFlowMask: uint32(n - 1),
	})
	r.generate = maker.Generate
	sink := r.references(nil)
	r.sunk = sink.Sunk
	r.drop = r.references(nil).SinkFrame
	r.attach(r.far[0], r.ends[0].Attrs().Index, sink.SinkFrame)
	return r
}

// sendAll sends frames along the road until all of them come to its end: on a busy machine the threads for soft interrupts
// wait, and queues are full. It yields the counters as they were before those.
func (r *road) sendAll() (was [Verdicts]bpf.TurnstoneCounter, each float64) {
	r.Helper()
	var lost uint64
	for range 20 {
		was = r.lab.counters()
		r.lab.forgetUsage()
		if each, lost = r.send(roadFrames); lost == 0 {
			return was, each
		}
	}
	r.Fatalf("%d frames of %d are lost, again and again", lost, roadFrames)
	return was, 0
}

// send sends frames along the road, of which so many are to come to its end, and yields the CPU time of each in
// nanoseconds, and how many did not come.
func (r *road) send(want uint64) (each float64, lost uint64) {
	r.Helper()
	var took time.Duration
	r.in(r.far[0], func() error {
		var one unix.CPUSet
		one.Set(0)
		if err := unix.SchedSetaffinity(0, &one); err != nil {
			return err
		}
		before, err := r.arrived()
		if err != nil {
			return err
		}
		began, err := cpuTime()
		if err != nil {
			return err
		}
		var context [24]byte
		frame := r.made.bytes(r)
		binary.NativeEndian.PutUint32(context[4:], uint32(len(frame)))
		binary.NativeEndian.PutUint32(context[12:], uint32(r.ends[0].Attrs().Index))
		if _, err := r.generate.Run(&ebpf.RunOptions{Data: frame, Context: context[:], Repeat: roadFrames, Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES}); err != nil {
			return err
		}
		if lost, err = r.missing(before + want); err != nil {
			return err
		}
		ended, err := cpuTime()
		took = ended - began
		return err
	})
	return float64(took.Nanoseconds()) / roadFrames, lost
}

// missing waits until so many frames have arrived in all, or no more come, and yields how many did not.
func (r *road) missing(want uint64) (uint64, error) {
	const quiet = 200 * time.Millisecond
	last, changed := uint64(0), time.Now()
	for ; ; time.Sleep(time.Millisecond) {
		now, err := r.arrived()
		if err != nil || now >= want {
			return 0, err
		}
		if now != last {
			last, changed = now, time.Now()
		}
		if time.Since(changed) > quiet {
			return want - now, nil
		}
	}
}

// arrived is how many frames came to the end of the road.
func (r *road) arrived() (sum uint64, err error) {
	var sunk [64]struct{ Packets, Bytes, _, _, _, _, _, _ uint64 }
	err = r.sunk.Get(&sunk)
	for _, s := range sunk {
		sum += s.Packets
	}
	return sum, err
}

// softirqThreads are the files that tell the CPU time of the threads ksoftirqd.
var softirqThreads = sync.OnceValue(func() (files []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is good
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), "ksoftirqd/") {
			files = append(files, filepath.Join(filepath.Dir(name), "schedstat"))
		}
	}
	return files
})

// cpuTime is the CPU time of this thread and of those that do its soft interrupts when they are many.
func cpuTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("read the CPU time of the thread: %w", err)
	}
	sum := time.Duration(ts.Nano())
	for _, name := range softirqThreads() {
		b, err := os.ReadFile(name)
		if err != nil {
			return 0, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", name, err)
		}
		sum += time.Duration(ns)
	}
	return sum, nil
}
