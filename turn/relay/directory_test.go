package relay

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// fakeDirectory has users, and answers as slowly and as wrongly as it is told.
type fakeDirectory struct {
	mu    sync.Mutex // guards the fields below
	users map[string]Found
	err   error
	block chan struct{} // nil: it does not
	asked map[string]int

	now, most atomic.Int32 // questions at once
}

func newFakeDirectory(users ...string) *fakeDirectory {
	d := &fakeDirectory{users: map[string]Found{}, asked: map[string]int{}}
	for _, u := range users {
		d.users[u] = Found{Known: true, User: turn.User{Password: "secret"}}
	}
	return d
}

func (d *fakeDirectory) Find(ctx context.Context, username, realm string) (Found, error) {
	d.most.Store(max(d.most.Load(), d.now.Add(1)))
	defer d.now.Add(-1)
	d.mu.Lock()
	d.asked[username]++
	block := d.block
	d.mu.Unlock()
	if block != nil {
		select {
		case <-block:
		case <-ctx.Done():
			return Found{}, ctx.Err()
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if realm != "example.org" {
		return Found{}, fmt.Errorf("a realm of nobody: %q", realm)
	}
	return d.users[username], d.err
}

func (d *fakeDirectory) set(f func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	f()
}

func (d *fakeDirectory) count(user string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked[user]
}

func (d *fakeDirectory) total() (n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, k := range d.asked {
		n += k
	}
	return n
}

// watch is a clock that a test moves.
type watch struct{ ahead atomic.Int64 }

func (w *watch) move(d time.Duration) { w.ahead.Add(int64(d)) }

// withDirectory has a server ask d.
func withDirectory(d Directory, adjust func(*LookupConfig)) (func(*Config), *watch) {
	c := LookupConfig{Directory: d, Timeout: 5 * time.Second, Keep: 5 * time.Minute, Fresh: 10 * time.Second, Rate: 1000}
	if adjust != nil {
		adjust(&c)
	}
	w := &watch{}
	l := NewLookups(c)
	clock := l.clock
	l.clock = func() time.Duration { return clock() + time.Duration(w.ahead.Load()) }
	return func(c *Config) {
		c.Lookups = l
		c.Settings.Gate = turn.NewGate(turn.GateConfig{
			Realm: "example.org", NonceLifetime: time.Hour, NonceKey: [32]byte{1}, CredentialGrace: -1,
			Users: []turn.User{{Name: "alice", Password: "secret"}}, Lookup: l.Look,
		})
	}, w
}

func TestUsersOfADirectory(t *testing.T) {
	d := newFakeDirectory("dora")
	adjust, _ := withDirectory(d, nil)
	g := serveTest(t, adjust)
	g.client("dora").allocate()
	g.client("dora").allocate()
	if got := d.count("dora"); got != 1 {
		t.Errorf("asked for dora %d times, want once", got)
	}
	g.client("eve").greet().do(401, stun.MethodAllocate, udpTransport)
	g.client("eve").greet().do(401, stun.MethodAllocate, udpTransport)
	if got := d.count("eve"); got != 1 {
		t.Errorf("asked for eve %d times, want once", got)
	}
	wrong := g.client("dora")
	wrong.password = "wrong"
	wrong.greet().do(401, stun.MethodAllocate, udpTransport)
	g.client("alice").allocate()
	if got := d.total(); got != 2 {
		t.Errorf("asked %d times, want 2: of alice the configuration knows", got)
	}
	if got := g.config.Lookups.Counters(); got.Found != 1 || got.None != 1 || got.Failed != 0 || got.Waiting != 0 {
		t.Errorf("got counters %+v, want one found and one not", got)
	}
}

// TestAnotherDirectoryIsAsked holds that nothing of a directory is believed once there is another, or none, and that who is not in
// the new one loses what is held as soon as that is known.
func TestAnotherDirectoryIsAsked(t *testing.T) {
	d := newFakeDirectory("dora", "eve")
	adjust, _ := withDirectory(d, nil)
	g := serveTest(t, adjust)
	dora, eve := g.client("dora"), g.client("eve")
	dora.allocate()
	eve.allocate()
	other := newFakeDirectory("dora", "fred")
	c := LookupConfig{Directory: other, Timeout: 5 * time.Second, Keep: time.Minute, Fresh: time.Second}
	g.config.Lookups.Use(c)
	g.client("fred").allocate()
	dora.do(0, stun.MethodRefresh, lifetime(600))
	if got := other.count("dora"); got != 1 {
		t.Errorf("asked the other directory for dora %d times, want once", got)
	}
	if n := g.Allocations(); n != 3 {
		t.Errorf("%d allocations, want all 3 until it is known that eve is gone", n)
	}
	eve.do(401, stun.MethodRefresh)
	eventually(t, "eve loses what is held", func() bool { return g.Allocations() == 2 })

	// What the directory before says is not believed either.
	d.set(func() { d.block = make(chan struct{}) })
	c.Directory = d
	g.config.Lookups.Use(c)
	late := g.client("late").greet()
	d.set(func() { d.users["late"] = Found{Known: true, User: turn.User{Password: "secret"}} })
	late.send(late.server, late.message(stun.MethodAllocate, udpTransport).Raw)
	eventually(t, "the directory is being asked", func() bool { return d.count("late") > 0 })
	g.config.Lookups.Use(LookupConfig{})
	d.set(func() { close(d.block) })
	eventually(t, "its answer is dropped", func() bool { return g.config.Lookups.Counters().Failed == 1 })
	if _, presence := g.config.Lookups.Look("example.org", "late"); presence != turn.Unasked {
		t.Errorf("late is %v, want that nobody knows", presence)
	}
}

// TestNobodyIsAskedForWithoutANonce holds that a flood from forged sources does not reach the directory.
func TestNobodyIsAskedForWithoutANonce(t *testing.T) {
	d := newFakeDirectory("dora")
	adjust, _ := withDirectory(d, nil)
	g := serveTest(t, adjust)
	c := g.client("dora")
	c.nonce = "forged"
	for i := range 50 {
		c.user = fmt.Sprintf("user%d", i)
		c.do(438, stun.MethodAllocate, udpTransport)
	}
	other := g.client("dora")
	other.endpointUDP = listenUDP(t, netip.AddrPortFrom(relayIP, 0))
	c.nonce = other.greet().nonce // of another address
	c.do(438, stun.MethodAllocate, udpTransport)
	c.exchange(stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpTransport))
	if got := d.total(); got != 0 {
		t.Errorf("asked %d times, want never", got)
	}
}

// TestOneQuestionForAUser holds that all who wait for a user wait for one question, that one
// who repeats a request waits once, and that others are served meanwhile.
func TestOneQuestionForAUser(t *testing.T) {
	d := newFakeDirectory("dora")
	d.block = make(chan struct{})
	adjust, _ := withDirectory(d, nil)
	g := serveTest(t, adjust)
	first, second := g.client("dora").greet(), g.client("dora").greet()
	m := first.message(stun.MethodAllocate, udpTransport)
	first.send(first.server, m.Raw)
	first.send(first.server, m.Raw)
	second.send(second.server, second.message(stun.MethodAllocate, udpTransport).Raw)
	eventually(t, "both wait", func() bool { return g.config.Lookups.Counters().Waiting == 2 })
	g.client("alice").allocate()
	close(d.block)
	for _, c := range []*client{first, second} {
		if a := c.answer(5 * time.Second); a == nil || code(a) != 0 {
			t.Errorf("got %v, want an allocation", a)
		}
	}
	first.wantNothing()
	if got := d.count("dora"); got != 1 {
		t.Errorf("asked %d times, want once", got)
	}
}

// TestDirectoryThatFails holds that nobody is let in by a directory that says nothing, and that a
// client that repeats its request is once it does.
func TestDirectoryThatFails(t *testing.T) {
	for _, tt := range []struct {
		name string
		fail func(*fakeDirectory)
	}{
		{"Error", func(d *fakeDirectory) { d.err = errors.New("no") }},
		{"Timeout", func(d *fakeDirectory) { d.block = make(chan struct{}) }},
		{"ErrorBesideAUser", func(d *fakeDirectory) { d.users["eve"], d.err = d.users["dora"], errors.New("no") }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := newFakeDirectory("dora")
			tt.fail(d)
			adjust, _ := withDirectory(d, func(c *LookupConfig) { c.Timeout = 50 * time.Millisecond })
			g := serveTest(t, adjust)
			c := g.client("dora").greet()
			m := c.message(stun.MethodAllocate, udpTransport)
			for n := range uint64(3) { // as after a lost answer
				c.send(c.server, m.Raw)
				eventually(t, "the directory has failed", func() bool { return g.config.Lookups.Counters().Failed == n+1 })
			}
			c.wantNothing()
			if got := g.Counters().Drops["directory"]; got != 3 {
				t.Errorf("got %d drops for the directory, want 3", got)
			}
			if g.log.count("the directory of users does not answer") == 0 {
				t.Error("nothing is logged")
			}
			d.set(func() { d.err, d.block = nil, nil })
			c.relayed = relayedOf(t, c.exchange(m))
		})
	}
}

// TestStreamLearnsThatTheDirectoryFails holds that a client nobody repeats for is told.
func TestStreamLearnsThatTheDirectoryFails(t *testing.T) {
	d := newFakeDirectory("dora")
	adjust, _ := withDirectory(d, nil)
	g := serveTest(t, func(c *Config) {
		withStreams(t)(c)
		adjust(c)
	})
	c := g.streamClient(turn.TCP)
	c.user = "dora"
	c.allocate()
	d.set(func() { d.err = errors.New("no") })
	other := g.streamClient(turn.TCP)
	other.user = "eve"
	other.greet().do(500, stun.MethodAllocate, udpTransport)
	d.set(func() { d.err = nil })
	other.do(401, stun.MethodAllocate, udpTransport)
}

// TestCacheEnds holds for how long answers are kept, and that a proof that does not hold has the
// directory asked again as soon for a user who is there as for one who is not.
func TestCacheEnds(t *testing.T) {
	d := newFakeDirectory("dora")
	adjust, clock := withDirectory(d, nil)
	g := serveTest(t, adjust)
	right, wrong, nobody := g.client("dora").greet(), g.client("dora").greet(), g.client("eve").greet()
	wrong.password = "wrong"
	wantAsked := func(what string, dora, eve int) {
		t.Helper()
		right.do(0, stun.MethodAllocate, udpTransport)
		right.do(0, stun.MethodRefresh, lifetime(0))
		wrong.do(401, stun.MethodAllocate, udpTransport)
		nobody.do(401, stun.MethodAllocate, udpTransport)
		if got, other := d.count("dora"), d.count("eve"); got != dora || other != eve {
			t.Errorf("%s: asked for dora %d times and for eve %d times, want %d and %d", what, got, other, dora, eve)
		}
	}
	wantAsked("at first", 1, 1)
	clock.move(9 * time.Second)
	wantAsked("while fresh", 1, 1)
	clock.move(2 * time.Second)
	wantAsked("not fresh", 2, 2)
	clock.move(11 * time.Second)
	right.do(0, stun.MethodAllocate, udpTransport)
	right.do(0, stun.MethodRefresh, lifetime(0))
	if got := d.count("dora"); got != 2 {
		t.Errorf("a proof that holds: asked %d times, want 2", got)
	}
	clock.move(5 * time.Minute)
	right.do(0, stun.MethodAllocate, udpTransport)
	if got := d.count("dora"); got != 3 {
		t.Errorf("after it was kept: asked %d times, want 3", got)
	}
}

// TestNewPasswordIsTaken holds that a user does not wait for the cache after a change of password.
func TestNewPasswordIsTaken(t *testing.T) {
	d := newFakeDirectory("dora")
	adjust, clock := withDirectory(d, nil)
	g := serveTest(t, adjust)
	g.client("dora").allocate()
	d.set(func() { d.users["dora"] = Found{Known: true, User: turn.User{Password: "other"}} })
	clock.move(11 * time.Second)
	c := g.client("dora").greet()
	c.password = "other"
	c.do(0, stun.MethodAllocate, udpTransport)
	c.password = "secret"
	c.do(401, stun.MethodRefresh)
}

func TestAnswerThatEnds(t *testing.T) {
	d := newFakeDirectory()
	d.users["dora"] = Found{Known: true, User: turn.User{Password: "secret"}, Until: time.Now().Add(20 * time.Second)}
	d.users["eve"] = Found{Known: true, User: turn.User{Password: "secret"}, Until: time.Now().Add(-time.Second)}
	adjust, clock := withDirectory(d, nil)
	g := serveTest(t, adjust)
	c := g.client("dora").allocate()
	clock.move(21 * time.Second)
	d.set(func() { delete(d.users, "dora") })
	c.do(401, stun.MethodRefresh)
	g.client("eve").greet().do(401, stun.MethodAllocate, udpTransport)
}

// TestUserWhoIsGoneLosesWhatItHolds holds that the first question that finds a user gone revokes.
func TestUserWhoIsGoneLosesWhatItHolds(t *testing.T) {
	d := newFakeDirectory("dora", "eve")
	adjust, clock := withDirectory(d, nil)
	g := serveTest(t, adjust)
	c := g.client("dora").allocate()
	g.client("dora").allocate()
	g.client("eve").allocate()
	g.client("alice").allocate()
	d.set(func() { delete(d.users, "dora") })
	clock.move(6 * time.Minute)
	c.do(401, stun.MethodRefresh)
	eventually(t, "dora's allocations are gone", func() bool { return g.Allocations() == 2 })
	g.wantDeleted(turn.ReasonUserRemoved)
}

// TestAllocationsOutliveARestart holds that nobody is revoked because the directory has not been asked yet.
func TestAllocationsOutliveARestart(t *testing.T) {
	d := newFakeDirectory("dora")
	adjust, _ := withDirectory(d, nil)
	g := serveTest(t, adjust)
	c := g.client("dora").allocate()
	d.set(func() { d.err = errors.New("no") })
	fresh, _ := withDirectory(d, nil)
	next := g.again(fresh)
	if got := next.Allocations(); got != 1 {
		t.Fatalf("got %d allocations after a restart, want 1", got)
	}
	d.set(func() { d.err = nil })
	c.do(0, stun.MethodRefresh)
}

// TestQuestionsAreBounded holds each bound on what clients can have a server ask and keep waiting.
func TestQuestionsAreBounded(t *testing.T) {
	l := NewLookups(LookupConfig{Rate: 200})
	now := time.Hour
	l.clock = func() time.Duration { return now }
	at := func(source, user int) origin {
		a := netip.AddrFrom4([4]byte{198, 51, byte(source >> 8), byte(source)})
		return origin{client: netip.AddrPortFrom(a, 1), frame: fmt.Appendf(nil, "%d", user)}
	}
	ask := func(source, user int) (Drop, bool) {
		return l.ask(who{"r", fmt.Sprint(user)}, fmt.Sprint(user), at(source, user))
	}
	accepted := 0
	for i := range 300 {
		if why, ok := ask(1, i); ok {
			accepted++
		} else if why != DropRateLimited {
			t.Fatalf("got %v, want %v", why, DropRateLimited)
		}
	}
	if accepted != sourceBurst {
		t.Errorf("one source has %d users asked for, want %d", accepted, sourceBurst)
	}
	for i := range 300 {
		if _, ok := ask(2+i, 1000+i); ok {
			accepted++
		}
	}
	if accepted != 200 {
		t.Errorf("all sources have %d users asked for in a moment, want 200", accepted)
	}
	if got := l.Counters().Refused; got != 400 {
		t.Errorf("got %d refused, want 400", got)
	}
	for i := 0; len(l.queue) < maxAsked; i++ {
		now += 10 * time.Millisecond
		ask(1000+i, 5000+i)
	}
	now += time.Second
	if why, ok := ask(9000, 9000); ok || why != DropBusy {
		t.Errorf("with %d users to be asked for: got %v, %v, want %v", maxAsked, why, ok, DropBusy)
	}
	for i := range maxWaitingOne + 5 {
		o := at(1, 0)
		o.frame = fmt.Appendf(nil, "another %d", i)
		l.ask(who{"r", "0"}, "0", o)
	}
	if got := len(l.asked[who{"r", "0"}].waiters); got != maxWaitingOne {
		t.Errorf("%d requests wait for one user, want %d", got, maxWaitingOne)
	}
	for i := range l.asked {
		for n := range maxWaitingOne {
			o := at(1, 0)
			o.frame = fmt.Appendf(nil, "more %d", n)
			l.ask(i, i.username, o)
		}
	}
	if got := l.Counters().Waiting; got != maxWaiting {
		t.Errorf("%d requests wait, want %d", got, maxWaiting)
	}
	long := at(1, 0)
	long.frame = make([]byte, maxWaitFrame+1)
	if why, ok := l.ask(who{"r", "0"}, "0", long); ok || why != DropMalformed {
		t.Errorf("a long request: got %v, %v, want %v", why, ok, DropMalformed)
	}
}

func TestQuestionsAtOnce(t *testing.T) {
	d := newFakeDirectory()
	d.block = make(chan struct{})
	adjust, _ := withDirectory(d, nil)
	g := serveTest(t, adjust)
	c := g.client("").greet()
	for i := range 3 * asksAtOnce {
		c.user = fmt.Sprintf("user%d", i)
		c.send(c.server, c.message(stun.MethodAllocate, udpTransport).Raw)
	}
	eventually(t, "all wait", func() bool { return g.config.Lookups.Counters().Waiting == 3*asksAtOnce })
	eventually(t, "some are asked", func() bool { return d.now.Load() == asksAtOnce })
	close(d.block)
	eventually(t, "nobody waits", func() bool { return g.config.Lookups.Counters().Waiting == 0 })
	if got := d.most.Load(); got != asksAtOnce {
		t.Errorf("%d questions at once, want %d", got, asksAtOnce)
	}
}

func TestMemoryForgetsTheOldest(t *testing.T) {
	m := newMemory(3)
	key := func(i int) who { return who{"r", fmt.Sprint(i)} }
	for i := range 5 {
		m.put(key(i), remembered{until: time.Duration(i)})
	}
	for i := range 5 {
		if _, there := m.entries[key(i)]; there != (i >= 2) {
			t.Errorf("entry %d is there: %v", i, there)
		}
	}
	if !m.forget(key(4)) || m.forget(key(4)) {
		t.Error("forget does not say what was there")
	}
	for range 100 {
		m.put(key(9), remembered{})
		m.forget(key(9))
	}
	if len(m.order) > 2*m.max {
		t.Errorf("%d in order, want no more than %d", len(m.order), 2*m.max)
	}
}

// TestStopsWhileTheDirectoryIsAsked holds that a question on its way does not keep the server.
func TestStopsWhileTheDirectoryIsAsked(t *testing.T) {
	d := newFakeDirectory()
	d.block = make(chan struct{})
	adjust, _ := withDirectory(d, func(c *LookupConfig) { c.Timeout = time.Hour })
	g := serveTest(t, adjust)
	c := g.client("dora").greet()
	c.send(c.server, c.message(stun.MethodAllocate, udpTransport).Raw)
	eventually(t, "the directory is asked", func() bool { return d.now.Load() == 1 })
	if err := g.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
}
