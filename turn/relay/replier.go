package relay

import (
	"sync"
)

// replier sends replies from outside the shards.
type replier struct {
	mu  sync.Mutex // guards out
	out *outbox    // nil over a virtual network
}

func (s *Server) newReplier() {
	if s.config.Net == nil {
		s.replies.out = newOutbox(s.stats.unsent)
	}
}

// release sends the replies of b and tells whoever waits for it.
func (s *Server) release(b *batch) {
	s.withdrawer.lift(b.held)
	s.replies.mu.Lock()
	for _, r := range b.replies {
		s.replies.send(r, b.bytes[r.from:r.to])
	}
	s.replies.flush()
	s.replies.mu.Unlock()
	b.settle(nil)
	s.recycle(b)
}

func (p *replier) send(r outgoing, b []byte) {
	if r.stream != nil {
		r.stream.bound.Store(uint32(r.bound))
		r.stream.reply(b)
		if !r.unasked {
			r.stream.answered()
		}
		return
	}
	if r.listener.closed {
		return
	}
	if p.out == nil {
		_, _ = r.listener.conn.WriteTo(b, udpAddr(r.client)) // as lossy as the network
		return
	}
	to := sockaddrOf(r.client)
	p.out.push(r.listener.fds[r.shard%len(r.listener.fds)], &to, b, nil, hop{}, true)
}

func (p *replier) flush() {
	if p.out != nil {
		p.out.flush()
	}
}
