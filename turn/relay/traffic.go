package relay

import (
	"maps"
	"net/netip"
	"slices"

	"turnstone/turn"
)

// Traffic is what userspace has relayed so far for each binding there is: what the log will have of it at last. Channel 0 without
// a peer stands for indications, with one for connections. It may be called from any goroutine.
func (s *Server) Traffic() (out []turn.UsageRecorded) {
	t := &s.flows
	t.mu.Lock()
	all := slices.Collect(maps.Values(t.byID))
	t.mu.Unlock()
	for _, f := range all {
		out = append(out, f.indications.read(f.id, 0, netip.AddrPort{}))
		out = append(out, f.connections.read(f.id)...)
		for _, b := range f.grants.Load().byNumber {
			out = append(out, b.counters.read(f.id, b.number, b.peer))
		}
	}
	return out
}

func (c *counters) read(id turn.AllocationID, n turn.ChannelNumber, peer netip.AddrPort) turn.UsageRecorded {
	return turn.UsageRecorded{
		Allocation: id, Channel: n, Peer: peer, Path: turn.PathUserspace,
		ToPeer:   turn.Count{Packets: c.toPeerPackets.Load(), Bytes: c.toPeerBytes.Load()},
		ToClient: turn.Count{Packets: c.toClientPackets.Load(), Bytes: c.toClientBytes.Load()},
	}
}

func (p *peerCounters) read(id turn.AllocationID) (out []turn.UsageRecorded) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for peer, c := range p.of {
		out = append(out, c.read(id, 0, peer))
	}
	return out
}
