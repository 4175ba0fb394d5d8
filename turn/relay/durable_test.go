package relay

import (
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

func TestReplyWaitsForItsRecord(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").greet()
	goOn := g.store.stall()
	defer goOn()
	c.send(c.server, c.message(stun.MethodAllocate, udpTransport).Raw)
	<-g.store.entered
	c.wantNothing()
	if got := g.Allocations(); got != 0 {
		t.Errorf("got %d flows while the record is not durable, want 0", got)
	}
	goOn()
	if a := c.answer(5 * time.Second); a == nil || code(a) != 0 {
		t.Fatalf("got %v once the record is durable, want success", a)
	}
	if got := g.Allocations(); got != 1 {
		t.Errorf("got %d flows when the answer arrives, want 1", got)
	}
}

func TestRefusalWaitsForEventsBeforeIt(t *testing.T) {
	g := serveTest(t, nil)
	c, other := g.client("alice").greet(), g.client("bob").greet()
	goOn := g.store.stall()
	defer goOn()
	c.send(c.server, c.message(stun.MethodAllocate, udpTransport).Raw)
	<-g.store.entered
	// The refusals rest on the allocation nobody knows of yet: the first for sure, the second by its sequence.
	c.send(c.server, c.message(stun.MethodAllocate, udpTransport).Raw)
	other.send(other.server, other.message(stun.MethodRefresh).Raw)
	other.wantNothing()
	c.wantNothing()
	goOn()
	first, second := c.answer(5*time.Second), c.answer(5*time.Second)
	if first == nil || second == nil || code(first) != 0 || code(second) != 437 {
		t.Errorf("got %v and %v, want success and 437", first, second)
	}
	if a := other.answer(5 * time.Second); a == nil || code(a) != 437 {
		t.Errorf("got %v, want 437", a)
	}
}

func TestUnauthenticatedAnswersPassNeitherWriterNorDisk(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").greet()
	stuck := g.client("bob").greet()
	goOn := g.store.stall()
	defer goOn()
	stuck.send(stuck.server, stuck.message(stun.MethodAllocate, udpTransport).Raw)
	<-g.store.entered

	plain := g.client("alice")
	if got := code(plain.exchange(plain.message(stun.MethodBinding))); got != 0 {
		t.Errorf("got code %d to Binding, want success", got)
	}
	plain.greet() // 401
	bad := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpTransport,
		stun.NewShortTermIntegrity("x"))
	if got := code(c.exchange(bad)); got != 400 {
		t.Errorf("got code %d to a request without USERNAME, want 400", got)
	}
	stale := g.client("alice")
	stale.nonce = "obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA"
	stale.do(438, stun.MethodAllocate, udpTransport)
	wrong := g.client("alice").greet()
	wrong.password = "wrong"
	wrong.do(401, stun.MethodAllocate, udpTransport)
	if got := len(eventsOf[turn.AllocationCreated](g.store)); got != 0 {
		t.Errorf("got %d allocations in the log, want 0", got)
	}
}

func TestWaitingRequestsShareARecord(t *testing.T) {
	g := serveTest(t, nil)
	first := g.client("alice").greet()
	const n = 40
	clients := make([]*client, n)
	for i := range clients {
		clients[i] = g.client("alice").greet()
	}
	goOn := g.store.stall()
	defer goOn()
	first.send(first.server, first.message(stun.MethodAllocate, udpTransport).Raw)
	<-g.store.entered
	before := g.Counters().Requests[uint16(stun.MethodAllocate)]
	for _, c := range clients {
		c.send(c.server, c.message(stun.MethodAllocate, udpTransport).Raw)
	}
	eventually(t, "all requests are in", func() bool {
		return g.Counters().Requests[uint16(stun.MethodAllocate)] == before+n
	})
	goOn()
	for _, c := range clients {
		if a := c.answer(5 * time.Second); a == nil || code(a) != 0 {
			t.Fatalf("got %v, want success", a)
		}
	}
	// ServerStarted and the first allocation have records of their own.
	if got := len(g.store.sizes()) - 2; got > n/4 {
		t.Errorf("got %d records for %d requests that waited together, want few", got, n)
	}
}

func TestQueueAndRecordAreBounded(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").allocate()
	goOn := g.store.stall()
	defer goOn()
	c.send(c.server, c.message(stun.MethodRefresh).Raw)
	<-g.store.entered
	for sent := 0; g.Counters().Drops[DropBusy.String()] == 0; sent++ {
		if sent > 4*(maxEvents+maxQueue) {
			t.Fatalf("got no drop after %d requests to a server that cannot commit", sent)
		}
		c.send(c.server, c.message(stun.MethodRefresh).Raw)
	}
	goOn()
	eventually(t, "the backlog is worked off", func() bool { return len(g.requests) == 0 })
	c.drain()
	c.do(0, stun.MethodRefresh)
	for _, size := range g.store.sizes() {
		if size > maxEvents+64 {
			t.Errorf("got a record of %d events, want at most %d", size, maxEvents+64)
		}
	}
}
