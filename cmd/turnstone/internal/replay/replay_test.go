package replay

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"turnstone/internal/shape/calls"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
)

// records are those of a relay whose host restarts now and then, with a clock that goes back.
func records(events int) (out []turn.Record) {
	c := calls.New(calls.Options{Seed: 3, Allocations: 60, Users: 8, Clients: 30, Peers: 30, RestartEvery: 1200, ClockBack: true})
	for c.State().Seq() < turn.Seq(events) {
		out = append(out, c.Next())
	}
	return out
}

// things are all that a state holds of what f takes.
func things(s *turn.State, f Filter) map[key]item {
	out := map[key]item{}
	for a := range s.Allocations() {
		for _, one := range itemsOf(a) {
			if f.takesOwner(a) && f.takes(one.key) {
				out[one.key] = one
			}
		}
	}
	for _, one := range reservations(s) {
		if f.TakesReservation(one.facts.reservationOfOwner) {
			out[one.key] = one
		}
	}
	return out
}

// add makes the changes to all. What cannot be changed so is an error.
func add(all map[key]item, changes []Change) error {
	for _, c := range changes {
		_, there := all[c.key]
		if c.What == late {
			continue
		}
		if (c.What == added) == there {
			return fmt.Errorf("%+v: it was there: %t", c, there)
		}
		if c.after == nil {
			delete(all, c.key)
			continue
		}
		all[c.key] = *c.after
	}
	return nil
}

func filters() map[string]Filter {
	address := func(s string) Address {
		a, err := ParseAddress(s)
		if err != nil {
			panic(err)
		}
		return a
	}
	return map[string]Filter{
		"all": {}, "allocation": {Allocation: 17}, "user": {User: "user1"}, "client": {Client: address("198.18.0.3")},
		"peer": {Peer: address("198.19.0.1")}, "channel": {Channel: 0x4001}, "both": {User: "user2", Peer: address("198.19.0.2")},
	}
}

func TestStepsAndDifferencesAddUpToTheState(t *testing.T) {
	list := records(8000)
	for name, f := range filters() {
		t.Run(name, func(t *testing.T) {
			w := NewWalk(turn.NewState(), f)
			stepped, compared := map[key]item{}, map[key]item{}
			last := turn.NewState()
			changes, boots := 0, 0
			for i, r := range list {
				if i > 0 && r.Moment.Boot != list[i-1].Moment.Boot {
					boots++
				}
				_, err := w.Record(r, func(s Step) (bool, error) {
					changes += len(s.Changes)
					if f.Client.set() { // a client comes with what its allocation has, and leaves without a word
						return true, nil
					}
					return true, add(stepped, s.Changes)
				})
				if err != nil {
					t.Fatal(err)
				}
				if f.Client.set() || i%97 != 0 && i < len(list)-1 {
					continue
				}
				if err := add(compared, Compare(last, w.State(), f)); err != nil {
					t.Fatal(err)
				}
				last = w.State().Clone()
				want := things(w.State(), f)
				if diff := cmp.Diff(want, stepped, cmp.AllowUnexported(key{}, item{}, facts{}), cmp.Comparer(sameAddress)); diff != "" {
					t.Fatalf("the steps up to %d do not add up (-want +got):\n%s", r.Last(), diff)
				}
				if !maps.Equal(want, compared) {
					t.Fatalf("the differences up to %d do not add up:\n got %v\nwant %v", r.Last(), compared, want)
				}
			}
			if changes == 0 || boots < 2 {
				t.Errorf("%d changes over %d boots: the filter takes too little", changes, boots)
			}
		})
	}
}

func sameAddress(a, b netip.AddrPort) bool { return a == b }

func TestFiltersChoose(t *testing.T) {
	list := records(6000)
	for name, f := range filters() {
		w := NewWalk(turn.NewState(), f)
		for _, r := range list {
			_, err := w.Record(r, func(s Step) (bool, error) {
				for _, c := range s.Changes {
					switch {
					case f.Allocation != 0 && c.Allocation != f.Allocation, f.User != "" && turn.Owner(c.Username) != f.User,
						f.Channel != 0 && c.Channel != f.Channel.String(), f.Peer.set() && !strings.HasPrefix(c.Peer, f.Peer.addr.String()):
						return false, fmt.Errorf("%s takes %+v", name, c)
					}
				}
				return true, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		var got, want []turn.AllocationID
		for a := range w.State().Allocations() {
			if f.Takes(a) {
				got = append(got, a.ID)
			}
			holds := func(peer netip.Addr) bool {
				return slices.ContainsFunc(a.Permissions, func(p turn.Permission) bool { return p.Peer == peer }) ||
					slices.ContainsFunc(a.Channels, func(c turn.Channel) bool { return c.Peer.Addr() == peer }) ||
					slices.ContainsFunc(a.Usage, func(u turn.Usage) bool { return u.Peer.Addr() == peer })
			}
			if (f.Allocation == 0 || f.Allocation == a.ID) && (f.User == "" || turn.Owner(a.Username) == f.User) &&
				(f.Channel == 0 || a.Channel(f.Channel) != nil) && (!f.Peer.set() || holds(f.Peer.addr)) &&
				(!f.Client.set() || a.FiveTuple.Client.Addr() == f.Client.addr || a.Next.Client.Addr() == f.Client.addr) {
				want = append(want, a.ID)
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s takes the allocations %v, want %v", name, got, want)
		}
	}
}

func TestParseAddress(t *testing.T) {
	at := netip.MustParseAddrPort
	for text, c := range map[string]struct {
		is, not netip.AddrPort
	}{
		"203.0.113.7":           {at("203.0.113.7:1"), at("203.0.113.8:1")},
		"203.0.113.7:4000":      {at("203.0.113.7:4000"), at("203.0.113.7:4001")},
		"2001:db8::7":           {at("[2001:db8::7]:1"), at("[2001:db8::8]:1")},
		"[2001:db8::7]":         {at("[2001:db8::7]:1"), at("[2001:db8::8]:1")},
		"[2001:db8::7]:4000":    {at("[2001:db8::7]:4000"), at("[2001:db8::7]:4001")},
		"::ffff:203.0.113.7":    {at("203.0.113.7:9"), at("203.0.113.8:9")},
		"203.0.113.7:4000 port": {},
		"host.example:1":        {},
	} {
		a, err := ParseAddress(text)
		if valid := c.is.IsValid(); (err == nil) != valid || valid && (!a.is(c.is) || a.is(c.not)) {
			t.Errorf("%q is %+v, %v", text, a, err)
		}
	}
	if a, _ := ParseAddress("203.0.113.7:4000"); !a.is(netip.AddrPortFrom(netip.MustParseAddr("203.0.113.7"), 0)) {
		t.Error("a permission, which has no port, is not of an address with one")
	}
}

func TestChangesInWords(t *testing.T) {
	m := turn.Moment{Uptime: time.Hour, Wall: calls.Start.UnixNano()}
	peer := netip.MustParseAddrPort("203.0.113.7:4000")
	w := NewWalk(turn.NewState(), Filter{})
	tuple := turn.FiveTuple{Client: netip.MustParseAddrPort("198.51.100.1:5000"), Server: netip.MustParseAddrPort("192.0.2.1:3478"), Protocol: turn.UDP}
	seq := turn.Seq(1)
	for _, c := range []struct {
		event turn.Event
		want  string
	}{
		{turn.EpochBegan{Log: turn.LogID{1}, Epoch: 1}, ""},
		{
			turn.AllocationCreated{Allocation: 1, FiveTuple: tuple, Relayed: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:50000")}, Transport: 17, Username: "alice", Lifetime: 600},
			"allocation 1 for alice at 198.51.100.1:5000 until 15:10:01.000: over udp, relayed 192.0.2.1:50000",
		},
		{turn.PermissionInstalled{Allocation: 1, Peer: peer.Addr()}, "permission for 203.0.113.7 until 15:05:02.000"},
		{
			turn.ChannelBound{Allocation: 1, Channel: 0x4000, Peer: peer},
			"permission for 203.0.113.7 until 15:05:03.000 (was 15:05:02.000); channel 0x4000 to 203.0.113.7:4000 until 15:10:03.000",
		},
		{turn.AllocationRefreshed{Allocation: 1, Lifetime: 600}, "allocation 1 until 15:10:04.000 (was 15:10:01.000)"},
		{
			turn.UsageRecorded{Allocation: 1, Channel: 0x4000, Peer: peer, Path: turn.PathKernel, ToPeer: turn.Count{Packets: 2, Bytes: 320}},
			"usage of channel 0x4000 to 203.0.113.7:4000: 2 packets (320 bytes) to the peer, 0 (0) to the client, by kernel",
		},
		{turn.ChannelExpired{Allocation: 1, Channel: 0x4000}, "channel 0x4000 to 203.0.113.7:4000 gone"},
		{turn.TicketIssued{Allocation: 1}, "allocation 1 until 15:10:04.000: mobility ticket 1"},
		{turn.AllocationExpired{Allocation: 1}, "allocation 1 gone; permission for 203.0.113.7 gone"},
		{turn.UsageRecorded{Allocation: 1, Path: turn.PathUserspace, ToPeer: turn.Count{Packets: 3, Bytes: 480}}, "usage by indications: 3 packets (480 bytes) to the peer, 0 (0) to the client, by userspace"},
	} {
		r := turn.Record{First: seq, Moment: m, Events: []turn.Event{c.event}}
		_, err := w.Record(r, func(s Step) (bool, error) {
			var parts []string
			for _, one := range s.Changes {
				if !one.Follows() {
					parts = append(parts, one.String())
				}
			}
			if got := strings.Join(parts, "; "); got != c.want {
				t.Errorf("%T: got %q, want %q", c.event, got, c.want)
			}
			return true, nil
		})
		if err != nil {
			t.Fatal(err)
		}
		seq++
		m.Uptime, m.Wall = m.Uptime+time.Second, m.Wall+int64(time.Second)
	}
}
