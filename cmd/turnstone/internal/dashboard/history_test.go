package dashboard

import (
	"cmp"
	"fmt"
	"net/http"
	"slices"
	"testing"

	"turnstone/turn"
)

// pages are all pages of a history, each of which goes on where the one before ended.
func pages(s *served, query string) (out []Happened, over bool) {
	s.t.Helper()
	path := "/api/history?" + query
	for range 100 {
		h := get[History](s, path)
		out = append(out, h.Events...)
		if !h.More {
			return out, h.Over
		}
		path = fmt.Sprintf("/api/history?%s&from=%d", query, h.Next)
	}
	s.t.Fatal("a history has no end")
	return nil, false
}

// logged is what a log has about an allocation: the sequences of its events, and of those that are about its first channel.
type logged struct {
	all, one []turn.Seq
	channel  turn.ChannelNumber // 0: it has none
}

func (l *logged) add(seq turn.Seq, e turn.Event) {
	l.all = append(l.all, seq)
	var own turn.ChannelNumber
	switch e := e.(type) {
	case turn.ChannelBound:
		l.channel, own = cmp.Or(l.channel, e.Channel), e.Channel
	case turn.UsageRecorded:
		own = e.Channel
	case turn.ChannelExpired:
		own = e.Channel
	case turn.AllocationCreated, turn.AllocationRefreshed, turn.AllocationDeleted, turn.AllocationExpired:
		own = l.channel // it is about all of them
	default:
		return
	}
	if own == l.channel && (own != 0 || e.Kind() != turn.KindUsageRecorded) {
		l.one = append(l.one, seq)
	}
}

// TestHistoryHasEveryEvent holds the histories of all allocations, and of their channels, to the log.
func TestHistoryHasEveryEvent(t *testing.T) {
	s := serve(t, nil)
	ended, channels := 0, 0
	all := map[turn.AllocationID]*logged{}
	for seq, e := range s.events() {
		id := turn.AllocationOf(e)
		if all[id] == nil {
			all[id] = &logged{}
		}
		all[id].add(seq, e)
	}
	for id := turn.AllocationID(1); id <= 40; id++ {
		want := all[id]
		n := want.channel
		got, over := pages(s, fmt.Sprintf("allocation=%d", id))
		seqs := map[turn.Seq]bool{}
		last := turn.Seq(0)
		for _, h := range got {
			if seqs[h.Seq] = true; h.Seq <= last || h.What == "" || h.By == "" || h.Kind == "" || h.Time.IsZero() {
				t.Errorf("allocation %d: got %+v after event %d", id, h, last)
			}
			last = h.Seq
			if (h.Kind == "UsageRecorded") != (h.Usage != nil) {
				t.Errorf("allocation %d: got %+v, want usage where it is recorded", id, h)
			}
		}
		for _, seq := range want.all {
			if !seqs[seq] {
				t.Errorf("allocation %d: event %d is not in its history %v", id, seq, got)
			}
		}
		if s.end.Allocation(id) == nil && over {
			ended++
		}
		if n == 0 {
			continue
		}
		channels++
		got, _ = pages(s, fmt.Sprintf("allocation=%d&channel=%v", id, n))
		for _, seq := range want.one {
			if !slices.ContainsFunc(got, func(h Happened) bool { return h.Seq == seq }) {
				t.Errorf("channel %v of allocation %d: event %d is not in its history %v", n, id, seq, got)
			}
		}
		for _, h := range got {
			if h.Usage != nil && h.Usage.Channel != n {
				t.Errorf("channel %v of allocation %d: got the usage %+v", n, id, h.Usage)
			}
		}
	}
	if ended < 5 || channels < 20 {
		t.Errorf("%d ended and %d with a channel: the log tests little", ended, channels)
	}
	for path, want := range map[string]int{
		"allocation=0": http.StatusBadRequest, "allocation=x": http.StatusBadRequest, "allocation=1&from=-1": http.StatusBadRequest,
		"allocation=1&channel=x": http.StatusBadRequest, "allocation=999999": http.StatusNotFound,
	} {
		if code, _, body := s.do("GET", "/api/history?"+path, nil); code != want {
			t.Errorf("%s: got %d, want %d: %s", path, code, want, body)
		}
	}
}

func TestWhoseDoing(t *testing.T) {
	tx := turn.TransactionID{1}
	for _, c := range []struct {
		e    turn.Event
		want string
	}{
		{turn.AllocationCreated{Tx: tx}, "client"},
		{turn.AllocationDeleted{Tx: tx, Reason: turn.ReasonClient}, "client"},
		{turn.AllocationDeleted{Reason: turn.ReasonOperator}, "operator"},
		{turn.ChannelRevoked{Reason: turn.ReasonPolicy}, "policy"},
		{turn.ChannelExpired{}, "time"},
		{turn.PeerConnected{}, "peer"},
		{turn.PeerConnected{Tx: tx}, "client"},
		{turn.UsageRecorded{}, "relay"},
	} {
		if got := by(c.e); got != c.want {
			t.Errorf("%+v: got %q, want %q", c.e, got, c.want)
		}
	}
}
