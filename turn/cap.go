package turn

import (
	"sync/atomic"
	"time"
)

// capBurst is how long at its full rate what has a cap may relay at once.
const capBurst = 250 * time.Millisecond

// maxDatagram is the longest payload there is, in bytes. An idle meter always has room for one.
const maxDatagram = 0xffff

// Cap bounds what is relayed in one direction. The zero Cap bounds nothing.
//
// It is a generic cell rate algorithm in one word, which says when the bucket is full again: the kernel's
// relay and userspace take from the same word, so that the cap holds for both together.
type Cap struct {
	Cost  uint64 // of a byte in ns, 16.16 fixed point; 0: no bound
	Burst uint64 // how far ahead of the clock the word may run, ns
}

// NewCap is the cap of rate bytes of application data a second, 0 for no bound.
func NewCap(rate uint64) Cap {
	if rate == 0 {
		return Cap{}
	}
	cost := max(uint64(time.Second)<<16/rate, 1)
	return Cap{Cost: cost, Burst: max(uint64(capBurst), maxDatagram*cost>>16+1)}
}

// Take takes n bytes at now, the boot-time clock in ns, from the word full. False: they are too many.
func (c Cap) Take(full *uint64, n int, now int64) bool {
	if c.Cost == 0 {
		return true
	}
	cost := uint64(n) * c.Cost >> 16
	for {
		old := atomic.LoadUint64(full)
		next := max(old, uint64(now)) + cost
		if next-uint64(now) > c.Burst {
			return false
		}
		if atomic.CompareAndSwapUint64(full, old, next) {
			return true
		}
	}
}

// Scope says for what a cap is.
type Scope uint8

// The scopes, the narrowest first.
const (
	ScopeAllocation Scope = iota
	ScopeUser             // all that a Holder has
	ScopeTotal            // all there is
	Scopes
)

// Caps are the caps of each scope.
type Caps [Scopes]Cap

// Words are the words that an allocation takes from in one direction.
type Words [Scopes]*uint64

// Take takes n bytes at now from the words of each scope beginning with from. It yields the scope for
// which they are too many, Scopes for none. What narrower scopes have taken by then stays taken: each bounds
// what comes to the next, so that whoever floods a wide one has no more of it than his own.
func (c *Caps) Take(w *Words, from Scope, n int, now int64) Scope {
	for s := from; s < Scopes; s++ {
		if c[s].Cost != 0 && !c[s].Take(w[s], n, now) {
			return s
		}
	}
	return Scopes
}
