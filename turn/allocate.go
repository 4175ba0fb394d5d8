package turn

import (
	"cmp"
	"net/netip"
	"time"
)

const (
	transportTCP = 6
	transportUDP = 17
	familyIPv4   = 1
	familyIPv6   = 2
)

// allocate is RFC 8656 section 7.2, up to the port.
func allocate(s *State, r *Rules, q *Request, a *Allocation, m Moment) Decision {
	switch {
	case a != nil:
		return q.refuse(CodeAllocationMismatch)
	case q.malformed, !q.hasTransport:
		return q.refuse(CodeBadRequest)
	case q.transport != transportUDP && (q.transport != transportTCP || r.NoConnections):
		return q.refuse(CodeUnsupportedTransport)
	case q.hasToken && q.evenPort:
		return q.refuse(CodeBadRequest)
	}
	if code := cmp.Or(q.asksTCP(), q.asksFamilies(), q.asksMobility(r)); code != 0 {
		return q.refuse(code)
	}
	if q.hasToken {
		return redeem(s, r, q, m)
	}
	if d, ok := redirect(r, q); ok {
		return d
	}
	ports := plans(s, r, q)
	if len(ports) == 0 {
		return q.refuse(CodeFamilyNotSupported)
	}
	more := 1
	if q.reserve {
		more++
	}
	if code := lacks(s, r, q, more, m); code != 0 {
		return q.refuse(code)
	}
	return Decision{Ports: ports}
}

// lacks says with what code more allocations and reservations are refused, 0 for none.
func lacks(s *State, r *Rules, q *Request, more int, m Moment) int {
	all, owned, realm := s.count(HolderOf(q.Realm, q.Username), m)
	switch {
	case r.MaxPerOwner > 0 && owned+more > r.MaxPerOwner, r.MaxPerRealm > 0 && realm+more > r.MaxPerRealm:
		return CodeQuotaReached
	case r.MaxAllocations > 0 && all+more > r.MaxAllocations, r.Draining, r.Storage != RoomFine:
		return CodeInsufficientCapacity
	}
	return 0
}

// DecideBound ends what Decide began for an Allocate: bound is what was bound
// of its plans, for a pair both, empty where nothing could be. State and rules must be as they were.
func DecideBound(s *State, r *Rules, q *Request, m Moment, bound []netip.AddrPort) Decision {
	if len(bound) == 0 {
		return q.refuse(CodeInsufficientCapacity)
	}
	relayed := bound
	if q.reserve {
		relayed = bound[:1]
	}
	_, events := s.live(s.byFiveTuple[q.FiveTuple], m)
	e := AllocationCreated{
		Allocation: s.last + 1, Tx: q.Tx, FiveTuple: q.FiveTuple, Relayed: relayed,
		Transport: q.transport, Username: q.Username, Realm: q.Realm, Lifetime: r.lifetime(q),
	}
	events = append(events, e)
	if q.access != nil {
		events = append(events, TokenAccepted{Allocation: e.Allocation, Tx: q.Tx, Token: q.access})
	}
	reply := q.reply(0)
	reply.grant(r, q, relayed, e.Lifetime)
	if q.hasTicket {
		events = append(events, TicketIssued{Allocation: e.Allocation, Tx: q.Tx})
		reply.ticketed(s, r, e.Allocation, 1)
	}
	if reply.lacks = q.lacking(r, relayed); reply.lacks != (lack{}) {
		events = append(events, FamilyRefused{Allocation: e.Allocation, Tx: q.Tx, Family: reply.lacks.family, Code: reply.lacks.code})
	}
	if q.reserve {
		reply.token = s.newToken(q.Entropy)
		events = append(events, ReservationMade{
			Allocation: e.Allocation, Tx: q.Tx, Relayed: bound[1], Token: reply.token,
			Lifetime: uint32(ReservationLifetime / time.Second),
		})
	}
	return Decision{Events: events, Reply: reply}
}
