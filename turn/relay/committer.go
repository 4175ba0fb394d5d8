package relay

import (
	"time"
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
				return
			}
			if err := s.commit(b); err != nil {
				s.failures <- failure{b, err}
				<-s.resumed // or closed: the writer has ended
			}
		case f := <-s.tasks:
			f()
		case <-usage.C:
			s.posted.add(s.flows.usage()...)
		case <-refusals.C:
			s.postRefusals()
		}
	}
}

// commit is the order everything rests on: durable, then published, then gone
// from the kernel, then answered.
func (s *Server) commit(b *batch) error {
	if len(b.record.Events) > 0 {
		began := s.clock().Uptime
		if err := s.config.Log.Append(b.record); err != nil {
			return err
		}
		done := s.clock().Uptime
		s.stats.appended.add(done - b.record.Moment.Uptime)
		s.stats.committed.add(done - began)
		s.stats.commits.Add(1)
		s.stats.events.Add(uint64(len(b.record.Events)))
		s.posted.add(s.flows.apply(b.record)...)
	}
	b.tellStored(nil)
	if b.last {
		s.posted.add(s.flows.usage()...)
		s.postRefusals()
	}
	if b.durable != nil {
		close(b.durable)
	}
	if !b.ends {
		s.release(b)
		return nil
	}
	s.grace()
	closing := s.flows.closing
	s.flows.closing = nil
	if !s.carrier.any() {
		closeSockets(closing)
		s.release(b)
		return nil
	}
	s.withdrawer.add(withdrawal{batch: b, sockets: closing, up: b.record.Last()})
	return nil
}

func (s *Server) postRefusals() {
	if e, ok := s.refusals.take(s.clock()); ok {
		s.posted.add(e)
	}
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

// grace returns when every hand has let go of the flows and sockets it had in hand.
func (s *Server) grace() {
	for _, h := range s.shards {
		h.settle()
	}
	for _, h := range s.hands.list() {
		h.settle()
	}
}
