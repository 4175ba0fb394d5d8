package turn

import (
	"bytes"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// mobile makes an allocation of who and yields its ticket.
func (c *core) mobile(who *caller) []byte {
	c.Helper()
	got := c.mustDo(0, who, stun.MethodAllocate, transport(17), ticket(nil))
	if len(got.ticket) == 0 {
		c.Fatal("got no ticket")
	}
	return got.ticket
}

func away() *caller { return newCaller("alice", "wonderland", "198.51.100.9:6000") }

// TestMobilityRefuses holds the rules of RFC 8016, by section in the names.
func TestMobilityRefuses(t *testing.T) {
	forbid := func(c *core) { c.rules.Tickets = nil }
	for _, tt := range []struct {
		name       string
		prepare    func(c *core, brought []byte) []byte // of alice, who has an allocation; yields what is sent; nil: nothing
		who        *caller
		method     stun.Method
		attributes []stun.Setter
		code       int
	}{
		{name: "3.1.2Forbidden", who: bob(), method: stun.MethodAllocate, code: 405, prepare: func(c *core, _ []byte) []byte { forbid(c); return []byte{} }},
		{name: "3.1.2NotEmpty", who: bob(), method: stun.MethodAllocate, code: 400, prepare: func(_ *core, b []byte) []byte { return b }},
		{name: "3.1.2Garbage", who: bob(), method: stun.MethodAllocate, code: 400, prepare: func(*core, []byte) []byte { return []byte{1} }},
		{name: "3.1.2WithoutIt", who: bob(), method: stun.MethodAllocate, code: 0, prepare: func(c *core, _ []byte) []byte { forbid(c); return nil }},
		{name: "3.2.2Good", who: away(), code: 0},
		{name: "3.2.2Forbidden", who: away(), code: 405, prepare: func(c *core, b []byte) []byte { forbid(c); return b }},
		{name: "3.2.2Empty", who: away(), code: 400, prepare: func(*core, []byte) []byte { return []byte{} }},
		{name: "3.2.2Spoilt", who: away(), code: 400, prepare: func(_ *core, b []byte) []byte { b[20] ^= 1; return b }},
		{name: "3.2.2Cut", who: away(), code: 400, prepare: func(_ *core, b []byte) []byte { return b[:len(b)-1] }},
		{name: "3.2.2Longer", who: away(), code: 400, prepare: func(_ *core, b []byte) []byte { return append(b, 0) }},
		{name: "3.2.2OfAnotherKey", who: away(), code: 400, prepare: func(c *core, b []byte) []byte { c.rules.Tickets = NewTickets([32]byte{9}); return b }},
		{name: "3.2.2OfAnotherLog", who: away(), code: 400, prepare: func(c *core, _ []byte) []byte { return c.rules.Tickets.seal(LogID{1}, 1, 1) }},
		{name: "3.2.2FromWhereItIs", who: alice(), code: 400},
		{name: "3.2.2Ended", who: away(), code: 437, prepare: func(c *core, b []byte) []byte { c.mustDo(0, alice(), stun.MethodRefresh, lifetime(0)); return b }},
		{name: "3.2.2Expired", who: away(), code: 437, prepare: func(c *core, b []byte) []byte { c.lazy = true; c.wait(time.Hour); return b }},
		{name: "3.2.2OfAnotherUser", who: bob(), code: 441},
		{name: "3.2.2WhereAnotherIs", who: away(), code: 437, prepare: func(c *core, b []byte) []byte { c.allocated(away()); return b }},
		{name: "3.2.2WhereAnotherUsersIs", who: bob(), code: 441, prepare: func(c *core, b []byte) []byte { c.allocated(bob()); return b }},
		{name: "3.2.2UsedAndLeft", who: newCaller("alice", "wonderland", "198.51.100.9:6001"), code: 400, prepare: func(c *core, b []byte) []byte {
			c.mustDo(0, away(), stun.MethodRefresh, ticket(b))
			c.record(Arrive(c.state, away().FiveTuple)...)
			return b
		}},
		{name: "3.2.2LastToWhereItMoves", who: away(), code: 400, prepare: func(c *core, b []byte) []byte {
			return c.mustDo(0, away(), stun.MethodRefresh, ticket(b)).ticket
		}},
		{name: "3.2.2Lost", who: away(), code: 0, prepare: func(c *core, b []byte) []byte { c.mustDo(0, away(), stun.MethodRefresh, ticket(b)); return b }},
		{name: "3.2.2LostTwice", who: newCaller("alice", "wonderland", "198.51.100.9:6001"), code: 0, prepare: func(c *core, b []byte) []byte {
			c.mustDo(0, away(), stun.MethodRefresh, ticket(b))
			c.mustDo(0, away(), stun.MethodRefresh, ticket(b))
			return b
		}},
		{name: "NothingCanBeRecorded", who: away(), code: 500, prepare: func(c *core, b []byte) []byte { c.rules.Storage = RoomNone; return b }},
		{name: "EndsThoughNothingElseCanBeRecorded", who: away(), code: 0, attributes: []stun.Setter{lifetime(0)}, prepare: func(c *core, b []byte) []byte { c.rules.Storage = RoomNone; return b }},
		{name: "NoSuchFamily", who: away(), code: 443, attributes: []stun.Setter{family(2)}},
		{name: "Malformed", who: away(), code: 400, attributes: []stun.Setter{set(stun.AttrLifetime, 1)}},
		{name: "MeansNothingElsewhere", who: alice(), method: stun.MethodCreatePermission, code: 0, attributes: peers(peerA), prepare: func(*core, []byte) []byte { return []byte{1} }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			brought := c.mobile(alice())
			if tt.prepare != nil {
				brought = tt.prepare(c, brought)
			}
			attributes := append([]stun.Setter{transport(17)}, tt.attributes...)
			if brought != nil {
				attributes = append(attributes, ticket(brought))
			}
			method := tt.method
			if method == 0 {
				method = stun.MethodRefresh
			}
			got := c.mustDo(tt.code, tt.who, method, attributes...)
			if tt.code != 0 && (len(got.events) > 0 || got.ticket != nil) {
				t.Errorf("got %v and ticket %x with a refusal", describeAll(got.events), got.ticket)
			}
		})
	}
}

// TestConnectionsDoNotMove: a ticket for a TCP allocation is refused.
func TestConnectionsDoNotMove(t *testing.T) {
	c, who := newCore(t), alice()
	who.Protocol = TCP
	c.mustDo(405, who, stun.MethodAllocate, transport(transportTCP), ticket(nil))
	c.mustDo(0, who, stun.MethodAllocate, transport(transportTCP))
}

// TestMoveOfOneFamily refreshes, or ends, one of two relayed addresses on the way.
func TestMoveOfOneFamily(t *testing.T) {
	for _, seconds := range []uint32{0, 1800} {
		c := newCore(t)
		got := c.mustDo(0, alice(), stun.MethodAllocate, transport(17), additional(2), ticket(nil))
		got = c.mustDo(0, away(), stun.MethodRefresh, ticket(got.ticket), family(2), lifetime(seconds))
		a := c.state.ByFiveTuple(away().FiveTuple)
		if want := 2; seconds == 0 && len(a.Relayed) != 1 || seconds > 0 && len(a.Relayed) != want {
			t.Errorf("lifetime %d: it relays %v", seconds, a.Relayed)
		}
		if got.ticket == nil || got.lifetime != int64(seconds) || a.Ticket != 2 {
			t.Errorf("lifetime %d: got lifetime %d and ticket %x, number %d, want another ticket", seconds, got.lifetime, got.ticket, a.Ticket)
		}
		c.lastTx--
		if again := c.mustDo(0, away(), stun.MethodRefresh, family(2)); !bytes.Equal(again.ticket, got.ticket) || again.lifetime != got.lifetime || len(again.events) > 0 {
			t.Errorf("lifetime %d: the retransmission got lifetime %d and ticket %x", seconds, again.lifetime, again.ticket)
		}
	}
}

// TestOverdueMakesRoomForAMove: what is over at the five-tuple a client comes to is ended first.
func TestOverdueMakesRoomForAMove(t *testing.T) {
	c := newCore(t)
	c.lazy = true
	c.allocated(away())
	c.wait(9 * time.Minute)
	brought := c.mobile(alice())
	c.mustDo(0, alice(), stun.MethodCreatePermission, peer(peerA))
	c.wait(6 * time.Minute)
	got := c.mustDo(0, away(), stun.MethodRefresh, ticket(brought))
	if len(got.events) != 4 || got.events[0] != Event(AllocationExpired{Allocation: 1}) || got.events[1].Kind() != KindPermissionExpired {
		t.Errorf("got %v, want what is over, then the move", describeAll(got.events))
	}
	again := c.mustDo(0, away(), stun.MethodRefresh, ticket(brought))
	if len(again.events) != 2 {
		t.Errorf("got %v, want the move once more", describeAll(again.events))
	}
}

func TestTickets(t *testing.T) {
	one, other, log := NewTickets([32]byte{1}), NewTickets([32]byte{2}), LogID{3}
	seen := map[string]bool{}
	for _, id := range []AllocationID{1, 2, 1 << 40} {
		for _, n := range []uint32{1, 2, 1 << 31} {
			sealed := one.seal(log, id, n)
			if gotID, gotN, ok := one.open(log, sealed); gotID != id || gotN != n || !ok {
				t.Errorf("got %d, %d, %t, want %d, %d", gotID, gotN, ok, id, n)
			}
			if seen[string(sealed)] || !bytes.Equal(sealed, one.seal(log, id, n)) {
				t.Errorf("ticket %x is another's, or not the same again", sealed)
			}
			seen[string(sealed)] = true
			if _, _, ok := other.open(log, sealed); ok {
				t.Error("a ticket opens with another key")
			}
			if _, _, ok := one.open(LogID{4}, sealed); ok {
				t.Error("a ticket opens for another log")
			}
			for i := range sealed {
				sealed[i] ^= 0x10
				if _, _, ok := one.open(log, sealed); ok {
					t.Errorf("a ticket opens with byte %d spoilt", i)
				}
				sealed[i] ^= 0x10
			}
		}
	}
}
