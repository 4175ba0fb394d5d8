package test

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"turnstone/internal/testenv"

	"github.com/pion/stun/v3"
)

// TestReplyFollowsItsRecordToDisk has concurrent clients ask for thousands of things and shows from the
// daemon's system calls that no reply left before its record was on disk.
func TestReplyFollowsItsRecordToDisk(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := newDaemon(t, s, onLoopback...)
	trace := filepath.Join(t.TempDir(), "trace")
	d.trace = straced(testenv.Tool(t, "strace"), trace)
	d.start()
	asked := askEverything(t, s, 24, 120)
	d.stop()
	p := newProof(asked.restsOn)
	if err := p.prove(trace); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d replies with events and %d refusals in %d commits with %d fdatasyncs", len(p.replies), len(p.refusals), p.commits, p.syncs)
	asked.seenIn(t, p)
	if len(p.replies) < 2500 || len(p.refusals) == 0 || p.commits < 50 || p.syncs < 2*p.commits {
		t.Errorf("got %d replies, %d refusals, %d commits, %d fdatasyncs: want thousands, some, many and two for each commit",
			len(p.replies), len(p.refusals), p.commits, p.syncs)
	}
	d.trace = nil
	d.verify()
	asked.check(t, d)
}

// TestFailedSyncAnswersNobody has fdatasyncs fail with EIO, both of those that a commit makes, and shows that nobody
// is answered by what failed, that the daemon opens its log again and goes on, and that all that was answered is there.
func TestFailedSyncAnswersNobody(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := newDaemon(t, s, onLoopback...)
	trace := filepath.Join(t.TempDir(), "trace")
	// Counted by thread. The step is odd, so that the first and the second of a commit take turns.
	d.trace = straced(testenv.Tool(t, "strace"), trace, "-e", "inject=fdatasync:error=EIO:when=20+19")
	d.start()
	asked := askEverything(t, s, 8, 120)
	asked.check(t, d)
	if !d.status().Ready {
		t.Error("the daemon is not ready after it opened its log again")
	}
	d.kill()
	p := newProof(asked.restsOn)
	if err := p.prove(trace); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d replies in %d commits; %d fdatasyncs of pages failed, %d of meta pages", len(p.replies), p.commits, p.failedData, p.failedMeta)
	asked.seenIn(t, p)
	if p.failedData == 0 || p.failedMeta == 0 {
		t.Errorf("got %d failed fdatasyncs of pages and %d of meta pages, want both", p.failedData, p.failedMeta)
	}
	d.trace = nil
	d.verify()
	recovered := 0
	for _, e := range d.events() {
		if e.Kind == "LogRecovered" && strings.Contains(fmt.Sprint(e.Event["cause"]), "input/output error") {
			recovered++
		}
	}
	if recovered == 0 || recovered > p.failedData+p.failedMeta {
		t.Errorf("got %d LogRecovered events, want up to one for each of %d failures", recovered, p.failedData+p.failedMeta)
	}
	d.start()
	asked.check(t, d)
	d.stop()
	d.verify()
}

// asked is what concurrent clients asked for.
type asked struct {
	ledgers []*ledger
	restsOn map[transactionID]transactionID
}

// askEverything has clients ask for n things each, every client one after the other, all clients at once. Each repeats what
// is not answered until it is.
func askEverything(t *testing.T, s *space, clients, n int) *asked {
	t.Helper()
	a := &asked{restsOn: map[transactionID]transactionID{}}
	for range clients {
		a.ledgers = append(a.ledgers, newLedger(newClient(t, s, "127.0.0.1:0", server4)))
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*patience)
	defer cancel()
	var working sync.WaitGroup
	again := make([]*stun.Message, clients)
	for i, g := range a.ledgers {
		again[i] = g.client.request(stun.MethodAllocate, transport())
		working.Go(func() { g.askMany(ctx, again[i], n) })
	}
	working.Wait()
	for i, g := range a.ledgers {
		if g.failed != nil || len(g.steps) != n {
			t.Fatalf("client %s: %d of %d requests: %v", g.client.addr(), len(g.steps), n, g.failed)
		}
		a.restsOn[again[i].TransactionID] = g.steps[0].request.TransactionID
	}
	return a
}

// askMany asks for an allocation, for one more with again, which is refused because of the first, and for n-1 other things.
func (g *ledger) askMany(ctx context.Context, again *stun.Message, n int) {
	c := g.client
	first := c.request(stun.MethodAllocate, transport())
	c.send(first.Raw)
	refused := make(chan struct{})
	go func() {
		defer close(refused)
		_, _ = c.exchange(again, patience) // decided right behind the first, most often before that is durable
	}()
	if !g.ask(ctx, first, func(s *grants, answer *stun.Message) { s.relayed = relayedIn(answer).String() }) {
		return
	}
	for i := 1; i < n; i++ {
		peer := addr(fmt.Sprintf("127.0.%d.%d:%d", 3+i/250, 1+i%250, 4000+i))
		channel := uint16(0x4000 + i)
		var ok bool
		switch i % 4 {
		case 0:
			ok = g.ask(ctx, c.request(stun.MethodRefresh, lifetime(900)), func(*grants, *stun.Message) {})
		case 1:
			ok = g.ask(ctx, c.request(stun.MethodCreatePermission, xor(peer)), func(s *grants, _ *stun.Message) { s.permissions[peer.Addr().String()] = true })
		default:
			ok = g.ask(ctx, c.request(stun.MethodChannelBind, number(channel), xor(peer)), func(s *grants, _ *stun.Message) { s.bind(channel, peer) })
		}
		if !ok {
			return
		}
	}
	<-refused
}

// seenIn checks that p saw the reply to everything that was answered: else it proves nothing.
func (a *asked) seenIn(t *testing.T, p *proof) {
	t.Helper()
	for _, g := range a.ledgers {
		for _, s := range g.steps {
			if p.replies[s.request.TransactionID] == 0 {
				t.Errorf("client %s was answered to transaction %x, which the trace does not show", g.client.addr(), s.request.TransactionID)
			}
		}
	}
}

// check holds what was answered against what d, or its log, says is there.
func (a *asked) check(t *testing.T, d *daemon) {
	t.Helper()
	listed := d.allocations()
	for _, g := range a.ledgers {
		if err := g.check(listed[g.client.addr()]); err != nil {
			t.Error(err)
		}
	}
	if len(listed) != len(a.ledgers) {
		t.Errorf("got %d allocations, want %d", len(listed), len(a.ledgers))
	}
}
