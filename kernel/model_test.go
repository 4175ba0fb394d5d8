package kernel

import (
	"encoding/binary"
	"net/netip"

	"turnstone/turn"
)

// XDP actions.
const (
	xdpAborted = iota
	xdpDrop
	xdpPass
	xdpTX
	xdpRedirect
)

// model is the relay that the program is to be, written from the RFCs and the contract alone: it
// works on addresses and whole checksums, and knows nothing of records and sums.
type model struct {
	Settings
	flows    map[Key]*modelFlow
	hops     map[uint32]*modelHop // by gateway
	meters   map[uint32]*modelMeter
	sockets  map[uint16]bool // ports that have a socket on every address
	stations map[uint32]station
}

// modelFlow is a flow and what has become of it.
type modelFlow struct {
	Flow
	slot    uint32
	stale   bool   // its record is not this key's
	relayed uint64 // packets, by the CPU in use
}

// modelHop is where frames leave.
type modelHop struct {
	ifindex  uint32
	port     uint32
	closed   bool // the port sends nothing
	to, from station
	vlan     uint16
	mtu      int
	buffers  bool
}

// modelMeter is a generic cell rate algorithm: an emptying bucket told by when it is empty. wider is the meter of
// the next scope, 0 for none.
type modelMeter struct {
	full, cost, burst uint64
	wider             uint32
}

// arrival is a frame as the driver hands it to the program.
type arrival struct {
	frame    []byte
	linear   int // bytes in the first buffer
	headroom int // bytes before it that may be used
	ifindex  uint32
	now      uint64 // boot time, ns
}

// outcome is what becomes of a frame. frame is nil where it is left as it came, or is lost.
type outcome struct {
	verdict Verdict
	action  uint32
	bytes   uint64 // payload of what is relayed, or dropped for being too much
	frame   []byte
	used    []*modelFlow // whose usage counts the packet
	live    bool         // a flow was found, and is not over
}

// seen is a datagram taken apart.
type seen struct {
	vlan        uint16
	ip, udp     []byte // from the header on to the end of the datagram
	source      netip.AddrPort
	destination netip.AddrPort
	tos, ttl    uint8
	listener    bool
	key         Key
	payload     []byte
}

// relay says what becomes of a frame, and keeps the account of it.
func (m *model) relay(a arrival) outcome {
	var s seen
	o := outcome{verdict: VerdictNotOurs}
	if ok := m.parse(a, &s, &o); ok {
		o.verdict = m.forward(a, &s, &o)
		if o.verdict >= VerdictSTUN && m.away(&s, a.now) {
			o.verdict = VerdictDropAway
		}
	}
	if !o.verdict.Relayed() {
		o.frame, o.used = nil, nil
	}
	switch o.verdict {
	case VerdictToPeer, VerdictToClient, VerdictToChannel:
		o.bytes = uint64(len(s.payload))
	case VerdictDropTTL, VerdictDropMeter, VerdictDropUser, VerdictDropTotal:
		o.action, o.bytes = xdpDrop, uint64(len(s.payload))
	case VerdictDropAway:
		o.action = xdpDrop
	case VerdictAborted:
		o.action = xdpAborted
	default:
		o.action = xdpPass
	}
	return o
}

// parse takes a frame apart, down to its ports, lengths and station. Where it is to be passed up
// without a look at flows and sockets, it says so in o.
func (m *model) parse(a arrival, s *seen, o *outcome) bool {
	b := a.frame[:a.linear] // headers are read in the first buffer only
	if len(b) < 14 {
		return false
	}
	network, kind := 14, binary.BigEndian.Uint16(b[12:])
	if kind == 0x8100 {
		if len(b) < 18 {
			return false
		}
		network, s.vlan, kind = 18, binary.BigEndian.Uint16(b[14:])&0xfff, binary.BigEndian.Uint16(b[16:])
	}
	ip := b[network:]
	var header, total int
	switch {
	case kind == 0x0800 && len(ip) >= 20 && ip[0]>>4 == 4 && ip[9] == 17:
		header, total = 20, int(binary.BigEndian.Uint16(ip[2:]))
		if ip[0]&15 != 5 {
			o.verdict = VerdictOptions
			return false
		}
		if binary.BigEndian.Uint16(ip[6:])&0xbfff != 0 { // all but DF
			o.verdict = VerdictFragment
			return false
		}
		s.tos, s.ttl = ip[1], ip[8]
	case kind == 0x86dd && len(ip) >= 40 && ip[0]>>4 == 6 && ip[6] == 17:
		header, total = 40, 40+int(binary.BigEndian.Uint16(ip[4:]))
		s.tos, s.ttl = ip[0]<<4|ip[1]>>4, ip[7]
	default:
		return false
	}
	if len(ip) < header+8 {
		return false
	}
	s.source, s.destination = modelAddresses(ip[:header+8])
	for _, p := range m.ListenerPorts {
		s.listener = s.listener || p == s.destination.Port()
	}
	if port := s.destination.Port(); !s.listener && (port < m.RelayFirst || port > m.RelayLast) {
		return false
	}
	length := int(binary.BigEndian.Uint16(ip[header+4:]))
	if length < 8 || header+length != total || network+total > len(a.frame) {
		o.verdict = VerdictLength
		return false
	}
	if m.stations[a.ifindex] != station(b[:6]) {
		o.verdict = VerdictMAC
		return false
	}
	s.ip = a.frame[network : network+total]
	s.udp = s.ip[header:]
	return true
}

func modelAddresses(header []byte) (source, destination netip.AddrPort) {
	n := len(header) - 8
	from, to := header[12:16], header[16:20]
	if n == 40 {
		from, to = header[8:24], header[24:40]
	}
	s, _ := netip.AddrFromSlice(from)
	d, _ := netip.AddrFromSlice(to)
	return netip.AddrPortFrom(s, binary.BigEndian.Uint16(header[n:])),
		netip.AddrPortFrom(d, binary.BigEndian.Uint16(header[n+2:]))
}

// forward relays a datagram that is to a port of ours, or says why not.
func (m *model) forward(a arrival, s *seen, o *outcome) Verdict {
	way, kind := VerdictToClient, ToClient
	s.key, s.payload = Key{Remote: s.source, Local: s.destination}, s.udp[8:]
	if s.listener {
		way, kind = VerdictToPeer, ToPeer
		// The channel header has to be in the first buffer.
		if len(s.udp) < 12 || frameOffset(a.frame, s.udp)+12 > a.linear || s.udp[8]>>6 != 1 {
			return VerdictSTUN
		}
		n, room := int(binary.BigEndian.Uint16(s.udp[10:])), len(s.udp)-12
		if n > room || room-n > 3 { // RFC 8656 section 12.5
			return VerdictChannelData
		}
		s.key.Channel = turn.ChannelNumber(binary.BigEndian.Uint16(s.udp[8:]))
		s.payload = s.udp[12 : 12+n]
	}
	f, v := m.find(s.key, kind)
	if f == nil {
		return v
	}
	o.live = uint64(f.Deadline) > a.now
	if v, ok := m.check(s, f, a.now); !ok {
		return v
	}
	last := f
	o.used = []*modelFlow{f}
	if f.LocalPeer {
		way = VerdictToChannel
		if last, v = m.find(Key{Remote: f.Source, Local: f.Destination}, ToClient); last == nil {
			return v
		}
		if uint64(last.Deadline) <= a.now {
			return VerdictExpired
		}
		o.used = append(o.used, last)
	}
	if noChecksum(s.udp) && (f.Destination.Addr().Is6() || last.Destination.Addr().Is6()) {
		return VerdictNoChecksum
	}
	return m.depart(a, s, o, last, way)
}

// frameOffset is where part begins in frame, which it is a part of.
func frameOffset(frame, part []byte) int { return cap(frame) - cap(part) }

// find looks a flow up. Where it is nil, the verdict says why.
func (m *model) find(k Key, kind Kind) (*modelFlow, Verdict) {
	f := m.flows[k]
	switch {
	case f == nil:
		return nil, VerdictMiss
	case f.stale:
		return nil, VerdictStale
	case f.Kind != kind:
		return nil, VerdictMiss
	}
	return f, 0
}

// check holds a datagram against its flow. Where it is not ok, the verdict says why.
func (m *model) check(s *seen, f *modelFlow, now uint64) (v Verdict, ok bool) {
	is6 := s.source.Addr().Is6()
	switch {
	case s.vlan != f.VLAN:
		return VerdictVLAN, false
	case uint64(f.Deadline) <= now:
		return VerdictExpired, false
	case !is6 && onesSum(s.ip[:20])%0xffff != 0:
		return VerdictIPChecksum, false
	case noChecksum(s.udp) && is6:
		return VerdictNoChecksum, false
	case !noChecksum(s.udp) && halfChecksum(s):
		return VerdictHalfChecksum, false
	}
	return 0, true
}

// longestSum is how long a datagram may be for the program to add it up, in bytes.
const longestSum = 160*64 + 63

// halfChecksum says whether the checksum is but the sum of the pseudo-header, and not by chance right as well.
func halfChecksum(s *seen) bool {
	pseudo := pseudoSum(s.source, s.destination, len(s.udp))
	if onesSum(s.udp[6:8])%0xffff != pseudo%0xffff {
		return false
	}
	return len(s.udp) > longestSum || (pseudo+onesSum(s.udp))%0xffff != 0
}

func noChecksum(udp []byte) bool { return udp[6] == 0 && udp[7] == 0 }

// depart makes the frame that leaves by f, if it may.
func (m *model) depart(a arrival, s *seen, o *outcome, f *modelFlow, way Verdict) Verdict {
	hop := m.hops[f.Gateway]
	if hop == nil {
		return VerdictNextHop
	}
	header := 20
	if f.Destination.Addr().Is6() {
		header = 40
	}
	data := s.payload
	if f.OutChannel != 0 {
		data = binary.BigEndian.AppendUint16(nil, uint16(f.OutChannel))
		data = binary.BigEndian.AppendUint16(data, uint16(len(s.payload)))
		data = append(data, s.payload...)
	}
	total := header + 8 + len(data)
	switch {
	case total > hop.mtu || f.MTU != 0 && total > int(f.MTU) || total > 0xffff:
		return VerdictMTU
	case a.linear < len(a.frame) && !hop.buffers:
		return VerdictBuffers
	case s.ttl <= 1:
		return VerdictDropTTL
	}
	for _, u := range o.used {
		if v, ok := m.meter(u.Meter, len(s.payload), a.now); !ok {
			return v
		}
	}
	link := 14
	if hop.vlan != 0 {
		link = 18
	}
	came := frameOffset(a.frame, s.payload)
	if longer := link + total - len(s.payload) - came; longer != 0 && longer > a.headroom {
		return VerdictHeadroom
	}
	if hop.closed {
		return VerdictAborted
	}
	o.frame = m.write(s, f, hop, data)
	o.action = xdpRedirect
	if hop.ifindex == a.ifindex {
		o.action = xdpTX
	}
	for _, u := range o.used {
		u.relayed++
	}
	return way
}

// meter takes bytes from a meter and those of the wider scopes, of which there are two. Where it is not ok, the verdict says
// for which they are too many: narrower ones have taken them.
func (m *model) meter(index uint32, n int, now uint64) (v Verdict, ok bool) {
	for _, v := range []Verdict{VerdictDropMeter, VerdictDropUser, VerdictDropTotal} {
		b := m.meters[index]
		if !b.take(n, now) {
			return v, false
		}
		if b == nil {
			break
		}
		index = b.wider
	}
	return 0, true
}

// take takes bytes from a bucket that may be nil, unless they are too many.
func (b *modelMeter) take(n int, now uint64) bool {
	if b == nil || b.cost == 0 {
		return true
	}
	full := max(b.full, now) + uint64(n)*b.cost>>16
	if full-now > b.burst {
		return false
	}
	b.full = full
	return true
}

// write makes the frame. The UDP checksum is made over all of it, and is as wrong as the one that came.
func (m *model) write(s *seen, f *modelFlow, hop *modelHop, data []byte) []byte {
	b := append(append([]byte(nil), hop.to[:]...), hop.from[:]...)
	if hop.vlan != 0 {
		b = binary.BigEndian.AppendUint16(b, 0x8100)
		b = binary.BigEndian.AppendUint16(b, hop.vlan)
	}
	if f.Destination.Addr().Is4() {
		b = m.writeIPv4(append(b, 0x08, 0x00), s, f, 28+len(data))
	} else {
		b = append(b, 0x86, 0xdd)
		b = binary.BigEndian.AppendUint32(b, 6<<28|uint32(s.tos)<<20|flowLabel(f.Source, f.Destination))
		b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
		b = append(b, 17, s.ttl-1)
		b = append(append(b, f.Source.Addr().AsSlice()...), f.Destination.Addr().AsSlice()...)
	}
	at := len(b)
	b = binary.BigEndian.AppendUint16(b, f.Source.Port())
	b = binary.BigEndian.AppendUint16(b, f.Destination.Port())
	b = binary.BigEndian.AppendUint16(b, uint16(8+len(data)))
	b = append(append(b, 0, 0), data...)
	if noChecksum(s.udp) {
		return b
	}
	came := pseudoSum(s.source, s.destination, len(s.udp)) + onesSum(s.udp)
	made := pseudoSum(f.Source, f.Destination, 8+len(data)) + onesSum(b[at:])
	checksum := uint16((came%0xffff + 0xffff - made%0xffff) % 0xffff)
	if checksum == 0 {
		checksum = 0xffff // RFC 768
	}
	binary.BigEndian.PutUint16(b[at+6:], checksum)
	return b
}

// writeIPv4 appends an IPv4 header: RFC 8656 section 15, RFC 7915 section 5.1 for what IPv6 does not have.
func (m *model) writeIPv4(b []byte, s *seen, f *modelFlow, total int) []byte {
	var id, flags uint16
	switch {
	case s.source.Addr().Is4():
		id, flags = binary.BigEndian.Uint16(s.ip[4:]), binary.BigEndian.Uint16(s.ip[6:])
	case total > 1260:
		flags = 0x4000 // DF
	default:
		id = uint16(f.relayed + uint64(f.Source.Port())*40503)
	}
	at := len(b)
	b = append(b, 0x45, s.tos)
	b = binary.BigEndian.AppendUint16(b, uint16(total))
	b = binary.BigEndian.AppendUint16(b, id)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = append(b, s.ttl-1, 17, 0, 0)
	b = append(append(b, f.Source.Addr().AsSlice()...), f.Destination.Addr().AsSlice()...)
	binary.BigEndian.PutUint16(b[at+10:], uint16(0xffff-onesSum(b[at:])%0xffff)%0xffff)
	return b
}

// away says whether a datagram that is not relayed is for a local address that lives while nobody listens.
func (m *model) away(s *seen, now uint64) bool {
	guard := m.flows[Key{Local: s.destination}]
	return guard != nil && !guard.stale && uint64(guard.Deadline) > now && !m.sockets[s.destination.Port()]
}

// onesSum is the sum of b in big-endian 16-bit words. One's complement sums are equal when these
// are so modulo 65535.
func onesSum(b []byte) (sum uint64) {
	for ; len(b) > 1; b = b[2:] {
		sum += uint64(b[0])<<8 | uint64(b[1])
	}
	if len(b) == 1 {
		sum += uint64(b[0]) << 8
	}
	return sum
}

// pseudoSum is that of the pseudo-header: RFC 768, RFC 8200 section 8.1.
func pseudoSum(source, destination netip.AddrPort, length int) uint64 {
	return onesSum(source.Addr().AsSlice()) + onesSum(destination.Addr().AsSlice()) + 17 + uint64(length)
}
