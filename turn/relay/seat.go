package relay

import (
	"net/netip"
	"sync/atomic"

	"turnstone/turn"
)

// seat is a five-tuple that the client of a flow has.
type seat struct {
	flow     *flow
	listener *listener
	client   netip.AddrPort
	stream   *stream // that the client is on, nil for UDP
	toClient sockaddr
	coming   atomic.Bool // the client moves here, and has sent no data from here
	left     atomic.Bool // it is not the client's any more; caches must not use it
}

// is says whether e, which may be nil, is the five-tuple t.
func (e *seat) is(t turn.FiveTuple) bool {
	return e != nil && e.listener.fiveTuple(e.client) == t
}

// of is the flow of e, which may be nil.
func (e *seat) of() *flow {
	if e == nil {
		return nil
	}
	return e.flow
}

// wholeTo says whether DONT-FRAGMENT is heeded in what goes from here to peer. Of datagrams it is only from IPv4 to IPv4
// (RFC 8656 section 13); what comes over TCP has no IP packet whose translation it could be (section 15).
func (e *seat) wholeTo(peer netip.Addr) bool {
	switch e.listener.Protocol {
	case turn.UDP, turn.DTLS:
		return e.client.Addr().Is4() && peer.Is4()
	}
	return true
}

// arrive has what peers send go to e from now on, where the client has just sent data from. That makes
// the five-tuple before it nobody's, which the writer is told.
func (s *Server) arrive(e *seat) {
	f := e.flow
	f.mu.Lock()
	arrived := f.next == e && e.coming.CompareAndSwap(true, false)
	f.settle()
	f.mu.Unlock()
	if arrived {
		s.moved.add(e.listener.fiveTuple(e.client))
	}
}

// settle has what peers send go to where the client is, with mu held.
func (f *flow) settle() {
	at := f.home
	if f.next != nil && !f.next.coming.Load() {
		at = f.next
	}
	f.at.Store(at)
}

// seat makes a seat of f at ft. It is none where the listener or the stream is gone: that is on its way to the log.
func (t *flows) seat(f *flow, ft turn.FiveTuple) *seat {
	l := t.listener(ft.Server, ft.Protocol)
	if l == nil {
		return nil
	}
	e := &seat{flow: f, listener: l, client: ft.Client, toClient: sockaddrOf(ft.Client)}
	if ft.Protocol != turn.UDP {
		if e.stream = l.streams.get(ft.Client); e.stream == nil {
			return nil
		}
		e.stream.attach(e)
	}
	return e
}

// unseat takes e, which may be nil, away from its flow.
func (t *flows) unseat(e *seat) {
	if e == nil {
		return
	}
	e.left.Store(true)
	if e.listener.seats.get(e.client) == e {
		e.listener.seats.delete(e.client)
	}
	if e.stream != nil {
		e.stream.detach(e)
	}
}

// places are the five-tuples of an allocation as the log has them: the one that data goes by, zero for a client
// that is adrift, and the one that it moves to, zero for one that stays.
type places struct{ home, next turn.FiveTuple }

func placesOf(a *turn.Allocation) (p places) {
	for ft := range a.FiveTuples() {
		if ft == a.Next {
			p.next = ft
		} else {
			p.home = ft
		}
	}
	return p
}

// move is p once the client has come to ft (see [turn.AllocationMoved]).
func (p places) move(ft turn.FiveTuple) places {
	if p.home == (turn.FiveTuple{}) {
		return places{home: ft}
	}
	return places{home: p.home, next: ft}
}

// leave is p once the client is not at ft any more (see [turn.FiveTupleLeft]).
func (p places) leave(ft turn.FiveTuple) places {
	if p.next == ft {
		return places{home: p.home}
	}
	return places{home: p.next}
}

// place gives f the seats that p wants. Those that it has already it keeps.
func (t *flows) place(f *flow, p places) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.places = p
	before := [...]*seat{f.home, f.next}
	take := func(ft turn.FiveTuple) *seat {
		for i, e := range before {
			if e.is(ft) {
				before[i] = nil
				return e
			}
		}
		if ft == (turn.FiveTuple{}) {
			return nil
		}
		return t.seat(f, ft)
	}
	kept := f.next
	f.home, f.next = take(p.home), take(p.next)
	for _, e := range before {
		t.unseat(e)
	}
	if f.home != nil {
		f.home.coming.Store(false)
	}
	switch {
	case f.next == nil:
	case f.next != kept:
		f.next.coming.Store(true)
	case !f.next.coming.Load():
		t.moved.add(p.next) // once more: the log may have lost that
	}
	f.settle()
	for _, e := range [...]*seat{f.home, f.next} {
		if e != nil {
			e.listener.seats.set(e.client, e)
		}
	}
}
