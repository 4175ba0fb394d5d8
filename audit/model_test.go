package audit

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// model tells by the state before and after each event what began and ended with it. It knows nothing of rows.
type model struct {
	state *turn.State
	spans map[string][]string // of what an allocation had, in order
	open  map[string]string   // where each began
	uses  map[string]string
	who   map[turn.AllocationID]string
	other []string // refusals and redirects
}

func newModel() *model {
	return &model{
		state: turn.NewState(), spans: map[string][]string{}, open: map[string]string{}, uses: map[string]string{}, who: map[turn.AllocationID]string{},
	}
}

// things are what a has, and until when.
func things(a *turn.Allocation) map[string]turn.Deadline {
	out := map[string]turn.Deadline{}
	if a == nil {
		return out
	}
	name := func(format string, args ...any) string {
		return fmt.Sprintf("%d ", a.ID) + fmt.Sprintf(format, args...)
	}
	out[name("allocation")] = a.Deadline
	for t := range a.FiveTuples() {
		out[name("place %v", t)] = turn.Deadline{}
	}
	for i, r := range a.Relayed {
		out[name("relayed %v", r)] = a.Deadline
		if len(a.Until) > 0 {
			out[name("relayed %v", r)] = a.Until[i]
		}
	}
	for _, p := range a.Permissions {
		out[name("permission %v", netip.AddrPortFrom(p.Peer, 0))] = p.Deadline
	}
	for _, c := range a.Channels {
		out[name("channel %v %v", c.Number, c.Peer)] = c.Deadline
	}
	for _, c := range a.Connections {
		out[name("connection %v %v", c.ID, c.Peer)] = turn.Deadline{}
	}
	return out
}

// why says why key ended by e.
func why(e turn.Event, key string) string {
	thing := strings.Fields(key)[1]
	whole, relayed := thing == "allocation", thing == "relayed"
	part := func(is bool, reason, else_ string) string {
		if is {
			return reason
		}
		return else_
	}
	switch e := e.(type) {
	case turn.AllocationDeleted:
		return part(whole, e.Reason.String(), "with-allocation")
	case turn.AllocationExpired:
		return part(whole, "expired", "with-allocation")
	case turn.RelayedDeleted:
		return part(relayed, e.Reason.String(), "with-relayed")
	case turn.RelayedExpired:
		return part(relayed, "expired", "with-relayed")
	case turn.PermissionRevoked:
		return e.Reason.String()
	case turn.ChannelRevoked:
		return e.Reason.String()
	case turn.PeerDisconnected:
		return e.Reason.String()
	case turn.FiveTupleLeft:
		return e.Reason.String()
	case turn.AllocationMoved:
		return turn.ReasonMoved.String()
	}
	return "expired"
}

// add adds a record.
func (m *model) add(t testing.TB, r turn.Record) {
	m.state.Begin(r.Moment)
	for i, e := range r.Events {
		seq := r.First + turn.Seq(i)
		id := turn.AllocationOf(e)
		before := things(m.state.Allocation(id))
		if err := m.state.Apply(e); err != nil {
			t.Fatal(err)
		}
		after := things(m.state.Allocation(id))
		for key := range after {
			if _, had := before[key]; !had {
				m.open[key] = fmt.Sprintf("%d@%d", seq, r.Moment.Wall)
			}
		}
		m.ended(e, seq, r.Moment, before, after)
		m.single(e, seq, r.Moment)
	}
}

func (m *model) ended(e turn.Event, seq turn.Seq, at turn.Moment, before, after map[string]turn.Deadline) {
	end := func(d turn.Deadline) int64 {
		if d != (turn.Deadline{}) && d.Passed(at) {
			return at.Wall - int64(at.Uptime-d.Uptime)
		}
		return at.Wall
	}
	whole := int64(1<<63 - 1)
	for key, d := range before {
		if _, has := after[key]; !has && strings.HasSuffix(key, " allocation") {
			whole = end(d)
		}
	}
	for key, d := range before {
		if _, has := after[key]; !has {
			m.spans[key] = append(m.spans[key], fmt.Sprintf("%s-%d@%d %s", m.open[key], seq, min(whole, end(d)), why(e, key)))
			delete(m.open, key)
		}
	}
}

func (m *model) single(e turn.Event, seq turn.Seq, at turn.Moment) {
	switch e := e.(type) {
	case turn.AllocationCreated:
		m.who[e.Allocation] = fmt.Sprintf("%s/%s/%d", e.Username, e.Realm, e.Transport)
	case turn.UsageRecorded:
		m.uses[fmt.Sprintf("%d %v %v %v", e.Allocation, e.Channel, text(e.Peer), e.Path)] = fmt.Sprintf("%v %v %d@%d", e.ToPeer, e.ToClient, seq, at.Wall)
	case turn.ClientRedirected:
		m.other = append(m.other, fmt.Sprintf("%d %v %s 300 1", seq, text(e.FiveTuple.Client), e.Username))
	case turn.RefusalsCounted:
		for _, f := range e.Refusals {
			m.other = append(m.other, fmt.Sprintf("%d %v %s %d %d", seq, f.Client, f.Username, f.Code, f.Count))
		}
	case turn.AttemptsRefused:
		for _, f := range e.Attempts {
			m.other = append(m.other, fmt.Sprintf("%d %v %s %d %d", seq, f.Client, f.Username, f.Code, f.Count))
		}
		if e.Others > 0 {
			m.other = append(m.other, fmt.Sprintf("%d   0 %d", seq, e.Others))
		}
	}
}

// told is what rows say, in the words of a model.
func told(rows []Row) *model {
	m := newModel()
	put := func(key string, s *Span) {
		from := fmt.Sprintf("%d@%d", s.From.Seq, s.From.Wall)
		if s.Why == WhyOpen {
			m.open[key] = from
			return
		}
		m.spans[key] = append(m.spans[key], fmt.Sprintf("%s-%d@%d %s", from, s.To.Seq, s.To.Wall, s.Why))
	}
	for i := range rows {
		r := &rows[i]
		if f := r.Refused; f != nil {
			m.other = append(m.other, fmt.Sprintf("%d %v %s %d %d", r.To.Seq, text(f.Client), r.Username, f.Code, f.Count))
			continue
		}
		name := func(format string, args ...any) string {
			return fmt.Sprintf("%d ", r.Allocation) + fmt.Sprintf(format, args...)
		}
		if r.Kind == KindAllocation {
			m.who[r.Allocation] = fmt.Sprintf("%s/%s/%d", r.Username, r.Realm, r.Transport)
			put(name("allocation"), &r.Span)
		}
		for j := range r.Places {
			put(name("place %v", r.Places[j].FiveTuple), &r.Places[j].Span)
		}
		for j := range r.Relayed {
			put(name("relayed %v", r.Relayed[j].Address), &r.Relayed[j].Span)
		}
		for _, b := range r.Bindings {
			for j := range b.Spans {
				switch b.Sort {
				case SortPermission:
					put(name("permission %v", b.Peer), &b.Spans[j])
				case SortChannel:
					put(name("channel %v %v", b.Channel, b.Peer), &b.Spans[j])
				case SortConnection:
					put(name("connection %v %v", b.Connections[j].ID, b.Peer), &b.Spans[j])
				}
			}
			for _, u := range b.Uses {
				m.uses[name("%v %v %v", b.Channel, text(b.Peer), u.Path)] = fmt.Sprintf("%v %v %d@%d", u.ToPeer, u.ToClient, u.At.Seq, u.At.Wall)
			}
		}
	}
	return m
}

func (m *model) diff(rows []Row) string {
	got := told(rows)
	slices.Sort(got.other)
	slices.Sort(m.other)
	return cmp.Diff(m.spans, got.spans) + cmp.Diff(m.open, got.open) + cmp.Diff(m.uses, got.uses) + cmp.Diff(m.who, got.who) + cmp.Diff(m.other, got.other)
}

// whole are rows with the parts of each allocation put together.
func whole(rows []Row) (out []Row) {
	at := map[turn.AllocationID]int{}
	for i := range rows {
		r := rows[i]
		if n, known := at[r.Allocation]; known && r.Allocation != 0 {
			out[n].absorb(&r)
			continue
		}
		at[r.Allocation] = len(out)
		out = append(out, r)
	}
	return out
}

// TestRowsAreWhatTheStatesSay holds the projection, with cuts and reloads in any place, against the difference of states.
func TestRowsAreWhatTheStatesSay(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		gen := newTraffic(rapid.Uint64().Draw(rt, "seed"), rapid.IntRange(1, 12).Draw(rt, "allocations"))
		b, m := NewBuilder(), newModel()
		most := rapid.SampledFrom([]int{2, 10, maxClosed}).Draw(rt, "closed")
		b.maxClosed = most
		var rows []Row
		for range rapid.IntRange(1, 400).Draw(rt, "records") {
			r := gen.record()
			b.Add(r)
			m.add(t, r)
			if rapid.IntRange(0, 19).Draw(rt, "cut") == 0 {
				for _, row := range b.cut() {
					rows = append(rows, recoded(rt, row))
				}
				b = reloaded(rt, b)
				b.maxClosed = most
			}
		}
		if diff := m.diff(whole(append(rows, unwritten(rt, b)...))); diff != "" {
			rt.Fatalf("the rows are not what the states say (-want +got):\n%s", diff)
		}
	})
}

type fataler interface{ Fatal(...any) }

// recoded is row, stored and read again.
func recoded(t fataler, row Row) Row {
	got, err := new(decoder).row(encodeRow(&row))
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(row, got, exactly); diff != "" {
		t.Fatal("a row is not what was stored (-want +got):\n" + diff)
	}
	return got
}

// exactly compares rows with all that is in them; a list of nothing is none.
var exactly = cmp.Options{
	cmp.AllowUnexported(Row{}, Span{}), cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.FilterPath(func(p cmp.Path) bool { return p.Last().String() == ".closed" }, cmp.Ignore()),
	cmp.FilterValues(func(a, b []Span) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
	cmp.FilterValues(func(a, b []Use) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
	cmp.FilterValues(func(a, b []Place) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
	cmp.FilterValues(func(a, b []Binding) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
	cmp.FilterValues(func(a, b []Connected) bool { return len(a)+len(b) == 0 }, cmp.Ignore()),
}

// reloaded is b as it comes out of the index after a cut.
func reloaded(t fataler, b *Builder) *Builder {
	k, _ := cipherOf(nil, 0, false)
	c := &carried{last: b.last, builder: b}
	head, chunks, err := c.encode(k)
	if err != nil {
		t.Fatal(err)
	}
	back, rows, err := parseCarried(head)
	if err == nil {
		rows.chunks = chunks
		err = rows.decode(back, nil)
	}
	if err != nil {
		t.Fatal(err)
	}
	return back.builder
}

func TestRowsThatDoNotDecode(t *testing.T) {
	gen, b := newTraffic(1, 8), NewBuilder()
	for range 300 {
		b.Add(gen.record())
	}
	for _, r := range unwritten(t, b) {
		stored := encodeRow(&r)
		for n := range stored {
			if _, err := new(decoder).row(stored[:n]); err == nil && n > 0 {
				t.Fatalf("%d bytes of a row of %d decode", n, len(stored))
			}
		}
		if _, err := new(decoder).row(append(stored, 0)); err == nil {
			t.Fatal("a row with a byte behind it decodes")
		}
	}
}
