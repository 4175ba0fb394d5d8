package relay

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// icmpSlots bounds how many ICMP errors of one relayed socket a round takes: the rest waits for the next.
const icmpSlots = 16

// extendedError is the size of a struct sock_extended_err.
const extendedError = 16

// icmpControl is room for IP_RECVERR behind TTL and DSCP.
const icmpControl = 256

// icmpInbox receives ICMP errors about what was sent on a socket.
type icmpInbox struct {
	headers [icmpSlots]mmsghdr
	names   [icmpSlots]sockaddr
	control [icmpSlots][icmpControl]byte
}

// hearICMP has the ICMP errors about what fd sends queued for receive. From then on an error also fails the next call on
// fd, whatever that is about: see pending.
func hearICMP(fd int, v4 bool) error {
	if v4 {
		return unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_RECVERR, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_RECVERR, 1)
}

// receive fills the slots with what is queued for fd, and says how many it filled.
func (in *icmpInbox) receive(fd int) int {
	for i := range in.headers {
		h := &in.headers[i].hdr
		h.Name, h.Namelen = in.names[i].pointer(), unix.SizeofSockaddrInet6
		h.Control, h.Controllen, h.Flags = &in.control[i][0], icmpControl, 0
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(fd), uintptr(unsafe.Pointer(&in.headers)),
		icmpSlots, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0
	}
	return int(n)
}

// icmp is what slot i holds: to whom the datagram was, and what became of it. False: it is no error of the network.
func (in *icmpInbox) icmp(i int) (peer netip.AddrPort, e turn.ICMPError, ok bool) {
	peer = in.names[i].addrPort()
	for c := in.control[i][:in.headers[i].hdr.Controllen]; len(c) > 0; {
		var m control
		if m, c = nextControl(c); m.heard() {
			e, ok = icmpOf(m.value)
		}
	}
	return peer, e, ok && peer.IsValid() && peer.Port() != 0
}

// heard says whether m is an error of the network or of the host.
func (m *control) heard() bool {
	return (m.level == unix.SOL_IP && m.kind == unix.IP_RECVERR || m.level == unix.SOL_IPV6 && m.kind == unix.IPV6_RECVERR) && len(m.value) >= extendedError
}

// icmpOf reads a struct sock_extended_err.
func icmpOf(b []byte) (turn.ICMPError, bool) {
	origin, kind, code, info := b[4], b[5], b[6], binary.NativeEndian.Uint32(b[8:])
	if origin != unix.SO_EE_ORIGIN_ICMP && origin != unix.SO_EE_ORIGIN_ICMP6 {
		return turn.ICMPError{}, false
	}
	return turn.TellICMP(origin == unix.SO_EE_ORIGIN_ICMP, kind, code, info)
}

// icmp takes the ICMP errors about what was sent from a relayed address.
func (h *shard) icmp(r *relayed, fd int) {
	for i := range h.errors.receive(fd) {
		if peer, e, ok := h.errors.icmp(i); ok {
			h.tell(r, peer, e)
		}
	}
}

// tell tells the client of r of an ICMP error about a datagram to peer, if it may hear of peer (RFC 8656 section 11.5).
func (h *shard) tell(r *relayed, peer netip.AddrPort, e turn.ICMPError) {
	f, around := r.flow, h.server.surroundings.Load()
	to := f.at.Load()
	switch {
	case to == nil, !around.icmp.tells(f), f.gone.Load(), !f.permits(peer.Addr(), h.now):
		return
	case !h.server.within(f, toClient, turn.ICMPIndicationSize, h.now):
		return
	}
	tx, peer := h.server.indicationID(), around.shown(peer)
	if to.stream != nil {
		to.stream.icmpIndication(tx, peer, e)
		return
	}
	fd := to.listener.fds[h.index]
	h.out.room(fd, turn.ICMPIndicationSize)
	b := turn.AppendICMPIndication(h.out.take(turn.ICMPIndicationSize), tx, peer, e)
	h.out.push(fd, &to.toClient, b, nil, hop{}, true)
}

// sendTries bounds how often a message is tried: each try may be told of an ICMP error about an earlier one.
const sendTries = 3

// pending says whether a call may have failed for an ICMP error about another datagram, which the
// next one does not meet again.
func pending(errno unix.Errno) bool {
	switch errno {
	case unix.EAGAIN, unix.EINVAL, unix.EPERM, unix.ENOBUFS, unix.ENOMEM:
		return false
	}
	return true
}
