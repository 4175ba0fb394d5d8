package relay

import (
	"net/netip"

	"turnstone/turn"
)

// Listener is an address that clients send to. It must be one address, not a wildcard: the
// five-tuple of an allocation names it.
type Listener struct {
	Address  netip.AddrPort
	Protocol turn.Protocol
}

// listener is an open Listener with the flows of its clients.
type listener struct {
	Listener
	fds     []int // of UDP: one for each shard, or none over a virtual network
	conn    packetConn
	accepts []accepter       // of the other protocols
	seats   stripes[*seat]   // by client
	streams stripes[*stream] // by client
}

func (l *listener) fiveTuple(client netip.AddrPort) turn.FiveTuple {
	return turn.FiveTuple{Client: client, Server: l.Address, Protocol: l.Protocol}
}
