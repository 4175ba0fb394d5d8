package turn

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

// ban bans who as an operator does, and yields the ends that come of it.
func (c *core) ban(who string, seconds uint32) []Event {
	c.Helper()
	e := UserBanned{Seconds: seconds}
	e.Realm, e.Username, _ = c.gate.Means("", who)
	c.record(e)
	events := Evict(c.state, &c.rules, c.now, 100)
	c.record(events...)
	return events
}

func TestBannedUsersGetNothing(t *testing.T) {
	tcp, data := alice().over(TCP), newCaller("alice", "wonderland", "198.51.100.1:6000").over(TCP)
	for _, tt := range []struct {
		name       string
		who        *caller
		method     stun.Method
		attributes []stun.Setter
		banned     int
		free       int
	}{
		{"Allocate", newCaller("alice", "wonderland", "198.51.100.1:5009"), stun.MethodAllocate, []stun.Setter{transport(17)}, 403, 0},
		{"AllocateWithoutTransport", newCaller("alice", "wonderland", "198.51.100.1:5009"), stun.MethodAllocate, nil, 403, 400},
		{"Refresh", alice(), stun.MethodRefresh, nil, 403, 0},
		{"RefreshWithLifetime", alice(), stun.MethodRefresh, []stun.Setter{lifetime(600)}, 403, 0},
		{"RefreshToZero", alice(), stun.MethodRefresh, []stun.Setter{lifetime(0)}, 0, 0},
		{"CreatePermission", alice(), stun.MethodCreatePermission, peers(peerA), 403, 0},
		{"ChannelBind", alice(), stun.MethodChannelBind, []stun.Setter{channel(0x4000), peer(peerA)}, 403, 0},
		{"Connect", tcp, stun.MethodConnect, peers(peerB), 403, 0},
		{"ConnectionBind", data, stun.MethodConnectionBind, nil, 403, 0},
		{"OfSomebodyElse", bob(), stun.MethodRefresh, nil, 0, 0},
		{"OfSomebodyElseThere", newCaller("alice", "wonderland", "198.51.100.2:5000"), stun.MethodRefresh, nil, 403, 441},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, banned := range []bool{false, true} {
				c := newCore(t)
				c.allocated(alice())
				c.allocated(bob())
				c.mustDo(0, tcp, stun.MethodAllocate, transport(6))
				id := c.mustDo(0, tcp, stun.MethodConnect, peers(peerA)...).message
				attributes := tt.attributes
				if v, err := id.Get(stun.AttrConnectionID); tt.method == stun.MethodConnectionBind && err == nil {
					attributes = []stun.Setter{set(stun.AttrConnectionID, v...)}
				}
				want := tt.free
				if banned { // and what alice has is not ended yet
					want = tt.banned
					c.record(UserBanned{Realm: testRealm, Username: "alice"})
				}
				got := c.do(tt.who, tt.method, attributes...)
				if codeOf(got) != want {
					t.Errorf("banned %t: got code %d, want %d", banned, codeOf(got), want)
				}
				if got.code != 0 && len(got.events) > 0 {
					t.Errorf("banned %t: a refusal made %v", banned, describeAll(got.events))
				}
			}
		})
	}
}

func TestABanEndsWhatTheUserHas(t *testing.T) {
	c := newCore(t)
	c.allocated(alice())
	c.allocated(bob())
	c.mustDo(0, newCaller("alice", "wonderland", "198.51.100.1:5001"), stun.MethodAllocate, transport(17), evenPort(0x80))
	held := c.state.Reservations()[0].Relayed.String()
	got := describeAll(c.ban("alice", 0))
	want := []string{
		"AllocationDeleted allocation=1 reason=banned", "AllocationDeleted allocation=3 reason=banned",
		"ReservationRevoked relayed=" + held + " reason=banned",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	if c.state.Len() != 1 || len(c.ban("alice", 0)) != 0 {
		t.Errorf("got %d allocations, want that of bob", c.state.Len())
	}
}

// TestARetransmissionOfABannedUser does not get the success of before.
func TestARetransmissionOfABannedUser(t *testing.T) {
	c := newCore(t)
	frame := alice().signed(c.gate, c.now, stun.MethodAllocate, txid(1), []stun.Setter{transport(17)})
	if got := c.send(alice(), frame); codeOf(got) != 0 {
		t.Fatalf("got code %d", codeOf(got))
	}
	c.ban("alice", 0)
	if got := c.send(alice(), frame); codeOf(got) != 403 {
		t.Errorf("got code %d once alice is banned, want 403", codeOf(got))
	}
}

func TestBansEnd(t *testing.T) {
	c := newCore(t)
	c.ban("alice", 60)
	c.ban("bob", 0)
	c.wait(59 * time.Second)
	c.mustDo(403, alice(), stun.MethodAllocate, transport(17))
	if got, want := describeAll(c.wait(time.Second)), []string{"UserUnbanned realm=example.org username=alice"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	c.allocated(alice())
	c.wait(1000 * time.Hour)
	c.mustDo(403, bob(), stun.MethodAllocate, transport(17))
	c.record(Unban(c.state, &c.rules, testRealm, "bob")...)
	c.allocated(bob())
	if got := Unban(c.state, &c.rules, testRealm, "bob"); got != nil {
		t.Errorf("got %v for one who is not banned", describeAll(got))
	}

	// What is over is over, whether that is recorded yet or not; a later ban replaces an earlier one.
	c.lazy = true
	c.ban("alice", 60)
	c.ban("alice", 30)
	c.wait(30 * time.Second)
	c.allocated(alice())
}

func TestBansGoOnAfterAReboot(t *testing.T) {
	for _, tt := range []struct {
		name       string
		down, skew time.Duration
		want       int
	}{
		{"Within", 100 * time.Second, 0, 403},
		{"Over", 600 * time.Second, 0, 0},
		{"ClockWentBack", 600 * time.Second, -time.Hour, 403},
	} {
		c := newCore(t)
		c.ban("alice", 600)
		c.ban("bob", 0)
		c.reboot(tt.down, tt.skew)
		c.expire()
		if got := codeOf(c.do(alice(), stun.MethodAllocate, transport(17))); got != tt.want {
			t.Errorf("%s: got code %d, want %d", tt.name, got, tt.want)
		}
		c.mustDo(403, bob(), stun.MethodAllocate, transport(17))
	}
}

// TestWhoIsBanned has users by all the names they may have.
func TestWhoIsBanned(t *testing.T) {
	hidden, rules := NewGate(hashedConfig()), testRules()
	rules.Realms = []string{"other.example"}
	hashed := rules
	hashed.Pseudonyms = testPseudonyms
	p := testPseudonyms
	for _, tt := range []struct {
		name     string
		gate     *Gate
		rules    Rules
		banned   string
		realm    string
		username string
		want     bool
	}{
		{"Name", NewGate(testGateConfig()), rules, "alice", testRealm, "alice", true},
		{"Another", NewGate(testGateConfig()), rules, "alice", testRealm, "alicia", false},
		{"TimeLimited", NewGate(testGateConfig()), rules, "alice", testRealm, "1700000000:alice", true},
		{"ByTimeLimited", NewGate(testGateConfig()), rules, "1800000000:alice", testRealm, "1700000000:alice", true},
		{"WithColon", NewGate(testGateConfig()), rules, "42:phone", testRealm, "1700000000:42:phone", true},
		{"WithColonNotTimeLimited", NewGate(testGateConfig()), rules, "42:phone", testRealm, "42:phone", true},
		{"WithAnotherColon", NewGate(testGateConfig()), rules, "42:phone", testRealm, "43:phone", false},
		{"Nameless", NewGate(testGateConfig()), rules, "1700000000", testRealm, "1700000000", true},
		{"RealmCalledAnew", NewGate(testGateConfig()), rules, "alice", "renamed.example", "alice", true},
		{"AnotherRealm", NewGate(testGateConfig()), rules, "alice", "other.example", "alice", false},
		{"Hashed", hidden, hashed, "alice", testRealm, p.Of("alice"), true},
		{"HashedTimeLimited", hidden, hashed, "alice", testRealm, "1700000000:" + p.Of("alice"), true},
		{"ByPseudonym", hidden, hashed, p.Of("alice"), testRealm, p.Of("alice"), true},
		{"FromBeforeHashing", hidden, hashed, "alice", testRealm, "1700000000:alice", true},
		{"HashedOfAnother", hidden, hashed, "alice", testRealm, p.Of("bob"), false},
	} {
		s := NewState()
		_, name, _ := tt.gate.Means(testRealm, tt.banned)
		if err := s.Fold(Record{First: 1, Moment: at(0), Events: []Event{UserBanned{Realm: testRealm, Username: name}}}); err != nil {
			t.Fatal(err)
		}
		if got := s.banned(&tt.rules, tt.realm, tt.username, at(0)); got != tt.want {
			t.Errorf("%s: %q of %s is banned: got %t, want %t", tt.name, tt.username, tt.realm, got, tt.want)
		}
	}
}

// TestBansLiveThroughAChangeOfForm has users banned by one form of their names and calling by the other.
func TestBansLiveThroughAChangeOfForm(t *testing.T) {
	known := testGateConfig()
	known.Pseudonyms = testPseudonyms
	for _, tt := range []struct {
		name          string
		before, after GateConfig
		want          []string
	}{
		{"ToHashed", known, hashedConfig(), []string{
			"UserUnbanned realm=example.org username=alice",
			"UserBanned realm=example.org username=" + testPseudonyms.Of("alice") + " seconds=41",
			"UserUnbanned realm=example.org username=bob",
			"UserBanned realm=example.org username=" + testPseudonyms.Of("bob") + " seconds=0",
		}},
		{"ToPlain", hashedConfig(), known, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			c.gate, c.rules.Pseudonyms = NewGate(tt.before), testPseudonyms
			c.ban("alice", 60)
			c.ban("bob", 0)
			c.wait(19500 * time.Millisecond)
			c.gate = NewGate(tt.after)
			if diff := cmp.Diff(tt.want, describeAll(c.reload())); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if again := c.reload(); len(again) > 0 {
				t.Errorf("a second reload made %v", describeAll(again))
			}
			c.mustDo(403, alice(), stun.MethodAllocate, transport(17))
			c.mustDo(403, bob(), stun.MethodAllocate, transport(17))
			_, name, _ := c.gate.Means("", "bob")
			c.record(Unban(c.state, &c.rules, testRealm, name)...)
			c.wait(41 * time.Second)
			c.allocated(bob())
			c.allocated(alice())
		})
	}
}

// TestReconcileEndsWhatABanLeft is a start after a crash between the ban and the last of the ends.
func TestReconcileEndsWhatABanLeft(t *testing.T) {
	c := newCore(t)
	c.allocated(alice())
	c.record(UserBanned{Realm: testRealm, Username: "alice"})
	if got, want := describeAll(c.reload()), []string{"AllocationDeleted allocation=1 reason=banned"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestRealmsOfBans(t *testing.T) {
	config := testGateConfig()
	config.Realms = []RealmConfig{{Name: "other.example"}}
	for _, g := range []*Gate{NewGate(testGateConfig()), NewGate(config)} {
		for given, want := range map[string]bool{"": true, testRealm: true, "other.example": len(g.Realms) > 0, "none.example": false} {
			realm, _, known := g.Means(given, "alice")
			if known != want || given != "" && realm != given || given == "" && realm != testRealm {
				t.Errorf("realm %q of %d: got %q, known: %t, want known: %t", given, 1+len(g.Realms), realm, known, want)
			}
		}
	}
}

func TestACloneKeepsItsBans(t *testing.T) {
	c := newCore(t)
	c.ban("alice", 60)
	clone := c.state.Clone()
	c.wait(time.Second)
	c.ban("alice", 0)
	if b := clone.Ban(testRealm, "alice"); b.Endless() || b.Since != at(0) {
		t.Errorf("got %+v in the clone after another ban, want that of before", b)
	}
}
