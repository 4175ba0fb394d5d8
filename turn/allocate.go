package turn

import (
	"iter"
	"math/rand/v2"
	"net/netip"
)

const (
	transportUDP = 17
	familyIPv4   = 1
	familyIPv6   = 2

	// portTries bounds how many free ports are proposed for one Allocate.
	portTries = 32
)

// allocate is RFC 8656 section 7.2, up to the port.
func allocate(s *State, r *Rules, q *Request, a *Allocation) Decision {
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
	switch {
	case !ok:
		return q.refuse(CodeFamilyNotSupported)
	case r.MaxPerOwner > 0 && s.byOwner[Owner(q.Username)] >= r.MaxPerOwner:
		return q.refuse(CodeQuotaReached)
	case q.reserve: // no port is reserved: RFC 8656 section 7.2, step 8
		return q.refuse(CodeInsufficientCapacity)
	case r.MaxAllocations > 0 && len(s.allocations) >= r.MaxAllocations, r.Draining, r.Storage != RoomFine:
		return q.refuse(CodeInsufficientCapacity)
	}
	return Decision{Ports: &PortPlan{state: s, ip: relay.IP, first: r.FirstPort, last: r.LastPort, even: q.evenPort, entropy: q.Entropy}}
}

// DecideBound ends what Decide began for an Allocate: relayed is what was bound
// of its [PortPlan], empty where nothing could be. State and rules must be as they were.
func DecideBound(s *State, r *Rules, q *Request, _ Moment, relayed []netip.AddrPort) Decision {
	if len(relayed) == 0 {
		return q.refuse(CodeInsufficientCapacity)
	}
	e := AllocationCreated{
		Allocation: s.last + 1, Tx: q.Tx, FiveTuple: q.FiveTuple, Relayed: relayed,
		Transport: q.transport, Username: q.Username, Realm: q.Realm, Lifetime: r.lifetime(q),
	}
	reply := q.reply(0)
	reply.grant(r, q, relayed, e.Lifetime)
	return Decision{Events: []Event{e}, Reply: reply}
}

// PortPlan proposes relayed transport addresses for one allocation.
type PortPlan struct {
	state       *State
	ip          netip.Addr
	first, last uint16
	even        bool
	entropy     [32]byte
}

// Candidates walks a bounded number of addresses no allocation has, in an order
// drawn from the entropy: by chance first, so that ports cannot be guessed, and
// where that finds too few because the range is nearly full, in turn from a
// random start.
func (p *PortPlan) Candidates() iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		source := rand.New(rand.NewChaCha8(p.entropy)) //nolint:gosec // a CSPRNG seeded with crypto entropy
		size := uint32(p.last) - uint32(p.first) + 1
		tries := 0
		propose := func(offset uint32) bool {
			a := netip.AddrPortFrom(p.ip, p.first+uint16(offset))
			if p.state.byRelayed[a] != nil || (p.even && a.Port()%2 != 0) {
				return true
			}
			tries++
			return yield(a) && tries < portTries
		}
		for range 4 * portTries {
			if !propose(source.Uint32N(size)) {
				return
			}
		}
		start := source.Uint32N(size)
		for i := range size {
			if !propose((start + i) % size) {
				return
			}
		}
	}
}
