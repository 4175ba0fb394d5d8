package relay

import (
	"sync/atomic"

	"turnstone/turn"
)

// Meters are words that a Datapath takes from too, by direction, with what to give them back by. A word is nil where there
// is none left: then that relay does not carry the allocation either.
type Meters interface {
	TakeMeters(turn.AllocationID, turn.Holder) (words [2]turn.Words, number uint32)
	ReleaseMeters(number uint32)
}

// meters give flows the words that caps are taken from: those that a Datapath shares, and else its own.
type meters struct {
	shared Meters // nil for none
	users  map[turn.Holder]*userMeter
	total  [2]uint64
}

// userMeter has the words of one user, for as long as one of its flows has.
type userMeter struct {
	full  [2]uint64
	flows int
}

// give gives f its words.
func (m *meters) give(f *flow) {
	var words [2]turn.Words
	f.lent = 0
	if m.shared != nil {
		words, f.lent = m.shared.TakeMeters(f.id, f.holder)
	}
	u := m.users[f.holder]
	if u == nil {
		u = new(userMeter)
		if m.users == nil {
			m.users = map[turn.Holder]*userMeter{}
		}
		m.users[f.holder] = u
	}
	u.flows++
	for d := range words {
		own := turn.Words{turn.ScopeAllocation: &f.own[d], turn.ScopeUser: &u.full[d], turn.ScopeTotal: &m.total[d]}
		for s := range own {
			if words[d][s] == nil {
				words[d][s] = own[s]
			}
		}
		f.words[d].Store(&words[d])
	}
}

// take is the opposite of give. Shards may still be taking from the words.
func (m *meters) take(f *flow) {
	if f.lent != 0 {
		m.shared.ReleaseMeters(f.lent)
	}
	if u := m.users[f.holder]; u != nil {
		if u.flows--; u.flows == 0 {
			delete(m.users, f.holder)
		}
	}
}

// share has all flows take from the words of d from now on.
func (m *meters) share(d Meters, flows map[turn.AllocationID]*flow) {
	m.shared = d
	for _, f := range flows {
		m.take(f)
		m.give(f)
	}
}

// unshare has all flows take from words of the server's own again, which go on where those they shared stand.
func (m *meters) unshare(flows map[turn.AllocationID]*flow) {
	shared := m.shared
	for _, f := range flows {
		var stood [2][turn.Scopes]uint64 // read before they are given back
		for d := range stood {
			for s, word := range f.words[d].Load() {
				stood[d][s] = atomic.LoadUint64(word)
			}
		}
		m.shared = shared
		m.take(f)
		m.shared = nil
		m.give(f)
		for d := range stood {
			for s, word := range f.words[d].Load() {
				atomic.StoreUint64(word, max(stood[d][s], atomic.LoadUint64(word)))
			}
		}
	}
	m.shared = nil
}

// dropOver is why what goes over the cap of each scope is dropped.
var dropOver = [turn.Scopes]Drop{turn.ScopeAllocation: DropMeter, turn.ScopeUser: DropMeterUser, turn.ScopeTotal: DropMeterTotal}

// within takes n bytes for f in a direction. False: they are over a cap, and counted as dropped.
func (s *Server) within(f *flow, direction, n int, now int64) bool {
	around := s.surroundings.Load()
	if !around.metered {
		return true
	}
	over := around.caps.Take(f.words[direction].Load(), 0, n, now)
	if over == turn.Scopes {
		return true
	}
	s.stats.drop(dropOver[over])
	return false
}
