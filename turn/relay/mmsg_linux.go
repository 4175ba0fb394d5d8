package relay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	slots    = 32      // datagrams, or trains of them, received at once
	slotSize = 1 << 16 // bytes: a train may be as long as a datagram can be

	outMessages = 64   // messages sent at once
	outIovecs   = 1024 // pieces they are made of
	outScratch  = 1 << 18
	maxSegments = 64    // of one train: UDP_MAX_SEGMENTS
	maxTrain    = 65000 // bytes

	controlSize = 96
)

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// datagram is one datagram, or a train of them that UDP_GRO joined.
type datagram struct {
	from    netip.AddrPort
	data    []byte
	segment int // bytes of each datagram in the train, the last may be shorter
	hop     hop
}

// hop is what of the IP header goes along: the next hop's TTL or hop limit, and DSCP with ECN.
// A whole datagram must not be fragmented.
type hop struct {
	ttl, tos uint8
	whole    bool
}

// inbox receives into fixed buffers.
type inbox struct {
	headers [slots]mmsghdr
	iovecs  [slots]unix.Iovec
	names   [slots]sockaddr
	control [slots][controlSize]byte
	buffers []byte
}

func newInbox() *inbox {
	in := &inbox{buffers: make([]byte, slots*slotSize)}
	for i := range in.headers {
		in.iovecs[i].Base = &in.buffers[i*slotSize]
		in.iovecs[i].Len = slotSize
		h := &in.headers[i].hdr
		h.Iov, h.Iovlen = &in.iovecs[i], 1
		h.Name, h.Control = in.names[i].pointer(), &in.control[i][0]
	}
	return in
}

// receive fills the slots from first on with what fd has, without waiting, and says how many it filled.
func (in *inbox) receive(fd, first int) (int, unix.Errno) {
	for i := first; i < slots; i++ {
		h := &in.headers[i].hdr
		h.Namelen, h.Controllen, h.Flags = unix.SizeofSockaddrInet6, controlSize, 0
	}
	for tries := 0; ; tries++ {
		n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in.headers[first])),
			uintptr(slots-first), unix.MSG_DONTWAIT, 0, 0)
		if errno == 0 {
			return int(n), 0
		}
		if errno == unix.EAGAIN || tries > 0 { // else it told of what was sent before, and is told now
			return 0, errno
		}
	}
}

// datagram is what slot i received. Its data is good until the slot is received into again.
func (in *inbox) datagram(i int) datagram {
	h := &in.headers[i]
	d := datagram{
		from: in.names[i].addrPort(),
		data: in.buffers[i*slotSize : i*slotSize+int(h.n)],
		hop:  hop{ttl: 64},
	}
	d.segment = max(len(d.data), 1)
	for c := in.control[i][:h.hdr.Controllen]; len(c) > 0; {
		var m control
		m, c = nextControl(c)
		d.read(m.level, m.kind, m.value)
	}
	return d
}

// control is a control message.
type control struct {
	level, kind uint32
	value       []byte
}

// nextControl splits the first control message off c. Where there is none it is zero, and nothing is left.
func nextControl(c []byte) (m control, rest []byte) {
	if len(c) < unix.SizeofCmsghdr {
		return control{}, nil
	}
	length := int(binary.NativeEndian.Uint64(c))
	if length < unix.SizeofCmsghdr || length > len(c) {
		return control{}, nil
	}
	m = control{binary.NativeEndian.Uint32(c[8:]), binary.NativeEndian.Uint32(c[12:]), c[unix.SizeofCmsghdr:length]}
	return m, c[min((length+7)&^7, len(c)):]
}

// read takes a control message in.
func (d *datagram) read(level, kind uint32, value []byte) {
	if len(value) == 0 {
		return
	}
	number := int(value[0])
	if len(value) >= 4 {
		number = int(binary.NativeEndian.Uint32(value))
	}
	switch {
	case level == unix.SOL_UDP && kind == unix.UDP_GRO:
		d.segment = max(number, 1)
	case level == unix.SOL_IP && kind == unix.IP_TTL, level == unix.SOL_IPV6 && kind == unix.IPV6_HOPLIMIT:
		d.hop.ttl = uint8(number)
	case level == unix.SOL_IP && kind == unix.IP_TOS, level == unix.SOL_IPV6 && kind == unix.IPV6_TCLASS:
		d.hop.tos = uint8(number)
	}
}

// outbox gathers messages for one descriptor at a time and sends them together.
// Datagrams of one size for one destination become a train (UDP_SEGMENT). It
// points into the buffers it is given, which must stay until flush.
type outbox struct {
	headers [outMessages]mmsghdr
	iovecs  [outIovecs]unix.Iovec
	names   [outMessages]sockaddr
	control [outMessages][controlSize]byte
	trains  [outMessages]train
	scratch []byte

	fd        int
	n, pieces int
	wholes    int // messages that must not be fragmented
	scratched int
	dropped   func(n int, errno unix.Errno)
	calls     uint64
}

// train is what is being gathered into one message.
type train struct {
	size     int // bytes of a datagram
	total    int
	segments int
	per      int // iovecs of a datagram
	first    int // of its iovecs
	closed   bool
	hop      hop
	plain    bool // no hop to set: a reply of our own
}

func newOutbox(dropped func(n int, errno unix.Errno)) *outbox {
	o := &outbox{scratch: make([]byte, outScratch), dropped: dropped, fd: -1}
	for i := range o.headers {
		h := &o.headers[i].hdr
		h.Name, h.Control = o.names[i].pointer(), &o.control[i][0]
	}
	return o
}

// room makes sure that a message of n bytes of scratch fits in, for fd.
func (o *outbox) room(fd, n int) {
	if o.fd != fd || o.n == outMessages || o.pieces+2 > outIovecs || o.scratched+n > len(o.scratch) {
		o.flush()
		o.fd = fd
	}
}

// push adds a datagram for to, made of head and body, either of which may be
// empty. Both must stay as they are until the next flush.
func (o *outbox) push(fd int, to *sockaddr, head, body []byte, h hop, plain bool) {
	o.room(fd, 0)
	size, per := len(head)+len(body), 0
	if len(head) > 0 {
		per++
	}
	if len(body) > 0 || per == 0 {
		per++
	}
	if o.n > 0 {
		t := &o.trains[o.n-1]
		if !t.closed && t.hop == h && t.plain == plain && t.per == per && size <= t.size && size > 0 &&
			t.segments < maxSegments && t.total+size <= maxTrain && o.names[o.n-1] == *to {
			t.segments++
			t.total += size
			t.closed = size < t.size
			o.add(head, body)
			return
		}
	}
	o.names[o.n] = *to
	if h.whole {
		o.wholes++
	}
	o.trains[o.n] = train{size: size, total: size, segments: 1, per: per, first: o.pieces, hop: h, plain: plain}
	o.n++
	o.add(head, body)
}

func (o *outbox) add(head, body []byte) {
	if len(head) > 0 {
		o.piece(head)
	}
	if len(body) > 0 || len(head) == 0 {
		o.piece(body)
	}
}

func (o *outbox) piece(b []byte) {
	v := &o.iovecs[o.pieces]
	v.Base, v.Len = unsafe.SliceData(b), uint64(len(b))
	o.pieces++
}

// take is n bytes that stay until the next flush. Room for them must have been made.
func (o *outbox) take(n int) []byte {
	b := o.scratch[o.scratched : o.scratched : o.scratched+n]
	o.scratched += n
	return b
}

// flush sends what was gathered. What the kernel does not take is dropped and
// counted, as the network would: a full socket must not hold up the others.
func (o *outbox) flush() {
	for i := range o.n {
		o.finish(i)
	}
	for first := 0; first < o.n; {
		end := o.alike(first)
		if o.trains[first].hop.whole {
			o.sendWhole(first, end)
		} else {
			o.send(first, end)
		}
		first = end
	}
	o.n, o.pieces, o.scratched, o.wholes = 0, 0, 0, 0
}

// send sends the messages from sent on and before end.
func (o *outbox) send(sent, end int) {
	for tries := 0; sent < end; {
		o.calls++
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(o.fd), uintptr(unsafe.Pointer(&o.headers[sent])),
			uintptr(end-sent), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
		if errno == 0 && n > 0 {
			sent, tries = sent+int(n), 0
			continue
		}
		if tries++; tries < sendTries && pending(errno) {
			continue
		}
		if t := &o.trains[sent]; t.segments > 1 && errno != unix.EAGAIN {
			o.singly(sent)
		} else {
			o.drop(t.segments, errno)
		}
		sent, tries = sent+1, 0
	}
}

func (o *outbox) drop(n int, errno unix.Errno) {
	if o.dropped != nil {
		o.dropped(n, errno)
	}
}

// finish wires up the header of message i.
func (o *outbox) finish(i int) {
	t, h := &o.trains[i], &o.headers[i].hdr
	h.Namelen = o.names[i].len
	h.Iov, h.Iovlen = &o.iovecs[t.first], uint64(t.per*t.segments)
	c := o.control[i][:0]
	if t.segments > 1 {
		c = appendControl(c, unix.SOL_UDP, unix.UDP_SEGMENT, uint32(t.size), 2)
	}
	if !t.plain {
		c = appendHop(c, t.hop, o.names[i].len == unix.SizeofSockaddrInet4)
	}
	h.Controllen = uint64(len(c))
}

func appendHop(c []byte, h hop, v4 bool) []byte {
	if v4 {
		c = appendControl(c, unix.SOL_IP, unix.IP_TTL, uint32(h.ttl), 4)
		return appendControl(c, unix.SOL_IP, unix.IP_TOS, uint32(h.tos), 4)
	}
	c = appendControl(c, unix.SOL_IPV6, unix.IPV6_HOPLIMIT, uint32(h.ttl), 4)
	return appendControl(c, unix.SOL_IPV6, unix.IPV6_TCLASS, uint32(h.tos), 4)
}

// appendControl appends a control message with an integer of size bytes, 2 or 4.
func appendControl(c []byte, level, kind, value uint32, size int) []byte {
	c = binary.NativeEndian.AppendUint64(c, uint64(unix.SizeofCmsghdr+size))
	c = binary.NativeEndian.AppendUint32(c, level)
	c = binary.NativeEndian.AppendUint32(c, kind)
	if size == 2 {
		c = binary.NativeEndian.AppendUint16(c, uint16(value))
		return append(c, 0, 0, 0, 0, 0, 0)
	}
	c = binary.NativeEndian.AppendUint32(c, value)
	return append(c, 0, 0, 0, 0)
}

// singly sends the datagrams of message i one by one: its train was refused, as
// where a datagram is larger than the path's MTU.
func (o *outbox) singly(i int) {
	t := o.trains[i]
	var h mmsghdr
	h.hdr = o.headers[i].hdr
	control := [controlSize]byte{}
	c := control[:0]
	if !t.plain {
		c = appendHop(c, t.hop, o.names[i].len == unix.SizeofSockaddrInet4)
	}
	h.hdr.Control, h.hdr.Controllen = &control[0], uint64(len(c))
	h.hdr.Iovlen = uint64(t.per)
	for s := range t.segments {
		h.hdr.Iov = &o.iovecs[t.first+s*t.per]
		errno := o.single(&h)
		for tries := 1; tries < sendTries && errno != 0 && pending(errno); tries++ {
			errno = o.single(&h)
		}
		if errno != 0 {
			o.drop(1, errno)
		}
	}
}

// single sends one message.
func (o *outbox) single(h *mmsghdr) unix.Errno {
	_, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(o.fd), uintptr(unsafe.Pointer(h)), 1, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, 0, 0)
	return errno
}
