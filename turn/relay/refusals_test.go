package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"turnstone/store"
	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// nthAddr is an address of a documentation network for each n.
func nthAddr(n int) netip.Addr {
	a := netip.MustParseAddr("2001:db8::").As16()
	binary.BigEndian.PutUint64(a[8:], uint64(n))
	return netip.AddrFrom16(a)
}

func refusalsAt(second int64) turn.Moment { return turn.Moment{Wall: second * int64(time.Second)} }

// TestRefusalsAreSummedUp holds that each sort has its count, also behind a flood, and that nothing is told twice.
func TestRefusalsAreSummedUp(t *testing.T) {
	var r refusals
	for range 3 {
		r.add(&turn.Reply{Method: stun.MethodCreatePermission, Code: 403, Username: "alice", Realm: "example.org", Peer: nthAddr(9)}, serverIP)
	}
	r.add(&turn.Reply{Method: stun.MethodAllocate, Code: 486, Username: "alice", Realm: "example.org"}, serverIP)
	e, ok := r.take(refusalsAt(120))
	if !ok || len(e.Attempts) != 2 || e.Others != 0 || e.Since != refusalsAt(60).Wall {
		t.Fatalf("got %+v, want two sorts since a minute", e)
	}
	want := turn.Attempt{
		Client: serverIP, Username: "alice", Realm: "example.org", Method: uint16(stun.MethodCreatePermission), Code: 403, Peer: nthAddr(9), Count: 3,
	}
	if e.Attempts[0] != want {
		t.Errorf("got %+v, want %+v first", e.Attempts[0], want)
	}
	if _, more := r.take(refusalsAt(180)); more {
		t.Error("what was taken is still there")
	}
	r.add(&turn.Reply{Method: stun.MethodAllocate, Code: 486, Username: "alice"}, serverIP)
	if e, _ = r.take(refusalsAt(200)); e.Since != refusalsAt(180).Wall {
		t.Errorf("got %d, want it to count since the last summary", e.Since)
	}
}

// TestRefusalFloodIsBoundedAndHidesNothing sends floods of every sort, and then what is worth knowing.
func TestRefusalFloodIsBoundedAndHidesNothing(t *testing.T) {
	const flood = 20_000
	for name, one := range map[string]func(i int) (*turn.Reply, netip.Addr){
		"names-of-a-client": func(i int) (*turn.Reply, netip.Addr) {
			return &turn.Reply{Code: 401, Method: stun.MethodAllocate, Unauthenticated: true, Username: strings.Repeat(fmt.Sprint(i), 80)}, serverIP
		},
		"names-of-clients": func(i int) (*turn.Reply, netip.Addr) {
			return &turn.Reply{Code: 401, Method: stun.MethodAllocate, Unauthenticated: true, Username: strings.Repeat(fmt.Sprint(i), 80)}, nthAddr(i)
		},
		"peers-of-a-user": func(i int) (*turn.Reply, netip.Addr) {
			return &turn.Reply{Code: 403, Method: stun.MethodCreatePermission, Username: "mallory", Peer: nthAddr(i)}, serverIP
		},
		"clients-of-a-user": func(i int) (*turn.Reply, netip.Addr) {
			return &turn.Reply{Code: 486, Method: stun.MethodAllocate, Username: "mallory"}, nthAddr(i)
		},
	} {
		var r refusals
		for i := range flood {
			r.add(one(i))
		}
		proven := &turn.Reply{Code: 403, Method: stun.MethodChannelBind, Username: "bob", Peer: nthAddr(1)}
		claimed := &turn.Reply{Code: 401, Method: stun.MethodAllocate, Username: "bob", Unauthenticated: true}
		r.add(proven, netip.MustParseAddr("192.0.2.99"))
		r.add(claimed, netip.MustParseAddr("192.0.2.99"))
		e, _ := r.take(refusalsAt(60))
		total, codes := e.Others, map[uint16]bool{}
		for _, a := range e.Attempts {
			total += a.Count
			if a.Username == "bob" {
				codes[a.Code] = true
			}
		}
		if total != flood+2 {
			t.Errorf("%s: got %d refusals, want %d", name, total, flood+2)
		}
		if !codes[401] && name != "names-of-clients" || !codes[403] && name != "clients-of-a-user" {
			t.Errorf("%s: got %v of bob, want both: the flood has hidden one", name, codes)
		}
		b, err := store.EncodeEvent(nil, e)
		if err != nil {
			t.Fatal(err)
		}
		if len(b) > 24<<10 {
			t.Errorf("%s: got an event of %d bytes, want at most 24 KiB", name, len(b))
		}
	}
}

// TestRefusedPeersAreTold holds that denied peers, quotas and wrong users are in the log with what an audit asks for.
func TestRefusedPeersAreTold(t *testing.T) {
	g := serveTest(t, func(c *Config) { c.Settings.Rules.MaxPerOwner = 1 })
	c := g.client("alice").allocate()
	denied := netip.MustParseAddr("169.254.169.254")
	c.do(403, stun.MethodCreatePermission, peerAddress(netip.AddrPortFrom(denied, 80)))
	c.do(403, stun.MethodChannelBind, channelNumber(0x4000), peerAddress(netip.AddrPortFrom(denied, 80)))
	g.client("alice").greet().do(486, stun.MethodAllocate, udpTransport)
	c.user = "bob"
	c.do(441, stun.MethodRefresh)
	e, _ := g.refusals.take(g.clock())
	got := map[string]bool{}
	for _, a := range e.Attempts {
		peer := ""
		if a.Peer.IsValid() {
			peer = a.Peer.String()
		}
		got[fmt.Sprintf("%d %s %s %d", a.Code, a.Username, peer, a.Count)] = true
	}
	for _, want := range []string{"403 alice 169.254.169.254 1", "486 alice  1", "441 bob  1"} {
		if !got[want] {
			t.Errorf("got %v, want %q among it", got, want)
		}
	}
	if len(e.Attempts) != 4 {
		t.Errorf("got %v, want the two methods apart", got)
	}
}

// TestExternalAddressesAreInTheLog holds that an address behind a NAT can be told from the log alone, and that
// nothing is written where there is none.
func TestExternalAddressesAreInTheLog(t *testing.T) {
	g := serveTest(t, nil)
	if got := eventsOf[turn.RelaysChanged](g.store); len(got) != 0 {
		t.Errorf("got %v without a NAT, want nothing", got)
	}
	behind := func(external netip.Addr) func(*Config) {
		return func(c *Config) { c.Settings.Rules.Relays = []turn.Relay{{IP: relayIP, External: external}} }
	}
	public := netip.MustParseAddr("198.51.100.1")
	next := g.again(behind(public))
	next = next.again(behind(public))
	next = next.again(behind(relayIP))
	got := eventsOf[turn.RelaysChanged](next.store)
	if len(got) != 2 || got[0].Relays[0].External != public || got[1].Relays[0].Mapped() {
		t.Errorf("got %v, want the NAT to come and to go", got)
	}
}
