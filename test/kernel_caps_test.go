package test

import (
	"fmt"
	"net"
	"testing"
)

// A cap of one byte a second lets a burst through, of 65 datagrams of 1000 bytes, and then next to nothing.
const (
	trickle        = "1"
	burstOfTrickle = 65
	meteredSize    = 1000
)

// capped is a relay with two clients of one user and one of another, whose channels lead to one peer.
type capped struct {
	*daemon
	peer    *net.UDPConn
	clients [3]*client
	relayed [3]string
	offload bool
	verdict string // of what is over the cap
	reason  string // the same in userspace
}

// startCapped starts a daemon of l with a cap.
func (l *lab) startCapped(kernel bool, flag, scope string) *capped {
	l.t.Helper()
	mode := map[bool]string{true: "required", false: "off"}[kernel]
	c := &capped{offload: kernel, verdict: "drop-" + scope, reason: scope}
	c.daemon = newDaemon(l.t, l.relay, append(l.flags(), "--kernel", mode, "--user", "bob:other secret", flag, trickle)...)
	c.start()
	c.peer = l.peer.listen(addr(labPeer4 + ":0"))
	for i := range c.clients {
		c.clients[i] = newClient(l.t, l.clients, labClient4+":0", labServer4+":3478")
		if i == 2 {
			c.clients[i].as("bob", "other secret")
		}
		relayed := c.clients[i].allocate()
		c.relayed[i] = relayed.String()
		c.clients[i].bind(0x4001, c.peer.LocalAddr().(*net.UDPAddr).AddrPort())
	}
	if kernel {
		c.offloaded(10) // two and a guard for each allocation, and the listener's guard
	}
	return c
}

// metered is what has been relayed and dropped: in both paths together, and by the kernel alone.
type metered struct{ toPeer, toClient, dropped, byKernel uint64 }

func (c *capped) metered() (m metered) {
	c.t.Helper()
	st := c.status()
	m = metered{toPeer: st.ToPeer.Packets, toClient: st.ToClient.Packets, dropped: st.Drops[c.reason]}
	if c.offload {
		k := c.kernel()
		up, down, over := k.packets("to-peer"), k.packets("to-client"), k.packets(c.verdict)
		m.toPeer, m.toClient, m.dropped, m.byKernel = m.toPeer+up, m.toClient+down, m.dropped+over, up+down+over
	}
	return m
}

// want waits until n datagrams more than before are relayed or dropped, and wants so many relayed each way.
func (c *capped) want(before metered, n, toPeer, toClient uint64) metered {
	c.t.Helper()
	var now metered
	eventually(c.t, "everything is relayed or dropped", func() error {
		now = c.metered()
		if now.toPeer+now.toClient+now.dropped != before.toPeer+before.toClient+before.dropped+n {
			return fmt.Errorf("%+v, before %+v", now, before)
		}
		return nil
	})
	if up, down := now.toPeer-before.toPeer, now.toClient-before.toClient; up != toPeer || down != toClient {
		c.t.Errorf("%d datagrams were relayed to peers and %d to clients, want %d and %d", up, down, toPeer, toClient)
	}
	return now
}

// TestCapsOfUsersAndInTotalHold has clients flood their channels, and the peer flood them: what is relayed for a user, or for all,
// is what the cap lets through once, whoever relays it.
func TestCapsOfUsersAndInTotalHold(t *testing.T) {
	for _, kernel := range []bool{true, false} {
		for _, scope := range []struct {
			name, flag, reason string
			bursts             uint64 // of three clients
		}{
			{"User", "--max-bandwidth-per-user", "meter-user", 2},
			{"Total", "--max-bandwidth-total", "meter-total", 1},
		} {
			t.Run(fmt.Sprintf("%s/Kernel=%t", scope.name, kernel), func(t *testing.T) {
				c := newLab(t).startCapped(kernel, scope.flag, scope.reason)
				const n = 100
				before := c.metered()
				for _, one := range c.clients {
					for range n {
						one.sendChannel(0x4001, make([]byte, meteredSize))
					}
				}
				after := c.want(before, 3*n, scope.bursts*burstOfTrickle, 0)
				for _, to := range c.relayed {
					for range n {
						if _, err := c.peer.WriteToUDPAddrPort(make([]byte, meteredSize), addr(to)); err != nil {
							t.Fatal(err)
						}
					}
				}
				after = c.want(after, 3*n, 0, scope.bursts*burstOfTrickle)
				if kernel && after.byKernel-before.byKernel != 6*n {
					t.Errorf("the kernel decided on %d datagrams, want all %d", after.byKernel-before.byKernel, 6*n)
				}
			})
		}
	}
}

// TestCapOfAUserHoldsForBothPathsTogether has one client's indications go through userspace, and another's channel
// through the kernel, also while no daemon is there, and once another has other maps.
func TestCapOfAUserHoldsForBothPathsTogether(t *testing.T) {
	c := newLab(t).startCapped(true, "--max-bandwidth-per-user", "meter-user")
	const n = 50
	peer := c.peer.LocalAddr().(*net.UDPAddr).AddrPort()
	indicate := func() {
		for range n {
			c.clients[0].indicate(peer, make([]byte, meteredSize))
		}
	}
	before := c.metered()
	indicate()
	after := c.want(before, n, n, 0)
	if after.byKernel != before.byKernel {
		t.Error("the kernel relayed indications")
	}
	for range n {
		c.clients[1].sendChannel(0x4001, make([]byte, meteredSize))
	}
	after = c.want(after, n, burstOfTrickle-n, 0)
	c.kill()
	for range n {
		c.clients[1].sendChannel(0x4001, make([]byte, meteredSize))
	}
	c.start()
	eventually(t, "what was said meanwhile is dropped", func() error {
		if st := c.kernel(); st.packets(c.verdict) != after.dropped+n || st.packets("to-peer") != burstOfTrickle-n {
			return fmt.Errorf("%+v", st.Verdicts)
		}
		return nil
	})
	after = c.metered() // userspace counts anew
	indicate()
	after = c.want(after, n, 0, 0)
	c.clients[2].sendChannel(0x4001, make([]byte, meteredSize))
	c.want(after, 1, 1, 0)

	c.kill()
	c.flags = append(c.flags, "--kernel-max-channels", "1025") // other maps
	c.start()
	c.offloaded(10)
	after = c.metered()
	for range n {
		c.clients[1].sendChannel(0x4001, make([]byte, meteredSize))
	}
	c.want(after, n, 0, 0)
}
