package relay

import (
	"context"
	"sync"
	"time"

	"turnstone/turn"
)

// carrier is the datapath in force. While one takes the place of another, whoever needs it waits.
type carrier struct {
	mu       sync.Mutex    // guards the fields below
	now      Datapath      // nil: there is none
	changing chan struct{} // closed when now is another, nil while it stays
}

// any says whether revocations have to wait for a datapath, or for what takes its place.
func (c *carrier) any() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now != nil || c.changing != nil
}

// get is the datapath, nil for none.
func (c *carrier) get(ctx context.Context) (Datapath, error) {
	for {
		c.mu.Lock()
		d, changing := c.now, c.changing
		c.mu.Unlock()
		if changing == nil {
			return d, nil
		}
		select {
		case <-changing:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// replaced says whether d is not in force any more.
func (c *carrier) replaced(d Datapath) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.changing != nil || c.now != d
}

func (c *carrier) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.changing = make(chan struct{})
}

func (c *carrier) end(d Datapath) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = d
	if c.changing != nil {
		close(c.changing)
		c.changing = nil
	}
}

// Carry has another relay carry what the log grants. It is called before Run, if at all. Where the
// other has meters, they are shared: the caps hold for both together.
func (s *Server) Carry(d Datapath) {
	s.carrier.end(d)
	s.meter(d, s.surroundings.Load().caps)
}

// Uncarry begins to replace the datapath: when it returns nobody asks it anything any more. What is revoked from then on
// waits for [Server.CarryOn].
func (s *Server) Uncarry(ctx context.Context) error {
	s.carrier.begin()
	return s.task(ctx, func() {
		s.flows.meters.unshare(s.flows.byID)
		s.grace()
	})
}

// CarryOn ends what Uncarry began: d, nil for none, relays from here on, within caps, and nothing that was revoked.
func (s *Server) CarryOn(ctx context.Context, d Datapath, c turn.Caps) error {
	defer s.carrier.end(d)
	return s.task(ctx, func() { s.meter(d, c) })
}

// meter shares the meters of d. The flows are the caller's.
func (s *Server) meter(d Datapath, c turn.Caps) {
	m, ok := d.(Meters)
	if !ok || c == (turn.Caps{}) {
		return
	}
	s.flows.meters.share(m, s.flows.byID)
}

// task runs f in the committer and waits for it.
func (s *Server) task(ctx context.Context, f func()) error {
	done := make(chan struct{})
	select {
	case s.tasks <- func() { defer close(done); f() }:
		<-done
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return ErrStopped
	}
}

// StuckError says that a part of the server does not do its work any more.
type StuckError struct{ Part string }

func (e *StuckError) Error() string { return "stuck: " + e.Part }

// Alive is nil where the writer takes work and the loops over sockets go round, each within a time. A server
// whose log is being opened again lives.
func (s *Server) Alive(within time.Duration) error {
	turns := make([]uint64, len(s.shards))
	for i, h := range s.shards {
		turns[i] = h.turns.Load()
	}
	timer := time.NewTimer(within)
	defer timer.Stop()
	select {
	case s.pulse <- struct{}{}:
	case <-s.stopping:
		return nil
	case <-timer.C:
		if s.ready.Load() {
			return &StuckError{"the writer"}
		}
	}
	for i, h := range s.shards {
		for turns[i]&1 == 1 && h.turns.Load() == turns[i] {
			select {
			case <-timer.C:
				return &StuckError{"a loop over sockets"}
			case <-time.After(time.Millisecond):
			}
		}
	}
	return nil
}
