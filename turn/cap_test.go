package turn

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func TestCapHoldsOverAnyTraffic(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rate := rapid.Uint64Range(1, 10_000_000_000).Draw(t, "rate")
		c := NewCap(rate)
		var full uint64
		now, taken := int64(time.Hour), 0.0
		began := now
		for range rapid.IntRange(1, 200).Draw(t, "datagrams") {
			now += rapid.Int64Range(0, int64(20*time.Millisecond)).Draw(t, "gap")
			n := rapid.IntRange(0, maxDatagram).Draw(t, "bytes")
			if c.Take(&full, n, now) {
				taken += float64(n)
			}
		}
		// What a bucket of that size lets through, and what rounding may add.
		allowed := (float64(now-began)+float64(c.Burst))/float64(time.Second)*float64(rate)*1.05 + maxDatagram
		if taken > allowed {
			t.Errorf("%v bytes at %d a second, want at most %v", taken, rate, allowed)
		}
	})
}

func TestIdleMeterTakesAnyDatagram(t *testing.T) {
	for _, rate := range []uint64{1, 1000, 125_000, 1 << 40} {
		var full uint64
		if !NewCap(rate).Take(&full, maxDatagram, int64(time.Hour)) {
			t.Errorf("at %d bytes a second the longest datagram never goes", rate)
		}
	}
}

func TestNoCapBoundsNothing(t *testing.T) {
	var full uint64
	for range 1000 {
		if !(Cap{}).Take(&full, maxDatagram, 1) {
			t.Fatal("refused")
		}
	}
	if full != 0 {
		t.Errorf("the word is %d, want it untouched", full)
	}
}

func TestCapIsSharedByThoseWhoTakeAtOnce(t *testing.T) {
	c := NewCap(1_000_000)
	var full, taken uint64
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 2000 {
				if c.Take(&full, 1000, int64(time.Hour)) {
					atomic.AddUint64(&taken, 1000)
				}
			}
		})
	}
	group.Wait()
	if limit := c.Burst*1_000_000/uint64(time.Second) + 1000; taken > limit {
		t.Errorf("%d bytes at one moment, want at most %d", taken, limit)
	}
}

func TestCapsAreTakenFromTheNarrowestOn(t *testing.T) {
	const now = int64(time.Hour)
	caps := Caps{NewCap(1_000_000), NewCap(100_000), NewCap(1_000_000)}
	var full [Scopes]uint64
	words := Words{&full[0], &full[1], &full[2]}
	took := func(s Scope) int { return int((full[s] - uint64(now)) << 16 / caps[s].Cost) }
	for i := range 65 { // what an idle meter has room for
		if over := caps.Take(&words, 0, 1000, now); over != Scopes {
			t.Fatalf("datagram %d is over the cap of scope %d", i, over)
		}
	}
	for range 10 {
		if over := caps.Take(&words, 0, 1000, now); over != ScopeUser {
			t.Fatalf("got scope %d, want that of the user, which has room for no more", over)
		}
	}
	for s, want := range [Scopes]int{75_000, 65_000, 65_000} {
		if got := took(Scope(s)); got != want {
			t.Errorf("%d bytes are taken from scope %d, want %d", got, s, want)
		}
	}
	if over := caps.Take(&words, ScopeTotal, 1000, now); over != Scopes || took(ScopeAllocation) != 75_000 || took(ScopeTotal) != 66_000 {
		t.Errorf("got scope %d and %v, want 1000 bytes taken from the total alone", over, full)
	}
	for range 1000 {
		if over := (&Caps{ScopeUser: NewCap(1)}).Take(&Words{ScopeUser: new(uint64)}, 0, 1000, now); over != Scopes {
			t.Fatalf("got scope %d, want none: scopes without a cap need no words", over)
		}
	}
}
