package turn

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"
)

// Seq numbers the events of a log: 1 is the first, and there are no gaps.
// Zero stands before the first event.
type Seq uint64

// AllocationID numbers the allocations of a log in the order they were made,
// from 1. It is never used again.
type AllocationID uint64

func (id AllocationID) String() string { return strconv.FormatUint(uint64(id), 10) }

// TransactionID is a STUN transaction id (RFC 8489 section 5).
type TransactionID [12]byte

func (t TransactionID) String() string { return hex.EncodeToString(t[:]) }

// ReservationToken names a reserved relayed transport address to the client that may
// have it (RFC 8656 section 18.9). Zero is none.
type ReservationToken [8]byte

func (t ReservationToken) String() string { return hex.EncodeToString(t[:]) }

// ChannelNumber is a TURN channel number (RFC 8656 section 12). Zero is no
// channel: in usage and flow keys it stands for Send and Data indications.
type ChannelNumber uint16

func (c ChannelNumber) String() string { return fmt.Sprintf("0x%04x", uint16(c)) }

// Channel numbers that ChannelBind accepts (RFC 8656 section 12), and the wider
// range of RFC 5766 that clients in the field still draw from.
const (
	ChannelFirst       ChannelNumber = 0x4000
	ChannelLast        ChannelNumber = 0x4FFF
	ChannelLastRFC5766 ChannelNumber = 0x7FFF
)

// Protocol is the transport between a client and the server.
type Protocol uint8

// Transports of a five-tuple. The numbers are part of the log.
const (
	UDP  Protocol = 1
	TCP  Protocol = 2
	TLS  Protocol = 3
	DTLS Protocol = 4
)

func (p Protocol) String() string {
	switch p {
	case UDP:
		return "udp"
	case TCP:
		return "tcp"
	case TLS:
		return "tls"
	case DTLS:
		return "dtls"
	}
	return fmt.Sprintf("protocol(%d)", uint8(p))
}

// FiveTuple identifies an allocation on the client's side (RFC 8656 section 2):
// the client's address as the server sees it, the server address it sent
// to, and the transport. Addresses are canonical (see [Canonical]).
type FiveTuple struct {
	Client   netip.AddrPort `cbor:"1,keyasint"`
	Server   netip.AddrPort `cbor:"2,keyasint"`
	Protocol Protocol       `cbor:"3,keyasint"`
}

func (t FiveTuple) String() string {
	return fmt.Sprintf("%s %s->%s", t.Protocol, t.Client, t.Server)
}

// Canonical is the one form in which the relay holds an address: an
// IPv4-mapped IPv6 address is its IPv4 address, and there is no zone.
func Canonical(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

// Reason says why a grant ended before its time. The numbers are part of the log.
type Reason uint8

// Reasons of AllocationDeleted, PermissionRevoked, ChannelRevoked and ReservationRevoked.
const (
	ReasonClient       Reason = 1  // Refresh with a lifetime of zero
	ReasonOperator     Reason = 2  // closed by an operator
	ReasonPortTaken    Reason = 3  // the relayed port could not be bound again at start
	ReasonPolicy       Reason = 4  // a reload forbids the peer
	ReasonUserRemoved  Reason = 5  // a reload removed the user
	ReasonStreamClosed Reason = 6  // the client's stream ended
	ReasonRestart      Reason = 7  // a stream's allocation does not outlive the server
	ReasonSocket       Reason = 8  // the relayed socket failed
	ReasonListenerGone Reason = 9  // no listener serves the five-tuple's server address any more
	ReasonMoved        Reason = 10 // the client has sent data from elsewhere
	ReasonBanned       Reason = 11 // an operator has banned the user
	ReasonPeerClosed   Reason = 20 // the peer closed its connection, or it failed
	ReasonUnbound      Reason = 21 // no client bound the connection in time
)

var reasonNames = map[Reason]string{
	ReasonClient: "client", ReasonOperator: "operator", ReasonPortTaken: "port-taken",
	ReasonPolicy: "policy", ReasonUserRemoved: "user-removed", ReasonStreamClosed: "stream-closed",
	ReasonRestart: "restart", ReasonSocket: "socket", ReasonListenerGone: "listener-gone",
	ReasonMoved: "moved", ReasonBanned: "banned", ReasonPeerClosed: "peer-closed", ReasonUnbound: "unbound",
}

func (r Reason) String() string {
	if n, ok := reasonNames[r]; ok {
		return n
	}
	return fmt.Sprintf("reason(%d)", uint8(r))
}

// MarshalText is String: the names have one form in all output. Likewise below.
func (t TransactionID) MarshalText() ([]byte, error)    { return []byte(t.String()), nil }
func (t ReservationToken) MarshalText() ([]byte, error) { return []byte(t.String()), nil }
func (c ChannelNumber) MarshalText() ([]byte, error)    { return []byte(c.String()), nil }
func (p Protocol) MarshalText() ([]byte, error)         { return []byte(p.String()), nil }
func (r Reason) MarshalText() ([]byte, error)           { return []byte(r.String()), nil }
func (p Path) MarshalText() ([]byte, error)             { return []byte(p.String()), nil }
func (id LogID) MarshalText() ([]byte, error)           { return []byte(id.String()), nil }
func (b BootID) MarshalText() ([]byte, error)           { return []byte(b.String()), nil }

// UnmarshalText is the opposite of MarshalText. Likewise below.
func (c *ChannelNumber) UnmarshalText(b []byte) error {
	n, err := strconv.ParseUint(string(b), 0, 16)
	*c = ChannelNumber(n)
	return err
}

func (p *Protocol) UnmarshalText(b []byte) error {
	return named(p, b, UDP, TCP, TLS, DTLS)
}

func (p *Path) UnmarshalText(b []byte) error {
	return named(p, b, PathUserspace, PathKernel)
}

func (t *ReservationToken) UnmarshalText(b []byte) error { return unhex(t[:], b) }
func (id *LogID) UnmarshalText(b []byte) error           { return unhex(id[:], b) }
func (b *BootID) UnmarshalText(t []byte) error           { return unhex(b[:], t) }

// named sets v to the one of values that is written as text.
func named[T fmt.Stringer](v *T, text []byte, values ...T) error {
	for _, x := range values {
		if x.String() == string(text) {
			*v = x
			return nil
		}
	}
	return fmt.Errorf("%q is no %T", text, *v)
}

func unhex(dst, text []byte) error {
	n, err := hex.Decode(dst, text)
	if err == nil && n != len(dst) {
		err = fmt.Errorf("%d bytes, want %d", n, len(dst))
	}
	return err
}
