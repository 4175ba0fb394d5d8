package kernel

import (
	"context"
	"sync"
	"time"

	"turnstone/turn"

	"github.com/rs/zerolog"
)

// events are on their way to the log. The datapath must not wait for it: the log may be waiting for the
// datapath.
type events struct {
	mu    sync.Mutex // guards the fields below
	queue []turn.Event
	busy  bool
	idle  []chan struct{} // closed when there is nothing left to record
	wake  chan struct{}
}

func (q *events) add(list ...turn.Event) {
	if len(list) == 0 {
		return
	}
	q.mu.Lock()
	q.queue = append(q.queue, list...)
	q.mu.Unlock()
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// recordBatch bounds the events of one record.
const recordBatch = 512

func (q *events) take() []turn.Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	n := min(len(q.queue), recordBatch)
	list := q.queue[:n:n]
	q.queue = q.queue[n:]
	q.busy = n > 0
	if n == 0 {
		for _, c := range q.idle {
			close(c)
		}
		q.idle, q.queue = nil, nil
	}
	return list
}

// run records until ctx ends. What cannot be recorded now is tried again.
func (q *events) run(ctx context.Context, record Recorder, log zerolog.Logger) {
	for {
		for list := q.take(); len(list) > 0; list = q.take() {
			for record(ctx, list...) != nil {
				select {
				case <-time.After(time.Second):
				case <-ctx.Done():
					log.Warn().Int("events", len(list)).Msg("stopped before the kernel's events were recorded")
					return
				}
			}
		}
		select {
		case <-q.wake:
		case <-ctx.Done():
			return
		}
	}
}

// flushed returns when everything added so far is recorded.
func (q *events) flushed(ctx context.Context) error {
	q.mu.Lock()
	if len(q.queue) == 0 && !q.busy {
		q.mu.Unlock()
		return nil
	}
	c := make(chan struct{})
	q.idle = append(q.idle, c)
	q.mu.Unlock()
	select {
	case <-c:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
