package turn

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

const (
	peerA  = "203.0.113.5:4000"
	peerA2 = "203.0.113.5:4001" // another port of the same host
	peerB  = "203.0.113.6:4000"
	peerV6 = "[2001:db8:77::5]:4000"
)

func TestAllocate(t *testing.T) {
	own := addrPort("192.0.2.1:1")
	for _, tt := range []struct {
		name       string
		prepare    func(*core)
		attributes []stun.Setter
		code       int
		lifetime   int64
		v6         bool
	}{
		{"Default", nil, []stun.Setter{transport(17)}, 0, 600, false},
		{"NoTransport", nil, nil, 400, 0, false},
		{"TransportOfOtherLength", nil, []stun.Setter{set(stun.AttrRequestedTransport, 17)}, 400, 0, false},
		{"TCPOverUDP", nil, []stun.Setter{transport(6)}, 400, 0, false},
		{"TCPForbidden", func(c *core) { c.rules.NoConnections = true }, []stun.Setter{transport(6)}, 442, 0, false},
		{"SCTP", nil, []stun.Setter{transport(132)}, 442, 0, false},
		{"FirstOfDuplicates", nil, []stun.Setter{transport(17), transport(6)}, 0, 600, false},
		{"LaterDuplicateIsNotLookedAt", nil, []stun.Setter{transport(17), set(stun.AttrRequestedTransport)}, 0, 600, false},
		{"TransportBeforeFamily", nil, []stun.Setter{transport(132), family(9)}, 442, 0, false},
		{"LongLifetime", nil, []stun.Setter{transport(17), lifetime(1200)}, 0, 1200, false},
		{"LifetimeBelowDefault", nil, []stun.Setter{transport(17), lifetime(30)}, 0, 600, false},
		{"LifetimeZero", nil, []stun.Setter{transport(17), lifetime(0)}, 0, 600, false},
		{"LifetimeAtCap", nil, []stun.Setter{transport(17), lifetime(3600)}, 0, 3600, false},
		{"LifetimeAboveCap", nil, []stun.Setter{transport(17), lifetime(1<<32 - 1)}, 0, 3600, false},
		{"LifetimeOfOtherLength", nil, []stun.Setter{transport(17), set(stun.AttrLifetime, 1, 2)}, 400, 0, false},
		{"IPv4", nil, []stun.Setter{transport(17), family(1)}, 0, 600, false},
		{"IPv6", nil, []stun.Setter{transport(17), family(2)}, 0, 600, true},
		{"UnknownFamily", nil, []stun.Setter{transport(17), family(3)}, 440, 0, false},
		{"FamilyOfOtherLength", nil, []stun.Setter{transport(17), set(stun.AttrRequestedAddressFamily, 1)}, 400, 0, false},
		{"NoIPv6Here", func(c *core) { c.rules.Relays = c.rules.Relays[:1] }, []stun.Setter{transport(17), family(2)}, 440, 0, false},
		{"NoIPv4Here", func(c *core) { c.rules.Relays = c.rules.Relays[1:] }, []stun.Setter{transport(17)}, 440, 0, false},
		{"DontFragment", nil, []stun.Setter{transport(17), set(stun.AttrDontFragment)}, 0, 600, false},
		{"TokenOfNone", nil, []stun.Setter{transport(17), token(ReservationToken{1})}, 508, 0, false},
		{"TokenOfZeros", nil, []stun.Setter{transport(17), token(ReservationToken{})}, 508, 0, false},
		{"TokenTooShort", nil, []stun.Setter{transport(17), set(stun.AttrReservationToken, 1, 2, 3, 4, 5, 6, 7)}, 400, 0, false},
		{"TokenTooLong", nil, []stun.Setter{transport(17), set(stun.AttrReservationToken, 1, 2, 3, 4, 5, 6, 7, 8, 9)}, 400, 0, false},
		{"TokenAndEvenPort", nil, []stun.Setter{transport(17), token(ReservationToken{1}), evenPort(0)}, 400, 0, false},
		{"TokenAndAdditional", nil, []stun.Setter{transport(17), token(ReservationToken{1}), additional(2)}, 400, 0, false},
		{"FamilyAndAdditional", nil, []stun.Setter{transport(17), family(1), additional(2)}, 400, 0, false},
		{"UnknownFamilyAndAdditional", nil, []stun.Setter{transport(17), family(3), additional(2)}, 400, 0, false},
		{"AdditionalIPv4", nil, []stun.Setter{transport(17), additional(1)}, 400, 0, false},
		{"AdditionalUnknown", nil, []stun.Setter{transport(17), additional(3)}, 400, 0, false},
		{"AdditionalOfOtherLength", nil, []stun.Setter{transport(17), set(attrAdditionalAddressFamily, 2)}, 400, 0, false},
		{"PairAndAdditional", nil, []stun.Setter{transport(17), evenPort(0x80), additional(2)}, 400, 0, false},
		{"NeitherBinds", func(c *core) {
			c.rules.FirstPort, c.rules.LastPort = 50000, 50000
			c.taken = map[netip.AddrPort]bool{addrPort("192.0.2.1:50000"): true, addrPort("[2001:db8::1]:50000"): true}
		}, []stun.Setter{transport(17), additional(2)}, 508, 0, false},
		{"TokenAndFamily", nil, []stun.Setter{transport(17), token(ReservationToken{1}), family(1)}, 400, 0, false},
		{"EvenPort", nil, []stun.Setter{transport(17), evenPort(0)}, 0, 600, false},
		{"EvenPortWithReservation", nil, []stun.Setter{transport(17), evenPort(0x80)}, 0, 600, false},
		{"EvenPortOtherBits", nil, []stun.Setter{transport(17), evenPort(0x7F)}, 0, 600, false},
		{"TransportOtherBits", nil, []stun.Setter{set(stun.AttrRequestedTransport, 17, 0xFF, 0xFF, 0xFF)}, 0, 600, false},
		{"FamilyOtherBits", nil, []stun.Setter{transport(17), set(stun.AttrRequestedAddressFamily, 2, 0xFF, 0xFF, 0xFF)}, 0, 600, true},
		{"EvenPortOfOtherLength", nil, []stun.Setter{transport(17), set(stun.AttrEvenPort)}, 400, 0, false},
		{"AttributesOfOtherMethods", nil, []stun.Setter{transport(17), set(stun.AttrXORPeerAddress, 1), set(stun.AttrChannelNumber)}, 0, 600, false},
		{"MappedPeerOfAnotherMethod", nil, []stun.Setter{transport(17), peer(peerA)}, 0, 600, false},
		{"Again", func(c *core) { c.allocated(alice()) }, []stun.Setter{transport(17)}, 437, 0, false},
		{"AgainWithoutTransport", func(c *core) { c.allocated(alice()) }, nil, 437, 0, false},
		{"AgainByAnother", func(c *core) {
			c.allocated(newCaller("bob", "builder", alice().Client.String()))
		}, []stun.Setter{transport(17)}, 437, 0, false},
		{"Quota", func(c *core) {
			c.rules.MaxPerOwner = 1
			c.allocated(newCaller("alice", "wonderland", "198.51.100.1:6000"))
		}, []stun.Setter{transport(17)}, 486, 0, false},
		{"QuotaOfAnother", func(c *core) { c.rules.MaxPerOwner = 1; c.allocated(bob()) }, []stun.Setter{transport(17)}, 0, 600, false},
		{"QuotaAfterFamily", func(c *core) {
			c.rules.MaxPerOwner = 1
			c.allocated(newCaller("alice", "wonderland", "198.51.100.1:6000"))
		}, []stun.Setter{transport(17), family(3)}, 440, 0, false},
		{"Total", func(c *core) { c.rules.MaxAllocations = 1; c.allocated(bob()) }, []stun.Setter{transport(17)}, 508, 0, false},
		{"Draining", func(c *core) { c.rules.Draining = true }, []stun.Setter{transport(17)}, 508, 0, false},
		{"DiskLow", func(c *core) { c.rules.Storage = RoomLow }, []stun.Setter{transport(17)}, 508, 0, false},
		{"DiskFull", func(c *core) { c.rules.Storage = RoomNone }, []stun.Setter{transport(17)}, 508, 0, false},
		{"NoPortFree", func(c *core) {
			c.rules.FirstPort, c.rules.LastPort = 50000, 50000
			c.allocated(bob())
		}, []stun.Setter{transport(17)}, 508, 0, false},
		{"NoPortBinds", func(c *core) {
			c.rules.FirstPort, c.rules.LastPort = 50000, 50000
			c.taken = map[netip.AddrPort]bool{addrPort("192.0.2.1:50000"): true}
		}, []stun.Setter{transport(17)}, 508, 0, false},
		{"NoPairFree", func(c *core) { c.rules.FirstPort, c.rules.LastPort = 50001, 50002 }, []stun.Setter{transport(17), evenPort(0x80)}, 508, 0, false},
		{"OnePairFree", func(c *core) { c.rules.FirstPort, c.rules.LastPort = 50001, 50003 }, []stun.Setter{transport(17), evenPort(0x80)}, 0, 600, false},
		{"OnePortForAPair", func(c *core) { c.rules.FirstPort, c.rules.LastPort = 50000, 50000 }, []stun.Setter{transport(17), evenPort(0x80)}, 508, 0, false},
		{"NextPortDoesNotBind", func(c *core) {
			c.rules.FirstPort, c.rules.LastPort = 50000, 50001
			c.taken = map[netip.AddrPort]bool{addrPort("192.0.2.1:50001"): true}
		}, []stun.Setter{transport(17), evenPort(0x80)}, 508, 0, false},
		{"QuotaOfAPair", func(c *core) { c.rules.MaxPerOwner = 1 }, []stun.Setter{transport(17), evenPort(0x80)}, 486, 0, false},
		{"TotalOfAPair", func(c *core) { c.rules.MaxAllocations = 1 }, []stun.Setter{transport(17), evenPort(0x80)}, 508, 0, false},
		{"NoEvenPortFree", func(c *core) { c.rules.FirstPort, c.rules.LastPort = 50001, 50001 }, []stun.Setter{transport(17), evenPort(0)}, 508, 0, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			if tt.prepare != nil {
				tt.prepare(c)
			}
			before := c.state.Len()
			got := c.mustDo(tt.code, alice(), stun.MethodAllocate, tt.attributes...)
			if tt.code != 0 {
				if len(got.events) != 0 || c.state.Len() != before {
					t.Errorf("a refusal made the events %v", describeAll(got.events))
				}
				return
			}
			a := c.state.ByFiveTuple(alice().FiveTuple)
			if a == nil || len(a.Relayed) != 1 || a.Relayed[0] != got.relayed {
				t.Fatalf("got allocation %+v, want one that relays %v", a, got.relayed)
			}
			if ip := map[bool]string{false: "192.0.2.1", true: "2001:db8::1"}[tt.v6]; got.relayed.Addr() != addr(ip) {
				t.Errorf("got XOR-RELAYED-ADDRESS %v, want one of %s", got.relayed, ip)
			}
			if got.mapped != alice().Client || got.lifetime != tt.lifetime {
				t.Errorf("got mapped %v and lifetime %d, want %v and %d", got.mapped, got.lifetime, alice().Client, tt.lifetime)
			}
			if want := c.now.After(time.Duration(tt.lifetime) * time.Second); a.Deadline != want {
				t.Errorf("got deadline %v, want %v", a.Deadline, want)
			}
			if p := got.relayed.Port(); p < 49152 || (strings.HasPrefix(tt.name, "EvenPort") && p%2 != 0) {
				t.Errorf("got port %d", p)
			}
			if c.state.ByRelayed(got.relayed) != a || c.state.ByRelayed(own) != nil {
				t.Error("the relayed address does not lead to the allocation")
			}
		})
	}
}

func TestRefresh(t *testing.T) {
	for _, tt := range []struct {
		name       string
		who        *caller
		room       Room
		attributes []stun.Setter
		code       int
		lifetime   int64
	}{
		{"Default", alice(), RoomFine, nil, 0, 600},
		{"Longer", alice(), RoomFine, []stun.Setter{lifetime(900)}, 0, 900},
		{"BelowDefault", alice(), RoomFine, []stun.Setter{lifetime(1)}, 0, 600},
		{"AboveCap", alice(), RoomFine, []stun.Setter{lifetime(99999)}, 0, 3600},
		{"Delete", alice(), RoomFine, []stun.Setter{lifetime(0)}, 0, 0},
		{"FirstOfDuplicates", alice(), RoomFine, []stun.Setter{lifetime(700), lifetime(0)}, 0, 700},
		{"MalformedLifetime", alice(), RoomFine, []stun.Setter{set(stun.AttrLifetime, 0)}, 400, 0},
		{"OtherUser", newCaller("bob", "builder", alice().Client.String()), RoomFine, nil, 441, 0},
		{"OtherUserAndMalformed", newCaller("bob", "builder", alice().Client.String()), RoomFine, []stun.Setter{set(stun.AttrLifetime, 0)}, 441, 0},
		{"NoAllocation", bob(), RoomFine, nil, 437, 0},
		{"NoAllocationToDelete", bob(), RoomFine, []stun.Setter{lifetime(0)}, 437, 0},
		{"SameFamily", alice(), RoomFine, []stun.Setter{family(1)}, 0, 600},
		{"OtherFamily", alice(), RoomFine, []stun.Setter{family(2)}, 443, 0},
		{"UnknownFamily", alice(), RoomFine, []stun.Setter{family(3)}, 443, 0},
		{"OtherFamilyDeletesNothing", alice(), RoomFine, []stun.Setter{lifetime(0), family(2)}, 443, 0},
		{"TransportMeansNothingHere", alice(), RoomFine, []stun.Setter{set(stun.AttrRequestedTransport, 6)}, 0, 600},
		{"DiskLow", alice(), RoomLow, nil, 0, 600},
		{"DiskFull", alice(), RoomNone, nil, 500, 0},
		{"DeleteOnFullDisk", alice(), RoomNone, []stun.Setter{lifetime(0)}, 0, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			a := c.allocated(alice())
			c.wait(time.Minute)
			c.rules.Storage = tt.room
			before := a.Deadline
			got := c.mustDo(tt.code, tt.who, stun.MethodRefresh, tt.attributes...)
			after := c.state.Allocation(a.ID)
			switch {
			case tt.code != 0:
				if len(got.events) != 0 || after == nil || after.Deadline != before {
					t.Errorf("a refusal left %+v and the events %v", after, describeAll(got.events))
				}
			case got.lifetime != tt.lifetime:
				t.Errorf("got lifetime %d, want %d", got.lifetime, tt.lifetime)
			case tt.lifetime == 0:
				if after != nil {
					t.Errorf("got %+v, want it deleted", after)
				}
			default:
				if want := c.now.After(time.Duration(tt.lifetime) * time.Second); after.Deadline != want {
					t.Errorf("got deadline %v, want %v", after.Deadline, want)
				}
			}
		})
	}
}

func TestCreatePermission(t *testing.T) {
	many := func(n int) (out []stun.Setter) {
		for i := range n {
			out = append(out, peer(fmt.Sprintf("203.0.113.%d:9", i+1)))
		}
		return out
	}
	for _, tt := range []struct {
		name       string
		who        *caller
		prepare    func(*core)
		attributes []stun.Setter
		code       int
		want       []string // permitted addresses
	}{
		{"One", alice(), nil, peers(peerA), 0, []string{"203.0.113.5"}},
		{"Several", alice(), nil, peers(peerA, peerB), 0, []string{"203.0.113.5", "203.0.113.6"}},
		{"PortDoesNotMatter", alice(), nil, peers("203.0.113.5:0"), 0, []string{"203.0.113.5"}},
		{"SameHostTwice", alice(), nil, peers(peerA, peerA2), 0, []string{"203.0.113.5"}},
		{"None", alice(), nil, nil, 400, nil},
		{"Malformed", alice(), nil, []stun.Setter{peer(peerA), set(stun.AttrXORPeerAddress, 0, 1, 2)}, 400, nil},
		{"UnknownAddressFamily", alice(), nil, []stun.Setter{set(stun.AttrXORPeerAddress, 0, 3, 2, 2, 1, 1, 1, 1)}, 400, nil},
		{"OtherFamily", alice(), nil, peers(peerA, peerV6), 443, nil},
		{"Forbidden", alice(), nil, peers(peerA, "10.1.2.3:80"), 403, nil},
		{"ForbiddenMapped", alice(), nil, []stun.Setter{peer(peerA), rawPeer("[::ffff:10.1.2.3]:80")}, 403, nil},
		{"Mapped", alice(), nil, []stun.Setter{rawPeer("[::ffff:203.0.113.5]:80")}, 0, []string{"203.0.113.5"}},
		{"NoAllocation", bob(), nil, peers(peerA), 437, nil},
		{"OtherUser", newCaller("bob", "builder", alice().Client.String()), nil, peers(peerA), 441, nil},
		{"UpToTheLimit", alice(), nil, many(8), 0, []string{
			"203.0.113.1", "203.0.113.2", "203.0.113.3", "203.0.113.4", "203.0.113.5", "203.0.113.6", "203.0.113.7", "203.0.113.8",
		}},
		{"OverTheLimit", alice(), nil, many(9), 508, nil},
		{"OverTheLimitTogether", alice(), func(c *core) {
			c.rules.MaxPermissions = 2
			c.mustDo(0, alice(), stun.MethodCreatePermission, peers(peerA)...)
		}, many(2), 508, []string{"203.0.113.5"}},
		{"RefreshAtTheLimit", alice(), func(c *core) {
			c.rules.MaxPermissions = 1
			c.mustDo(0, alice(), stun.MethodCreatePermission, peers(peerA)...)
		}, peers(peerA), 0, []string{"203.0.113.5"}},
		{"RefreshAboveALoweredLimit", alice(), func(c *core) {
			c.mustDo(0, alice(), stun.MethodCreatePermission, peers(peerA, peerB)...)
			c.rules.MaxPermissions = 1
		}, peers(peerB), 0, []string{"203.0.113.5", "203.0.113.6"}},
		{"DiskFull", alice(), func(c *core) { c.rules.Storage = RoomNone }, peers(peerA), 500, nil},
		{"DiskLow", alice(), func(c *core) { c.rules.Storage = RoomLow }, peers(peerA), 0, []string{"203.0.113.5"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			c.allocated(alice())
			if tt.prepare != nil {
				tt.prepare(c)
			}
			c.wait(time.Second)
			got := c.mustDo(tt.code, tt.who, stun.MethodCreatePermission, tt.attributes...)
			if tt.code != 0 && len(got.events) != 0 {
				t.Errorf("a refusal made the events %v", describeAll(got.events))
			}
			var held []string
			for _, p := range c.state.ByFiveTuple(alice().FiveTuple).Permissions {
				held = append(held, p.Peer.String())
			}
			if !slices.Equal(held, tt.want) {
				t.Errorf("got permissions %v, want %v", held, tt.want)
			}
			if tt.code == 0 {
				for _, p := range tt.attributes {
					if p, ok := p.(peer); ok {
						ip := addrPort(string(p)).Addr()
						if got := c.state.ByFiveTuple(alice().FiveTuple).Permission(ip).Deadline; got != c.now.After(PermissionLifetime) {
							t.Errorf("got deadline %v for %v, want 300 s from now", got, ip)
						}
					}
				}
			}
		})
	}
}

// rawPeer is XOR-PEER-ADDRESS of an IPv6 address, in whatever form it is given.
func rawPeer(s string) stun.Setter {
	a := addrPort(s)
	return setterFunc(func(m *stun.Message) error {
		ip := a.Addr().As16()
		v := []byte{0, 2, byte(a.Port()>>8) ^ 0x21, byte(a.Port()) ^ 0x12}
		for i, b := range ip {
			v = append(v, b^m.Raw[4+i])
		}
		m.Add(stun.AttrXORPeerAddress, v)
		return nil
	})
}

type setterFunc func(*stun.Message) error

func (f setterFunc) AddTo(m *stun.Message) error { return f(m) }

func TestOneRequestMakesOneEventForEachPeer(t *testing.T) {
	c := newCore(t)
	c.allocated(alice())
	var same []stun.Setter
	for i := range 4000 {
		same = append(same, peer(fmt.Sprintf("203.0.113.5:%d", i)))
	}
	got := c.mustDo(0, alice(), stun.MethodCreatePermission, same...)
	if len(got.events) != 1 {
		t.Errorf("got %d events for one peer named 4000 times, want 1", len(got.events))
	}
}

func TestChannelBind(t *testing.T) {
	bound := func(n uint16, p string) func(*core) {
		return func(c *core) { c.mustDo(0, alice(), stun.MethodChannelBind, channel(n), peer(p)) }
	}
	for _, tt := range []struct {
		name       string
		who        *caller
		prepare    func(*core)
		attributes []stun.Setter
		code       int
	}{
		{"First", alice(), nil, []stun.Setter{channel(0x4000), peer(peerA)}, 0},
		{"Last", alice(), nil, []stun.Setter{channel(0x7FFF), peer(peerA)}, 0},
		{"OtherBits", alice(), nil, []stun.Setter{set(stun.AttrChannelNumber, 0x40, 0, 0xFF, 0xFF), peer(peerA)}, 0},
		{"BelowTheRange", alice(), nil, []stun.Setter{channel(0x3FFF), peer(peerA)}, 400},
		{"AboveTheRange", alice(), nil, []stun.Setter{channel(0x8000), peer(peerA)}, 400},
		{"LastOfRFC8656", alice(), func(c *core) { c.rules.LastChannel = ChannelLast }, []stun.Setter{channel(0x4FFF), peer(peerA)}, 0},
		{"AboveRFC8656", alice(), func(c *core) { c.rules.LastChannel = ChannelLast }, []stun.Setter{channel(0x5000), peer(peerA)}, 400},
		{"NoChannel", alice(), nil, peers(peerA), 400},
		{"NoPeer", alice(), nil, []stun.Setter{channel(0x4000)}, 400},
		{"MalformedChannel", alice(), nil, []stun.Setter{set(stun.AttrChannelNumber, 0x40, 0), peer(peerA)}, 400},
		{"MalformedPeer", alice(), nil, []stun.Setter{channel(0x4000), set(stun.AttrXORPeerAddress, 0, 1)}, 400},
		{"PortZero", alice(), nil, []stun.Setter{channel(0x4000), peer("203.0.113.5:0")}, 400},
		{"FirstOfDuplicates", alice(), nil, []stun.Setter{channel(0x4000), peer(peerA), channel(0x3FFF), peer("10.0.0.1:1")}, 0},
		{"SameAgain", alice(), bound(0x4000, peerA), []stun.Setter{channel(0x4000), peer(peerA)}, 0},
		{"OtherPeerOnTheChannel", alice(), bound(0x4000, peerA), []stun.Setter{channel(0x4000), peer(peerB)}, 400},
		{"OtherPortOnTheChannel", alice(), bound(0x4000, peerA), []stun.Setter{channel(0x4000), peer(peerA2)}, 400},
		{"OtherChannelToThePeer", alice(), bound(0x4000, peerA), []stun.Setter{channel(0x4001), peer(peerA)}, 400},
		{"OtherChannelToAnotherPort", alice(), bound(0x4000, peerA), []stun.Setter{channel(0x4001), peer(peerA2)}, 0},
		{"OtherFamily", alice(), nil, []stun.Setter{channel(0x4000), peer(peerV6)}, 443},
		{"Forbidden", alice(), nil, []stun.Setter{channel(0x4000), peer("127.0.0.1:80")}, 403},
		{"NoAllocation", bob(), nil, []stun.Setter{channel(0x4000), peer(peerA)}, 437},
		{"NoAllocationAndMalformed", bob(), nil, nil, 437},
		{"OtherUser", newCaller("bob", "builder", alice().Client.String()), nil, []stun.Setter{channel(0x4000), peer(peerA)}, 441},
		{"ChannelLimit", alice(), func(c *core) { bound(0x4000, peerA)(c); c.rules.MaxChannels = 1 }, []stun.Setter{channel(0x4001), peer(peerB)}, 508},
		{"RefreshAtTheLimit", alice(), func(c *core) { bound(0x4000, peerA)(c); c.rules.MaxChannels = 1 }, []stun.Setter{channel(0x4000), peer(peerA)}, 0},
		{"PermissionLimit", alice(), func(c *core) { bound(0x4000, peerA)(c); c.rules.MaxPermissions = 1 }, []stun.Setter{channel(0x4001), peer(peerB)}, 508},
		{"SamePermissionAtTheLimit", alice(), func(c *core) { bound(0x4000, peerA)(c); c.rules.MaxPermissions = 1 }, []stun.Setter{channel(0x4001), peer(peerA2)}, 0},
		{"DiskFull", alice(), func(c *core) { c.rules.Storage = RoomNone }, []stun.Setter{channel(0x4000), peer(peerA)}, 500},
		{"DiskLow", alice(), func(c *core) { c.rules.Storage = RoomLow }, []stun.Setter{channel(0x4000), peer(peerA)}, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			c.allocated(alice())
			if tt.prepare != nil {
				tt.prepare(c)
			}
			c.wait(time.Second)
			before := c.state.Image()
			got := c.mustDo(tt.code, tt.who, stun.MethodChannelBind, tt.attributes...)
			if tt.code != 0 {
				if diff := cmp.Diff(before, c.state.Image(), byAddress...); diff != "" || len(got.events) != 0 {
					t.Errorf("a refusal made the events %v and the change\n%s", describeAll(got.events), diff)
				}
				return
			}
			e := got.events[len(got.events)-1].(ChannelBound)
			a := c.state.ByFiveTuple(alice().FiveTuple)
			if ch := a.Channel(e.Channel); ch == nil || ch.Peer != e.Peer || ch.Deadline != c.now.After(ChannelLifetime) || a.ChannelTo(e.Peer) != ch {
				t.Errorf("got channel %+v, want one to %v for 600 s", ch, e.Peer)
			}
			if p := a.Permission(e.Peer.Addr()); p == nil || p.Deadline != c.now.After(PermissionLifetime) {
				t.Errorf("got permission %+v, want one for 300 s", p)
			}
		})
	}
}

// TestRetransmission sends each request twice, also to a state made anew from its image or its records.
func TestRetransmission(t *testing.T) {
	survive := map[string]func(*testing.T, *core){
		"SameRun": func(*testing.T, *core) {},
		"Image": func(t *testing.T, c *core) {
			s, err := FromImage(c.state.Image())
			if err != nil {
				t.Fatal(err)
			}
			c.state = s
		},
		"Records": func(t *testing.T, c *core) { c.state = fold(t, c.records) },
		"Reboot":  func(t *testing.T, c *core) { c.state = fold(t, c.records); c.reboot(5*time.Second, 0) },
	}
	for name, again := range survive {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct {
				method     stun.Method
				attributes []stun.Setter
			}{
				{stun.MethodAllocate, []stun.Setter{transport(17), lifetime(700)}},
				{stun.MethodCreatePermission, peers(peerA, peerB)},
				{stun.MethodChannelBind, []stun.Setter{channel(0x4000), peer(peerA)}},
				{stun.MethodRefresh, []stun.Setter{lifetime(800)}},
				{stun.MethodRefresh, []stun.Setter{lifetime(0)}},
			} {
				c := newCore(t)
				if tt.method != stun.MethodAllocate {
					c.allocated(alice())
				}
				frame := alice().signed(c.gate, c.now, tt.method, txid(77), tt.attributes)
				first := c.send(alice(), frame)
				if codeOf(first) != 0 {
					t.Fatalf("%v: got code %d", tt.method, codeOf(first))
				}
				again(t, c)
				c.wait(30 * time.Second)
				if name == "SameRun" { // other things may happen in between
					c.do(bob(), stun.MethodAllocate, transport(17))
				}
				second := c.send(alice(), frame)
				if second == nil || string(second.message.Raw) != string(first.message.Raw) {
					t.Errorf("%v: got another answer to the retransmission: %v, want %v", tt.method, second, first)
				}
				if len(second.events) != 0 {
					t.Errorf("%v: the retransmission made the events %v", tt.method, describeAll(second.events))
				}
			}
		})
	}
}

func TestAnswersAreForgottenAfter40Seconds(t *testing.T) {
	c := newCore(t)
	frame := alice().signed(c.gate, c.now, stun.MethodAllocate, txid(77), []stun.Setter{transport(17)})
	c.send(alice(), frame)
	c.wait(AnswerLifetime - 1)
	if got := codeOf(c.send(alice(), frame)); got != 0 {
		t.Errorf("just before: got code %d, want the first answer", got)
	}
	c.wait(1)
	if got := codeOf(c.send(alice(), frame)); got != 437 {
		t.Errorf("after 40 s: got code %d, want 437 as for a new request", got)
	}
	c.do(bob(), stun.MethodAllocate, transport(17))
	if got := len(c.state.Image().Answers); got != 1 {
		t.Errorf("got %d answers remembered, want only the last", got)
	}
}

func TestAnswerOutlivesItsAllocation(t *testing.T) {
	c := newCore(t)
	frame := alice().signed(c.gate, c.now, stun.MethodAllocate, txid(77), []stun.Setter{transport(17)})
	first := c.send(alice(), frame)
	c.mustDo(0, alice(), stun.MethodRefresh, lifetime(0))
	if second := c.send(alice(), frame); string(second.message.Raw) != string(first.message.Raw) || len(second.events) > 0 {
		t.Errorf("got %v, want the first answer and nothing made", second)
	}
	c.allocated(newCaller("bob", "builder", alice().Client.String()))
	if got := codeOf(c.send(alice(), frame)); got != 437 {
		t.Errorf("got code %d with another user's allocation in place, want 437", got)
	}
}

func TestRefreshToZeroTwice(t *testing.T) {
	c := newCore(t)
	c.allocated(alice())
	c.mustDo(0, alice(), stun.MethodRefresh, lifetime(0))
	c.mustDo(437, alice(), stun.MethodRefresh, lifetime(0))
	c.allocated(alice())
}

// TestSameTransactionInOtherMethods has a client that reuses an id.
func TestSameTransactionInOtherMethods(t *testing.T) {
	c := newCore(t)
	for _, r := range []struct {
		method     stun.Method
		attributes []stun.Setter
	}{
		{stun.MethodAllocate, []stun.Setter{transport(17)}},
		{stun.MethodCreatePermission, peers(peerA)},
		{stun.MethodChannelBind, []stun.Setter{channel(0x4000), peer(peerA)}},
		{stun.MethodRefresh, nil},
	} {
		got := c.send(alice(), alice().signed(c.gate, c.now, r.method, txid(5), r.attributes))
		if codeOf(got) != 0 || len(got.events) != 1 {
			t.Errorf("%v: got code %d and %d events, want success and one", r.method, codeOf(got), len(got.events))
		}
	}
}

// TestOverdueIsNotLive decides before the log says what is over.
func TestOverdueIsNotLive(t *testing.T) {
	setUp := func(t *testing.T) *core {
		c := newCore(t)
		c.rules.MaxPerOwner, c.rules.MaxAllocations, c.rules.MaxChannels, c.rules.MaxPermissions = 1, 2, 1, 1
		c.allocated(alice())
		c.lazy = true
		return c
	}
	t.Run("Refresh", func(t *testing.T) {
		c := setUp(t)
		c.wait(10 * time.Minute)
		if got := c.mustDo(437, alice(), stun.MethodRefresh); len(got.events) > 0 {
			t.Errorf("got events %v", describeAll(got.events))
		}
	})
	t.Run("RefreshOfOtherUser", func(t *testing.T) {
		c := setUp(t)
		c.wait(10 * time.Minute)
		c.mustDo(437, newCaller("bob", "builder", alice().Client.String()), stun.MethodRefresh)
	})
	t.Run("Allocate", func(t *testing.T) {
		c := setUp(t)
		c.wait(10 * time.Minute)
		got := c.mustDo(0, alice(), stun.MethodAllocate, transport(17))
		if len(got.events) != 2 || got.events[0] != (AllocationExpired{Allocation: 1}) {
			t.Errorf("got events %v, want the end of the old allocation first", describeAll(got.events))
		}
	})
	t.Run("Total", func(t *testing.T) {
		c := setUp(t)
		c.rules.MaxAllocations = 1
		c.mustDo(508, bob(), stun.MethodAllocate, transport(17))
		c.wait(10 * time.Minute)
		c.mustDo(0, bob(), stun.MethodAllocate, transport(17))
	})
	t.Run("Quota", func(t *testing.T) {
		c := setUp(t)
		elsewhere := newCaller("alice", "wonderland", "198.51.100.1:6000")
		c.mustDo(486, elsewhere, stun.MethodAllocate, transport(17))
		c.wait(10 * time.Minute)
		c.mustDo(0, elsewhere, stun.MethodAllocate, transport(17))
	})
	t.Run("Channel", func(t *testing.T) {
		c := setUp(t)
		c.mustDo(0, alice(), stun.MethodChannelBind, channel(0x4000), peer(peerA))
		c.mustDo(0, alice(), stun.MethodRefresh, lifetime(3600))
		c.wait(10 * time.Minute)
		got := c.mustDo(0, alice(), stun.MethodChannelBind, channel(0x4000), peer(peerB))
		want := []string{
			"ChannelExpired allocation=1 channel=0x4000", "PermissionExpired allocation=1 peer=203.0.113.5",
			"ChannelBound allocation=1 channel=0x4000 peer=203.0.113.6:4000",
		}
		if diff := cmp.Diff(want, describeAll(got.events)); diff != "" {
			t.Errorf("events (-want +got):\n%s", diff)
		}
	})
	t.Run("Permission", func(t *testing.T) {
		c := setUp(t)
		c.mustDo(0, alice(), stun.MethodCreatePermission, peers(peerA)...)
		c.mustDo(508, alice(), stun.MethodCreatePermission, peers(peerB)...)
		c.wait(5 * time.Minute)
		c.mustDo(0, alice(), stun.MethodCreatePermission, peers(peerB)...)
	})
	t.Run("OwnRelayedPort", func(t *testing.T) {
		c := setUp(t)
		other := c.allocated(bob()).Relayed[0].String()
		c.mustDo(0, alice(), stun.MethodRefresh, lifetime(3600))
		c.mustDo(0, alice(), stun.MethodChannelBind, channel(0x4000), peer(other))
		c.wait(10 * time.Minute)
		c.mustDo(403, alice(), stun.MethodChannelBind, channel(0x4001), peer(other))
	})
}

func TestQuotaCountsTimeLimitedCredentialsOfOneUser(t *testing.T) {
	c := newCore(t)
	c.rules.MaxPerOwner = 2
	for i := range 3 {
		who := timeLimitedCaller("carol", "north", at(time.Duration(i+1)*time.Hour), fmt.Sprintf("198.51.100.3:%d", 5000+i))
		want := map[bool]int{true: 486, false: 0}[i == 2]
		c.mustDo(want, who, stun.MethodAllocate, transport(17))
	}
	if got := c.state.Owned(testRealm, "carol"); got != 2 {
		t.Errorf("got %d allocations of carol, want 2", got)
	}
}

func TestPortsComeFromEntropy(t *testing.T) {
	first := func(seed byte) []netip.AddrPort {
		p := &PortPlan{state: NewState(), ip: addr("192.0.2.1"), first: 49152, last: 65535, entropy: [32]byte{seed}}
		return slices.Collect(p.Candidates())
	}
	a, b := first(1), first(1)
	if !slices.Equal(a, b) {
		t.Error("the same entropy gives other ports")
	}
	if len(a) != portTries {
		t.Errorf("got %d candidates, want %d", len(a), portTries)
	}
	seen := map[netip.AddrPort]bool{}
	for seed := range byte(100) {
		seen[first(seed)[0]] = true
	}
	if len(seen) < 95 {
		t.Errorf("got %d ports from 100 seeds, want them to differ", len(seen))
	}
}

func TestPortsOfANearlyFullRange(t *testing.T) {
	s := NewState()
	ip := addr("192.0.2.1")
	const first, last = 50_001, 52_000
	s.ports[ip] = new(portSet)
	for p := uint16(first); p <= last; p++ {
		s.ports[ip].add(p)
	}
	for _, tt := range []struct {
		name string
		free []uint16
		even bool
		pair bool
		want []uint16
	}{
		{"None", nil, false, false, nil},
		{"First", []uint16{first}, false, false, []uint16{first}},
		{"Last", []uint16{last}, false, false, []uint16{last}},
		{"Odd", []uint16{50_777}, true, false, nil},
		{"EvenAndOdd", []uint16{50_777, 50_778, 51_999}, true, false, []uint16{50_778}},
		{"Outside", []uint16{first - 1, last + 1}, false, false, nil},
		{"Pair", []uint16{50_777, 50_778, 50_779}, true, true, []uint16{50_778}},
		{"OddPair", []uint16{50_777, 50_778}, true, true, nil},
		{"PairOverWords", []uint16{50_815, 50_816, 50_817}, true, true, []uint16{50_816}},
		{"LastOfAPair", []uint16{last, last + 1}, true, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, p := range tt.free {
				s.ports[ip].remove(p)
			}
			for seed := range byte(20) {
				plan := &PortPlan{state: s, ip: ip, first: first, last: last, even: tt.even, pair: tt.pair, entropy: [32]byte{seed}}
				got := map[uint16]bool{}
				for a := range plan.Candidates() {
					got[a.Port()] = true
				}
				want := map[uint16]bool{}
				for _, p := range tt.want {
					want[p] = true
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Fatalf("seed %d: ports (-want +got):\n%s", seed, diff)
				}
			}
			for _, p := range tt.free {
				s.ports[ip].add(p)
			}
		})
	}
}
