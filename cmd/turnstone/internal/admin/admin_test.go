package admin

import (
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
)

// TestDescribe shows an allocation that has all there can be in one.
func TestDescribe(t *testing.T) {
	at := netip.MustParseAddrPort
	start := time.Unix(1795730000, 0).UTC()
	moment := func(d time.Duration) turn.Moment {
		return turn.Moment{Uptime: time.Hour + d, Wall: start.Add(d).UnixNano()}
	}
	until := func(d time.Duration) turn.Deadline { return moment(0).After(d) }
	a := &turn.Allocation{
		ID: 7, FiveTuple: turn.FiveTuple{Client: at("192.0.2.7:4000"), Server: at("198.51.100.1:3478"), Protocol: turn.TCP},
		Next:    turn.FiveTuple{Client: at("192.0.2.8:4001"), Server: at("198.51.100.1:3478"), Protocol: turn.TCP},
		Relayed: []netip.AddrPort{at("198.51.100.1:50000"), at("[2001:db8::1]:50000")}, Transport: 6,
		Username: "alice", Realm: "example.org", Created: moment(0), Deadline: until(20 * time.Minute),
		Until: []turn.Deadline{until(time.Minute), until(20 * time.Minute)},
		Connections: []turn.Connection{
			{ID: 1, Peer: at("203.0.113.1:80"), Deadline: until(30 * time.Second)},
			{ID: 2, Peer: at("203.0.113.2:80"), Client: turn.FiveTuple{Client: at("192.0.2.7:4002"), Protocol: turn.TCP}, Deadline: until(30 * time.Second)},
		},
	}
	got := Describe(a, moment(2*time.Minute))
	want := Allocation{
		ID: 7, Client: "192.0.2.7:4000", Server: "198.51.100.1:3478", Protocol: turn.TCP, Relayed: []string{"198.51.100.1:50000", "[2001:db8::1]:50000"},
		Transport: "tcp", Username: "alice", Realm: "example.org", MovingTo: "192.0.2.8:4001", Created: start, Expires: start.Add(20 * time.Minute),
		Addresses: []Address{
			{Relayed: "198.51.100.1:50000", Expires: start.Add(time.Minute), Overdue: true},
			{Relayed: "[2001:db8::1]:50000", Expires: start.Add(20 * time.Minute)},
		},
		Connections: []Connection{
			{ID: 1, Peer: "203.0.113.1:80", Expires: start.Add(30 * time.Second)},
			{ID: 2, Peer: "203.0.113.2:80", Client: "192.0.2.7:4002"},
		},
		Permissions: []Permission{}, Channels: []Channel{}, Usage: []Usage{},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
	a.Until, a.Relayed, a.Next, a.Adrift = nil, a.Relayed[:1], turn.FiveTuple{}, true
	got = Describe(a, moment(0))
	if got.MovingTo != "" || !got.Adrift || len(got.Addresses) != 1 || !got.Addresses[0].Expires.Equal(got.Expires) {
		t.Errorf("got %+v, want one address that ends with the allocation of a client that is nowhere", got)
	}
}
