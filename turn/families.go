package turn

import (
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// lack says of which of two address families that a client asked for it has no relayed
// address, and why. Zero is none.
type lack struct {
	family uint8
	code   uint16
}

// value is an ADDRESS-ERROR-CODE (RFC 8656 section 18.12).
func (l lack) value() []byte {
	return append([]byte{l.family, 0, byte(l.code / 100), byte(l.code % 100)}, reasonPhrases[int(l.code)]...)
}

func familyOf(a netip.Addr) uint8 {
	if a.Is4() {
		return familyIPv4
	}
	return familyIPv6
}

// paired says whether a has one relayed address, or two of different families with a
// deadline each, the last of which is its own.
func (a *Allocation) paired() bool {
	if len(a.Relayed) != 2 {
		return len(a.Relayed) == 1 && len(a.Until) == 0
	}
	before := a.Deadline
	return len(a.Until) == 2 && !sameFamily(a.Relayed[0].Addr(), a.Relayed[1].Addr()) && a.last() == before
}

// last makes the deadline of a the last of those of its two relayed addresses.
func (a *Allocation) last() Deadline {
	for i, d := range a.Until {
		if i == 0 || d.Uptime > a.Deadline.Uptime {
			a.Deadline = d
		}
	}
	return a.Deadline
}

// keep leaves a one of its two relayed addresses.
func (a *Allocation) keep(i int) {
	a.Relayed, a.Deadline, a.Until = []netip.AddrPort{a.Relayed[i]}, a.Until[i], nil
}

// oneOfTwo is the index of a relayed address of an allocation that has two.
func (a *Allocation) oneOfTwo(r netip.AddrPort) (int, error) {
	i := slices.Index(a.Relayed, r)
	if i < 0 || len(a.Until) != 2 {
		return 0, fmt.Errorf("%v is not one of two relayed addresses of allocation %d", r, a.ID)
	}
	return i, nil
}

func (s *State) prolonged(a *Allocation, e RelayedRefreshed) error {
	i, err := a.oneOfTwo(e.Relayed)
	if err != nil {
		return err
	}
	old := a.Until[i].Uptime
	a.Until[i] = s.moment.After(time.Duration(e.Lifetime) * time.Second)
	a.last()
	s.ends.granted(a, old, a.Until[i].Uptime)
	s.answer(a, KindAllocationRefreshed, e.Tx, e.Lifetime)
	return nil
}

// unrelay ends one of two relayed addresses of a, with all that goes by it.
func (s *State) unrelay(a *Allocation, r netip.AddrPort) error {
	i, err := a.oneOfTwo(r)
	if err != nil {
		return err
	}
	s.ends.ended(a, a.Until[i].Uptime)
	a.Channels = slices.DeleteFunc(a.Channels, func(c Channel) bool {
		gone := sameFamily(c.Peer.Addr(), r.Addr())
		if gone {
			s.ends.ended(a, c.Deadline.Uptime)
		}
		return gone
	})
	a.Permissions = slices.DeleteFunc(a.Permissions, func(p Permission) bool {
		gone := sameFamily(p.Peer, r.Addr())
		if gone {
			s.ends.ended(a, p.Deadline.Uptime)
		}
		return gone
	})
	for _, c := range slices.Clone(a.Connections) {
		if sameFamily(c.Peer.Addr(), r.Addr()) {
			if err := s.disconnected(a, c.ID); err != nil {
				return err
			}
		}
	}
	a.keep(1 - i)
	delete(s.byRelayed, r)
	s.ports[r.Addr()].remove(r.Port())
	return nil
}

// asksFamilies says with what code the address families that q asks for are refused, 0 for none.
func (q *Request) asksFamilies() int {
	switch {
	case q.hasAdditional && (q.hasFamily || q.hasToken || q.reserve || q.additional != familyIPv6), q.hasToken && q.hasFamily:
		return CodeBadRequest
	case q.hasFamily && q.family != familyIPv4 && q.family != familyIPv6:
		return CodeFamilyNotSupported
	}
	return 0
}

// plans are where the relayed addresses that q asks for may be, one for each family the relay has.
func plans(s *State, r *Rules, q *Request) []PortPlan {
	families := [2]uint8{max(q.family, familyIPv4), q.additional}
	asked := 1
	if q.hasAdditional {
		asked = 2
	}
	out := make([]PortPlan, 0, asked)
	for i, f := range families[:asked] {
		relay, ok := r.relay(f == familyIPv4)
		if !ok {
			continue
		}
		entropy := q.Entropy
		if i > 0 {
			entropy = stream(entropy, otherStream)
		}
		out = append(out, PortPlan{
			state: s, ip: relay.IP, first: r.FirstPort, last: r.LastPort,
			transport: q.transport, even: q.evenPort, pair: q.reserve, entropy: entropy,
		})
	}
	return out
}

// lacking is what q asks for and relayed has not.
func (q *Request) lacking(r *Rules, relayed []netip.AddrPort) lack {
	if !q.hasAdditional || len(relayed) == 2 {
		return lack{}
	}
	missing := uint8(familyIPv4)
	if relayed[0].Addr().Is4() {
		missing = familyIPv6
	}
	if _, ok := r.relay(missing == familyIPv4); !ok {
		return lack{missing, CodeFamilyNotSupported}
	}
	return lack{missing, CodeInsufficientCapacity}
}
