package relay

import (
	"bytes"
	"net/netip"
	"testing"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

func TestOutboxJoinsWhatBelongsTogether(t *testing.T) {
	from := listenRaw(t)
	a, b := peerOf(t), peerOf(t)
	toA, toB := sockaddrOf(a.addr), sockaddrOf(b.addr)
	dropped := 0
	o := newOutbox(func(n int, _ unix.Errno) { dropped += n })
	h, other := hop{ttl: 64}, hop{ttl: 63}
	var wantA, wantB [][]byte
	push := func(e *sockaddr, want *[][]byte, size int, h hop, headed bool) {
		data := bytes.Repeat([]byte{byte(len(wantA) + len(wantB))}, size)
		*want = append(*want, data)
		if headed {
			o.push(from, e, data[:min(4, size)], data[min(4, size):], h, false)
		} else {
			o.push(from, e, nil, data, h, false)
		}
	}
	for _, step := range []struct {
		size     int
		hop      hop
		headed   bool
		messages int
	}{
		{100, h, false, 1},
		{100, h, false, 1}, // the same train
		{40, h, false, 1},  // shorter: its last
		{40, h, false, 2},  // so this begins another
		{100, h, false, 3}, // longer
		{100, other, false, 4},
		{0, other, false, 5}, // nothing to join
		{0, other, false, 6},
		{200, other, true, 7},
		{200, other, true, 7},
		{200, other, false, 8}, // another number of pieces
	} {
		push(&toA, &wantA, step.size, step.hop, step.headed)
		if o.n != step.messages {
			t.Errorf("got %d messages after %d bytes, want %d", o.n, step.size, step.messages)
		}
	}
	push(&toB, &wantB, 200, other, false)
	if o.n != 9 {
		t.Errorf("got %d messages with another destination, want 9", o.n)
	}
	for range maxSegments + 1 {
		push(&toB, &wantB, 200, other, false)
	}
	if o.n != 10 {
		t.Errorf("got %d messages with more than a train holds, want 10", o.n)
	}
	o.flush()
	for _, data := range wantA {
		a.want(data)
	}
	for _, data := range wantB {
		b.want(data)
	}
	a.wantNothing()
	b.wantNothing()
	if dropped != 0 {
		t.Errorf("got %d drops, want 0", dropped)
	}
}

func TestOutboxSendsSinglyWhatIsNoTrain(t *testing.T) {
	from, a := listenRaw(t), peerOf(t)
	to := sockaddrOf(a.addr)
	o := newOutbox(func(n int, errno unix.Errno) { t.Errorf("got %d drops: %v", n, errno) })
	if err := unix.SetsockoptInt(from, unix.SOL_SOCKET, unix.SO_NO_CHECK, 1); err != nil { // trains need checksums
		t.Fatal(err)
	}
	var want [][]byte
	for i := range 5 {
		want = append(want, bytes.Repeat([]byte{byte(i)}, 1000))
		o.push(from, &to, want[i][:4], want[i][4:], hop{ttl: 9, tos: 4}, false)
	}
	calls := o.calls
	o.flush()
	for _, data := range want {
		a.want(data)
	}
	if o.calls == calls {
		t.Error("nothing was sent by the outbox")
	}
}

func TestOutboxDropsAloneWhatTheKernelRefuses(t *testing.T) {
	from, a := listenRaw(t), peerOf(t)
	good, bad := sockaddrOf(a.addr), sockaddrOf(netip.MustParseAddrPort("127.0.0.3:0"))
	dropped := 0
	o := newOutbox(func(n int, _ unix.Errno) { dropped += n })
	o.push(from, &good, nil, []byte("first"), hop{ttl: 64}, false)
	for range 3 {
		o.push(from, &bad, nil, []byte("nowhere"), hop{ttl: 64}, false)
	}
	o.push(from, &good, nil, make([]byte, 1<<16), hop{ttl: 64}, false) // larger than a datagram
	o.push(from, &good, nil, []byte("last"), hop{ttl: 64}, false)
	o.flush()
	a.want([]byte("first"))
	a.want([]byte("last"))
	if dropped != 4 {
		t.Errorf("got %d drops, want 4", dropped)
	}
}

func TestPendingErrorCostsNoDatagram(t *testing.T) {
	closed, a := freePort(t, peerIP), peerOf(t)
	from := listenRaw(t)
	// Such an error is the kernel's to report only where it is asked for; here it is, for the test.
	if err := unix.SetsockoptInt(from, unix.SOL_IP, unix.IP_RECVERR, 1); err != nil {
		t.Fatal(err)
	}
	o := newOutbox(func(n int, errno unix.Errno) { t.Errorf("got %d drops: %v", n, errno) })
	toClosed, to := sockaddrOf(closed), sockaddrOf(a.addr)
	for range 10 {
		o.push(from, &toClosed, nil, []byte("x"), hop{ttl: 64}, false)
		o.flush()
		for range 2 {
			o.push(from, &to, nil, []byte("y"), hop{ttl: 64}, false)
		}
		o.flush()
		a.want([]byte("y"))
		a.want([]byte("y"))
	}
	// And what is received is not lost behind one either.
	o.push(from, &toClosed, nil, []byte("x"), hop{ttl: 64}, false)
	o.flush()
	a.send(addressOf(t, from), []byte("z"))
	in := newInbox()
	if n, errno := in.receive(from, 0); n != 1 || string(in.datagram(0).data) != "z" {
		t.Errorf("got %d datagrams (%v), want one", n, errno)
	}
}

func TestTrainFromPeerIsSplit(t *testing.T) {
	g := serveTest(t, nil)
	c, peer := g.client("alice").allocate(), listenRaw(t)
	c.bind(0x4000, addressOf(t, peer))
	to := sockaddrOf(c.relayed)
	o := newOutbox(func(n int, errno unix.Errno) { t.Errorf("got %d drops: %v", n, errno) })
	var want [][]byte
	for i, size := range []int{700, 700, 700, 33} {
		want = append(want, bytes.Repeat([]byte{byte(i)}, size))
		o.push(peer, &to, nil, want[i], hop{ttl: 64}, false)
	}
	o.flush()
	if o.calls != 1 {
		t.Errorf("got %d calls for a train, want 1", o.calls)
	}
	for _, data := range want {
		c.want(channelData(0x4000, data))
	}
	if got := g.Counters().ToClientPackets; got != 4 {
		t.Errorf("got %d packets counted, want 4", got)
	}
}

func TestTrainFromClientIsSplit(t *testing.T) {
	g := serveTest(t, nil)
	c, peer, other := g.client("alice").allocate(), peerOf(t), peerOf(t)
	c.bind(0x4000, peer.addr)
	c.bind(0x4001, other.addr)
	raw, err := c.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	to := sockaddrOf(c.server)
	o := newOutbox(func(n int, errno unix.Errno) { t.Errorf("got %d drops: %v", n, errno) })
	err = raw.Control(func(fd uintptr) {
		for i := range 6 {
			data := bytes.Repeat([]byte{byte(i)}, 500-i/5*100)
			o.push(int(fd), &to, nil, channelData(0x4000+turn.ChannelNumber(i%2), data), hop{ttl: 64}, false)
		}
		o.flush()
	})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 6 {
		data := bytes.Repeat([]byte{byte(i)}, 500-i/5*100)
		[]*endpointUDP{peer, other}[i%2].want(data)
	}
}

// listenRaw is a descriptor of a socket at an address of the peers.
func listenRaw(t *testing.T) int {
	t.Helper()
	fd, err := bindUDP(netip.AddrPortFrom(peerIP, 0), relayedBuffer, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func addressOf(t *testing.T, fd int) netip.AddrPort {
	t.Helper()
	a, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	v4 := a.(*unix.SockaddrInet4)
	return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), uint16(v4.Port))
}
