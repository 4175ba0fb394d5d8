package relay

import (
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// TestRevocationWaitsWhileTheDatapathIsReplaced has an allocation end while nobody can say that it is withdrawn.
func TestRevocationWaitsWhileTheDatapathIsReplaced(t *testing.T) {
	g, old := kernelRig(t)
	c, d := g.client("alice").allocate(), g.client("bob").allocate()
	if err := g.Uncarry(ctxFor(t)); err != nil {
		t.Fatal(err)
	}
	c.send(c.server, c.message(stun.MethodRefresh, lifetime(0)).Raw)
	c.wantNothing()
	if !taken(t, c.relayed) {
		t.Error("the port is free before anybody confirmed")
	}
	state, err := g.Snapshot(ctxFor(t)) // must not wait for it
	if err != nil || state.Len() != 1 {
		t.Fatalf("got a snapshot of %v and %v, want the one allocation that is left", state, err)
	}
	next := &kernelFake{}
	if err := g.CarryOn(ctxFor(t), next, turn.Caps{}); err != nil {
		t.Fatal(err)
	}
	if m := c.answer(5 * time.Second); m == nil || code(m) != 0 {
		t.Errorf("got %v, want the answer once the next datapath has withdrawn it", m)
	}
	if len(old.calls()) != 0 || len(next.calls()) == 0 {
		t.Errorf("got calls %v of the old datapath and %v of the new one, want none and some", old.calls(), next.calls())
	}
	if err := g.Uncarry(ctxFor(t)); err != nil {
		t.Fatal(err)
	}
	if err := g.CarryOn(ctxFor(t), nil, turn.Caps{}); err != nil {
		t.Fatal(err)
	}
	d.do(0, stun.MethodRefresh, lifetime(0)) // with none there is nobody to wait for
	eventually(t, "the port is free", func() bool { return !taken(t, d.relayed) })
}
