package relay

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"turnstone/turn"
)

// counters count what one binding relayed in userspace.
type counters struct {
	toPeerPackets, toPeerBytes     atomic.Uint64
	toClientPackets, toClientBytes atomic.Uint64
	recorded                       turn.Usage // what the log knows or is about to; the committer's
}

func (c *counters) toPeer(bytes int) {
	c.toPeerPackets.Add(1)
	c.toPeerBytes.Add(uint64(bytes))
}

func (c *counters) toClient(bytes int) {
	c.toClientPackets.Add(1)
	c.toClientBytes.Add(uint64(bytes))
}

// changed is what c counted of a binding of id since it was last asked, false for nothing.
func (c *counters) changed(id turn.AllocationID, n turn.ChannelNumber, peer netip.AddrPort) (turn.UsageRecorded, bool) {
	u := turn.Usage{
		Channel: n, Peer: peer, Path: turn.PathUserspace,
		ToPeer:   turn.Count{Packets: c.toPeerPackets.Load(), Bytes: c.toPeerBytes.Load()},
		ToClient: turn.Count{Packets: c.toClientPackets.Load(), Bytes: c.toClientBytes.Load()},
	}
	if u.ToPeer == c.recorded.ToPeer && u.ToClient == c.recorded.ToClient {
		return turn.UsageRecorded{}, false
	}
	c.recorded = u
	return turn.UsageRecorded{
		Allocation: id, Channel: n, Peer: peer, Path: u.Path, ToPeer: u.ToPeer, ToClient: u.ToClient,
	}, true
}

// restore sets c to what the log knows.
func (c *counters) restore(u turn.Usage) {
	c.toPeerPackets.Store(u.ToPeer.Packets)
	c.toPeerBytes.Store(u.ToPeer.Bytes)
	c.toClientPackets.Store(u.ToClient.Packets)
	c.toClientBytes.Store(u.ToClient.Bytes)
	c.recorded = u
}

// peerCounters count what a TCP allocation relayed, by peer: over all its connections with one.
type peerCounters struct {
	mu sync.Mutex // guards of
	of map[netip.AddrPort]*counters
}

// connection is the counters of a peer.
func (f *flow) connection(peer netip.AddrPort) *counters {
	p := &f.connections
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.of[peer]
	if c == nil {
		if p.of == nil {
			p.of = map[netip.AddrPort]*counters{}
		}
		c = new(counters)
		p.of[peer] = c
	}
	return c
}

// changed is what was counted since it was last asked, by peer.
func (p *peerCounters) changed(id turn.AllocationID) (events []turn.Event) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, peer := range slices.SortedFunc(maps.Keys(p.of), netip.AddrPort.Compare) {
		if e, changed := p.of[peer].changed(id, 0, peer); changed {
			events = append(events, e)
		}
	}
	return events
}
