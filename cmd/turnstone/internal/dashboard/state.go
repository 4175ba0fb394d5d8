package dashboard

import (
	"cmp"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/store"
	"turnstone/turn"
)

// State is the state at a moment.
type State struct {
	Seq         turn.Seq           `json:"seq"`
	Time        time.Time          `json:"time"` // of the last record, zero before the first
	At          time.Time          `json:"at"`   // that was asked for, or Time
	Count       int                `json:"count"`
	Permissions int                `json:"permissions"`
	Channels    int                `json:"channels"`
	Matching    int                `json:"matching"`
	Usage       []Traffic          `json:"usage"`       // that is recorded of the allocations there are
	Allocations []admin.Allocation `json:"allocations"` // a page of those that match
}

// query is what is asked of a moment.
type query struct {
	bound         store.Bound
	at            time.Time // zero: that of the last record
	text, field   string
	offset, limit int
}

// mostRows is how many allocations there may be on a page.
const mostRows = 200

func parseQuery(v url.Values) (q query, err error) {
	q = query{bound: store.Everything(), text: strings.ToLower(strings.TrimSpace(v.Get("q"))), field: cmp.Or(v.Get("field"), "any"), limit: 25}
	number := func(name string, to *int, most int) {
		if s := v.Get(name); s != "" && err == nil {
			if *to, err = strconv.Atoi(s); err == nil && (*to < 0 || *to > most) {
				err = strconv.ErrRange
			}
		}
	}
	number("offset", &q.offset, 1<<30)
	number("limit", &q.limit, mostRows)
	if s := v.Get("seq"); s != "" && err == nil {
		var n uint64
		n, err = strconv.ParseUint(s, 10, 64)
		q.bound = store.Through(turn.Seq(n))
	}
	if s := v.Get("at"); s != "" && err == nil {
		q.at, err = time.Parse(time.RFC3339Nano, s)
		q.bound = store.AsOf(q.at)
	}
	if !slices.Contains([]string{"any", "client", "user", "relayed", "peer", "channel"}, q.field) && err == nil {
		err = strconv.ErrSyntax
	}
	if err != nil {
		return q, askedError{err}
	}
	return q, nil
}

func (s *Server) state(w http.ResponseWriter, r *http.Request) {
	q, err := parseQuery(r.URL.Query())
	if err != nil {
		reply(w, nil, err)
		return
	}
	var out State
	err = s.cursor(q).view(r.Context(), q.bound, func(st *turn.State) error {
		out = q.show(st)
		return nil
	})
	reply(w, out, err)
}

// cursor is the one that is nearest to what q asks for.
func (s *Server) cursor(q query) *cursor {
	if q.bound == store.Everything() {
		return &s.latest
	}
	return &s.past
}

// show shows what q asks of s.
func (q *query) show(s *turn.State) State {
	out := State{Seq: s.Seq(), At: q.at.UTC(), Count: s.Len(), Allocations: []admin.Allocation{}, Usage: []Traffic{}}
	m := s.Moment()
	if s.Seq() > 0 {
		out.Time = m.WallTime()
		if q.at.IsZero() {
			out.At = out.Time
		}
		m = m.AsOf(out.At)
	}
	sums := map[Traffic]turn.Count{}
	add := func(p turn.Path, way string, c turn.Count) {
		t := Traffic{Path: p, Way: way}
		sums[t] = sums[t].Plus(c)
	}
	for a := range s.Allocations() {
		out.Permissions += len(a.Permissions)
		out.Channels += len(a.Channels)
		for _, u := range a.Usage {
			add(u.Path, "to-peer", u.ToPeer)
			add(u.Path, "to-client", u.ToClient)
		}
		if !q.takes(a) {
			continue
		}
		if out.Matching >= q.offset && len(out.Allocations) < q.limit {
			out.Allocations = append(out.Allocations, admin.Describe(a, m))
		}
		out.Matching++
	}
	for _, p := range []turn.Path{turn.PathUserspace, turn.PathKernel} {
		for _, way := range []string{"to-peer", "to-client"} {
			out.Usage = append(out.Usage, Traffic{p, way, sums[Traffic{Path: p, Way: way}]})
		}
	}
	return out
}

// takes says whether the text is in one of the fields of a that are searched.
func (q *query) takes(a *turn.Allocation) bool {
	if q.text == "" {
		return true
	}
	in := func(field, text string) bool {
		return (q.field == "any" || q.field == field) && strings.Contains(strings.ToLower(text), q.text)
	}
	if in("client", a.FiveTuple.Client.String()) || in("user", a.Username) {
		return true
	}
	for _, r := range a.Relayed {
		if in("relayed", r.String()) {
			return true
		}
	}
	for _, p := range a.Permissions {
		if in("peer", p.Peer.String()) {
			return true
		}
	}
	for _, c := range a.Channels {
		if in("peer", c.Peer.String()) || in("channel", c.Number.String()) {
			return true
		}
	}
	return false
}
