package admin

import (
	"testing"
	"time"

	"turnstone/kernel"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
)

func measured(at time.Duration, scale uint64) Measured {
	count := func(packets uint64) turn.Count {
		return turn.Count{Packets: packets * scale, Bytes: 100 * packets * scale}
	}
	return Measured{
		At:    time.Unix(1000, 0).Add(at),
		Paths: []PathCount{{turn.PathUserspace, count(10), count(20)}, {turn.PathKernel, count(30), count(40)}},
		Bindings: []Binding{
			{1, "alice", 0x4000, "192.0.2.9:9", turn.PathUserspace, count(1), count(2)},
			{1, "alice", 0x4000, "192.0.2.9:9", turn.PathKernel, count(5), count(6)},
			{2, "bob", 0x4000, "192.0.2.9:9", turn.PathKernel, count(3), count(4)},
			{3, "carol", 0, "", turn.PathUserspace, turn.Count{Packets: 7, Bytes: 7000}, turn.Count{}}, // silent
		},
		Log:    LogCount{Events: 50 * scale, Commits: 10 * scale, Appending: time.Duration(scale) * 20 * time.Millisecond, Committing: time.Duration(scale) * 10 * time.Millisecond},
		Kernel: &kernel.Status{Verdicts: []kernel.VerdictCounts{{Verdict: "to-peer", Packets: 30 * scale}, {}, {}, {Verdict: "drop-ttl", Packets: 4 * scale}, {Verdict: "drop-meter"}}},
	}
}

func TestTrafficIsWhatCountersGrewBy(t *testing.T) {
	got := between(measured(0, 1), measured(2*time.Second, 3), 2)
	rate := func(packets float64) Rate { return Rate{packets, 100 * packets} }
	if want := []PathRate{{turn.PathUserspace, rate(10), rate(20)}, {turn.PathKernel, rate(30), rate(40)}}; !cmp.Equal(got.Paths, want) {
		t.Errorf("paths: %s", cmp.Diff(want, got.Paths))
	}
	busiest := []BusyChannel{
		{1, "alice", 0x4000, "192.0.2.9:9", turn.PathKernel, rate(5), rate(6)},
		{2, "bob", 0x4000, "192.0.2.9:9", turn.PathKernel, rate(3), rate(4)},
	}
	if !cmp.Equal(got.Busiest, busiest) {
		t.Errorf("busiest: %s", cmp.Diff(busiest, got.Busiest))
	}
	if want := map[string]float64{"drop-ttl": 4}; !cmp.Equal(got.Kernel.Verdicts, want) {
		t.Errorf("verdicts: %s", cmp.Diff(want, got.Kernel.Verdicts))
	}
	if l := got.Log; l.Events != 50 || l.Commits != 10 || l.Append != 0.002 || l.Commit != 0.001 {
		t.Errorf("log: got %+v, want 50 events and 10 commits a second, of 2 and 1 ms", l)
	}
}

func TestTrafficHasNoRatesAtFirst(t *testing.T) {
	got := between(Measured{}, measured(0, 1), 2)
	if got.Seconds != 0 || len(got.Busiest) != 0 || got.Paths[0].ToPeer != (Rate{}) || got.Log.Append != 0 || len(got.Kernel.Verdicts) != 0 {
		t.Errorf("got rates before an interval: %+v", got)
	}
}

func TestTrafficOfCountersThatBeganAgain(t *testing.T) {
	got := between(measured(0, 3), measured(time.Second, 1), 9)
	if want := (Rate{10, 1000}); got.Paths[0].ToPeer != want {
		t.Errorf("got %+v, want %+v: what they count now is new", got.Paths[0].ToPeer, want)
	}
}
