package turn

import (
	"slices"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

const (
	northRealm  = "north.example.org"
	southRealm  = "south.example.org"
	southServer = "192.0.2.1:3479"
)

// realmsConfig has a realm for an origin and one for a listener, an alice in each.
func realmsConfig() GateConfig {
	c := testGateConfig()
	c.Realms = []RealmConfig{
		{
			Name: northRealm, Origins: []string{"https://north.example.org", "https://www.north.example.org:8443"},
			Users: []User{{Name: "alice", Password: "arctic"}, {Name: "nanuq", Password: "ice"}},
		},
		{
			Name: southRealm, Listeners: []Listen{{UDP, addrPort(southServer)}},
			Users: []User{{Name: "alice", Key: algorithmMD5.key("alice", southRealm, "antarctic")}},
		},
	}
	return c
}

func realmsCore(t *testing.T) *core {
	c := newCore(t)
	c.gate = NewGate(realmsConfig())
	c.rules.Realms = []string{northRealm, southRealm}
	return c
}

func origin(s string) stun.Setter { return set(stun.AttrOrigin, []byte(s)...) }

// TestChallengeNamesTheRealm has the realm that clients are told by where they come from.
func TestChallengeNamesTheRealm(t *testing.T) {
	c := realmsCore(t)
	for _, tt := range []struct {
		name       string
		server     string
		attributes []stun.Setter
		want       string
	}{
		{"Nothing", testServer, nil, testRealm},
		{"Origin", testServer, []stun.Setter{origin("https://north.example.org")}, northRealm},
		{"OtherOriginOfTheRealm", testServer, []stun.Setter{origin("https://www.north.example.org:8443")}, northRealm},
		{"OriginInCapitals", testServer, []stun.Setter{origin("https://North.Example.org")}, northRealm},
		{"OriginUnknown", testServer, []stun.Setter{origin("https://example.net")}, testRealm},
		{"OriginOfAnotherPort", testServer, []stun.Setter{origin("https://north.example.org:8443")}, testRealm},
		{"OriginEmpty", testServer, []stun.Setter{origin("")}, testRealm},
		{"FirstOriginThatIsKnown", testServer, []stun.Setter{origin("https://example.net"), origin("https://north.example.org")}, northRealm},
		{"Realm", testServer, []stun.Setter{stun.NewRealm(northRealm)}, northRealm},
		{"RealmBeforeOrigin", testServer, []stun.Setter{origin("https://north.example.org"), stun.NewRealm(testRealm)}, testRealm},
		{"RealmUnknown", testServer, []stun.Setter{stun.NewRealm("example.net"), origin("https://north.example.org")}, northRealm},
		{"RealmOfTheListener", southServer, nil, southRealm},
		{"ListenerBeforeOrigin", southServer, []stun.Setter{origin("https://north.example.org")}, southRealm},
		{"ListenerBeforeRealm", southServer, []stun.Setter{stun.NewRealm(northRealm)}, southRealm},
	} {
		t.Run(tt.name, func(t *testing.T) {
			who := alice()
			who.Server = addrPort(tt.server)
			got := c.send(who, plain(stun.MethodAllocate, txid(1), tt.attributes...))
			if codeOf(got) != 401 || got.realm != tt.want {
				t.Errorf("got code %d and realm %q, want 401 and %q", codeOf(got), got.realm, tt.want)
			}
			if want := tt.want == southRealm; (len(got.offered) == 4) != want {
				t.Errorf("got algorithms %x, want MD5 alone: %t", got.offered, want)
			}
		})
	}
}

// TestRealmsHaveUsersOfTheirOwn tries every alice in every realm.
func TestRealmsHaveUsersOfTheirOwn(t *testing.T) {
	passwords := map[string]string{testRealm: "wonderland", northRealm: "arctic", southRealm: "antarctic"}
	for in, password := range passwords {
		for realm := range passwords {
			c := realmsCore(t)
			who := newCaller("alice", password, "198.51.100.1:5000").in(realm)
			if realm == southRealm {
				who.Server = addrPort(southServer)
			}
			want := 401
			if realm == in {
				want = 0
			}
			c.mustDo(want, who, stun.MethodAllocate, transport(17))
			if a := c.state.ByFiveTuple(who.FiveTuple); want == 0 && a.Realm != realm {
				t.Errorf("the allocation is in realm %q, want %q", a.Realm, realm)
			}
		}
	}
	c := realmsCore(t)
	north := newCaller("alice", "arctic", "198.51.100.1:5000").in(northRealm)
	for _, anonymous := range []bool{false, true} {
		c.mustDo(0, north.with(algorithmSHA256, anonymous), stun.MethodAllocate, transport(17))
		c.mustDo(0, north.with(algorithmSHA256, anonymous), stun.MethodRefresh, lifetime(0))
	}
	c.mustDo(401, newCaller("nanuq", "ice", "198.51.100.1:5000").in(testRealm), stun.MethodAllocate, transport(17))
	south := north.in(northRealm)
	south.Server = addrPort(southServer)
	c.mustDo(401, south, stun.MethodAllocate, transport(17))
	limited := timeLimitedCaller("carol", "north", at(time.Hour), "198.51.100.3:5000").in(northRealm)
	c.mustDo(0, limited, stun.MethodAllocate, transport(17))
}

// TestUsersOfTwoRealmsAreTwo has users of one name that are neither one another nor count for one another.
func TestUsersOfTwoRealmsAreTwo(t *testing.T) {
	c := realmsCore(t)
	c.rules.MaxPerOwner = 1
	main, north := alice(), newCaller("alice", "arctic", alice().Client.String()).in(northRealm)
	elsewhere := newCaller("alice", "arctic", "198.51.100.1:5001").in(northRealm)
	c.mustDo(0, main, stun.MethodAllocate, transport(17))
	c.mustDo(437, north, stun.MethodAllocate, transport(17))
	c.mustDo(441, north, stun.MethodRefresh)
	c.mustDo(441, north, stun.MethodCreatePermission, peer(peerA))
	c.mustDo(0, elsewhere, stun.MethodAllocate, transport(17))
	for _, realm := range []string{testRealm, northRealm} {
		if got := c.state.Owned(realm, "alice"); got != 1 {
			t.Errorf("got %d allocations of alice in %q, want 1", got, realm)
		}
	}
	c.mustDo(486, newCaller("alice", "arctic", "198.51.100.1:5002").in(northRealm), stun.MethodAllocate, transport(17))
}

// TestReservationIsOfItsRealm has a token that is of no use to the user of that name in another realm.
func TestReservationIsOfItsRealm(t *testing.T) {
	c := realmsCore(t)
	seen := c.mustDo(0, alice(), stun.MethodAllocate, transport(17), evenPort(0x80))
	token, err := seen.message.Get(stun.AttrReservationToken)
	if err != nil {
		t.Fatal(err)
	}
	redeem := []stun.Setter{transport(17), set(stun.AttrReservationToken, token...)}
	c.mustDo(508, newCaller("alice", "arctic", "198.51.100.1:5001").in(northRealm), stun.MethodAllocate, redeem...)
	if held := c.state.Reservations(); len(held) != 1 || held[0].Realm != testRealm {
		t.Errorf("got reservations %+v, want one of %q", held, testRealm)
	}
	c.mustDo(0, newCaller("alice", "wonderland", "198.51.100.1:5002"), stun.MethodAllocate, redeem...)
}

func TestQuotaOfARealm(t *testing.T) {
	c := realmsCore(t)
	c.rules.MaxPerRealm = 2
	nanuq := newCaller("nanuq", "ice", "198.51.100.4:5000").in(northRealm)
	c.mustDo(0, newCaller("alice", "arctic", "198.51.100.1:5000").in(northRealm), stun.MethodAllocate, transport(17))
	c.mustDo(0, nanuq, stun.MethodAllocate, transport(17))
	c.mustDo(486, newCaller("nanuq", "ice", "198.51.100.4:5001").in(northRealm), stun.MethodAllocate, transport(17))
	c.mustDo(0, bob(), stun.MethodAllocate, transport(17))
	c.mustDo(486, newCaller("alice", "wonderland", "198.51.100.1:5001"), stun.MethodAllocate, transport(17), evenPort(0x80))
	c.mustDo(0, nanuq, stun.MethodRefresh, lifetime(0))
	c.mustDo(0, newCaller("nanuq", "ice", "198.51.100.4:5001").in(northRealm), stun.MethodAllocate, transport(17))
	c.lazy = true
	c.wait(time.Hour)
	c.mustDo(0, newCaller("nanuq", "ice", "198.51.100.4:5002").in(northRealm), stun.MethodAllocate, transport(17))
}

// TestReloadOfRealms ends the allocations of users whom a realm no longer has, and those alone.
func TestReloadOfRealms(t *testing.T) {
	north, south := newCaller("nanuq", "ice", "198.51.100.4:5000").in(northRealm), newCaller("alice", "antarctic", "198.51.100.5:5000").in(southRealm)
	south.Server = addrPort(southServer)
	for _, tt := range []struct {
		name   string
		change func(*GateConfig)
		left   []string
	}{
		{"Same", func(*GateConfig) {}, []string{"alice", "nanuq", "alice"}},
		{"UserGone", func(c *GateConfig) { c.Realms[0].Users = c.Realms[0].Users[:1] }, []string{"alice", "alice"}},
		{"MainUserGone", func(c *GateConfig) { c.Users = c.Users[1:] }, []string{"nanuq", "alice"}},
		{"RealmGone", func(c *GateConfig) { c.Realms = c.Realms[1:] }, []string{"alice", "alice"}},
		{"MainRealmCalledAnew", func(c *GateConfig) { c.Realm = "example.net" }, []string{"alice", "nanuq", "alice"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := realmsCore(t)
			for _, who := range []*caller{alice(), north, south} {
				c.mustDo(0, who, stun.MethodAllocate, transport(17))
			}
			config := realmsConfig()
			tt.change(&config)
			c.gate, c.rules.Realms = NewGate(config), nil
			for _, r := range config.Realms {
				c.rules.Realms = append(c.rules.Realms, r.Name)
			}
			c.reload()
			var left []string
			for a := range c.state.Allocations() {
				left = append(left, a.Username)
			}
			if !slices.Equal(left, tt.left) {
				t.Errorf("got the allocations of %v left, want %v", left, tt.left)
			}
			if config.Realm != testRealm {
				c.mustDo(0, alice().in(config.Realm), stun.MethodRefresh)
			}
		})
	}
}
