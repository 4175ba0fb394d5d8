package relay

import (
	"sync/atomic"
	"time"
)

// LatencyBounds are the upper bounds of a Latency's buckets, the last of which has none: from what a fast disk takes for a
// commit to what a client repeats its request after.
var LatencyBounds = [...]time.Duration{
	100 * time.Microsecond, 250 * time.Microsecond, 500 * time.Microsecond, time.Millisecond, 2500 * time.Microsecond, 5 * time.Millisecond,
	10 * time.Millisecond, 25 * time.Millisecond, 50 * time.Millisecond, 100 * time.Millisecond, 250 * time.Millisecond, 500 * time.Millisecond, time.Second,
}

// Latency is a distribution of times.
type Latency struct {
	Counts [len(LatencyBounds) + 1]uint64 // by bucket, each without those below
	Sum    time.Duration
}

// latency is a Latency that grows.
type latency struct {
	counts [len(LatencyBounds) + 1]atomic.Uint64
	sum    atomic.Int64
}

func (l *latency) add(d time.Duration) {
	i := 0
	for i < len(LatencyBounds) && d > LatencyBounds[i] {
		i++
	}
	l.counts[i].Add(1)
	l.sum.Add(int64(d))
}

// read may miss what is added meanwhile in one of the two.
func (l *latency) read() (out Latency) {
	for i := range l.counts {
		out.Counts[i] = l.counts[i].Load()
	}
	out.Sum = time.Duration(l.sum.Load())
	return out
}
