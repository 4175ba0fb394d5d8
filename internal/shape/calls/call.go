package calls

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"turnstone/turn"
)

// call is one allocation's life, as its client leads it.
type call struct {
	at    time.Duration // of what it does next
	stage stage
	id    turn.AllocationID // 0 until it has one
	tuple turn.FiveTuple
	user  string
	relay []netip.AddrPort
	peers []netip.AddrPort // to be permitted; the first of them are bound
	bound int              // channels
	path  turn.Path

	permit, bind, refresh, usage, move, end time.Duration // when each is due
	vanishes                                bool          // it ends without a word
	mobile, pair                            bool          // it moves once; it reserves the next port
	old                                     turn.FiveTuple
	begun                                   time.Duration
	rate                                    uint64 // packets a second
}

type stage int

const (
	allocating stage = iota
	permitting
	binding
	running
)

const (
	firstChannel = turn.ChannelFirst
	firstPort    = 49152
	never        = time.Duration(1<<63 - 1)
)

var (
	server4, server6 = netip.MustParseAddrPort("192.0.2.10:3478"), netip.MustParseAddrPort("[2001:db8::10]:3478")
	relays4          = []netip.Addr{netip.MustParseAddr("192.0.2.10"), netip.MustParseAddr("192.0.2.11")}
	relays6          = []netip.Addr{netip.MustParseAddr("2001:db8::10"), netip.MustParseAddr("2001:db8::11")}
)

// invite makes a call that comes now, nil where there is no address for it.
func (c *Calls) invite() *call {
	k := &call{at: c.arrival, user: c.user(), path: turn.PathKernel, vanishes: c.rng.IntN(4) == 0, begun: c.arrival, rate: 25 + c.rng.Uint64N(50)}
	k.end = c.arrival + briefest + time.Duration(c.rng.ExpFloat64()*float64(duration-briefest))
	over6 := c.rng.IntN(4) == 0
	k.tuple = turn.FiveTuple{Server: server4, Protocol: turn.UDP}
	if over6 {
		k.tuple.Server = server6
	}
	switch n := c.rng.IntN(100); {
	case n < 10:
		k.tuple.Protocol = turn.TLS
	case n < 18:
		k.tuple.Protocol = turn.TCP
	case n < 20:
		k.tuple.Protocol = turn.DTLS
	}
	if k.tuple.Protocol != turn.UDP || c.rng.IntN(10) == 0 {
		k.path = turn.PathUserspace
	}
	k.tuple.Client = netip.AddrPortFrom(c.client(over6), uint16(1024+c.rng.IntN(64_000)))
	family := c.rng.IntN(20) // of the relayed address: IPv4, IPv6, both
	if family != 0 {
		k.relay = append(k.relay, c.relayed(relays4))
	}
	if family < 3 {
		k.relay = append(k.relay, c.relayed(relays6))
	}
	for _, r := range k.relay {
		if !r.IsValid() {
			return nil
		}
	}
	for range 1 + c.rng.IntN(3) {
		if p := c.peer(k.relay[c.rng.IntN(len(k.relay))].Addr().Is6()); !slices.Contains(k.peers, p) {
			k.peers = append(k.peers, p)
		}
	}
	k.mobile, k.pair = c.rng.IntN(32) == 0, c.rng.IntN(64) == 0
	if c.rng.IntN(10) > 0 {
		k.bound = min(1+c.rng.IntN(5)/4, len(k.peers))
	}
	return k
}

// skewed draws below n, small numbers more often.
func (c *Calls) skewed(n int) uint32 {
	f := c.rng.Float64()
	return uint32(f * f * float64(n))
}

// user is one of the users, half of whom have credentials that last for a day.
func (c *Calls) user() string {
	n := c.skewed(c.options.Users)
	if n%2 == 0 {
		return fmt.Sprintf("user%d", n)
	}
	day := Start.Add(c.elapsed).Truncate(24 * time.Hour).Add(48 * time.Hour)
	return fmt.Sprintf("%d:user%d", day.Unix(), n)
}

func (c *Calls) client(over6 bool) netip.Addr { return nth(over6, 1, c.skewed(c.options.Clients)) }

func (c *Calls) peer(over6 bool) netip.AddrPort {
	return netip.AddrPortFrom(nth(over6, 2, c.skewed(c.options.Peers)), uint16(10_000+c.rng.IntN(50_000)))
}

// nth is an address of the ranges for benchmarks and documentation, those of clients and of peers apart.
func nth(v6 bool, side byte, n uint32) netip.Addr {
	if v6 {
		ip := [16]byte{0x20, 0x01, 0x0d, 0xb8, 0, side}
		binary.BigEndian.PutUint32(ip[8:], n)
		ip[15] = 1
		return netip.AddrFrom16(ip)
	}
	ip := [4]byte{198, 17 + side}
	binary.BigEndian.PutUint16(ip[2:], uint16(n))
	return netip.AddrFrom4(ip)
}

// relayed is a free relayed address, the invalid one where there is none.
func (c *Calls) relayed(on []netip.Addr) netip.AddrPort {
	for range 100 {
		a := netip.AddrPortFrom(on[c.rng.IntN(len(on))], uint16(firstPort+c.rng.IntN(1<<16-firstPort)))
		if c.state.ByRelayed(a) == nil {
			return a
		}
	}
	return netip.AddrPort{}
}

// soon is after what a client takes to ask for the next thing.
func (c *Calls) soon() time.Duration {
	return c.elapsed + 10*time.Millisecond + time.Duration(c.rng.IntN(int(150*time.Millisecond)))
}

// step has k, the first in the queue, do what is due.
func (c *Calls) step(k *call) {
	switch {
	case k.stage == allocating && c.state.ByFiveTuple(k.tuple) != nil, k.stage == allocating && c.taken(k.relay):
		k.at = never
	case k.stage == allocating:
		c.allocate(k)
	case c.state.Allocation(k.id) == nil: // its time was over while the server was away
		k.at = never
	case k.stage == permitting:
		c.permit(k)
		if k.stage, k.at = running, k.next(); k.bound > 0 {
			k.stage, k.at = binding, c.soon()
		}
	case k.stage == binding:
		c.bind(k)
		k.stage, k.at = running, k.next()
	default:
		c.run(k)
	}
	if k.at == never {
		heap.Pop(&c.waiting)
		return
	}
	heap.Fix(&c.waiting, 0)
}

func (c *Calls) taken(list []netip.AddrPort) bool {
	for _, r := range list {
		if c.state.ByRelayed(r) != nil {
			return true
		}
	}
	return false
}

func (c *Calls) allocate(k *call) {
	c.last++
	k.id = c.last
	tx := c.transaction()
	c.add(turn.AllocationCreated{
		Allocation: k.id, Tx: tx, FiveTuple: k.tuple, Relayed: k.relay, Transport: 17,
		Username: k.user, Realm: "example.org", Lifetime: uint32(lifetime / time.Second),
	})
	k.permit, k.bind, k.refresh, k.usage, k.move = never, never, c.elapsed+refreshAgain, c.elapsed+usageAgain, never
	if k.mobile {
		c.add(turn.TicketIssued{Allocation: k.id, Tx: tx})
		k.move = c.elapsed + (k.end-c.elapsed)/2
	}
	if next := netip.AddrPortFrom(k.relay[0].Addr(), k.relay[0].Port()+1); k.pair && next.Port()%2 == 1 && c.state.ByRelayed(next) == nil && c.state.Reserved(next) == nil {
		e := turn.ReservationMade{Allocation: k.id, Tx: tx, Relayed: next, Lifetime: 30}
		copy(e.Token[:], tx[4:])
		c.add(e)
	}
	k.stage, k.at = permitting, c.soon()
}

// run does one of what is due of a call that has all it wants.
func (c *Calls) run(k *call) {
	switch {
	case k.end <= c.elapsed:
		c.finish(k)
		return
	case k.permit <= c.elapsed:
		c.permit(k)
	case k.bind <= c.elapsed:
		c.bind(k)
	case k.refresh <= c.elapsed:
		c.add(turn.AllocationRefreshed{Allocation: k.id, Tx: c.transaction(), Lifetime: uint32(lifetime / time.Second)})
		k.refresh = c.elapsed + refreshAgain
	case k.usage <= c.elapsed:
		c.use(k)
		k.usage = c.elapsed + usageAgain
	case k.move <= c.elapsed:
		c.move(k)
	}
	k.at = k.next()
}

// next is when the next thing of a running call is due.
func (k *call) next() time.Duration { return min(k.permit, k.bind, k.refresh, k.usage, k.move, k.end) }

// move has the client of a mobile call come from elsewhere, and a second later send from there.
func (c *Calls) move(k *call) {
	if k.old.Client.IsValid() {
		c.add(turn.FiveTupleLeft{Allocation: k.id, FiveTuple: k.old, Reason: turn.ReasonMoved})
		k.move = never
		return
	}
	to := k.tuple
	to.Client = netip.AddrPortFrom(c.client(to.Client.Addr().Is6()), uint16(1024+c.rng.IntN(64_000)))
	if c.state.ByFiveTuple(to) != nil {
		k.move = never
		return
	}
	tx := c.transaction()
	c.add(turn.AllocationMoved{Allocation: k.id, Tx: tx, FiveTuple: to, Ticket: 2})
	c.add(turn.AllocationRefreshed{Allocation: k.id, Tx: tx, Lifetime: uint32(lifetime / time.Second)})
	k.old, k.tuple, k.move = k.tuple, to, c.elapsed+time.Second
}

// permit installs the permissions, all by one request.
func (c *Calls) permit(k *call) {
	tx := c.transaction()
	for i, p := range k.peers {
		if k.stage != running || i == 0 { // later only the peer in use
			c.add(turn.PermissionInstalled{Allocation: k.id, Tx: tx, Peer: p.Addr()})
		}
	}
	k.permit = c.elapsed + permitAgain
}

func (c *Calls) bind(k *call) {
	for i, p := range k.peers[:k.bound] {
		c.add(turn.ChannelBound{Allocation: k.id, Tx: c.transaction(), Channel: firstChannel + turn.ChannelNumber(i), Peer: p})
	}
	k.bind = c.elapsed + bindAgain
}

// use records what was relayed so far.
func (c *Calls) use(k *call) {
	n := uint64((c.elapsed - k.begun).Seconds() * float64(k.rate))
	e := turn.UsageRecorded{
		Allocation: k.id, Path: turn.PathUserspace,
		ToPeer: turn.Count{Packets: n, Bytes: 160 * n}, ToClient: turn.Count{Packets: n + n/50, Bytes: 172 * n},
	}
	if k.bound > 0 {
		e.Channel, e.Peer, e.Path = firstChannel, k.peers[0], k.path
	}
	c.add(e)
}

// finish ends a call: its client says so, or is not seen again.
func (c *Calls) finish(k *call) {
	k.at = never
	c.use(k)
	switch {
	case k.tuple.Protocol != turn.UDP && k.tuple.Protocol != turn.DTLS:
		c.add(turn.AllocationDeleted{Allocation: k.id, Reason: turn.ReasonStreamClosed})
	case !k.vanishes:
		c.add(turn.AllocationDeleted{Allocation: k.id, Tx: c.transaction(), Reason: turn.ReasonClient})
	}
}

func (c *Calls) transaction() (t turn.TransactionID) {
	c.tx++
	binary.BigEndian.PutUint64(t[4:], c.tx*0x9e3779b97f4a7c15)
	return t
}
