package audit

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"time"

	"turnstone/turn"
)

const (
	// linger is for how long an allocation that has ended waits for its last usage, which the log holds behind its end.
	linger = time.Minute
	// maxLinger is how many wait at most.
	maxLinger = 8192
	// maxClosed bounds the spans that are over in an open row: beyond it they become a part of their own.
	maxClosed = 256
)

// Mapping is an address of the relay and the one that clients and peers know it by, for as long as that was so.
type Mapping struct {
	IP, External netip.Addr
	Span
}

// Builder folds records into rows. It begins with the log, or anywhere in it: what it hears of an allocation whose beginning
// it has not seen makes a row that began it does not know when.
type Builder struct {
	last     turn.Seq // of what was added
	moment   turn.Moment
	at       Mark // of the event being added
	log      turn.LogID
	epoch    uint64
	mappings []Mapping

	open    map[turn.AllocationID]*Row
	asleep  map[turn.AllocationID][]byte // more that is open
	decoder decoder                      // of these
	err     error                        // of decoding them: none is right from then on
	ended   []*Row                       // in the order in which they ended, not written yet
	over    map[turn.AllocationID]*Row
	parts   map[turn.AllocationID]*Row
	rows    []Row // refusals and redirects

	maxClosed int // see there
}

// NewBuilder makes a Builder that has seen nothing.
func NewBuilder() *Builder {
	return &Builder{maxClosed: maxClosed, open: map[turn.AllocationID]*Row{}, asleep: map[turn.AllocationID][]byte{}, over: map[turn.AllocationID]*Row{}, parts: map[turn.AllocationID]*Row{}}
}

// Last is the sequence of the last event that was added.
func (b *Builder) Last() turn.Seq { return b.last }

// Add adds the next record.
func (b *Builder) Add(r turn.Record) {
	if b.last > 0 && r.Moment.Boot != b.moment.Boot {
		b.rebase(r.Moment)
	}
	b.moment = r.Moment
	for i, e := range r.Events {
		b.at = Mark{r.First + turn.Seq(i), r.Moment.Wall}
		b.event(e)
	}
	b.last = r.Last()
}

// rebase carries what was granted over to another boot, as the state does.
func (b *Builder) rebase(to turn.Moment) {
	move := func(s *Span) {
		if s.Why == WhyOpen && s.until != (turn.Deadline{}) {
			s.until = s.until.Rebase(b.moment, to)
		}
	}
	_ = b.wakeAll() // b has the error
	for _, r := range b.open {
		move(&r.Span)
		r.spans(move)
		r.latest()
	}
}

func (b *Builder) event(e turn.Event) {
	switch e := e.(type) {
	case turn.AllocationCreated:
		b.created(e)
	case turn.AllocationRefreshed:
		b.row(e.Allocation).prolong(b.after(e.Lifetime), netip.AddrPort{})
	case turn.AllocationDeleted:
		b.remove(e.Allocation, Why(e.Reason))
	case turn.AllocationExpired:
		b.remove(e.Allocation, WhyExpired)
	case turn.PermissionInstalled:
		b.permit(b.row(e.Allocation), e.Peer)
	case turn.PermissionExpired:
		b.unpermit(e.Allocation, e.Peer, WhyExpired)
	case turn.PermissionRevoked:
		b.unpermit(e.Allocation, e.Peer, Why(e.Reason))
	case turn.ChannelBound:
		r := b.row(e.Allocation)
		b.grant(r.binding(SortChannel, e.Channel, e.Peer), turn.ChannelLifetime)
		b.permit(r, e.Peer.Addr())
	case turn.ChannelExpired:
		b.unbind(e.Allocation, e.Channel, WhyExpired)
	case turn.ChannelRevoked:
		b.unbind(e.Allocation, e.Channel, Why(e.Reason))
	case turn.RelayedRefreshed:
		b.row(e.Allocation).prolong(b.after(e.Lifetime), e.Relayed)
	case turn.RelayedDeleted:
		b.unrelay(e.Allocation, e.Relayed, Why(e.Reason))
	case turn.RelayedExpired:
		b.unrelay(e.Allocation, e.Relayed, WhyExpired)
	case turn.TokenAccepted:
		b.row(e.Allocation).Token = true
	case turn.UsageRecorded:
		b.used(e)
	case turn.EpochBegan:
		b.log, b.epoch = e.Log, e.Epoch
	case turn.RelaysChanged:
		b.mapped(e.Relays)
	default:
		b.moves(e)
	}
}

// moves adds what is about connections, mobile clients, and requests that were refused.
func (b *Builder) moves(e turn.Event) {
	switch e := e.(type) {
	case turn.PeerConnected:
		c := b.row(e.Allocation).binding(SortConnection, 0, e.Peer)
		c.insert(Span{From: b.at}, &Connected{ID: e.Connection})
	case turn.ConnectionBound:
		if c, _ := b.row(e.Allocation).connection(e.Connection); c != nil {
			c.Client, c.Bound = e.Client.Client, b.at
		}
	case turn.PeerDisconnected:
		r := b.row(e.Allocation)
		if _, s := r.connection(e.Connection); s != nil {
			b.end(r, s, Why(e.Reason))
		}
	case turn.AllocationMoved:
		b.moved(b.row(e.Allocation), e.FiveTuple)
	case turn.FiveTupleLeft:
		r := b.row(e.Allocation)
		for i := range r.Places {
			if p := &r.Places[i]; p.Why == WhyOpen && p.FiveTuple == e.FiveTuple {
				b.end(r, &p.Span, Why(e.Reason))
				return
			}
		}
	case turn.RefusalsCounted:
		b.refusals(e.Refusals, e.Others)
	case turn.AttemptsRefused:
		b.attempts(e)
	case turn.ClientRedirected:
		b.rows = append(b.rows, Row{
			Kind: KindRedirect, Epoch: b.epoch, Username: e.Username, Realm: e.Realm, Span: Span{From: b.at, To: b.at, Why: whyRefused},
			Places:  []Place{{e.FiveTuple, Span{From: b.at, To: b.at, Why: whyRefused}}},
			Refused: &Refused{Client: e.FiveTuple.Client, Method: methodAllocate, Code: turn.CodeTryAlternate, Count: 1, Servers: e.Servers},
		})
	}
}

// after is some seconds from now.
func (b *Builder) after(seconds uint32) turn.Deadline {
	return b.moment.After(time.Duration(seconds) * time.Second)
}

// row is the row of an open allocation, made where its beginning was not seen.
func (b *Builder) row(id turn.AllocationID) *Row {
	r := b.held(id)
	if r == nil {
		r = &Row{Kind: KindAllocation, Allocation: id, Epoch: b.epoch}
		b.open[id] = r
	}
	return r
}

func (b *Builder) created(e turn.AllocationCreated) {
	s := Span{From: b.at, until: b.after(e.Lifetime)}
	r := &Row{
		Kind: KindAllocation, Allocation: e.Allocation, Epoch: b.epoch, Span: s, Username: e.Username, Realm: e.Realm,
		Transport: e.Transport, Places: []Place{{e.FiveTuple, Span{From: b.at}}},
	}
	for _, a := range e.Relayed {
		r.Relayed = append(r.Relayed, Relayed{a, s})
	}
	b.open[e.Allocation] = r
	delete(b.asleep, e.Allocation)
}

// prolong moves the end of r, or of one of its relayed addresses alone.
func (r *Row) prolong(until turn.Deadline, one netip.AddrPort) {
	r.until = until
	for i := range r.Relayed {
		if v := &r.Relayed[i]; v.Why == WhyOpen && (!one.IsValid() || v.Address == one) {
			v.until = until
		}
	}
	r.latest()
}

// latest makes the end of r the last of those of its relayed addresses.
func (r *Row) latest() {
	first := true
	for i := range r.Relayed {
		if v := &r.Relayed[i]; v.Why == WhyOpen && (first || v.until.Uptime > r.until.Uptime) {
			r.until, first = v.until, false
		}
	}
}

// end ends a span of r.
func (b *Builder) end(r *Row, s *Span, why Why) {
	r.over(s, b.at.Seq, b.moment, why)
	if r.closed > b.maxClosed {
		b.split(r)
	}
}

// remove ends an allocation with all it holds.
func (b *Builder) remove(id turn.AllocationID, why Why) {
	r := b.row(id)
	delete(b.open, id)
	r.Span.end(b.at.Seq, b.moment, why)
	r.spans(func(s *Span) {
		if s.Why == WhyOpen {
			s.end(b.at.Seq, b.moment, WhyAllocation)
			s.To.Wall = min(s.To.Wall, r.To.Wall)
		}
	})
	r.gone = b.at.Wall
	b.ended = append(b.ended, r)
	b.over[id] = r
}

// grant prolongs g, from now on where it was over.
func (b *Builder) grant(g *Binding, d time.Duration) {
	s := g.open()
	if s == nil {
		g.Spans = append(g.Spans, Span{From: b.at})
		s = g.open()
	}
	s.until = b.moment.After(d)
}

func (b *Builder) permit(r *Row, peer netip.Addr) {
	b.grant(r.binding(SortPermission, 0, netip.AddrPortFrom(peer, 0)), turn.PermissionLifetime)
}

func (b *Builder) unpermit(id turn.AllocationID, peer netip.Addr, why Why) {
	r := b.row(id)
	g := r.binding(SortPermission, 0, netip.AddrPortFrom(peer, 0))
	if g.open() == nil {
		g.Spans = append(g.Spans, Span{}) // its beginning was not seen
	}
	b.end(r, g.open(), why)
}

func (b *Builder) unbind(id turn.AllocationID, n turn.ChannelNumber, why Why) {
	r := b.row(id)
	for i := range r.Bindings {
		if g := &r.Bindings[i]; g.Sort == SortChannel && g.Channel == n && g.open() != nil {
			b.end(r, g.open(), why)
			return
		}
	}
}

// unrelay ends one of two relayed addresses, with what goes by it.
func (b *Builder) unrelay(id turn.AllocationID, a netip.AddrPort, why Why) {
	r := b.row(id)
	for i := range r.Relayed {
		if v := &r.Relayed[i]; v.Address == a {
			r.over(&v.Span, b.at.Seq, b.moment, why)
		} else if v.Why == WhyOpen {
			r.until = v.until
		}
	}
	for i := range r.Bindings {
		if g := &r.Bindings[i]; g.Peer.IsValid() && g.Peer.Addr().Is4() == a.Addr().Is4() {
			for j := range g.Spans {
				r.over(&g.Spans[j], b.at.Seq, b.moment, WhyRelayed)
			}
		}
	}
}

// connection is the connection id of r and how long it lasts, nil where there is none.
func (r *Row) connection(id turn.ConnectionID) (*Connected, *Span) {
	for i := range r.Bindings {
		g := &r.Bindings[i]
		for j := range g.Connections {
			if g.Connections[j].ID == id && g.Spans[j].Why == WhyOpen {
				return &g.Connections[j], &g.Spans[j]
			}
		}
	}
	return nil, nil
}

// moved adds a five-tuple to r. Of two that it has, the second is where it was moving to, and moves to no more.
func (b *Builder) moved(r *Row, t turn.FiveTuple) {
	var have []*Place
	for i := range r.Places {
		if p := &r.Places[i]; p.Why == WhyOpen {
			have = append(have, p)
		}
	}
	switch {
	case len(have) > 1 && have[1].FiveTuple == t:
		return
	case len(have) > 1:
		r.over(&have[1].Span, b.at.Seq, b.moment, Why(turn.ReasonMoved))
	}
	r.Places = append(r.Places, Place{t, Span{From: b.at}})
}

// used adds usage, also of an allocation that has ended.
func (b *Builder) used(e turn.UsageRecorded) {
	r := b.held(e.Allocation)
	if r == nil {
		r = b.over[e.Allocation]
	}
	if r == nil {
		r = b.part(e.Allocation)
	}
	sort := SortChannel
	switch {
	case e.Channel != 0:
	case e.Peer.IsValid():
		sort = SortConnection
	default:
		sort = SortIndications
	}
	*r.binding(sort, e.Channel, e.Peer).use(e.Path) = Use{e.Path, e.ToPeer, e.ToClient, b.at}
}

// part is the part of an allocation whose row is written or was never seen.
func (b *Builder) part(id turn.AllocationID) *Row {
	p := b.parts[id]
	if p == nil {
		p = &Row{Kind: KindPart, Allocation: id, Epoch: b.epoch}
		b.parts[id] = p
	}
	return p
}

// split moves what is over in r to a part of its own.
func (b *Builder) split(r *Row) {
	p := b.part(r.Allocation)
	over := func(s *Span) bool { return s.Why != WhyOpen }
	p.Places, r.Places = apart(p.Places, r.Places, func(v *Place) bool { return over(&v.Span) })
	p.Relayed, r.Relayed = apart(p.Relayed, r.Relayed, func(v *Relayed) bool { return over(&v.Span) })
	left := r.Bindings[:0]
	for _, g := range r.Bindings {
		to := p.binding(g.Sort, g.Channel, g.Peer)
		kept := Binding{Sort: g.Sort, Channel: g.Channel, Peer: g.Peer}
		for j, s := range g.Spans {
			if over(&s) {
				to.insert(s, g.connected(j))
			} else {
				kept.insert(s, g.connected(j))
			}
		}
		if len(kept.Spans) > 0 || g.Sort == SortIndications {
			kept.Uses = g.Uses
			left = append(left, kept)
		} else {
			for _, u := range g.Uses {
				*to.use(u.Path) = u
			}
		}
	}
	clear(r.Bindings[len(left):])
	p.Bindings = slices.DeleteFunc(p.Bindings, func(g Binding) bool { return len(g.Spans) == 0 && len(g.Uses) == 0 })
	r.Bindings, r.closed = left, 0
}

// apart moves the elements of from that go to the end of to.
func apart[T any](to, from []T, goes func(*T) bool) (moved, left []T) {
	for _, v := range from {
		if goes(&v) {
			to = append(to, v)
		} else {
			left = append(left, v)
		}
	}
	return to, left
}

// mapped takes the relay's addresses as they are from now on.
func (b *Builder) mapped(relays []turn.Relay) {
	for i := range b.mappings {
		if m := &b.mappings[i]; m.Why == WhyOpen && !slices.Contains(relays, turn.Relay{IP: m.IP, External: m.External}) {
			m.Span.end(b.at.Seq, b.moment, whyMapping)
		}
	}
	for _, r := range relays {
		known := func(m Mapping) bool { return m.Why == WhyOpen && m.IP == r.IP && m.External == r.External }
		if !slices.ContainsFunc(b.mappings, known) {
			b.mappings = append(b.mappings, Mapping{r.IP, r.External, Span{From: b.at}})
		}
	}
}

// Ends of what is no grant.
const (
	whyMapping Why = 0x103 // of a Mapping: there is another in its place, or none
	whyRefused Why = 0x104 // it never was
)

// refusals adds a row for each sort of refusal.
func (b *Builder) refusals(list []turn.Refusal, others uint64) {
	for _, f := range list {
		b.refused(b.at.Wall-int64(refusalsEvery), f.Username, "", Refused{
			Client: netip.AddrPortFrom(f.Client, 0), Method: f.Method, Code: f.Code, Count: f.Count,
		})
	}
	b.others(b.at.Wall-int64(refusalsEvery), others)
}

// refusalsEvery is how far apart refusals are counted that do not say since when.
const refusalsEvery = time.Minute

// methodAllocate is the STUN method of an Allocate (RFC 8656 section 17).
const methodAllocate = 3

func (b *Builder) attempts(e turn.AttemptsRefused) {
	for _, f := range e.Attempts {
		b.refused(e.Since, f.Username, f.Realm, Refused{
			Client: netip.AddrPortFrom(f.Client, 0), Method: f.Method, Code: f.Code, Count: f.Count, Peer: f.Peer,
		})
	}
	b.others(e.Since, e.Others)
}

func (b *Builder) refused(since int64, username, realm string, f Refused) {
	b.rows = append(b.rows, Row{
		Kind: KindRefusal, Epoch: b.epoch, Username: username, Realm: realm, Refused: &f,
		Span: Span{From: Mark{b.at.Seq, min(since, b.at.Wall)}, To: b.at, Why: whyRefused},
	})
}

func (b *Builder) others(since int64, count uint64) {
	if count > 0 {
		b.refused(since, "", "", Refused{Count: count, Others: true})
	}
}

// Seed has b begin after s, whose events are not in the log any more.
func (b *Builder) Seed(s *turn.State) {
	b.last, b.moment, b.log, b.epoch = s.Seq(), s.Moment(), s.Log(), s.Epoch()
	b.at = Mark{0, s.Moment().Wall}
	b.mapped(s.Relays())
	for a := range s.Allocations() {
		since := Mark{0, a.Created.Wall}
		r := &Row{
			Kind: KindAllocation, Allocation: a.ID, Epoch: b.epoch, Span: Span{From: since, until: a.Deadline},
			Username: a.Username, Realm: a.Realm, Transport: a.Transport, Token: a.Token != nil,
		}
		for t := range a.FiveTuples() {
			r.Places = append(r.Places, Place{t, Span{From: since}})
		}
		for _, v := range a.Relayed {
			r.Relayed = append(r.Relayed, Relayed{v, Span{From: since, until: a.DeadlineFor(v.Addr())}})
		}
		for _, p := range a.Permissions {
			r.seed(SortPermission, 0, netip.AddrPortFrom(p.Peer, 0), Span{From: since, until: p.Deadline}, nil)
		}
		for _, c := range a.Channels {
			r.seed(SortChannel, c.Number, c.Peer, Span{From: since, until: c.Deadline}, nil)
		}
		for _, c := range a.Connections {
			r.seed(SortConnection, 0, c.Peer, Span{From: since}, &Connected{ID: c.ID, Client: c.Client.Client})
		}
		for _, u := range a.Usage {
			b.open[a.ID] = r
			b.used(turn.UsageRecorded{Allocation: a.ID, Channel: u.Channel, Peer: u.Peer, Path: u.Path, ToPeer: u.ToPeer, ToClient: u.ToClient})
		}
		b.open[a.ID] = r
	}
}

func (r *Row) seed(sort Sort, n turn.ChannelNumber, peer netip.AddrPort, s Span, c *Connected) {
	r.binding(sort, n, peer).insert(s, c)
}

// cut takes the rows that are complete: of what ended long enough ago to have had its last usage, and all parts and refusals.
// They are in the order of their beginnings.
func (b *Builder) cut() []Row {
	rows := b.rows
	b.rows = nil
	n := 0
	for n < len(b.ended) && (len(b.ended)-n > maxLinger || b.lingered(b.ended[n])) {
		rows = append(rows, *b.ended[n])
		delete(b.over, b.ended[n].Allocation)
		n++
	}
	b.ended = slices.Delete(b.ended, 0, n)
	for _, id := range slices.Sorted(maps.Keys(b.parts)) {
		rows = append(rows, *b.parts[id])
	}
	clear(b.parts)
	sortRows(rows)
	return rows
}

// lingered says whether r ended long enough ago, on the clock of the records.
func (b *Builder) lingered(r *Row) bool {
	return time.Duration(b.moment.Wall-r.gone).Abs() >= linger
}

// each calls f with the rows that no block has yet: all that cut would take, and all that is open and awake.
func (b *Builder) each(f func(*Row)) {
	for i := range b.rows {
		f(&b.rows[i])
	}
	for _, r := range b.ended {
		f(r)
	}
	for _, held := range []map[turn.AllocationID]*Row{b.parts, b.open} {
		for _, r := range held {
			f(r)
		}
	}
}

// unwritten are the rows that no block has yet, in order.
func (b *Builder) unwritten() ([]Row, error) {
	if err := b.wakeAll(); err != nil {
		return nil, err
	}
	var rows []Row
	b.each(func(r *Row) { rows = append(rows, *r) })
	sortRows(rows)
	return rows, nil
}

// sortRows sorts rows by their beginnings. What begins at once is in the order of the log.
func sortRows(rows []Row) {
	starts := make([]int64, len(rows))
	order := make([]int, len(rows))
	for i := range rows {
		starts[i], _ = rows[i].bounds()
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Or(cmp.Compare(starts[a], starts[b]), cmp.Compare(rows[a].From.Seq, rows[b].From.Seq), cmp.Compare(rows[a].Allocation, rows[b].Allocation))
	})
	sorted := make([]Row, len(rows))
	for i, from := range order {
		sorted[i] = rows[from]
	}
	copy(rows, sorted)
}
