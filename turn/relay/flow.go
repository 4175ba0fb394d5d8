package relay

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"
)

// flow is what the data path knows of one allocation: durable grants only. Their
// deadlines, in uptime nanoseconds, are checked for every datagram. The committer changes
// it, the shards read it.
type flow struct {
	id      turn.AllocationID
	holder  turn.Holder
	at      atomic.Pointer[seat] // where what peers send goes, nil for nowhere
	sockets []*relayed
	probes  atomic.Bool // its client has sent with DONT-FRAGMENT
	takers  []*relayed  // of TCP, in place of sockets
	gone    atomic.Bool // the allocation has ended; caches must not use it
	grants  atomic.Pointer[grants]
	token   atomic.Pointer[turn.SealedToken] // that the client proved itself by, nil for none
	words   [2]atomic.Pointer[turn.Words]    // by direction, nil where there are no caps
	own     [2]uint64                        // of them
	lent    uint32                           // what is to be given back for those that a datapath shares, 0 for nothing

	indications counters // of Send and Data
	connections peerCounters
	past        map[pastBinding]turn.Usage // of bindings that have ended; the committer's
	places      places                     // the committer's

	mu         sync.Mutex // guards home and next, and changes of at
	home, next *seat      // where the client is and where it moves to, nil for nowhere
}

// pastBinding names a binding whose counts go on if it is bound again.
type pastBinding struct {
	number turn.ChannelNumber
	peer   netip.AddrPort
}

// relayed is the socket of one relayed transport address.
type relayed struct {
	address  netip.AddrPort
	socket   socket
	flow     *flow
	deadline atomic.Int64
	ended    bool // before its flow; the committer's
}

func newFlow(id turn.AllocationID, h turn.Holder) *flow {
	f := &flow{id: id, holder: h}
	f.grants.Store(&noGrants)
	return f
}

// Directions of a flow.
const (
	toPeer = iota
	toClient
)

// channel is the live binding of a number, nil where there is none.
func (f *flow) channel(n turn.ChannelNumber, now int64) *binding {
	b := f.grants.Load().channel(n)
	if b == nil || b.deadline.Load() <= now || b.socket == nil || b.socket.deadline.Load() <= now {
		return nil
	}
	return b
}

// fromPeer is what becomes of a datagram of peer: dropped where it has no
// permission, sent by its channel where one is bound, else as an indication.
func (f *flow) fromPeer(peer netip.AddrPort, now int64) (b *binding, permitted bool) {
	if !f.permits(peer.Addr(), now) {
		return nil, false
	}
	if b = f.grants.Load().channelTo(peer); b != nil && b.deadline.Load() <= now {
		b = nil
	}
	return b, true
}

// permits says whether peer and the client may send to each other.
func (f *flow) permits(peer netip.Addr, now int64) bool {
	r := f.socketFor(peer)
	return r != nil && r.permits(peer, now)
}

// permits says whether peer may send to r.
func (r *relayed) permits(peer netip.Addr, now int64) bool {
	p := r.flow.grants.Load().permission(peer)
	return p != nil && p.deadline.Load() > now && r.deadline.Load() > now
}

// addresses are the relayed addresses of f, of either kind.
func (f *flow) addresses() []*relayed {
	if len(f.takers) > 0 {
		return f.takers
	}
	return f.sockets
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

// prolong moves the end of a relayed address, or of all where a is none.
func (f *flow) prolong(until int64, a netip.AddrPort) {
	for _, r := range f.addresses() {
		if !r.ended && (!a.IsValid() || r.address == a) {
			r.deadline.Store(until)
		}
	}
}

// permit installs or moves a permission.
func (f *flow) permit(peer netip.Addr, until time.Duration) {
	g := f.grants.Load()
	p := g.permission(peer)
	if p == nil {
		p = &permission{peer: peer}
		p.deadline.Store(int64(until))
		f.grants.Store(g.withPermission(p))
		return
	}
	p.deadline.Store(int64(until))
}

// bind binds or refreshes a channel.
func (f *flow) bind(n turn.ChannelNumber, peer netip.AddrPort, until time.Duration) {
	g := f.grants.Load()
	if b := g.channel(n); b != nil && b.peer == peer {
		b.deadline.Store(int64(until))
		return
	}
	b := &binding{number: n, peer: peer, toPeer: sockaddrOf(peer), socket: f.socketFor(peer.Addr())}
	b.counters.restore(f.past[pastBinding{n, peer}])
	b.deadline.Store(int64(until))
	f.grants.Store(g.withBinding(b))
}

func (f *flow) unbind(n turn.ChannelNumber) *binding {
	g := f.grants.Load()
	b := g.channel(n)
	if b != nil {
		f.grants.Store(g.withoutBinding(b))
	}
	return b
}

func (f *flow) unpermit(peer netip.Addr) {
	g := f.grants.Load()
	if p := g.permission(peer); p != nil {
		f.grants.Store(g.withoutPermission(p))
	}
}

// endChannel removes a channel and yields its last usage.
func (f *flow) endChannel(n turn.ChannelNumber) []turn.Event {
	b := f.unbind(n)
	if b == nil {
		return nil
	}
	e, changed := b.counters.changed(f.id, n, b.peer)
	if b.counters.recorded != (turn.Usage{}) {
		if f.past == nil {
			f.past = map[pastBinding]turn.Usage{}
		}
		f.past[pastBinding{n, b.peer}] = b.counters.recorded
	}
	if !changed {
		return nil
	}
	return []turn.Event{e}
}

// changedUsage is what the counters of f say that the log does not know yet.
// It marks it as known. Only the committer calls it.
func (f *flow) changedUsage() (events []turn.Event) {
	if e, changed := f.indications.changed(f.id, 0, netip.AddrPort{}); changed {
		events = append(events, e)
	}
	events = append(events, f.connections.changed(f.id)...)
	for _, b := range f.grants.Load().byNumber {
		if e, changed := b.counters.changed(f.id, b.number, b.peer); changed {
			events = append(events, e)
		}
	}
	return events
}

// held is the access token of f, which may be nil and may have none.
func (f *flow) held() turn.SealedToken {
	if f == nil {
		return nil
	}
	if t := f.token.Load(); t != nil {
		return *t
	}
	return nil
}

// assume makes the grants of f those of a.
func (f *flow) assume(a *turn.Allocation) {
	for _, r := range f.addresses() {
		f.prolong(int64(a.DeadlineFor(r.address.Addr()).Uptime), r.address)
	}
	f.token.Store(&a.Token)
	before := f.grants.Load()
	for _, b := range before.byNumber {
		if c := a.Channel(b.number); c == nil || c.Peer != b.peer {
			f.endChannel(b.number)
		}
	}
	for _, p := range before.permissions {
		if a.Permission(p.peer) == nil {
			f.unpermit(p.peer)
		}
	}
	for _, p := range a.Permissions {
		f.permit(p.Peer, p.Deadline.Uptime)
	}
	for _, u := range a.Usage {
		if u.Path == turn.PathUserspace {
			f.restore(u)
		}
	}
	for _, c := range a.Channels {
		f.bind(c.Number, c.Peer, c.Deadline.Uptime)
	}
}

// restore sets the counters that u is about to u, unless they have counted already.
func (f *flow) restore(u turn.Usage) {
	if u.Channel == 0 {
		if f.indications.recorded == (turn.Usage{}) {
			f.indications.restore(u)
		}
		return
	}
	key := pastBinding{u.Channel, u.Peer}
	if b := f.grants.Load().channel(u.Channel); b != nil && b.peer == u.Peer {
		return
	}
	if _, known := f.past[key]; known {
		return
	}
	if f.past == nil {
		f.past = map[pastBinding]turn.Usage{}
	}
	f.past[key] = u
}
