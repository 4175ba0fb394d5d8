package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"turnstone/bpf"
)

// Addresses of the scenes, IPv4 and IPv6.
var (
	sceneClients   = [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.10:40000"), netip.MustParseAddrPort("[2001:db8:1::10]:40001")}
	sceneListeners = [2]netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:3478"), netip.MustParseAddrPort("[2001:db8:2::1]:3478")}
	sceneRelayed   = [2]netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:50001"), netip.MustParseAddrPort("[2001:db8:2::1]:50002")}
	scenePeers     = [2]netip.AddrPort{netip.MustParseAddrPort("203.0.113.7:9000"), netip.MustParseAddrPort("[2001:db8:3::7]:9001")}
	sceneOthers    = [2]netip.AddrPort{netip.MustParseAddrPort("192.0.2.99:41000"), netip.MustParseAddrPort("[2001:db8:1::99]:41001")}
	sceneCalled    = [2]netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:50003"), netip.MustParseAddrPort("[2001:db8:2::1]:50004")}
)

// scene is one packet on one path: what is bound, what arrives, and what is to come of it.
type scene struct {
	path         Verdict
	arrives      int // index of the family it arrives with
	leaves       int
	flow, second Flow // second: of the allocation that is called
	edit         func(first, second *bpf.TurnstoneFlow)
	stale        bool // as edit has it
	in, out      packet
	alter        func(frame []byte) []byte // of what arrives
	deliver      func(*arrival)
	prepare      func(*lab)
	want         Verdict
	action       uint32
	charged      bool // dropped, but its payload is counted
}

// newScene is a packet that is relayed by path between two families; in a call between two
// channels, through a relayed address of the family middle.
func newScene(path Verdict, arrives, middle, leaves int) *scene {
	s := &scene{path: path, arrives: arrives, leaves: leaves, want: path, action: xdpRedirect}
	payload := []byte("what a client says.") // odd
	s.in = packet{to: ourStation, from: theirStation, tos: 0xb9, ttl: 64, id: 0x1234, df: true, payload: payload}
	s.out = s.in
	toPeer := Flow{
		Key: Key{Remote: sceneClients[arrives], Local: sceneListeners[arrives], Channel: 0x4abc}, Kind: ToPeer, Deadline: 1 << 62,
		Source: sceneRelayed[leaves], Destination: scenePeers[leaves], Gateway: viaOther, Meter: 2,
	}
	toClient := Flow{
		Key: Key{Remote: scenePeers[arrives], Local: sceneRelayed[arrives]}, Kind: ToClient, Deadline: 1 << 62,
		Source: sceneListeners[leaves], Destination: sceneClients[leaves], OutChannel: 0x4001, Gateway: viaOther, Meter: 3,
	}
	switch path {
	case VerdictToPeer:
		s.flow = toPeer
	case VerdictToClient:
		s.flow = toClient
	case VerdictToChannel:
		s.flow, s.second = toPeer, toClient
		s.flow.Source, s.flow.Destination, s.flow.LocalPeer = sceneRelayed[middle], sceneCalled[middle], true
		s.flow.Gateway = viaNobody
		s.second.Remote, s.second.Local = sceneRelayed[middle], sceneCalled[middle]
		s.second.Destination, s.second.Meter = sceneOthers[leaves], 5
	}
	last := s.last()
	s.in.source, s.in.destination, s.in.channel = s.flow.Remote, s.flow.Local, s.flow.Channel
	s.out.to, s.out.from = thirdStation, ourOther
	s.out.source, s.out.destination, s.out.channel = last.Source, last.Destination, last.OutChannel
	s.out.ttl--
	s.out.label = flowLabel(last.Source, last.Destination)
	if arrives == v6 && leaves == v4 {
		s.out.id, s.out.df = last.Source.Port()*(40503&0xffff), false
	}
	return s
}

const (
	v4 = 0
	v6 = 1
)

// last is the flow by which the packet leaves.
func (s *scene) last() *Flow {
	if s.path == VerdictToChannel {
		return &s.second
	}
	return &s.flow
}

// becomes says that the packet is not relayed.
func (s *scene) becomes(v Verdict) {
	s.want = v
	switch {
	case v > VerdictAborted:
		s.action = xdpPass
	case v == VerdictAborted:
		s.action = xdpAborted
	default:
		s.action = xdpDrop
	}
}

// edited changes the records behind the back of the model.
func (s *scene) edited(edit func(first, second *bpf.TurnstoneFlow)) { s.edit = edit }

// frame alters what arrives.
func (s *scene) frame(alter func(b []byte)) {
	s.alter = func(b []byte) []byte { alter(b); return b }
}

// checksumWith makes the payload such that the UDP checksum that arrives is c.
func (s *scene) checksumWith(t testing.TB, p *packet, c uint16) {
	t.Helper()
	p.payload = append([]byte(nil), p.payload...)
	clear(p.payload[:2])
	b := p.bytes(t)
	is := ^binary.BigEndian.Uint16(b[p.udp()+6:]) // sum of the rest
	sum := uint32(^c) + 0xffff - uint32(is)
	binary.BigEndian.PutUint16(p.payload, uint16(sum%0xffff))
	if got := binary.BigEndian.Uint16(p.bytes(t)[p.udp()+6:]); got != c && c != 0 {
		t.Fatalf("checksum %#04x, want %#04x", got, c)
	}
}

// TestTable holds the program to frames put together by hand: over every path and combination of
// families, what becomes of each, to the byte and the counter. Whatever a row does not
// say is as in newScene. The model has to agree.
func TestTable(t *testing.T) {
	l := newLab(t, Sizes{Channels: 4, Allocations: 4, Listeners: 1})
	live := l.listen()
	played := map[string]int{}
	missing := map[string]bool{} // on this kernel
	var wanted [Verdicts]int
	for _, path := range []Verdict{VerdictToPeer, VerdictToClient, VerdictToChannel} {
		for bits := range 8 {
			arrives, middle, leaves := bits&1, bits>>1&1, bits>>2&1
			if path != VerdictToChannel && middle != 0 {
				continue
			}
			for _, row := range rows(live) {
				s := newScene(path, arrives, middle, leaves)
				played[row.name] += 0
				if !row.change(t, s) {
					continue
				}
				played[row.name]++
				if s.deliver != nil && !l.bareRoom {
					missing[row.name] = true
					continue
				}
				l.clear()
				l.TB = t
				name := fmt.Sprintf("%v, IPv%d to IPv%d to IPv%d, %s", path, 4+2*arrives, 4+2*middle, 4+2*leaves, row.name)
				s.play(t, l, name)
				wanted[s.want]++
			}
		}
	}
	total := 0
	for name, n := range played {
		total += n
		if n == 0 {
			t.Errorf("row %s is for no scene", name)
		}
	}
	for v, n := range wanted {
		if n == 0 && (Verdict(v) != VerdictHeadroom || l.bareRoom) {
			t.Errorf("no scene ends in %v", Verdict(v))
		}
	}
	for name := range missing {
		t.Logf("not on this kernel: %s", name)
	}
	t.Logf("%d rows, %d scenes", len(played), total)
}

// play runs the scene through program and model.
func (s *scene) play(t *testing.T, l *lab, name string) {
	t.Helper()
	defer func() {
		if t.Failed() {
			t.Log(name)
		}
	}()
	if s.prepare != nil {
		s.prepare(l)
	}
	first, second := s.bind(l)
	frame := s.in.bytes(t)
	if s.alter != nil {
		frame = s.alter(frame)
	}
	a := deliver(frame)
	if s.deliver != nil {
		s.deliver(&a)
	}
	got := l.hold(a)
	if got.verdict != s.want || got.action != s.action {
		t.Fatalf("got %v, action %d, want %v, action %d", got.verdict, got.action, s.want, s.action)
	}
	if want := s.bytes(); got.bytes != want {
		t.Fatalf("%d bytes counted, want %d", got.bytes, want)
	}
	if s.want.Relayed() {
		if want := s.out.bytes(t); !bytes.Equal(got.frame, want) {
			t.Fatalf("got frame\n%x, want\n%x", got.frame, want)
		}
		count := bpf.TurnstoneCounter{Packets: 1, Bytes: uint64(len(s.in.payload))}
		if l.used[first.slot] != count || second != nil && l.used[second.slot] != count {
			t.Fatalf("usage %v, want %v", l.used, count)
		}
	}
	l.settle()
}

// bytes is what the counter of the verdict moves by.
func (s *scene) bytes() uint64 {
	if s.want.Relayed() || s.charged {
		return uint64(len(s.in.payload))
	}
	return 0
}

// bind adds the flows of the scene, but for those that are no flow.
func (s *scene) bind(l *lab) (first, second *modelFlow) {
	edit := s.edit
	if edit == nil {
		edit = func(_, _ *bpf.TurnstoneFlow) {}
	}
	if s.flow.Kind != 0 {
		first = l.add(s.flow, func(f *bpf.TurnstoneFlow) { edit(f, &bpf.TurnstoneFlow{}) })
		first.stale = s.stale
	}
	if s.second.Kind != 0 {
		second = l.add(s.second, func(f *bpf.TurnstoneFlow) { edit(&bpf.TurnstoneFlow{}, f) })
	}
	return first, second
}

// row is one case, for all scenes that it changes.
type row struct {
	name   string
	change func(testing.TB, *scene) bool // false: it is not for this scene
}

// padded is a row of ChannelData with padding.
func padded(name string, payload int, padding []byte) row {
	return row{name, func(_ testing.TB, s *scene) bool {
		s.in.payload = bytes.Repeat([]byte{0xa5}, payload)
		s.out.payload = s.in.payload
		if s.flow.Kind == ToPeer {
			s.in.padding = padding
		}
		return s.flow.Kind == ToPeer || padding == nil
	}}
}

func rows(live uint16) []row {
	all := []row{
		{"plain", func(testing.TB, *scene) bool { return true }},
		padded("empty", 0, nil), padded("one-byte", 1, nil), padded("two-bytes", 2, nil),
		padded("odd-and-padded-by-1", 3, []byte{0}), padded("odd-and-padded-by-3", 5, []byte{0, 0, 0}),
		padded("even-and-padded-by-2", 6, []byte{0, 0}), padded("empty-and-padded-by-3", 0, []byte{0, 0, 0}),
	}
	for payload := range 4 {
		for padding := 1; padding <= 3; padding++ {
			all = append(all, padded(fmt.Sprintf("%d-and-padded-with-%d-that-are-not-zero", payload, padding), payload, []byte{0xde, 0xad, 0xbf}[:padding]))
		}
	}
	for _, w := range checksumRows() {
		all = append(all, w, w.even())
	}
	for _, group := range [][]row{relayedRows(), passedRows(), recordRows(), sizeRows(), departureRows(), awayRows(live)} {
		all = append(all, group...)
	}
	return all
}

// even is the row with a payload of one byte more.
func (w row) even() row {
	return row{w.name + "-even", func(t testing.TB, s *scene) bool {
		s.in.payload = append(slices.Clip(s.in.payload), '.')
		s.out.payload = s.in.payload
		return w.change(t, s)
	}}
}

// relayedRows are about what is kept of a packet.
func relayedRows() []row {
	return []row{
		{"back-by-the-same-interface", func(_ testing.TB, s *scene) bool {
			s.last().Gateway, s.action = viaBack, xdpTX
			s.out.to, s.out.from = theirStation, ourStation
			return true
		}},
		{"out-tagged", func(_ testing.TB, s *scene) bool {
			s.last().Gateway, s.out.tags = viaVLAN, []uint16{labVLAN}
			return true
		}},
		{"in-tagged", func(_ testing.TB, s *scene) bool {
			s.flow.VLAN, s.in.tags = 42, []uint16{42}
			return true
		}},
		{"in-and-out-tagged", func(_ testing.TB, s *scene) bool {
			s.flow.VLAN, s.in.tags = 42, []uint16{42}
			s.last().Gateway, s.out.tags = viaVLAN, []uint16{labVLAN}
			return true
		}},
		{"priority-tagged", func(_ testing.TB, s *scene) bool {
			s.in.tags = []uint16{0} // IEEE 802.1Q: of no VLAN
			s.frame(func(b []byte) { b[14] |= 0xe0 })
			return true
		}},
		{"tagged-with-a-priority", func(_ testing.TB, s *scene) bool {
			s.flow.VLAN, s.in.tags = 0xfff, []uint16{0xfff}
			s.frame(func(b []byte) { b[14] |= 0xf0 })
			return true
		}},
		{"padded-by-ethernet", func(_ testing.TB, s *scene) bool {
			s.in.trailer = bytes.Repeat([]byte{0xee}, 13)
			return true
		}},
		{"padded-by-ethernet-and-in-the-datagram", func(_ testing.TB, s *scene) bool {
			s.in.trailer, s.in.padding = []byte{0xee}, []byte{7}
			return s.flow.Kind == ToPeer
		}},
		{"ttl-2", func(_ testing.TB, s *scene) bool { s.in.ttl, s.out.ttl = 2, 1; return true }},
		{"ttl-255", func(_ testing.TB, s *scene) bool { s.in.ttl, s.out.ttl = 255, 254; return true }},
		{"ttl-1", func(_ testing.TB, s *scene) bool {
			s.in.ttl, s.charged = 1, true
			s.becomes(VerdictDropTTL)
			return true
		}},
		{"ttl-0", func(_ testing.TB, s *scene) bool {
			s.in.ttl, s.charged = 0, true
			s.becomes(VerdictDropTTL)
			return true
		}},
		{"no-tos", func(_ testing.TB, s *scene) bool { s.in.tos, s.out.tos = 0, 0; return true }},
		{"congestion-experienced", func(_ testing.TB, s *scene) bool { s.in.tos, s.out.tos = 3, 3; return true }},
		{"all-of-tos", func(_ testing.TB, s *scene) bool { s.in.tos, s.out.tos = 0xff, 0xff; return true }},
		{"may-be-fragmented", func(_ testing.TB, s *scene) bool {
			s.in.df, s.out.df = false, false
			return s.arrives == v4
		}},
		{"label-is-not-copied", func(_ testing.TB, s *scene) bool { s.in.label = 0xfffff; return s.arrives == v6 }},
		{"large-gets-df", func(_ testing.TB, s *scene) bool {
			return large(s, 1261-28) && func() bool { s.out.id, s.out.df = 0, true; return true }()
		}},
		{"no-df-while-it-fits", func(_ testing.TB, s *scene) bool { return large(s, 1260-28) }},
	}
}

// large makes the payload such that an IPv4 packet that came as IPv6 carries n bytes of data.
func large(s *scene, n int) bool {
	if s.last().OutChannel != 0 {
		n -= 4
	}
	s.in.payload = bytes.Repeat([]byte{0x5a}, n)
	s.out.payload = s.in.payload
	return s.arrives == v6 && s.leaves == v4
}

// checksumRows are about the UDP checksum.
func checksumRows() []row {
	only4 := func(s *scene) bool { return s.arrives == v4 && s.leaves == v4 && s.flow.Destination.Addr().Is4() }
	return []row{
		{"no-checksum", func(_ testing.TB, s *scene) bool {
			s.in.noChecksum, s.out.noChecksum = true, true
			if !only4(s) {
				s.becomes(VerdictNoChecksum)
			}
			return true
		}},
		{"checksum-ffff-arrives", func(t testing.TB, s *scene) bool {
			s.checksumWith(t, &s.in, 0xffff)
			s.out.payload = s.in.payload
			return true
		}},
		{"checksum-0-becomes-ffff", func(t testing.TB, s *scene) bool {
			s.checksumWith(t, &s.out, 0xffff)
			s.in.payload = s.out.payload
			return true
		}},
		{"checksum-0001-leaves", func(t testing.TB, s *scene) bool {
			s.checksumWith(t, &s.out, 1)
			s.in.payload = s.out.payload
			return true
		}},
		{"checksum-fffe-leaves", func(t testing.TB, s *scene) bool {
			s.checksumWith(t, &s.out, 0xfffe)
			s.in.payload = s.out.payload
			return true
		}},
		{"half-checksum", func(_ testing.TB, s *scene) bool {
			s.frame(func(b []byte) {
				sum := pseudoSum(s.in.source, s.in.destination, len(b)-s.in.udp())
				binary.BigEndian.PutUint16(b[s.in.udp()+6:], fold(sum))
			})
			s.becomes(VerdictHalfChecksum)
			return true
		}},
		{"half-checksum-by-chance", func(t testing.TB, s *scene) bool {
			length := len(s.in.bytes(t)) - s.in.udp()
			s.checksumWith(t, &s.in, fold(pseudoSum(s.in.source, s.in.destination, length)))
			s.out.payload = s.in.payload
			return true
		}},
		{"ip-checksum-wrong", func(_ testing.TB, s *scene) bool {
			s.frame(func(b []byte) { b[s.in.network()+10] ^= 0x10 })
			s.becomes(VerdictIPChecksum)
			return s.arrives == v4
		}},
		{"ip-checksum-0", func(t testing.TB, s *scene) bool {
			at := s.in.network()
			b := s.in.bytes(t)
			clear(b[at+4 : at+6])
			clear(b[at+10 : at+12])
			s.in.id = fold(0xffff - onesSum(b[at:at+20])%0xffff)
			s.out.id = s.in.id
			if s.leaves == v6 {
				s.out.id = 0
			}
			if got := s.in.bytes(t)[at+10 : at+12]; s.arrives == v4 && !bytes.Equal(got, []byte{0, 0}) {
				t.Fatalf("checksum %x, want 0", got)
			}
			return s.arrives == v4
		}},
	}
}

// passedRows are about frames that are none of ours, or malformed.
func passedRows() []row {
	passed := func(name string, v Verdict, alter func(s *scene, b []byte) []byte) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.alter = func(b []byte) []byte { return alter(s, b) }
			s.becomes(v)
			return true
		}}
	}
	v4only := func(name string, v Verdict, alter func(ip []byte)) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.frame(func(b []byte) { alter(b[14:]) })
			s.becomes(v)
			return s.arrives == v4
		}}
	}
	v6only := func(name string, v Verdict, alter func(ip []byte)) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.frame(func(b []byte) { alter(b[14:]) })
			s.becomes(v)
			return s.arrives == v6
		}}
	}
	udp := func(name string, v Verdict, alter func(udp []byte)) row {
		return passed(name, v, func(s *scene, b []byte) []byte { alter(b[s.in.udp():]); return b })
	}
	channel := func(name string, v Verdict, alter func(data []byte)) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.frame(func(b []byte) { alter(b[s.in.udp()+8:]) })
			s.becomes(v)
			return s.flow.Kind == ToPeer
		}}
	}
	add := func(b []byte, n int) { binary.BigEndian.PutUint16(b, uint16(int(binary.BigEndian.Uint16(b))+n)) }
	return []row{
		passed("arp", VerdictNotOurs, func(_ *scene, b []byte) []byte { b[12], b[13] = 0x08, 0x06; return b }),
		passed("qinq", VerdictNotOurs, func(_ *scene, b []byte) []byte {
			return append(append(b[:12:12], 0x81, 0, 0, 0, 0x81, 0, 0, 0), b[12:]...)
		}),
		passed("service-tag", VerdictNotOurs, func(_ *scene, b []byte) []byte {
			return append(append(b[:12:12], 0x88, 0xa8, 0, 0), b[12:]...)
		}),
		passed("version", VerdictNotOurs, func(s *scene, b []byte) []byte { b[14] ^= 0x20; return b }),
		udp("other-port", VerdictNotOurs, func(u []byte) { binary.BigEndian.PutUint16(u[2:], 3479) }),
		udp("below-the-range", VerdictNotOurs, func(u []byte) { binary.BigEndian.PutUint16(u[2:], 49151) }),
		udp("last-of-the-range", VerdictMiss, func(u []byte) { binary.BigEndian.PutUint16(u[2:], 65534) }).when(ToClient),
		udp("first-of-the-range", VerdictMiss, func(u []byte) { binary.BigEndian.PutUint16(u[2:], 49152) }).when(ToClient),
		v4only("tcp", VerdictNotOurs, func(ip []byte) { ip[9] = 6 }),
		v4only("options", VerdictOptions, func(ip []byte) { ip[0] = 0x46 }),
		v4only("header-too-short", VerdictOptions, func(ip []byte) { ip[0] = 0x44 }),
		v4only("more-fragments", VerdictFragment, func(ip []byte) { ip[6] |= 0x20 }),
		v4only("last-fragment", VerdictFragment, func(ip []byte) { ip[7] = 1 }),
		v4only("reserved-flag", VerdictFragment, func(ip []byte) { ip[6] |= 0x80 }),
		v4only("shorter-than-its-header", VerdictLength, func(ip []byte) { ip[2], ip[3] = 0, 19 }),
		v4only("length-that-wraps", VerdictLength, func(ip []byte) {
			ip[2], ip[3] = 0, 10
			binary.BigEndian.PutUint16(ip[24:], 0x10000-10) // as 10 - 20 in 16 bits
		}),
		v4only("ip-longer", VerdictLength, func(ip []byte) { add(ip[2:], 1) }),
		v4only("ip-shorter", VerdictLength, func(ip []byte) { add(ip[2:], -1) }),
		v6only("ip-longer", VerdictLength, func(ip []byte) { add(ip[4:], 1) }),
		v6only("ip-shorter", VerdictLength, func(ip []byte) { add(ip[4:], -1) }),
		v6only("jumbogram", VerdictLength, func(ip []byte) { ip[4], ip[5] = 0, 0 }),
		v6only("hop-by-hop", VerdictNotOurs, func(ip []byte) { ip[6] = 0 }),
		v6only("fragment-header", VerdictNotOurs, func(ip []byte) { ip[6] = 44 }),
		v6only("destination-options", VerdictNotOurs, func(ip []byte) { ip[6] = 60 }),
		udp("udp-longer", VerdictLength, func(u []byte) { add(u[4:], 1) }),
		udp("udp-shorter", VerdictLength, func(u []byte) { add(u[4:], -1) }),
		udp("udp-shorter-than-its-header", VerdictLength, func(u []byte) { u[4], u[5] = 0, 7 }),
		passed("longer-than-the-frame", VerdictLength, func(_ *scene, b []byte) []byte { return b[:len(b)-1] }),
		passed("other-station", VerdictMAC, func(_ *scene, b []byte) []byte { b[5] ^= 1; return b }),
		passed("broadcast", VerdictMAC, func(_ *scene, b []byte) []byte {
			copy(b, []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff})
			return b
		}),
		passed("multicast", VerdictMAC, func(_ *scene, b []byte) []byte { b[0] |= 1; return b }),
		passed("other-remote", VerdictMiss, func(s *scene, b []byte) []byte { b[s.in.udp()-5-len(address4or6(s))] ^= 1; return b }),
		passed("other-local", VerdictMiss, func(s *scene, b []byte) []byte { b[s.in.udp()-1] ^= 1; return b }),
		udp("other-remote-port", VerdictMiss, func(u []byte) { u[1] ^= 1 }),
		channel("other-channel", VerdictMiss, func(c []byte) { c[1] ^= 1 }),
		channel("stun", VerdictSTUN, func(c []byte) { c[0] = 0 }),
		channel("neither-stun-nor-channel", VerdictSTUN, func(c []byte) { c[0] |= 0x80 }),
		channel("payload-longer-than-there-is", VerdictChannelData, func(c []byte) { add(c[2:], 1) }),
		channel("payload-of-ffff", VerdictChannelData, func(c []byte) { c[2], c[3] = 0xff, 0xff }),
		channel("four-bytes-behind-the-payload", VerdictChannelData, func(c []byte) { add(c[2:], -4) }),
		{"shorter-than-a-channel-header", func(_ testing.TB, s *scene) bool {
			s.in.channel, s.in.payload = 0, []byte{0x4a, 0xbc, 0}
			s.becomes(VerdictSTUN)
			return s.flow.Kind == ToPeer
		}},
		{"empty-datagram-to-a-listener", func(_ testing.TB, s *scene) bool {
			s.in.channel, s.in.payload = 0, nil
			s.becomes(VerdictSTUN)
			return s.flow.Kind == ToPeer
		}},
		{"interface-of-nobodys", func(_ testing.TB, s *scene) bool {
			s.prepare = func(l *lab) {
				l.put(l.o.Interfaces, uint32(arrivalIf), bpf.TurnstoneInterface{Ifindex: arrivalIf + 256, Mac: ourStation})
				l.model.stations = map[uint32]station{arrivalIf + 256: ourStation}
			}
			s.becomes(VerdictMAC)
			return true
		}},
	}
}

// when keeps a row to flows of a kind.
func (w row) when(k Kind) row {
	change := w.change
	return row{w.name, func(t testing.TB, s *scene) bool { return change(t, s) && s.flow.Kind == k }}
}

// address4or6 is as long as an address of what arrives, but for 4 bytes.
func address4or6(s *scene) []byte { return make([]byte, s.in.source.Addr().BitLen()/8-4) }

// recordRows are about flows that do not hold, or not any more.
func recordRows() []row {
	edits := func(name string, v Verdict, edit func(f *bpf.TurnstoneFlow)) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.stale = v == VerdictStale
			s.edited(func(f, _ *bpf.TurnstoneFlow) { edit(f) })
			s.becomes(v)
			return true
		}}
	}
	return []row{
		edits("record-of-another-remote", VerdictStale, func(f *bpf.TurnstoneFlow) { f.Remote[3] ^= 1 }),
		edits("record-of-another-local", VerdictStale, func(f *bpf.TurnstoneFlow) { f.Local[0] ^= 1 }),
		edits("record-of-another-remote-port", VerdictStale, func(f *bpf.TurnstoneFlow) { f.RemotePort[0] ^= 1 }),
		edits("record-of-another-local-port", VerdictStale, func(f *bpf.TurnstoneFlow) { f.LocalPort[1] ^= 1 }),
		edits("record-of-another-channel", VerdictStale, func(f *bpf.TurnstoneFlow) { f.Channel[1] ^= 1 }),
		edits("record-of-another-family", VerdictStale, func(f *bpf.TurnstoneFlow) { f.Family ^= 2 }),
		{"no-flow", func(_ testing.TB, s *scene) bool {
			s.flow.Kind = 0
			s.becomes(VerdictMiss)
			return true
		}},
		{"generation-over", func(_ testing.TB, s *scene) bool { return stale(s, func(uint32) uint32 { return 0 }) }},
		{"generation-of-the-next", func(_ testing.TB, s *scene) bool { return stale(s, func(g uint32) uint32 { return g + 1 }) }},
		{"slot-out-of-range", func(_ testing.TB, s *scene) bool {
			return redirected(s, func(r ref) ref { return ref{1 << 30, r.generation} })
		}},
		{"reference-without-a-generation", func(_ testing.TB, s *scene) bool {
			return redirected(s, func(r ref) ref { return ref{0, 0} }) // slot 0 has generation 0 too
		}},
		{"expired", func(_ testing.TB, s *scene) bool {
			s.flow.Deadline = 1
			s.becomes(VerdictExpired)
			return true
		}},
		{"never-granted", func(_ testing.TB, s *scene) bool {
			s.flow.Deadline = 0
			s.becomes(VerdictExpired)
			return true
		}},
		{"other-tag", func(_ testing.TB, s *scene) bool {
			s.flow.VLAN, s.in.tags = 42, []uint16{43}
			s.becomes(VerdictVLAN)
			return true
		}},
		{"tag-missing", func(_ testing.TB, s *scene) bool {
			s.flow.VLAN = 42
			s.becomes(VerdictVLAN)
			return true
		}},
		{"tag-too-many", func(_ testing.TB, s *scene) bool {
			s.in.tags = []uint16{43}
			s.becomes(VerdictVLAN)
			return true
		}},
		{"of-another-kind", func(_ testing.TB, s *scene) bool {
			s.flow.Kind = ToPeer + ToClient - s.flow.Kind
			s.becomes(VerdictMiss)
			return true
		}},
		{"of-no-kind", func(_ testing.TB, s *scene) bool {
			s.flow.Kind = 0xff
			s.becomes(VerdictMiss)
			return true
		}},
		{"called-is-not-there", func(_ testing.TB, s *scene) bool {
			s.second.Kind = 0
			s.becomes(VerdictMiss)
			return s.path == VerdictToChannel
		}},
		{"called-is-of-another-kind", func(_ testing.TB, s *scene) bool {
			s.second.Kind = ToPeer
			s.becomes(VerdictMiss)
			return s.path == VerdictToChannel
		}},
		{"called-is-expired", func(_ testing.TB, s *scene) bool {
			s.second.Deadline = 1
			s.becomes(VerdictExpired)
			return s.path == VerdictToChannel
		}},
		{"called-has-a-local-peer-itself", func(_ testing.TB, s *scene) bool {
			s.second.LocalPeer = true // one hop and no more
			return s.path == VerdictToChannel
		}},
	}
}

// stale gives the flow's reference a generation that its record does not have.
func stale(s *scene, of func(uint32) uint32) bool {
	return redirected(s, func(r ref) ref { return ref{r.slot, of(r.generation)} })
}

// redirected has the index name something else than the flow's record.
func redirected(s *scene, to func(ref) ref) bool {
	f := s.flow
	s.flow.Kind = 0
	s.prepare = func(l *lab) {
		m := l.add(f)
		m.stale = true
		if _, err := l.tables.index.put([]Key{f.Key}, []ref{to(ref{m.slot, m.slot<<8 | 1})}); err != nil {
			l.Fatal(err)
		}
	}
	s.becomes(VerdictStale)
	return true
}

// sizeRows are about what fits.
func sizeRows() []row {
	sized := func(name string, gateway uint32, path uint16, total int, v Verdict) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.last().Gateway, s.last().MTU = gateway, path
			n := total - 28
			if s.leaves == v6 {
				n = total - 48
			}
			if s.last().OutChannel != 0 {
				n -= 4
			}
			s.in.payload = bytes.Repeat([]byte{0x3c}, n)
			s.out.payload = s.in.payload
			if s.arrives == v6 && s.leaves == v4 && total > 1260 {
				s.out.id, s.out.df = 0, true
			}
			if v != 0 {
				s.becomes(v)
			}
			return true
		}}
	}
	return []row{
		sized("fits-the-next-hop", viaOther, 0, 1500, 0),
		sized("one-more-than-the-next-hop", viaOther, 0, 1501, VerdictMTU),
		sized("fits-the-path", viaOther, 1280, 1280, 0),
		sized("one-more-than-the-path", viaOther, 1280, 1281, VerdictMTU),
		sized("path-wider-than-the-next-hop", viaOther, 9000, 1501, VerdictMTU),
		sized("one-more-than-a-narrow-hop", viaNarrow, 1400, 1281, VerdictMTU),
		sized("in-several-buffers", viaBuffers, 0, 5000, 0),
		sized("in-several-buffers-odd", viaBuffers, 0, 4999, 0),
		sized("one-more-than-several-buffers", viaBuffers, 0, 9001, VerdictMTU),
		sized("largest-packet", viaHuge, 0, 65535, 0).fits(),
		sized("one-more-than-any-packet", viaHuge, 0, 65536, VerdictMTU).fits(),
		{"in-several-buffers-that-the-egress-cannot-send", func(_ testing.TB, s *scene) bool {
			s.last().Gateway = viaHuge
			s.prepare = func(l *lab) {
				h := labHops[viaHuge]
				h.buffers = false
				l.hop(viaHuge, h)
			}
			s.in.payload = bytes.Repeat([]byte{0x3c}, 4000)
			s.becomes(VerdictBuffers)
			return true
		}},
		{"several-buffers-padding-in-the-last", func(_ testing.TB, s *scene) bool {
			s.last().Gateway = viaBuffers
			n := testRunBuffer - s.in.udp() - 12 - 1 // the last byte of the first buffer is padding
			s.in.payload, s.in.padding = bytes.Repeat([]byte{0x3c}, n), []byte{1, 2, 3}
			s.out.payload = s.in.payload
			if s.arrives == v6 && s.leaves == v4 {
				s.out.id, s.out.df = 0, true
			}
			return s.flow.Kind == ToPeer
		}},
		{"several-buffers-of-trailer", func(_ testing.TB, s *scene) bool {
			s.last().Gateway = viaBuffers
			s.in.trailer = bytes.Repeat([]byte{0xee}, 5000)
			return true
		}},
	}
}

// fits leaves out the scenes whose packet could not have arrived.
func (w row) fits() row {
	change := w.change
	return row{w.name, func(t testing.TB, s *scene) bool {
		if !change(t, s) {
			return false
		}
		n := 8 + len(s.in.data())
		return n <= 65535 && (s.arrives == v6 || n+20 <= 65535)
	}}
}

// firstWider is the first of the meters that those of flows name in the tables.
const firstWider = 6

// departureRows are about next hops, meters and headroom.
func departureRows() []row {
	via := func(name string, gateway uint32, v Verdict) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.last().Gateway = gateway
			s.becomes(v)
			return true
		}}
	}
	metered := func(name string, second bool, v Verdict, scopes ...modelMeter) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			if v != 0 {
				s.becomes(v)
				s.charged = true
			}
			index := s.flow.Meter
			if second {
				index = s.second.Meter
			}
			s.prepare = func(l *lab) {
				for i, m := range scopes {
					if i+1 < len(scopes) {
						m.wider = firstWider + uint32(i)
					}
					l.meter(index, m)
					index = m.wider
				}
			}
			return !second || s.path == VerdictToChannel
		}}
	}
	cost := uint64(3<<16 + 1<<15) // 3.5 ns a byte
	costs := uint64(19*7) / 2     // of the payload of a scene
	room, full := modelMeter{cost: cost, burst: 1 << 40}, modelMeter{full: noon, cost: cost, burst: 1 << 40}
	return []row{
		via("gateway-not-resolved", viaNobody, VerdictNextHop),
		via("gateway-out-of-range", viaOutOfRange, VerdictNextHop),
		via("egress-closed", viaClosed, VerdictAborted),
		metered("meter-without-a-cap", false, 0, modelMeter{full: noon}),
		metered("meter-empty", false, 0, modelMeter{cost: cost, burst: 1 << 40}),
		metered("meter-at-its-burst", false, 0, modelMeter{full: 1, cost: cost, burst: costs}),
		metered("meter-one-over-its-burst", false, VerdictDropMeter, modelMeter{full: 1, cost: cost, burst: costs - 1}),
		metered("meter-ahead-and-within", false, 0, modelMeter{full: noon, cost: cost, burst: noon}),
		metered("meter-ahead-and-over", false, VerdictDropMeter, modelMeter{full: noon, cost: cost, burst: 1 << 40}),
		metered("meter-of-the-called-within", true, 0, modelMeter{cost: cost, burst: 1 << 40}),
		metered("meter-of-the-called-over", true, VerdictDropMeter, modelMeter{full: noon, cost: cost, burst: 1 << 40}),
		metered("meters-of-all-scopes-within", false, 0, room, room, room),
		metered("meter-of-the-user-over", false, VerdictDropUser, room, full, room),
		metered("meter-of-the-user-alone-over", false, VerdictDropUser, modelMeter{}, full),
		metered("meter-of-the-total-over", false, VerdictDropTotal, room, room, full),
		metered("meter-of-the-total-alone-over", false, VerdictDropTotal, modelMeter{}, modelMeter{}, full),
		metered("meter-of-the-narrowest-decides", false, VerdictDropMeter, full, full, full),
		metered("meter-of-no-scope-over", false, 0, room, room, room, full),
		metered("meter-of-the-called-user-over", true, VerdictDropUser, room, full, room),
		metered("meter-of-the-called-total-over", true, VerdictDropTotal, room, room, full),
		{"headroom-for-nothing", func(_ testing.TB, s *scene) bool {
			s.deliver = func(a *arrival) { a.headroom = 0 }
			if s.longer() > 0 {
				s.becomes(VerdictHeadroom)
			}
			return true
		}},
		{"headroom-for-all", func(_ testing.TB, s *scene) bool {
			s.last().Gateway, s.out.tags = viaVLAN, []uint16{labVLAN}
			s.deliver = func(a *arrival) { a.headroom = 28 }
			return true
		}},
	}
}

// longer is by how much the headers that leave are longer than those that came.
func (s *scene) longer() int {
	return s.out.udp() + len(s.out.data()) - s.in.udp() - len(s.in.data())
}

// awayRows are about packets for addresses that live, while nobody may be there to take them.
func awayRows(live uint16) []row {
	guarded := func(name string, port func(netip.AddrPort) netip.AddrPort, deadline uint64, v Verdict) row {
		return row{name, func(_ testing.TB, s *scene) bool {
			s.in.destination = port(s.in.destination)
			s.in.source = netip.AddrPortFrom(s.in.source.Addr(), 4)
			s.prepare = func(l *lab) {
				l.add(Flow{Key: Key{Local: s.in.destination}, Kind: Guard, Deadline: durationOf(deadline)})
			}
			s.becomes(v)
			return s.flow.Kind == ToClient || s.in.destination.Port() != live
		}}
	}
	same := func(a netip.AddrPort) netip.AddrPort { return a }
	socket := func(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr(), live) }
	return []row{
		guarded("nobody-listens", same, noon, VerdictDropAway),
		guarded("somebody-listens", socket, noon, VerdictMiss),
		guarded("guard-is-over", same, 1, VerdictMiss),
		{"nobody-listens-but-it-is-relayed", func(_ testing.TB, s *scene) bool {
			s.prepare = func(l *lab) {
				l.add(Flow{Key: Key{Local: s.in.destination}, Kind: Guard, Deadline: durationOf(noon)})
			}
			return true
		}},
		{"from-the-address-of-a-guard", func(_ testing.TB, s *scene) bool {
			s.in.source = netip.AddrPortFrom(unspecified(s.in.source.Addr()), 0)
			s.prepare = func(l *lab) {
				l.add(Flow{Key: Key{Local: s.in.destination}, Kind: Guard, Deadline: durationOf(noon)})
			}
			s.becomes(VerdictDropAway)
			return true
		}},
		{"stun-while-nobody-listens", func(_ testing.TB, s *scene) bool {
			s.frame(func(b []byte) { b[s.in.udp()+8] = 0 })
			s.prepare = func(l *lab) {
				l.add(Flow{Key: Key{Local: s.in.destination}, Kind: Guard, Deadline: durationOf(noon)})
			}
			s.becomes(VerdictDropAway)
			return s.flow.Kind == ToPeer
		}},
		{"expired-while-nobody-listens", func(_ testing.TB, s *scene) bool {
			s.flow.Deadline = 1
			s.prepare = func(l *lab) {
				l.add(Flow{Key: Key{Local: s.in.destination}, Kind: Guard, Deadline: durationOf(noon)})
			}
			s.becomes(VerdictDropAway)
			return true
		}},
	}
}
