package kernel

import (
	"testing"
	"time"
)

// TestDeadline holds a flow to its deadline: a packet decided upon at that very instant is not relayed,
// one a nanosecond before is.
func TestDeadline(t *testing.T) {
	l := newLab(t, Sizes{Channels: 4, Allocations: 4, Listeners: 1})
	for _, path := range []Verdict{VerdictToPeer, VerdictToClient, VerdictToChannel} {
		s := newScene(path, v4, v6, v4)
		l.clear()
		first, second := s.bind(l)
		a := deliver(s.in.bytes(t))
		flows := []*modelFlow{first}
		if second != nil {
			flows = append(flows, second)
		}
		for _, f := range flows {
			for _, c := range []struct {
				left uint64
				want Verdict
			}{{1, path}, {0, VerdictExpired}} {
				// The program reads the clock once a tick: decide within the tick in which it was read.
				for end := time.Now().Add(10 * time.Second); ; {
					l.extend(f, noon)
					l.hold(a)
					now := l.now()
					l.extend(f, now+c.left)
					got := l.hold(a)
					if l.now() == now {
						if got.verdict != c.want {
							t.Errorf("%v, %d ns before the deadline: got %v, want %v", path, c.left, got.verdict, c.want)
						}
						break
					}
					if time.Now().After(end) {
						t.Fatal("no two packets in one tick")
					}
				}
				l.extend(f, noon)
			}
		}
	}
}

// extend moves the deadline of a flow in both.
func (l *lab) extend(f *modelFlow, deadline uint64) {
	f.Deadline = durationOf(deadline)
	l.tables.extend(f.slot, deadline)
}
