package audit

import (
	"cmp"
	"fmt"
	"math"
	"net/netip"
	"slices"

	"turnstone/turn"
)

// Kind is what a row is about. The numbers are part of index.db.
type Kind uint8

// Kinds of rows.
const (
	KindAllocation Kind = 1
	KindPart       Kind = 2 // more of an allocation whose row is elsewhere
	KindRefusal    Kind = 3
	KindRedirect   Kind = 4
)

// Mark is an event: its sequence and the wall time of its record. A Seq of zero is an event that is not in the log any
// more: then it was at Wall or later.
type Mark struct {
	Seq  turn.Seq
	Wall int64
}

// Why says how something ended: for a [turn.Reason], or for one of those below. The numbers are part of index.db.
type Why uint16

// Ends that have no reason in their event.
const (
	WhyOpen       Why = 0
	WhyExpired    Why = 0x100
	WhyAllocation Why = 0x101 // with its allocation
	WhyRelayed    Why = 0x102 // with the relayed address of its family
)

func (w Why) String() string {
	switch w {
	case WhyOpen:
		return ""
	case WhyExpired:
		return "expired"
	case WhyAllocation:
		return "with-allocation"
	case WhyRelayed:
		return "with-relayed"
	}
	if w > math.MaxUint8 {
		return fmt.Sprintf("why(%d)", uint16(w))
	}
	return turn.Reason(w).String()
}

// Span is how long something was. It is over where Why is not zero: at the wall time of To, which for what expired is when it
// was to, if the log says so later than that.
type Span struct {
	From, To Mark
	Why      Why
	until    turn.Deadline // it was last granted until, zero for no bound
}

// end ends s by the event seq at m.
func (s *Span) end(seq turn.Seq, m turn.Moment, why Why) {
	if s.Why != WhyOpen {
		return
	}
	s.To, s.Why = Mark{seq, m.Wall}, why
	if s.until != (turn.Deadline{}) && s.until.Passed(m) {
		s.To.Wall += int64(s.until.Uptime - m.Uptime)
	}
	s.until = turn.Deadline{}
}

// bounds are the first and last wall time of s. Where the clock went back within it, they are in order all the same.
func (s *Span) bounds() (lo, hi int64) {
	if s.Why == WhyOpen {
		return s.From.Wall, math.MaxInt64
	}
	return min(s.From.Wall, s.To.Wall), max(s.From.Wall, s.To.Wall)
}

// Place is a five-tuple that a client could be had at.
type Place struct {
	turn.FiveTuple
	Span
}

// Relayed is a relayed transport address, in the form the log holds: behind a 1:1 NAT the private one.
type Relayed struct {
	Address netip.AddrPort
	Span
}

// Sort is what a binding is. The numbers are part of index.db.
type Sort uint8

// Sorts of bindings.
const (
	SortPermission  Sort = 1
	SortChannel     Sort = 2
	SortConnection  Sort = 3 // of TCP (RFC 6062)
	SortIndications Sort = 4 // all Send and Data indications: the log does not count them by peer
)

func (s Sort) String() string {
	switch s {
	case SortPermission:
		return "permission"
	case SortChannel:
		return "channel"
	case SortConnection:
		return "connection"
	case SortIndications:
		return "indications"
	}
	return fmt.Sprintf("sort(%d)", uint8(s))
}

// Use is the last usage recorded of a binding on one path: what it has relayed in all its spans.
type Use struct {
	Path             turn.Path
	ToPeer, ToClient turn.Count
	At               Mark
}

// Connected is what is special about a span of a connection.
type Connected struct {
	ID     turn.ConnectionID
	Client netip.AddrPort // of the data connection, invalid until it is bound
	Bound  Mark
}

// Binding is one peer that an allocation could relay to, as long as one of its spans lasts.
type Binding struct {
	Sort        Sort
	Channel     turn.ChannelNumber
	Peer        netip.AddrPort // port 0 in a permission, which is for all of them; invalid for indications
	Spans       []Span
	Connections []Connected // one for each span of a connection
	Uses        []Use       // by path
}

// Refused is what is special about rows of refusals and redirects.
type Refused struct {
	Client  netip.AddrPort // port 0 for refusals, which are summed up
	Method  uint16
	Code    uint16
	Count   uint64
	Peer    netip.Addr       // that was refused, invalid where it is not about one
	Servers []netip.AddrPort // that the client was sent to
	Others  bool             // what was counted without telling apart
}

// Row is one allocation with all that is known of it, or refused requests of one sort.
type Row struct {
	Kind       Kind
	Allocation turn.AllocationID
	Epoch      uint64 // of the log when it began
	Span
	Username, Realm string
	Transport       uint8 // REQUESTED-TRANSPORT
	Token           bool  // its client has shown an access token (RFC 7635)
	Places          []Place
	Relayed         []Relayed
	Bindings        []Binding
	Refused         *Refused // nil for allocations

	closed int   // spans within r that are over
	gone   int64 // wall time of the event that ended it
}

// bounds are the first and last wall time of all that r holds.
func (r *Row) bounds() (lo, hi int64) {
	if r.Kind != KindPart {
		return r.Span.bounds()
	}
	lo, hi = math.MaxInt64, math.MinInt64
	r.spans(func(s *Span) {
		from, to := s.bounds()
		lo, hi = min(lo, from), max(hi, to)
	})
	for i := range r.Bindings {
		for _, u := range r.Bindings[i].Uses {
			lo, hi = min(lo, u.At.Wall), max(hi, u.At.Wall)
		}
	}
	return lo, hi
}

// over ends a span within r, if it lasts.
func (r *Row) over(s *Span, seq turn.Seq, m turn.Moment, why Why) {
	if s.Why == WhyOpen {
		s.end(seq, m, why)
		r.closed++
	}
}

// spans calls f with every span within r.
func (r *Row) spans(f func(*Span)) {
	for i := range r.Places {
		f(&r.Places[i].Span)
	}
	for i := range r.Relayed {
		f(&r.Relayed[i].Span)
	}
	for i := range r.Bindings {
		for j := range r.Bindings[i].Spans {
			f(&r.Bindings[i].Spans[j])
		}
	}
}

// binding is the binding of r to a peer, made where there is none.
func (r *Row) binding(sort Sort, channel turn.ChannelNumber, peer netip.AddrPort) *Binding {
	for i := range r.Bindings {
		if b := &r.Bindings[i]; b.Sort == sort && b.Channel == channel && b.Peer == peer {
			return b
		}
	}
	r.Bindings = append(r.Bindings, Binding{Sort: sort, Channel: channel, Peer: peer})
	return &r.Bindings[len(r.Bindings)-1]
}

// open is the span of b that lasts, nil where none does.
func (b *Binding) open() *Span {
	if n := len(b.Spans); n > 0 && b.Spans[n-1].Why == WhyOpen {
		return &b.Spans[n-1]
	}
	return nil
}

// use is the usage of b on a path, made where there is none.
func (b *Binding) use(p turn.Path) *Use {
	for i := range b.Uses {
		if b.Uses[i].Path == p {
			return &b.Uses[i]
		}
	}
	b.Uses = append(b.Uses, Use{Path: p})
	return &b.Uses[len(b.Uses)-1]
}

// absorb adds what p holds to r, which is about the same allocation.
func (r *Row) absorb(p *Row) {
	if r.Kind == KindPart && p.Kind == KindAllocation {
		head := *p
		head.Places, head.Relayed, head.Bindings = r.Places, r.Relayed, r.Bindings
		*r = head
	}
	r.Places = sortedBy(append(r.Places, p.Places...), func(v *Place) Mark { return v.From })
	r.Relayed = sortedBy(append(r.Relayed, p.Relayed...), func(v *Relayed) Mark { return v.From })
	for i := range p.Bindings {
		more := &p.Bindings[i]
		b := r.binding(more.Sort, more.Channel, more.Peer)
		for j, s := range more.Spans {
			b.insert(s, more.connected(j))
		}
		for _, u := range more.Uses {
			if known := b.use(u.Path); u.At.Seq >= known.At.Seq {
				*known = u
			}
		}
	}
}

// connected is what is special about span i of b, nil where that is no connection.
func (b *Binding) connected(i int) *Connected {
	if i < len(b.Connections) {
		return &b.Connections[i]
	}
	return nil
}

// insert adds a span to b in the order in which they began.
func (b *Binding) insert(s Span, c *Connected) {
	i := len(b.Spans)
	for i > 0 && b.Spans[i-1].From.Seq > s.From.Seq {
		i--
	}
	b.Spans = slices.Insert(b.Spans, i, s)
	if c != nil {
		b.Connections = slices.Insert(b.Connections, i, *c)
	}
}

// sortedBy is list in the order of its marks.
func sortedBy[T any](list []T, from func(*T) Mark) []T {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(from(&a).Seq, from(&b).Seq) })
	return list
}
