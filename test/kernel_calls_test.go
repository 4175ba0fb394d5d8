package test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/pion/stun/v3"
)

// Families as requests name them (RFC 8656 section 18.6).
const (
	familyIPv4 = 1
	familyIPv6 = 2
)

// requested asks for a relayed address of a family.
func requested(family byte) stun.Setter {
	return stun.RawAttribute{Type: attrRequestedFamily, Value: []byte{family, 0, 0, 0}}
}

// talkerOf is c as one end of a channel.
func talkerOf(c *client, channel uint16) *talker {
	t := &talker{client: c, channel: channel, back: map[uint64]bool{}, arrived: make(chan struct{}, 1<<16)}
	c.onData(t.heard)
	return t
}

// wantByKernel has f talk, and checks that the kernel relayed as many packets by each verdict as wanted, and userspace
// none. The maps are then what the log grants.
func (d *daemon) wantByKernel(what string, want map[string]uint64, f func()) {
	d.t.Helper()
	before, user := d.kernel(), d.status()
	f()
	after, userAfter := d.kernel(), d.status()
	for verdict, n := range want {
		if got := after.packets(verdict) - before.packets(verdict); got != n {
			d.t.Errorf("%s: the kernel relayed %d packets %s, want %d", what, got, verdict, n)
		}
	}
	if user.ToPeer != userAfter.ToPeer || user.ToClient != userAfter.ToClient {
		d.t.Errorf("%s: userspace relayed too: %+v, before %+v", what, userAfter, user)
	}
	d.wantSound()
}

// carried is what allocation show says of a direction of a channel.
type carried struct {
	Channel   string `json:"channel"`
	Direction string `json:"direction"`
	Kernel    bool   `json:"kernel"`
	Reason    string `json:"reason"`
	Packets   uint64 `json:"packets"`
}

// carried yields what the kernel relays of the channels of an allocation.
func (d *daemon) carried(id uint64) []carried {
	d.t.Helper()
	return decode[struct{ Kernel []carried }](d.t, d.ask("allocation", "show", fmt.Sprint(id), "-o", "json")).Kernel
}

// wantUsage checks how many packets each way the kernel is said to have relayed of a client's channel.
func (d *daemon) wantUsage(c *talker, n uint64) {
	d.t.Helper()
	found := 0
	for _, w := range d.carried(d.allocations()[c.addr()].ID) {
		if w.Channel != fmt.Sprintf("%#x", c.channel) {
			continue
		}
		found++
		if !w.Kernel || w.Packets != n || w.Reason != "" {
			d.t.Errorf("channel of %s: got %+v, want the kernel to have relayed %d packets", c.addr(), w, n)
		}
	}
	if found != 2 {
		d.t.Errorf("channel of %s: got %d directions, want 2", c.addr(), found)
	}
}

// TestKernelRelaysFromOnePortOfTwoAddresses has one port of both relay addresses in use by different clients, whose
// channels and peers have the same numbers and ports too.
func TestKernelRelaysFromOnePortOfTwoAddresses(t *testing.T) {
	l := newLab(t)
	d := l.start("--relay-ports", "50000-50000")
	var calls []*talker
	for _, row := range []struct {
		client, peer string
		family       byte
	}{
		{labClient4 + ":5001", labPeer4 + ":6001", familyIPv4},
		{labClient4 + ":5002", "[" + labPeer6 + "]:6001", familyIPv6},
	} {
		calls = append(calls, l.dial(row.client, labServer4+":3478", row.peer, 0x4001, row.family))
	}
	d.offloaded(7)
	relayed := map[string]bool{}
	for _, a := range d.allocations() {
		relayed[a.Relayed[0]] = true
	}
	for _, want := range []string{labRelay4 + ":50000", "[" + labRelay6 + "]:50000"} {
		if !relayed[want] {
			t.Fatalf("got the relayed addresses %v, want %s among them", slices.Sorted(maps.Keys(relayed)), want)
		}
	}
	const n = 2000
	d.wantByKernel("both at once", map[string]uint64{"to-peer": 2 * n, "to-client": 2 * n}, func() {
		var talking sync.WaitGroup
		for _, c := range calls {
			talking.Go(func() { c.talk(n, func(i int) int { return 8 + i%1200 }) })
		}
		talking.Wait()
	})
	for _, c := range calls {
		d.wantUsage(c, n)
	}
}

// TestKernelRelaysForOneSocketOnTwoListeners has one socket of a client allocate on several listeners, and bind the same
// channel number on each to another peer.
func TestKernelRelaysForOneSocketOnTwoListeners(t *testing.T) {
	l := newLab(t)
	servers := []string{labServer4 + ":3478", labServer4 + ":3479", labRelay4 + ":3478"}
	d := l.start("--listen", "udp://"+servers[1], "--listen", "udp://"+servers[2])
	conn := l.clients.listen(addr(labClient4 + ":5001"))
	l.clients.do(func() error { return defaultRoute("far0", labServer4) })

	by := map[netip.AddrPort]*client{}
	for _, s := range servers {
		by[addr(s)] = clientOn(t, conn, s)
	}
	read := make(chan struct{})
	go func() {
		defer close(read)
		b := make([]byte, 1<<16)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if c := by[netip.AddrPortFrom(from.Addr().Unmap(), from.Port())]; err == nil && c != nil {
				c.take(b[:n])
			}
		}
	}()
	t.Cleanup(func() { _ = conn.Close(); <-read })

	var calls []*talker
	for i, s := range servers {
		peer := l.peer.listen(addr(fmt.Sprintf("%s:%d", labPeer4, 6001+i)))
		go reflect(peer)
		c := talkerOf(by[addr(s)], 0x4001)
		c.challenge()
		c.allocate()
		c.bind(0x4001, peer.LocalAddr().(*net.UDPAddr).AddrPort())
		calls = append(calls, c)
	}
	d.offloaded(3*len(servers) + 3) // guards of the listeners too
	const n = 1000
	for i, c := range calls {
		d.wantByKernel("listener "+servers[i], map[string]uint64{"to-peer": n, "to-client": n}, func() {
			c.talk(n, func(i int) int { return 8 + i%1200 })
		})
	}
	rows := decode[[]struct {
		Kind    string `json:"kind"`
		Packets uint64 `json:"packets"`
	}](t, d.ask("kernel", "dump", "-o", "json"))
	used := map[string]int{}
	for _, r := range rows {
		if r.Kind != "guard" && r.Packets == n {
			used[r.Kind]++
		}
	}
	if used["to-peer"] != len(servers) || used["to-client"] != len(servers) {
		t.Errorf("got %v flows that relayed %d packets each, want %d each way", used, n, len(servers))
	}
}

// TestKernelRelaysChannelToChannel has clients of every family call each other, by relayed addresses of both, as the relay
// itself knows them and as a 1:1 NAT before it shows them.
func TestKernelRelaysChannelToChannel(t *testing.T) {
	const external4, external6 = "203.0.113.1", "2001:db8:cafe::1"
	for _, row := range []struct {
		name  string
		flags []string
		shown map[byte]string
	}{
		{"Own", nil, map[byte]string{familyIPv4: labRelay4, familyIPv6: labRelay6}},
		{
			"External",
			[]string{"--external-ip", external4 + "/" + labRelay4, "--external-ip", external6 + "/" + labRelay6},
			map[byte]string{familyIPv4: external4, familyIPv6: external6},
		},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLab(t)
			d := l.start(row.flags...)
			private := map[byte]string{familyIPv4: labRelay4, familyIPv6: labRelay6}
			port := 5001
			client := func(v6 bool) *client {
				port++
				if v6 {
					return newClient(t, l.clients, fmt.Sprintf("[%s]:%d", labClient6, port), "["+labServer6+"]:3478")
				}
				return newClient(t, l.clients, fmt.Sprintf("%s:%d", labClient4, port), labServer4+":3478")
			}
			for _, family := range []byte{familyIPv4, familyIPv6} {
				for _, v6 := range [][2]bool{{false, false}, {true, true}, {false, true}, {true, false}} {
					what := fmt.Sprintf("relayed addresses of family %d, clients IPv6 %v", family, v6)
					a, b := client(v6[0]), client(v6[1])
					ra := relayedIn(a.must(a.request(stun.MethodAllocate, transport(), requested(family))))
					rb := relayedIn(b.must(b.request(stun.MethodAllocate, transport(), requested(family))))
					if want := netip.MustParseAddr(row.shown[family]); ra.Addr() != want || rb.Addr() != want {
						t.Fatalf("%s: relayed addresses %v and %v, want both on %v", what, ra, rb, want)
					}
					before := d.kernel().Flows
					a.bind(0x4001, rb) // as it is shown
					b.bind(0x4002, netip.AddrPortFrom(netip.MustParseAddr(private[family]), ra.Port()))
					d.offloaded(before + 4)
					b.onData(func(channel uint16, payload []byte) { b.sendChannel(channel, payload) })
					c := talkerOf(a, 0x4001)
					const n = 100
					d.wantByKernel(what, map[string]uint64{"to-channel": 2 * n, "to-peer": 0, "to-client": 0}, func() {
						c.talk(n, func(i int) int { return 8 + i*12%1200 })
					})
					d.wantUsage(c, n)
					d.wantUsage(talkerOf(b, 0x4002), n)
				}
			}
		})
	}
}

// TestKernelRelaysFromPortsOfAnotherRange starts the daemon again with another range of relayed ports: the calls on those of
// the one before go on.
func TestKernelRelaysFromPortsOfAnotherRange(t *testing.T) {
	l := newLab(t)
	d := l.start("--relay-ports", "50000-50009")
	calls := []*talker{l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4)}
	d.offloaded(4)
	d.kill()
	d.flags = append(d.flags, "--relay-ports", "51000-51009")
	d.start()
	calls = append(calls, l.dial(labClient4+":5002", labServer4+":3478", labPeer4+":6002", 0x4001, familyIPv4))
	d.offloaded(7)
	for _, c := range calls {
		const n = 200
		d.wantByKernel("call of "+c.addr(), map[string]uint64{"to-peer": n, "to-client": n}, func() {
			c.talk(n, func(i int) int { return 8 + i*6 })
		})
		d.wantUsage(c, n)
	}
}
