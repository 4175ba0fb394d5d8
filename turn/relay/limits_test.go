package relay

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

func TestLimiterBoundsASource(t *testing.T) {
	l := newLimiter(100, 1000)
	now := int64(time.Hour)
	allowed := func(a string, n int) (got int) {
		for range n {
			if l.allow(netip.MustParseAddr(a), now) {
				got++
			}
		}
		return got
	}
	if got := allowed("192.0.2.1", 2000); got != 1000 {
		t.Errorf("got %d answers at once, want the burst of 1000", got)
	}
	if got := allowed("192.0.2.2", 10); got != 10 {
		t.Errorf("got %d answers to a neighbour, want 10: IPv4 is counted by address", got)
	}
	now += int64(time.Second)
	if got := allowed("192.0.2.1", 2000); got != 100 {
		t.Errorf("got %d answers a second later, want 100", got)
	}
	if got := allowed("2001:db8:0:1::1", 600) + allowed("2001:db8:0:1:ffff::2", 600); got != 1000 {
		t.Errorf("got %d answers to one /64, want 1000", got)
	}
	if got := allowed("2001:db8:0:2::1", 10); got != 10 {
		t.Errorf("got %d answers to another /64, want 10", got)
	}
	if got := allowed("127.0.0.1", 5000) + allowed("::1", 5000); got != 10000 {
		t.Errorf("got %d answers to loopback, want all 10000", got)
	}
	l = newLimiter(0, 0)
	if got := allowed("192.0.2.1", 5000); got != 5000 {
		t.Errorf("got %d answers without a limit, want 5000", got)
	}
}

func TestLimiterForgetsTheQuietUnderAFlood(t *testing.T) {
	l := newLimiter(1, 10)
	loud, now := netip.MustParseAddr("192.0.2.1"), int64(time.Hour)
	for range 10 {
		l.allow(loud, now)
	}
	for i := range uint32(4 * len(l.sets)) { // half of what the table holds, from as many sources
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0xc6120000+i)
		l.allow(netip.AddrFrom4(a), now)
	}
	if l.allow(loud, now) {
		t.Error("a source that used up its burst is answered because others came")
	}
}

func TestUnauthenticatedFloodIsCutOff(t *testing.T) {
	g := newVirtual(t, func(c *Config) { c.Settings.UnauthRate, c.Settings.UnauthBurst = 1, 5 })
	c := g.client(t, "192.0.2.10")
	answers := 0
	for range 20 {
		c.send(stun.MustBuild(stun.TransactionID, stun.BindingRequest).Raw)
	}
	for c.receive(quiet) != nil {
		answers++
	}
	if answers < 5 || answers > 7 {
		t.Errorf("got %d answers to 20 requests, want the burst of 5, or little more", answers)
	}
	if got := g.Counters().Drops[DropRateLimited.String()]; got != uint64(20-answers) {
		t.Errorf("got %d drops, want %d", got, 20-answers)
	}
}

func TestRetransmittedRefusalIsTheSame(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").greet()
	m := c.message(stun.MethodRefresh)
	first := c.exchange(m)
	c.allocate() // now the request would succeed
	if again := c.exchange(m); code(first) != 437 || string(again.Raw) != string(first.Raw) {
		t.Errorf("got code %d and then %d, want 437 twice, in the same bytes", code(first), code(again))
	}
}

func TestRefusedIsBounded(t *testing.T) {
	var r refused
	now := turn.Moment{Uptime: time.Hour}
	q := request{Request: &turn.Request{Method: stun.MethodRefresh}}
	for i := range uint32(maxRefused + 10) {
		binary.BigEndian.PutUint32(q.Tx[:], i)
		r.remember(q, []byte{1}, now)
	}
	if len(r.answers) != maxRefused || len(r.queue) != maxRefused {
		t.Errorf("got %d answers and %d in the queue, want %d", len(r.answers), len(r.queue), maxRefused)
	}
	b := &batch{}
	if !r.again(b, q, now) || len(b.replies) != 1 {
		t.Error("the last refusal is not remembered")
	}
	now.Uptime += turn.AnswerLifetime
	if r.again(b, q, now) || len(r.answers) != 0 {
		t.Errorf("got %d refusals remembered after %v, want none", len(r.answers), turn.AnswerLifetime)
	}
}

func TestRefusalsBeforeANonceMakeNoEvent(t *testing.T) {
	g := serveTest(t, nil)
	for range 10 {
		g.client("alice").greet()
	}
	if e, ok := g.refusals.take(g.clock()); ok {
		t.Errorf("got %v, want nothing: no nonce was returned", e)
	}
	c := g.client("alice").greet()
	c.password = "wrong"
	c.do(401, stun.MethodAllocate, udpTransport)
	e, _ := g.refusals.take(g.clock())
	if len(e.Attempts) != 1 || e.Attempts[0].Client != serverIP || e.Attempts[0].Username != "alice" || e.Attempts[0].Realm != "example.org" {
		t.Errorf("got %v, want the wrong password of alice", e)
	}
}

func TestQuotasAndRoom(t *testing.T) {
	g := serveTest(t, func(c *Config) { c.Settings.Rules.MaxPerOwner, c.Settings.Rules.MaxAllocations = 1, 2 })
	alice := g.client("alice").allocate()
	g.client("alice").greet().do(486, stun.MethodAllocate, udpTransport)
	bob := g.client("bob").allocate()
	if err := g.Reload(ctxFor(t), testSettings()); err != nil {
		t.Fatal(err)
	}
	if err := g.Drain(ctxFor(t), true); err != nil {
		t.Fatal(err)
	}
	g.client("alice").greet().do(508, stun.MethodAllocate, udpTransport)
	alice.do(0, stun.MethodRefresh)
	if err := g.Drain(ctxFor(t), false); err != nil {
		t.Fatal(err)
	}
	g.client("alice").allocate()

	room := func(r turn.Room) {
		g.store.mu.Lock()
		defer g.store.mu.Unlock()
		g.store.room = r
	}
	room(turn.RoomLow)
	g.client("alice").greet().do(508, stun.MethodAllocate, udpTransport)
	bob.do(0, stun.MethodRefresh)
	room(turn.RoomNone)
	bob.do(500, stun.MethodRefresh)
	bob.do(0, stun.MethodRefresh, lifetime(0))
	room(turn.RoomFine)
	g.client("bob").allocate()
}

func TestCloseByOperator(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").allocate()
	if err := g.CloseAllocation(ctxFor(t), 1); err != nil {
		t.Fatal(err)
	}
	if taken(t, c.relayed) {
		t.Error("the port is still bound")
	}
	if err := g.CloseAllocation(ctxFor(t), 1); !errors.Is(err, ErrNoAllocation) {
		t.Errorf("got %v, want %v", err, ErrNoAllocation)
	}
	c.do(437, stun.MethodRefresh)
}

func TestRequestOfAnOlderGateIsNotDecided(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").greet()
	goOn := g.store.stall()
	defer goOn()
	g.send(c, c.message(stun.MethodAllocate, udpTransport))
	<-g.store.entered
	late := g.client("bob").greet()
	settings := testSettings()
	settings.Gate = testGate("alice")
	// The writer is held while the request of bob waits behind the reload.
	held, release := make(chan struct{}), make(chan struct{})
	go func() {
		_ = g.do(ctxFor(t), func(*writer) error { close(held); <-release; return nil })
	}()
	<-held
	before := g.Counters().Requests[uint16(stun.MethodAllocate)]
	g.send(late, late.message(stun.MethodAllocate, udpTransport))
	eventually(t, "the request waits", func() bool { return g.Counters().Requests[uint16(stun.MethodAllocate)] == before+1 })
	g.use(settings)
	close(release)
	goOn()
	late.wantNothing()
	if got := len(eventsOf[turn.AllocationCreated](g.store)); got != 1 {
		t.Errorf("got %d allocations, want that of alice alone", got)
	}
}

// send sends m and waits for no answer.
func (g *rig) send(c *client, m *stun.Message) {
	g.t.Helper()
	c.endpointUDP.send(c.server, m.Raw)
}
