package relay

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"turnstone/internal/testenv"
	"turnstone/turn"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

func toldAll(c *Config) { c.Settings.ICMP = ICMPToAll }

// probe is indicate with DONT-FRAGMENT.
func (c *client) probe(peer netip.AddrPort, data []byte) {
	c.t.Helper()
	m := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), peerAddress(peer),
		attribute{stun.AttrData, data}, attribute{stun.AttrDontFragment, nil})
	c.send(c.server, m.Raw)
}

// wantICMP receives a Data indication that tells of an ICMP error.
func (c *client) wantICMP(peer netip.AddrPort, want turn.ICMPError) {
	c.t.Helper()
	m := c.answer(5 * time.Second)
	if m == nil || m.Type != stun.NewType(stun.MethodData, stun.ClassIndication) {
		c.t.Fatalf("got %v, want a Data indication", m)
	}
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, stun.AttrXORPeerAddress); err != nil {
		c.t.Fatal(err)
	}
	if ip, _ := netip.AddrFromSlice(x.IP); netip.AddrPortFrom(ip.Unmap(), uint16(x.Port)) != peer {
		c.t.Errorf("got an error about %v, want %v", x, peer)
	}
	v, err := m.Get(0x8004)
	if err != nil || len(v) != 8 || m.Contains(stun.AttrData) {
		c.t.Fatalf("got ICMP %x, %v, in %v", v, err, m)
	}
	both := binary.BigEndian.Uint16(v[2:])
	got := turn.ICMPError{Type: uint8(both >> 9), Code: uint8(both), MTU: binary.BigEndian.Uint32(v[4:])}
	if got != want {
		c.t.Errorf("got %+v, want %+v", got, want)
	}
}

func TestClosedPeerPortIsToldOf(t *testing.T) {
	g := serveTest(t, func(c *Config) { bothFamilies(c); toldAll(c) })
	c := g.client("alice")
	c.allocateBoth()
	closed4, closed6 := freePort(t, peerIP), freePort(t, relayIP6)
	c.permit(closed4)
	c.permit(closed6)
	for range 3 {
		c.indicate(closed4, []byte("x"))
		c.wantICMP(closed4, turn.ICMPError{Type: 3, Code: 3})
		c.indicate(closed6, []byte("x"))
		c.wantICMP(closed6, turn.ICMPError{Type: 1, Code: 4})
	}
	c.bind(0x4000, closed4)
	c.send(c.server, channelData(0x4000, []byte("x")))
	c.wantICMP(closed4, turn.ICMPError{Type: 3, Code: 3})
	if got := g.Counters().ToClientPackets; got != 0 {
		t.Errorf("got %d datagrams counted as relayed, want 0", got)
	}
}

func TestClosedPeerPortIsToldOfOnStreams(t *testing.T) {
	listen := withStreams(t)
	g := serveTest(t, func(c *Config) { listen(c); toldAll(c) })
	for _, p := range protocols[1:] {
		c, closed := g.streamClient(p).allocate(), freePort(t, peerIP)
		c.permit(closed)
		c.indicate(closed, []byte("x"))
		c.wantICMP(closed, turn.ICMPError{Type: 3, Code: 3})
	}
}

func TestWhoIsToldOfICMP(t *testing.T) {
	for _, tt := range []struct {
		name         string
		who          ICMP
		plain, probe bool
	}{
		{"Probers", ICMPToProbers, false, true},
		{"All", ICMPToAll, true, true},
		{"Nobody", ICMPToNobody, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			g := serveTest(t, func(c *Config) { c.Settings.ICMP = tt.who })
			c, closed := g.client("alice").allocate(), freePort(t, peerIP)
			c.permit(closed)
			want := func(told bool) {
				t.Helper()
				if told {
					c.wantICMP(closed, turn.ICMPError{Type: 3, Code: 3})
				} else {
					c.wantNothing()
				}
			}
			c.indicate(closed, []byte("x"))
			want(tt.plain)
			c.probe(closed, []byte("x"))
			want(tt.probe)
			c.indicate(closed, []byte("x"))
			want(tt.probe)
		})
	}
}

// rawICMP sends ICMP messages from an address of this host.
type rawICMP struct {
	t  *testing.T
	fd int
}

func openICMP(t *testing.T) *rawICMP {
	t.Helper()
	testenv.Root(t)
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	return &rawICMP{t, fd}
}

// send sends an error about a UDP datagram from source to destination.
func (r *rawICMP) send(kind, code byte, mtu uint16, source, destination netip.AddrPort) {
	r.t.Helper()
	b := []byte{kind, code, 0, 0, 0, 0, byte(mtu >> 8), byte(mtu)}
	b = append(b, 0x45, 0, 0, 28+8, 0, 0, 0x40, 0, 64, unix.IPPROTO_UDP, 0, 0)
	from, to := source.Addr().As4(), destination.Addr().As4()
	b = append(append(b, from[:]...), to[:]...)
	b = binary.BigEndian.AppendUint16(b, source.Port())
	b = binary.BigEndian.AppendUint16(b, destination.Port())
	b = append(b, 0, 16, 0, 0)
	sum := uint32(0)
	for i := 0; i < len(b); i += 2 {
		sum += uint32(b[i])<<8 | uint32(b[i+1])
	}
	sum = sum&0xffff + sum>>16
	sum += sum >> 16
	binary.BigEndian.PutUint16(b[2:], ^uint16(sum))
	if err := unix.Sendto(r.fd, b, 0, &unix.SockaddrInet4{Addr: from}); err != nil {
		r.t.Fatal(err)
	}
}

// TestWhichICMPErrorsAreTold has errors of all sorts on a relayed port, from routers whose addresses are no matter.
func TestWhichICMPErrorsAreTold(t *testing.T) {
	raw := openICMP(t)
	g := serveTest(t, nil)
	c, other := g.client("alice").allocate(), g.client("bob").allocate()
	peer := peerOf(t)
	c.permit(peer.addr)
	c.probe(peer.addr, []byte("x"))
	peer.want([]byte("x"))
	another := netip.AddrPortFrom(peer.addr.Addr(), 9) // the permission is for the address
	stranger := netip.MustParseAddrPort("127.0.0.9:9")
	for _, tt := range []struct {
		name       string
		kind, code byte
		mtu        uint16
		from, to   netip.AddrPort
		want       turn.ICMPError // zero for none
	}{
		{"HostUnreachable", 3, 1, 7, c.relayed, peer.addr, turn.ICMPError{Type: 3, Code: 1}},
		{"FragmentationNeeded", 3, 4, 1280, c.relayed, peer.addr, turn.ICMPError{Type: 3, Code: 4, MTU: 1280}},
		{"AdministrativelyProhibited", 3, 13, 0, c.relayed, another, turn.ICMPError{Type: 3, Code: 13}},
		{"TimeExceeded", 11, 0, 7, c.relayed, peer.addr, turn.ICMPError{Type: 11}},
		{"ParameterProblem", 12, 0, 0, c.relayed, peer.addr, turn.ICMPError{}},
		{"NoPermission", 3, 3, 0, c.relayed, stranger, turn.ICMPError{}},
		{"OfAnotherAllocation", 3, 3, 0, other.relayed, peer.addr, turn.ICMPError{}},
		{"OfNobody", 3, 3, 0, freePort(t, relayIP), peer.addr, turn.ICMPError{}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			raw.send(tt.kind, tt.code, tt.mtu, tt.from, tt.to)
			if tt.want == (turn.ICMPError{}) {
				c.wantNothing()
				return
			}
			c.wantICMP(tt.to, tt.want)
		})
	}
	c.probe(peer.addr, []byte("goes on"))
	peer.want([]byte("goes on"))
	peer.send(c.relayed, []byte("and back"))
	c.wantData(peer.addr, []byte("and back"))
	c.do(0, stun.MethodRefresh, lifetime(0))
	raw.send(3, 3, 0, c.relayed, peer.addr)
	c.wantNothing()
}

// TestICMPErrorsLoseNothing has trains to a peer side by side with what comes back as errors.
func TestICMPErrorsLoseNothing(t *testing.T) {
	g := serveTest(t, toldAll)
	c, peer := g.client("alice").allocate(), peerOf(t)
	closed := freePort(t, peerIP)
	c.bind(0x4000, closed)
	c.bind(0x4001, peer.addr)
	told, got := 0, 0
	const rounds, train = 40, 8
	for range rounds {
		for i := range 2 * train {
			c.send(c.server, channelData(turn.ChannelNumber(0x4000+i/2%2), make([]byte, 200)))
			if i%4 == 3 {
				c.send(c.server, channelData(0x4001, make([]byte, 100)))
			}
		}
		for want := got + train + 2*train/4; got < want; got++ {
			if b, _ := peer.receive(5 * time.Second); b == nil {
				t.Fatalf("got %d datagrams, want %d", got, want)
			}
		}
	}
	for m := c.answer(quiet); m != nil; m = c.answer(quiet) {
		if m.Contains(0x8004) {
			told++
		}
	}
	if told == 0 {
		t.Error("the client was told of no error")
	}
	if drops := g.Counters().Drops[DropSend.String()]; drops != 0 {
		t.Errorf("got %d datagrams the kernel did not take, want 0", drops)
	}
}

// TestSendMeetsAnEarlierError has an error about one peer pending when others are sent to.
func TestSendMeetsAnEarlierError(t *testing.T) {
	fd, err := bindUDP(freePort(t, relayIP), relayedBuffer, false)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := hearICMP(fd, true); err != nil {
		t.Fatal(err)
	}
	o := newOutbox(func(n int, errno unix.Errno) { t.Errorf("%d datagrams were dropped: %v", n, errno) })
	peer := peerOf(t)
	to, closed := sockaddrOf(peer.addr), sockaddrOf(freePort(t, peerIP))
	cases := map[string][]int{"Alone": {50}, "Train": {50, 50, 50, 20}, "Mixed": {50, 60, 70}}
	for name, sizes := range cases {
		t.Run(name, func(t *testing.T) {
			for _, whole := range []bool{false, true} {
				o.push(fd, &closed, nil, []byte("x"), hop{ttl: 64}, false)
				o.flush() // the error is there when this returns: lo is that fast
				for _, n := range sizes {
					o.push(fd, &to, nil, make([]byte, n), hop{ttl: 64, whole: whole}, false)
				}
				o.flush()
				for _, n := range sizes {
					peer.want(make([]byte, n))
				}
			}
		})
	}
	in := new(icmpInbox)
	told := 0
	for i := range in.receive(fd) {
		if _, e, ok := in.icmp(i); ok && e == (turn.ICMPError{Type: 3, Code: 3}) {
			told++
		}
	}
	if want := 2 * len(cases); told != want {
		t.Errorf("got %d errors told, want %d", told, want)
	}
}

// FuzzControls has control messages of all sorts read: nothing outside of them is, and there is an end.
func FuzzControls(f *testing.F) {
	good := appendControl(nil, unix.SOL_IP, unix.IP_TTL, 64, 4)
	f.Add(good)
	f.Add(append(good, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 11, 0, 0, 0, 1, 2, 3, 4, 2, 3, 4, 0, 0, 5, 0, 0, 0, 0, 0, 0))
	f.Fuzz(func(t *testing.T, c []byte) {
		left := len(c)
		for rest := c; len(rest) > 0; {
			var m control
			m, rest = nextControl(rest)
			if len(m.value) > left-unix.SizeofCmsghdr && m.value != nil || len(rest) >= left {
				t.Fatalf("got a value of %d bytes and %d left of %d", len(m.value), len(rest), left)
			}
			left = len(rest)
			if m.heard() {
				if e, ok := icmpOf(m.value); ok && (e.Type == 0 || e.MTU != 0 && e.Type != 2 && e.Type != 3) {
					t.Errorf("got %+v of %x", e, m.value)
				}
			}
			new(datagram).read(m.level, m.kind, m.value)
		}
	})
}
