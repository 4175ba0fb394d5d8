package doctor

import (
	"fmt"
	"net/netip"
	"slices"

	"turnstone/turn"
)

// checkOutside is about whether peers elsewhere reach what relayed addresses are made of. From this host it cannot be
// tried.
func checkOutside(f *Facts) (rows []Row) {
	for _, l := range f.Addresses {
		rows = append(rows, f.outside(l))
	}
	return rows
}

func (f *Facts) outside(l turn.Relay) Row {
	const check = "relay-address"
	if f.Own.Err == nil && !l.IP.IsLoopback() && !slices.Contains(f.Own.Value, l.IP) {
		return ok(check, "no interface has %v", l.IP).as(Fail, "ip addr shows those there are: name one with relay-ip")
	}
	if l.Mapped() {
		return f.external(check, l)
	}
	switch {
	case l.IP.IsLoopback() && f.listensBeyond(l.IP):
		return ok(check, "%v: only this host reaches it, and clients are served elsewhere too", l.IP).as(Warn, "name an address of a network card with relay-ip")
	case l.IP.IsLoopback():
		return ok(check, "%v, of this host, as the listeners are", l.IP)
	case special(l.IP):
		r := ok(check, "%v: peers on the internet do not reach it", l.IP)
		if f.Cloud != "" {
			r.Seen += fmt.Sprintf(", and this is a machine of %s, whose public address is that of a NAT in front of it", f.Cloud)
		}
		return r.as(Warn, "behind a 1:1 NAT external-ip = [\"PUBLIC/%v\"]; for clients and peers of one network it is as it should be", l.IP)
	}
	return ok(check, "%v", l.IP)
}

// external is about an address that a 1:1 NAT is said to have.
func (f *Facts) external(check string, l turn.Relay) Row {
	r := ok(check, "%v stands for %v: turnstone doctor --self-test --server from another host tells whether a NAT does that", l.External, l.IP)
	switch {
	case slices.Contains(f.Own.Value, l.External):
		r.Seen = fmt.Sprintf("external-ip has %v, which is an address of this host and of no NAT in front of it", l.External)
		return r.as(Warn, "relay-ip = [\"%v\"] in place of external-ip", l.External)
	case special(l.External):
		r.Seen = fmt.Sprintf("external-ip has %v, which peers on the internet do not reach", l.External)
		return r.as(Warn, "external-ip takes the public address of the NAT; for clients and peers of one network it is as it should be")
	}
	return r
}

// special says whether a is an address that means something within a network alone.
func special(a netip.Addr) bool {
	var anyone turn.Policy
	return anyone.Judge(a) == turn.Special
}

// listensBeyond says whether clients of other hosts are served in the family of a.
func (f *Facts) listensBeyond(a netip.Addr) bool {
	return slices.ContainsFunc(f.Serves, func(at netip.AddrPort) bool { return at.Addr().Is4() == a.Is4() && !at.Addr().IsLoopback() })
}
