package audit

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"turnstone/turn"
)

// traffic makes records with events of every kind that rows are made of, each of which fits the state.
type traffic struct {
	rng    *rand.Rand
	state  *turn.State
	moment turn.Moment
	last   turn.AllocationID
	most   int // allocations at a time
	gone   []turn.AllocationID
}

var relay4, relay6 = netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")

func newTraffic(seed uint64, most int) *traffic {
	return &traffic{
		rng: rand.New(rand.NewPCG(seed, 2)), state: turn.NewState(), most: most,
		moment: turn.Moment{Boot: turn.BootID{1}, Uptime: time.Hour, Wall: 1_700_000_000e9},
	}
}

// record is the next one, of some events.
func (t *traffic) record() turn.Record {
	t.moment.Uptime += time.Duration(t.rng.IntN(40e9))
	t.moment.Wall += int64(t.rng.IntN(40e9))
	if t.rng.IntN(150) == 0 {
		t.moment.Boot = turn.BootID{byte(t.rng.Uint32()), 2}
		t.moment.Uptime = time.Duration(t.rng.IntN(1e9))
		t.moment.Wall += int64(t.rng.IntN(600e9)) - 100e9
	}
	r := turn.Record{First: t.state.Seq() + 1, Moment: t.moment}
	t.state.Begin(t.moment)
	add := func(e turn.Event) {
		if err := t.state.Apply(e); err != nil {
			panic(err)
		}
		r.Events = append(r.Events, e)
	}
	if r.First == 1 {
		add(turn.EpochBegan{Log: turn.LogID{7}, Epoch: 1})
	}
	for _, e := range turn.Expire(t.state, t.moment, t.rng.IntN(4)) {
		add(e)
	}
	for n := 1 + t.rng.IntN(6); n > 0; {
		if e := t.event(); e != nil {
			add(e)
			n--
		}
	}
	return r
}

func (t *traffic) tx() (id turn.TransactionID) {
	for i := range id {
		id[i] = byte(t.rng.Uint32())
	}
	return id
}

func (t *traffic) peer() netip.AddrPort {
	port := uint16(4000 + t.rng.IntN(2))
	switch t.rng.IntN(6) {
	case 0:
		return netip.AddrPortFrom(netip.MustParseAddr("2001:db8:9::9"), port)
	case 1:
		return netip.AddrPortFrom(relay4, port) // of this relay
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(t.rng.IntN(6))}), port)
}

func (t *traffic) tuple(p turn.Protocol) turn.FiveTuple {
	client := netip.AddrFrom4([4]byte{198, 51, byte(100 + t.rng.IntN(2)), byte(t.rng.IntN(20))})
	if t.rng.IntN(4) == 0 {
		client = netip.MustParseAddr(fmt.Sprintf("2001:db8:%x::%x", t.rng.IntN(3), t.rng.IntN(5)))
	}
	return turn.FiveTuple{
		Client: netip.AddrPortFrom(client, uint16(1024+t.rng.IntN(60000))), Server: netip.AddrPortFrom(relay4, 3478), Protocol: p,
	}
}

// some is one of the allocations, nil where there are none.
func (t *traffic) some() *turn.Allocation {
	if t.state.Len() == 0 {
		return nil
	}
	n := t.rng.IntN(t.state.Len())
	for a := range t.state.Allocations() {
		if n--; n < 0 {
			return a
		}
	}
	return nil
}

// event is one that fits, or nil.
func (t *traffic) event() turn.Event {
	a := t.some()
	roll := t.rng.IntN(120)
	switch {
	case a == nil || t.state.Len() < t.most && roll < 20:
		return t.created()
	case roll < 8:
		t.gone = append(t.gone, a.ID)
		if roll < 3 {
			return turn.AllocationExpired{Allocation: a.ID}
		}
		return turn.AllocationDeleted{Allocation: a.ID, Tx: t.tx(), Reason: turn.Reason(1 + t.rng.IntN(10))}
	case roll < 14:
		return turn.AllocationRefreshed{Allocation: a.ID, Tx: t.tx(), Lifetime: uint32(60 + t.rng.IntN(900))}
	case roll < 18:
		return t.others(a)
	case roll < 20:
		return t.relays()
	case len(a.Relayed) == 2 && roll < 30:
		return t.oneRelayed(a)
	case a.TCP() && roll < 80:
		return t.connection(a)
	case roll < 36 && !a.TCP():
		return t.mobile(a)
	case roll < 50:
		return turn.PermissionInstalled{Allocation: a.ID, Tx: t.tx(), Peer: t.peer().Addr()}
	case roll < 80 && !a.TCP():
		return t.channel(a)
	case roll < 90 && len(a.Permissions) > 0:
		p := a.Permissions[t.rng.IntN(len(a.Permissions))].Peer
		if roll < 85 {
			return turn.PermissionRevoked{Allocation: a.ID, Peer: p, Reason: turn.ReasonPolicy}
		}
		return turn.PermissionExpired{Allocation: a.ID, Peer: p}
	case roll < 100 && len(a.Channels) > 0:
		n := a.Channels[t.rng.IntN(len(a.Channels))].Number
		if roll < 95 {
			return turn.ChannelRevoked{Allocation: a.ID, Channel: n, Reason: turn.ReasonPolicy}
		}
		return turn.ChannelExpired{Allocation: a.ID, Channel: n}
	}
	return t.usage(a)
}

func (t *traffic) created() turn.Event {
	t.last++
	port := uint16(50000 + t.last%10000)
	e := turn.AllocationCreated{
		Allocation: t.last, Tx: t.tx(), FiveTuple: t.tuple(turn.UDP), Relayed: []netip.AddrPort{netip.AddrPortFrom(relay4, port)},
		Transport: 17, Username: fmt.Sprintf("user%d", t.rng.IntN(6)), Realm: fmt.Sprintf("realm%d", t.rng.IntN(2)), Lifetime: uint32(60 + t.rng.IntN(600)),
	}
	switch t.rng.IntN(5) {
	case 0:
		e.Relayed = append(e.Relayed, netip.AddrPortFrom(relay6, port))
	case 1:
		e.Transport, e.FiveTuple.Protocol = 6, turn.TCP
	case 2:
		e.Username = fmt.Sprintf("1800000000:user%d", t.rng.IntN(6))
	}
	if t.state.ByFiveTuple(e.FiveTuple) != nil || t.state.ByRelayed(e.Relayed[0]) != nil {
		t.last--
		return nil
	}
	return e
}

// others are events that are about no grant.
func (t *traffic) others(a *turn.Allocation) turn.Event {
	switch t.rng.IntN(6) {
	case 0:
		return turn.AttemptsRefused{Since: t.moment.Wall - int64(time.Minute), Others: t.rng.Uint64N(2) * 5, Attempts: []turn.Attempt{
			{Client: a.FiveTuple.Client.Addr(), Username: a.Username, Realm: a.Realm, Method: 8, Code: 403, Peer: t.peer().Addr(), Count: 3},
			{Client: a.FiveTuple.Client.Addr(), Username: "mallory", Method: 3, Code: 401, Count: 7},
		}}
	case 1:
		return turn.RefusalsCounted{Refusals: []turn.Refusal{{Client: a.FiveTuple.Client.Addr(), Username: a.Username, Method: 3, Code: 486, Count: 1}}}
	case 2:
		return turn.ClientRedirected{FiveTuple: t.tuple(turn.UDP), Tx: t.tx(), Username: a.Username, Realm: a.Realm, Servers: []netip.AddrPort{t.peer()}}
	case 3:
		return turn.TokenAccepted{Allocation: a.ID, Tx: t.tx(), Token: turn.SealedToken{1, 2}}
	case 4:
		return turn.EpochBegan{Log: turn.LogID{7}, Epoch: t.state.Epoch() + 1}
	}
	return turn.ServerStarted{Version: "test", PID: 1}
}

func (t *traffic) relays() turn.Event {
	return turn.RelaysChanged{Relays: []turn.Relay{
		{IP: relay4, External: netip.AddrFrom4([4]byte{198, 51, 100, byte(200 + t.rng.IntN(3))})}, {IP: relay6, External: relay6},
	}}
}

func (t *traffic) oneRelayed(a *turn.Allocation) turn.Event {
	r := a.Relayed[t.rng.IntN(2)]
	switch t.rng.IntN(4) {
	case 0:
		return turn.RelayedDeleted{Allocation: a.ID, Tx: t.tx(), Relayed: r, Reason: turn.ReasonClient}
	case 1:
		return turn.RelayedExpired{Allocation: a.ID, Relayed: r}
	}
	return turn.RelayedRefreshed{Allocation: a.ID, Tx: t.tx(), Relayed: r, Lifetime: uint32(60 + t.rng.IntN(900))}
}

func (t *traffic) connection(a *turn.Allocation) turn.Event {
	if n := len(a.Connections); n > 0 && t.rng.IntN(3) > 0 {
		c := a.Connections[t.rng.IntN(n)]
		if c.Client == (turn.FiveTuple{}) && t.rng.IntN(2) == 0 {
			return turn.ConnectionBound{Allocation: a.ID, Tx: t.tx(), Connection: c.ID, Client: t.tuple(turn.TCP)}
		}
		return turn.PeerDisconnected{Allocation: a.ID, Connection: c.ID, Reason: turn.ReasonPeerClosed}
	}
	peer := t.peer()
	for _, c := range a.Connections {
		if c.Peer == peer {
			return nil
		}
	}
	return turn.PeerConnected{Allocation: a.ID, Tx: t.tx(), Connection: turn.ConnectionID(1 + t.rng.Uint32N(1<<31)), Peer: peer}
}

func (t *traffic) mobile(a *turn.Allocation) turn.Event {
	if a.Ticket == 0 {
		if t.rng.IntN(4) == 0 {
			return turn.TicketIssued{Allocation: a.ID, Tx: t.tx()}
		}
		return nil
	}
	for ft := range a.FiveTuples() {
		if t.rng.IntN(3) == 0 {
			reason := turn.ReasonStreamClosed
			if a.Next != (turn.FiveTuple{}) && ft == a.FiveTuple {
				reason = turn.ReasonMoved
			}
			return turn.FiveTupleLeft{Allocation: a.ID, FiveTuple: ft, Reason: reason}
		}
	}
	e := turn.AllocationMoved{Allocation: a.ID, Tx: t.tx(), FiveTuple: t.tuple(turn.UDP), Ticket: a.Ticket + 1}
	if t.state.ByFiveTuple(e.FiveTuple) != nil {
		return nil
	}
	return e
}

func (t *traffic) channel(a *turn.Allocation) turn.Event {
	n, peer := turn.ChannelNumber(0x4000+t.rng.IntN(4)), t.peer()
	if c := a.Channel(n); c != nil && t.rng.IntN(2) == 0 {
		peer = c.Peer
	}
	if c := a.Channel(n); c != nil && c.Peer != peer {
		return nil
	}
	if c := a.ChannelTo(peer); c != nil && c.Number != n {
		return nil
	}
	return turn.ChannelBound{Allocation: a.ID, Tx: t.tx(), Channel: n, Peer: peer}
}

// usage is that of a, or of an allocation that has ended.
func (t *traffic) usage(a *turn.Allocation) turn.Event {
	n := t.rng.Uint64N(1 << 40)
	e := turn.UsageRecorded{
		Allocation: a.ID, Path: turn.Path(1 + t.rng.IntN(2)), ToPeer: turn.Count{Packets: n, Bytes: n * 160}, ToClient: turn.Count{Packets: n / 2},
	}
	if len(t.gone) > 0 && t.rng.IntN(4) == 0 {
		e.Allocation = t.gone[t.rng.IntN(len(t.gone))]
		t.gone = t.gone[max(0, len(t.gone)-4):]
	}
	switch {
	case a.TCP():
		e.Peer = t.peer()
	case t.rng.IntN(3) > 0:
		e.Channel, e.Peer = turn.ChannelNumber(0x4000+t.rng.IntN(4)), t.peer()
	}
	return e
}
