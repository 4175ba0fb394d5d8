package store

import (
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"turnstone/turn"
)

func digest(n byte) (d [32]byte) {
	for i := range d {
		d[i] = n + byte(i)
	}
	return d
}

var (
	addr4 = netip.MustParseAddr("192.0.2.7")
	addr6 = netip.MustParseAddr("2001:db8::7")
)

// sample is an event whose stored form is kept for ever.
type sample struct {
	name  string
	event turn.Event
}

// goldenSamples is how many of the samples, from the first, the golden records hold. New ones come behind them.
const goldenSamples = 28

// samples has every kind, and the forms of it that differ.
var samples = []sample{
	{"AllocationCreated", created(1)},
	{"AllocationCreated/dual", turn.AllocationCreated{
		Allocation: 70000, Tx: tx(2), Transport: 17, Username: "1700000000:björn", Realm: "example.org", Lifetime: 3600,
		FiveTuple: turn.FiveTuple{Client: netip.AddrPortFrom(addr6, 1), Server: netip.AddrPortFrom(addr6, 65535), Protocol: turn.TLS},
		Relayed:   []netip.AddrPort{netip.AddrPortFrom(addr4, 49152), netip.AddrPortFrom(addr6, 49153)},
	}},
	{"AllocationRefreshed", turn.AllocationRefreshed{Allocation: 23, Tx: tx(3), Lifetime: 600}},
	{"AllocationDeleted", turn.AllocationDeleted{Allocation: 24, Tx: tx(4), Reason: turn.ReasonClient}},
	{"AllocationExpired", turn.AllocationExpired{Allocation: 256}},
	{"PermissionInstalled", turn.PermissionInstalled{Allocation: 1, Tx: tx(5), Peer: addr4}},
	{"PermissionInstalled/ipv6", turn.PermissionInstalled{Allocation: 1, Tx: tx(5), Peer: addr6}},
	{"PermissionExpired", turn.PermissionExpired{Allocation: 1, Peer: addr4}},
	{"PermissionRevoked", turn.PermissionRevoked{Allocation: 1, Peer: addr6, Reason: turn.ReasonPolicy}},
	{"ChannelBound", bound(1, 0x4000)},
	{"ChannelBound/ipv6", turn.ChannelBound{Allocation: 1, Tx: tx(6), Channel: 0x7FFF, Peer: netip.AddrPortFrom(addr6, 5000)}},
	{"ChannelExpired", turn.ChannelExpired{Allocation: 1, Channel: 0x4000}},
	{"ChannelRevoked", turn.ChannelRevoked{Allocation: 1, Channel: 0x4FFF, Reason: turn.ReasonPolicy}},
	{"UsageRecorded", turn.UsageRecorded{
		Allocation: 1, Channel: 0x4000, Peer: netip.AddrPortFrom(addr4, 4000), Path: turn.PathKernel,
		ToPeer: turn.Count{Packets: 1, Bytes: 160}, ToClient: turn.Count{Packets: math.MaxUint64, Bytes: 1 << 32},
	}},
	{"UsageRecorded/indications", turn.UsageRecorded{Allocation: 1, Path: turn.PathUserspace}},
	{"RefusalsCounted", turn.RefusalsCounted{Others: 9, Refusals: []turn.Refusal{{Client: addr4, Username: "alice", Method: 3, Code: 486, Count: 2}}}},
	{"EpochBegan", turn.EpochBegan{Log: turn.LogID{1, 2, 3}, Epoch: 1}},
	{"ServerStarted", turn.ServerStarted{Version: "v0.1.0", PID: 4711}},
	{"ServerStopped", turn.ServerStopped{Signal: "terminated"}},
	{"ConfigChanged", turn.ConfigChanged{Digest: digest(1)}},
	{"ClockWentBack", turn.ClockWentBack{Nanoseconds: 1_500_000_000}},
	{"LogRecovered", turn.LogRecovered{Cause: "append at 7: input/output error"}},
	{"SegmentSealed", turn.SegmentSealed{Segment: 3, First: 1000, Last: 1999, Chain: digest(2), Root: digest(3)}},
	{"SegmentRetired", turn.SegmentRetired{Segment: 3}},
	{"SnapshotTaken", turn.SnapshotTaken{At: 1999, Digest: digest(4), Size: 262145}},
	{"ProgramAttached", turn.ProgramAttached{Interface: "eth0", Mode: "native", Layout: digest(5)}},
	{"ProgramReplaced", turn.ProgramReplaced{Interface: "eth0", From: digest(5), To: digest(6)}},
	{"DriftRepaired", turn.DriftRepaired{What: "index", Added: 1, Changed: 2, Removed: 3}},
	// Here the golden records end (see goldenSamples).
	{"ReservationMade", turn.ReservationMade{
		Allocation: 1, Tx: tx(7), Relayed: netip.AddrPortFrom(addr4, 49153), Token: turn.ReservationToken{1, 2, 3, 4, 5, 6, 7, 8}, Lifetime: 30,
	}},
	{"ReservationExpired", turn.ReservationExpired{Relayed: netip.AddrPortFrom(addr6, 49153)}},
	{"RelayedRefreshed", turn.RelayedRefreshed{Allocation: 2, Tx: tx(8), Relayed: netip.AddrPortFrom(addr6, 49152), Lifetime: 900}},
	{"RelayedDeleted", turn.RelayedDeleted{Allocation: 2, Tx: tx(9), Relayed: netip.AddrPortFrom(addr4, 49152), Reason: turn.ReasonClient}},
	{"RelayedExpired", turn.RelayedExpired{Allocation: 2, Relayed: netip.AddrPortFrom(addr6, 49152)}},
	{"FamilyRefused", turn.FamilyRefused{Allocation: 2, Tx: tx(2), Family: 2, Code: 508}},
	{"TokenAccepted", turn.TokenAccepted{Allocation: 2, Tx: tx(3), Token: turn.SealedToken{0, 12, 1, 2, 3, 4, 5}}},
	{"ClientRedirected", turn.ClientRedirected{
		FiveTuple: turn.FiveTuple{Client: netip.AddrPortFrom(addr4, 5000), Server: netip.AddrPortFrom(addr4, 3478), Protocol: turn.UDP},
		Tx:        tx(10), Username: "alice", Realm: "example.org",
		Servers: []netip.AddrPort{netip.AddrPortFrom(addr4, 3478), netip.AddrPortFrom(addr6, 3478)},
	}},
	{"PeerConnected", turn.PeerConnected{Allocation: 3, Tx: tx(10), Connection: 0xdeadbeef, Peer: netip.AddrPortFrom(addr4, 80)}},
	{"ConnectionBound", turn.ConnectionBound{
		Allocation: 3, Tx: tx(11), Connection: 0xdeadbeef,
		Client: turn.FiveTuple{Client: netip.AddrPortFrom(addr6, 2), Server: netip.AddrPortFrom(addr6, 3478), Protocol: turn.TCP},
	}},
	{"PeerDisconnected", turn.PeerDisconnected{Allocation: 3, Connection: 1, Reason: turn.ReasonPeerClosed}},
	{"TicketIssued", turn.TicketIssued{Allocation: 2, Tx: tx(11)}},
	{"AllocationMoved", turn.AllocationMoved{
		Allocation: 2, Tx: tx(12), Ticket: 2,
		FiveTuple: turn.FiveTuple{Client: netip.AddrPortFrom(addr6, 5001), Server: netip.AddrPortFrom(addr6, 3478), Protocol: turn.TLS},
	}},
	{"FiveTupleLeft", turn.FiveTupleLeft{
		Allocation: 2, Reason: turn.ReasonMoved,
		FiveTuple: turn.FiveTuple{Client: netip.AddrPortFrom(addr4, 5000), Server: netip.AddrPortFrom(addr4, 3478), Protocol: turn.UDP},
	}},
	{"ReservationRevoked", turn.ReservationRevoked{Relayed: netip.AddrPortFrom(addr4, 49153), Reason: turn.ReasonUserRemoved}},
	{"RollbackFound", turn.RollbackFound{Kept: 1000, Size: 1999, Root: digest(7), Epoch: 1}},
	{"RelaysChanged", turn.RelaysChanged{Relays: []turn.Relay{{IP: addr4, External: netip.MustParseAddr("198.51.100.7")}, {IP: addr6, External: addr6}}}},
	{"AttemptsRefused", turn.AttemptsRefused{Since: 1_700_000_000_000_000_000, Others: 9, Attempts: []turn.Attempt{
		{Client: addr4, Username: "alice", Realm: "example.org", Method: 8, Code: 403, Peer: addr6, Count: 2},
		{Client: addr6, Method: 3, Code: 401, Count: 70000},
	}}},
	{"SegmentForgotten", turn.SegmentForgotten{Segment: 3, First: 1000, Last: 1999, By: "uid 0"}},
	{"SegmentClosed", turn.SegmentClosed{Segment: 4}},
	{"SliceTaken", turn.SliceTaken{Source: turn.LogID{9, 8}, Epoch: 2, Allocation: 17, Size: 4711, Root: digest(7), Checkpoint: "turnstone/09\n4711\n"}},
	{"SliceTaken/anonymised", turn.SliceTaken{Source: turn.LogID{9, 8}, Epoch: 1, Allocation: 17, Anonymised: true}},
	{"OriginNoted", turn.OriginNoted{Seq: 1000, Proof: [][32]byte{digest(8), digest(9)}}},
	{"OriginNoted/sealed", turn.OriginNoted{Seq: 1001, Proof: [][32]byte{digest(8)}, Stored: []byte{0x82, 1, 0x41, 2}, Key: []byte{1, 2, 3}}},
	{"OriginNoted/left-out", turn.OriginNoted{Seq: 1002}},
	{"OperatorActed", turn.OperatorActed{UID: 1000, PID: 4711, What: "close allocation 17"}},
	{"SegmentArchived", turn.SegmentArchived{Segment: 3, Size: 4711, Digest: digest(7)}},
	{"ArchiveRemoved", turn.ArchiveRemoved{Segment: 3}},
	{"SettingsChanged", turn.SettingsChanged{Changes: []turn.SettingChange{{Setting: "limits.max-allocations", Before: "0", After: "100"}}}},
	{"UserBanned", turn.UserBanned{Realm: "example.org", Username: "alice", Seconds: 86400}},
	{"UserBanned/without-end", turn.UserBanned{Realm: "example.org", Username: "björn"}},
	{"UserUnbanned", turn.UserUnbanned{Realm: "example.org", Username: "alice"}},
}

// traffic makes records that a log could hold: each event fits the state that those before it leave.
type traffic struct {
	rng    *rand.Rand
	state  *turn.State
	moment turn.Moment
	live   []turn.AllocationID
	last   int // allocation
	most   int // allocations alive at a time
}

func newTraffic(seed uint64, s *turn.State, most int) *traffic {
	t := &traffic{rng: rand.New(rand.NewPCG(seed, 1)), state: s, moment: at(0), most: most}
	if s.Seq() > 0 {
		t.moment = s.Moment()
	}
	for a := range s.Allocations() {
		t.live = append(t.live, a.ID)
	}
	t.last = int(s.Image().LastAllocation)
	return t
}

// record is the next record, of at most most events, already folded into the state.
func (t *traffic) record(most int) turn.Record {
	step := int64(1 + t.rng.IntN(20_000_000))
	t.moment.Uptime, t.moment.Wall = t.moment.Uptime+time.Duration(step), t.moment.Wall+step
	if t.rng.IntN(200) == 0 { // another boot, now and then with a clock that went back
		t.moment.Boot = turn.BootID{byte(t.rng.Uint32()), byte(t.rng.Uint32()), 1}
		t.moment.Uptime = time.Duration(int64(t.rng.IntN(1e9)))
		t.moment.Wall += int64(t.rng.IntN(100e9)) - 10e9
	}
	r := turn.Record{First: t.state.Seq() + 1, Moment: t.moment}
	t.state.Begin(t.moment)
	for n := 1 + t.rng.IntN(most); len(r.Events) < n; {
		e := t.event()
		if e == nil {
			continue
		}
		if err := t.state.Apply(e); err != nil {
			panic(err)
		}
		r.Events = append(r.Events, e)
	}
	return r
}

// event is one that fits, or nil.
func (t *traffic) event() turn.Event {
	if t.state.Seq() == 0 {
		return turn.EpochBegan{Log: turn.LogID{7}, Epoch: 1}
	}
	if held := t.state.Reservations(); len(held) > 0 && t.rng.IntN(10) == 0 {
		if t.rng.IntN(4) == 0 {
			return turn.ReservationRevoked{Relayed: held[len(held)-1].Relayed, Reason: turn.ReasonUserRemoved}
		}
		return turn.ReservationExpired{Relayed: held[0].Relayed}
	}
	roll := t.rng.IntN(100)
	if len(t.live) == 0 || roll < 20 && len(t.live) < t.most {
		t.last++
		t.live = append(t.live, turn.AllocationID(t.last))
		e := created(t.last)
		e.Username = fmt.Sprintf("user%d", t.last%50)
		if t.rng.IntN(10) == 0 {
			e.Transport, e.FiveTuple.Protocol = 6, turn.TCP
		}
		if roll < 8 {
			e.Relayed = append(e.Relayed, netip.AddrPortFrom(addr6, uint16(t.last)))
		}
		return e
	}
	i := t.rng.IntN(len(t.live))
	a := t.state.Allocation(t.live[i])
	id := a.ID
	if len(a.Relayed) == 2 && t.rng.IntN(8) == 0 {
		return t.oneRelayed(a)
	}
	if a.TCP() && t.rng.IntN(3) == 0 {
		return t.connection(a)
	}
	if t.rng.IntN(10) == 0 {
		return t.mobile(a)
	}
	switch {
	case roll < 30:
		return turn.AllocationRefreshed{Allocation: id, Tx: t.tx(), Lifetime: uint32(600 + t.rng.IntN(3000))}
	case roll < 42:
		t.live[i] = t.live[len(t.live)-1]
		t.live = t.live[:len(t.live)-1]
		if roll&1 == 0 {
			return turn.AllocationExpired{Allocation: id}
		}
		return turn.AllocationDeleted{Allocation: id, Tx: t.tx(), Reason: turn.Reason(1 + t.rng.IntN(9))}
	case roll < 55:
		return turn.PermissionInstalled{Allocation: id, Tx: t.tx(), Peer: t.peer().Addr()}
	case roll < 80:
		n := turn.ChannelNumber(0x4000 + t.rng.IntN(4))
		e := bound(int(id), n)
		e.Tx = t.tx()
		return e
	case roll == 80:
		return t.reserved(id)
	case roll == 81:
		token := make(turn.SealedToken, 1+t.rng.IntN(90))
		for i := range token {
			token[i] = byte(t.rng.Uint32())
		}
		return turn.TokenAccepted{Allocation: id, Tx: t.tx(), Token: token}
	case roll < 84 && len(a.Channels) > 0:
		c := a.Channels[t.rng.IntN(len(a.Channels))]
		return turn.ChannelExpired{Allocation: id, Channel: c.Number}
	case roll < 87 && len(a.Permissions) > 0:
		p := a.Permissions[t.rng.IntN(len(a.Permissions))]
		return turn.PermissionExpired{Allocation: id, Peer: p.Peer}
	case roll < 97:
		n := t.rng.Uint64N(1 << 40)
		return turn.UsageRecorded{
			Allocation: id, Channel: 0x4000, Peer: t.peer(), Path: turn.PathUserspace,
			ToPeer: turn.Count{Packets: n, Bytes: n * 160}, ToClient: turn.Count{Packets: n / 2, Bytes: n * 80},
		}
	case roll == 97:
		return turn.ServerStarted{Version: strings.Repeat("v", t.rng.IntN(40)), PID: t.rng.Uint32()}
	case roll == 98:
		n := t.rng.Uint32()
		if n&1 == 0 {
			return t.banned(n >> 1)
		}
		return turn.ConfigChanged{Digest: digest(byte(n))}
	}
	if t.rng.IntN(2) == 0 {
		return turn.ClientRedirected{FiveTuple: a.FiveTuple, Tx: t.tx(), Username: a.Username, Servers: []netip.AddrPort{t.peer()}}
	}
	if t.rng.IntN(2) == 0 {
		return turn.RelaysChanged{Relays: []turn.Relay{{IP: addr4, External: t.peer().Addr()}}}
	}
	return turn.AttemptsRefused{Others: t.rng.Uint64N(100)}
}

// banned is about a user who is banned, or has been: n says who.
func (t *traffic) banned(n uint32) turn.Event {
	if list := t.state.Bans(); len(list) > 0 && n&1 == 0 {
		b := list[int(n>>1)%len(list)]
		return turn.UserUnbanned{Realm: b.Realm, Username: b.Username}
	}
	return turn.UserBanned{Realm: "example.org", Username: fmt.Sprintf("user%d", n>>1%50), Seconds: n >> 7 % 3 * 3600}
}

// oneRelayed is about one of the two relayed addresses of an allocation.
func (t *traffic) oneRelayed(a *turn.Allocation) turn.Event {
	r := a.Relayed[t.rng.IntN(2)]
	switch t.rng.IntN(8) {
	case 0:
		return turn.RelayedDeleted{Allocation: a.ID, Tx: t.tx(), Relayed: r, Reason: turn.ReasonClient}
	case 1:
		return turn.RelayedExpired{Allocation: a.ID, Relayed: r}
	case 2:
		return turn.FamilyRefused{Allocation: a.ID, Tx: t.tx(), Family: 2, Code: 508}
	}
	return turn.RelayedRefreshed{Allocation: a.ID, Tx: t.tx(), Relayed: r, Lifetime: uint32(600 + t.rng.IntN(3000))}
}

// connection is about one of the connections of an allocation, or one more.
func (t *traffic) connection(a *turn.Allocation) turn.Event {
	if n := len(a.Connections); n > 0 && t.rng.IntN(2) == 0 {
		c := a.Connections[t.rng.IntN(n)]
		if c.Client == (turn.FiveTuple{}) && t.rng.IntN(2) == 0 {
			return turn.ConnectionBound{Allocation: a.ID, Tx: t.tx(), Connection: c.ID, Client: created(int(c.ID & 0xfff)).FiveTuple}
		}
		return turn.PeerDisconnected{Allocation: a.ID, Connection: c.ID, Reason: turn.ReasonPeerClosed}
	}
	return turn.PeerConnected{Allocation: a.ID, Tx: t.tx(), Connection: turn.ConnectionID(1 + t.rng.Uint32N(1<<31)), Peer: t.peer()}
}

// mobile is about where the client of an allocation is.
func (t *traffic) mobile(a *turn.Allocation) turn.Event {
	if a.Ticket == 0 {
		return turn.TicketIssued{Allocation: a.ID, Tx: t.tx()}
	}
	for ft := range a.FiveTuples() {
		if t.rng.IntN(4) == 0 {
			return turn.FiveTupleLeft{Allocation: a.ID, FiveTuple: ft, Reason: turn.ReasonStreamClosed}
		}
	}
	e := turn.AllocationMoved{Allocation: a.ID, Tx: t.tx(), FiveTuple: a.FiveTuple, Ticket: a.Ticket + 1}
	ip := [16]byte{0x20, 0x01, 0x0d, 0xb8}
	tx := t.tx()
	copy(ip[4:], tx[:])
	e.FiveTuple.Client = netip.AddrPortFrom(netip.AddrFrom16(ip), 5000)
	return e
}

// reserved is a reservation made by an allocation, of an address that is free, else nil.
func (t *traffic) reserved(id turn.AllocationID) turn.Event {
	e := turn.ReservationMade{
		Allocation: id, Tx: t.tx(), Relayed: netip.AddrPortFrom(addr6, uint16(t.rng.IntN(1<<16))),
		Lifetime: 30,
	}
	token := t.tx()
	copy(e.Token[:], token[:])
	if t.state.Reserved(e.Relayed) != nil || t.state.ByRelayed(e.Relayed) != nil {
		return nil
	}
	return e
}

func (t *traffic) tx() (id turn.TransactionID) {
	for i := range id {
		id[i] = byte(t.rng.Uint32())
	}
	return id
}

func (t *traffic) peer() netip.AddrPort {
	if t.rng.IntN(4) == 0 {
		return netip.AddrPortFrom(addr6, uint16(1+t.rng.IntN(3)))
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{203, 0, 113, byte(t.rng.IntN(5))}), 4000)
}
