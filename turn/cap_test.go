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
