package relay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"
)

// flow is what the data path knows of one allocation: durable grants only. Its
// deadlines, in uptime nanoseconds, are checked for every datagram.
type flow struct {
	id       turn.AllocationID
	listener *listener
	client   netip.AddrPort
	toClient sockaddr
	sockets  []*relayed
	deadline atomic.Int64
	gone     atomic.Bool // the allocation has ended; caches must not use it

	indications counters                   // of Send and Data
	past        map[pastBinding]turn.Usage // of bindings that have ended; the committer's

	mu          sync.RWMutex // guards the maps; the counters and deadlines in them are atomic
	byNumber    map[turn.ChannelNumber]*binding
	byPeer      map[netip.AddrPort]*binding
	permissions map[netip.Addr]*atomic.Int64
}

// binding is a channel. It stays the same while it is refreshed.
type binding struct {
	number   turn.ChannelNumber
	peer     netip.AddrPort
	toPeer   sockaddr
	socket   *relayed
	deadline atomic.Int64

	counters counters
}

// pastBinding names a binding whose counts go on if it is bound again.
type pastBinding struct {
	number turn.ChannelNumber
	peer   netip.AddrPort
}

// counters count what one binding relayed in userspace.
type counters struct {
	toPeerPackets, toPeerBytes     atomic.Uint64
	toClientPackets, toClientBytes atomic.Uint64
	recorded                       turn.Usage // what the log knows; the committer's
}

func (c *counters) usage(n turn.ChannelNumber, peer netip.AddrPort) turn.Usage {
	return turn.Usage{
		Channel: n, Peer: peer, Path: turn.PathUserspace,
		ToPeer:   turn.Count{Packets: c.toPeerPackets.Load(), Bytes: c.toPeerBytes.Load()},
		ToClient: turn.Count{Packets: c.toClientPackets.Load(), Bytes: c.toClientBytes.Load()},
	}
}

// restore sets c to what the log knows.
func (c *counters) restore(u turn.Usage) {
	c.toPeerPackets.Store(u.ToPeer.Packets)
	c.toPeerBytes.Store(u.ToPeer.Bytes)
	c.toClientPackets.Store(u.ToClient.Packets)
	c.toClientBytes.Store(u.ToClient.Bytes)
	c.recorded = u
}

// relayed is the socket of one relayed transport address.
type relayed struct {
	address netip.AddrPort
	socket  socket
	flow    *flow
}

// channel is the live binding of a number, nil where there is none.
func (f *flow) channel(n turn.ChannelNumber, now int64) *binding {
	f.mu.RLock()
	b := f.byNumber[n]
	f.mu.RUnlock()
	if b == nil || b.deadline.Load() <= now || f.deadline.Load() <= now {
		return nil
	}
	return b
}

// fromPeer is what becomes of a datagram of peer: dropped where it has no
// permission, sent by its channel where one is bound, else as an indication.
func (f *flow) fromPeer(peer netip.AddrPort, now int64) (b *binding, permitted bool) {
	f.mu.RLock()
	b = f.byPeer[peer]
	permission := f.permissions[peer.Addr()]
	f.mu.RUnlock()
	if permission == nil || permission.Load() <= now || f.deadline.Load() <= now {
		return nil, false
	}
	if b != nil && b.deadline.Load() <= now {
		b = nil
	}
	return b, true
}

// permits says whether the client may send to peer by an indication.
func (f *flow) permits(peer netip.Addr, now int64) bool {
	f.mu.RLock()
	permission := f.permissions[peer]
	f.mu.RUnlock()
	return permission != nil && permission.Load() > now && f.deadline.Load() > now
}

// socketFor is the socket of the family of peer, nil where there is none.
func (f *flow) socketFor(peer netip.Addr) *relayed {
	for _, r := range f.sockets {
		if r.address.Addr().Is4() == peer.Is4() {
			return r
		}
	}
	return nil
}

// permit installs or moves a permission.
func (f *flow) permit(peer netip.Addr, until time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p := f.permissions[peer]
	if p == nil {
		p = new(atomic.Int64)
		f.permissions[peer] = p
	}
	p.Store(int64(until))
}

// bind binds or refreshes a channel.
func (f *flow) bind(n turn.ChannelNumber, peer netip.AddrPort, until time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.byNumber[n]
	if b == nil || b.peer != peer {
		b = &binding{number: n, peer: peer, toPeer: sockaddrOf(peer), socket: f.socketFor(peer.Addr())}
		b.counters.restore(f.past[pastBinding{n, peer}])
		f.byNumber[n], f.byPeer[peer] = b, b
	}
	b.deadline.Store(int64(until))
}

func (f *flow) unbind(n turn.ChannelNumber) *binding {
	f.mu.Lock()
	defer f.mu.Unlock()
	b := f.byNumber[n]
	if b != nil {
		delete(f.byNumber, n)
		delete(f.byPeer, b.peer)
	}
	return b
}

// retire keeps what an ended binding has counted.
func (f *flow) retire(u turn.Usage) {
	if f.past == nil {
		f.past = map[pastBinding]turn.Usage{}
	}
	f.past[pastBinding{u.Channel, u.Peer}] = u
}

func (f *flow) unpermit(peer netip.Addr) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.permissions, peer)
}

// changedUsage is what the counters of f say that the log does not know yet.
// It marks it as known. Only the committer calls it.
func (f *flow) changedUsage() []turn.Event {
	var events []turn.Event
	add := func(c *counters, n turn.ChannelNumber, peer netip.AddrPort) {
		if u := c.usage(n, peer); u.ToPeer != c.recorded.ToPeer || u.ToClient != c.recorded.ToClient {
			c.recorded = u
			events = append(events, turn.UsageRecorded{
				Allocation: f.id, Channel: n, Peer: peer, Path: u.Path, ToPeer: u.ToPeer, ToClient: u.ToClient,
			})
		}
	}
	add(&f.indications, 0, netip.AddrPort{})
	f.mu.RLock()
	defer f.mu.RUnlock()
	for _, b := range f.byNumber {
		add(&b.counters, b.number, b.peer)
	}
	return events
}
