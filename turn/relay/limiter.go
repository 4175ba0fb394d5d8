package relay

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// limiter bounds the answers that go to sources nobody has authenticated: such
// an answer may hit somebody else, whose address was forged. It counts per /32 or /64
// in a table of fixed size; a flood of sources pushes out the one that was quiet longest.
type limiter struct {
	rate, burst int // answers a second and at once; rate 0: no limit
	seed        maphash.Seed
	sets        [1024]limiterSet
}

type limiterSet struct {
	mu   sync.Mutex // guards ways
	ways [8]limiterWay
}

// limiterWay is the token bucket of one source, as the time at which it is full again.
type limiterWay struct {
	source netip.Prefix
	full   int64 // uptime nanoseconds
}

func newLimiter(rate, burst int) *limiter {
	return &limiter{rate: rate, burst: max(burst, 1), seed: maphash.MakeSeed()}
}

// allow says whether one more answer may go to a at now.
func (l *limiter) allow(a netip.Addr, now int64) bool {
	if l.rate == 0 || a.IsLoopback() {
		return true
	}
	bits := 64
	if a.Is4() {
		bits = 32
	}
	source, err := a.Prefix(bits)
	if err != nil {
		return false
	}
	set := &l.sets[maphash.Comparable(l.seed, source)%uint64(len(l.sets))]
	set.mu.Lock()
	defer set.mu.Unlock()
	way := &set.ways[0]
	for i := range set.ways {
		w := &set.ways[i]
		if w.source == source {
			way = w
			break
		}
		if w.full < way.full {
			way = w
		}
	}
	if way.source != source {
		*way = limiterWay{source: source}
	}
	each := int64(time.Second) / int64(l.rate)
	full := max(way.full, now) + each
	if full-now > each*int64(l.burst) {
		return false
	}
	way.full = full
	return true
}
