package relay

import (
	"context"
	"sync"
	"time"

	"turnstone/turn"
)

const (
	withdrawRetry = time.Second     // after the kernel did not confirm
	withdrawLast  = 2 * time.Second // that a server which stops waits for the kernel
)

// withdrawal is a durable batch whose revocations the kernel has not confirmed yet. Until
// then its sockets stay open, so that nobody else gets their ports.
type withdrawal struct {
	batch   *batch
	sockets []socket
	up      turn.Seq
}

// withdrawer has the kernel forget what was revoked, away from the committer:
// whatever the kernel does, others are answered.
type withdrawer struct {
	mu    sync.Mutex // guards the fields below
	queue []withdrawal
	held  map[transaction]struct{} // whose success is not to be told yet, by a retransmission either
	ends  bool

	wake chan struct{}
}

func (w *withdrawer) add(d withdrawal) {
	w.mu.Lock()
	w.queue = append(w.queue, d)
	w.mu.Unlock()
	w.signal()
}

// end lets the loop end once the queue is empty.
func (w *withdrawer) end() {
	w.mu.Lock()
	w.ends = true
	w.mu.Unlock()
	w.signal()
}

func (w *withdrawer) signal() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

func (w *withdrawer) take() (queue []withdrawal, ends bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	queue, w.queue = w.queue, nil
	return queue, w.ends
}

// hold keeps the answer to t from leaving before the batch that holds t is released.
func (w *withdrawer) hold(t transaction) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.held == nil {
		w.held = map[transaction]struct{}{}
	}
	w.held[t] = struct{}{}
}

func (w *withdrawer) holds(t transaction) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	_, held := w.held[t]
	return held
}

func (w *withdrawer) lift(list []transaction) {
	if len(list) == 0 {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, t := range list {
		delete(w.held, t)
	}
}

// withdrawAll withdraws until the withdrawer ends or ctx does, and yields the
// sockets whose revocation was never confirmed. What fails is tried again: its
// replies are lost, its ports are quarantined until the kernel confirms.
func (s *Server) withdrawAll(ctx context.Context) (quarantined []socket) {
	var waiting []withdrawal
	var settling sync.WaitGroup
	defer settling.Wait()
	for {
		more, ends := s.withdrawer.take()
		waiting = append(waiting, more...)
		if len(waiting) == 0 {
			if ends {
				return nil
			}
			<-s.withdrawer.wake
			continue
		}
		up := waiting[len(waiting)-1].up
		d, err := s.carrier.get(ctx)
		if d != nil {
			err = d.Withdraw(ctx, up)
		}
		if err != nil && ctx.Err() == nil && s.carrier.replaced(d) {
			continue
		}
		if err == nil {
			var sockets []socket
			for _, d := range waiting {
				s.release(d.batch)
				sockets = append(sockets, d.sockets...)
			}
			settling.Go(func() { s.settle(ctx, up, sockets) })
			waiting = nil
			continue
		}
		s.log.Error().Err(err).Uint64("seq", uint64(up)).
			Msg("the kernel does not confirm a revocation: it is not answered, and its ports stay closed to others")
		for i := range waiting {
			waiting[i].batch.fail(err)
		}
		if ends || !pauseFor(ctx, withdrawRetry) {
			more, _ := s.withdrawer.take()
			for _, d := range append(waiting, more...) {
				d.batch.fail(err)
				quarantined = append(quarantined, d.sockets...)
			}
			return quarantined
		}
	}
}

// settle closes the sockets of what was revoked up to a sequence once the kernel has nothing of it
// in hand any more: before that nobody else may get their ports.
func (s *Server) settle(ctx context.Context, up turn.Seq, sockets []socket) {
	for len(sockets) > 0 {
		d, err := s.carrier.get(ctx)
		if d != nil {
			err = d.Settle(ctx, up)
		}
		if err == nil || ctx.Err() != nil {
			break
		}
		if s.carrier.replaced(d) {
			continue
		}
		if !pauseFor(ctx, withdrawRetry) {
			break
		}
		s.log.Error().Err(err).Uint64("seq", uint64(up)).Msg("the kernel does not let go of what was revoked: its ports stay closed to others")
	}
	closeSockets(sockets)
}

// pauseFor waits, and says whether ctx is still going on.
func pauseFor(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
