package audit

import (
	"net/netip"
	"slices"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// Answer is a row as it is shown. Times are UTC; those of what is open or was not seen are zero. Sequences are those of the
// events that prove what they stand beside.
type Answer struct {
	Kind       string            `json:"kind"` // "allocation", "refused" or "redirected"
	Allocation turn.AllocationID `json:"allocation,omitempty"`
	Username   string            `json:"username"`
	Realm      string            `json:"realm"`
	Token      bool              `json:"token,omitempty"`     // it was proved by an access token
	Transport  string            `json:"transport,omitempty"` // of the relayed address
	Epoch      uint64            `json:"epoch"`
	Period
	Clients  []Client  `json:"clients,omitempty"`
	Relayed  []Address `json:"relayed,omitempty"`
	Bindings []Bound   `json:"bindings,omitempty"`

	Client  string     `json:"client,omitempty"` // of refusals
	Method  string     `json:"method,omitempty"`
	Code    uint16     `json:"code,omitempty"`
	Count   uint64     `json:"count,omitempty"`
	Peer    string     `json:"peer,omitempty"`
	Servers []string   `json:"servers,omitempty"`
	Others  bool       `json:"others,omitempty"` // what found no room of its own
	Events  []turn.Seq `json:"events"`           // all that prove it, in order
}

// Period is how long something was.
type Period struct {
	From  time.Time `json:"from,omitzero"`
	To    time.Time `json:"to,omitzero"`
	Ended string    `json:"ended,omitempty"` // why, empty while it lasts
	Began turn.Seq  `json:"began,omitempty"`
	Over  turn.Seq  `json:"over,omitempty"`
}

// Client is a five-tuple that the client could be had at.
type Client struct {
	Client   string `json:"client"`
	Server   string `json:"server"`
	Protocol string `json:"protocol"`
	Period
}

// Address is a relayed transport address.
type Address struct {
	Address  string `json:"address"`
	External string `json:"external,omitempty"` // where a NAT is in front
	Period
}

// Bound is what an allocation could relay to.
type Bound struct {
	Binding  string             `json:"binding"` // "permission", "channel", "connection" or "indications"
	Channel  turn.ChannelNumber `json:"channel,omitempty"`
	Peer     string             `json:"peer,omitempty"`
	External string             `json:"external,omitempty"` // of a peer on this relay
	Matched  bool               `json:"matched"`            // it is what was asked for
	Periods  []BoundPeriod      `json:"periods"`
	Usage    []Usage            `json:"usage"`
}

// BoundPeriod is one time that a binding lasted.
type BoundPeriod struct {
	Period
	Connection *turn.ConnectionID `json:"connection,omitempty"`
	Data       string             `json:"data,omitempty"` // where the client's data connection came from
	DataEvent  turn.Seq           `json:"data_event,omitempty"`
}

// Usage is what a binding has relayed on one path, in all its periods.
type Usage struct {
	Path     turn.Path  `json:"path"`
	ToPeer   turn.Count `json:"to_peer"`
	ToClient turn.Count `json:"to_client"`
	Event    turn.Seq   `json:"event,omitempty"`
}

func moment(wall int64) time.Time {
	if wall == 0 {
		return time.Time{}
	}
	return time.Unix(0, wall).UTC()
}

func periodOf(s *Span) Period {
	p := Period{From: moment(s.From.Wall), Began: s.From.Seq}
	if s.Why != WhyOpen {
		p.To, p.Ended, p.Over = moment(s.To.Wall), s.Why.String(), s.To.Seq
	}
	return p
}

// text is an address, empty where there is none.
func text(a netip.AddrPort) string {
	switch {
	case !a.IsValid():
		return ""
	case a.Port() == 0:
		return a.Addr().String()
	}
	return a.String()
}

// transports are the names of REQUESTED-TRANSPORT.
var transports = map[uint8]string{6: "tcp", 17: "udp"}

// answer shows r.
func (m *matcher) answer(r *Row) Answer {
	a := Answer{
		Kind: "allocation", Allocation: r.Allocation, Username: r.Username, Realm: r.Realm, Token: r.Token,
		Transport: transports[r.Transport], Epoch: r.Epoch, Period: periodOf(&r.Span), Events: events(r),
	}
	for i := range r.Places {
		p := &r.Places[i]
		a.Clients = append(a.Clients, Client{text(p.Client), text(p.Server), p.Protocol.String(), periodOf(&p.Span)})
	}
	for i := range r.Relayed {
		v := &r.Relayed[i]
		a.Relayed = append(a.Relayed, Address{text(v.Address), m.outside(v.Address, &v.Span), periodOf(&v.Span)})
	}
	for i := range r.Bindings {
		a.Bindings = append(a.Bindings, m.boundOf(&r.Bindings[i]))
	}
	if f := r.Refused; f != nil {
		a.Kind, a.Ended, a.Over = "refused", "", 0
		if r.Kind == KindRedirect {
			a.Kind = "redirected"
		}
		a.Client, a.Method, a.Code, a.Count, a.Others = text(f.Client), stun.Method(f.Method).String(), f.Code, f.Count, f.Others
		if f.Others {
			a.Method = ""
		}
		if f.Peer.IsValid() {
			a.Peer = f.Peer.String()
		}
		for _, s := range f.Servers {
			a.Servers = append(a.Servers, s.String())
		}
	}
	return a
}

// outside is how clients and peers know a, empty where it is no other.
func (m *matcher) outside(a netip.AddrPort, s *Span) string {
	if !a.IsValid() {
		return ""
	}
	if out := external(m.mappings, a.Addr(), s); out != a.Addr() {
		return text(netip.AddrPortFrom(out, a.Port()))
	}
	return ""
}

func (m *matcher) boundOf(b *Binding) Bound {
	out := Bound{Binding: b.Sort.String(), Channel: b.Channel, Peer: text(b.Peer), Matched: m.bound(b), Periods: []BoundPeriod{}, Usage: []Usage{}}
	for i := range b.Spans {
		p := BoundPeriod{Period: periodOf(&b.Spans[i])}
		if c := b.connected(i); c != nil {
			p.Connection, p.Data, p.DataEvent = &c.ID, text(c.Client), c.Bound.Seq
		}
		out.Periods = append(out.Periods, p)
		out.External = m.outside(b.Peer, &b.Spans[i])
	}
	for _, u := range b.Uses {
		out.Usage = append(out.Usage, Usage{u.Path, u.ToPeer, u.ToClient, u.At.Seq})
	}
	return out
}

// events are the sequences of all that r was made of and that prove it.
func events(r *Row) []turn.Seq {
	out := []turn.Seq{r.From.Seq, r.To.Seq}
	r.spans(func(s *Span) { out = append(out, s.From.Seq, s.To.Seq) })
	for i := range r.Bindings {
		for _, c := range r.Bindings[i].Connections {
			out = append(out, c.Bound.Seq)
		}
		for _, u := range r.Bindings[i].Uses {
			out = append(out, u.At.Seq)
		}
	}
	slices.Sort(out)
	out = slices.Compact(out)
	if len(out) > 0 && out[0] == 0 {
		out = out[1:]
	}
	return out
}

// ClientOf is the five-tuple of a that f asks for, or the last one.
func (a *Answer) ClientOf(f Filter) (c Client) {
	for _, one := range a.Clients {
		c = one
		if at, err := netip.ParseAddrPort(one.Client); err == nil && f.Client.IsValid() && f.Client.Contains(at.Addr()) && (f.Port == 0 || f.Port == at.Port()) {
			break
		}
	}
	return c
}

// RelayedOf is the relayed address of a that f asks for, or the first one.
func (a *Answer) RelayedOf(f Filter) (v Address) {
	asked := max(f.Relay, f.Relayed.Port())
	for i, one := range a.Relayed {
		at, err := netip.ParseAddrPort(one.Address)
		if i == 0 || err == nil && asked != 0 && at.Port() == asked && (!f.Relayed.IsValid() || at.Addr().Is4() == f.Relayed.Addr().Is4()) {
			v = one
		}
	}
	return v
}
