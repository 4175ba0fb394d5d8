package relay

import (
	"context"
	"errors"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// lose has the commit of the request m fail, and waits until the server serves again.
func (g *rig) lose(c *client, m *stun.Message, keep bool, refuse int) {
	g.t.Helper()
	before := g.Counters().Recoveries
	g.store.failNext(keep, refuse)
	c.send(c.server, m.Raw)
	eventually(g.t, "the log is recovered", func() bool {
		return g.Counters().Recoveries == before+1 && g.Ready()
	})
	if err := g.View(ctxFor(g.t), func(*turn.State) {}); err != nil {
		g.t.Fatal(err)
	}
}

func TestNobodyIsAnsweredWhenTheLogLostTheRecord(t *testing.T) {
	g := serveTest(t, nil)
	c, other := g.client("alice").greet(), g.client("bob").allocate()
	m := c.message(stun.MethodAllocate, udpTransport)
	g.lose(c, m, false, 0)
	c.wantNothing()
	if got := g.Allocations(); got != 1 {
		t.Errorf("got %d allocations after recovery, want the one that was durable", got)
	}
	g.pool.mu.Lock()
	if got := len(g.pool.m); got != 0 {
		t.Errorf("got %d sockets that belong to nobody, want 0", got)
	}
	g.pool.mu.Unlock()
	recovered := eventsOf[turn.LogRecovered](g.store)
	if len(recovered) != 1 || recovered[0].Cause != errDisk.Error() {
		t.Errorf("got %v in the log, want one LogRecovered with its cause", recovered)
	}
	peer := peerOf(t)
	other.permit(peer.addr)
	other.indicate(peer.addr, []byte("on"))
	peer.want([]byte("on"))
	if a := c.exchange(m); code(a) != 0 {
		t.Errorf("got code %d to the retransmission, want success", code(a))
	}
}

func TestWhatTheLogKeptIsServedAfterRecovery(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").greet()
	m := c.message(stun.MethodAllocate, udpTransport)
	g.lose(c, m, true, 3)
	c.wantNothing()
	if got := g.store.recovers; got != 4 {
		t.Errorf("got %d tries to recover, want 4", got)
	}
	if got := g.Allocations(); got != 1 {
		t.Fatalf("got %d allocations, want the one on the disk", got)
	}
	first := relayedOf(t, c.exchange(m))
	created := eventsOf[turn.AllocationCreated](g.store)
	if len(created) != 1 || created[0].Relayed[0] != first {
		t.Errorf("got answer %v and events %v, want one allocation at that address", first, created)
	}
	peer := peerOf(t)
	c.permit(peer.addr)
	peer.send(first, []byte("in"))
	c.wantData(peer.addr, []byte("in"))
}

func TestDeletionThatWasLostLeavesTheAllocation(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	g.lose(c, c.message(stun.MethodRefresh, lifetime(0)), false, 0)
	c.send(c.server, channelData(0x4000, []byte("still")))
	peer.want([]byte("still"))
}

func TestDeletionThatWasKeptEndsTheFlow(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	c.send(c.server, channelData(0x4000, []byte("before")))
	peer.want([]byte("before"))
	g.lose(c, c.message(stun.MethodRefresh, lifetime(0)), true, 0)
	c.send(c.server, channelData(0x4000, []byte("after")))
	peer.wantNothing()
	if got := g.Allocations(); got != 0 {
		t.Errorf("got %d flows, want 0", got)
	}
	probe := listenUDP(t, c.relayed) // the port is free again
	if probe.addr != c.relayed {
		t.Errorf("got %v, want %v", probe.addr, c.relayed)
	}
	used := eventsOf[turn.UsageRecorded](g.store)
	if len(used) != 1 || used[0].ToPeer != (turn.Count{Packets: 1, Bytes: 6}) {
		t.Errorf("got usage %+v, want the one datagram to the peer", used)
	}
}

func TestCountsInALostRecordAreToldAgain(t *testing.T) {
	for _, keep := range []bool{false, true} {
		g := serveTest(t, nil)
		c, peer := g.client("alice").allocate(), peerOf(t)
		c.bind(0x4000, peer.addr)
		c.send(c.server, channelData(0x4000, []byte("12345")))
		peer.want([]byte("12345"))
		g.refusals.add(&turn.Reply{Code: 401, Method: stun.MethodAllocate}, serverIP)
		events := g.flow(c).changedUsage()
		counted, _ := g.refusals.take(g.clock())
		g.store.failNext(keep, 0)
		g.posted.add(append(events, counted)...)
		eventually(t, "the log is recovered", func() bool { return len(eventsOf[turn.LogRecovered](g.store)) == 1 })
		used, refused := eventsOf[turn.UsageRecorded](g.store), eventsOf[turn.AttemptsRefused](g.store)
		if len(used) != 1 || used[0].ToPeer.Packets != 1 || len(refused) != 1 {
			t.Errorf("keep=%v: got %v and %v, want each counted once", keep, used, refused)
		}
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRecordReportsALostCommit(t *testing.T) {
	g := serveTest(t, nil)
	g.store.failNext(false, 1)
	if err := g.Record(ctxFor(t), turn.SegmentRetired{Segment: 1}); !errors.Is(err, errDisk) {
		t.Errorf("got %v, want %v", err, errDisk)
	}
	if err := g.Record(ctxFor(t), turn.SegmentRetired{Segment: 2}); err != nil {
		t.Errorf("got %v after recovery, want no error", err)
	}
	if got := eventsOf[turn.SegmentRetired](g.store); len(got) != 1 || got[0].Segment != 2 {
		t.Errorf("got %v in the log, want segment 2 alone", got)
	}
}

func TestRecordHeedsItsContext(t *testing.T) {
	g := serveTest(t, nil)
	goOn := g.store.stall()
	defer goOn()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- g.Record(ctx, turn.SegmentRetired{Segment: 1}) }()
	<-g.store.entered
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	goOn()
	if err := g.View(ctxFor(t), func(*turn.State) {}); err != nil {
		t.Errorf("view after it: %v", err)
	}
}

func TestStopDuringRecovery(t *testing.T) {
	g := serveTest(t, nil)
	c := g.client("alice").greet()
	g.store.failNext(false, 1<<30)
	waiting := make(chan error, 1)
	c.send(c.server, c.message(stun.MethodAllocate, udpTransport).Raw)
	eventually(t, "recovery fails", func() bool { return g.log.count("cannot be opened") > 0 })
	go func() { waiting <- g.Record(context.Background(), turn.SegmentRetired{Segment: 1}) }()
	if g.Ready() {
		t.Error("the server says that it is ready while its log is closed")
	}
	if err := g.stop(); !errors.Is(err, errDisk) {
		t.Errorf("got %v from a server stopped without its log, want %v", err, errDisk)
	}
	if err := <-waiting; !errors.Is(err, ErrStopped) {
		t.Errorf("got %v for a record nobody takes, want %v", err, ErrStopped)
	}
}

func TestLogFailsWhileStopping(t *testing.T) {
	for which := 1; which <= 3; which++ {
		g := serveTest(t, nil)
		c, peer := g.client("alice").allocate(), peerOf(t)
		c.bind(0x4000, peer.addr)
		c.send(c.server, channelData(0x4000, []byte("x")))
		peer.want([]byte("x"))
		goOn := g.store.stall()
		c.send(c.server, c.message(stun.MethodRefresh).Raw)
		<-g.store.entered
		c.send(c.server, c.message(stun.MethodRefresh).Raw)
		eventually(t, "a record waits behind the stalled one", func() bool { return g.Counters().Requests[uint16(stun.MethodRefresh)] == 2 })
		g.store.mu.Lock()
		g.store.failAt = g.store.appends + which
		g.store.mu.Unlock()
		g.cancel()
		<-g.stopping
		goOn()
		// A failure before the writer saw the stop is recovered from; a later one is told.
		if err := <-g.done; err != nil && !errors.Is(err, errDisk) {
			t.Errorf("failing append %d: got %v, want %v or recovery", which, err, errDisk)
		}
		g.cancel = nil
	}
}

func TestStalledDiskDoesNotStopRelaying(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	goOn := g.store.stall()
	defer goOn()
	c.send(c.server, c.message(stun.MethodRefresh).Raw)
	<-g.store.entered
	for range 100 {
		c.send(c.server, channelData(0x4000, []byte("ping")))
		peer.want([]byte("ping"))
		peer.send(c.relayed, []byte("pong"))
		c.want(channelData(0x4000, []byte("pong")))
	}
	goOn()
	if a := c.answer(5 * time.Second); a == nil || code(a) != 0 {
		t.Errorf("got %v after the stall, want success", a)
	}
}
