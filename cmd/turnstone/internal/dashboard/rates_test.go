package dashboard

import (
	"fmt"
	"math"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"turnstone/turn"
)

// sums are what rates add up to, in bytes by path and way.
func (r *Rates) sums() map[string]float64 {
	out := map[string]float64{}
	for _, l := range r.Series {
		for _, v := range l.Bytes {
			out[fmt.Sprint(l.Path, " ", l.Way)] += v * r.Every
		}
	}
	return out
}

// TestRatesAddUp goes through a log forth, back and by leaps: whatever was asked before, the rates are the same, and all of them
// together are what was recorded.
func TestRatesAddUp(t *testing.T) {
	s := serve(t, nil)
	span := get[Span](s, "/api/span")
	want, last := map[string]float64{}, map[flow]turn.UsageRecorded{}
	for _, e := range s.events() {
		u, ok := e.(turn.UsageRecorded)
		if !ok {
			continue
		}
		f := flow{u.Allocation, u.Channel, u.Peer, u.Path}
		want[fmt.Sprint(u.Path, " to-peer")] += float64(u.ToPeer.Bytes - last[f].ToPeer.Bytes)
		want[fmt.Sprint(u.Path, " to-client")] += float64(u.ToClient.Bytes - last[f].ToClient.Bytes)
		last[f] = u
	}
	rates := func(at time.Time) Rates {
		return get[Rates](s, "/api/rates?at="+url.QueryEscape(at.Format(time.RFC3339Nano)))
	}
	got := map[string]float64{}
	var windows []Rates
	for at := span.First.Time; at.Before(span.Last.Time.Add(ratesSpan)); at = at.Add(ratesSpan) {
		r := rates(at.Truncate(ratesEvery).Add(ratesEvery - 1))
		windows = append(windows, r)
		for k, v := range r.sums() {
			got[k] += v
		}
	}
	if len(want) < 2 || len(windows) < 2 {
		t.Fatalf("%v in %d windows: the log tests little", want, len(windows))
	}
	for k, v := range want {
		if math.Abs(got[k]-v) > v/1e6+1 {
			t.Errorf("%s: the rates add up to %.0f bytes, want the %.0f recorded", k, got[k], v)
		}
	}
	for i := range windows {
		i = len(windows) - 1 - i
		again := rates(windows[i].From.Add(ratesSpan - 1))
		if a, b := fmt.Sprint(again.sums()), fmt.Sprint(windows[i].sums()); a != b {
			t.Errorf("window %d: got %s when going back, %s before", i, a, b)
		}
	}
	if r := get[Rates](s, "/api/rates"); !r.From.Add(ratesSpan).After(span.Last.Time) {
		t.Errorf("at the end of the log: got rates from %v on, want up to %v", r.From, span.Last.Time)
	}
}

// TestRatesAreSpreadOverTheirTime holds one binding's usage to when it was relayed.
func TestRatesAreSpreadOverTheirTime(t *testing.T) {
	m := meter{read: map[flow]reading{}, made: map[turn.AllocationID]int64{}, times: map[int64]relayed{}}
	t0 := time.Date(2026, 1, 2, 15, 0, 0, 0, time.UTC)
	record := func(after time.Duration, e turn.Event) {
		m.add(turn.Record{First: m.next, Moment: turn.Moment{Wall: t0.Add(after).UnixNano()}, Events: []turn.Event{e}})
	}
	usage := func(bytes uint64) turn.UsageRecorded {
		return turn.UsageRecorded{
			Allocation: 1, Channel: 0x4000, Peer: netip.MustParseAddrPort("203.0.113.7:4000"), Path: turn.PathKernel,
			ToPeer: turn.Count{Packets: bytes / 100, Bytes: bytes}, ToClient: turn.Count{Packets: 1, Bytes: 1},
		}
	}
	record(0, turn.AllocationCreated{Allocation: 1})
	record(time.Minute, usage(6000))     // 100 a second, since it was made
	record(6*time.Minute, usage(36000))  // 100 a second, since then
	record(20*time.Minute, usage(66000)) // 100 a second in the last five minutes, and nothing before
	r := m.show(t0.Add(20*time.Minute - 1))
	line := r.Series[2]
	if line.Path != turn.PathKernel || line.Way != "to-peer" {
		t.Fatalf("got %v %s", line.Path, line.Way)
	}
	for i, got := range line.Bytes {
		at, want := r.From.Add(time.Duration(i)*ratesEvery).Sub(t0), 0.0
		if at >= 0 && at < 6*time.Minute || at >= 15*time.Minute {
			want = 100
		}
		if math.Abs(got-want) > 1e-6 || math.Abs(line.Packets[i]-want/100) > 1e-6 {
			t.Errorf("after %v: got %g bytes and %g packets a second, want %g and %g", at, got, line.Packets[i], want, want/100)
		}
	}
}
