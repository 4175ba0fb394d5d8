package relay

import (
	"net/netip"
	"sync"

	"turnstone/turn"
)

// socket is a relayed transport address, or a listener, as it is opened and closed.
type socket interface {
	serve(r *relayed) // begins to receive for r
	stop()            // ends that; who receives just now is not waited for
	close()
}

// socketPool holds the sockets that were opened for allocations which are not durable yet, and
// those of reservations.
type socketPool struct {
	mu sync.Mutex // guards m
	m  map[netip.AddrPort]socket
}

func (p *socketPool) put(a netip.AddrPort, s socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m == nil {
		p.m = map[netip.AddrPort]socket{}
	}
	p.m[a] = s
}

func (p *socketPool) take(a netip.AddrPort) (socket, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	s, ok := p.m[a]
	delete(p.m, a)
	return s, ok
}

// all are those that nobody has taken.
func (p *socketPool) all() (list []socket) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, s := range p.m {
		list = append(list, s)
	}
	return list
}

// closeAll closes what nobody took, sockets of events that were never durable, but for
// those of the reservations of state; nil for none.
func (p *socketPool) closeAll(state *turn.State) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for a, s := range p.m {
		if state == nil || state.Reserved(a) == nil {
			s.close()
			delete(p.m, a)
		}
	}
}
