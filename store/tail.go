package store

import (
	"context"
	"iter"
	"os"
	"sort"
	"sync"

	"turnstone/turn"
)

// tails hands committed records to those who follow the log, from memory where
// they keep up.
type tails struct {
	mu     sync.Mutex
	recent []turn.Record // a window of the last ones, in order
	last   turn.Seq
	wake   chan struct{} // closed at the next change
	closed bool
	keep   int
}

// reset forgets the window: the disk has everything up to last.
func (t *tails) reset(last turn.Seq) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.recent, t.last = nil, last
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
	if t.keep > 0 && len(t.recent) >= 2*t.keep {
		t.recent = append([]turn.Record(nil), t.recent[len(t.recent)-t.keep:]...)
	}
	t.recent = append(t.recent, r)
	t.last = r.Last()
	t.notify()
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

// Tail yields the records from the one that holds from, and goes on with each
// that is committed until ctx ends, which it reports, or the log is closed. Its
// records are shared: they are for reading only.
func (l *Log) Tail(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		from = max(from, 1)
		for {
			records, disk, wait, closed := l.tails.after(from)
			switch {
			case closed:
				yield(turn.Record{}, os.ErrClosed)
				return
			case disk:
				for r, err := range l.Records(from) {
					if !yield(r, err) || err != nil {
						return
					}
					from = r.Last() + 1
				}
			case wait != nil:
				select {
				case <-wait:
				case <-ctx.Done():
					yield(turn.Record{}, ctx.Err())
					return
				}
			}
			for _, r := range records {
				if !yield(r, nil) {
					return
				}
				from = r.Last() + 1
			}
		}
	}
}
