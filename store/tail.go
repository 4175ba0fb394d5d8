package store

import (
	"context"
	"errors"
	"iter"
	"os"
	"sort"
	"sync"

	"turnstone/turn"
)

// tails hands committed records to those who follow the log, from memory where
// they keep up.
type tails struct {
	mu     sync.Mutex    // guards the fields below
	recent []turn.Record // a window of the last ones, in order
	events int           // in recent
	last   turn.Seq
	wake   chan struct{} // closed at the next change
	closed bool
	keep   int // events, at least; at most twice as many
}

// reset forgets the window: the disk has everything up to last.
func (t *tails) reset(last turn.Seq) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recent, t.events, t.last = nil, 0, last
	t.notify()
}

func (t *tails) notify() {
	if t.wake != nil {
		close(t.wake)
	}
	t.wake = make(chan struct{})
}

func (t *tails) publish(r turn.Record) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recent = append(t.recent, r)
	t.events += len(r.Events)
	if t.events >= 2*t.keep {
		t.trim()
	}
	t.last = r.Last()
	t.notify()
}

// trim keeps the last records that hold enough events. Readers may hold the old slice.
func (t *tails) trim() {
	from, events := len(t.recent), 0
	for from > 0 && events < t.keep {
		from--
		events += len(t.recent[from].Events)
	}
	t.recent, t.events = append([]turn.Record(nil), t.recent[from:]...), events
}

func (t *tails) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	t.notify()
}

// after yields the records of the window that follow from on, or says that the
// disk has to be asked, or gives a channel to wait on.
func (t *tails) after(from turn.Seq) (records []turn.Record, disk bool, wait <-chan struct{}, closed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch {
	case t.closed:
		return nil, false, nil, true
	case from > t.last:
		return nil, false, t.wake, false
	case len(t.recent) == 0 || from < t.recent[0].First:
		return nil, true, nil, false
	}
	i := sort.Search(len(t.recent), func(i int) bool { return t.recent[i].Last() >= from })
	return t.recent[i:len(t.recent):len(t.recent)], false, nil, false
}

// wait is closed at the next change.
func (t *tails) wait() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.wake
}

// Tail yields the records from the one that holds from, and goes on with each
// that is committed until ctx ends, which it reports, or the log is closed. Its
// records are shared: they are for reading only. While the log recovers it waits.
func (l *Log) Tail(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		from = max(from, 1)
		for {
			again := l.tails.wait()
			records, disk, wait, closed := l.tails.after(from)
			switch {
			case closed:
				yield(turn.Record{}, os.ErrClosed)
				return
			case disk:
				for r, err := range l.Records(from) {
					if errors.Is(err, ErrUnavailable) {
						wait = again
						break
					}
					if !yield(r, err) || err != nil {
						return
					}
					from = r.Last() + 1
				}
			}
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
				from = r.Last() + 1
			}
			if wait == nil {
				continue
			}
			select {
			case <-wait:
			case <-ctx.Done():
				yield(turn.Record{}, ctx.Err())
				return
			}
		}
	}
}
