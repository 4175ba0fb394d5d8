package turn

import (
	"encoding/binary"
	"errors"
	"net/netip"

	"github.com/pion/stun/v3"
)

// FrameKind says what a datagram from a client looks like by its first bytes.
type FrameKind uint8

// Kinds of frames (RFC 8656 section 12, RFC 7983).
const (
	FrameOther FrameKind = iota
	FrameSTUN
	FrameChannelData
)

const (
	stunHeader         = 20
	stunMagic          = 0x2112A442
	channelHeader      = 4
	typeSend           = 0x0016 // Send indication
	typeData           = 0x0017 // Data indication
	typeConnectionBind = 0x000b // ConnectionBind request
	attrPeerAddress    = 0x0012
	attrData           = 0x0013
	attrDontFragment   = 0x001A
	attrFingerprint    = 0x8028
)

// ChannelHeader is the length in bytes of the header of a ChannelData message.
const ChannelHeader = channelHeader

// DataIndicationOverhead bounds what [AppendDataIndication] adds to the data, in bytes.
const DataIndicationOverhead = stunHeader + 24 + 4 + 3

// Classify tells STUN from ChannelData by the first bytes of b. It promises
// nothing about the rest of the frame.
func Classify(b []byte) FrameKind {
	if len(b) < channelHeader {
		return FrameOther
	}
	switch b[0] >> 6 {
	case 0:
		if len(b) >= stunHeader && binary.BigEndian.Uint32(b[4:]) == stunMagic {
			return FrameSTUN
		}
	case 1:
		return FrameChannelData
	}
	return FrameOther
}

// IsSend says whether the STUN frame b is a Send indication.
func IsSend(b []byte) bool { return binary.BigEndian.Uint16(b) == typeSend }

// Errors of the data plane's decoders.
var (
	ErrFrame         = errors.New("malformed frame")
	ErrChannelNumber = errors.New("channel number out of range")
	ErrUnknown       = errors.New("unknown comprehension-required attribute")
)

// ParseChannelData splits a ChannelData message received in a datagram (RFC 8656
// section 12.4). The payload aliases b; what follows it, padding or more, is
// ignored as section 12.5 asks of UDP.
func ParseChannelData(b []byte) (ChannelNumber, []byte, error) {
	if len(b) < channelHeader {
		return 0, nil, ErrFrame
	}
	n := ChannelNumber(binary.BigEndian.Uint16(b))
	if n < ChannelFirst || n > ChannelLastRFC5766 {
		return 0, nil, ErrChannelNumber
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	if length > len(b)-channelHeader {
		return 0, nil, ErrFrame
	}
	return n, b[channelHeader : channelHeader+length], nil
}

// MaxStreamFrame is the length in bytes of the longest frame on a stream.
const MaxStreamFrame = stunHeader + 1<<16

// StreamFrame is the length in bytes of the frame that b begins with, where b came along a stream: with the
// padding that ChannelData has there (RFC 8656 section 12.5). It is 0 while b is too short to tell. What is neither STUN nor
// ChannelData is [ErrFrame]: nobody can say where the next frame begins.
func StreamFrame(b []byte) (int, error) {
	if len(b) < channelHeader {
		if len(b) > 0 && b[0]>>7 != 0 {
			return 0, ErrFrame
		}
		return 0, nil
	}
	length := int(binary.BigEndian.Uint16(b[2:]))
	switch b[0] >> 6 {
	case 0:
		if length%4 != 0 || len(b) >= 8 && binary.BigEndian.Uint32(b[4:]) != stunMagic {
			return 0, ErrFrame
		}
		return stunHeader + length, nil
	case 1:
		return channelHeader + (length+3)&^3, nil
	}
	return 0, ErrFrame
}

// AppendChannelData appends a ChannelData message with the padding that streams demand and datagrams may
// have (RFC 8656 section 12.5).
func AppendChannelData(dst []byte, n ChannelNumber, data []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(n))
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(data)))
	dst = append(dst, data...)
	return append(dst, make([]byte, -len(data)&3)...)
}

// PutChannelHeader writes the header of a ChannelData message that carries
// length bytes into dst[:4]. Over UDP no padding follows.
func PutChannelHeader(dst []byte, n ChannelNumber, length int) {
	binary.BigEndian.PutUint16(dst, uint16(n))
	binary.BigEndian.PutUint16(dst[2:], uint16(length))
}

// ParseSend decodes a Send indication (RFC 8656 section 11.2). Data aliases b.
// The first of duplicate attributes counts, and a FINGERPRINT must be right. DONT-FRAGMENT is left
// to the caller.
func ParseSend(b []byte) (peer netip.AddrPort, data []byte, dontFragment bool, err error) {
	if len(b) < stunHeader || int(binary.BigEndian.Uint16(b[2:])) != len(b)-stunHeader || len(b)%4 != 0 {
		return netip.AddrPort{}, nil, false, ErrFrame
	}
	var hasPeer, hasData bool
	for rest := b[stunHeader:]; len(rest) > 0; {
		if len(rest) < 4 {
			return netip.AddrPort{}, nil, false, ErrFrame
		}
		kind, length := binary.BigEndian.Uint16(rest), int(binary.BigEndian.Uint16(rest[2:]))
		padded := (length + 3) &^ 3
		if padded > len(rest)-4 {
			return netip.AddrPort{}, nil, false, ErrFrame
		}
		value, at := rest[4:4+length], len(b)-len(rest)
		rest = rest[4+padded:]
		switch {
		case kind == attrPeerAddress && !hasPeer:
			if peer, err = parseXOR(value, b[4:stunHeader]); err != nil {
				return netip.AddrPort{}, nil, false, err
			}
			hasPeer = true
		case kind == attrData && !hasData:
			data, hasData = value, true
		case kind == attrDontFragment:
			dontFragment = true
		case kind == attrFingerprint:
			if length != 4 || len(rest) > 0 || binary.BigEndian.Uint32(value) != stun.FingerprintValue(b[:at]) {
				return netip.AddrPort{}, nil, false, ErrFrame
			}
		case kind < 0x8000 && !knownAttribute(kind):
			return netip.AddrPort{}, nil, false, ErrUnknown
		}
	}
	if !hasPeer || !hasData {
		return netip.AddrPort{}, nil, false, ErrFrame
	}
	return peer, data, dontFragment, nil
}

// parseXOR decodes the value of an XOR-*-ADDRESS attribute (RFC 8489 section
// 14.2); cookie is the magic cookie followed by the transaction id.
func parseXOR(v, cookie []byte) (netip.AddrPort, error) {
	if len(v) < 8 {
		return netip.AddrPort{}, ErrFrame
	}
	port := binary.BigEndian.Uint16(v[2:]) ^ binary.BigEndian.Uint16(cookie)
	switch {
	case v[1] == 1 && len(v) == 8:
		var a [4]byte
		for i := range a {
			a[i] = v[4+i] ^ cookie[i]
		}
		return netip.AddrPortFrom(netip.AddrFrom4(a), port), nil
	case v[1] == 2 && len(v) == 20:
		var a [16]byte
		for i := range a {
			a[i] = v[4+i] ^ cookie[i]
		}
		return Canonical(netip.AddrPortFrom(netip.AddrFrom16(a), port)), nil
	}
	return netip.AddrPort{}, ErrFrame
}

// AppendDataIndication appends a Data indication (RFC 8656 section 11.3).
// It does not allocate if dst has room for len(data) + [DataIndicationOverhead].
func AppendDataIndication(dst []byte, tx TransactionID, peer netip.AddrPort, data []byte) []byte {
	start := len(dst)
	dst = appendIndication(dst, tx, peer)
	dst = binary.BigEndian.AppendUint16(dst, attrData)
	dst = binary.BigEndian.AppendUint16(dst, uint16(len(data)))
	dst = append(dst, data...)
	for (len(dst)-start)%4 != 0 {
		dst = append(dst, 0)
	}
	binary.BigEndian.PutUint16(dst[start+2:], uint16(len(dst)-start-stunHeader))
	return dst
}

// appendIndication begins a Data indication, whose length is to be set.
func appendIndication(dst []byte, tx TransactionID, peer netip.AddrPort) []byte {
	start := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, typeData)
	dst = binary.BigEndian.AppendUint16(dst, 0)
	dst = binary.BigEndian.AppendUint32(dst, stunMagic)
	dst = append(dst, tx[:]...)
	if peer.Addr().Is4() {
		a := peer.Addr().As4()
		return appendPeer(dst, familyIPv4, a[:], peer.Port(), start)
	}
	a := peer.Addr().As16()
	return appendPeer(dst, familyIPv6, a[:], peer.Port(), start)
}

// appendPeer appends XOR-PEER-ADDRESS to the message that begins at dst[start].
func appendPeer(dst []byte, family byte, ip []byte, port uint16, start int) []byte {
	dst = binary.BigEndian.AppendUint16(dst, attrPeerAddress)
	dst = binary.BigEndian.AppendUint16(dst, uint16(4+len(ip)))
	dst = append(dst, 0, family)
	dst = binary.BigEndian.AppendUint16(dst, port^(stunMagic>>16))
	for i, x := range ip {
		dst = append(dst, x^dst[start+4+i])
	}
	return dst
}
