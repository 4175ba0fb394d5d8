package turn

import (
	"encoding/binary"
	"net/netip"
)

const attrICMP = 0x8004

// ICMPIndicationSize bounds what [AppendICMPIndication] appends, in bytes.
const ICMPIndicationSize = stunHeader + 24 + 12

// ICMPError is what a client is told of an ICMP error (RFC 8656 section 18.13).
type ICMPError struct {
	Type, Code uint8
	MTU        uint32 // of the next link, where the datagram was too large for it; else 0
}

// Types of ICMP and ICMPv6 errors that are told of.
const (
	icmpUnreachable   = 3
	icmpTimeExceeded  = 11
	icmpTooBig        = 4 // code of icmpUnreachable
	icmp6Unreachable  = 1
	icmp6TooBig       = 2
	icmp6TimeExceeded = 3
)

// TellICMP is what a client is told of an error of the ICMP of a family, with the
// MTU it may hold; false for an error of no concern (RFC 8656 section 11.5).
func TellICMP(v4 bool, kind, code uint8, mtu uint32) (ICMPError, bool) {
	e := ICMPError{Type: kind, Code: code}
	switch {
	case v4 && kind == icmpUnreachable && code == icmpTooBig, !v4 && kind == icmp6TooBig:
		e.MTU = mtu
		return e, true
	case v4:
		return e, kind == icmpUnreachable || kind == icmpTimeExceeded
	}
	return e, kind == icmp6Unreachable || kind == icmp6TimeExceeded
}

// AppendICMPIndication appends a Data indication that says that a datagram to peer
// met an ICMP error (RFC 8656 section 11.5). It does not allocate if dst has room for
// [ICMPIndicationSize] bytes.
func AppendICMPIndication(dst []byte, tx TransactionID, peer netip.AddrPort, e ICMPError) []byte {
	start := len(dst)
	dst = appendIndication(dst, tx, peer)
	dst = binary.BigEndian.AppendUint16(dst, attrICMP)
	dst = binary.BigEndian.AppendUint16(dst, 8)
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint16(dst, uint16(e.Type)<<9|uint16(e.Code)) // 7 bits and 9
	dst = binary.BigEndian.AppendUint32(dst, e.MTU)
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start-stunHeader))
	return dst
}
