package kernel

import (
	"sync"
	"sync/atomic"

	"turnstone/turn"
)

// meters give allocations their pairs of meters. The server takes from them too, from other goroutines.
type meters struct {
	t    *tables
	mu   sync.Mutex // guards the fields below
	of   map[turn.AllocationID]*meterPair
	by   map[uint32]turn.AllocationID
	last uint32
}

// meterPair are the meters 2n and 2n+1, by direction, and how many have one of them: flows, and the server.
type meterPair struct {
	n     uint32
	users int
}

func newMeters(t *tables) *meters {
	return &meters{t: t, of: map[turn.AllocationID]*meterPair{}, by: map[uint32]turn.AllocationID{}}
}

// take counts a flow of id for a meter in a direction and yields its number. It fails where there are none left.
func (m *meters) take(id turn.AllocationID, direction int, c turn.Cap) (uint32, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	p := m.of[id]
	if p == nil {
		n := m.vacant()
		if n == 0 {
			return 0, false
		}
		p = &meterPair{n: n}
		m.of[id], m.by[n] = p, id
		m.set(n, c)
	}
	p.users++
	return 2*p.n + uint32(direction), true
}

// adopt counts a flow of an earlier run for the meter it has. False leaves it without.
func (m *meters) adopt(id turn.AllocationID, number uint32, c turn.Cap) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := number / 2
	p := m.of[id]
	if p == nil {
		if _, taken := m.by[n]; taken || int(number) >= len(m.t.meters) {
			return false
		}
		p = &meterPair{n: n}
		m.of[id], m.by[n] = p, id
		m.set(n, c)
	}
	if p.n != n {
		return false
	}
	p.users++
	return true
}

// set puts a rate in force. What was taken so far stays taken.
func (m *meters) set(n uint32, c turn.Cap) {
	for _, i := range []uint32{2 * n, 2*n + 1} {
		atomic.StoreUint64(&m.t.meters[i].Burst, c.Burst)
		atomic.StoreUint64(&m.t.meters[i].Cost, c.Cost)
	}
}

// check puts rates right that somebody else changed, and says how many that were.
func (m *meters) check(c turn.Cap) (drift uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, p := range m.of {
		before := drift
		for _, i := range []uint32{2 * p.n, 2*p.n + 1} {
			w := &m.t.meters[i]
			if atomic.LoadUint64(&w.Burst) != c.Burst || atomic.LoadUint64(&w.Cost) != c.Cost {
				drift++
			}
		}
		if drift != before {
			m.set(p.n, c)
		}
	}
	return drift
}

func (m *meters) vacant() uint32 {
	pairs := uint32(len(m.t.meters) / 2)
	for range pairs {
		if m.last++; m.last >= pairs {
			m.last = 1
		}
		if _, taken := m.by[m.last]; !taken {
			return m.last
		}
	}
	return 0
}

// release is the opposite of take, after the grace period of the flow.
func (m *meters) release(number uint32) {
	m.mu.Lock()
	defer m.mu.Unlock()
	id, ok := m.by[number/2]
	if number == 0 || !ok {
		return
	}
	p := m.of[id]
	if p.users--; p.users > 0 {
		return
	}
	for _, i := range []uint32{2 * p.n, 2*p.n + 1} {
		atomic.StoreUint64(&m.t.meters[i].Cost, 0)
		atomic.StoreUint64(&m.t.meters[i].Full, 0)
	}
	delete(m.of, id)
	delete(m.by, p.n)
}

// shared is what the server takes from for id: the words of both directions, nil where there are none left.
func (m *meters) shared(id turn.AllocationID, c turn.Cap) (toPeer, toClient *uint64, number uint32) {
	number, ok := m.take(id, 0, c)
	if !ok {
		return nil, nil, 0
	}
	return &m.t.meters[number].Full, &m.t.meters[number+1].Full, number
}
