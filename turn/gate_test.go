package turn

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

const allocateMethod = stun.MethodAllocate

func TestAdmitOrder(t *testing.T) {
	g, a, now := NewGate(testGateConfig()), alice(), at(time.Minute)
	good, tx := g.nonceFor(g.realms.main, a.Client, now), txid(1)
	stranger, wrong := newCaller("mallory", "x", a.Client.String()), newCaller("alice", "x", a.Client.String())
	unknownAttribute := set(0x7FFE, 1)
	without := func(drop stun.AttrType) []stun.Setter {
		var out []stun.Setter
		for _, s := range a.credential(good) {
			m := stun.New()
			if err := s.AddTo(m); err != nil {
				t.Fatal(err)
			}
			if m.Attributes[0].Type != drop {
				out = append(out, s)
			}
		}
		return append(out, unknownAttribute, a.key())
	}
	with := func(c *caller, nonce string, more ...stun.Setter) []stun.Setter {
		return append(append(c.credential(nonce), more...), c.key())
	}
	for _, tt := range []struct {
		name       string
		attributes []stun.Setter
		code       int // 0: admitted
		challenged bool
		returned   bool
	}{
		{"NoIntegrity", []stun.Setter{transport(17)}, 401, true, false},
		{"NoIntegrityButCredential", append(a.credential(good), transport(17)), 401, true, false},
		{"NoIntegrityAndUnknownAttribute", []stun.Setter{unknownAttribute}, 401, true, false},
		{"OnlySHA256", append(a.credential(good), set(stun.AttrMessageIntegritySHA256, make([]byte, 32)...)), 401, true, true},
		{"NoUsername", without(stun.AttrUsername), 400, false, false},
		{"NoRealm", without(stun.AttrRealm), 400, false, false},
		{"NoNonce", without(stun.AttrNonce), 400, false, false},
		{"UsernameTooLong", with(newCaller(strings.Repeat("x", 764), "x", a.Client.String()), good), 400, false, false},
		{"UsernameIsNoUTF8", with(newCaller("a\xFF", "x", a.Client.String()), good), 400, false, false},
		{"IntegrityOfOtherLength", append(a.credential(good), set(stun.AttrMessageIntegrity, make([]byte, 16)...)), 400, false, false},
		{"UnknownUser", with(stranger, good), 401, true, true},
		{"WrongPassword", with(wrong, good), 401, true, true},
		{"WrongPasswordAndStaleNonce", with(wrong, "stale"), 401, true, false},
		{"StaleNonce", with(a, "stale"), 438, true, false},
		{"StaleNonceAndUnknownAttribute", with(a, "stale", unknownAttribute), 438, true, false},
		{"WrongPasswordAndUnknownAttribute", with(wrong, good, unknownAttribute), 401, true, true},
		{"UnknownAttribute", with(a, good, unknownAttribute), 420, false, true},
		{"UnknownOptionalAttribute", with(a, good, set(0xFFFE, 1)), 0, false, true},
		{"AfterIntegrity", append(with(a, good), unknownAttribute), 0, false, true},
		{"Fingerprint", append(with(a, good), stun.Fingerprint), 0, false, true},
		{"LongestUsername", with(newCaller(strings.Repeat("x", 763), "x", a.Client.String()), good), 401, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			frame := plain(allocateMethod, tx, tt.attributes...)
			q, reply, err := g.Admit(a.FiveTuple, frame, nil, now)
			if err != nil {
				t.Fatalf("got %v, want code %d", err, tt.code)
			}
			if tt.code == 0 {
				if q == nil {
					t.Fatalf("got code %d, want a request", reply.Code)
				}
				if q.Username != "alice" || q.Tx != tx || q.Method != allocateMethod || q.FiveTuple != a.FiveTuple {
					t.Errorf("got request %+v", q)
				}
				return
			}
			if q != nil {
				t.Fatalf("got a request, want code %d", tt.code)
			}
			seen := see(t, reply.Append(nil))
			if seen.code != tt.code {
				t.Errorf("got code %d, want %d", seen.code, tt.code)
			}
			if got := seen.nonce != ""; got != tt.challenged {
				t.Errorf("got a NONCE: %t, want %t", got, tt.challenged)
			}
			if got := seen.offered != nil; got != tt.challenged {
				t.Errorf("got PASSWORD-ALGORITHMS: %t, want %t", got, tt.challenged)
			}
			if tt.challenged && (seen.realm != testRealm || !g.nonceValid([]byte(seen.nonce), a.Client, now)) {
				t.Errorf("got realm %q and nonce %q, want a valid challenge", seen.realm, seen.nonce)
			}
			if got := reply.NonceReturned; got != tt.returned {
				t.Errorf("got NonceReturned %t, want %t", got, tt.returned)
			}
			authenticated := tt.code == 420
			if reply.Unauthenticated == authenticated {
				t.Errorf("got Unauthenticated %t", reply.Unauthenticated)
			}
			if got := seen.message.Contains(stun.AttrMessageIntegrity); got != authenticated {
				t.Errorf("got MESSAGE-INTEGRITY in the answer: %t, want %t", got, authenticated)
			}
			if seen.message.Contains(stun.AttrUsername) {
				t.Error("the answer tells a USERNAME")
			}
		})
	}
}

func TestAdmitDrops(t *testing.T) {
	g, a, now := NewGate(testGateConfig()), alice(), at(0)
	signed := a.signed(g, now, allocateMethod, txid(1), []stun.Setter{transport(17)})
	broken := plain(stun.MethodBinding, txid(1), stun.Fingerprint)
	broken[len(broken)-1] ^= 1
	early := plain(stun.MethodBinding, txid(1), stun.Fingerprint, stun.NewSoftware("later"))
	indication := plain(stun.MethodSend, txid(1))
	indication[1] |= 0x10
	response := plain(stun.MethodBinding, txid(1))
	response[0] |= 1
	long := append(slices.Clone(signed), 0, 0, 0, 0)
	cookie := slices.Clone(signed)
	cookie[4] ^= 1
	attribute := slices.Clone(signed)
	attribute[22], attribute[23] = 0x7F, 0xFF
	for _, tt := range []struct {
		name  string
		frame []byte
	}{
		{"Empty", nil},
		{"Short", signed[:19]},
		{"Truncated", signed[:len(signed)-4]},
		{"LongerThanItSays", long},
		{"OddLength", append(slices.Clone(signed), 0)},
		{"WrongCookie", cookie},
		{"AttributeBeyondTheEnd", attribute},
		{"WrongFingerprint", broken},
		{"FingerprintNotLast", early},
		{"FingerprintOfOtherLength", plain(stun.MethodBinding, txid(1), set(stun.AttrFingerprint, 1, 2))},
		{"Indication", indication},
		{"Response", response},
		{"UnknownMethod", plain(stun.Method(0x0B1), txid(1))},
		{"SendRequest", plain(stun.MethodSend, txid(1))},
		{"ChannelData", []byte{0x40, 0, 0, 0}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if q, reply, err := g.Admit(a.FiveTuple, tt.frame, nil, now); !errors.Is(err, ErrDrop) || q != nil || reply != nil {
				t.Errorf("got %v, %v, %v, want ErrDrop", q, reply, err)
			}
		})
	}
}

func TestBinding(t *testing.T) {
	c := newCore(t)
	for _, tt := range []struct {
		name       string
		attributes []stun.Setter
		code       int
		unknown    []stun.AttrType
	}{
		{"Plain", nil, 0, nil},
		{"ICE", []stun.Setter{set(stun.AttrPriority, 0, 0, 0, 1), set(stun.AttrUseCandidate), stun.NewUsername("a:b")}, 0, nil},
		{"Unknown", []stun.Setter{set(0x7FFE), set(0x0002, 1), set(0x7FFE)}, 420, []stun.AttrType{0x7FFE, 0x0002}},
		{"UnknownAfterIntegrity", []stun.Setter{stun.NewShortTermIntegrity("x"), set(0x7FFE)}, 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			for _, who := range []*caller{alice(), newCaller("", "", "[2001:db8::77]:5000")} {
				got := c.send(who, plain(stun.MethodBinding, txid(1), tt.attributes...))
				if codeOf(got) != tt.code {
					t.Fatalf("got code %d, want %d", codeOf(got), tt.code)
				}
				if want := who.Client; tt.code == 0 && got.mapped != want {
					t.Errorf("got XOR-MAPPED-ADDRESS %v, want %v", got.mapped, want)
				}
				if !slices.Equal(got.unknown, tt.unknown) {
					t.Errorf("got UNKNOWN-ATTRIBUTES %v, want %v", got.unknown, tt.unknown)
				}
			}
		})
	}
}

func TestFingerprintIsReturned(t *testing.T) {
	c := newCore(t)
	for _, with := range []bool{true, false} {
		var tail []stun.Setter
		if with {
			tail = append(tail, stun.Fingerprint)
		}
		got := c.send(alice(), alice().signed(c.gate, c.now, stun.MethodRefresh, txid(1), nil, tail...))
		if got := stun.Fingerprint.Check(got.message) == nil; got != with {
			t.Errorf("request with FINGERPRINT %t: answer has a right one: %t", with, got)
		}
	}
}

func TestUnknownAttributesAreBounded(t *testing.T) {
	c := newCore(t)
	var many []stun.Setter
	for i := range 10_000 {
		many = append(many, set(stun.AttrType(0x3000+i%0x1000)))
	}
	got := c.mustDo(420, alice(), stun.MethodRefresh, many...)
	if len(got.unknown) != maxUnknown {
		t.Errorf("got %d unknown attributes, want %d", len(got.unknown), maxUnknown)
	}
	for i, a := range got.unknown {
		if a != stun.AttrType(0x3000+i) {
			t.Fatalf("unknown attribute %d: got %v, want the first ones in order", i, a)
		}
	}
}

// TestUnknownUserAndWrongPasswordLookAlike compares the answers' bytes.
func TestUnknownUserAndWrongPasswordLookAlike(t *testing.T) {
	g, now := NewGate(testGateConfig()), at(0)
	const address = "198.51.100.1:5000"
	limited := TimeLimitedUsername("carol", at(time.Hour).WallTime())
	over := timeLimitedCaller("carol", "north", at(-time.Hour), address)
	var first []byte
	for _, c := range []*caller{
		newCaller("alice", "wrong", address),
		newCaller("bob", "wrong", address),
		newCaller("nobody", "x", address),
		newCaller("", "", address),
		newCaller(limited, "wrong", address),
		newCaller("nobody", TimeLimitedPassword([]byte("north"), "nobody"), address),
		newCaller("alice", TimeLimitedPassword([]byte("north"), "alice"), address),
		over,
		newCaller("alice", "wrong", address).with(algorithmSHA256, false),
		newCaller("alice", "wrong", address).with(algorithmMD5, true),
		newCaller("alice", "wrong", address).with(algorithmSHA256, true),
		newCaller("nobody", "x", address).with(algorithmSHA256, false),
		newCaller("nobody", "x", address).with(algorithmSHA256, true),
		newCaller(limited, "wrong", address).with(algorithmSHA256, false),
		newCaller(limited, TimeLimitedPassword([]byte("north"), limited), address).with(algorithmSHA256, true),
		over.with(algorithmSHA256, false),
	} {
		_, reply, err := g.Admit(c.FiveTuple, c.signed(g, now, allocateMethod, txid(1), nil), nil, now)
		if err != nil || reply == nil {
			t.Fatalf("%q: got %v, %v, want a refusal", c.user, reply, err)
		}
		got := reply.Append(nil)
		if first == nil {
			first = got
		}
		if !bytes.Equal(got, first) {
			t.Errorf("%q: got\n%x, want as for a wrong password\n%x", c.user, got, first)
		}
	}
}

// pretenders are pairs of which the first exists and the second does not.
func pretenders() map[string]struct {
	secrets [][]byte
	users   [2]string
} {
	secrets := testGateConfig().Secrets
	return map[string]struct {
		secrets [][]byte
		users   [2]string
	}{
		"NoSecrets": {nil, [2]string{"alice", "malcy"}},
		"Secrets":   {secrets, [2]string{"alice", "malcy"}},
	}
}

// modernities are the kinds of clients whose refusals are compared.
var modernities = map[string]func(*caller) *caller{
	"RFC5389":   func(c *caller) *caller { return c },
	"SHA256":    func(c *caller) *caller { return c.with(algorithmSHA256, false) },
	"Anonymous": func(c *caller) *caller { return c.with(algorithmSHA256, true) },
}

// leastAllocations is how many f makes at least: pools drop what they hold by chance, under the race detector often.
func leastAllocations(f func()) float64 {
	least := math.Inf(1)
	for range 200 {
		least = min(least, testing.AllocsPerRun(1, f))
	}
	return least
}

// TestRefusalsTakeTheSameWork counts allocations, of which each MAC that is tried makes some: to measure time
// is for BenchmarkRefusal.
func TestRefusalsTakeTheSameWork(t *testing.T) {
	now := at(0)
	for name, tt := range pretenders() {
		for modernity, of := range modernities {
			config := testGateConfig()
			config.Secrets = tt.secrets
			g := NewGate(config)
			var work [2]float64
			for i, user := range tt.users {
				c := of(newCaller(user, "a wrong one", "198.51.100.1:5000"))
				frame := c.signed(g, now, allocateMethod, txid(1), nil)
				work[i] = leastAllocations(func() { _, _, _ = g.Admit(c.FiveTuple, frame, nil, now) })
			}
			const pool = 3 // of messages: it keeps or drops one by chance; a MAC makes more than ten
			if math.Abs(work[0]-work[1]) > pool || work[0] < 5 {
				t.Errorf("%s/%s: %v allocations for %q and %v for %q, want the same", name, modernity, work[0], tt.users[0], work[1], tt.users[1])
			}
		}
	}
}

func BenchmarkRefusal(b *testing.B) {
	now := at(0)
	for name, tt := range pretenders() {
		for modernity, of := range modernities {
			config := testGateConfig()
			config.Secrets = tt.secrets
			g := NewGate(config)
			for i, user := range tt.users {
				c := of(newCaller(user, "a wrong one", "198.51.100.1:5000"))
				frame := c.signed(g, now, allocateMethod, txid(1), nil)
				b.Run(name+"/"+modernity+[]string{"/known", "/unknown"}[i], func(b *testing.B) {
					for b.Loop() {
						_, _, _ = g.Admit(c.FiveTuple, frame, nil, now)
					}
				})
			}
		}
	}
}

func TestTimeLimitedCredentials(t *testing.T) {
	const address = "198.51.100.3:5000"
	expiry := at(time.Hour)
	for _, tt := range []struct {
		name    string
		who     *caller
		grace   time.Duration
		at      Moment
		method  stun.Method
		refused bool
	}{
		{"FirstSecret", timeLimitedCaller("carol", "north", expiry, address), -1, at(0), stun.MethodAllocate, false},
		{"SecondSecret", timeLimitedCaller("carol", "south", expiry, address), -1, at(0), stun.MethodAllocate, false},
		{"RetiredSecret", timeLimitedCaller("carol", "west", expiry, address), -1, at(0), stun.MethodAllocate, true},
		{"WithoutUser", timeLimitedCaller("", "north", expiry, address), -1, at(0), stun.MethodAllocate, false},
		{"LastMoment", timeLimitedCaller("carol", "north", expiry, address), -1, at(time.Hour - 1), stun.MethodAllocate, false},
		{"AllocateAfterExpiry", timeLimitedCaller("carol", "north", expiry, address), -1, at(time.Hour), stun.MethodAllocate, true},
		{"RefreshAfterExpiry", timeLimitedCaller("carol", "north", expiry, address), -1, at(48 * time.Hour), stun.MethodRefresh, false},
		{"BindAfterExpiry", timeLimitedCaller("carol", "north", expiry, address), -1, at(48 * time.Hour), stun.MethodChannelBind, false},
		{"RefreshInGrace", timeLimitedCaller("carol", "north", expiry, address), time.Minute, at(time.Hour + time.Minute - 1), stun.MethodRefresh, false},
		{"RefreshAfterGrace", timeLimitedCaller("carol", "north", expiry, address), time.Minute, at(time.Hour + time.Minute), stun.MethodRefresh, true},
		{"PermitAfterGrace", timeLimitedCaller("carol", "north", expiry, address), time.Minute, at(time.Hour + time.Minute), stun.MethodCreatePermission, true},
		{"RefreshWithoutGrace", timeLimitedCaller("carol", "north", expiry, address), 0, at(time.Hour), stun.MethodRefresh, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := testGateConfig()
			config.CredentialGrace = tt.grace
			g := NewGate(config)
			q, reply, err := g.Admit(tt.who.FiveTuple, tt.who.signed(g, tt.at, tt.method, txid(1), nil), nil, tt.at)
			if err != nil {
				t.Fatal(err)
			}
			if got := q == nil; got != tt.refused {
				t.Errorf("got refused %t, want %t", got, tt.refused)
			}
			if q == nil && reply.Code != CodeUnauthenticated {
				t.Errorf("got code %d, want 401", reply.Code)
			}
		})
	}
}

// TestStaticUserWithTimeLikeName has a static user whose name reads as an expiry.
func TestStaticUserWithTimeLikeName(t *testing.T) {
	for _, name := range []string{"1001", "5:bob"} {
		t.Run(name, func(t *testing.T) {
			config := testGateConfig()
			config.Users = append(config.Users, User{Name: name, Password: "p"})
			g, now := NewGate(config), at(0)
			who := newCaller(name, "p", "198.51.100.9:5000")
			if q, reply, err := g.Admit(who.FiveTuple, who.signed(g, now, allocateMethod, txid(1), nil), nil, now); q == nil {
				t.Errorf("got %v, %v, want the static user admitted whatever its name says", reply, err)
			}
			minted := newCaller(name, TimeLimitedPassword([]byte("north"), name), "198.51.100.9:5000")
			if q, _, _ := g.Admit(minted.FiveTuple, minted.signed(g, now, stun.MethodRefresh, txid(1), nil), nil, now); q != nil {
				t.Error("a minted password opens the account of a static user")
			}
			if without := NewGate(testGateConfig()); without.Knows(testRealm, name, now) {
				t.Error("the user is known after it was removed")
			}
		})
	}
}

func TestKnows(t *testing.T) {
	g, now := NewGate(testGateConfig()), at(0)
	bare := testGateConfig()
	bare.Secrets = nil
	for _, tt := range []struct {
		gate *Gate
		name string
		want bool
	}{
		{g, "alice", true},
		{g, "nobody", false},
		{g, TimeLimitedUsername("carol", at(time.Second).WallTime()), true},
		{g, TimeLimitedUsername("", at(time.Second).WallTime()), true},
		{g, TimeLimitedUsername("carol", now.WallTime()), false},
		{NewGate(bare), TimeLimitedUsername("carol", at(time.Second).WallTime()), false},
	} {
		if got := tt.gate.Knows(testRealm, tt.name, now); got != tt.want {
			t.Errorf("Knows(%q): got %t, want %t", tt.name, got, tt.want)
		}
	}
}

func TestOwner(t *testing.T) {
	for name, want := range map[string]string{
		"alice": "alice", "1700000000:carol": "carol", "1700000000": "1700000000", "1700000000:": "1700000000:",
		"1700000000:a:b": "a:b", "x:carol": "x:carol", ":carol": ":carol", "-5:carol": "-5:carol", "": "",
		"99999999999999999999:carol": "99999999999999999999:carol",
	} {
		if got := Owner(name); got != want {
			t.Errorf("Owner(%q): got %q, want %q", name, got, want)
		}
	}
}

func TestNonce(t *testing.T) {
	g, client, made := NewGate(testGateConfig()), addrPort("198.51.100.1:5000"), at(24*time.Hour)
	other := testGateConfig()
	other.NonceKey = [32]byte{8}
	again := NewGate(testGateConfig())
	nonce := g.nonceFor(g.realms.main, client, made)
	if len(nonce) > 127 {
		t.Errorf("got a nonce of %d bytes, want fewer than 128", len(nonce))
	}
	after := func(d time.Duration) Moment { return at(24*time.Hour + d) }
	for _, tt := range []struct {
		name   string
		gate   *Gate
		nonce  string
		client string
		at     Moment
		want   bool
	}{
		{"Fresh", g, nonce, "198.51.100.1:5000", made, true},
		{"AfterRestart", again, nonce, "198.51.100.1:5000", made, true},
		{"LastMoment", g, nonce, "198.51.100.1:5000", after(time.Hour), true},
		{"Stale", g, nonce, "198.51.100.1:5000", after(time.Hour + time.Millisecond), false},
		{"ClockStepped", g, nonce, "198.51.100.1:5000", after(-time.Hour), true},
		{"FromTheFuture", g, nonce, "198.51.100.1:5000", after(-time.Hour - time.Millisecond), false},
		{"OtherPort", g, nonce, "198.51.100.1:5001", made, true},
		{"OtherAddress", g, nonce, "198.51.100.2:5000", made, false},
		{"OtherKey", NewGate(other), nonce, "198.51.100.1:5000", made, false},
		{"Empty", g, "", "198.51.100.1:5000", made, false},
		{"Longer", g, nonce + "A", "198.51.100.1:5000", made, false},
		{"Shorter", g, nonce[:len(nonce)-1], "198.51.100.1:5000", made, false},
		{"NoBase64", g, strings.Repeat("!", len(nonce)), "198.51.100.1:5000", made, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if got := tt.gate.nonceValid([]byte(tt.nonce), addrPort(tt.client), tt.at); got != tt.want {
				t.Errorf("got %t, want %t", got, tt.want)
			}
		})
	}
	for i := range len(nonce) {
		tampered := []byte(nonce)
		tampered[i] = map[bool]byte{true: 'B', false: 'A'}[nonce[i] == 'A']
		if g.nonceValid(tampered, client, made) {
			t.Errorf("valid with character %d changed: %s", i, tampered)
		}
	}
}

// TestKeyMatchesRFC8489 uses the example of RFC 8489 section 9.2.2.
func TestKeyMatchesRFC8489(t *testing.T) {
	const want = "8493fbc53ba582fb4c044c456bdc40eb"
	if got := fmt.Sprintf("%x", algorithmMD5.key("user", "realm", "pass")); got != want {
		t.Errorf("got key %s, want %s", got, want)
	}
}

// TestTimeLimitedPassword holds a known value: HMAC-SHA1, base64, as "openssl dgst" makes it.
func TestTimeLimitedPassword(t *testing.T) {
	if got, want := TimeLimitedUsername("carol", at(0).WallTime()), "1700000000:carol"; got != want {
		t.Errorf("got username %q, want %q", got, want)
	}
	if got, want := TimeLimitedPassword([]byte("north"), "1700000000:carol"), restPassword; got != want {
		t.Errorf("got password %q, want %q", got, want)
	}
}

const restPassword = "+7vnw9QGdV9hTZ/4Cg+GqOxH//Q="
