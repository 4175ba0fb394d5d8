package turn

import "net/netip"

const (
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
	case q.transport != transportUDP:
		return q.refuse(CodeUnsupportedTransport)
	case q.hasFamily && q.family != familyIPv4 && q.family != familyIPv6:
		return q.refuse(CodeFamilyNotSupported)
	}
	relay, ok := r.relay(q.family != familyIPv6)
	if !ok {
		return q.refuse(CodeFamilyNotSupported)
	}
	all, owned := s.count(Owner(q.Username), m)
	switch {
	case r.MaxPerOwner > 0 && owned >= r.MaxPerOwner:
		return q.refuse(CodeQuotaReached)
	case q.reserve: // no port is reserved: RFC 8656 section 7.2
		return q.refuse(CodeInsufficientCapacity)
	case r.MaxAllocations > 0 && all >= r.MaxAllocations, r.Draining, r.Storage != RoomFine:
		return q.refuse(CodeInsufficientCapacity)
	}
	return Decision{Ports: &PortPlan{state: s, ip: relay.IP, first: r.FirstPort, last: r.LastPort, even: q.evenPort, entropy: q.Entropy}}
}

// DecideBound ends what Decide began for an Allocate: relayed is what was bound
// of its [PortPlan], empty where nothing could be. State and rules must be as they were.
func DecideBound(s *State, r *Rules, q *Request, m Moment, relayed []netip.AddrPort) Decision {
	if len(relayed) == 0 {
		return q.refuse(CodeInsufficientCapacity)
	}
	_, over := s.live(s.byFiveTuple[q.FiveTuple], m)
	e := AllocationCreated{
		Allocation: s.last + 1, Tx: q.Tx, FiveTuple: q.FiveTuple, Relayed: relayed,
		Transport: q.transport, Username: q.Username, Realm: q.Realm, Lifetime: r.lifetime(q),
	}
	reply := q.reply(0)
	reply.grant(r, q, relayed, e.Lifetime)
	return Decision{Events: append(over, e), Reply: reply}
}
