package relay

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

var errKernel = errors.New("the kernel does not answer")

// kernelFake is a Datapath that confirms, fails or hangs as told.
type kernelFake struct {
	mu    sync.Mutex // guards the fields below
	asked []turn.Seq
	err   error
	hang  chan struct{} // closed when it goes on; nil while it does
	check func(up turn.Seq)
}

func (k *kernelFake) Withdraw(ctx context.Context, up turn.Seq) error {
	k.mu.Lock()
	k.asked = append(k.asked, up)
	err, hang, check := k.err, k.hang, k.check
	k.mu.Unlock()
	if check != nil {
		check(up)
	}
	if hang == nil {
		return err
	}
	select {
	case <-hang:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (k *kernelFake) Settle(context.Context, turn.Seq) error { return nil }

func (k *kernelFake) set(err error, hang chan struct{}) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.err, k.hang = err, hang
}

func (k *kernelFake) calls() []turn.Seq {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.asked)
}

func kernelRig(t *testing.T) (*rig, *kernelFake) {
	t.Helper()
	k := &kernelFake{}
	return serveTest(t, func(c *Config) { c.Datapath = k }), k
}

// taken says whether a is bound by somebody.
func taken(t *testing.T, a netip.AddrPort) bool {
	t.Helper()
	fd, err := bindUDP(a, relayedBuffer, false)
	if err == nil {
		_ = unix.Close(fd)
		return false
	}
	if !errors.Is(err, errAddressInUse) {
		t.Fatal(err)
	}
	return true
}

func TestRevocationIsDurableThenWithdrawnThenAnswered(t *testing.T) {
	g, k := kernelRig(t)
	c := g.client("alice").allocate()
	hang := make(chan struct{})
	k.mu.Lock()
	k.hang = hang
	k.check = func(up turn.Seq) {
		s := g.store.state()
		if s.Seq() < up || s.Len() != 0 {
			t.Errorf("withdraw up to %d is asked while the log is at %d with %d allocations", up, s.Seq(), s.Len())
		}
		if !taken(t, c.relayed) {
			t.Error("the relayed port is free while the kernel may still serve it")
		}
	}
	k.mu.Unlock()
	m := c.message(stun.MethodRefresh, lifetime(0))
	c.send(c.server, m.Raw)
	eventually(t, "the kernel is asked", func() bool { return len(k.calls()) == 1 })
	c.wantNothing()
	c.send(c.server, m.Raw) // a retransmission must not learn it either
	c.wantNothing()
	if !taken(t, c.relayed) {
		t.Error("the relayed port is free before the kernel confirmed")
	}

	others := g.client("bob").allocate()
	others.do(0, stun.MethodRefresh)

	close(hang)
	if a := c.answer(5 * time.Second); a == nil || code(a) != 0 {
		t.Fatalf("got %v once the kernel confirmed, want success", a)
	}
	eventually(t, "the relayed port is free after the answer", func() bool { return !taken(t, c.relayed) })
	if got := code(c.exchange(m)); got != 0 {
		t.Errorf("got code %d to a retransmission, want success", got)
	}
}

func TestUnconfirmedRevocationIsWithheldAndQuarantined(t *testing.T) {
	g, k := kernelRig(t)
	c := g.client("alice").allocate()
	k.set(errKernel, nil)
	m := c.message(stun.MethodRefresh, lifetime(0))
	c.send(c.server, m.Raw)
	eventually(t, "the alarm is raised", func() bool { return g.log.count("does not confirm a revocation") > 0 })
	c.send(c.server, m.Raw)
	c.wantNothing()
	if !taken(t, c.relayed) {
		t.Error("the relayed port is free though the kernel may serve it")
	}
	g.client("bob").allocate()
	if err := g.CloseAllocation(ctxFor(t), 2); !errors.Is(err, errKernel) {
		t.Errorf("got %v for an operator's close, want %v", err, errKernel)
	}

	k.set(nil, nil)
	eventually(t, "the port is free once the kernel confirms", func() bool { return !taken(t, c.relayed) })
	if got := code(c.exchange(m)); got != 0 {
		t.Errorf("got code %d to a retransmission after it, want success", got)
	}
}

func TestQuarantinedPortIsNotHandedOut(t *testing.T) {
	k, port := &kernelFake{}, freePort(t, relayIP).Port()
	g := serveTest(t, func(c *Config) {
		c.Datapath = k
		c.Settings.Rules.FirstPort, c.Settings.Rules.LastPort = port, port
	})
	c := g.client("alice").allocate()
	k.set(errKernel, nil)
	c.send(c.server, c.message(stun.MethodRefresh, lifetime(0)).Raw)
	eventually(t, "the alarm is raised", func() bool { return g.log.count("does not confirm a revocation") > 0 })
	other := g.client("bob").greet()
	other.do(508, stun.MethodAllocate, udpTransport)
	k.set(nil, nil)
	eventually(t, "the port is handed out again", func() bool {
		return code(other.exchange(other.message(stun.MethodAllocate, udpTransport))) == 0
	})
}

func TestReloadReturnsWhenRevocationsAreWithdrawn(t *testing.T) {
	g, k := kernelRig(t)
	gone, stays, peer := g.client("alice").allocate(), g.client("bob").allocate(), peerOf(t)
	forbidden := listenUDP(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.4"), 0))
	stays.bind(0x4000, peer.addr)
	stays.bind(0x4001, forbidden.addr)
	hang := make(chan struct{})
	k.set(nil, hang)

	settings := testSettings()
	settings.Gate = testGate("bob")
	settings.Rules.Policy = turn.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.3/32")}}
	settings.Digest = [32]byte{7}
	done := make(chan error, 1)
	go func() { done <- g.Reload(ctxFor(t), settings) }()
	eventually(t, "the kernel is asked", func() bool { return len(k.calls()) == 1 })
	select {
	case err := <-done:
		t.Fatalf("reload returned %v before the kernel confirmed", err)
	default:
	}
	// Userspace forgets at once.
	gone.send(gone.server, channelData(0x4000, []byte("x")))
	stays.send(stays.server, channelData(0x4001, []byte("x")))
	forbidden.wantNothing()
	stays.send(stays.server, channelData(0x4000, []byte("ok")))
	peer.want([]byte("ok"))
	close(hang)
	if err := <-done; err != nil {
		t.Fatalf("reload: %v", err)
	}
	deleted := eventsOf[turn.AllocationDeleted](g.store)
	revoked := eventsOf[turn.ChannelRevoked](g.store)
	if len(deleted) != 1 || deleted[0].Reason != turn.ReasonUserRemoved {
		t.Errorf("got %v, want the removed user's allocation deleted", deleted)
	}
	if len(revoked) != 1 || revoked[0].Channel != 0x4001 || len(eventsOf[turn.PermissionRevoked](g.store)) != 1 {
		t.Errorf("got %v, want the forbidden peer's channel and permission revoked", revoked)
	}
	if got := eventsOf[turn.ConfigChanged](g.store); got[len(got)-1].Digest != settings.Digest {
		t.Errorf("got %v, want the new digest last", got)
	}
}

func TestStopWhileTheKernelHangs(t *testing.T) {
	g, k := kernelRig(t)
	c := g.client("alice").allocate()
	k.set(nil, make(chan struct{}))
	c.send(c.server, c.message(stun.MethodRefresh, lifetime(0)).Raw)
	eventually(t, "the kernel is asked", func() bool { return len(k.calls()) == 1 })
	if err := g.stop(); err != nil {
		t.Errorf("stop: %v", err)
	}
	if taken(t, c.relayed) {
		t.Error("the socket outlives its server")
	}
	if got := eventsOf[turn.ServerStopped](g.store); len(got) != 1 {
		t.Errorf("got %v, want one ServerStopped", got)
	}
}

func TestRecoveredRevocationIsWithdrawnBeforeItsPortIsFree(t *testing.T) {
	g, k := kernelRig(t)
	c := g.client("alice").allocate()
	hang := make(chan struct{})
	k.set(nil, hang)
	m := c.message(stun.MethodRefresh, lifetime(0))
	g.store.failNext(true, 0)
	c.send(c.server, m.Raw)
	eventually(t, "the kernel is asked", func() bool { return len(k.calls()) == 1 })
	if !taken(t, c.relayed) {
		t.Error("the relayed port is free before the kernel confirmed")
	}
	c.send(c.server, m.Raw)
	c.wantNothing()
	close(hang)
	eventually(t, "the port is free", func() bool { return !taken(t, c.relayed) })
	if got := code(c.exchange(m)); got != 0 {
		t.Errorf("got code %d to the retransmission, want success", got)
	}
}
