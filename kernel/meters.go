package kernel

import (
	"sync"
	"sync/atomic"

	"turnstone/bpf"
	"turnstone/turn"
)

// meters give allocations, their users and all of them together pairs of meters. The pair of each names that of the next
// scope, where there are caps for it. The server takes from them too, from other goroutines.
type meters struct {
	t    *tables
	caps turn.Caps
	mu   sync.Mutex // guards the fields below
	of   map[payer]*meterPair
	by   map[uint32]*meterPair
	last uint32
}

// payer is whose a pair is: an allocation's, else a user's, else that of all.
type payer struct {
	allocation turn.AllocationID
	user       turn.Holder
}

// meterPair are the meters 2n and 2n+1, by direction, and how many have one of them: flows and the server that of an
// allocation, pairs that of a wider scope.
type meterPair struct {
	payer
	n     uint32
	scope turn.Scope
	wider *meterPair // nil for none
	users int
}

func newMeters(t *tables, caps turn.Caps) *meters {
	return &meters{t: t, caps: caps, of: map[payer]*meterPair{}, by: map[uint32]*meterPair{}}
}

// payers are whose meters an allocation of a user takes from, by scope.
func payers(id turn.AllocationID, user turn.Holder) [turn.Scopes]payer {
	return [...]payer{turn.ScopeAllocation: {allocation: id}, turn.ScopeUser: {user: user}, turn.ScopeTotal: {}}
}

// take counts a flow of an allocation for a meter in a direction and yields its number. It fails where there are none left.
func (m *meters) take(id turn.AllocationID, user turn.Holder, direction int) (uint32, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.pair(payers(id, user), turn.ScopeAllocation, 0)
	if p == nil {
		return 0, false
	}
	p.users++
	return 2*p.n + uint32(direction), true
}

// adopt counts a flow of an earlier run for the meter it has. False leaves it without.
func (m *meters) adopt(id turn.AllocationID, user turn.Holder, number uint32) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := number / 2
	p := m.of[payer{allocation: id}]
	if p == nil {
		if !m.free(n) {
			return false
		}
		p = m.pair(payers(id, user), turn.ScopeAllocation, n)
	}
	if p == nil || p.n != n {
		return false
	}
	p.users++
	return true
}

// pair is the pair of the scope s of all, nil where there is none left. A new one is number n, where that is free, and
// the pairs of the wider scopes are those that it names, if they are. What was taken from it goes on to count, unless
// that was at another rate.
func (m *meters) pair(all [turn.Scopes]payer, s turn.Scope, n uint32) *meterPair {
	if p := m.of[all[s]]; p != nil {
		return p
	}
	if !m.free(n) {
		if n = m.vacant(); n == 0 {
			return nil
		}
	}
	p := &meterPair{payer: all[s], n: n, scope: s}
	m.of[p.payer], m.by[n] = p, p
	if m.capped(s + 1) {
		if p.wider = m.pair(all, s+1, m.t.meters[2*n].Wider/2); p.wider == nil {
			m.end(p)
			return nil
		}
		p.wider.users++
	}
	for _, w := range m.directions(p) {
		if atomic.LoadUint64(&w.Cost) != m.caps[s].Cost {
			atomic.StoreUint64(&w.Full, 0)
		}
	}
	m.set(p)
	return p
}

// capped says whether there is a cap for a scope or a wider one.
func (m *meters) capped(s turn.Scope) bool {
	for ; s < turn.Scopes; s++ {
		if m.caps[s] != (turn.Cap{}) {
			return true
		}
	}
	return false
}

// directions are the meters of p.
func (m *meters) directions(p *meterPair) [2]*bpf.TurnstoneMeter {
	return [2]*bpf.TurnstoneMeter{&m.t.meters[2*p.n], &m.t.meters[2*p.n+1]}
}

// set puts the rates of p in force, and where it leads. What was taken so far stays taken.
func (m *meters) set(p *meterPair) {
	for d, w := range m.directions(p) {
		atomic.StoreUint64(&w.Burst, m.caps[p.scope].Burst)
		atomic.StoreUint64(&w.Cost, m.caps[p.scope].Cost)
		atomic.StoreUint32(&w.Wider, p.leads(d))
	}
}

// leads is the meter that those who take from p in a direction take from next, 0 for none.
func (p *meterPair) leads(direction int) uint32 {
	if p.wider == nil {
		return 0
	}
	return 2*p.wider.n + uint32(direction)
}

// check puts right what somebody else changed, and says how many meters that were.
func (m *meters) check() (drift uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.of {
		before, c := drift, m.caps[p.scope]
		for d, w := range m.directions(p) {
			if atomic.LoadUint64(&w.Burst) != c.Burst || atomic.LoadUint64(&w.Cost) != c.Cost || atomic.LoadUint32(&w.Wider) != p.leads(d) {
				drift++
			}
		}
		if drift != before {
			m.set(p)
		}
	}
	return drift
}

// free says whether pair n is one, and nobody's. That of meter 0 is none.
func (m *meters) free(n uint32) bool {
	return n > 0 && n < uint32(len(m.t.meters)/2) && m.by[n] == nil
}

func (m *meters) vacant() uint32 {
	pairs := uint32(len(m.t.meters) / 2)
	for range pairs {
		if m.last++; m.last >= pairs {
			m.last = 1
		}
		if m.free(m.last) {
			return m.last
		}
	}
	return 0
}

// release is the opposite of take, after the grace period of the flow.
func (m *meters) release(number uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := m.by[number/2]; p != nil; p = p.wider {
		if p.users--; p.users > 0 {
			return
		}
		m.end(p)
	}
}

// drain counts what was taken from a meter of another layout and from the wider ones, for an allocation in a direction, as
// taken from those that it has now. What is over another rate is not comparable.
func (m *meters) drain(old []bpf.TurnstoneMeter, id turn.AllocationID, direction int, number uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for p := m.of[payer{allocation: id}]; p != nil && number != 0 && number < uint32(len(old)); p = p.wider {
		was, now := &old[number], m.directions(p)[direction]
		for full := atomic.LoadUint64(&now.Full); was.Cost == now.Cost && was.Full > full; full = atomic.LoadUint64(&now.Full) {
			if atomic.CompareAndSwapUint64(&now.Full, full, was.Full) {
				break
			}
		}
		number = was.Wider
	}
}

// end gives up p. A program that found it before finds no cap any more.
func (m *meters) end(p *meterPair) {
	for _, w := range m.directions(p) {
		atomic.StoreUint64(&w.Cost, 0)
		atomic.StoreUint32(&w.Wider, 0)
		atomic.StoreUint64(&w.Full, 0)
	}
	delete(m.of, p.payer)
	delete(m.by, p.n)
}

// shared is what the server takes from for an allocation: the words of both directions, nil for the scopes that have none
// or where there are none left, and what to release.
func (m *meters) shared(id turn.AllocationID, user turn.Holder) (words [2]turn.Words, number uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	all := payers(id, user)
	for s := turn.ScopeAllocation; s < turn.Scopes && m.capped(s); s++ {
		p := m.pair(all, s, 0)
		if p == nil {
			continue // the wider scopes may have one
		}
		p.users++
		number = 2 * p.n
		for ; p != nil; p = p.wider {
			for d, w := range m.directions(p) {
				words[d][p.scope] = &w.Full
			}
		}
		break
	}
	return words, number
}
