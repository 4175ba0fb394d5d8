package test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

const attrAdditionalFamily stun.AttrType = 0x8000

func ofFamily(kind stun.AttrType, family byte) stun.Setter {
	return stun.RawAttribute{Type: kind, Value: []byte{family, 0, 0, 0}}
}

// TestKernelRelaysBothFamiliesOfOneAllocation has a channel to a peer of each, and then ends one family.
func TestKernelRelaysBothFamiliesOfOneAllocation(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := newClient(t, l.clients, labClient4+":5001", labServer4+":3478")
	c.must(c.request(stun.MethodAllocate, transport(), ofFamily(attrAdditionalFamily, 2)))
	calls := [2]*talker{}
	for i, at := range []string{labPeer4 + ":6001", "[" + labPeer6 + "]:6002"} {
		go reflect(l.peer.listen(addr(at)))
		calls[i] = &talker{client: c, channel: uint16(0x4001 + i), back: map[uint64]bool{}, arrived: make(chan struct{}, 1<<16)}
		c.bind(calls[i].channel, addr(at))
	}
	c.onData(func(channel uint16, payload []byte) {
		for _, call := range calls {
			call.heard(channel, payload)
		}
	})
	const guards, flows, n = 3, 4, 500 // guards of the listener and of both relayed addresses
	d.offloaded(guards + flows)
	before := d.kernel()
	for _, call := range calls {
		call.talk(n, func(i int) int { return 8 + i })
	}
	after := d.kernel()
	for _, v := range []string{"to-peer", "to-client"} {
		if got := after.packets(v) - before.packets(v); got != 2*n {
			t.Errorf("the kernel relayed %d packets %s, want %d", got, v, 2*n)
		}
	}
	c.must(c.request(stun.MethodRefresh, lifetime(0), ofFamily(attrRequestedFamily, 1)))
	eventually(t, "the kernel carries the other family alone", func() error {
		if st := d.kernel(); st.Flows != (guards+flows)-3 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	before = d.kernel()
	calls[0].say(100)
	calls[1].talk(n, func(i int) int { return 8 + i })
	if got := d.kernel().packets("to-peer") - before.packets("to-peer"); got != n {
		t.Errorf("the kernel relayed %d packets to peers, want the %d of the family that is left", got, n)
	}
	if got := calls[0].heardBack(); got != n {
		t.Errorf("got %d payloads back of the family that has ended, want the %d from before", got, n)
	}
	d.wantSound()
}

// TestICMPErrorsOfWhatTheKernelRelayed has a peer's host say that nobody is there, of datagrams that never were in userspace.
func TestICMPErrorsOfWhatTheKernelRelayed(t *testing.T) {
	l := newLab(t)
	d := l.start("--icmp-errors", "all")
	c := newClient(t, l.clients, labClient4+":5001", labServer4+":3478")
	told := make(chan *stun.Message, 64)
	c.onIndication(func(m *stun.Message) {
		select {
		case told <- m:
		default:
		}
	})
	c.allocate()
	c.bind(0x4001, addr(labPeer4+":6001"))
	d.offloaded(3)
	before := d.kernel().packets("to-peer")
	var m *stun.Message
	eventually(t, "the client is told", func() error {
		c.sendChannel(0x4001, []byte("anybody there?"))
		select {
		case m = <-told:
			return nil
		default:
			return errors.New("nothing yet")
		}
	})
	if d.kernel().packets("to-peer") == before {
		t.Error("the kernel relayed nothing to the peer")
	}
	v, err := m.Get(attrICMP)
	if got, want := hex.EncodeToString(v), "0000060300000000"; err != nil || got != want {
		t.Errorf("got ICMP %s, %v, want %s", got, err, want)
	}
}

// TestKernelKeepsDontFragment looks at what is on the wire of a channel that the kernel relays: what comes with DF leaves with it, and what
// comes without leaves without; a Send indication with DONT-FRAGMENT, which userspace relays beside it, leaves with it.
func TestKernelKeepsDontFragment(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := newClient(t, l.clients, labClient4+":5001", labServer4+":3478")
	relayed := relayedIn(c.must(c.request(stun.MethodAllocate, transport(), dontFragment)))
	at := addr(labPeer4 + ":6001")
	peer := l.peer.listen(at)
	c.bind(0x4001, at)
	d.offloaded(4)
	toPeer, toClient := l.peer.tap(at.Addr()), l.clients.tap(addr(labClient4+":0").Addr())
	const n = 10
	before := d.kernel()
	for i := range n {
		df := i%2 == 0
		for _, conn := range []*net.UDPConn{c.conn.(*net.UDPConn), peer} {
			setDF(t, conn, df)
		}
		c.sendChannel(0x4001, make([]byte, 100+i))
		if length, got := toPeer.next(); length != 100+i || got != df {
			t.Fatalf("the peer got %d bytes with DF %t, want %d with DF %t", length, got, 100+i, df)
		}
		c.indicate(at, make([]byte, 300+i), dontFragment)
		if length, got := toPeer.next(); length != 300+i || !got {
			t.Fatalf("the peer got %d bytes with DF %t of an indication, want %d with DF", length, got, 300+i)
		}
		if _, err := peer.WriteToUDPAddrPort(make([]byte, 200+i), relayed); err != nil {
			t.Fatal(err)
		}
		for length, got := toClient.next(); length != 204+i; length, got = toClient.next() {
			if length < 200 {
				continue // an answer of before
			}
			t.Fatalf("the client got %d bytes with DF %t, want %d with DF %t", length, got, 204+i, df)
		}
	}
	after, user := d.kernel(), d.status()
	for _, v := range []string{"to-peer", "to-client"} {
		if got := after.packets(v) - before.packets(v); got != n {
			t.Errorf("the kernel relayed %d packets %s, want %d", got, v, n)
		}
	}
	if user.ToPeer.Packets != n || user.ToClient.Packets != 0 {
		t.Errorf("userspace relayed %+v, want the %d indications", user, n)
	}
	d.wantSound()
}

// TestKernelLeavesThePathMTUToWhoProbes has a router on the way say that what the kernel relayed was too large. A client that has
// sent with DONT-FRAGMENT is told, and goes on as it was.
func TestKernelLeavesThePathMTUToWhoProbes(t *testing.T) {
	l := newLab(t)
	d := l.start()
	at := addr(labPeer4 + ":6001")
	go reflect(l.peer.listen(at))
	client := newClient(t, l.clients, labClient4+":5001", labServer4+":3478")
	told := make(chan string, 64)
	client.onIndication(func(m *stun.Message) {
		if v, err := m.Get(attrICMP); err == nil {
			select {
			case told <- hex.EncodeToString(v):
			default:
			}
		}
	})
	relayed := client.allocate()
	client.bind(0x4001, at)
	c := talkerOf(client, 0x4001)
	d.offloaded(4)
	client.indicate(at, make([]byte, 100), dontFragment)
	c.talk(10, func(int) int { return 1300 })
	var got string
	eventually(t, "the client is told", func() error {
		l.peer.do(func() error { return tooBig(relayed, at, 1280) })
		select {
		case got = <-told:
			return nil
		default:
			return errors.New("nothing yet")
		}
	})
	if want := "0000060400000500"; got != want {
		t.Errorf("got ICMP %s, want %s: fragmentation needed, MTU 1280", got, want)
	}
	before, user, said := d.kernel(), d.status(), c.sent
	for end := time.Now().Add(3 * time.Second); time.Now().Before(end); { // paths are asked for once a second
		c.talk(50, func(int) int { return 1300 })
	}
	after := d.kernel()
	for verdict, want := range map[string]uint64{"to-peer": c.sent - said, "to-client": c.sent - said, "mtu": 0} {
		if got := after.packets(verdict) - before.packets(verdict); got != want {
			t.Errorf("got %d packets %s, want %d", got, verdict, want)
		}
	}
	if now := d.status(); now.ToPeer != user.ToPeer {
		t.Errorf("userspace relayed too: %+v, before %+v", now, user)
	}
}

// setDF has what is sent on conn leave with DF, or without.
func setDF(t *testing.T, conn *net.UDPConn, df bool) {
	t.Helper()
	how := unix.IP_PMTUDISC_DONT
	if df {
		how = unix.IP_PMTUDISC_DO
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var failed error
	err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_MTU_DISCOVER, how) })
	if err := errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
}
