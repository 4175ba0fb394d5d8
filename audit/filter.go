package audit

import (
	"bytes"
	"encoding/binary"
	"math"
	"net/netip"
	"slices"

	"turnstone/turn"
)

// Filter says which rows are wanted: those that every field that is set fits. The zero Filter is of all allocations.
//
// From and To are about whatever the other fields name: with a client, that the client was there then; with a peer or channel, that the
// binding lasted then; with a relayed address, that the allocation had it then.
type Filter struct {
	Client     netip.Prefix // the client came from one of these addresses
	Port       uint16       // of its client; with Client
	User       string       // its username, or the user in a time-limited one (see [turn.Owner])
	Also       [2]string    // other names that User is called by in the log
	Realm      string
	Relayed    netip.AddrPort // port 0: any. The address may be the external one
	Relay      uint16         // port of a relayed address
	Peer       netip.AddrPort // port 0: any
	Channel    turn.ChannelNumber
	Allocation turn.AllocationID
	From, To   int64 // wall time, both included; 0: no bound
	Refused    bool  // refused requests and redirects instead of allocations
}

// window is the time f is about.
func (f *Filter) window() (from, to int64) {
	from, to = f.From, f.To
	if to == 0 {
		to = math.MaxInt64
	}
	return from, to
}

// during says whether s lasted within the time f is about.
func (f *Filter) during(s *Span) bool {
	lo, hi := s.bounds()
	from, to := f.window()
	return lo <= to && hi >= from
}

// matcher is a Filter with what the index knows of the relay's addresses.
type matcher struct {
	Filter
	mappings []Mapping
}

// match says whether r is wanted. R is whole: no part of it is elsewhere.
func (m *matcher) match(r *Row) bool {
	if m.Refused != (r.Refused != nil) || !m.during(&r.Span) {
		return false
	}
	switch {
	case m.Allocation != 0 && r.Allocation != m.Allocation,
		m.User != "" && !m.called(r.Username),
		m.Realm != "" && r.Realm != m.Realm:
		return false
	}
	if r.Refused != nil {
		return m.refused(r.Refused)
	}
	return m.place(r) && m.relayed(r) && (!m.binds() || slices.ContainsFunc(r.Bindings, func(b Binding) bool { return m.bound(&b) }))
}

// sight says of a row of an open allocation in its stored form whether it may match, as far as its bytes tell without
// decoding it: what is asked for by its value stands in them as it is.
func (m *matcher) sight() func(row []byte) bool {
	var want [][][]byte // of each, one at least
	need := func(any ...[]byte) { want = append(want, any) }
	if m.User != "" {
		var names [][]byte
		for _, n := range m.names() {
			names = append(names, []byte(n))
		}
		need(names...)
	}
	need([]byte(m.Realm))
	if m.Client.IsSingleIP() {
		need(m.Client.Addr().AsSlice())
	}
	if len(m.mappings) == 0 { // else it may stand there by another address
		need(m.Relayed.Addr().AsSlice())
		need(m.Peer.Addr().AsSlice())
	}
	for _, n := range []uint16{m.Port, m.Relayed.Port(), m.Relay, uint16(m.Channel)} {
		if n != 0 {
			need(binary.AppendUvarint(nil, uint64(n)))
		}
	}
	return func(row []byte) bool {
		return !m.Refused && !slices.ContainsFunc(want, func(any [][]byte) bool {
			return !slices.ContainsFunc(any, func(one []byte) bool { return bytes.Contains(row, one) })
		})
	}
}

// names are what the user may be called.
func (f *Filter) names() []string {
	out := []string{f.User}
	for _, also := range f.Also {
		if also != "" {
			out = append(out, also)
		}
	}
	return out
}

// called says whether username is one of the user that is asked for.
func (f *Filter) called(username string) bool {
	return slices.ContainsFunc(f.names(), func(n string) bool { return username == n || turn.Owner(username) == n })
}

func (m *matcher) refused(f *Refused) bool {
	switch {
	case m.Client.IsValid() && (!f.Client.IsValid() || !m.Client.Contains(f.Client.Addr())), m.Port != 0 && f.Client.Port() != m.Port,
		m.Peer.IsValid() && (!f.Peer.IsValid() || !m.peer(netip.AddrPortFrom(f.Peer, 0))):
		return false
	}
	return !m.Relayed.IsValid() && m.Relay == 0 && m.Channel == 0 && m.Allocation == 0
}

func (m *matcher) place(r *Row) bool {
	return !m.Client.IsValid() || slices.ContainsFunc(r.Places, func(p Place) bool {
		return m.Client.Contains(p.Client.Addr()) && (m.Port == 0 || p.Client.Port() == m.Port) && m.during(&p.Span)
	})
}

func (m *matcher) relayed(r *Row) bool {
	if !m.Relayed.IsValid() && m.Relay == 0 {
		return true
	}
	return slices.ContainsFunc(r.Relayed, func(v Relayed) bool {
		switch {
		case m.Relay != 0 && v.Address.Port() != m.Relay, m.Relayed.Port() != 0 && v.Address.Port() != m.Relayed.Port(),
			m.Relayed.IsValid() && !m.same(v.Address.Addr(), m.Relayed.Addr(), &v.Span):
			return false
		}
		return m.during(&v.Span)
	})
}

// same says whether held, as the log has it, is asked, or the address behind that while s lasted.
func (m *matcher) same(held, asked netip.Addr, s *Span) bool {
	if held == asked {
		return true
	}
	lo, hi := s.bounds()
	return slices.ContainsFunc(m.mappings, func(p Mapping) bool {
		from, to := p.bounds()
		return p.External == asked && p.IP == held && from <= hi && to >= lo
	})
}

// binds says whether f is about single bindings.
func (f *Filter) binds() bool { return f.Peer.IsValid() || f.Channel != 0 }

// bound says whether b fits what m asks of bindings.
func (m *matcher) bound(b *Binding) bool {
	switch {
	case m.Channel != 0 && (b.Sort != SortChannel || b.Channel != m.Channel), m.Peer.IsValid() && !m.peer(b.Peer):
		return false
	}
	return len(b.Spans) == 0 && len(b.Uses) > 0 || slices.ContainsFunc(b.Spans, func(s Span) bool { return m.during(&s) })
}

// peer says whether p, whose port is 0 where it stands for all of them, is the peer that is asked for. Peers on the
// relay's own addresses are held by their private ones.
func (m *matcher) peer(p netip.AddrPort) bool {
	if !p.IsValid() || m.Peer.Port() != 0 && p.Port() != 0 && p.Port() != m.Peer.Port() {
		return false
	}
	always := Span{}
	return m.same(p.Addr(), m.Peer.Addr(), &always)
}
