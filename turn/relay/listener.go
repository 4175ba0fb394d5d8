package relay

import (
	"net/netip"
	"sync/atomic"

	"turnstone/turn"
)

// Listener is an address that clients send to. It must be one address, not a wildcard: the
// five-tuple of an allocation names it.
type Listener struct {
	Address  netip.AddrPort
	Protocol turn.Protocol
}

// listener is an open Listener with the flows of its clients. One that the configuration has no more is retired: whoever
// holds an allocation by it is served until that ends, and then it is closed.
type listener struct {
	Listener
	fds      []int // of UDP: at least one for each shard, or none over a virtual network
	distinct []int // those among fds that are sockets of their own
	conn     packetConn
	accepts  []accepter       // of the other protocols
	seats    stripes[*seat]   // by client
	streams  stripes[*stream] // by client

	retired atomic.Bool
	leaving bool // it is about to be closed; guarded by [opened]
	closed  bool // nothing is to be sent from it; guarded by the replier
}

func (l *listener) fiveTuple(client netip.AddrPort) turn.FiveTuple {
	return turn.FiveTuple{Client: client, Server: l.Address, Protocol: l.Protocol}
}
