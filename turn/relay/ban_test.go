package relay

import (
	"errors"
	"net/netip"
	"slices"
	"testing"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

func TestABannedUserIsRefusedUntilUnbanned(t *testing.T) {
	g := serveTest(t, nil)
	gone, stays := g.client("alice").allocate(), g.client("bob").allocate()
	second := g.client("alice").greet()
	reserved, token := second.reserve()
	e := turn.UserBanned{Realm: "example.org", Username: "alice"}
	b, ended, err := g.Ban(ctxFor(t), e)
	if err != nil || ended != 2 || b.Username != "alice" || !b.Endless() {
		t.Fatalf("got %+v and %d ends (%v), want 2 and a ban without end", b, ended, err)
	}
	if taken(t, gone.relayed) || taken(t, second.relayed) || taken(t, reserved) {
		t.Error("a port of the banned user is still bound")
	}
	gone.do(403, stun.MethodRefresh)
	second.do(403, stun.MethodAllocate, udpTransport)
	second.do(403, stun.MethodAllocate, udpTransport, token)
	gone.do(437, stun.MethodRefresh, lifetime(0))
	stays.do(0, stun.MethodRefresh)
	for _, d := range eventsOf[turn.AllocationDeleted](g.store) {
		if d.Reason != turn.ReasonBanned {
			t.Errorf("got %+v, want the reason %v", d, turn.ReasonBanned)
		}
	}
	attempts, _ := g.refusals.take(g.clock())
	if n := len(attempts.Attempts); n == 0 || attempts.Attempts[0].Code != 403 || attempts.Attempts[0].Username != "alice" {
		t.Errorf("got %+v, want what alice was refused", attempts)
	}
	if got := g.Counters().Replies[Outcome{Method: uint16(stun.MethodAllocate), Code: 403}]; got != 2 {
		t.Errorf("counted %d Allocates with 403, want 2", got)
	}

	if err := g.Unban(ctxFor(t), turn.UserUnbanned{Realm: "example.org", Username: "alice"}); err != nil {
		t.Fatal(err)
	}
	second.do(0, stun.MethodAllocate, udpTransport)
	if err := g.Unban(ctxFor(t), turn.UserUnbanned{Realm: "example.org", Username: "alice"}); !errors.Is(err, ErrNotBanned) {
		t.Errorf("got %v, want %v", err, ErrNotBanned)
	}
}

func TestBanReturnsWhenAllIsWithdrawn(t *testing.T) {
	g, k := kernelRig(t)
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	hang := make(chan struct{})
	k.set(nil, hang)
	done := make(chan error, 1)
	go func() {
		_, _, err := g.Ban(ctxFor(t), turn.UserBanned{Realm: "example.org", Username: "alice"})
		done <- err
	}()
	eventually(t, "the kernel is asked", func() bool { return len(k.calls()) == 1 })
	select {
	case err := <-done:
		t.Fatalf("the ban returned %v before the kernel confirmed", err)
	default:
	}
	c.send(c.server, channelData(0x4000, []byte("x"))) // userspace forgets at once
	peer.wantNothing()
	if !taken(t, c.relayed) {
		t.Error("the relayed port is free while the kernel may still serve it")
	}
	close(hang)
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestABanOfManyAllocationsTakesSeveralRecords bans a user of more than one round of ends.
func TestABanOfManyAllocationsTakesSeveralRecords(t *testing.T) {
	const many = expireLimit + 7
	g := serveTest(t, nil)
	var made []turn.Event
	for n := range turn.AllocationID(many + 1) {
		e := turn.AllocationCreated{
			Allocation: n + 1, Relayed: []netip.AddrPort{netip.AddrPortFrom(nthAddr(int(n)), 50_000)}, Transport: 17,
			FiveTuple: turn.FiveTuple{Client: netip.AddrPortFrom(nthAddr(int(n)), 5000), Server: g.addr, Protocol: turn.UDP},
			Username:  "alice", Realm: "example.org", Lifetime: 600,
		}
		if n == many {
			e.Username = "bob"
		}
		made = append(made, e)
	}
	if err := g.Record(ctxFor(t), made...); err != nil {
		t.Fatal(err)
	}
	_, ended, err := g.Ban(ctxFor(t), turn.UserBanned{Realm: "example.org", Username: "alice", Seconds: 60})
	if err != nil || ended != many {
		t.Fatalf("ended %d allocations (%v), want %d", ended, err, many)
	}
	if got := len(eventsOf[turn.AllocationDeleted](g.store)); got != many || g.store.state().Len() != 1 {
		t.Errorf("the log has %d ends and %d allocations, want %d and that of bob", got, g.store.state().Len(), many)
	}
	if got := g.store.sizes(); !slices.Contains(got, 1+expireLimit) {
		t.Errorf("the records have %d events, want one with the ban and %d ends", got, expireLimit)
	}
}
