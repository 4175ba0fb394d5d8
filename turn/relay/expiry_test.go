package relay

import (
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// lateClock is the host's clock, late by an amount that a test sets: what is granted by it
// ends that much earlier for the data path, which reads the host's.
func lateClock(t *testing.T) (clock func() turn.Moment, late *atomic.Int64) {
	t.Helper()
	host, err := HostClock()
	if err != nil {
		t.Fatal(err)
	}
	late = new(atomic.Int64)
	return func() turn.Moment {
		m := host()
		m.Uptime -= time.Duration(late.Load())
		return m
	}, late
}

// soon is how long what a test grants still lives on the data path's clock.
const soon = 700 * time.Millisecond

func TestPermissionEndsThoughItCannotBeRecorded(t *testing.T) {
	clock, late := lateClock(t)
	late.Store(int64(turn.PermissionLifetime - soon))
	g := serveTest(t, func(c *Config) { c.Clock = clock })
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	goOn := g.store.stall()
	defer goOn()
	c.send(c.server, c.message(stun.MethodRefresh).Raw)
	<-g.store.entered
	peer.send(c.relayed, []byte("x"))
	c.want(channelData(0x4000, []byte("x")))
	eventually(t, "the peer is not heard any more", func() bool {
		peer.send(c.relayed, []byte("x"))
		b, _ := c.receive(quiet)
		return b == nil
	})
	c.indicate(peer.addr, []byte("x"))
	peer.wantNothing()
	c.send(c.server, channelData(0x4000, []byte("y"))) // needs the channel alone
	peer.want([]byte("y"))
}

func TestChannelAndAllocationEndThoughItCannotBeRecorded(t *testing.T) {
	clock, late := lateClock(t)
	late.Store(int64(turn.ChannelLifetime - soon))
	g := serveTest(t, func(c *Config) { c.Clock = clock })
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	goOn := g.store.stall()
	defer goOn()
	c.send(c.server, c.message(stun.MethodRefresh).Raw)
	<-g.store.entered
	c.send(c.server, channelData(0x4000, []byte("x")))
	peer.want([]byte("x"))
	eventually(t, "the client is not relayed for any more", func() bool {
		c.send(c.server, channelData(0x4000, []byte("x")))
		b, _ := peer.receive(quiet)
		return b == nil
	})
	peer.send(c.relayed, []byte("x"))
	c.wantNothing()
}

func TestExpiredAllocationIsRecordedAndItsPortIsFree(t *testing.T) {
	clock, late := lateClock(t)
	g := serveTest(t, func(c *Config) { c.Clock = clock })
	c := g.client("alice").allocate()
	late.Store(-int64(601 * time.Second)) // the host was suspended, or slept
	eventually(t, "the allocation expires", func() bool { return len(eventsOf[turn.AllocationExpired](g.store)) == 1 })
	eventually(t, "its port is free", func() bool { return !taken(t, c.relayed) })
	c.do(437, stun.MethodRefresh)
}

func TestWallClockJumpMovesNoDeadline(t *testing.T) {
	host, err := HostClock()
	if err != nil {
		t.Fatal(err)
	}
	var jump atomic.Int64
	g := serveTest(t, func(c *Config) {
		c.Clock = func() turn.Moment {
			m := host()
			m.Wall += jump.Load()
			return m
		}
	})
	c, peer := g.client("alice").allocate(), peerOf(t)
	c.bind(0x4000, peer.addr)
	for _, by := range []time.Duration{24 * time.Hour, -48 * time.Hour} {
		jump.Add(int64(by))
		c.send(c.server, channelData(0x4000, []byte("x")))
		peer.want([]byte("x"))
		if got := code(c.exchange(c.message(stun.MethodRefresh))); got != 438 {
			t.Errorf("got code %d with a nonce of another day, want 438", got)
		}
		c.greet()
		c.do(0, stun.MethodRefresh)
	}
	if got := len(eventsOf[turn.AllocationExpired](g.store)); got != 0 {
		t.Errorf("got %d expiries, want 0", got)
	}
}

func TestWriterIsIdleWhileAnExpiryCannotBeCommitted(t *testing.T) {
	clock, late := lateClock(t)
	g := serveTest(t, func(c *Config) { c.Clock = clock })
	c, overdue := g.client("alice").allocate(), g.client("bob").allocate()
	overdue.permit(netip.AddrPortFrom(peerIP, 9))
	goOn := g.store.stall()
	defer goOn()
	c.send(c.server, c.message(stun.MethodRefresh).Raw)
	<-g.store.entered
	late.Store(-int64(301 * time.Second)) // the permission is over: the open record takes its end
	eventually(t, "the end of the permission waits", func() bool {
		late.Add(-int64(time.Second)) // and more deadlines pass behind it
		return late.Load() < -int64(601*time.Second)
	})
	before := processorTime(t)
	begun := time.Now()
	c.wantNothing()
	c.wantNothing()
	used, took := processorTime(t)-before, time.Since(begun)
	if used > took/20 {
		t.Errorf("got %v of CPU in %v while nothing can be done, want hardly any", used, took)
	}
}
