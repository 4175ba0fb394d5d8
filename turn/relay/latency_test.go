package relay

import (
	"testing"
	"time"
)

func TestLatencyCountsEachTimeOnce(t *testing.T) {
	var l latency
	for _, d := range []time.Duration{0, 100 * time.Microsecond, 101 * time.Microsecond, time.Second, time.Second + 1, time.Hour} {
		l.add(d)
	}
	got := l.read()
	want := Latency{Sum: 2*time.Second + 1 + time.Hour + 201*time.Microsecond}
	want.Counts[0], want.Counts[1], want.Counts[len(LatencyBounds)-1], want.Counts[len(LatencyBounds)] = 2, 1, 1, 2
	if got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}
