package test

import (
	"errors"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
)

// setMTU sets it on an interface of a space.
func (s *space) setMTU(name string, mtu int) {
	s.t.Helper()
	s.do(func() error {
		nic, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		return netlink.LinkSetMTU(nic, mtu)
	})
}

// jumbo lets large frames through the lab, which take several buffers.
func (l *lab) jumbo() {
	l.t.Helper()
	const mtu = 9000
	l.clients.setMTU("far0", mtu)
	l.peer.setMTU("far0", mtu)
	l.relay.setMTU("relay0", mtu)
	l.relay.setMTU("relay1", mtu)
}

// TestKernelRelaysFramesInSeveralBuffers has payloads of more than a page, which the driver sends, unless nobody at the
// other end takes frames of XDP programs any more: userspace relays then, and the kernel again when somebody does.
func TestKernelRelaysFramesInSeveralBuffers(t *testing.T) {
	l := newLab(t)
	l.jumbo()
	d := l.start()
	calls := []*talker{
		l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4),
		l.dial("["+labClient6+"]:5002", "["+labServer6+"]:3478", labPeer4+":6002", 0x4002, familyIPv4),
	}
	d.offloaded(8)
	const n = 200
	talk := func() {
		for _, c := range calls {
			c.talk(n, func(i int) int { return 3000 + i*29 })
		}
	}
	d.wantByKernel("large frames", map[string]uint64{"to-peer": 2 * n, "to-client": 2 * n, "buffers": 0}, talk)

	if err := l.ends["relay1"].Close(); err != nil {
		t.Fatal(err)
	}
	const mute = "the other end of the veth takes no frames of XDP programs"
	eventually(t, "the kernel does not send to where nobody takes it", func() error {
		for _, w := range d.carried(d.allocations()[calls[0].addr()].ID) {
			if w.Direction == "to-peer" && !w.Kernel && strings.Contains(w.Reason, mute) {
				return nil
			}
		}
		return errors.New("it does")
	})
	before, user := d.kernel(), d.status()
	talk()
	after, userAfter := d.kernel(), d.status()
	if got := userAfter.ToPeer.Packets - user.ToPeer.Packets; got != 2*n {
		t.Errorf("userspace relayed %d packets to the peers, want %d", got, 2*n)
	}
	if got := after.packets("to-client") - before.packets("to-client"); got != 2*n {
		t.Errorf("the kernel relayed %d packets to the clients, whose side is as it was, want %d", got, 2*n)
	}
	d.wantNothingExtra()

	l.passAt(l.peer, "relay1")
	d.offloaded(8)
	d.wantByKernel("with the other end as before", map[string]uint64{"to-peer": 2 * n, "to-client": 2 * n, "buffers": 0}, talk)
}

// TestKernelPassesFramesInSeveralBuffersUp has the same in generic mode, in which frames are not sent in pieces.
func TestKernelPassesFramesInSeveralBuffersUp(t *testing.T) {
	l := newLab(t)
	l.jumbo()
	d := l.start("--xdp", "generic")
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4)
	d.offloaded(4)
	const n = 100
	d.wantByKernel("small frames", map[string]uint64{"to-peer": n, "to-client": n, "buffers": 0}, func() {
		c.talk(n, func(i int) int { return 8 + i*12 })
	})
	before, user := d.kernel(), d.status()
	c.talk(n, func(i int) int { return 4096 + i*40 })
	after, userAfter := d.kernel(), d.status()
	for what, got := range map[string]uint64{
		"passed up by the kernel, both ways": (after.packets("buffers") - before.packets("buffers")) / 2,
		"relayed to the peer by userspace":   userAfter.ToPeer.Packets - user.ToPeer.Packets,
		"relayed to the client by userspace": userAfter.ToClient.Packets - user.ToClient.Packets,
	} {
		if got != n {
			t.Errorf("%d packets %s, want %d", got, what, n)
		}
	}
	d.wantSound()
}
