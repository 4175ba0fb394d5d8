package test

import (
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

const (
	churnWorkers = 8
	churnClients = 6 // of each worker and round
)

// TestRestartUnderLoad kills the daemon again and again under steady traffic, and while clients ask for more. All that
// was answered is there afterwards, and the traffic resumes without a word of its clients.
func TestRestartUnderLoad(t *testing.T) {
	t.Parallel()
	rounds := 3
	if soak {
		rounds = 50
	}
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	l := newLoad(t, s)
	l.flows()
	answers, open := 0, 0
	for round := range rounds {
		churn := newChurn(t, s)
		ctx, cancel := context.WithCancel(t.Context())
		working := churn.start(ctx)
		moment := time.Duration(rand.Int64N(int64(150 * time.Millisecond)))
		<-time.After(moment)
		d.kill()
		cancel()
		working.Wait()
		killed := time.Now()
		d.start()
		ready := time.Since(killed)
		l.flows()
		a, o := churn.check(d, l)
		answers, open = answers+a, open+o
		t.Logf("round %d: killed after %v, ready after %v, traffic after %v; %d answered, %d not",
			round, moment.Round(time.Millisecond), ready.Round(time.Millisecond), time.Since(killed).Round(time.Millisecond), a, o)
		if t.Failed() {
			return
		}
		d.verify()
		churn.end()
		l.refresh()
	}
	if answers == 0 || open == 0 {
		t.Errorf("got %d answered requests and %d that a kill left open, want some of both", answers, open)
	}
	d.stop()
	d.verify()
	if got := d.allocations(); len(got) != loadClients {
		t.Errorf("got %d allocations at the end, want %d", len(got), loadClients)
	}
}

// churn are clients that ask for allocations and what belongs to them, all at once.
type churn struct {
	t       *testing.T
	workers [][]*ledger
}

func newChurn(t *testing.T, s *space) *churn {
	t.Helper()
	c := &churn{t: t}
	for range churnWorkers {
		var work []*ledger
		for range churnClients {
			work = append(work, newLedger(newClient(t, s, "127.0.0.1:0", server4)))
		}
		c.workers = append(c.workers, work)
	}
	return c
}

// start has the clients work, each worker's one after the other, until ctx ends.
func (c *churn) start(ctx context.Context) *sync.WaitGroup {
	var working sync.WaitGroup
	for _, work := range c.workers {
		working.Go(func() {
			for i, g := range work {
				g.live(ctx, i%2 == 0)
			}
		})
	}
	return &working
}

// check holds every ledger, and those of l, against the server, and has the clients repeat what they
// asked for. It yields how many requests were answered before, and how many were not.
func (c *churn) check(d *daemon, l *load) (answered, open int) {
	c.t.Helper()
	listed := d.allocations()
	known := map[string]bool{}
	for _, g := range l.ledgers() {
		known[g.client.addr()] = true
		if err := g.check(listed[g.client.addr()]); err != nil {
			c.t.Error(err)
		}
	}
	for _, work := range c.workers {
		for _, g := range work {
			known[g.client.addr()] = true
			if g.failed != nil {
				c.t.Error(g.failed)
			}
			for _, s := range g.steps {
				if s.answer != nil {
					answered++
				} else {
					open++
				}
			}
			a := listed[g.client.addr()]
			if err := g.check(a); err != nil {
				c.t.Error(err)
			}
			if err := g.repeat(a); err != nil {
				c.t.Error(err)
			}
		}
	}
	for client := range listed {
		if !known[client] {
			c.t.Errorf("client %s has an allocation that nobody asked for", client)
		}
	}
	after := d.allocations()
	for _, work := range c.workers {
		for _, g := range work {
			if got := grantsOf(after[g.client.addr()]); !g.answered.holds(got) {
				c.t.Errorf("client %s: after the repetitions, what was answered (-) is not what is there (+):\n%s", g.client.addr(), g.answered.diff(got))
			}
		}
	}
	return answered, open
}

// end deletes what is left of the clients' allocations.
func (c *churn) end() {
	c.t.Helper()
	for _, work := range c.workers {
		for _, g := range work {
			if g.answered.relayed != "" && !g.end(c.t.Context()) {
				c.t.Errorf("client %s cannot delete its allocation: %v", g.client.addr(), g.failed)
			}
			_ = g.client.conn.Close()
		}
	}
}

// refresh keeps what the clients of l hold alive.
func (l *load) refresh() {
	l.t.Helper()
	for _, c := range l.clients {
		for j := range l.peers {
			c.bind(loadChannel(j), l.peer(j))
		}
	}
}
