package relay

import (
	"context"
	"sync"
	"time"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

const (
	usageEvery    = 5 * time.Minute
	refusalsEvery = time.Minute
)

// failure is a batch whose record may or may not be durable.
type failure struct {
	batch *batch
	err   error
}

// commitAll makes one batch after the other durable, publishes it and lets its
// replies go, until there are no more.
func (s *Server) commitAll() {
	usage, refusals := time.NewTicker(usageEvery), time.NewTicker(refusalsEvery)
	defer usage.Stop()
	defer refusals.Stop()
	for {
		select {
		case b, more := <-s.commits:
			if !more {
				s.withdrawals.Wait()
				return
			}
			if err := s.commit(b); err != nil {
				s.failures <- failure{b, err}
				<-s.resumed
			}
		case <-usage.C:
			s.posted.add(s.flows.usage()...)
		case <-refusals.C:
			if e, ok := s.refusals.take(); ok {
				s.posted.add(e)
			}
		}
	}
}

// commit is the order everything rests on: durable, then published, then gone
// from the kernel, then answered.
func (s *Server) commit(b *batch) error {
	if len(b.record.Events) > 0 {
		if err := s.config.Log.Append(b.record); err != nil {
			return err
		}
		s.stats.commits.Add(1)
		s.stats.events.Add(uint64(len(b.record.Events)))
		s.posted.add(s.flows.apply(b.record)...)
	}
	if b.usage {
		s.posted.add(s.flows.usage()...)
	}
	if !b.ends {
		s.release(b)
		return nil
	}
	s.grace()
	closing := s.flows.closing
	s.flows.closing = nil
	if s.config.Datapath == nil {
		closeSockets(closing)
		s.release(b)
		return nil
	}
	s.withdrawals.Go(func() { s.withdraw(b, closing) })
	return nil
}

// withdraw lets the kernel forget what b revokes before b is answered and its ports are free.
func (s *Server) withdraw(b *batch, closing []socket) {
	if err := s.config.Datapath.Withdraw(context.Background(), b.record.Last()); err != nil {
		s.log.Error().Err(err).Uint64("seq", uint64(b.record.Last())).
			Msg("the kernel does not confirm a revocation: it is not answered, and its ports stay closed to others")
		b.settle(err)
		return
	}
	closeSockets(closing)
	s.release(b)
}

func closeSockets(list []socket) {
	for _, c := range list {
		c.close()
	}
}

// closeRemoved closes the sockets of removed flows once no shard has them in hand.
func (s *Server) closeRemoved() {
	s.grace()
	closeSockets(s.flows.closing)
	s.flows.closing = nil
}

// grace returns when every shard has let go of the flows and sockets it had in hand.
func (s *Server) grace() {
	for _, h := range s.shards {
		for t := h.turns.Load(); t&1 == 1 && h.turns.Load() == t; {
			time.Sleep(10 * time.Microsecond)
		}
	}
}

// release sends the replies of b and tells whoever waits for it.
func (s *Server) release(b *batch) {
	s.replies.mu.Lock()
	for _, r := range b.replies {
		s.replies.send(r, b.bytes[r.from:r.to])
	}
	s.replies.flush()
	s.replies.mu.Unlock()
	b.settle(nil)
	s.recycle(b)
}

// replier sends replies from outside the shards.
type replier struct {
	mu  sync.Mutex // guards out
	out *outbox    // nil over a virtual network
}

func (p *replier) send(r outgoing, b []byte) {
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

func (s *Server) newReplier() {
	if s.config.Net == nil {
		s.replies.out = newOutbox(func(n int, _ unix.Errno) { s.stats.drops[DropSend].Add(uint64(n)) })
	}
}

// posted are events on their way to the writer from those that must not wait for it.
type posted struct {
	mu     sync.Mutex // guards events
	events []turn.Event
	wake   chan struct{}
}

func (p *posted) add(events ...turn.Event) {
	if len(events) == 0 {
		return
	}
	p.mu.Lock()
	p.events = append(p.events, events...)
	p.mu.Unlock()
	p.signal()
}

func (p *posted) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take yields at most limit events, all of them for limit 0. What is left signals again.
func (p *posted) take(limit int) []turn.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	if limit == 0 || limit > len(p.events) {
		limit = len(p.events)
	}
	events := p.events[:limit:limit]
	p.events = p.events[limit:]
	if len(p.events) > 0 {
		p.signal()
	}
	return events
}
