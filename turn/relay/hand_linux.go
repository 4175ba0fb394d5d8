package relay

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"
)

// hand takes what clients send to peers. A shard is one; streams borrow one for a batch of frames.
type hand struct {
	server *Server
	out    *outbox
	now    int64

	// turns counts the beginnings and ends of rounds: odd while sockets and flows are in hand.
	turns atomic.Uint64
}

func (h *hand) open(s *Server) {
	h.server = s
	h.out = newOutbox(s.stats.unsent)
}

func (h *hand) begin() {
	h.turns.Add(1)
	h.now = uptime()
}

func (h *hand) end() { h.turns.Add(1) }

// settle returns when the turn that h is in has ended.
func (h *hand) settle() {
	for t := h.turns.Load(); t&1 == 1 && h.turns.Load() == t; {
		time.Sleep(10 * time.Microsecond)
	}
}

// channelData relays a ChannelData message from e, which is nil for a client without an allocation.
func (h *hand) channelData(e *seat, frame []byte, hp hop) {
	st := &h.server.stats
	number, payload, err := turn.ParseChannelData(frame)
	if err != nil {
		st.drop(DropMalformed)
		return
	}
	if e == nil {
		st.drop(DropNoAllocation)
		return
	}
	b := e.flow.channel(number, h.now)
	if b == nil || b.socket == nil {
		st.drop(DropNoChannel)
		return
	}
	if e.coming.Load() {
		h.server.arrive(e)
	}
	h.toPeer(b.socket, b.peer, &b.toPeer, payload, hp, &b.counters)
}

// sendIndication relays a Send indication from e, likewise.
func (h *hand) sendIndication(e *seat, frame []byte, hp hop) {
	st := &h.server.stats
	peer, payload, dontFragment, err := turn.ParseSend(frame)
	switch {
	case errors.Is(err, turn.ErrUnknown):
		st.drop(DropUnsupported)
		return
	case err != nil:
		st.drop(DropMalformed)
		return
	}
	if e == nil {
		st.drop(DropNoAllocation)
		return
	}
	f := e.flow
	peer = h.server.surroundings.Load().private(peer)
	r := f.socketFor(peer.Addr())
	if r == nil || peer.Port() == 0 || !f.permits(peer.Addr(), h.now) {
		st.drop(DropNoPermission)
		return
	}
	to := sockaddrOf(peer)
	if hp.whole = dontFragment && e.wholeTo(peer.Addr()); dontFragment && !f.probes.Load() {
		f.probes.Store(true)
	}
	if e.coming.Load() {
		h.server.arrive(e)
	}
	h.toPeer(r, peer, &to, payload, hp, &f.indications)
}

// toPeer sends payload from a relayed address to a peer.
func (h *hand) toPeer(r *relayed, peer netip.AddrPort, to *sockaddr, payload []byte, hp hop, c *counters) {
	st := &h.server.stats
	switch {
	case hp.ttl <= 1:
		st.drop(DropTTL)
		return
	case !h.server.reachable(peer):
		st.drop(DropGuarded)
		return
	case !h.server.within(r.flow, toPeer, len(payload), h.now):
		return
	}
	hp.ttl--
	c.toPeer(len(payload))
	st.toPeerPackets.Add(1)
	st.toPeerBytes.Add(uint64(len(payload)))
	h.out.push(r.socket.(*rawSocket).fd, to, nil, payload, hp, false)
}

// hands are those that streams borrow. There are as many as were ever in use at once.
type hands struct {
	mu   sync.Mutex // guards the fields below
	all  []*hand
	free []*hand
}

// borrow is a hand that has begun its turn.
func (p *hands) borrow(s *Server) *hand {
	p.mu.Lock()
	var h *hand
	if n := len(p.free); n > 0 {
		h, p.free = p.free[n-1], p.free[:n-1]
	} else {
		h = new(hand)
		h.open(s)
		p.all = append(p.all, h)
	}
	p.mu.Unlock()
	h.begin()
	return h
}

// give sends what h has, and ends its turn.
func (p *hands) give(h *hand) {
	h.out.flush()
	h.end()
	p.mu.Lock()
	p.free = append(p.free, h)
	p.mu.Unlock()
}

func (p *hands) list() []*hand {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.all[:len(p.all):len(p.all)]
}
