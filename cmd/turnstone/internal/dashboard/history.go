package dashboard

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/replay"
	"turnstone/store"
	"turnstone/turn"
)

// errNoHistory says that nothing is known of an allocation.
var errNoHistory = errors.New("there is nothing of it in the log")

// History is a part of what became of an allocation, or of one of its channels.
type History struct {
	Events []Happened `json:"events"`
	Next   turn.Seq   `json:"next"` // where it goes on
	More   bool       `json:"more"` // there may be more of it in the log
	Over   bool       `json:"over"` // there will never be more
}

// Happened is one event of a history.
type Happened struct {
	Event
	Kind  string       `json:"kind"`
	What  string       `json:"what"`
	By    string       `json:"by"`              // whose doing it was
	Usage *admin.Usage `json:"usage,omitempty"` // that was recorded, cumulative
}

// Bounds of one answer.
const (
	historyEvents = 1 << 17 // of the log that are looked at
	historyRows   = 200
	historyTime   = 500 * time.Millisecond
)

// chronicle is what is asked of a history.
type chronicle struct {
	id      turn.AllocationID
	channel turn.ChannelNumber // 0: all of the allocation
	from    turn.Seq           // 0: from its beginning
	peer    netip.Addr         // that the channel is, or was last, bound to
}

func parseChronicle(v url.Values) (c chronicle, err error) {
	id, err := strconv.ParseUint(v.Get("allocation"), 10, 64)
	if err == nil && v.Get("from") != "" {
		var from uint64
		from, err = strconv.ParseUint(v.Get("from"), 10, 64)
		c.from = turn.Seq(from)
	}
	if err == nil && v.Get("channel") != "" {
		err = c.channel.UnmarshalText([]byte(v.Get("channel")))
	}
	if c.id = turn.AllocationID(id); err != nil || id == 0 {
		return c, askedError{fmt.Errorf("this is no history: %s", v.Encode())}
	}
	return c, nil
}

func (s *Server) showHistory(w http.ResponseWriter, r *http.Request) {
	c, err := parseChronicle(r.URL.Query())
	if err != nil {
		reply(w, nil, err)
		return
	}
	begins := c.from == 0
	if begins {
		if c.from, err = s.source.Before(r.Context(), c.id); err != nil {
			reply(w, nil, err)
			return
		}
		c.from++
	}
	out := History{Events: []Happened{}, Next: c.from}
	err = s.history.view(r.Context(), store.Through(c.from-1), func(st *turn.State) error { return c.follow(r.Context(), s.source, st, &out) })
	if err == nil && begins && !out.More && len(out.Events) == 0 {
		err = fmt.Errorf("allocation %d: %w", c.id, errNoHistory)
	}
	reply(w, out, err)
}

// follow goes on from st, which it folds records into, until it has looked at enough, or the history is over.
func (c *chronicle) follow(ctx context.Context, s Source, st *turn.State, out *History) error {
	walk, life := replay.NewWalk(st, replay.Filter{Allocation: c.id}), replay.Lifetime{ID: c.id}
	alive := st.Allocation(c.id) != nil
	life.Over(st, st.Moment())
	if b := c.bound(st); b != nil {
		c.peer = b.Peer.Addr()
	}
	last, until := st.Seq()+historyEvents, time.Now().Add(historyTime)
	for r, err := range s.Records(ctx, st.Seq()+1) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if r.First > last || alive && (len(out.Events) >= historyRows || time.Now().After(until)) {
			out.More, out.Over = alive, !alive
			break
		}
		if err := c.record(walk, r, out); err != nil {
			return err
		}
		out.Next = r.Last() + 1
		if was := alive; was && st.Allocation(c.id) == nil { // what is recorded late is near: it is not for another answer
			last = r.Last() + historyEvents
		}
		alive = st.Allocation(c.id) != nil
		if out.Over = life.Over(st, r.Moment); out.Over {
			break
		}
	}
	return nil
}

// record adds what of r is asked for.
func (c *chronicle) record(walk *replay.Walk, r turn.Record, out *History) error {
	known := len(out.Events)
	for i, e := range r.Events {
		seq := r.First + turn.Seq(i)
		if act, ok := e.(turn.OperatorActed); ok && c.means(act) && seq >= c.from {
			who := "operator"
			if act.UID != turn.NoUID {
				who = fmt.Sprintf("operator, user %d", act.UID)
			}
			out.Events = append(out.Events, Happened{Event: Event{seq, r.Moment.WallTime()}, Kind: kindOf(e), What: act.What, By: who})
		}
	}
	_, err := walk.Record(r, func(step replay.Step) (bool, error) {
		if b := c.bound(walk.State()); b != nil {
			c.peer = b.Peer.Addr()
		}
		if c.channel != 0 {
			step.Changes = slices.DeleteFunc(step.Changes, func(ch replay.Change) bool { return !c.takes(ch) })
		}
		if step.Seq < c.from || len(step.Changes) == 0 {
			return true, nil
		}
		one := Happened{Event: Event{step.Seq, step.Moment.WallTime()}, Kind: kindOf(step.Event), What: step.String(), By: by(step.Event)}
		if u, ok := step.Event.(turn.UsageRecorded); ok {
			shown := admin.DescribeUsage(turn.Usage{Channel: u.Channel, Peer: u.Peer, Path: u.Path, ToPeer: u.ToPeer, ToClient: u.ToClient})
			one.Usage = &shown
		}
		out.Events = append(out.Events, one)
		return true, nil
	})
	slices.SortStableFunc(out.Events[known:], func(a, b Happened) int { return cmp.Compare(a.Seq, b.Seq) })
	return err
}

// bound is the channel that is asked for, nil where it is not bound.
func (c *chronicle) bound(s *turn.State) *turn.Channel {
	if a := s.Allocation(c.id); a != nil {
		return a.Channel(c.channel)
	}
	return nil
}

// means says whether an operator ended the allocation.
func (c *chronicle) means(e turn.OperatorActed) bool {
	rest, ok := strings.CutPrefix(e.What, admin.Close(c.id))
	return ok && (rest == "" || rest[0] == ',')
}

// takes says whether a change is about the channel: itself, the permission of its peer, or all of the allocation.
func (c *chronicle) takes(ch replay.Change) bool {
	switch ch.Thing {
	case replay.Allocation:
		return true
	case replay.Permission:
		return c.peer.IsValid() && ch.Peer == c.peer.String()
	}
	return ch.Channel == c.channel.String()
}

func kindOf(e turn.Event) string { return reflect.TypeOf(e).Name() }

// by is whose doing e was.
func by(e turn.Event) string {
	v := reflect.ValueOf(e)
	if f := v.FieldByName("Reason"); f.IsValid() {
		return f.Interface().(turn.Reason).String()
	}
	if f := v.FieldByName("Tx"); f.IsValid() && !f.IsZero() {
		return "client"
	}
	switch e.(type) {
	case turn.AllocationExpired, turn.PermissionExpired, turn.ChannelExpired, turn.RelayedExpired:
		return "time"
	case turn.PeerConnected:
		return "peer"
	}
	return "relay"
}
