package kernel

import (
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"os"
	"strconv"
	"testing"
	"time"

	"turnstone/bpf"
	"turnstone/turn"
)

// differentialFrames is the environment variable that says how many frames TestDifferential compares.
const differentialFrames = "TURNSTONE_DIFFERENTIAL"

// TestDifferential sends random frames, most of them of a live flow, many of them damaged, through
// program and model: verdict, bytes and counters have to be the same. It asserts that it has seen enough
// of every verdict and path.
func TestDifferential(t *testing.T) {
	frames := 600_000
	if n, err := strconv.Atoi(os.Getenv(differentialFrames)); err == nil {
		frames = n
	}
	seed := uint64(time.Now().UnixNano())
	if s, err := strconv.ParseUint(os.Getenv("TURNSTONE_SEED"), 10, 64); err == nil {
		seed = s
	}
	t.Logf("%d frames, TURNSTONE_SEED=%d", frames, seed)
	l := newLab(t, Sizes{Channels: 512, Allocations: 16, Listeners: 8})
	random := rand.New(rand.NewPCG(seed, 0))
	listening := l.listen()
	var w *world
	var verdicts [Verdicts]int
	paths := map[path]int{}
	live := 0
	for i := range frames {
		if i%worldFrames == 0 {
			l.clear()
			w = newWorld(l, random, listening)
			for _, p := range w.paths {
				paths[p] += 0
			}
		}
		f, a := w.frame()
		o := l.hold(a)
		verdicts[o.verdict]++
		if o.live {
			live++
		}
		if o.verdict.Relayed() && o.used[0] == f {
			paths[w.paths[f]]++
		}
		if i%10_000 == 0 {
			w.renew()
			l.settle()
		}
	}
	l.settle()
	t.Logf("%d of %d to a live flow", live, frames)
	if 2*live < frames {
		t.Errorf("%d of %d frames hit a live flow, want half", live, frames)
	}
	enough := min(1000, frames/1000)
	for v, n := range verdicts {
		t.Logf("%-14v %8d", Verdict(v), n)
		if n < enough && (Verdict(v) != VerdictHeadroom || l.bareRoom) {
			t.Errorf("%v: %d frames, want %d", Verdict(v), n, enough)
		}
	}
	for p, n := range paths {
		t.Logf("%-14v IPv%d to IPv%d to IPv%d %8d", p.verdict, 4+2*p.arrives, 4+2*p.middle, 4+2*p.leaves, n)
		if n < enough {
			t.Errorf("path %v: %d frames, want %d", p, n, enough)
		}
	}
}

// worldFrames is how many frames there are for the flows of one world.
const worldFrames = 500_000

// path is a way through the relay: families it arrives, is relayed and leaves by.
type path struct {
	verdict                 Verdict
	arrives, middle, leaves int
}

// world is flows of all kinds, and frames for them.
type world struct {
	*lab
	*rand.Rand
	flows  []*modelFlow
	sound  map[*modelFlow]bool // never over: each path has one
	paths  map[*modelFlow]path
	guards []netip.AddrPort
}

// newWorld makes one; a socket listens on the port live.
func newWorld(l *lab, random *rand.Rand, live uint16) *world {
	w := &world{lab: l, Rand: random, paths: map[*modelFlow]path{}, sound: map[*modelFlow]bool{}}
	for round := range 12 {
		for _, verdict := range []Verdict{VerdictToPeer, VerdictToClient, VerdictToChannel} {
			for bits := range 8 {
				if p := (path{verdict, bits & 1, bits >> 1 & 1, bits >> 2 & 1}); verdict == VerdictToChannel || p.middle == 0 {
					w.bind(p, round)
				}
			}
		}
	}
	wider := func(m modelMeter, index uint32) modelMeter { m.wider = index; return m }
	for i, m := range []modelMeter{
		2: slowMeter, 3: fullMeter, // whatever else was drawn, these there are
		4: wider(ample, firstUser), 5: wider(ample, firstUser+1), 6: wider(ample, firstUser+2), 7: wider(ample, firstUser+3),
		firstUser: slowMeter, fullMeter, wider(ample, firstTotal), wider(ample, firstTotal+1), wider(ample, firstTotal+2), ample,
		firstTotal: wider(slowMeter, 3), wider(fullMeter, 3), wider(ample, 3), // which nobody asks any more
	} {
		if m != (modelMeter{}) {
			w.meter(uint32(i), m)
		}
	}
	for family := range 2 {
		for _, local := range []netip.AddrPort{
			sceneListeners[family], sceneRelayed[family], netip.AddrPortFrom(sceneRelayed[family].Addr(), live),
		} {
			w.guards = append(w.guards, local)
			l.add(Flow{Key: Key{Local: local}, Kind: Guard, Deadline: durationOf(noon)})
		}
		l.add(Flow{Key: Key{Local: netip.AddrPortFrom(sceneRelayed[family].Addr(), live-1)}, Kind: Guard, Deadline: 1})
	}
	return w
}

// bind adds a flow of p: in the first round one that is healthy, in the second one that has no way out and no other
// fault, then with an eye to all that flows can be.
func (w *world) bind(p path, round int) {
	s := newScene(p.verdict, p.arrives, p.middle, p.leaves)
	n := uint16(len(w.flows))
	other := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), 49200+n) }
	s.flow.Remote = netip.AddrPortFrom(s.flow.Remote.Addr(), 1024+n)
	if s.flow.Kind == ToPeer && w.IntN(4) != 0 {
		s.flow.Local = netip.AddrPortFrom(s.flow.Local.Addr(), 5349) // no guard has it
	}
	if s.flow.Kind == ToClient {
		s.flow.Local = other(s.flow.Local)
	}
	if p.verdict == VerdictToChannel {
		s.flow.Source, s.flow.Destination = other(s.flow.Source), other(s.flow.Destination)
		s.second.Remote, s.second.Local = s.flow.Source, s.flow.Destination
	}
	s.flow.Channel = map[bool]turn.ChannelNumber{true: 0x4000 + turn.ChannelNumber(n)}[s.flow.Kind == ToPeer]
	last := s.last()
	last.Gateway = uint32(w.pick(viaBack, viaBack, viaOther, viaOther, viaVLAN, viaBuffers, viaBuffers, viaNarrow, viaHuge))
	last.MTU = uint16(w.pick(0, 0, 0, 1300, 9000))
	s.flow.VLAN = uint16(w.pick(0, 0, 0, 42))
	s.flow.Meter, s.second.Meter = w.meterOf(), w.meterOf()
	sound := round < 2
	if sound {
		last.Gateway, last.MTU, s.flow.Meter, s.second.Meter = viaBuffers, 0, 0, 0
	}
	if round == 1 || !sound && w.IntN(8) == 0 {
		last.Gateway = uint32(w.pick(viaClosed, viaNobody, viaOutOfRange))
	}
	if w.IntN(12) == 0 && !sound {
		last.Deadline = 1
	}
	stale := w.IntN(12) == 0 && !sound
	f := w.add(s.flow, func(r *bpf.TurnstoneFlow) {
		if stale && s.second.Kind == 0 {
			r.RemotePort[1]++
		}
	})
	f.stale, w.sound[f] = stale && s.second.Kind == 0, sound
	if s.second.Kind != 0 && (w.IntN(12) != 0 || sound) {
		second := w.add(s.second, func(r *bpf.TurnstoneFlow) {
			if stale {
				r.Local[0]++
			}
		})
		second.stale, w.sound[second] = stale, sound
		w.flows, w.paths[second] = append(w.flows, second), path{VerdictToClient, p.middle, 0, p.leaves}
	}
	w.flows, w.paths[f] = append(w.flows, f), p
}

var (
	slowMeter = modelMeter{cost: 1 << 22, burst: 1 << 17} // now and then there is room
	fullMeter = modelMeter{full: noon, cost: 1, burst: 1 << 30}
	ample     = modelMeter{cost: 1 << 10, burst: noon}
)

// The meters of the wider scopes: six users', and three of all.
const (
	firstUser  = 32
	firstTotal = firstUser + 6
)

func (w *world) pick(of ...int) int { return of[w.IntN(len(of))] }

// meterOf makes a meter, mostly one with room for all.
func (w *world) meterOf() uint32 {
	index := uint32(2 + w.IntN(firstUser-2))
	m := ample
	switch w.IntN(10) {
	case 0, 1, 2:
		return 0
	case 3:
		m = slowMeter
	case 4:
		m = fullMeter
	case 5, 6, 7:
		m.wider = uint32(firstUser + w.IntN(firstTotal-firstUser))
	default:
		m.cost = uint64(w.IntN(1 << 20))
	}
	w.meter(index, m)
	return index
}

// renew moves deadlines: some flows will end at once, some in a moment, most never, and the sound ones neither.
func (w *world) renew() {
	now := w.now()
	for _, f := range w.flows {
		if w.sound[f] {
			continue
		}
		switch w.IntN(16) {
		case 0:
			w.extend(f, now+uint64(w.IntN(int(2*time.Second))))
		case 1, 2, 3, 4:
			w.extend(f, noon)
		}
	}
}

// frame is a frame for a flow, which it may be damaged too much to reach.
func (w *world) frame() (*modelFlow, arrival) {
	f := w.flows[w.IntN(len(w.flows))]
	p := packet{
		to: ourStation, from: theirStation, source: f.Remote, destination: f.Local, channel: f.Channel,
		tos: uint8(w.Uint32()), ttl: uint8(2 + w.IntN(254)), label: w.Uint32() & 0xfffff, id: uint16(w.Uint32()), df: w.IntN(2) == 0,
	}
	if f.VLAN != 0 || w.IntN(16) == 0 {
		p.tags = []uint16{f.VLAN}
	}
	p.payload = w.junk(w.pick(0, 1, 2, 3, 160, 161, w.IntN(400), w.IntN(1200)))
	if f.Channel != 0 {
		p.padding = w.junk(w.pick(0, 0, 1, 2, 3))
	}
	p.trailer = w.junk(w.pick(0, 0, 0, w.IntN(50)))
	spoils := w.pick(0, 0, 0, 0, 0, 1, 1, 1, 2)
	for range spoils {
		headerSpoils[w.IntN(len(headerSpoils))](w, &p)
	}
	a := deliver(p.bytes(w))
	for range spoils {
		if len(a.frame) < p.udp()+8 {
			break // cut off already
		}
		frameSpoils[w.IntN(len(frameSpoils))](w, &p, &a)
	}
	a.linear = min(a.linear, len(a.frame))
	if !w.bareRoom {
		a.headroom = testRunHeadroom
	}
	return f, a
}

// junk is n random bytes. Now and then they are such that a checksum is at an edge.
func (w *world) junk(n int) []byte {
	b := make([]byte, n)
	fill := w.pick(0, 0xff, -1, -1, -1)
	for i := range b {
		b[i] = byte(fill)
		if fill < 0 {
			b[i] = byte(w.Uint32())
		}
	}
	return b
}

// headerSpoils change a packet before its lengths and checksums are made.
var headerSpoils = []func(w *world, p *packet){
	func(*world, *packet) {},
	func(*world, *packet) {},
	func(*world, *packet) {},
	func(w *world, p *packet) { p.ttl = uint8(w.IntN(3)) },
	func(_ *world, p *packet) { p.noChecksum = true },
	func(w *world, p *packet) { p.payload = w.junk(1200 + w.IntN(320)) },
	func(w *world, p *packet) { p.payload = w.junk(3300 + w.IntN(3000)) },
	func(w *world, p *packet) { p.trailer = w.junk(3500) },
	func(w *world, p *packet) { p.tags = []uint16{uint16(w.pick(0, 42, 43, 0xfff))} },
	func(w *world, p *packet) { p.tags = []uint16{7, 42}[:w.IntN(3)] },
	func(w *world, p *packet) { p.padding = w.junk(w.IntN(6)) },
	func(w *world, p *packet) { p.padding = w.junk(4 + w.IntN(6)) },
	func(w *world, p *packet) { p.source = netip.AddrPortFrom(p.source.Addr(), uint16(w.IntN(1<<16))) },
	func(w *world, p *packet) { p.source = netip.AddrPortFrom(unspecified(p.source.Addr()), 0) },
	func(w *world, p *packet) { p.channel ^= 1 },
	func(w *world, p *packet) { p.channel = 0 },
	func(w *world, p *packet) {
		guard := w.guards[w.IntN(len(w.guards))]
		if guard.Addr().Is4() == p.source.Addr().Is4() {
			p.destination = guard
		}
	},
	func(w *world, p *packet) {
		p.destination = netip.AddrPortFrom(p.destination.Addr(), uint16(w.pick(3478, 5349, 49152, 65535, 49151, 53, w.IntN(1<<16))))
	},
}

// frameSpoils change a frame as it is.
var frameSpoils = []func(w *world, p *packet, a *arrival){
	func(*world, *packet, *arrival) {},
	func(w *world, _ *packet, a *arrival) { a.frame[w.IntN(len(a.frame))] ^= 1 << w.IntN(8) },
	func(w *world, _ *packet, a *arrival) { a.frame[w.IntN(min(len(a.frame), 90))] = byte(w.Uint32()) },
	func(w *world, p *packet, a *arrival) { // in the IP header, whose checksum is made good
		at := p.network()
		a.frame[at+w.IntN(10)] ^= 1 << w.IntN(8)
		mendIPv4(p, a.frame)
	},
	func(w *world, p *packet, a *arrival) { // flags and offset
		if p.source.Addr().Is4() {
			a.frame[p.network()+6+w.IntN(2)] ^= 1 << w.IntN(8)
			mendIPv4(p, a.frame)
		}
	},
	func(w *world, p *packet, a *arrival) { // options
		if p.source.Addr().Is4() {
			a.frame[p.network()] = byte(0x40 + w.IntN(16))
			mendIPv4(p, a.frame)
		}
	},
	func(w *world, p *packet, a *arrival) { // lengths
		at := w.pick(p.network()+2, p.network()+4, p.udp()+4, p.udp()+10)
		if at+2 <= len(a.frame) {
			v := binary.BigEndian.Uint16(a.frame[at:]) + uint16(w.pick(1, -1, 2, -4, 8, w.IntN(1<<16)))
			binary.BigEndian.PutUint16(a.frame[at:], v)
		}
		mendIPv4(p, a.frame)
	},
	func(w *world, _ *packet, a *arrival) { // cut off
		n := 14 + w.IntN(len(a.frame)-13)
		a.frame = a.frame[:n:n]
	},
	func(w *world, _ *packet, a *arrival) { // cut in two
		if w.cutsHead {
			a.linear = 14 + w.IntN(a.linear-13)
		}
	},
	func(w *world, p *packet, a *arrival) { // half a checksum, or any
		sum := fold(pseudoSum(p.source, p.destination, 8+len(p.data())))
		binary.BigEndian.PutUint16(a.frame[p.udp()+6:], uint16(w.pick(int(sum), int(sum), 0, 1, 0xfffe, 0xffff)))
	},
	func(w *world, p *packet, a *arrival) { // IPv4 header checksum
		if p.source.Addr().Is4() {
			a.frame[p.network()+10+w.IntN(2)] ^= 1 << w.IntN(8)
		}
	},
	func(w *world, _ *packet, a *arrival) { a.frame[w.IntN(6)] ^= 1 << w.IntN(8) },
	func(w *world, p *packet, a *arrival) { // the first byte of a message
		if at := p.udp() + 8; at < len(a.frame) {
			a.frame[at] = byte(w.Uint32())
		}
	},
	func(_ *world, _ *packet, a *arrival) { a.headroom = 0 },
	func(w *world, _ *packet, a *arrival) { a.headroom = 4 * w.IntN(7) },
}

// mendIPv4 makes the IPv4 header checksum good.
func mendIPv4(p *packet, frame []byte) {
	at := p.network()
	if !p.source.Addr().Is4() || len(frame) < at+20 {
		return
	}
	clear(frame[at+10 : at+12])
	binary.BigEndian.PutUint16(frame[at+10:], ^fold(onesSum(frame[at:at+20])))
}
