package turn

import (
	"fmt"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
	"pgregory.net/rapid"
)

// TestLaws holds what must be true of a State after any requests, times, reboots and reloads.
func TestLaws(t *testing.T) { rapid.Check(t, laws) }

func FuzzLaws(f *testing.F) {
	f.Add([]byte("seed"))
	f.Fuzz(rapid.MakeFuzz(laws))
}

func laws(t *rapid.T) {
	w := &world{core: newCore(t), t: t, callers: worldCallers(t)}
	w.gate = NewGate(tokenConfig())
	w.lazy = rapid.Bool().Draw(t, "lazy")
	w.rules.MaxPerOwner, w.rules.MaxAllocations = 3, 6
	w.rules.FirstPort, w.rules.LastPort = 50_000, 50_007
	w.taken = map[netip.AddrPort]bool{}
	for p := uint16(50_000); p < 50_008 && rapid.Bool().Draw(t, "no IPv6 port"); p++ {
		w.taken[netip.AddrPortFrom(addr("2001:db8::1"), p)] = true
	}
	w.rules.MaxPermissions, w.rules.MaxChannels = 4, 3
	actions := []func(){
		w.allocate, w.allocate, w.reserve, w.redeem, w.dual, w.refresh, w.refreshOne, w.permit, w.permit, w.bind, w.bind, w.retransmit,
		w.mobile, w.mobile, w.move, w.move, w.arrive, w.leave,
		w.pass, w.pass, w.restart, w.reconfigure, w.closeOne, w.use, w.twin,
		w.allocateTCP, w.connect, w.accept, w.bindConnection, w.disconnect,
		w.ban, w.unban,
	}
	for range rapid.IntRange(1, 60).Draw(t, "steps") {
		actions[rapid.IntRange(0, len(actions)-1).Draw(t, "action")]()
		w.check()
	}
	w.sameAs("the fold of the records", fold(t, w.records))
}

// world is a core in random hands.
type world struct {
	*core
	t       *rapid.T
	callers []*caller
	last    []byte // the frame sent last, and who sent it
	by      *caller
	tokens  []ReservationToken // that were given
	tickets [][]byte           // likewise
	twins   []*State           // made from images on the way, and fed the same records since
	fed     int                // records the twins have had
}

func worldCallers(t tb) []*caller {
	v6 := newCaller("alice", "wonderland", "[2001:db8:5::1]:5000")
	v6.Server = addrPort("[2001:db8::1]:3478")
	holder := tokenCaller(t, at(0), 2*time.Hour, "198.51.100.4:5000")
	return []*caller{
		alice(), bob().with(algorithmSHA256, true), v6, newCaller("bob", "builder", alice().Client.String()),
		newCaller("alice", "wonderland", "198.51.100.1:5001"),
		alice().over(TCP), bob().over(TLS),
		timeLimitedCaller("carol", "north", at(2*time.Hour), "198.51.100.3:5000"),
		timeLimitedCaller("carol", "south", at(9*time.Hour), "198.51.100.3:5001"),
		holder, holder.without(), tokenCaller(t, at(0), 9*time.Hour, "198.51.100.4:5000").with(algorithmSHA256, false),
	}
}

func (w *world) pick(n int, what string) int { return rapid.IntRange(0, n-1).Draw(w.t, what) }

func (w *world) request(method stun.Method, attributes ...stun.Setter) *answerSeen {
	w.by = w.callers[w.pick(len(w.callers), "caller")]
	w.lastTx++
	w.last = w.by.signed(w.gate, w.now, method, txid(w.lastTx), attributes)
	return w.sendLast()
}

// sendLast sends the last frame. Who is banned gets nothing, and may still give up what it has.
func (w *world) sendLast() *answerSeen {
	banned := w.state.banned(&w.rules, testRealm, w.by.user, w.now)
	got := w.send(w.by, w.last)
	if got == nil || !banned {
		return got
	}
	for _, e := range got.events {
		switch e.(type) {
		case AllocationCreated, AllocationRefreshed, PermissionInstalled, ChannelBound, PeerConnected, ReservationMade, ClientRedirected:
			w.Errorf("%s is banned, and got %s", w.by.user, describe(e))
		}
	}
	return got
}

func (w *world) lifetime() stun.Setter {
	return lifetime(rapid.SampledFrom([]uint32{0, 0, 1, 600, 601, 1800, 3600, 1 << 31}).Draw(w.t, "lifetime"))
}

func (w *world) peer() stun.Setter {
	return peer(rapid.SampledFrom([]string{
		peerA, peerA2, peerB, "203.0.113.7:1", "203.0.113.8:1", "203.0.113.9:1", peerV6, "[2001:db8:77::6]:1",
		"10.0.0.1:1", "192.0.2.1:50000", "192.0.2.1:50001", "[2001:db8::1]:50000",
	}).Draw(w.t, "peer"))
}

func (w *world) allocate() {
	attributes := []stun.Setter{transport(17), w.lifetime()}
	if rapid.Bool().Draw(w.t, "v6") {
		attributes = append(attributes, family(2))
	}
	if rapid.Bool().Draw(w.t, "even") {
		attributes = append(attributes, evenPort(0))
	}
	w.request(stun.MethodAllocate, attributes...)
}

// reserve asks for a port and the next, from which on a token stands for that.
func (w *world) reserve() {
	got := w.request(stun.MethodAllocate, transport(17), w.lifetime(), evenPort(0x80))
	if got == nil || got.code != 0 {
		return
	}
	next := netip.AddrPortFrom(got.relayed.Addr(), got.relayed.Port()+1)
	r := w.state.Reserved(next)
	if got.relayed.Port()%2 != 0 || r == nil || r.Token != got.token {
		w.Fatalf("got %v and token %v, reserved is %+v", got.relayed, got.token, r)
	}
	w.tokens = append(w.tokens, got.token)
}

// redeem brings a token, which is good once.
func (w *world) redeem() {
	if len(w.tokens) == 0 {
		return
	}
	t := w.tokens[w.pick(len(w.tokens), "token")]
	held := w.state.reservations.byToken[t]
	got := w.request(stun.MethodAllocate, transport(17), token(t))
	if got == nil || got.code != 0 {
		return
	}
	if held == nil || held.Deadline.Passed(w.now) || held.Username != w.by.user || got.relayed != held.Relayed {
		w.Fatalf("%s got %v for the token of %+v", w.by.user, got.relayed, held)
	}
	if w.state.Reserved(got.relayed) != nil {
		w.Errorf("%v is still reserved", got.relayed)
	}
}

// mobile asks for a ticket too.
func (w *world) mobile() {
	got := w.request(stun.MethodAllocate, transport(17), w.lifetime(), ticket(nil))
	if got == nil || got.code != 0 {
		return
	}
	if a := w.state.ByFiveTuple(w.by.FiveTuple); a.Ticket != 1 || got.ticket == nil {
		w.Fatalf("got ticket %x, number %d", got.ticket, a.Ticket)
	}
	w.tickets = append(w.tickets, got.ticket)
}

// move brings a ticket, from anywhere.
func (w *world) move() {
	if len(w.tickets) == 0 {
		return
	}
	brought := w.tickets[w.pick(len(w.tickets), "ticket")]
	id, n, _ := w.rules.Tickets.open(w.state.log, brought)
	var before Allocation
	if a := w.state.Allocation(id); a != nil {
		before = *a
	}
	got := w.request(stun.MethodRefresh, w.lifetime(), ticket(brought))
	if got == nil || got.code != 0 {
		return
	}
	if before.ID == 0 || before.Deadline.Passed(w.now) || before.Username != w.by.user || n > before.Ticket || n+1 < before.Ticket {
		w.Fatalf("%s moved %+v with ticket %d", w.by.user, before, n)
	}
	after := w.state.Allocation(id)
	if after == nil {
		return // it asked for that
	}
	if at := w.state.ByFiveTuple(w.by.FiveTuple); at != after || after.Ticket != n+1 || string(got.ticket) == string(brought) {
		w.Errorf("after the move %+v is at %v, with ticket %x", at, w.by.FiveTuple, got.ticket)
	}
	if !before.Adrift && after.FiveTuple != before.FiveTuple {
		w.Errorf("data goes by %v before any came from there, want by %v", after.FiveTuple, before.FiveTuple)
	}
	w.tickets = append(w.tickets, got.ticket)
}

// arrive has data come from a five-tuple.
func (w *world) arrive() {
	t := w.callers[w.pick(len(w.callers), "caller")].FiveTuple
	moves := w.state.ByFiveTuple(t) != nil && w.state.ByFiveTuple(t).Next == t
	w.record(Arrive(w.state, t)...)
	if a := w.state.ByFiveTuple(t); moves && (a.FiveTuple != t || a.moving()) {
		w.Errorf("data came from %v, and %+v goes elsewhere", t, a)
	}
}

// leave has a five-tuple be gone.
func (w *world) leave() {
	t := w.callers[w.pick(len(w.callers), "caller")].FiveTuple
	a := w.state.ByFiveTuple(t)
	w.record(Leave(w.state, t, ReasonStreamClosed)...)
	if left := w.state.ByFiveTuple(t); left != nil {
		w.Errorf("%v is gone, and has %+v", t, left)
	}
	if a != nil && (w.state.Allocation(a.ID) != nil) != (a.Ticket > 0) {
		w.Errorf("%v is gone, and an allocation with ticket %d lives on: %t", t, a.Ticket, w.state.Allocation(a.ID) != nil)
	}
}

// dual asks for both families.
func (w *world) dual() {
	got := w.request(stun.MethodAllocate, transport(17), w.lifetime(), additional(2))
	if got != nil && got.code == 0 && (got.other.IsValid() == (got.lacks != lack{})) {
		w.Errorf("got %v, %v, without %+v", got.relayed, got.other, got.lacks)
	}
}

// refreshOne refreshes, or ends, the relayed address of one family.
func (w *world) refreshOne() {
	w.request(stun.MethodRefresh, w.lifetime(), family(byte(1+w.pick(2, "family"))))
}

func (w *world) refresh() { w.request(stun.MethodRefresh, w.lifetime()) }

func (w *world) permit() {
	var attributes []stun.Setter
	for range w.pick(4, "peers") {
		attributes = append(attributes, w.peer())
	}
	w.request(stun.MethodCreatePermission, attributes...)
}

func (w *world) bind() {
	w.request(stun.MethodChannelBind, channel(0x4000+uint16(w.pick(4, "channel"))), w.peer())
}

// retransmit sends the last frame again. Within 40 s a success is repeated, and nothing else happens.
func (w *world) retransmit() {
	if w.last == nil {
		return
	}
	if again := w.sendLast(); again != nil && (again.code == 0 || again.code == CodeTryAlternate) {
		third := w.send(w.by, w.last)
		if len(third.events) > 0 || string(third.message.Raw) != string(again.message.Raw) {
			w.Errorf("a retransmission got %v and made %v", third.message, describeAll(third.events))
		}
	}
}

func (w *world) pass() {
	w.wait(time.Duration(rapid.SampledFrom([]int{0, 1, 39, 40, 299, 300, 301, 599, 600, 601, 3000}).Draw(w.t, "seconds")) * time.Second)
	if !w.lazy {
		w.nothingOverdue()
	}
}

func (w *world) restart() {
	down := time.Duration(w.pick(400, "down")) * time.Second
	skew := rapid.SampledFrom([]time.Duration{0, 0, -time.Hour, time.Hour}).Draw(w.t, "skew")
	before := cloneImage(w.state.Image())
	last := w.now
	w.reboot(down, skew)
	for _, old := range before.Allocations {
		now := w.state.Allocation(old.ID)
		if got, most := now.Deadline.Uptime-w.now.Uptime, old.Deadline.Uptime-before.Moment.Uptime; got > most {
			w.Errorf("allocation %d has %v left after a reboot, and had %v at the last record, at %v", old.ID, got, most, last)
		}
	}
	for i, old := range before.Bans {
		now := w.state.Bans()[i]
		if got, most := now.Deadline.Uptime-w.now.Uptime, old.Deadline.Uptime-before.Moment.Uptime; now.Endless() != old.Endless() || !now.Endless() && got > most {
			w.Errorf("the ban of %s has %v left after a reboot, and had %v at the last record", old.Username, got, most)
		}
	}
	w.expire()
	w.nothingOverdue()
}

func (w *world) reconfigure() {
	config := tokenConfig()
	if rapid.Bool().Draw(w.t, "without alice") {
		config.Users = config.Users[1:]
	}
	if rapid.Bool().Draw(w.t, "without secrets") {
		config.Secrets = nil
	}
	if rapid.Bool().Draw(w.t, "key gone") {
		config.TokenKeys = config.TokenKeys[1:]
	}
	w.gate = NewGate(config)
	w.rules.Policy = Policy{}
	if rapid.Bool().Draw(w.t, "deny") {
		w.rules.Policy.Deny = prefixes("203.0.113.4/30", "2001:db8:77::/64")
	}
	if rapid.Bool().Draw(w.t, "allow") {
		w.rules.Policy.Allow = prefixes("10.0.0.0/8", "192.0.2.1/32")
	}
	w.rules.Storage = Room(w.pick(3, "room"))
	w.rules.Draining = rapid.Bool().Draw(w.t, "drain")
	w.rules.MaxPermissions = 1 + w.pick(4, "permissions")
	w.rules.Alternates = alternates("203.0.113.200:3478", "[2001:db8:9::1]:3478")[:w.pick(3, "alternates")]
	w.reload()
	for a := range w.state.Allocations() {
		if !w.gate.Knows(a.Realm, a.Username, a.Created) {
			w.Errorf("allocation %d of %q lives on", a.ID, a.Username)
		}
		for _, p := range a.Permissions {
			if !w.rules.permits(p.Peer) {
				w.Errorf("allocation %d may still reach %v", a.ID, p.Peer)
			}
		}
		for _, c := range a.Channels {
			if !w.rules.permits(c.Peer.Addr()) {
				w.Errorf("allocation %d has still channel %v to %v", a.ID, c.Number, c.Peer)
			}
		}
	}
	for _, r := range w.state.Reservations() {
		if !w.gate.Knows(r.Realm, r.Username, r.Made) {
			w.Errorf("the reservation of %q lives on", r.Username)
		}
	}
	if again := w.reload(); len(again) > 0 {
		w.Errorf("a second reload made %v", describeAll(again))
	}
}

func (w *world) allocateTCP() {
	w.request(stun.MethodAllocate, transport(6), w.lifetime())
}

func (w *world) connect() {
	w.dialled = Dialled(w.pick(4, "outcome"))
	got := w.request(stun.MethodConnect, w.peer())
	if got == nil || got.code != 0 {
		return
	}
	if w.dialled != DialConnected || w.by.Protocol == UDP || len(got.events) == 0 {
		w.Errorf("%v: a Connect succeeded that came to %d, with events %v", w.by, w.dialled, describeAll(got.events))
	}
}

// accept is a connection that a peer makes.
func (w *world) accept() {
	id := AllocationID(w.pick(int(w.state.last)+1, "id"))
	peer := rapid.SampledFrom([]string{peerA, peerA2, peerB, peerV6, "10.0.0.1:1"}).Draw(w.t, "peer")
	w.lastTx++
	e, ok := AcceptPeer(w.state, &w.rules, id, addrPort(peer), [32]byte{byte(w.lastTx), byte(w.lastTx >> 8)}, w.now)
	if !ok {
		return
	}
	if a := w.state.Allocation(id); a.Permission(addrPort(peer).Addr()) == nil {
		w.Errorf("allocation %d takes a connection of %s, which has no permission", id, peer)
	}
	w.record(e)
}

// bindConnection is a ConnectionBind from a data connection.
func (w *world) bindConnection() {
	id := ConnectionID(w.pick(9, "no connection"))
	for c := range w.state.byConnection {
		id = max(id, c) // any will do, and always the same
	}
	who := newCaller("alice", "wonderland", "198.51.100.1:6000").over(TCP)
	if rapid.Bool().Draw(w.t, "bob") {
		who = newCaller("bob", "builder", "198.51.100.2:6000").over(TLS)
	}
	a := w.state.byConnection[id]
	w.lastTx++
	got := w.send(who, who.signed(w.gate, w.now, stun.MethodConnectionBind, txid(w.lastTx), []stun.Setter{
		set(stun.AttrConnectionID, byte(id>>24), byte(id>>16), byte(id>>8), byte(id)),
	}))
	if got != nil && got.code == 0 && (a == nil || a.Username != who.user || a.Connection(id).Client != who.FiveTuple) {
		w.Errorf("%v bound connection %v of %+v", who, id, a)
	}
}

func (w *world) disconnect() {
	for a := range w.state.Allocations() {
		if len(a.Connections) > 0 {
			w.record(Disconnect(w.state, a.ID, a.Connections[w.pick(len(a.Connections), "connection")].ID, ReasonPeerClosed)...)
			return
		}
	}
}

func (w *world) closeOne() {
	w.record(Close(w.state, AllocationID(w.pick(int(w.state.last)+1, "id")), ReasonOperator)...)
}

// ban bans somebody, and ends what that user has.
func (w *world) ban() {
	who := w.callers[w.pick(len(w.callers), "caller")]
	e := UserBanned{Seconds: rapid.SampledFrom([]uint32{0, 1, 300, 3000}).Draw(w.t, "seconds")}
	e.Realm, e.Username, _ = w.gate.Means("", who.user)
	w.record(e)
	for limit := 1 + w.pick(3, "limit"); ; {
		events := Evict(w.state, &w.rules, w.now, limit)
		w.record(events...)
		if len(events) > limit {
			w.Errorf("got %d ends, want at most %d", len(events), limit)
		}
		if len(events) < limit {
			break
		}
	}
	for a := range w.state.Allocations() {
		if Owner(a.Username) == e.Username {
			w.Errorf("%s is banned, and has allocation %d", e.Username, a.ID)
		}
	}
	for _, r := range w.state.Reservations() {
		if Owner(r.Username) == e.Username {
			w.Errorf("%s is banned, and has %v reserved", e.Username, r.Relayed)
		}
	}
	if !w.state.banned(&w.rules, testRealm, who.user, w.now) {
		w.Errorf("%s is not banned by %v", who.user, describe(e))
	}
}

func (w *world) unban() {
	who := w.callers[w.pick(len(w.callers), "caller")]
	w.record(Unban(w.state, &w.rules, testRealm, who.user)...)
	if w.state.banned(&w.rules, testRealm, who.user, w.now) {
		w.Errorf("%s is banned after all", who.user)
	}
}

func (w *world) use() {
	e := UsageRecorded{Allocation: AllocationID(w.pick(int(w.state.last)+1, "id")), Path: Path(1 + w.pick(2, "path"))}
	if rapid.Bool().Draw(w.t, "channel") {
		e.Channel, e.Peer = 0x4000, addrPort(peerA)
	}
	e.ToPeer = Count{Packets: uint64(w.pick(9, "packets")), Bytes: uint64(w.pick(9, "bytes"))}
	w.record(e)
}

// twin makes another state of the image of this one.
func (w *world) twin() {
	w.feed()
	s, err := FromImage(cloneImage(w.state.Image()))
	if err != nil {
		w.Fatal(err)
	}
	w.sameAs("the state made from the image", s)
	if len(w.twins) < 3 {
		w.twins = append(w.twins, s)
	}
}

// feed gives the twins the records they have not had.
func (w *world) feed() {
	for _, r := range w.records[w.fed:] {
		for _, s := range w.twins {
			if err := s.Fold(r); err != nil {
				w.Fatalf("a state made from an image refuses record %d: %v", r.First, err)
			}
		}
	}
	w.fed = len(w.records)
}

func (w *world) sameAs(what string, s *State) {
	w.Helper()
	if diff := cmp.Diff(w.state.Image(), s.Image(), byAddress...); diff != "" {
		w.Errorf("%s is another (-state +other):\n%s", what, diff)
	}
}

func (w *world) check() {
	w.feed()
	checkState(w.t, w.state, w.rules.MaxLifetime)
	for _, s := range w.twins {
		w.sameAs("a state made from an image and fed since", s)
		checkState(w.t, s, w.rules.MaxLifetime)
	}
}

func (w *world) nothingOverdue() {
	if left := w.state.reservations.over(w.now); len(left) > 0 {
		w.Errorf("not expired at %v: the reservation %+v", w.now, *left[0])
	}
	if left := w.state.bans.over(w.now); len(left) > 0 {
		w.Errorf("not expired at %v: %v", w.now, describeAll(left))
	}
	for a := range w.state.Allocations() {
		if left := a.overdue(w.now); len(left) > 0 {
			w.Errorf("not expired at %v: %v", w.now, describeAll(left))
		}
	}
}

func cloneImage(im Image) Image {
	im.Allocations, im.Answers, im.Reservations = slices.Clone(im.Allocations), slices.Clone(im.Answers), slices.Clone(im.Reservations)
	im.Bans = slices.Clone(im.Bans)
	for i := range im.Allocations {
		a := &im.Allocations[i]
		a.Relayed, a.Permissions = slices.Clone(a.Relayed), slices.Clone(a.Permissions)
		a.Channels, a.Usage, a.Until = slices.Clone(a.Channels), slices.Clone(a.Usage), slices.Clone(a.Until)
		a.Connections = slices.Clone(a.Connections)
	}
	return im
}

// checkState holds the invariants of a state.
func checkState(t tb, s *State, maxLifetime time.Duration) {
	t.Helper()
	owners, realms := map[Holder]int{}, map[string]int{}
	relayed, connections, fiveTuples := 0, 0, 0
	first, some := time.Duration(0), false
	for a := range s.Allocations() {
		owners[HolderOf(a.Realm, a.Username)]++
		realms[a.Realm]++
		relayed += len(a.Relayed)
		connections += len(a.Connections)
		for i, c := range a.Connections {
			if !a.TCP() || s.byConnection[c.ID] != a || i > 0 && a.Connections[i-1].ID >= c.ID {
				t.Errorf("connection %v of allocation %d, for transport %d, is not in its place", c.ID, a.ID, a.Transport)
			}
		}
		for ft := range a.FiveTuples() {
			fiveTuples++
			if s.byFiveTuple[ft] != a {
				t.Errorf("allocation %d is not found by %v", a.ID, ft)
			}
		}
		if a.ID == 0 || a.ID > s.last || !a.mobile() {
			t.Errorf("allocation %d is not in its place, the last is %d", a.ID, s.last)
		}
		for _, r := range a.Relayed {
			if s.byRelayed[r] != a || !s.ports[r.Addr()].has(r.Port()) {
				t.Errorf("allocation %d is not found by %v", a.ID, r)
			}
		}
		checkAllocation(t, s.moment, a, maxLifetime)
		if end := a.earliest(); !some || end < first {
			first, some = end, true
		}
	}
	for _, r := range s.reservations.list {
		owners[HolderOf(r.Realm, r.Username)]++
		realms[r.Realm]++
		if s.byRelayed[r.Relayed] != nil || s.Reserved(r.Relayed) != r || s.reservations.byToken[r.Token] != r || !s.ports[r.Relayed.Addr()].has(r.Relayed.Port()) {
			t.Errorf("%v is reserved and not in its place", r.Relayed)
		}
		if left := r.Deadline.Uptime - s.moment.Uptime; left > ReservationLifetime {
			t.Errorf("%v is reserved for %v", r.Relayed, left)
		}
		if end := r.Deadline.Uptime; !some || end < first {
			first, some = end, true
		}
	}
	for i, b := range s.bans.list {
		if b.Username == "" || i > 0 && compareBan(s.bans.list[i-1], b) >= 0 {
			t.Errorf("the bans are out of order: %+v", s.bans.list)
		}
		if end := b.Deadline.Uptime; !b.Endless() && (!some || end < first) {
			first, some = end, true
		}
	}
	if n := len(s.reservations.list); n != len(s.reservations.byToken) || n != len(s.reservations.byRelayed) || !slices.IsSortedFunc(s.reservations.list, compareReservation) {
		t.Errorf("got %d reservations, %d tokens and %d addresses of them, or out of order", n, len(s.reservations.byToken), len(s.reservations.byRelayed))
	}
	if len(s.byFiveTuple) != fiveTuples || len(s.byRelayed) != relayed {
		t.Errorf("got %d five-tuples and %d relayed addresses for %d and %d", len(s.byFiveTuple), len(s.byRelayed), fiveTuples, relayed)
	}
	if len(s.byConnection) != connections {
		t.Errorf("got %d connections by id, want %d", len(s.byConnection), connections)
	}
	if !maps.Equal(owners, s.byOwner) || !maps.Equal(realms, s.byRealm) {
		t.Errorf("got owners %v and realms %v, want %v and %v", s.byOwner, s.byRealm, owners, realms)
	}
	ports := 0
	for _, p := range s.ports {
		for _, word := range p {
			ports += bits.OnesCount64(word)
		}
	}
	if want := relayed + len(s.reservations.list); ports != want {
		t.Errorf("got %d ports in use for %d relayed and reserved addresses", ports, want)
	}
	checkAnswers(t, s)
	if next, ok := s.NextDeadline(); next != first || ok != some {
		t.Errorf("got next deadline %v, %t, want %v, %t", next, ok, first, some)
	}
	checkEnds(t, s)
}

func checkAllocation(t tb, now Moment, a *Allocation, maxLifetime time.Duration) {
	t.Helper()
	within := func(what any, d Deadline, most time.Duration) {
		if left := d.Uptime - now.Uptime; left > most {
			t.Errorf("allocation %d: %v has %v left, at most %v are granted", a.ID, what, left, most)
		}
	}
	within("it", a.Deadline, maxLifetime)
	for _, d := range a.Until {
		within("a relayed address of it", d, maxLifetime)
	}
	if end := a.Deadline; !a.paired() || a.Deadline != end {
		t.Errorf("allocation %d relays %v until %v, and ends at %v", a.ID, a.Relayed, a.Until, end)
	}
	for _, c := range a.Connections {
		within(c.ID, c.Deadline, ConnectionLifetime)
	}
	bound := map[netip.AddrPort]bool{}
	for i, c := range a.Channels {
		if i > 0 && a.Channels[i-1].Number >= c.Number {
			t.Errorf("allocation %d: channels are out of order: %v", a.ID, a.Channels)
		}
		if bound[c.Peer] {
			t.Errorf("allocation %d: two channels to %v", a.ID, c.Peer)
		}
		bound[c.Peer] = true
		if a.Channel(c.Number) != &a.Channels[i] || a.ChannelTo(c.Peer) != &a.Channels[i] {
			t.Errorf("allocation %d: channel %v is not found", a.ID, c.Number)
		}
		if _, ok := a.RelayedFor(c.Peer.Addr()); !ok {
			t.Errorf("allocation %d: channel to %v of another family", a.ID, c.Peer)
		}
		within(c.Number, c.Deadline, ChannelLifetime)
	}
	for i, p := range a.Permissions {
		if i > 0 && a.Permissions[i-1].Peer.Compare(p.Peer) >= 0 {
			t.Errorf("allocation %d: permissions are out of order: %v", a.ID, a.Permissions)
		}
		if _, ok := a.RelayedFor(p.Peer); !ok {
			t.Errorf("allocation %d: permission for %v of another family", a.ID, p.Peer)
		}
		if a.Permission(p.Peer) != &a.Permissions[i] {
			t.Errorf("allocation %d: permission for %v is not found", a.ID, p.Peer)
		}
		within(p.Peer, p.Deadline, PermissionLifetime)
	}
	if !slices.IsSortedFunc(a.Usage, compareUsage) {
		t.Errorf("allocation %d: usage is out of order: %v", a.ID, a.Usage)
	}
}

func checkAnswers(t tb, s *State) {
	t.Helper()
	if n := len(s.answers.of) + len(s.answers.clash); n != len(s.answers.live()) {
		t.Errorf("got %d answers, %d in the list", n, len(s.answers.live()))
	}
	for i := range s.answers.live() {
		a := &s.answers.live()[i]
		if left := a.until.Uptime - s.moment.Uptime; s.answers.get(a.transaction) != &a.answer || left > AnswerLifetime {
			t.Errorf("answer %v is remembered for %v, or is not found", a.tx, left)
		}
	}
}

func checkEnds(t tb, s *State) {
	t.Helper()
	if !s.ends.built {
		return
	}
	if len(s.ends.heap) != len(s.allocations) {
		t.Errorf("got %d ends for %d allocations", len(s.ends.heap), len(s.allocations))
	}
	for i, a := range s.ends.heap {
		end := a.earliest()
		if a.index != i || a.end > end || (a.end != end && !a.stale) {
			t.Errorf("allocation %d stands at %d with %v (stale: %t), is at %d and ends at %v", a.ID, a.index, a.end, a.stale, i, end)
		}
		if i > 0 && s.ends.heap.Less(i, (i-1)/2) {
			t.Errorf("allocation %d stands below a later one", a.ID)
		}
	}
}

// TestFoldRefuses has records and events that do not follow the state.
func TestFoldRefuses(t *testing.T) {
	made := AllocationCreated{
		Allocation: 1, FiveTuple: alice().FiveTuple, Relayed: []netip.AddrPort{addrPort("192.0.2.1:50000")},
		Transport: 17, Username: "alice", Realm: testRealm, Lifetime: 600,
	}
	other := func(change func(*AllocationCreated)) AllocationCreated {
		e := made
		e.Allocation, e.FiveTuple, e.Relayed = 2, bob().FiveTuple, []netip.AddrPort{addrPort("192.0.2.1:50001")}
		change(&e)
		return e
	}
	bound := ChannelBound{Allocation: 1, Channel: 0x4000, Peer: addrPort(peerA)}
	reserved := ReservationMade{Allocation: 1, Relayed: addrPort("192.0.2.1:50009"), Token: ReservationToken{1}, Lifetime: 30}
	for _, tt := range []struct {
		name string
		e    Event
		ok   bool
	}{
		{"Another", other(func(*AllocationCreated) {}), true},
		{"SkippedID", other(func(e *AllocationCreated) { e.Allocation = 9 }), true},
		{"SameID", other(func(e *AllocationCreated) { e.Allocation = 1 }), false},
		{"SameFiveTuple", other(func(e *AllocationCreated) { e.FiveTuple = alice().FiveTuple }), false},
		{"SameRelayed", other(func(e *AllocationCreated) { e.Relayed = made.Relayed }), false},
		{"NoRelayed", other(func(e *AllocationCreated) { e.Relayed = nil }), false},
		{"RelayedTwice", other(func(e *AllocationCreated) { e.Relayed = append(e.Relayed, e.Relayed...) }), false},
		{"RefreshOfNone", AllocationRefreshed{Allocation: 2, Lifetime: 9}, false},
		{"EndOfNone", AllocationExpired{Allocation: 2}, false},
		{"DeleteOfNone", AllocationDeleted{Allocation: 2}, false},
		{"PermissionOfNone", PermissionInstalled{Allocation: 2, Peer: addr("203.0.113.5")}, false},
		{"ExpiryOfNoPermission", PermissionExpired{Allocation: 1, Peer: addr("203.0.113.9")}, false},
		{"ExpiryOfNoChannel", ChannelExpired{Allocation: 1, Channel: 0x4009}, false},
		{"SameChannel", bound, true},
		{"ChannelOfAnotherPeer", ChannelBound{Allocation: 1, Channel: 0x4000, Peer: addrPort(peerB)}, false},
		{"PeerOfAnotherChannel", ChannelBound{Allocation: 1, Channel: 0x4001, Peer: addrPort(peerA)}, false},
		{"UsageOfNone", UsageRecorded{Allocation: 2}, true},
		{"TwoOfOneFamily", other(func(e *AllocationCreated) { e.Relayed = append(e.Relayed, addrPort("192.0.2.1:50002")) }), false},
		{"Three", other(func(e *AllocationCreated) {
			e.Relayed = append(e.Relayed, addrPort("[2001:db8::1]:50002"), addrPort("[2001:db8::1]:50003"))
		}), false},
		{"OneOfEachFamily", other(func(e *AllocationCreated) { e.Relayed = append(e.Relayed, addrPort("[2001:db8::1]:50002")) }), true},
		{"RefreshOfTheOnlyAddress", RelayedRefreshed{Allocation: 1, Relayed: made.Relayed[0]}, false},
		{"EndOfTheOnlyAddress", RelayedDeleted{Allocation: 1, Relayed: made.Relayed[0]}, false},
		{"ExpiryOfTheOnlyAddress", RelayedExpired{Allocation: 1, Relayed: made.Relayed[0]}, false},
		{"ExpiryOfAnothersAddress", RelayedExpired{Allocation: 1, Relayed: addrPort("192.0.2.1:50001")}, false},
		{"TicketOfNone", TicketIssued{Allocation: 2}, false},
		{"Ticket", TicketIssued{Allocation: 1}, true},
		{"MoveWithoutTicket", AllocationMoved{Allocation: 1, FiveTuple: bob().FiveTuple, Ticket: 1}, false},
		{"LeaveWithoutTicket", FiveTupleLeft{Allocation: 1, FiveTuple: alice().FiveTuple}, false},
		{"TokenOfNone", TokenAccepted{Allocation: 2, Token: SealedToken{1}}, false},
		{"TokenThatIsNone", TokenAccepted{Allocation: 1}, false},
		{"Token", TokenAccepted{Allocation: 1, Token: SealedToken{1}}, true},
		{"FamilyOfNone", FamilyRefused{Allocation: 2, Family: 2, Code: 508}, false},
		{"AnotherReservation", ReservationMade{Allocation: 1, Relayed: addrPort("192.0.2.1:50003"), Token: ReservationToken{2}, Lifetime: 30}, true},
		{"SameToken", ReservationMade{Allocation: 1, Relayed: addrPort("192.0.2.1:50003"), Token: ReservationToken{1}, Lifetime: 30}, false},
		{"NoToken", ReservationMade{Allocation: 1, Relayed: addrPort("192.0.2.1:50003"), Lifetime: 30}, false},
		{"SameReserved", ReservationMade{Allocation: 1, Relayed: addrPort("192.0.2.1:50009"), Token: ReservationToken{2}, Lifetime: 30}, false},
		{"ReservedIsRelayed", ReservationMade{Allocation: 1, Relayed: made.Relayed[0], Token: ReservationToken{2}, Lifetime: 30}, false},
		{"ReservationOfNone", ReservationMade{Allocation: 2, Relayed: addrPort("192.0.2.1:50003"), Token: ReservationToken{2}, Lifetime: 30}, false},
		{"ExpiryOfNoReservation", ReservationExpired{Relayed: made.Relayed[0]}, false},
		{"EndOfNoBan", UserUnbanned{Realm: testRealm, Username: "alice"}, false},
		{"BanOfNobody", UserBanned{Realm: testRealm}, false},
		{"Ban", UserBanned{Realm: testRealm, Username: "alice"}, true},
		{"EndOfNoReservation", ReservationRevoked{Relayed: made.Relayed[0]}, false},
		{"ReservedIsTaken", other(func(e *AllocationCreated) { e.Relayed = []netip.AddrPort{addrPort("192.0.2.1:50009")} }), true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := fold(t, []Record{{First: 1, Moment: at(0), Events: []Event{made, bound, reserved}}})
			err := s.Fold(Record{First: 4, Moment: at(1), Events: []Event{tt.e}})
			if got := err == nil; got != tt.ok {
				t.Errorf("got %v, want accepted: %t", err, tt.ok)
			}
		})
	}
	s := NewState()
	for _, first := range []Seq{0, 2} {
		if s.Fold(Record{First: first, Moment: at(0), Events: []Event{made}}) == nil {
			t.Errorf("a record that begins at %d is accepted as the first", first)
		}
	}
}

func TestFromImageRefuses(t *testing.T) {
	c := newCore(t)
	c.allocated(alice())
	c.allocated(bob())
	for range 2 {
		c.mustDo(0, newCaller("alice", "wonderland", fmt.Sprintf("198.51.100.1:%d", 6000+c.lastTx)), stun.MethodAllocate, transport(17), evenPort(0x80))
	}
	c.record(UserBanned{Realm: testRealm, Username: "dora"}, UserBanned{Realm: testRealm, Username: "eve", Seconds: 9})
	for name, spoil := range map[string]func(*Image){
		"BanTwice":    func(im *Image) { im.Bans[1].Username = im.Bans[0].Username },
		"BanOfNobody": func(im *Image) { im.Bans[0].Username = "" },
		"ID":          func(im *Image) { im.Allocations[1].ID = 1 },
		"LastID":      func(im *Image) { im.LastAllocation = 1 },
		"FiveTuple":   func(im *Image) { im.Allocations[1].FiveTuple = im.Allocations[0].FiveTuple },
		"Relayed":     func(im *Image) { im.Allocations[1].Relayed = im.Allocations[0].Relayed },
		"Token":       func(im *Image) { im.Reservations[1].Token = im.Reservations[0].Token },
		"NoToken":     func(im *Image) { im.Reservations[1].Token = ReservationToken{} },
		"Reserved":    func(im *Image) { im.Reservations[1].Relayed = im.Reservations[0].Relayed },
		"ReservedToo": func(im *Image) { im.Reservations[1].Relayed = im.Allocations[0].Relayed[0] },
		"Deadlines":   func(im *Image) { im.Allocations[0].Until = make([]Deadline, 1) },
		"NoRelayed":   func(im *Image) { im.Allocations[0].Relayed = nil },
		"OneFamily": func(im *Image) {
			a := &im.Allocations[0]
			a.Relayed, a.Until = append(a.Relayed, addrPort("192.0.2.1:9")), []Deadline{a.Deadline, a.Deadline}
		},
		"AnswerTwice": func(im *Image) { im.Answers[1] = im.Answers[0] },
		"AnswerRelayed": func(im *Image) {
			im.Answers[0].Relayed = make([]netip.AddrPort, 3)
		},
	} {
		t.Run(name, func(t *testing.T) {
			im := cloneImage(c.state.Image())
			spoil(&im)
			if _, err := FromImage(im); err == nil {
				t.Error("got no error")
			}
		})
	}
}

// TestExpireInTurn has the earliest end first, and no more than asked for at once.
func TestExpireInTurn(t *testing.T) {
	c := newCore(t)
	c.lazy = true
	for i := range 5 {
		c.allocated(newCaller("alice", "wonderland", fmt.Sprintf("198.51.100.1:%d", 5000+i)))
		c.wait(time.Second)
	}
	c.mustDo(0, newCaller("alice", "wonderland", "198.51.100.1:5002"), stun.MethodChannelBind, channel(0x4000), peer(peerA))
	c.wait(time.Hour)
	want := []string{
		"PermissionExpired", "AllocationExpired allocation=1", "AllocationExpired allocation=2",
		"AllocationExpired allocation=3", "AllocationExpired allocation=4", "AllocationExpired allocation=5",
	}
	if got := describeAll(Expire(c.state, c.now, 100)); !slices.Equal(got, []string{want[3], want[1], want[2], want[4], want[5]}) {
		t.Errorf("got %v, want the allocation whose permission ended first before the others", got)
	}
	if got := Expire(c.state, c.now, 2); len(got) != 2 {
		t.Errorf("got %d events, want 2", len(got))
	}
	if got := Expire(c.state, at(0), 100); len(got) != 0 {
		t.Errorf("got %v at the beginning", describeAll(got))
	}
}

func TestRebase(t *testing.T) {
	last := Moment{Boot: BootID{1}, Uptime: time.Hour, Wall: 1000 * int64(time.Second)}
	granted := last.After(10 * time.Minute)
	for _, tt := range []struct {
		name string
		wall int64 // seconds after last
		want time.Duration
	}{
		{"AtOnce", 0, 10 * time.Minute},
		{"After4Minutes", 240, 6 * time.Minute},
		{"AfterItsEnd", 700, -100 * time.Second},
		{"ClockWentBack", -3600, 10 * time.Minute},
	} {
		next := Moment{Boot: BootID{2}, Uptime: 7 * time.Second, Wall: last.Wall + tt.wall*int64(time.Second)}
		got := granted.Rebase(last, next)
		if want := next.After(tt.want); got != want {
			t.Errorf("%s: got %v, want %v", tt.name, got, want)
		}
	}
	stepped := Deadline{Uptime: granted.Uptime, Wall: granted.Wall + int64(time.Hour)} // the clock was an hour ahead when it was granted
	next := Moment{Boot: BootID{2}, Wall: last.Wall + 60*int64(time.Second)}
	if got, want := stepped.Rebase(last, next), next.After(10*time.Minute); got != want {
		t.Errorf("got %v, want no more than what remained at the last record, %v", got, want)
	}
}
