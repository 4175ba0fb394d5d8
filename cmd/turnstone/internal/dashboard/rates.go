package dashboard

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"turnstone/store"
	"turnstone/turn"
)

// What the log tells of traffic is how much each binding has relayed in all, every five minutes while that changes, and at its end. In
// between its rate is taken to be even.
const (
	usageEvery  = 5 * time.Minute
	ratesEvery  = 10 * time.Second // of one rate
	ratesSpan   = 30 * time.Minute // that is shown
	ratesEvents = 1 << 19          // that are read for it at most
)

// Rates are what was relayed in the time before a moment.
type Rates struct {
	From   time.Time  `json:"from"`   // the beginning of the first rate
	Every  float64    `json:"every"`  // seconds of each
	Known  time.Time  `json:"known"`  // from when on: before that too much happened since
	Series []RateLine `json:"series"` // by path and way
}

// RateLine is what went one way on one path, in each of the times, a second.
type RateLine struct {
	Path    turn.Path `json:"path"`
	Way     string    `json:"way"`
	Bytes   []float64 `json:"bytes"`
	Packets []float64 `json:"packets"`
}

// flow is what one binding relays on one path.
type flow struct {
	allocation turn.AllocationID
	channel    turn.ChannelNumber
	peer       netip.AddrPort
	path       turn.Path
}

// reading is what was recorded of a flow last. Where its time is 0 nobody knows when.
type reading struct {
	wall             int64
	toPeer, toClient turn.Count
}

// relayed is what went each way on each path in one of the times.
type relayed map[turn.Path]*[2]struct{ bytes, packets float64 }

// meter goes through a log, and finds what was relayed when.
type meter struct {
	source Source
	turns  turns // whoever has one has the rest

	first, next turn.Seq // that it has read from, and that it reads next; 0: it has to begin
	asked       int64    // wall time that it was to read from
	begin, end  int64    // wall times that it has read from and to
	read        map[flow]reading
	made        map[turn.AllocationID]int64 // when
	times       map[int64]relayed           // by the number of ratesEvery since 1970
}

func (s *Server) showRates(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		reply(w, nil, err)
		return
	}
	var seq turn.Seq
	err = s.cursor(q).view(r.Context(), q.bound, func(st *turn.State) error {
		if seq = st.Seq(); q.at.IsZero() {
			q.at = st.Moment().WallTime()
		}
		return nil
	})
	var out Rates
	if err == nil {
		out, err = s.rates.before(r.Context(), seq, q.at)
	}
	reply(w, out, err)
}

// before are the rates before at, when seq was the last event.
func (m *meter) before(ctx context.Context, seq turn.Seq, at time.Time) (Rates, error) {
	if err := m.turns.take(ctx); err != nil {
		return Rates{}, err
	}
	defer m.turns.give()
	from, to := at.Add(-ratesSpan).UnixNano(), at.Add(usageEvery+ratesEvery).UnixNano()
	if m.next == 0 || m.next > m.first+4*ratesEvents || from < m.asked || from > m.end || seq > m.next+ratesEvents {
		if err := m.start(ctx, seq, from); err != nil {
			m.next = 0
			return Rates{}, err
		}
	}
	if err := m.readOn(ctx, seq, to); err != nil {
		m.next = 0
		return Rates{}, err
	}
	return m.show(at), nil
}

// start begins at the wall time from, or where too many events are from then to seq, later.
func (m *meter) start(ctx context.Context, seq turn.Seq, from int64) error {
	state, err := m.source.StateWithin(ctx, store.AsOf(time.Unix(0, from)))
	if err != nil {
		first, _, err2 := m.source.Span(ctx) // it may be of before all that is in the log
		if err2 != nil || first == 0 {
			return err
		}
		if state, err = m.source.StateWithin(ctx, store.Through(first-1)); err != nil {
			return err
		}
	}
	m.asked, m.begin = from, from
	if state.Seq()+ratesEvents < seq {
		if state, err = m.source.StateWithin(ctx, store.Through(seq-ratesEvents)); err != nil {
			return err
		}
		m.begin = state.Moment().Wall
	}
	m.next, m.end = state.Seq()+1, m.begin
	m.first = m.next
	m.read, m.made, m.times = map[flow]reading{}, map[turn.AllocationID]int64{}, map[int64]relayed{}
	for a := range state.Allocations() {
		m.made[a.ID] = a.Created.Wall
		for _, u := range a.Usage {
			m.read[flow{a.ID, u.Channel, u.Peer, u.Path}] = reading{0, u.ToPeer, u.ToClient}
		}
	}
	return nil
}

// readOn reads up to the wall time to, but not much beyond seq.
func (m *meter) readOn(ctx context.Context, seq turn.Seq, to int64) error {
	for r, err := range m.source.Records(ctx, m.next) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if r.Moment.Wall > to || r.First > seq+ratesEvents {
			break
		}
		m.add(r)
	}
	m.end = max(m.end, to)
	return nil
}

func (m *meter) add(r turn.Record) {
	for _, e := range r.Events {
		switch e := e.(type) {
		case turn.AllocationCreated:
			m.made[e.Allocation] = r.Moment.Wall
		case turn.UsageRecorded:
			m.usage(e, r.Moment.Wall)
		}
	}
	m.next = r.Last() + 1
}

// usage adds what was relayed since the reading before: in the last five minutes, or since then.
func (m *meter) usage(e turn.UsageRecorded, wall int64) {
	f := flow{e.Allocation, e.Channel, e.Peer, e.Path}
	last := m.read[f]
	m.read[f] = reading{wall, e.ToPeer, e.ToClient}
	since := max(wall-int64(usageEvery), last.wall, m.made[e.Allocation])
	m.spread(e.Path, 0, since, wall, e.ToPeer, last.toPeer)
	m.spread(e.Path, 1, since, wall, e.ToClient, last.toClient)
}

// spread adds what was counted from one wall time to another, evenly.
func (m *meter) spread(p turn.Path, way int, from, to int64, now, before turn.Count) {
	if now.Bytes < before.Bytes || now.Packets < before.Packets || now == before {
		return
	}
	from = min(from, to-1)
	bytes, packets := float64(now.Bytes-before.Bytes), float64(now.Packets-before.Packets)
	for n := from / int64(ratesEvery); n*int64(ratesEvery) < to; n++ {
		part := float64(min(to, (n+1)*int64(ratesEvery))-max(from, n*int64(ratesEvery))) / float64(to-from)
		t := m.times[n]
		if t == nil {
			t = relayed{}
			m.times[n] = t
		}
		if t[p] == nil {
			t[p] = new([2]struct{ bytes, packets float64 })
		}
		t[p][way].bytes += part * bytes
		t[p][way].packets += part * packets
	}
}

// show are the rates up to at.
func (m *meter) show(at time.Time) Rates {
	const count = int64(ratesSpan / ratesEvery)
	first := at.UnixNano()/int64(ratesEvery) - count + 1
	out := Rates{From: time.Unix(0, first*int64(ratesEvery)).UTC(), Every: ratesEvery.Seconds(), Known: time.Unix(0, m.begin).UTC()}
	for _, p := range []turn.Path{turn.PathUserspace, turn.PathKernel} {
		for way, name := range []string{"to-peer", "to-client"} {
			line := RateLine{Path: p, Way: name, Bytes: make([]float64, count), Packets: make([]float64, count)}
			for i := range count {
				if t := m.times[first+i][p]; t != nil {
					line.Bytes[i], line.Packets[i] = t[way].bytes/ratesEvery.Seconds(), t[way].packets/ratesEvery.Seconds()
				}
			}
			out.Series = append(out.Series, line)
		}
	}
	return out
}
