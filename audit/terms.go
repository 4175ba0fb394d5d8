package audit

import (
	"encoding/binary"
	"net/netip"

	"turnstone/turn"
)

// term is what a posting list is named by (see [cipher.term]).
type term uint64

// Fields of terms. The numbers are part of index.db.
const (
	termAllocation = 1
	termClient     = 2
	termUser       = 3
	termRealm      = 4
	termPort       = 5 // of a relayed address
	termPeer       = 6 // without the port
	termChannel    = 7
	termRefused    = 8 // of refusals and redirects
)

func number64(n uint64) []byte { return binary.BigEndian.AppendUint64(nil, n) }

// widths are the prefixes of clients that there are terms of, by address family.
func widths(a netip.Addr) []int {
	if a.Is4() {
		return []int{32, 24, 16}
	}
	return []int{128, 64, 48}
}

func prefixValue(p netip.Prefix) []byte {
	return append([]byte{byte(p.Bits())}, p.Masked().Addr().AsSlice()...)
}

// value is a field and one of its values, as a term is made of them.
type value struct {
	field byte
	value string
}

// valuesOf calls add with all that r can be found by.
func valuesOf(r *Row, add func(value)) {
	put := func(field byte, v []byte) { add(value{field, string(v)}) }
	if r.Allocation != 0 {
		put(termAllocation, number64(uint64(r.Allocation)))
	}
	client := func(a netip.Addr) {
		if !a.IsValid() {
			return
		}
		for _, bits := range widths(a) {
			put(termClient, prefixValue(netip.PrefixFrom(a, bits)))
		}
	}
	if r.Username != "" {
		put(termUser, []byte(turn.Owner(r.Username)))
	}
	if r.Realm != "" {
		put(termRealm, []byte(r.Realm))
	}
	for i := range r.Places {
		client(r.Places[i].Client.Addr())
	}
	for i := range r.Relayed {
		put(termPort, number64(uint64(r.Relayed[i].Address.Port())))
	}
	for i := range r.Bindings {
		b := &r.Bindings[i]
		if b.Peer.IsValid() {
			put(termPeer, b.Peer.Addr().AsSlice())
		}
		if b.Channel != 0 {
			put(termChannel, number64(uint64(b.Channel)))
		}
	}
	if r.Refused != nil {
		put(termRefused, nil)
	}
	if f := r.Refused; f != nil && r.Kind == KindRefusal {
		client(f.Client.Addr())
		if f.Peer.IsValid() {
			put(termPeer, f.Peer.AsSlice())
		}
	}
}

// lookups are what rows that m matches can be found by: each of the lists has to have one of its values in common with a
// row. There are none where m asks for no such thing.
func (m *matcher) lookups() (all [][]value) {
	one := func(field byte, v []byte) { all = append(all, []value{{field, string(v)}}) }
	if m.Refused {
		one(termRefused, nil)
	}
	if m.Allocation != 0 {
		one(termAllocation, number64(uint64(m.Allocation)))
	}
	if list := clientValues(m.Client); list != nil {
		all = append(all, list)
	}
	if m.User != "" {
		var list []value
		for _, n := range m.names() {
			list = append(list, value{termUser, turn.Owner(n)})
		}
		all = append(all, list)
	}
	if m.Realm != "" {
		one(termRealm, []byte(m.Realm))
	}
	if port := max(m.Relay, m.Relayed.Port()); port != 0 {
		one(termPort, number64(uint64(port)))
	}
	if m.Peer.IsValid() {
		list := []value{{termPeer, string(m.Peer.Addr().AsSlice())}}
		for _, p := range m.mappings {
			if p.External == m.Peer.Addr() && p.IP != p.External {
				list = append(list, value{termPeer, string(p.IP.AsSlice())})
			}
		}
		all = append(all, list)
	}
	if m.Channel != 0 {
		one(termChannel, number64(uint64(m.Channel)))
	}
	return all
}

// clientValues are the values that clients within p have one of, nil where they are too many.
func clientValues(p netip.Prefix) []value {
	if !p.IsValid() {
		return nil
	}
	all := widths(p.Addr())
	for _, bits := range all {
		if bits <= p.Bits() { // p lies within one of that width
			return []value{{termClient, string(prefixValue(netip.PrefixFrom(p.Addr(), bits)))}}
		}
	}
	bits := all[len(all)-1]
	if bits-p.Bits() > 8 {
		return nil
	}
	var out []value
	last := lastOf(p)
	for a := p.Masked().Addr(); p.Contains(a); {
		one := netip.PrefixFrom(a, bits)
		out = append(out, value{termClient, string(prefixValue(one))})
		if lastOf(one) == last {
			break
		}
		a = lastOf(one).Next()
	}
	return out
}

// lastOf is the last address of p.
func lastOf(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // of the length of an address
	return a
}
