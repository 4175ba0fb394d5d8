package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"turnstone/bpf"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// Next hops of a lab, by gateway.
const (
	viaBack       = 1 + iota // the interface frames arrive on
	viaOther                 // another interface
	viaVLAN                  // the same, tagged
	viaBuffers               // another interface, large frames in several buffers
	viaNobody                // not resolved
	viaClosed                // an egress that sends nothing
	viaNarrow                // an MTU of 1280
	viaHuge                  // an MTU that no IP packet reaches
	viaOutOfRange = 1 << 20
)

const (
	arrivalIf  = 1 // lo, which every network namespace has
	otherIf    = 77
	openPort   = 3 // of egress
	closedPort = 4
	labVLAN    = 100
	noon       = uint64(1) << 62 // a deadline that no test sees
)

var (
	ourStation   = station{0x00, 0x00, 0x5e, 0x00, 0x53, 0x01}
	ourOther     = station{0x00, 0x00, 0x5e, 0x00, 0x53, 0x02}
	theirStation = station{0x00, 0x00, 0x5e, 0x00, 0x53, 0xaa}
	thirdStation = station{0x00, 0x00, 0x5e, 0x00, 0x53, 0xbb}
)

var labHops = map[uint32]modelHop{
	viaBack:    {ifindex: arrivalIf, port: openPort, to: theirStation, from: ourStation, mtu: 1500},
	viaOther:   {ifindex: otherIf, port: openPort, to: thirdStation, from: ourOther, mtu: 1500},
	viaVLAN:    {ifindex: otherIf, port: openPort, to: thirdStation, from: ourOther, mtu: 1500, vlan: labVLAN},
	viaBuffers: {ifindex: otherIf, port: openPort, to: thirdStation, from: ourOther, mtu: 9000, buffers: true},
	viaClosed:  {ifindex: otherIf, port: closedPort, to: thirdStation, from: ourOther, mtu: 1500, closed: true},
	viaNarrow:  {ifindex: arrivalIf, port: openPort, to: theirStation, from: ourStation, mtu: 1280},
	viaHuge:    {ifindex: otherIf, port: openPort, to: thirdStation, from: ourOther, mtu: 100_000, buffers: true},
}

// lab runs frames through the program and holds each against the model. It belongs to one
// thread, on one CPU.
type lab struct {
	testing.TB
	o       *bpf.TurnstoneObjects
	tables  *tables
	model   *model
	next    uint32 // slot
	context [24]byte
	in, out []byte
	cpus    []bpf.TurnstoneCpu // as last read; frames run on the first

	bareRoom bool // this kernel can give all headroom to metadata: since 6.5
	cutsHead bool // this kernel can have the first buffer end anywhere

	verdicts [Verdicts]bpf.TurnstoneCounter // expected so far
	used     map[uint32]bpf.TurnstoneCounter
}

// newLab loads the program with the hops above and no flows.
func newLab(t testing.TB, sizes Sizes) *lab {
	t.Helper()
	runtime.LockOSThread() // until the goroutine ends, and the thread with it
	var one unix.CPUSet
	one.Set(0)
	if err := unix.SchedSetaffinity(0, &one); err != nil {
		t.Fatal(err)
	}
	o := load(t, sizes, testSettings)
	tables, err := openTables(&o.TurnstoneMaps)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tables.close(); err != nil {
			t.Error(err)
		}
	})
	l := &lab{
		TB: t, o: o, tables: tables, next: 1, out: make([]byte, 1<<17), used: map[uint32]bpf.TurnstoneCounter{},
		model: &model{
			Settings: testSettings, flows: map[Key]*modelFlow{}, meters: map[uint32]*modelMeter{},
			sockets: map[uint16]bool{},
		},
	}
	l.put(o.Egress, uint32(openPort), uint32(arrivalIf))
	l.restore()
	frame := make([]byte, 64)
	_, err = l.try(arrival{frame: frame, linear: 64, headroom: 0, ifindex: arrivalIf})
	l.bareRoom = err == nil
	_, err = l.try(arrival{frame: frame, linear: 60, headroom: testRunHeadroom, ifindex: arrivalIf})
	l.cutsHead = err == nil
	l.verdicts = l.counters()
	return l
}

// try sends a through the program.
func (l *lab) try(a arrival) (outcome, error) {
	meta := testRunHeadroom - a.headroom
	l.in = append(append(l.in[:0], make([]byte, meta)...), a.frame...)
	first := meta + len(a.frame)
	if a.linear < min(len(a.frame), testRunBuffer) {
		first = meta + a.linear
	}
	binary.NativeEndian.PutUint32(l.context[0:], uint32(meta))
	binary.NativeEndian.PutUint32(l.context[4:], uint32(first))
	binary.NativeEndian.PutUint32(l.context[12:], a.ifindex)
	options := ebpf.RunOptions{Data: l.in, DataOut: l.out, Context: l.context[:], Repeat: 1}
	action, err := l.o.Turnstone.Run(&options)
	if err != nil {
		return outcome{}, err
	}
	return outcome{action: action, frame: options.DataOut[meta:]}, nil
}

// restore sets interfaces and next hops as they were in the beginning.
func (l *lab) restore() {
	l.Helper()
	l.put(l.o.Interfaces, uint32(arrivalIf), bpf.TurnstoneInterface{Ifindex: arrivalIf, Mac: ourStation})
	l.model.stations = map[uint32]station{arrivalIf: ourStation}
	l.model.hops = map[uint32]*modelHop{}
	for gateway, h := range labHops {
		l.hop(gateway, h)
	}
}

// hop sets the next hop of a gateway.
func (l *lab) hop(gateway uint32, h modelHop) {
	hop := bpf.TurnstoneNextHop{
		Ifindex: h.ifindex, Port: h.port, Mtu: uint32(h.mtu), Destination: h.to, Source: h.from, Vlan: wire(h.vlan),
	}
	if h.buffers {
		hop.Flags = 1
	}
	l.tables.hops[100+gateway], l.tables.gateways[gateway] = hop, uint64(100+gateway)
	l.model.hops[gateway] = &h
}

func (l *lab) put(m *ebpf.Map, k, v any) {
	l.Helper()
	if err := m.Put(k, v); err != nil {
		l.Fatalf("set %v: %v", m, err)
	}
}

// add makes f known to program and model. Edits are to the record, once it is made.
func (l *lab) add(f Flow, edits ...func(*bpf.TurnstoneFlow)) *modelFlow {
	l.Helper()
	slot := l.next
	l.next++
	record := f.record()
	for _, edit := range edits {
		edit(&record)
	}
	l.tables.publish(slot, record, slot<<8|1)
	if _, err := l.tables.index.put([]Key{f.Key}, []ref{{slot, slot<<8 | 1}}); err != nil {
		l.Fatal(err)
	}
	m := &modelFlow{Flow: f, slot: slot}
	l.model.flows[f.Key] = m
	return m
}

// clear takes all flows away.
func (l *lab) clear() {
	l.Helper()
	for k, f := range l.model.flows {
		l.tables.revoke(f.slot)
		if err := l.tables.index.delete([]Key{k}); err != nil {
			l.Fatal(err)
		}
	}
	l.restore()
	clear(l.model.flows)
	clear(l.model.meters)
	clear(l.tables.meters)
	l.next = 1
	clear(l.used)
	slots := make([]uint32, l.tables.slots())
	for i := range slots {
		slots[i] = uint32(i)
	}
	l.tables.usage.clear(slots)
}

// slots is how many records there are.
func (t *tables) slots() int { return len(t.flows) }

// meter sets a meter in both.
func (l *lab) meter(index uint32, m modelMeter) {
	l.tables.meters[index] = bpf.TurnstoneMeter{Full: m.full, Cost: m.cost, Burst: m.burst, Wider: m.wider}
	l.model.meters[index] = &m
}

// listen opens a socket on all addresses, and yields its port, which is in the relay range.
func (l *lab) listen() uint16 {
	l.Helper()
	for port := 65535; port >= int(testSettings.RelayFirst); port-- {
		c, err := net.ListenUDP("udp", &net.UDPAddr{Port: port})
		if errors.Is(err, unix.EADDRINUSE) {
			continue
		}
		if err != nil {
			l.Fatal(err)
		}
		l.Cleanup(func() { c.Close() })
		l.model.sockets[uint16(port)] = true
		return uint16(port)
	}
	l.Fatal("all ports are taken")
	return 0
}

// deliver is an arrival of frame, whole in one buffer, unless the kernel cuts it.
func deliver(frame []byte) arrival {
	return arrival{frame: frame, linear: min(len(frame), testRunBuffer), headroom: testRunHeadroom, ifindex: arrivalIf}
}

// testRunBuffer is how much of a frame PROG_TEST_RUN puts into the first buffer: a page without
// headroom and shared info.
const testRunBuffer = 4096 - 256 - 320

// testRunHeadroom is what of the headroom of a test run may be used, without metadata.
const testRunHeadroom = 256 - 40

// run sends a through the program, and yields what came of it. Counters are those since the last run.
func (l *lab) run(a arrival) outcome {
	l.Helper()
	o, err := l.try(a)
	if err != nil {
		l.Fatalf("run the program: %v", err)
	}
	counters := l.counters()
	moved := -1
	for v, c := range counters {
		was := l.verdicts[v]
		if c == was {
			continue
		}
		if moved >= 0 || c.Packets != was.Packets+1 {
			l.Fatalf("counters of %v moved from %v to %v, and of %v too: want one, by one packet", Verdict(v), was, c, Verdict(moved))
		}
		moved, o.verdict, o.bytes = v, Verdict(v), c.Bytes-was.Bytes
	}
	if moved < 0 {
		l.Fatal("no verdict counter moved")
	}
	l.verdicts = counters
	return o
}

// counters are those of verdicts, over all CPUs.
func (l *lab) counters() (sum [Verdicts]bpf.TurnstoneCounter) {
	l.Helper()
	if err := l.o.Cpus.Lookup(uint32(0), &l.cpus); err != nil {
		l.Fatal(err)
	}
	for _, c := range l.cpus {
		for v := range sum {
			sum[v].Packets += c.Verdicts[v].Packets
			sum[v].Bytes += c.Verdicts[v].Bytes
		}
	}
	return sum
}

// now is the time by which the program last decided.
func (l *lab) now() uint64 { return l.cpus[0].Now }

// hold runs a through the program and the model, and fails where they differ in verdict, action, bytes, or
// counters. It yields what both say.
func (l *lab) hold(a arrival) outcome {
	l.Helper()
	got := l.run(a)
	a.now = l.now()
	want := l.model.relay(a)
	if got.verdict != want.verdict || got.action != want.action || got.bytes != want.bytes {
		l.Fatalf("frame %x, %d in the first buffer: got %v, action %d, %d bytes; want %v, action %d, %d bytes",
			a.frame, a.linear, got.verdict, got.action, got.bytes, want.verdict, want.action, want.bytes)
	}
	frame := want.frame
	if frame == nil {
		frame = a.frame
	}
	if want.verdict != VerdictAborted && !bytes.Equal(got.frame, frame) {
		l.Fatalf("%v: frame %x: got\n%x, want\n%x", want.verdict, a.frame, got.frame, frame)
	}
	for _, f := range want.used {
		c := l.used[f.slot]
		l.used[f.slot] = bpf.TurnstoneCounter{Packets: c.Packets + 1, Bytes: c.Bytes + want.bytes}
	}
	return want
}

// settle fails if the usage of any slot, or any meter, is not what the model says.
func (l *lab) settle() {
	l.Helper()
	for slot := range uint32(l.tables.slots()) {
		got := l.tables.usage.read(slot)
		if want := l.used[slot]; got.Packets != want.Packets || got.Bytes != want.Bytes {
			l.Fatalf("usage of slot %d: got %v, want %v", slot, got, want)
		}
	}
	for i, m := range l.model.meters {
		if got := l.tables.meters[i].Full; got != m.full {
			l.Fatalf("meter %d: full at %d, want %d", i, got, m.full)
		}
	}
}

// durationOf is a boot time in nanoseconds.
func durationOf(ns uint64) time.Duration { return time.Duration(ns) }

// unspecified is the address of a's family that is none.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}
