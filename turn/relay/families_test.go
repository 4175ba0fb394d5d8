package relay

import (
	"net/netip"
	"testing"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

var (
	relayIP6 = netip.MustParseAddr("::1")
	alsoIPv6 = attribute{0x8000, []byte{2, 0, 0, 0}}
	ofIPv4   = attribute{stun.AttrRequestedAddressFamily, []byte{1, 0, 0, 0}}
	ofIPv6   = attribute{stun.AttrRequestedAddressFamily, []byte{2, 0, 0, 0}}
)

// bothFamilies relays at an address of each family.
func bothFamilies(c *Config) {
	c.Settings.Rules.Relays = append(c.Settings.Rules.Relays, turn.Relay{IP: relayIP6, External: relayIP6})
	c.Settings.Rules.Policy.Allow = append(c.Settings.Rules.Policy.Allow, netip.PrefixFrom(relayIP6, 128))
}

// allocateBoth allocates and yields both relayed addresses.
func (c *client) allocateBoth() (v4, v6 netip.AddrPort) {
	c.t.Helper()
	m := c.greet().do(0, stun.MethodAllocate, udpTransport, alsoIPv6)
	for _, a := range m.Attributes {
		if a.Type != stun.AttrXORRelayedAddress {
			continue
		}
		one := stun.New()
		one.TransactionID = m.TransactionID
		one.Add(a.Type, a.Value)
		one.WriteHeader()
		if r := relayedOf(c.t, one); r.Addr().Is4() {
			v4 = r
		} else {
			v6 = r
		}
	}
	if v4.Addr() != relayIP || v6.Addr() != relayIP6 {
		c.t.Fatalf("got relayed addresses %v and %v, want one of %v and one of %v", v4, v6, relayIP, relayIP6)
	}
	return v4, v6
}

// dual is an allocation with a channel to a peer of each family.
type dual struct {
	*client
	relayed [2]netip.AddrPort
	peers   [2]*endpointUDP
}

func newDual(g *rig) *dual {
	g.t.Helper()
	d := &dual{client: g.client("alice")}
	d.relayed[0], d.relayed[1] = d.allocateBoth()
	d.peers = [2]*endpointUDP{peerOf(g.t), listenUDP(g.t, netip.AddrPortFrom(relayIP6, 0))}
	for i, p := range d.peers {
		d.bind(turn.ChannelNumber(0x4000+i), p.addr)
	}
	return d
}

// wantRelayed wants channels and indications of a family to be relayed, or not.
func (d *dual) wantRelayed(i int, want bool) {
	d.t.Helper()
	p, n := d.peers[i], turn.ChannelNumber(0x4000+i)
	d.send(d.server, channelData(n, []byte("ping")))
	d.indicate(p.addr, []byte("data"))
	if !want {
		p.wantNothing()
		p.send(d.relayed[i], []byte("pong"))
		d.wantNothing()
		return
	}
	if from := p.want([]byte("ping")); from != d.relayed[i] {
		d.t.Errorf("got a datagram from %v, want %v", from, d.relayed[i])
	}
	p.want([]byte("data"))
	p.send(d.relayed[i], []byte("pong"))
	d.want(channelData(n, []byte("pong")))
}

func TestBothFamiliesAreRelayed(t *testing.T) {
	g := serveTest(t, bothFamilies)
	d := newDual(g)
	d.wantRelayed(0, true)
	d.wantRelayed(1, true)
	again := g.again(nil)
	d.wantRelayed(0, true)
	d.wantRelayed(1, true)
	if got := again.Allocations(); got != 1 {
		t.Errorf("got %d allocations, want 1", got)
	}
}

func TestOneFamilyEndsAndItsPortIsFree(t *testing.T) {
	g := serveTest(t, bothFamilies)
	d := newDual(g)
	d.wantRelayed(0, true)
	d.do(0, stun.MethodRefresh, ofIPv4, lifetime(0))
	if taken(t, d.relayed[0]) {
		t.Errorf("%v is still bound", d.relayed[0])
	}
	d.wantRelayed(1, true)
	d.send(d.server, channelData(0x4000, []byte("ping")))
	d.peers[0].wantNothing()
	d.do(443, stun.MethodRefresh, ofIPv4)
	used := eventsOf[turn.UsageRecorded](g.store)
	eventually(t, "the usage of the channel is recorded", func() bool {
		used = eventsOf[turn.UsageRecorded](g.store)
		return len(used) == 1
	})
	if used[0].Channel != 0x4000 || used[0].ToPeer.Packets != 1 || used[0].ToClient.Packets != 1 {
		t.Errorf("got usage %+v, want a datagram each way by channel 0x4000", used[0])
	}
	d.do(0, stun.MethodRefresh, lifetime(0))
	if taken(t, d.relayed[1]) {
		t.Errorf("%v is still bound", d.relayed[1])
	}
}

func TestPortOfOneFamilyTakenMeanwhileEndsThatAlone(t *testing.T) {
	g := serveTest(t, bothFamilies)
	d := newDual(g)
	if err := g.stop(); err != nil {
		t.Fatal(err)
	}
	listenUDP(t, d.relayed[1])
	again := g.again(nil)
	ended := eventsOf[turn.RelayedDeleted](again.store)
	if len(ended) != 1 || ended[0] != (turn.RelayedDeleted{Allocation: 1, Relayed: d.relayed[1], Reason: turn.ReasonPortTaken}) {
		t.Errorf("got %v, want %v ended because its port is taken", ended, d.relayed[1])
	}
	d.wantRelayed(0, true)
	d.do(443, stun.MethodRefresh, ofIPv6)
	if got := again.Allocations(); got != 1 {
		t.Errorf("got %d allocations, want 1", got)
	}
}

func TestOneFamilyEndsThoughItCannotBeRecorded(t *testing.T) {
	clock, late := lateClock(t)
	late.Store(int64(turn.ChannelLifetime - soon))
	g := serveTest(t, func(c *Config) { bothFamilies(c); c.Clock = clock })
	d := newDual(g)
	d.do(0, stun.MethodRefresh, ofIPv6, lifetime(3600))
	late.Store(0)
	for i, p := range d.peers {
		d.bind(turn.ChannelNumber(0x4000+i), p.addr) // these end later
	}
	late.Store(int64(turn.ChannelLifetime - soon))
	goOn := g.store.stall()
	defer goOn()
	d.send(d.server, d.message(stun.MethodRefresh, ofIPv6).Raw)
	<-g.store.entered
	eventually(t, "IPv4 is not relayed any more", func() bool {
		d.send(d.server, channelData(0x4000, []byte("x")))
		b, _ := d.peers[0].receive(quiet)
		return b == nil
	})
	d.wantRelayed(0, false)
	d.wantRelayed(1, true)
}

func TestLossOfAnEndOfOneFamily(t *testing.T) {
	for _, keep := range []bool{false, true} {
		g := serveTest(t, bothFamilies)
		d := newDual(g)
		g.lose(d.client, d.message(stun.MethodRefresh, ofIPv6, lifetime(0)), keep, 0)
		d.wantRelayed(0, true)
		if keep {
			d.send(d.server, channelData(0x4001, []byte("x")))
			d.peers[1].wantNothing()
			eventually(t, "the port is free", func() bool { return !taken(t, d.relayed[1]) })
		} else {
			d.wantRelayed(1, true)
		}
		if err := g.stop(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestOneFamilyWithoutPorts(t *testing.T) {
	g := serveTest(t, func(c *Config) {
		bothFamilies(c)
		c.Settings.Rules.FirstPort = freePort(t, relayIP).Port()
		c.Settings.Rules.LastPort = c.Settings.Rules.FirstPort
	})
	listenUDP(t, netip.AddrPortFrom(relayIP6, g.config.Settings.Rules.FirstPort))
	c := g.client("alice").greet()
	m := c.do(0, stun.MethodAllocate, udpTransport, alsoIPv6)
	if got := relayedOf(t, m); got.Addr() != relayIP {
		t.Errorf("got %v, want an address of %v", got, relayIP)
	}
	v, err := m.Get(0x8001)
	if want := string([]byte{2, 0, 5, 8}) + "Insufficient Capacity"; err != nil || string(v) != want {
		t.Errorf("got ADDRESS-ERROR-CODE %x, %v, want %x", v, err, want)
	}
	if g.Allocations() != 1 {
		t.Errorf("got %d allocations, want 1", g.Allocations())
	}
}
