package relay

import (
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"
)

// flows is the flow table: what the log grants, as the data path looks it up. The
// committer changes it, the shards read it.
type flows struct {
	mu       sync.Mutex // guards byID, which only the committer changes
	byID     map[turn.AllocationID]*flow
	relayed  stripes[*flow] // by relayed address, for peers on this host
	sockets  *socketPool
	meters   *meters  // nil: there are no caps
	closing  []socket // of flows that were removed
	len      atomic.Int64
	listener func(netip.AddrPort, turn.Protocol) *listener
	conns    *peerConns
	moved    *reports // where clients have moved to
}

// transportTCP is REQUESTED-TRANSPORT of a TCP allocation.
const transportTCP = 6

// of is the flow of an allocation, for whoever is not the committer.
func (t *flows) of(id turn.AllocationID) *flow {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.byID[id]
}

// stripes is a map by address in pieces with a lock each, so that shards do not
// wait for each other.
type stripes[V any] [32]struct {
	mu sync.RWMutex // guards m
	m  map[netip.AddrPort]V
	_  [24]byte
}

func stripe(a netip.AddrPort) int {
	ip := a.Addr().As16()
	return int(uint16(ip[15])^uint16(ip[14])^a.Port()^a.Port()>>5) & 31
}

func (s *stripes[V]) get(a netip.AddrPort) V {
	p := &s[stripe(a)]
	p.mu.RLock()
	v := p.m[a]
	p.mu.RUnlock()
	return v
}

func (s *stripes[V]) set(a netip.AddrPort, v V) {
	p := &s[stripe(a)]
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[netip.AddrPort]V{}
	}
	p.m[a] = v
}

// add sets a to v unless there is something already.
func (s *stripes[V]) add(a netip.AddrPort, v V) bool {
	p := &s[stripe(a)]
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, taken := p.m[a]; taken {
		return false
	}
	if p.m == nil {
		p.m = map[netip.AddrPort]V{}
	}
	p.m[a] = v
	return true
}

func (s *stripes[V]) delete(a netip.AddrPort) {
	p := &s[stripe(a)]
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.m, a)
}

// apply publishes the events of a durable record that happened at m. It yields the final usage of
// what ended.
func (t *flows) apply(r turn.Record) (final []turn.Event) {
	end := func(d time.Duration) int64 { return int64(r.Moment.Uptime + d) }
	on := func(id turn.AllocationID, f func(*flow)) {
		if fl := t.byID[id]; fl != nil {
			f(fl)
		}
	}
	for _, e := range r.Events {
		switch e := e.(type) {
		case turn.AllocationCreated:
			f := t.add(newFlow(e.Allocation, turn.HolderOf(e.Realm, e.Username)), e.Transport == transportTCP, e.Relayed, r.Moment.Uptime+time.Duration(e.Lifetime)*time.Second)
			t.place(f, places{home: e.FiveTuple})
		case turn.AllocationMoved:
			on(e.Allocation, func(f *flow) { t.place(f, f.places.move(e.FiveTuple)) })
		case turn.FiveTupleLeft:
			on(e.Allocation, func(f *flow) { t.place(f, f.places.leave(e.FiveTuple)) })
		case turn.AllocationRefreshed:
			on(e.Allocation, func(f *flow) { f.prolong(end(time.Duration(e.Lifetime)*time.Second), netip.AddrPort{}) })
		case turn.AllocationDeleted:
			final = append(final, t.remove(e.Allocation)...)
		case turn.AllocationExpired:
			final = append(final, t.remove(e.Allocation)...)
		case turn.PermissionInstalled:
			on(e.Allocation, func(f *flow) { f.permit(e.Peer, time.Duration(end(turn.PermissionLifetime))) })
		case turn.PermissionExpired:
			on(e.Allocation, func(f *flow) { f.unpermit(e.Peer) })
		case turn.PermissionRevoked:
			on(e.Allocation, func(f *flow) { f.unpermit(e.Peer) })
		case turn.ChannelBound:
			on(e.Allocation, func(f *flow) {
				f.permit(e.Peer.Addr(), time.Duration(end(turn.PermissionLifetime)))
				f.bind(e.Channel, e.Peer, time.Duration(end(turn.ChannelLifetime)))
			})
		case turn.ChannelExpired:
			on(e.Allocation, func(f *flow) { final = append(final, f.endChannel(e.Channel)...) })
		case turn.ChannelRevoked:
			on(e.Allocation, func(f *flow) { final = append(final, f.endChannel(e.Channel)...) })
		case turn.TokenAccepted:
			on(e.Allocation, func(f *flow) { f.token.Store(&e.Token) })
		case turn.RelayedRefreshed:
			on(e.Allocation, func(f *flow) { f.prolong(end(time.Duration(e.Lifetime)*time.Second), e.Relayed) })
		case turn.RelayedDeleted:
			on(e.Allocation, func(f *flow) { final = append(final, t.unrelay(f, e.Relayed)...) })
		case turn.RelayedExpired:
			on(e.Allocation, func(f *flow) { final = append(final, t.unrelay(f, e.Relayed)...) })
		case turn.PeerDisconnected:
			t.conns.end(e.Connection)
		case turn.ReservationExpired:
			t.release(e.Relayed)
		case turn.ReservationRevoked:
			t.release(e.Relayed)
		}
	}
	return final
}

// add adds the flow of an allocation, whose sockets the pool has. Its client has no seat yet.
func (t *flows) add(f *flow, tcp bool, addresses []netip.AddrPort, deadline time.Duration) *flow {
	if t.meters != nil {
		t.meters.give(f)
	}
	for _, a := range addresses {
		s, ok := t.sockets.take(a)
		if !ok {
			continue
		}
		r := &relayed{address: a, socket: s, flow: f}
		r.deadline.Store(int64(deadline))
		if tcp {
			f.takers = append(f.takers, r)
		} else {
			f.sockets = append(f.sockets, r)
		}
	}
	t.mu.Lock()
	t.byID[f.id] = f
	t.mu.Unlock()
	t.len.Add(1)
	for _, r := range f.sockets {
		t.relayed.set(r.address, f)
	}
	for _, r := range f.addresses() {
		r.socket.serve(r)
	}
	return f
}

// remove ends a flow. Its sockets are left in closing: a shard may have them in hand.
func (t *flows) remove(id turn.AllocationID) []turn.Event {
	f := t.byID[id]
	if f == nil {
		return nil
	}
	f.gone.Store(true)
	t.mu.Lock()
	delete(t.byID, id)
	t.mu.Unlock()
	t.len.Add(-1)
	t.place(f, places{})
	for _, r := range f.addresses() {
		t.end(r)
	}
	if len(f.takers) > 0 {
		t.conns.close(func(c *peerConn) bool { return c.allocation == id })
	}
	if t.meters != nil {
		t.meters.take(f)
	}
	return f.changedUsage()
}

// end ends one of the relayed addresses of a flow.
func (t *flows) end(r *relayed) {
	if r.ended {
		return
	}
	r.ended = true
	r.deadline.Store(0)
	t.relayed.delete(r.address)
	r.socket.stop()
	t.closing = append(t.closing, r.socket)
}

// unrelay ends a relayed address of f, with what goes by it. It yields the final usage of that.
func (t *flows) unrelay(f *flow, a netip.AddrPort) (final []turn.Event) {
	t.conns.close(func(c *peerConn) bool { return c.allocation == f.id && c.peer.Addr().Is4() == a.Addr().Is4() })
	for _, r := range f.addresses() {
		if r.address == a {
			t.end(r)
		}
	}
	g := f.grants.Load()
	for _, b := range g.byNumber {
		if b.peer.Addr().Is4() == a.Addr().Is4() {
			final = append(final, f.endChannel(b.number)...)
		}
	}
	for _, p := range g.permissions {
		if p.peer.Is4() == a.Addr().Is4() {
			f.unpermit(p.peer)
		}
	}
	return final
}

// release closes the socket of a reservation that has ended: nothing was relayed through it.
func (t *flows) release(a netip.AddrPort) {
	if s, ok := t.sockets.take(a); ok {
		s.close()
	}
}

// adopt makes the flow of an allocation of a replayed state.
func (t *flows) adopt(a *turn.Allocation) {
	f := t.add(newFlow(a.ID, turn.HolderOf(a.Realm, a.Username)), a.TCP(), a.Relayed, a.Deadline.Uptime)
	f.assume(a)
	t.place(f, placesOf(a))
}

// reconcile makes t what s says, after a recovery. It yields the final usage of what ended.
func (t *flows) reconcile(s *turn.State) (final []turn.Event) {
	for id := range t.byID {
		if s.Allocation(id) == nil {
			final = append(final, t.remove(id)...)
		}
	}
	for a := range s.Allocations() {
		if f := t.byID[a.ID]; f != nil {
			for _, r := range f.sockets {
				if !slices.Contains(a.Relayed, r.address) {
					final = append(final, t.unrelay(f, r.address)...)
				}
			}
			f.assume(a)
			t.place(f, placesOf(a))
		} else {
			t.adopt(a)
		}
	}
	return final
}

// usage is what changed since it was last recorded.
func (t *flows) usage() (events []turn.Event) {
	for _, f := range t.byID {
		events = append(events, f.changedUsage()...)
	}
	return events
}
