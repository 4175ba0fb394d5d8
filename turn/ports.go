package turn

import (
	"iter"
	"math/bits"
	"math/rand/v2"
	"net/netip"
)

// portTries bounds how many free ports are proposed for one Allocate.
const portTries = 32

// PortPlan proposes relayed transport addresses of one family for one allocation.
type PortPlan struct {
	state       *State
	ip          netip.Addr
	first, last uint16
	transport   uint8
	even        bool
	pair        bool
	entropy     [32]byte
}

// Pair says whether the port after each candidate is to be bound with it: it will be reserved.
func (p *PortPlan) Pair() bool { return p.pair }

// TCP says whether the addresses are to take connections, not datagrams.
func (p *PortPlan) TCP() bool { return p.transport == transportTCP }

// Candidates walks a bounded number of addresses no allocation has, in an order
// drawn from the entropy: by chance first, so that ports cannot be guessed, and
// where that finds too few because the range is nearly full, in turn from a
// random start.
func (p *PortPlan) Candidates() iter.Seq[netip.AddrPort] {
	return func(yield func(netip.AddrPort) bool) {
		source := rand.New(rand.NewChaCha8(p.entropy)) //nolint:gosec // a CSPRNG seeded with crypto entropy
		used := p.state.ports[p.ip]
		if used == nil {
			used = new(portSet)
		}
		end := uint32(p.last) + 1
		if p.pair {
			end-- // the last one has no next
		}
		if uint32(p.first) >= end {
			return
		}
		size := end - uint32(p.first)
		tries := 0
		propose := func(port uint32) bool {
			tries++
			return yield(netip.AddrPortFrom(p.ip, uint16(port))) && tries < portTries
		}
		for range 4 * portTries {
			port := uint32(p.first) + source.Uint32N(size)
			if used.has(uint16(port)) || (p.even && port%2 != 0) || (p.pair && used.has(uint16(port)+1)) {
				continue
			}
			if !propose(port) {
				return
			}
		}
		start := uint32(p.first) + source.Uint32N(size)
		for _, part := range [2][2]uint32{{start, end}, {uint32(p.first), start}} {
			for port, ok := used.free(part[0], part[1], p.even, p.pair); ok; port, ok = used.free(port+1, part[1], p.even, p.pair) {
				if !propose(port) {
					return
				}
			}
		}
	}
}

// portSet is the ports that allocations and reservations have at one relay address.
type portSet [1 << 16 / 64]uint64

func (s *portSet) has(port uint16) bool { return s[port/64]&(1<<(port%64)) != 0 }

func (s *portSet) add(port uint16) { s[port/64] |= 1 << (port % 64) }

func (s *portSet) remove(port uint16) { s[port/64] &^= 1 << (port % 64) }

// free is the first port from first on and before end that is not in s; of a
// pair, which begins at an even port, neither is.
func (s *portSet) free(first, end uint32, even, pair bool) (uint32, bool) {
	for port := first; port < end; port = port&^63 + 64 {
		open := ^s[port/64] &^ (1<<(port%64) - 1)
		if even {
			open &= 0x5555555555555555
		}
		if pair {
			open &= ^s[port/64] >> 1
		}
		if open != 0 {
			port = port&^63 + uint32(bits.TrailingZeros64(open))
			return port, port < end
		}
	}
	return 0, false
}
