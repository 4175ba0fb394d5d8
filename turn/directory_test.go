package turn

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// directory is a lookup that counts what it is asked.
type directory struct {
	presence Presence
	asked    []string
}

func (d *directory) look(realm, name string) (User, Presence) {
	d.asked = append(d.asked, name)
	u := User{Name: name}
	if d.presence == Present || d.presence == Dated {
		u = User{Name: name, Password: "secret"}.Keyed(realm)
	}
	return u, d.presence
}

// TestAdmitWithDirectory holds what the gate makes of each presence. A request whose source
// has not returned a nonce is told so before anybody is looked up, whoever it names.
func TestAdmitWithDirectory(t *testing.T) {
	const address = "198.51.100.1:5000"
	static, right, wrong := alice(), newCaller("dora", "secret", address), newCaller("dora", "wrong", address)
	for _, tt := range []struct {
		name     string
		who      *caller
		presence Presence
		stale    bool
		code     int // 0: admitted, -1: to be asked for
		asked    []string
	}{
		{"Present", right, Present, false, 0, []string{"dora"}},
		{"PresentWrong", wrong, Present, false, 401, []string{"dora"}},
		{"Dated", right, Dated, false, 0, []string{"dora"}},
		{"DatedWrong", wrong, Dated, false, -1, []string{"dora"}},
		{"Absent", right, Absent, false, 401, []string{"dora"}},
		{"Unasked", right, Unasked, false, -1, []string{"dora"}},
		{"UnaskedWrong", wrong, Unasked, false, -1, []string{"dora"}},
		{"PresentStale", right, Present, true, 438, nil},
		{"WrongStale", wrong, Present, true, 438, nil},
		{"AbsentStale", right, Absent, true, 438, nil},
		{"UnaskedStale", right, Unasked, true, 438, nil},
		{"Static", static, Unasked, false, 0, nil},
		{"StaticWrong", newCaller("alice", "wrong", address), Unasked, false, 401, nil},
		{"StaticStale", static, Unasked, true, 438, nil},
		{"StaticWrongStale", newCaller("alice", "wrong", address), Unasked, true, 438, nil},
		{"TimeLimited", timeLimitedCaller("eve", "north", at(time.Hour), address), Unasked, false, 0, nil},
		{"TimeLimitedWrong", timeLimitedCaller("eve", "nowhere", at(time.Hour), address), Unasked, false, 401, nil},
		{"TooLong", newCaller(strings.Repeat("x", 600), "secret", address), Unasked, false, 401, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &directory{presence: tt.presence}
			c := testGateConfig()
			c.Lookup = d.look
			g := NewGate(c)
			nonceAt := at(0)
			if tt.stale {
				nonceAt = at(-2 * time.Hour)
			}
			q, reply, err := g.Admit(tt.who.FiveTuple, tt.who.signed(g, nonceAt, allocateMethod, txid(1), []stun.Setter{transport(17)}), nil, at(0))
			got := 0
			var unasked *UnaskedError
			switch {
			case errors.As(err, &unasked):
				got = -1
				if unasked.Username != tt.who.user {
					t.Errorf("got %q to ask for, want %q", unasked.Username, tt.who.user)
				}
			case err != nil:
				t.Fatal(err)
			case reply != nil:
				got = reply.Code
			case q == nil || q.Username != tt.who.user:
				t.Errorf("got request %+v", q)
			}
			if got != tt.code {
				t.Errorf("got code %d, want %d", got, tt.code)
			}
			if !slices.Equal(d.asked, tt.asked) {
				t.Errorf("looked up %q, want %q", d.asked, tt.asked)
			}
		})
	}
}

// TestDirectoryAndOffer holds that what is offered is what the directory can keep.
func TestDirectoryAndOffer(t *testing.T) {
	for _, tt := range []struct {
		name   string
		sha256 bool
		want   offer
	}{{"MD5", false, offerMD5}, {"SHA256", true, NewGate(testGateConfig()).realms.main.offer}} {
		t.Run(tt.name, func(t *testing.T) {
			c := testGateConfig()
			c.Secrets, c.Lookup, c.LookupSHA256 = nil, (&directory{}).look, tt.sha256
			g := NewGate(c)
			if g.realms.main.offer != tt.want {
				t.Errorf("got offer %v, want %v", g.realms.main.offer, tt.want)
			}
			if features, _ := parseCookie([]byte(g.nonceFor(g.realms.main, alice().Client, at(0)))); features&featureAnonymity != 0 {
				t.Error("anonymity is offered to users that are in no table")
			}
			d := &directory{presence: Present}
			c.Lookup = d.look
			g = NewGate(c)
			who := newCaller("dora", "secret", "198.51.100.1:5000").with(algorithmSHA256, false)
			q, _, err := g.Admit(who.FiveTuple, who.signed(g, at(0), allocateMethod, txid(1), []stun.Setter{transport(17)}), nil, at(0))
			if err != nil || (q != nil) != tt.sha256 {
				t.Errorf("a client with SHA-256: got %+v, %v", q, err)
			}
		})
	}
}

func TestKnowsWithDirectory(t *testing.T) {
	for presence, want := range map[Presence]bool{Unasked: true, Absent: false, Present: true, Dated: true} {
		c := testGateConfig()
		c.Lookup = (&directory{presence: presence}).look
		g := NewGate(c)
		if got := g.Knows(testRealm, "dora", at(0)); got != want {
			t.Errorf("presence %d: got %v, want %v", presence, got, want)
		}
		if !g.Knows(testRealm, "alice", at(0)) {
			t.Errorf("presence %d: a static user is not known", presence)
		}
	}
	if NewGate(testGateConfig()).Knows(testRealm, "dora", at(0)) {
		t.Error("without a directory: an unknown user is known")
	}
}

func TestUnavailable(t *testing.T) {
	g := NewGate(testGateConfig())
	frame := alice().signed(g, at(0), allocateMethod, txid(9), nil)
	seen := see(t, g.Unavailable(alice().FiveTuple, frame).Append(nil))
	if seen.code != CodeServerError || seen.message.Contains(stun.AttrMessageIntegrity) || seen.message.TransactionID != txid(9) {
		t.Errorf("got code %d, %v, want 500 that nobody signed", seen.code, seen.message)
	}
	if g.Unavailable(alice().FiveTuple, frame[:10]) != nil {
		t.Error("got an answer to what is no request")
	}
}
