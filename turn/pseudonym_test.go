package turn

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

var testPseudonyms = NewPseudonyms([32]byte{9})

// hashedConfig is the test gate's, with pseudonyms.
func hashedConfig() GateConfig {
	c := testGateConfig()
	c.Pseudonyms, c.HashNames = testPseudonyms, true
	return c
}

func hashedCore(t tb) *core {
	c := newCore(t)
	c.gate, c.rules.Pseudonyms = NewGate(hashedConfig()), testPseudonyms
	return c
}

// eve has a time-limited credential.
func eve(expires time.Duration, address string) *caller {
	return timeLimitedCaller("eve", "north", at(expires), address)
}

func TestPseudonymOfAName(t *testing.T) {
	p := testPseudonyms
	got := p.Of("alice")
	if len(got) != 33 || got[0] != '~' || got != p.Of("alice") || got == p.Of("bob") || got == NewPseudonyms([32]byte{8}).Of("alice") {
		t.Errorf("the pseudonym of alice is %q", got)
	}
	for name, want := range map[string]string{
		"1700000000:alice": "1700000000:" + got, "1700000000": "1700000000", "1700000000:": "1700000000:", "alice": "alice",
	} {
		limited, ok := p.OfLimited(name)
		if limited != want || ok != (name != "alice") {
			t.Errorf("%q is written %q (%t), want %q", name, limited, ok, want)
		}
		if ok && Owner(limited) != want[strings.IndexByte(want, ':')+1:] && strings.Contains(want, "~") {
			t.Errorf("%q counts for %q", name, Owner(limited))
		}
	}
}

func TestUsersAreCalledByPseudonyms(t *testing.T) {
	c := hashedCore(t)
	for _, who := range []*caller{alice(), bob(), bob().with(algorithmSHA256, false).over(TCP), eve(time.Hour, "198.51.100.3:5000")} {
		if got := c.do(who, allocateMethod, transport(17)); codeOf(got) != 0 {
			t.Fatalf("allocate for %s: code %d", who.user, codeOf(got))
		}
	}
	var names []string
	for a := range c.state.Allocations() {
		names = append(names, a.Username)
	}
	expiry, _, _ := strings.Cut(eve(time.Hour, "198.51.100.3:5000").user, ":")
	p := testPseudonyms
	if want := []string{p.Of("alice"), p.Of("bob"), p.Of("bob"), expiry + ":" + p.Of("eve")}; !slices.Equal(names, want) {
		t.Errorf("the allocations are of %q, want %q", names, want)
	}
	if text := fmt.Sprintf("%+v", c.records); strings.Contains(text, "alice") || strings.Contains(text, "bob") || strings.Contains(text, "eve") {
		t.Errorf("a record has a name: %s", text)
	}
}

func TestQuotaCountsPseudonyms(t *testing.T) {
	c := hashedCore(t)
	c.rules.MaxPerOwner = 2
	steps := []struct {
		who  *caller
		code int
	}{
		{eve(time.Hour, "198.51.100.3:5000"), 0},
		{eve(2*time.Hour, "198.51.100.3:5001"), 0},
		{eve(3*time.Hour, "198.51.100.3:5002"), CodeQuotaReached},
		{bob(), 0},
		{timeLimitedCaller("bob", "south", at(time.Hour), "198.51.100.2:5001"), 0},
		{newCaller("bob", "builder", "198.51.100.2:5002"), CodeQuotaReached},
		{alice(), 0},
	}
	for i, s := range steps {
		if got := c.do(s.who, allocateMethod, transport(17)); codeOf(got) != s.code {
			t.Errorf("step %d, %s: got code %d, want %d", i, s.who.user, codeOf(got), s.code)
		}
	}
}

func TestPseudonymsOfOthersAreWrongCredentials(t *testing.T) {
	c := hashedCore(t)
	c.do(alice(), allocateMethod, transport(17))
	other := bob()
	other.FiveTuple = alice().FiveTuple
	if got := c.do(other, stun.MethodRefresh, lifetime(0)); codeOf(got) != CodeWrongCredentials {
		t.Errorf("another user: got code %d, want %d", codeOf(got), CodeWrongCredentials)
	}
	if got := c.do(alice(), stun.MethodRefresh, lifetime(600)); codeOf(got) != 0 {
		t.Errorf("the same user: got code %d", codeOf(got))
	}
}

func TestReloadEndsPseudonymsOfUsersWhoAreGone(t *testing.T) {
	c := hashedCore(t)
	for _, who := range []*caller{alice(), bob(), eve(time.Hour, "198.51.100.3:5000")} {
		c.do(who, allocateMethod, transport(17))
	}
	if events := c.reload(); len(events) != 0 {
		t.Fatalf("the same users: got %v", events)
	}
	config := hashedConfig()
	config.Users = config.Users[1:]
	c.gate = NewGate(config)
	if got := fmt.Sprint(c.reload()); got != fmt.Sprint([]Event{AllocationDeleted{Allocation: 1, Reason: ReasonUserRemoved}}) {
		t.Errorf("without alice: got %v", got)
	}
	config.Secrets = nil
	c.gate = NewGate(config)
	if got := fmt.Sprint(c.reload()); got != fmt.Sprint([]Event{AllocationDeleted{Allocation: 3, Reason: ReasonUserRemoved}}) {
		t.Errorf("without secrets: got %v", got)
	}
}

// TestRefusedNamesAreHashedWhole has what somebody typed, which may be a password, hashed.
func TestRefusedNamesAreHashedWhole(t *testing.T) {
	p := testPseudonyms
	for given, want := range map[string]string{
		"hunter2": p.Of("hunter2"), "4915112345678": p.Of("4915112345678"), "alice": p.Of("alice"),
		"1700000000:mallory": "1700000000:" + p.Of("mallory"),
	} {
		g := NewGate(hashedConfig())
		who := newCaller(given, "wrong", "198.51.100.9:5000")
		_, reply, err := g.Admit(who.FiveTuple, who.signed(g, at(0), allocateMethod, txid(1), []stun.Setter{transport(17)}), nil, at(0))
		if err != nil || reply == nil || reply.Code != CodeUnauthenticated || reply.Username != want {
			t.Errorf("%q: got %+v (%v), want 401 of %q", given, reply, err, want)
		}
	}
}

// TestNamesLiveThroughAChangeOfForm has allocations from before and after a change of how users are called.
func TestNamesLiveThroughAChangeOfForm(t *testing.T) {
	known := testGateConfig()
	known.Pseudonyms = testPseudonyms // as a daemon has that was hashed once
	for _, tt := range []struct {
		name          string
		before, after GateConfig
	}{{"ToHashed", testGateConfig(), hashedConfig()}, {"ToPlain", hashedConfig(), known}} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			c.gate, c.rules.Pseudonyms = NewGate(tt.before), testPseudonyms
			callers := []*caller{alice(), eve(time.Hour, "198.51.100.3:5000")}
			for _, who := range callers {
				c.do(who, allocateMethod, transport(17))
			}
			c.gate = NewGate(tt.after)
			if events := c.reload(); len(events) != 0 {
				t.Fatalf("the change ends %v", events)
			}
			other := bob()
			other.FiveTuple = alice().FiveTuple
			if got := c.do(other, stun.MethodRefresh, lifetime(600)); codeOf(got) != CodeWrongCredentials {
				t.Errorf("another user: got code %d, want %d", codeOf(got), CodeWrongCredentials)
			}
			for _, who := range callers {
				if got := c.do(who, stun.MethodRefresh, lifetime(600)); codeOf(got) != 0 {
					t.Errorf("%s refreshes: got code %d", who.user, codeOf(got))
				}
			}
			tt.after.Users = tt.after.Users[1:]
			c.gate = NewGate(tt.after)
			if got := fmt.Sprint(c.reload()); got != fmt.Sprint([]Event{AllocationDeleted{Allocation: 1, Reason: ReasonUserRemoved}}) {
				t.Errorf("without alice: got %v", got)
			}
		})
	}
}

func TestDirectoryIsLookedUpByPseudonym(t *testing.T) {
	p := testPseudonyms
	dora := newCaller("dora", "secret", "198.51.100.1:5000")
	for _, presence := range []Presence{Unasked, Present, Absent} {
		d := &directory{presence: presence}
		c := hashedConfig()
		c.Lookup = func(realm, name string) (User, Presence) {
			u, found := d.look(realm, name)
			if found == Present {
				u = User{Name: "dora", Password: "secret"}.Keyed(realm)
			}
			return u, found
		}
		g := NewGate(c)
		q, _, err := g.Admit(dora.FiveTuple, dora.signed(g, at(0), allocateMethod, txid(1), []stun.Setter{transport(17)}), nil, at(0))
		var unasked *UnaskedError
		switch {
		case presence == Unasked && (!errors.As(err, &unasked) || unasked.Username != "dora" || unasked.As != p.Of("dora")):
			t.Errorf("unasked: got %+v, %v", q, err)
		case presence == Present && (q == nil || q.Username != p.Of("dora")):
			t.Errorf("present: got %+v, %v", q, err)
		}
		if got := g.Knows(testRealm, p.Of("dora"), at(0)); got != (presence != Absent) {
			t.Errorf("presence %d: the pseudonym is known: %t", presence, got)
		}
		if slices.Contains(d.asked, "dora") {
			t.Errorf("presence %d: looked up %q", presence, d.asked)
		}
	}
}
