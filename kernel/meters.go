package kernel

import (
	"sync/atomic"
	"time"

	"turnstone/turn"
)

// caps bound what an allocation relays in one direction, in bytes of application
// data a second; 0 for no bound.
type caps struct{ rate uint64 }

// burst is how long at full rate an allocation may relay at once.
const burst = 250 * time.Millisecond

// cost is what a byte costs in ns, 16.16 fixed point, and how much may be owed.
func (c caps) cost() (cost, limit uint64) {
	if c.rate == 0 {
		return 0, 0
	}
	cost = max(uint64(time.Second)<<16/c.rate, 1)
	return cost, max(uint64(burst), 0xffff*cost>>16+1) // the largest datagram always fits an idle meter
}

// meters give allocations their pairs of meters.
type meters struct {
	t    *tables
	of   map[turn.AllocationID]*meterPair
	by   map[uint32]turn.AllocationID
	last uint32
}

// meterPair are the meters 2n and 2n+1, by direction, and the flows that have one of them.
type meterPair struct {
	n     uint32
	flows int
}

func newMeters(t *tables) *meters {
	return &meters{t: t, of: map[turn.AllocationID]*meterPair{}, by: map[uint32]turn.AllocationID{}}
}

// take counts a flow of id for a meter in a direction and yields its number. It fails where there are none left.
func (m *meters) take(id turn.AllocationID, direction int, c caps) (uint32, bool) {
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
	p.flows++
	return 2*p.n + uint32(direction), true
}

// adopt counts a flow of an earlier run for the meter it has. False leaves it without.
func (m *meters) adopt(id turn.AllocationID, number uint32, c caps) bool {
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
	p.flows++
	return true
}

// set puts a rate in force. What was taken so far stays taken.
func (m *meters) set(n uint32, c caps) {
	cost, limit := c.cost()
	for _, i := range []uint32{2 * n, 2*n + 1} {
		atomic.StoreUint64(&m.t.meters[i].Burst, limit)
		atomic.StoreUint64(&m.t.meters[i].Cost, cost)
	}
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
	id, ok := m.by[number/2]
	if number == 0 || !ok {
		return
	}
	p := m.of[id]
	if p.flows--; p.flows > 0 {
		return
	}
	for _, i := range []uint32{2 * p.n, 2*p.n + 1} {
		atomic.StoreUint64(&m.t.meters[i].Cost, 0)
		atomic.StoreUint64(&m.t.meters[i].Full, 0)
	}
	delete(m.of, id)
	delete(m.by, p.n)
}
