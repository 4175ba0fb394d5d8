package relay

import (
	"errors"
	"sync"

	"turnstone/turn"
)

var errDisk = errors.New("input/output error")

// memoryLog is a Log in memory whose disk fails and stalls as told.
type memoryLog struct {
	mu       sync.Mutex // guards the fields below
	records  []turn.Record
	appends  int
	failAt   int           // the number of the append that fails, from 1; 0: none
	keep     bool          // what failed is on the disk nevertheless
	refuse   int           // how often Recover fails
	stalled  chan struct{} // closed when the disk goes on; nil while it does
	entered  chan struct{} // takes a token for each append that meets a stalled disk
	room     turn.Room
	recovers int
}

func newMemoryLog() *memoryLog { return &memoryLog{entered: make(chan struct{}, 1<<16)} }

func (l *memoryLog) Append(r turn.Record) error {
	l.mu.Lock()
	stalled := l.stalled
	l.mu.Unlock()
	if stalled != nil {
		l.entered <- struct{}{}
		<-stalled
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.appends++
	fails := l.appends == l.failAt
	if !fails || l.keep {
		l.records = append(l.records, r)
	}
	if fails {
		return errDisk
	}
	return nil
}

func (l *memoryLog) Recover() (*turn.State, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.recovers++
	if l.refuse > 0 {
		l.refuse--
		return nil, errDisk
	}
	return foldAll(l.records)
}

func (l *memoryLog) Room() turn.Room {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.room
}

func foldAll(records []turn.Record) (*turn.State, error) {
	s := turn.NewState()
	for _, r := range records {
		if err := s.Fold(r); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// stall makes every append wait until the returned function is called.
func (l *memoryLog) stall() (goOn func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := make(chan struct{})
	l.stalled = c
	return sync.OnceFunc(func() {
		l.mu.Lock()
		l.stalled = nil
		l.mu.Unlock()
		close(c)
	})
}

// failNext makes the next append fail; keep says whether its record is on the disk then.
func (l *memoryLog) failNext(keep bool, refuse int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.failAt, l.keep, l.refuse = l.appends+1, keep, refuse
}

// state is the fold of what is on the disk.
func (l *memoryLog) state() *turn.State {
	l.mu.Lock()
	defer l.mu.Unlock()
	s, err := foldAll(l.records)
	if err != nil {
		panic(err)
	}
	return s
}

// copy is another log with what is on the disk.
func (l *memoryLog) copy() *memoryLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	c := newMemoryLog()
	c.records = append(c.records, l.records...)
	return c
}

// events are those on the disk.
func (l *memoryLog) events() (out []turn.Event) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		out = append(out, r.Events...)
	}
	return out
}

// eventsOf are the events of one type on the disk.
func eventsOf[E turn.Event](l *memoryLog) (out []E) {
	for _, e := range l.events() {
		if e, ok := e.(E); ok {
			out = append(out, e)
		}
	}
	return out
}

// sizes are the numbers of events of the records on the disk.
func (l *memoryLog) sizes() (out []int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.records {
		out = append(out, len(r.Events))
	}
	return out
}
