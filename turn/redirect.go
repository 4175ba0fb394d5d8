package turn

import (
	"fmt"
	"net/netip"
	"slices"

	"github.com/pion/stun/v3"
)

// Alternate is another server that clients can be sent to.
type Alternate struct {
	Protocol Protocol // of clients, which ask the other server by the same; 0: all
	Address  netip.AddrPort
}

// alternates are the other servers for a client: one of the family of its address, behind it one of the
// other family where there is one (RFC 8489 section 10). Without the first there are none.
func (r *Rules) alternates(t FiveTuple) []netip.AddrPort {
	var out []netip.AddrPort
	for _, v4 := range []bool{t.Client.Addr().Is4(), !t.Client.Addr().Is4()} {
		i := slices.IndexFunc(r.Alternates, func(a Alternate) bool { return a.Address.Addr().Is4() == v4 && a.Protocol == t.Protocol })
		if i < 0 {
			i = slices.IndexFunc(r.Alternates, func(a Alternate) bool { return a.Address.Addr().Is4() == v4 && a.Protocol == 0 })
		}
		if i >= 0 {
			out = append(out, r.Alternates[i].Address)
		} else if len(out) == 0 {
			return nil
		}
	}
	return out
}

// redirect sends the client of q, an Allocate, to other servers, if it is to go (RFC 8656 section 7.2).
// Where nothing can be recorded it does not.
func redirect(r *Rules, q *Request) (Decision, bool) {
	if !r.Draining && !r.Redirect || r.Storage == RoomNone {
		return Decision{}, false
	}
	servers := r.alternates(q.FiveTuple)
	if len(servers) == 0 {
		return Decision{}, false
	}
	return Decision{
		Events: []Event{ClientRedirected{FiveTuple: q.FiveTuple, Tx: q.Tx, Username: q.Username, Realm: q.Realm, Servers: servers}},
		Reply:  q.redirected(r, servers),
	}, true
}

// redirected remembers the answer to a client that was sent elsewhere.
func (s *State) redirected(e ClientRedirected) error {
	var given answer
	if len(e.Servers) == 0 || len(e.Servers) > len(given.addresses) {
		return fmt.Errorf("a client is sent to %v", e.Servers)
	}
	for i, a := range e.Servers {
		given.addresses[i] = pack(a)
	}
	s.answers.remember(transactionOf(e.FiveTuple, KindClientRedirected, e.Tx), given, s.moment)
	return nil
}

// redirected is the answer that sends q elsewhere. Whoever secures the stream and knows RFC 8489 is told what name to
// look for in the certificate there.
func (q *Request) redirected(r *Rules, servers []netip.AddrPort) *Reply {
	reply := q.reply(CodeTryAlternate)
	reply.alternates = servers
	if p := q.FiveTuple.Protocol; q.sha256 && (p == TLS || p == DTLS) {
		reply.domain = r.AlternateDomain
	}
	return reply
}

// addAddress adds an attribute of the form of MAPPED-ADDRESS (RFC 8489 section 14.1).
func addAddress(m *stun.Message, kind stun.AttrType, a netip.AddrPort) {
	must((&stun.MappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}).AddToAs(m, kind))
}
