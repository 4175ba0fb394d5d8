package kernel

import (
	"sync/atomic"

	"turnstone/bpf"
)

// gateway is one in use: its number, the next hop it stands at, and how many flows have it.
type gateway struct {
	number uint32
	hop    uint32 // 0: not resolved
	flows  int
	reason Reason // why it is not resolved
	entry  bpf.TurnstoneNextHop
}

// gateways number the gateways of flows, and keep the program's next hops.
// A next hop never changes: a gateway moves to another, by one store.
type gateways struct {
	t       *tables
	of      map[Gateway]*gateway
	taken   map[uint32]Gateway
	hops    map[uint32]bool // in use, or too recently out of it
	cursor  uint32          // the hop taken last
	last    uint32          // the number taken last
	fresh   bool            // some of them were not resolved yet
	retired []uint32        // hops, to be free after a grace period
	left    map[uint32]bool // numbers that flows of an earlier run have, and nobody has adopted
	egress  func(link int) (port uint32, buffers bool, why Reason)
}

func newGateways(t *tables) *gateways {
	return &gateways{t: t, of: map[Gateway]*gateway{}, taken: map[uint32]Gateway{}, hops: map[uint32]bool{}, left: map[uint32]bool{}}
}

// load takes over what an earlier run left: its flows go on by the numbers they have until they are adopted.
func (g *gateways) load() {
	for n := range g.t.gateways {
		if h := uint32(atomic.LoadUint64(&g.t.gateways[n])); h != 0 && int(h) < len(g.t.hops) {
			g.left[uint32(n)], g.hops[h] = true, true
		}
	}
}

// loaded lets go of what nobody adopted. The flows that had it are revoked.
func (g *gateways) loaded() {
	for n := range g.left {
		g.point(&gateway{number: n, hop: uint32(atomic.LoadUint64(&g.t.gateways[n]))}, 0)
	}
	clear(g.left)
}

// take counts a flow for g and yields its number; prefer is taken for a new one if it is free, 0 for
// any. It fails where there are too many gateways.
func (g *gateways) take(via Gateway, prefer uint32) (uint32, bool) {
	if (via == Gateway{}) {
		return 0, true
	}
	w := g.of[via]
	if w == nil {
		n := g.vacant(prefer)
		if n == 0 {
			return 0, false
		}
		w = &gateway{number: n, reason: "not resolved yet"}
		g.of[via], g.taken[n], g.fresh = w, via, true
		if g.left[n] {
			h := uint32(atomic.LoadUint64(&g.t.gateways[n]))
			w.hop, w.entry = h, g.t.hops[h] // until it is resolved anew
			delete(g.left, n)
		} else {
			atomic.StoreUint64(&g.t.gateways[n], 0)
		}
	}
	w.flows++
	return w.number, true
}

func (g *gateways) vacant(prefer uint32) uint32 {
	if _, taken := g.taken[prefer]; prefer != 0 && int(prefer) < len(g.t.gateways) && !taken {
		return prefer
	}
	for range g.t.gateways {
		if g.last++; int(g.last) >= len(g.t.gateways) {
			g.last = 1
		}
		if _, taken := g.taken[g.last]; !taken && !g.left[g.last] {
			return g.last
		}
	}
	return 0
}

// release is the opposite of take, after the grace period of the flow.
func (g *gateways) release(number uint32) {
	via, ok := g.taken[number]
	if !ok {
		return
	}
	w := g.of[via]
	if w.flows--; w.flows > 0 {
		return
	}
	g.point(w, 0)
	delete(g.of, via)
	delete(g.taken, number)
}

// resolve brings the next hop of via up to what the host says.
func (g *gateways) resolve(via Gateway, h Hop, why Reason) {
	w := g.of[via]
	if w == nil {
		return
	}
	var next bpf.TurnstoneNextHop
	if why == "" {
		next, why = g.form(h)
	}
	w.reason = why
	switch {
	case why == "" && w.hop != 0 && g.t.hops[w.hop] == next:
		w.entry = next
	case why == "":
		g.place(w, next)
	case w.hop != 0:
		g.point(w, 0)
	}
}

// place moves w to a hop that is next, or to none where there is no room for it.
func (g *gateways) place(w *gateway, next bpf.TurnstoneNextHop) {
	for range g.t.hops {
		if g.cursor++; int(g.cursor) >= len(g.t.hops) {
			g.cursor = 1
		}
		if !g.hops[g.cursor] {
			g.hops[g.cursor] = true
			g.t.hops[g.cursor] = next
			w.entry = next
			g.point(w, g.cursor)
			return
		}
	}
	w.reason = ReasonFull
	g.point(w, 0)
}

// form is h as the program reads it.
func (g *gateways) form(h Hop) (bpf.TurnstoneNextHop, Reason) {
	port, buffers, why := g.egress(h.Link)
	if why != "" {
		return bpf.TurnstoneNextHop{}, why
	}
	n := bpf.TurnstoneNextHop{
		Ifindex: uint32(h.Link), Port: port, Mtu: h.MTU, Destination: h.Destination, Source: h.Source, Vlan: wire(h.VLAN),
	}
	if buffers {
		n.Flags = nextHopBuffers
	}
	return n, ""
}

// nextHopBuffers is NEXT_HOP_BUFFERS of the program.
const nextHopBuffers = 1

// point moves w to a hop: one store, after which its old hop is nobody's but of programs that run.
func (g *gateways) point(w *gateway, hop uint32) {
	atomic.StoreUint64(&g.t.gateways[w.number], uint64(hop))
	if w.hop != 0 {
		g.retired = append(g.retired, w.hop)
	}
	w.hop = hop
}

// settled frees hops whose grace period is over.
func (g *gateways) settled(hops []uint32) {
	for _, h := range hops {
		delete(g.hops, h)
	}
}

// check puts right what somebody else changed, and says how many entries that were.
func (g *gateways) check() (drift uint64) {
	for _, w := range g.of {
		if uint32(atomic.LoadUint64(&g.t.gateways[w.number])) != w.hop {
			atomic.StoreUint64(&g.t.gateways[w.number], uint64(w.hop))
			drift++
		}
		if w.hop != 0 && g.t.hops[w.hop] != w.entry {
			g.place(w, w.entry)
			drift++
		}
	}
	return drift
}
