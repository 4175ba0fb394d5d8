package kernel

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"net/netip"
	"time"

	"turnstone/bpf"
	"turnstone/turn"
)

// Kind says what a flow carries.
type Kind uint8

// noAddress is the remote of a guard.
var noAddress netip.AddrPort

// Kinds of flows.
const (
	ToPeer   = Kind(bpf.TurnstoneFlowKindFLOW_TO_PEER)   // ChannelData of a client
	ToClient = Kind(bpf.TurnstoneFlowKindFLOW_TO_CLIENT) // datagrams of the peer of a channel
	Guard    = Kind(bpf.TurnstoneFlowKindFLOW_GUARD)     // nothing: a local address that lives
)

func (k Kind) String() string {
	switch k {
	case ToPeer:
		return "to-peer"
	case ToClient:
		return "to-client"
	case Guard:
		return "guard"
	}
	return "unknown"
}

// MarshalText is String.
func (k Kind) MarshalText() ([]byte, error) { return []byte(k.String()), nil }

// UnmarshalText is the opposite of MarshalText.
func (k *Kind) UnmarshalText(b []byte) error {
	for _, v := range []Kind{ToPeer, ToClient, Guard} {
		if v.String() == string(b) {
			*k = v
			return nil
		}
	}
	return fmt.Errorf("%q is no kind of flow", b)
}

// flowLocalPeer is FLOW_LOCAL_PEER of the program.
const flowLocalPeer = 1

// Key is what a packet is looked up by: where it comes from, where it arrives, and
// its channel number, 0 for what a peer sends. A guard has neither remote nor channel.
type Key struct {
	Remote, Local netip.AddrPort
	Channel       turn.ChannelNumber
}

// Flow is one direction of a binding, or a guard, as the program is to know it.
// Two flows are the same if they are equal, their deadlines apart.
type Flow struct {
	Key
	Kind       Kind
	Allocation turn.AllocationID
	Deadline   time.Duration // boot time

	Source, Destination netip.AddrPort     // it leaves with
	OutChannel          turn.ChannelNumber // of the ChannelData it leaves as, 0 for none
	LocalPeer           bool               // Destination is a relayed address of this relay
	VLAN                uint16             // tag it arrives with, 0 for none
	Gateway             uint32             // index of gateways
	Meter               uint32             // index of meters, 0 for none
	MTU                 uint16             // of the path, bytes of IP packet; 0: that of the next hop
}

// record is the form in which the program reads f, not yet published: its generation is 0.
func (f *Flow) record() bpf.TurnstoneFlow {
	r := bpf.TurnstoneFlow{
		Kind: uint8(f.Kind), Family: family(f.Local.Addr()), Deadline: uint64(f.Deadline),
		Remote: address(f.Remote.Addr()), Local: address(f.Local.Addr()),
		RemotePort: wire(f.Remote.Port()), LocalPort: wire(f.Local.Port()), Channel: wire(uint16(f.Channel)),
		Vlan: wire(f.VLAN), Gateway: f.Gateway, Meter: f.Meter, Mtu: f.MTU,
	}
	if f.Kind == Guard {
		return r
	}
	r.OutFamily = family(f.Destination.Addr())
	r.OutSource, r.OutDestination = address(f.Source.Addr()), address(f.Destination.Addr())
	r.OutSourcePort, r.OutDestinationPort = wire(f.Source.Port()), wire(f.Destination.Port())
	r.OutChannel = wire(uint16(f.OutChannel))
	if f.LocalPeer {
		r.Flags |= flowLocalPeer
	}
	in, out := sumAddresses(f.Remote.Addr(), f.Local.Addr()), sumAddresses(f.Source.Addr(), f.Destination.Addr())
	r.InSum, r.OutSum = fold(in), fold(out)
	arrives := in + word(r.RemotePort) + word(r.LocalPort) + word(r.Channel)
	leaves := out + word(r.OutSourcePort) + word(r.OutDestinationPort) + word(r.OutChannel)
	r.Delta = fold(leaves + uint64(^fold(arrives)))
	r.FlowLabel = flowLabel(f.Source, f.Destination)
	return r
}

// flowOf is the opposite of record; what the program does not read is left out.
func flowOf(r *bpf.TurnstoneFlow) Flow {
	f := Flow{
		Key: Key{
			Remote:  addrPort(r.Remote, r.RemotePort, r.Family),
			Local:   addrPort(r.Local, r.LocalPort, r.Family),
			Channel: turn.ChannelNumber(binary.BigEndian.Uint16(r.Channel[:])),
		},
		Kind: Kind(r.Kind), Deadline: time.Duration(r.Deadline),
		LocalPeer: r.Flags&flowLocalPeer != 0, VLAN: binary.BigEndian.Uint16(r.Vlan[:]),
		Gateway: r.Gateway, Meter: r.Meter, MTU: r.Mtu,
	}
	if f.Kind == Guard {
		f.Remote = netip.AddrPort{}
		return f
	}
	f.Source = addrPort(r.OutSource, r.OutSourcePort, r.OutFamily)
	f.Destination = addrPort(r.OutDestination, r.OutDestinationPort, r.OutFamily)
	f.OutChannel = turn.ChannelNumber(binary.BigEndian.Uint16(r.OutChannel[:]))
	return f
}

func family(a netip.Addr) uint8 {
	if a.Is4() {
		return 4
	}
	return 6
}

// address is a as records hold it: an IPv4 address in the first 4 bytes.
func address(a netip.Addr) (b [16]byte) {
	switch {
	case a.Is4():
		ip := a.As4()
		copy(b[:], ip[:])
	case a.IsValid():
		b = a.As16()
	}
	return b
}

func addrPort(ip [16]byte, port [2]byte, family uint8) netip.AddrPort {
	a := netip.AddrFrom16(ip)
	if family == 4 {
		a = netip.AddrFrom4([4]byte(ip[:4]))
	}
	return netip.AddrPortFrom(a, binary.BigEndian.Uint16(port[:]))
}

func wire(v uint16) [2]byte { return [2]byte{byte(v >> 8), byte(v)} }

// flowLabel is drawn from the five-tuple (RFC 6437 section 3), 20 bits, never 0.
func flowLabel(source, destination netip.AddrPort) uint32 {
	h := fnv.New32a()
	for _, a := range []netip.AddrPort{source, destination} {
		ip := a.Addr().As16()
		h.Write(ip[:])
		h.Write([]byte{byte(a.Port() >> 8), byte(a.Port())})
	}
	return max(h.Sum32()&0xfffff, 1)
}
