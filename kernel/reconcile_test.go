package kernel

import (
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"testing"
	"time"

	"turnstone/bpf"
	"turnstone/turn"

	"pgregory.net/rapid"
)

var errFault = errors.New("an injected fault")

// memoryIndex is an index of a test: it fails at the n-th write from now where fault is n, and
// takes limit keys at most.
type memoryIndex struct {
	m     map[Key]ref
	fault int
	limit int
}

func (x *memoryIndex) failing() bool {
	if x.fault > 0 {
		x.fault--
		return x.fault == 0
	}
	return false
}

func (x *memoryIndex) put(keys []Key, refs []ref) (int, error) {
	for i, k := range keys {
		if x.failing() {
			return i, errFault
		}
		if _, has := x.m[k]; !has && len(x.m) >= x.limit {
			return i, errFull
		}
		x.m[k] = refs[i]
	}
	return len(keys), nil
}

func (x *memoryIndex) delete(keys []Key) error {
	for _, k := range keys {
		if x.failing() {
			return errFault
		}
		delete(x.m, k)
	}
	return nil
}

func (x *memoryIndex) lookup(k Key) (ref, bool, error) {
	r, ok := x.m[k]
	return r, ok, nil
}

func (x *memoryIndex) all() (map[Key]ref, error) { return maps.Clone(x.m), nil }

// memoryUsage counts for slots of a test.
type memoryUsage map[uint32]turn.Count

func (u memoryUsage) read(slot uint32) turn.Count { return u[slot] }

func (u memoryUsage) clear(slots []uint32) {
	for _, s := range slots {
		delete(u, s)
	}
}

func memoryTables(slots, limit int) (*tables, *memoryIndex, memoryUsage) {
	x, u := &memoryIndex{m: map[Key]ref{}, limit: limit}, memoryUsage{}
	return &tables{
		index: x, usage: u, grace: func() error { return nil }, meta: new(bpf.TurnstoneProjection),
		flows: make([]bpf.TurnstoneFlow, slots), owners: make([]bpf.TurnstoneOwner, slots),
		meters: make([]bpf.TurnstoneMeter, slots), gateways: make([]uint64, 64), hops: make([]bpf.TurnstoneNextHop, 128),
	}, x, u
}

// plain are surroundings in which a destination's gateway is made of its last byte.
type plain struct {
	shift byte // moves all routes
	caps  turn.Caps
}

// testCaps are caps of all scopes.
var testCaps = turn.Caps{turn.NewCap(1000), turn.NewCap(2000), turn.NewCap(5000)}

// drawCaps draws caps of some scopes, or of none.
func drawCaps(t *rapid.T) (c turn.Caps) {
	for s := range c {
		if rapid.Bool().Draw(t, "capped") {
			c[s] = testCaps[s]
		}
	}
	return c
}

func (plain) arrival(netip.AddrPort, bool) (uint16, Reason) { return 0, "" }

func (p plain) route(_, destination netip.Addr) (Route, Reason) {
	b := destination.As16()
	if b[15]%7 == 6 {
		return Route{}, ReasonNoRoute
	}
	return Route{Gateway: Gateway{Link: 2, Address: netip.AddrFrom4([4]byte{192, 0, 2, b[15]%5 + p.shift + 1})}}, ""
}

func (plain) isRelay(a netip.Addr) bool { return a == relay4 || a == relay6 }
func (p plain) metered() bool           { return p.caps != (turn.Caps{}) }

var (
	relay4    = netip.MustParseAddr("192.0.2.1")
	relay6    = netip.MustParseAddr("2001:db8::1")
	listener4 = netip.MustParseAddrPort("192.0.2.1:3478")
	boot      = turn.BootID{1}
)

func at(seconds int) turn.Moment {
	d := time.Duration(seconds) * time.Second
	return turn.Moment{Boot: boot, Uptime: d, Wall: int64(d)}
}

// script makes records of random events that fit the state.
type script struct {
	s   *turn.State
	now int
}

func newScript() *script {
	c := &script{s: turn.NewState(), now: 1}
	c.record(turn.EpochBegan{Log: turn.LogID{7}, Epoch: 1})
	return c
}

func (c *script) record(events ...turn.Event) turn.Record {
	r := turn.Record{First: c.s.Seq() + 1, Moment: at(c.now), Events: events}
	if err := c.s.Fold(r); err != nil {
		panic(err)
	}
	return r
}

func (c *script) draw(t *rapid.T) turn.Record {
	c.now += rapid.IntRange(0, 100).Draw(t, "seconds")
	if events := turn.Expire(c.s, at(c.now), 8); len(events) > 0 {
		return c.record(events...)
	}
	var ids []turn.AllocationID
	for a := range c.s.Allocations() {
		ids = append(ids, a.ID)
	}
	if len(ids) == 0 || rapid.IntRange(0, 4).Draw(t, "new") == 0 {
		e := c.created()
		if rapid.Bool().Draw(t, "dual") {
			e.Relayed = append(e.Relayed, netip.AddrPortFrom(relay6, e.Relayed[0].Port()))
		}
		if at := place(t); c.s.ByFiveTuple(at) == nil && rapid.Bool().Draw(t, "where somebody was") {
			e.FiveTuple = at
		}
		return c.record(e)
	}
	a := c.s.Allocation(rapid.SampledFrom(ids).Draw(t, "allocation"))
	peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(rapid.IntRange(1, 20).Draw(t, "peer"))}), 4000)
	if rapid.IntRange(0, 6).Draw(t, "local") == 0 {
		peer = netip.AddrPortFrom(relay4, uint16(rapid.IntRange(50000, 50020).Draw(t, "port")))
	}
	if len(a.Relayed) == 2 {
		switch rapid.IntRange(0, 9).Draw(t, "one family") {
		case 0:
			return c.record(turn.RelayedDeleted{Allocation: a.ID, Relayed: a.Relayed[rapid.IntRange(0, 1).Draw(t, "which")], Reason: turn.ReasonClient})
		case 1:
			return c.record(turn.RelayedRefreshed{Allocation: a.ID, Relayed: a.Relayed[rapid.IntRange(0, 1).Draw(t, "which")], Lifetime: 300})
		}
	}
	if _, ok := a.RelayedFor(relay6); ok && (len(a.Relayed) == 1 || rapid.Bool().Draw(t, "v6")) {
		peer = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 0x01, 0x0d, 0xb8, 15: byte(rapid.IntRange(1, 20).Draw(t, "peer v6"))}), 4000)
	}
	channel := turn.ChannelNumber(0x4000 + rapid.IntRange(0, 6).Draw(t, "channel"))
	switch rapid.IntRange(0, 9).Draw(t, "kind") {
	case 6, 7, 8, 9:
		if e := c.moves(t, a); e != nil {
			return c.record(e)
		}
	case 0:
		return c.record(turn.AllocationDeleted{Allocation: a.ID, Reason: turn.ReasonClient})
	case 1:
		return c.record(turn.AllocationRefreshed{Allocation: a.ID, Lifetime: 600})
	case 2:
		return c.record(turn.PermissionInstalled{Allocation: a.ID, Peer: peer.Addr()})
	case 3:
		if len(a.Permissions) > 0 {
			return c.record(turn.PermissionRevoked{Allocation: a.ID, Peer: a.Permissions[0].Peer, Reason: turn.ReasonPolicy})
		}
	case 4:
		if len(a.Channels) > 0 {
			return c.record(turn.ChannelRevoked{Allocation: a.ID, Channel: a.Channels[0].Number, Reason: turn.ReasonPolicy})
		}
	}
	if bound, to := a.Channel(channel), a.ChannelTo(peer); (bound != nil && bound.Peer != peer) || (to != nil && to.Number != channel) {
		return c.record(turn.AllocationRefreshed{Allocation: a.ID, Lifetime: 600})
	}
	return c.record(turn.ChannelBound{Allocation: a.ID, Channel: channel, Peer: peer})
}

// place is a five-tuple that clients come to and leave.
func place(t *rapid.T) turn.FiveTuple {
	p := rapid.SampledFrom([]turn.Protocol{turn.UDP, turn.UDP, turn.TLS}).Draw(t, "protocol")
	ip := netip.AddrFrom4([4]byte{198, 51, 100, byte(200 + rapid.IntRange(0, 3).Draw(t, "place"))})
	return turn.FiveTuple{Client: netip.AddrPortFrom(ip, 7000), Server: listener4, Protocol: p}
}

// moves is a step of the client of a on its way, nil for none.
func (c *script) moves(t *rapid.T, a *turn.Allocation) turn.Event {
	if a.Ticket == 0 {
		return turn.TicketIssued{Allocation: a.ID}
	}
	var events []turn.Event
	for at := range a.FiveTuples() {
		switch rapid.IntRange(0, 4).Draw(t, "step") {
		case 0:
			events = turn.Leave(c.s, at, turn.ReasonStreamClosed)
		case 1, 2:
			events = turn.Arrive(c.s, at)
		}
	}
	if at := place(t); len(events) == 0 && c.s.ByFiveTuple(at) == nil {
		return turn.AllocationMoved{Allocation: a.ID, FiveTuple: at, Ticket: a.Ticket + 1}
	}
	if len(events) == 0 {
		return nil
	}
	return events[0]
}

func (c *script) created() turn.AllocationCreated {
	n := turn.AllocationID(1)
	for a := range c.s.Allocations() {
		n = max(n, a.ID+1)
	}
	n = max(n, turn.AllocationID(c.s.Seq())) // ids only grow
	return turn.AllocationCreated{
		Allocation: n, Transport: 17, Username: []string{"alice", "bob", "1700000000:alice"}[n%3], Realm: "example.org", Lifetime: 600,
		FiveTuple: turn.FiveTuple{
			Client: netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(n)}), uint16(1024+n)), Server: listener4, Protocol: turn.UDP,
		},
		Relayed: []netip.AddrPort{netip.AddrPortFrom(relay4, uint16(50000+n))},
	}
}

// rig is a reconciler over memory.
type rig struct {
	*reconciler
	index *memoryIndex
	usage memoryUsage
}

func newRig(slots, limit int, s *plain, state *turn.State) *rig {
	t, x, u := memoryTables(slots, limit)
	g := &rig{newReconciler(t, s, state, []netip.AddrPort{listener4}, s.caps), x, u}
	g.gateways.egress = func(int) (uint32, bool, Reason) { return 1, false, "" }
	return g
}

// restart is another run of the daemon over the same maps.
func (g *rig) restart(s *plain, state *turn.State) *rig {
	n := &rig{newReconciler(g.t, s, state, []netip.AddrPort{listener4}, s.caps), g.index, g.usage}
	n.gateways.egress = g.gateways.egress
	return n
}

func (g *rig) settleAll() []turn.Event {
	batch, hops := g.retire()
	return g.settle(batch, hops)
}

// wrong says how the maps differ from what the log and the routes want, empty where they do not.
func (g *rig) wrong() string {
	wanted := map[Key]want{}
	for a := range g.state.Allocations() {
		for _, w := range desired(a, g.s) {
			if w.reason == "" {
				wanted[w.Key] = w
			}
		}
	}
	slots := map[uint32]Key{}
	for k, at := range g.index.m {
		if other, twice := slots[at.slot]; twice {
			return fmt.Sprintf("slot %d is named by %v and %v", at.slot, other, k)
		}
		slots[at.slot] = k
		raw := g.t.flows[at.slot]
		f := flowOf(&raw)
		if raw.Generation != at.generation || f.Key != k {
			return fmt.Sprintf("%v names slot %d, which holds %v", k, at.slot, f.Key)
		}
		if f.Kind == Guard && f.Local == listener4 {
			continue
		}
		w, ok := wanted[k]
		if !ok {
			return fmt.Sprintf("%v is in the maps, and not wanted", k)
		}
		w.Gateway, w.Meter, w.Allocation = f.Gateway, f.Meter, 0
		if f != w.Flow {
			return fmt.Sprintf("%v is\n%+v, want\n%+v", k, f, w.Flow)
		}
		if via := g.gateways.taken[f.Gateway]; via != w.via {
			return fmt.Sprintf("%v leaves by %v, want %v", k, via, w.via)
		}
		if (f.Meter != 0) != w.metered {
			return fmt.Sprintf("%v has meter %d, want metered %t", k, f.Meter, w.metered)
		}
		if why := g.misled(f.Meter, turn.AllocationID(g.t.owners[at.slot].Allocation)); why != "" {
			return fmt.Sprintf("%v: %s", k, why)
		}
	}
	for k := range wanted {
		if _, ok := g.index.m[k]; !ok {
			return fmt.Sprintf("%v is wanted, and not in the maps", k)
		}
	}
	for s := range g.t.flows {
		if _, named := slots[uint32(s)]; !named && g.t.flows[s].Generation != 0 {
			return fmt.Sprintf("slot %d is published, and no key names it", s)
		}
	}
	return ""
}

// misled says how the meters from index on are not those of an allocation, its user and all, empty where they are.
func (g *rig) misled(index uint32, id turn.AllocationID) string {
	direction := index % 2
	for s, of := range payers(id, g.holderOf(id)) {
		if index == 0 {
			return ""
		}
		p, m, c := g.meters.by[index/2], g.t.meters[index], g.meters.caps[s]
		switch {
		case p == nil || p.payer != of:
			return fmt.Sprintf("meter %d is of %+v, want it of %+v", index, p, of)
		case index%2 != direction:
			return fmt.Sprintf("meter %d is of another direction than the flow", index)
		case m.Cost != c.Cost || m.Burst != c.Burst:
			return fmt.Sprintf("meter %d has %+v, want the rate %+v", index, m, c)
		case (m.Wider != 0) != g.meters.capped(turn.Scope(s)+1):
			return fmt.Sprintf("meter %d of scope %d leads to %d", index, s, m.Wider)
		}
		index = m.Wider
	}
	if index != 0 {
		return fmt.Sprintf("meter %d is of a scope that there is not", index)
	}
	return ""
}

// payers counts those whom the flows that are held take from.
func (g *rig) payers() int {
	all := map[payer]bool{}
	for _, h := range g.held {
		for s, of := range payers(h.Allocation, g.holderOf(h.Allocation)) {
			if h.Meter != 0 && g.meters.capped(turn.Scope(s)) {
				all[of] = true
			}
		}
	}
	return len(all)
}

func TestMapsFollowTheLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newScript()
		s := &plain{caps: drawCaps(t)}
		g := newRig(4096, 4096, s, c.s.Clone())
		for range rapid.IntRange(1, 60).Draw(t, "records") {
			if err := g.apply(c.draw(t)); err != nil {
				t.Fatal(err)
			}
			if why := g.wrong(); why != "" {
				t.Fatal(why)
			}
			switch rapid.IntRange(0, 9).Draw(t, "what else") {
			case 0:
				g.settleAll()
			case 1:
				s.shift ^= 16
				g.full()
			case 2:
				g = g.restart(s, c.s.Clone())
				if err := g.load(); err != nil {
					t.Fatal(err)
				}
				g.full()
				g.gateways.loaded()
			}
			if why := g.wrong(); why != "" {
				t.Fatal(why)
			}
		}
		g.settleAll()
		if used, held := g.slots.used(), len(g.held); used != held {
			t.Errorf("%d slots are in use for %d flows once all is settled", used, held)
		}
		if got, want := len(g.meters.of), g.payers(); got != want || len(g.meters.by) != want {
			t.Errorf("%d pairs of meters are in use once all is settled, want %d", got, want)
		}
	})
}

// garble fills the maps with what nobody wrote.
func garble(t *rapid.T, g *rig) {
	n := uint32(len(g.t.flows))
	for range rapid.IntRange(0, 40).Draw(t, "garbage") {
		slot := rapid.Uint32Range(0, n+2).Draw(t, "slot")
		generation := rapid.Uint32Range(0, 9).Draw(t, "generation")
		k := Key{
			Remote:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(rapid.IntRange(0, 9).Draw(t, "client"))}), uint16(rapid.IntRange(1025, 1034).Draw(t, "port"))),
			Local:   listener4,
			Channel: turn.ChannelNumber(0x4000 + rapid.IntRange(0, 6).Draw(t, "channel")),
		}
		if rapid.Bool().Draw(t, "named") {
			g.index.m[k] = ref{slot, generation}
		}
		if slot < n && rapid.Bool().Draw(t, "recorded") {
			f := Flow{Key: k, Kind: ToPeer, Deadline: time.Hour, Source: listener4, Destination: listener4, Gateway: rapid.Uint32Range(0, 70).Draw(t, "gateway"), Meter: rapid.Uint32Range(0, 70).Draw(t, "meter")}
			raw := f.record()
			raw.Generation = generation
			g.t.flows[slot] = raw
		}
	}
	for range rapid.IntRange(0, 5).Draw(t, "hops") {
		g.t.gateways[rapid.IntRange(0, 63).Draw(t, "gateway")] = rapid.Uint64Range(0, 200).Draw(t, "hop")
	}
}

func TestMapsConvergeFromAnyContentsWithAnyWriteFailing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newScript()
		for range rapid.IntRange(1, 60).Draw(t, "records") {
			c.draw(t)
		}
		g := newRig(1024, 1024, &plain{caps: drawCaps(t)}, c.s)
		garble(t, g)
		g.index.fault = rapid.IntRange(0, 60).Draw(t, "fault")
		if err := g.load(); err != nil {
			t.Fatal(err)
		}
		g.full()
		g.gateways.loaded()
		g.settleAll()
		for rounds := 0; g.dirty; rounds++ {
			if rounds == 3 {
				t.Fatal("still dirty after three rounds without a fault")
			}
			g.sweepAll(t)
			g.full()
			g.settleAll()
		}
		g.checkRecords()
		g.sweepAll(t)
		if why := g.wrong(); why != "" {
			t.Fatal(why)
		}
	})
}

func (g *rig) sweepAll(t *rapid.T) drift {
	all, err := g.index.all()
	if err != nil {
		t.Fatal(err)
	}
	return g.sweep(all)
}

func TestDriftIsFoundAndRepaired(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		c := newScript()
		g := newRig(1024, 1024, &plain{}, c.s.Clone())
		for range 40 {
			if err := g.apply(c.draw(t)); err != nil {
				t.Fatal(err)
			}
		}
		g.settleAll()
		keys := make([]Key, 0, len(g.held))
		for k := range g.held {
			keys = append(keys, k)
		}
		if len(keys) == 0 {
			return
		}
		k := rapid.SampledFrom(keys).Draw(t, "key")
		h := *g.held[k]
		var want drift
		switch rapid.IntRange(0, 3).Draw(t, "drift") {
		case 0:
			delete(g.index.m, k)
			want.added = 1
		case 1:
			g.index.m[k] = ref{h.slot, h.generation + 7}
			want.changed = 1
		case 2:
			k.Channel = 0x4fff
			g.index.m[k] = h.ref
			want.removed = 1
		case 3:
			g.t.flows[h.slot].OutDestinationPort[0]++
			want.changed = 1
		}
		got := g.checkRecords()
		swept := g.sweepAll(t)
		got = drift{got.added + swept.added, got.changed + swept.changed, got.removed + swept.removed}
		if got != want {
			t.Errorf("drift is %+v, want %+v", got, want)
		}
		if why := g.wrong(); why != "" {
			t.Error(why)
		}
		if again := g.checkRecords(); again.any() {
			t.Errorf("drift after the repair: %+v", again)
		}
	})
}

func TestRatesOfMetersAreRepaired(t *testing.T) {
	c := newScript()
	g := newRig(1024, 1024, &plain{caps: testCaps}, c.s.Clone())
	created := c.created()
	bound := turn.ChannelBound{Allocation: created.Allocation, Channel: 0x4001, Peer: netip.MustParseAddrPort("203.0.113.1:4000")}
	if err := g.apply(c.record(created, bound)); err != nil {
		t.Fatal(err)
	}
	if d := g.checkRecords(); d.any() {
		t.Fatalf("got drift %+v of what nobody touched", d)
	}
	up := g.held[Key{Remote: created.FiveTuple.Client, Local: created.FiveTuple.Server, Channel: bound.Channel}]
	if up == nil || up.Meter == 0 {
		t.Fatalf("got %+v, want a flow with a meter", up)
	}
	own := &g.t.meters[up.Meter]
	user := &g.t.meters[own.Wider]
	total := &g.t.meters[user.Wider]
	full := uint64(12345)
	own.Cost, user.Burst, user.Full, total.Wider = 0, 1<<60, full, 3
	if d := g.checkRecords(); d != (drift{changed: 3}) {
		t.Errorf("got drift %+v, want 3 meters changed", d)
	}
	if why := g.wrong(); why != "" {
		t.Error(why)
	}
	own.Wider = 0
	if d := g.checkRecords(); d != (drift{changed: 1}) {
		t.Errorf("got drift %+v, want 1 meter changed", d)
	}
	if why := g.wrong(); why != "" {
		t.Error(why)
	}
	if user.Full != full {
		t.Error("what was taken so far is forgotten")
	}
}

func TestFullMapsEvictNobodyAndFillUpAgain(t *testing.T) {
	c := newScript()
	g := newRig(4096, 12, &plain{}, c.s.Clone())
	mustApply := func(r turn.Record) {
		t.Helper()
		if err := g.apply(r); err != nil {
			t.Fatal(err)
		}
	}
	bind := func(id turn.AllocationID, n int) {
		mustApply(c.record(turn.ChannelBound{
			Allocation: id, Channel: turn.ChannelNumber(0x4000 + n), Peer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(7*n + 1)}), 4000),
		}))
	}
	created := c.created()
	mustApply(c.record(created))
	id := created.Allocation
	for n := range 10 {
		bind(id, n)
	}
	if len(g.index.m) != 12 {
		t.Fatalf("%d keys, want the 12 that fit", len(g.index.m))
	}
	if g.dirty {
		t.Error("a full map counts as a failed write")
	}
	before := maps.Clone(g.index.m)
	bind(id, 10)
	for k, at := range before {
		if g.index.m[k] != at {
			t.Errorf("%v was evicted", k)
		}
	}
	full := 0
	for _, why := range g.absent[id] {
		if why == ReasonFull {
			full++
		}
	}
	if want := 22 + 2 - 12; full != want {
		t.Errorf("%d flows are absent for want of room, want %d", full, want)
	}
	g.index.limit = 4096
	g.settleAll()
	g.retry()
	if why := g.wrong(); why != "" {
		t.Error(why)
	}
}

// TestFullMapsKeepTheGuardsOfListeners has room for the guard of one listener of two.
func TestFullMapsKeepTheGuardsOfListeners(t *testing.T) {
	c := newScript()
	g := newRig(4096, 3, &plain{}, c.s.Clone())
	second := netip.MustParseAddrPort("192.0.2.1:3479")
	g.listeners = append(g.listeners, second)
	one := c.created()
	two := c.created()
	two.Allocation, two.FiveTuple.Server, two.Relayed = one.Allocation+1, second, []netip.AddrPort{netip.AddrPortFrom(relay4, 50999)}
	if err := g.apply(c.record(one, two)); err != nil {
		t.Fatal(err)
	}
	if g.held[Key{Local: listener4}] == nil || g.held[Key{Local: second}] != nil {
		t.Fatalf("got %d flows, want two guards of relayed addresses and one of the first listener", len(g.held))
	}
	g.retry()
	if g.held[Key{Local: listener4}] == nil {
		t.Error("the guard of the first listener went when that of the second was tried again")
	}
	g.index.limit = 4096
	g.settleAll()
	g.retry()
	if g.held[Key{Local: listener4}] == nil || g.held[Key{Local: second}] == nil {
		t.Error("a listener has no guard although there is room")
	}
}

func TestFamiliesOfOneAllocationEndOnTheirOwn(t *testing.T) {
	c := newScript()
	g := newRig(1024, 1024, &plain{}, c.s.Clone())
	created := c.created()
	first := created.Relayed[0]
	second := netip.AddrPortFrom(relay6, first.Port())
	created.Relayed = append(created.Relayed, second)
	id := created.Allocation
	peer4, peer6 := netip.MustParseAddrPort("203.0.113.1:4000"), netip.MustParseAddrPort("[2001:db8:77::1]:4000")
	apply := func(events ...turn.Event) {
		t.Helper()
		if err := g.apply(c.record(events...)); err != nil {
			t.Fatal(err)
		}
		if why := g.wrong(); why != "" {
			t.Fatal(why)
		}
	}
	// keys are those of the flows of each family, with when they end in seconds; from the peer no later than its permission.
	keys := func(guard4, channel4, guard6, channel6 int) map[Key]int {
		out := map[Key]int{
			{Local: first}: guard4, {Remote: peer4, Local: first}: min(channel4, 301), {Remote: created.FiveTuple.Client, Local: listener4, Channel: 0x4000}: channel4,
			{Local: second}: guard6, {Remote: peer6, Local: second}: min(channel6, 301), {Remote: created.FiveTuple.Client, Local: listener4, Channel: 0x4001}: channel6,
		}
		maps.DeleteFunc(out, func(_ Key, end int) bool { return end == 0 })
		return out
	}
	want := func(want map[Key]int) {
		t.Helper()
		for k, at := range g.index.m {
			if k.Local == listener4 && k.Channel == 0 {
				continue
			}
			if got := int(time.Duration(g.t.flows[at.slot].Deadline) / time.Second); got != want[k] {
				t.Errorf("%v ends at %d s, want %d", k, got, want[k])
			}
			delete(want, k)
		}
		for k := range want {
			t.Errorf("%v is not in the maps", k)
		}
	}
	apply(created, turn.ChannelBound{Allocation: id, Channel: 0x4000, Peer: peer4}, turn.ChannelBound{Allocation: id, Channel: 0x4001, Peer: peer6})
	want(keys(601, 601, 601, 601))
	apply(turn.RelayedRefreshed{Allocation: id, Relayed: second, Lifetime: 100})
	want(keys(601, 601, 101, 101))
	apply(turn.RelayedRefreshed{Allocation: id, Relayed: second, Lifetime: 3600})
	want(keys(601, 601, 3601, 601))
	apply(turn.RelayedDeleted{Allocation: id, Relayed: first, Reason: turn.ReasonClient})
	want(keys(0, 0, 3601, 601))
	apply(turn.AllocationRefreshed{Allocation: id, Lifetime: 1800})
	want(keys(0, 0, 1801, 601))
	c.now = 1801
	apply(turn.AllocationExpired{Allocation: id})
	want(keys(0, 0, 0, 0))
}

// TestFlowsGoWithTheirClient has a client move (RFC 8016): its flows go by the five-tuple it had until it has left that.
func TestFlowsGoWithTheirClient(t *testing.T) {
	c := newScript()
	g := newRig(1024, 1024, &plain{}, c.s.Clone())
	created := c.created()
	id, home := created.Allocation, created.FiveTuple
	away, secure := home, home
	away.Client = netip.MustParseAddrPort("198.51.100.200:7000")
	secure.Client, secure.Protocol = netip.MustParseAddrPort("198.51.100.201:7000"), turn.TLS
	peer := netip.MustParseAddrPort("203.0.113.1:4000")
	want := func(client turn.FiveTuple, carried bool, events ...turn.Event) {
		t.Helper()
		if err := g.apply(c.record(events...)); err != nil {
			t.Fatal(err)
		}
		if why := g.wrong(); why != "" {
			t.Fatal(why)
		}
		up, down := Key{Remote: client.Client, Local: client.Server, Channel: 0x4000}, Key{Remote: peer, Local: created.Relayed[0]}
		flows := 0
		for k, at := range g.index.m {
			raw := g.t.flows[at.slot]
			f := flowOf(&raw)
			if f.Kind == Guard {
				continue
			}
			flows++
			if k != up && k != down || k == down && f.Destination != client.Client {
				t.Errorf("%v leads to %v, want the client at %v", k, f.Destination, client.Client)
			}
		}
		if carried != (flows == 2) || !carried && flows != 0 {
			t.Errorf("got %d flows for a client at %v", flows, client)
		}
	}
	want(home, true, created, turn.TicketIssued{Allocation: id}, turn.ChannelBound{Allocation: id, Channel: 0x4000, Peer: peer})
	want(home, true, turn.AllocationMoved{Allocation: id, FiveTuple: away, Ticket: 2})
	want(away, true, turn.Arrive(c.s, away)...)
	want(away, true, turn.AllocationMoved{Allocation: id, FiveTuple: secure, Ticket: 3})
	want(secure, false, turn.Arrive(c.s, secure)...)
	want(secure, false, turn.Leave(c.s, secure, turn.ReasonStreamClosed)...)
	want(home, true, turn.AllocationMoved{Allocation: id, FiveTuple: home, Ticket: 4})
}

func TestUsageIsCumulativeAcrossSlotsRunsAndRebinding(t *testing.T) {
	c := newScript()
	s := &plain{}
	g := newRig(1024, 1024, s, c.s.Clone())
	created := c.created()
	peer := netip.MustParseAddrPort("203.0.113.1:4000")
	bound := turn.ChannelBound{Allocation: created.Allocation, Channel: 0x4001, Peer: peer}
	apply := func(events ...turn.Event) {
		t.Helper()
		if err := g.apply(c.record(events...)); err != nil {
			t.Fatal(err)
		}
	}
	relayed := func(n uint64) {
		t.Helper()
		at, ok := g.index.m[Key{Remote: created.FiveTuple.Client, Local: listener4, Channel: 0x4001}]
		if !ok {
			t.Fatal("the channel is not in the maps")
		}
		u := g.usage[at.slot]
		g.usage[at.slot] = turn.Count{Packets: u.Packets + n, Bytes: u.Bytes + 100*n}
	}
	wantUsage := func(packets uint64, events []turn.Event) {
		t.Helper()
		if len(events) != 1 {
			t.Fatalf("got %d events, want one: %v", len(events), events)
		}
		got := events[0].(turn.UsageRecorded)
		want := turn.UsageRecorded{Allocation: created.Allocation, Channel: 0x4001, Peer: peer, Path: turn.PathKernel, ToPeer: turn.Count{Packets: packets, Bytes: 100 * packets}}
		if got != want {
			t.Fatalf("got %+v, want %+v", got, want)
		}
	}
	apply(created, bound)
	relayed(5)
	wantUsage(5, g.usageOf(created.Allocation))
	if again := g.usageOf(created.Allocation); len(again) != 0 {
		t.Errorf("unchanged usage is told again: %v", again)
	}

	s.shift = 16 // another gateway: another slot
	relayed(2)
	g.full()
	relayed(1)
	wantUsage(8, g.settleAll())

	g = g.restart(s, c.s.Clone()) // the log knows nothing of it yet
	if err := g.load(); err != nil {
		t.Fatal(err)
	}
	g.full()
	relayed(4)
	wantUsage(12, g.usageOf(created.Allocation))

	apply(turn.UsageRecorded{Allocation: created.Allocation, Channel: 0x4001, Peer: peer, Path: turn.PathKernel, ToPeer: turn.Count{Packets: 12, Bytes: 1200}})
	relayed(3)
	apply(turn.ChannelRevoked{Allocation: created.Allocation, Channel: 0x4001, Reason: turn.ReasonPolicy})
	wantUsage(15, g.settleAll())
	apply(bound)
	relayed(1)
	wantUsage(16, g.usageOf(created.Allocation))
	apply(turn.AllocationDeleted{Allocation: created.Allocation, Reason: turn.ReasonClient})
	g.settleAll()
	if len(g.tallies) != 0 || len(g.pending) != 0 {
		t.Errorf("%d tallies and %d pending are left of an allocation that is gone", len(g.tallies), len(g.pending))
	}
}
