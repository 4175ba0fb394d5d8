package relay

import (
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// TestRedirectIsDurableBeforeItIsAnswered has a draining server send clients on (RFC 8489 section 10).
func TestRedirectIsDurableBeforeItIsAnswered(t *testing.T) {
	other := netip.MustParseAddrPort("203.0.113.200:3478")
	alternates := func(c *Config) { c.Settings.Rules.Alternates = []turn.Alternate{{Address: other}} }
	g := serveTest(t, alternates)
	c, stays := g.client("alice").greet(), g.client("bob").allocate()
	if err := g.Drain(ctxFor(t), true); err != nil {
		t.Fatal(err)
	}
	goOn := g.store.stall()
	defer goOn()
	m := c.message(stun.MethodAllocate, udpTransport)
	c.send(c.server, m.Raw)
	<-g.store.entered
	c.wantNothing()
	goOn()
	check := func(a *stun.Message) {
		t.Helper()
		var to stun.AlternateServer
		if a == nil || code(a) != 300 || to.GetFrom(a) != nil || to.Port != int(other.Port()) || to.IP.String() != other.Addr().String() {
			t.Fatalf("got %v to %v, want 300 to %v", a, to, other)
		}
		if err := stun.NewLongTermIntegrity("alice", "example.org", "secret").Check(a); err != nil {
			t.Errorf("the answer is not protected: %v", err)
		}
	}
	check(c.answer(5 * time.Second))
	check(c.exchange(m))
	stays.do(0, stun.MethodRefresh)
	again := g.again(nil) // which drains no more, and answers a retransmission all the same
	check(c.exchange(m))
	if got := eventsOf[turn.ClientRedirected](again.store); len(got) != 1 || got[0].Username != "alice" {
		t.Errorf("got %v, want one redirect of alice", got)
	}
	for _, e := range eventsOf[turn.AttemptsRefused](again.store) {
		t.Errorf("got %+v, want the redirect counted once, by its event", e)
	}
	c.do(0, stun.MethodAllocate, udpTransport)
}
