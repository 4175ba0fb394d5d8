package turn

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// nothing is an attribute that is left out.
var nothing = setterFunc(func(*stun.Message) error { return nil })

// alteredCredential is a credential of RFC 8489, each part of which can be another.
type alteredCredential struct {
	name, realm, nonce, algorithms, algorithm, key stun.Setter // nil: the right one
	after                                          []stun.Setter
}

// TestRFC8489Requirements has a request for every requirement on a server that
// authenticates by the long-term mechanism, and for every attribute of it.
func TestRFC8489Requirements(t *testing.T) {
	g, now := NewGate(testGateConfig()), at(time.Minute)
	a := alice().with(algorithmSHA256, false)
	nonce := g.nonceFor(g.realms.main, a.Client, now)
	wrong := newCaller("alice", "x", a.Client.String()).with(algorithmSHA256, false)
	md5, legacy := a.with(algorithmMD5, false), alice()
	sha1 := stun.MessageIntegrity(algorithmSHA256.key("alice", testRealm, "wonderland"))
	hashed, mallory := a.with(algorithmSHA256, true).name(), newCaller("mallory", "x", a.Client.String()).with(algorithmSHA256, true).name()
	algorithm := func(value ...byte) stun.Setter { return set(stun.AttrPasswordAlgorithm, value...) }
	algorithms := func(value ...byte) stun.Setter { return set(stun.AttrPasswordAlgorithms, value...) }
	truncated := func(n int) stun.Setter {
		return setterFunc(func(m *stun.Message) error {
			m.Add(stun.AttrMessageIntegritySHA256, make([]byte, n))
			return nil
		})
	}
	unknownAttribute := set(0x7FFE, 1)
	stripped := "obMatJos2AAAC" + nonce[cookieLength:]
	for _, tt := range []struct {
		section string
		name    string
		with    alteredCredential
		code    int // 0: admitted
		sha256  bool
	}{
		{"9.2.4", "AsItShouldBe", alteredCredential{}, 0, true},
		{"9.2.4", "NoIntegrity", alteredCredential{key: nothing}, 401, false},
		{"9.2.4", "NoName", alteredCredential{name: nothing}, 400, false},
		{"9.2.4", "NoRealm", alteredCredential{realm: nothing}, 400, false},
		{"9.2.4", "NoNonce", alteredCredential{nonce: nothing}, 400, false},
		{"9.2.4", "TwoNames", alteredCredential{name: setters(a.name(), hashed)}, 400, false},
		{"9.2.4", "NeitherIsMD5", alteredCredential{algorithms: nothing, algorithm: nothing, key: md5.key()}, 0, false},
		{"9.2.4", "NeitherIsMD5WithSHA1", alteredCredential{algorithms: nothing, algorithm: nothing, key: legacy.key()}, 0, false},
		{"9.2.4", "NeitherIsNotSHA256", alteredCredential{algorithms: nothing, algorithm: nothing}, 401, false},
		{"9.2.4", "OnlyTheChoice", alteredCredential{algorithms: nothing}, 400, false},
		{"9.2.4", "OnlyTheList", alteredCredential{algorithm: nothing}, 400, false},
		{"9.2.4", "ListTurnedRound", alteredCredential{algorithms: algorithms(0, 1, 0, 0, 0, 2, 0, 0)}, 400, false},
		{"9.2.4", "ListWithoutSHA256", alteredCredential{algorithms: algorithms(0, 1, 0, 0), algorithm: algorithm(0, 1, 0, 0), key: md5.key()}, 400, false},
		{"9.2.4", "ListWithMore", alteredCredential{algorithms: algorithms(0, 2, 0, 0, 0, 1, 0, 0, 0, 3, 0, 0)}, 400, false},
		{"9.2.4", "ListEmpty", alteredCredential{algorithms: algorithms()}, 400, false},
		{"9.2.4", "ChoiceNotOnTheList", alteredCredential{algorithm: algorithm(0, 3, 0, 0)}, 400, false},
		{"9.2.4", "ChoiceReserved", alteredCredential{algorithm: algorithm(0, 0, 0, 0)}, 400, false},
		{"9.2.4", "UserHashUnknown", alteredCredential{name: mallory}, 401, false},
		{"9.2.4", "WrongPassword", alteredCredential{key: wrong.key()}, 401, false},
		{"9.2.4", "KeyOfOtherAlgorithm", alteredCredential{key: md5.key()}, 401, false},
		{"9.2.4", "SHA256CountsWhereBothAre", alteredCredential{key: setters(set(stun.AttrMessageIntegrity, make([]byte, 20)...), a.key())}, 0, true},
		{"9.2.4", "SHA256CountsWhereBothAreAndItIsWrong", alteredCredential{key: setters(sha1, wrong.key())}, 401, false},
		{"9.2.4", "SHA1OfSHA256Key", alteredCredential{key: sha1}, 0, true},
		{"9.2.4", "NonceStale", alteredCredential{nonce: stun.NewNonce(g.nonceFor(g.realms.main, a.Client, at(-2*time.Hour)))}, 438, false},
		{"9.2.4", "NonceOfOtherClient", alteredCredential{nonce: stun.NewNonce(g.nonceFor(g.realms.main, bob().Client, now))}, 438, false},
		{"9.2.1", "FeatureStripped", alteredCredential{nonce: stun.NewNonce(stripped)}, 438, false},
		{"9.2.1", "FeatureAndListStripped", alteredCredential{nonce: stun.NewNonce(stripped), algorithms: nothing, algorithm: nothing, key: md5.key()}, 438, false},
		{"9.2.1", "FeatureStrippedAndUnknownChoice", alteredCredential{nonce: stun.NewNonce(stripped), algorithm: algorithm(0, 9, 0, 0)}, 400, false},
		{"14", "FirstOfDuplicates", alteredCredential{algorithm: setters(algorithm(0, 2, 0, 0), algorithm(0, 3, 0, 0))}, 0, true},
		{"14.3", "LongUsername", alteredCredential{name: set(stun.AttrUsername, bytes.Repeat([]byte("x"), 763)...)}, 401, false},
		{"14.3", "TooLongUsername", alteredCredential{name: set(stun.AttrUsername, bytes.Repeat([]byte("x"), 764)...)}, 400, false},
		{"14.3", "UsernameIsNoUTF8", alteredCredential{name: set(stun.AttrUsername, 'a', 0xFF)}, 400, false},
		{"14.4", "UserHash", alteredCredential{name: hashed}, 0, true},
		{"14.4", "UserHashShort", alteredCredential{name: set(stun.AttrUserhash, make([]byte, 31)...)}, 400, false},
		{"14.4", "UserHashLong", alteredCredential{name: set(stun.AttrUserhash, make([]byte, 36)...)}, 400, false},
		{"14.6", "Truncated28", alteredCredential{key: truncated(28)}, 400, false},
		{"14.6", "Truncated16", alteredCredential{key: truncated(16)}, 400, false},
		{"14.6", "Truncated12", alteredCredential{key: truncated(12)}, 400, false},
		{"14.6", "TruncatedOdd", alteredCredential{key: truncated(31)}, 400, false},
		{"14.6", "IntegrityEmpty", alteredCredential{key: truncated(0)}, 400, false},
		{"14.6", "IntegrityTooLong", alteredCredential{key: truncated(36)}, 400, false},
		{"14.6", "IgnoredAfterSHA256", alteredCredential{after: []stun.Setter{unknownAttribute, set(stun.AttrMessageIntegrity, make([]byte, 20)...)}}, 0, true},
		{"14.7", "Fingerprint", alteredCredential{after: []stun.Setter{stun.Fingerprint}}, 0, true},
		{"14.12", "ChoiceWithParameters", alteredCredential{algorithm: algorithm(0, 2, 0, 4, 0, 0, 0, 0)}, 400, false},
		{"14.12", "ChoiceShort", alteredCredential{algorithm: algorithm(0, 2)}, 400, false},
		{"14.12", "ChoiceEmpty", alteredCredential{algorithm: algorithm()}, 400, false},
	} {
		t.Run(tt.section+"/"+tt.name, func(t *testing.T) {
			right := append(a.credential(nonce), a.key())
			for i, other := range []stun.Setter{tt.with.name, tt.with.realm, tt.with.nonce, tt.with.algorithms, tt.with.algorithm, tt.with.key} {
				if other != nil {
					right[i] = other
				}
			}
			frame := plain(stun.MethodRefresh, txid(1), append(right, tt.with.after...)...)
			q, reply, err := g.Admit(a.FiveTuple, frame, nil, now)
			switch {
			case err != nil:
				t.Fatal(err)
			case tt.code == 0 && q == nil:
				t.Fatalf("got code %d, want a request", reply.Code)
			case tt.code != 0 && (q != nil || reply.Code != tt.code):
				t.Fatalf("got %v, %v, want code %d", q, reply, tt.code)
			case q != nil:
				if q.Username != "alice" {
					t.Errorf("got user %q, want alice", q.Username)
				}
				of := legacy
				if tt.sha256 {
					of = a
				}
				of.checkAnswer(t, see(t, q.reply(0).Append(nil)).message)
				return
			}
			checkRefusal(t, see(t, reply.Append(nil)))
		})
	}
}

// checkRefusal holds a refusal by the gate of testGateConfig against RFC 8489 section 9.2.4.
func checkRefusal(t *testing.T, s *answerSeen) {
	t.Helper()
	for _, kind := range []stun.AttrType{
		stun.AttrUsername, stun.AttrUserhash, stun.AttrMessageIntegrity, stun.AttrMessageIntegritySHA256, stun.AttrPasswordAlgorithm,
	} {
		if s.message.Contains(kind) {
			t.Errorf("code %d comes with %v", s.code, kind)
		}
	}
	if s.code == CodeBadRequest {
		if s.nonce != "" || s.realm != "" || s.offered != nil {
			t.Errorf("code 400 comes with nonce %q, realm %q, algorithms %x", s.nonce, s.realm, s.offered)
		}
		return
	}
	if features, ok := parseCookie([]byte(s.nonce)); !ok || features != featureAlgorithms {
		t.Errorf("got features %b, %t, want password algorithms", features, ok)
	}
	if want := []byte{0, 2, 0, 0, 0, 1, 0, 0}; s.realm != testRealm || !bytes.Equal(s.offered, want) {
		t.Errorf("got realm %q and algorithms %x, want %q and %x", s.realm, s.offered, testRealm, want)
	}
	if len(s.nonce) >= 128 {
		t.Errorf("got a nonce of %d bytes, want fewer than 128 (section 14.10)", len(s.nonce))
	}
}

// setters are several as one.
func setters(list ...stun.Setter) stun.Setter {
	return setterFunc(func(m *stun.Message) error {
		for _, s := range list {
			if err := s.AddTo(m); err != nil {
				return err
			}
		}
		return nil
	})
}

// TestOffers has what a server offers for the users that it has, and who of them gets in.
func TestOffers(t *testing.T) {
	const address = "198.51.100.1:5000"
	plainUser := User{Name: "plain", Password: "p"}
	old := User{Name: "old", Key: algorithmMD5.key("old", testRealm, "p")}
	young := User{Name: "young", KeySHA256: algorithmSHA256.key("young", testRealm, "p")}
	both := User{Name: "both", Key: algorithmMD5.key("both", testRealm, "p"), KeySHA256: algorithmSHA256.key("both", testRealm, "p")}
	limited := timeLimitedCaller("carol", "north", at(time.Hour), address)
	for _, tt := range []struct {
		name     string
		users    []User
		secrets  bool
		offer    offer
		features uint32
		in       []string // who gets in, with what
	}{
		{"Passwords", []User{plainUser}, false, offerSHA256, featureAlgorithms | featureAnonymity, []string{"plain:0", "plain:1", "plain:2", "plain:1h", "plain:2h"}},
		{"BothKeys", []User{both}, false, offerSHA256, featureAlgorithms | featureAnonymity, []string{"both:0", "both:1", "both:2", "both:1h", "both:2h"}},
		{"SomebodyHasSHA256Alone", []User{plainUser, young}, false, offerSHA256, featureAlgorithms | featureAnonymity, []string{"plain:0", "plain:1", "plain:2", "plain:1h", "plain:2h", "young:2", "young:2h"}},
		{"SomebodyHasMD5Alone", []User{plainUser, old}, false, offerMD5, featureAlgorithms | featureAnonymity, []string{"plain:0", "plain:1", "plain:1h", "old:0", "old:1", "old:1h"}},
		{"Secrets", []User{plainUser}, true, offerSHA256, featureAlgorithms, []string{"plain:0", "plain:1", "plain:2", "plain:1h", "plain:2h", "limited:0", "limited:1", "limited:2"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			config := testGateConfig()
			config.Users = tt.users
			if !tt.secrets {
				config.Secrets = nil
			}
			g, now := NewGate(config), at(0)
			_, reply, err := g.Admit(alice().FiveTuple, plain(allocateMethod, txid(1)), nil, now)
			if err != nil {
				t.Fatal(err)
			}
			seen := see(t, reply.Append(nil))
			if features, ok := parseCookie([]byte(seen.nonce)); !ok || features != tt.features || !bytes.Equal(seen.offered, offers[tt.offer]) {
				t.Errorf("got features %b and algorithms %x, want %b and %x", features, seen.offered, tt.features, offers[tt.offer])
			}
			var in []string
			for _, name := range []string{"plain", "old", "young", "both", "limited"} {
				who := newCaller(name, "p", address)
				if name == "limited" {
					who = limited
				}
				for _, as := range []struct {
					text string
					*caller
				}{
					{"0", who},
					{"1", who.with(algorithmMD5, false)},
					{"2", who.with(algorithmSHA256, false)},
					{"1h", who.with(algorithmMD5, true)},
					{"2h", who.with(algorithmSHA256, true)},
				} {
					list := append(as.credential(seen.nonce), as.key())
					if as.algorithm != 0 {
						list[3] = set(stun.AttrPasswordAlgorithms, seen.offered...)
					}
					q, reply, err := g.Admit(as.FiveTuple, plain(allocateMethod, txid(1), list...), nil, now)
					switch {
					case err != nil:
						t.Fatal(err)
					case q != nil:
						in = append(in, name+":"+as.text)
					case reply.Code == CodeStaleNonce:
						t.Errorf("%s:%s: got code 438", name, as.text)
					}
				}
			}
			if !slices.Equal(in, tt.in) {
				t.Errorf("got in %v, want %v", in, tt.in)
			}
		})
	}
}

// TestNonceOutlivesItsOffer has a client that goes on with the list it was
// offered after a reload has brought another.
func TestNonceOutlivesItsOffer(t *testing.T) {
	before, now := NewGate(testGateConfig()), at(0)
	config := testGateConfig()
	config.Users = append(config.Users, User{Name: "old", Key: algorithmMD5.key("old", testRealm, "p")})
	after := NewGate(config)
	a := alice().with(algorithmSHA256, false)
	frame := a.signed(before, now, stun.MethodRefresh, txid(1), nil)
	if q, reply, err := after.Admit(a.FiveTuple, frame, nil, now); q == nil {
		t.Errorf("got %v, %v, want the request admitted", reply, err)
	}
	frame = a.signed(after, now, stun.MethodRefresh, txid(1), nil)
	if q, reply, err := after.Admit(a.FiveTuple, frame, nil, now); q != nil || err != nil || reply.Code != CodeBadRequest {
		t.Errorf("the old list with a new nonce: got %v, %v, %v, want code 400", q, reply, err)
	}
}

// TestModernClients runs every method as clients of RFC 8489 do, whose allocation
// is that of their user whatever they know.
func TestModernClients(t *testing.T) {
	for _, a := range []algorithm{algorithmMD5, algorithmSHA256} {
		for _, anonymous := range []bool{false, true} {
			t.Run(fmt.Sprintf("Algorithm%dAnonymous%t", a, anonymous), func(t *testing.T) {
				c := newCore(t)
				who := bob().with(a, anonymous)
				c.mustDo(0, who, stun.MethodAllocate, transport(17))
				c.mustDo(0, who, stun.MethodCreatePermission, peer(peerA))
				c.mustDo(0, who, stun.MethodChannelBind, channel(0x4000), peer(peerA))
				c.mustDo(437, who, stun.MethodAllocate, transport(17))
				c.mustDo(420, who, stun.MethodRefresh, set(0x7FFE, 1))
				c.mustDo(0, bob(), stun.MethodRefresh)
				c.mustDo(441, newCaller("alice", "wonderland", bob().Client.String()).with(a, anonymous), stun.MethodRefresh)
				c.mustDo(0, who, stun.MethodRefresh, lifetime(0))
				if n := c.state.Len(); n != 0 {
					t.Errorf("got %d allocations left, want none", n)
				}
			})
		}
	}
}

func TestOpaqueString(t *testing.T) {
	for _, tt := range []struct {
		in, want string
		fails    bool
	}{
		{"correct horse", "correct horse", false},
		{"\u212B", "\u00C5", false},                                 // RFC 8265 section 4.3: composed
		{"Jack of \u2666s", "Jack of \u2666s", false},               // symbols are allowed
		{"foo\u1680bar", "foo bar", false},                          // another space is a space
		{"e\u0301", "\u00E9", false},                                // NFC
		{"\u2168", "\u2168", false},                                 // no compatibility mapping
		{"", "", true},                                              //
		{"my cat is a \tby", "", true},                              // a control character
		{"The\u00ADM\u00AAtr\u2168", "", true},                      // the soft hyphen of RFC 8489 appendix B is not allowed
		{"a\xFF", "", true},                                         // no UTF-8
		{strings.Repeat("x", 600), strings.Repeat("x", 600), false}, // length is not its matter
	} {
		got, err := OpaqueString(tt.in)
		if (err != nil) != tt.fails || (err == nil && got != tt.want) {
			t.Errorf("OpaqueString(%q): got %q, %v, want %q, failure %t", tt.in, got, err, tt.want, tt.fails)
		}
	}
}

func TestBareName(t *testing.T) {
	for in, want := range map[string]string{
		"alice": "alice", "alice\x00": "alice", "alice\x00\x00": "alice", `"alice"`: "alice", "\"alice\"\x00": "alice",
		`"`: `"`, `""`: "", `"alice`: `"alice`, `al"ice`: `al"ice`, "": "", "\x00": "",
	} {
		if got := string(bareName([]byte(in))); got != want {
			t.Errorf("bareName(%q): got %q, want %q", in, got, want)
		}
	}
}

func TestParseCookie(t *testing.T) {
	for _, tt := range []struct {
		nonce    string
		features uint32
		ok       bool
	}{
		{"obMatJos2AAAA", 0, true},
		{"obMatJos2AAABx", featureAlgorithms, true},
		{"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA", featureAnonymity, true},
		{"obMatJos2AAAD", featureAlgorithms | featureAnonymity, true},
		{"obMatJos2gAAA", 1 << 23, true},
		{"obMatJos2////", 0xFFFFFF, true},
		{"obMatJos2AAA=", 0, false},
		{"obMatJos2AA\n\n", 0, false},
		{"obMatJos2AAA", 0, false},
		{"obMatJos3AAAA", 0, false},
		{"obMatJos2____", 0, false},
		{"", 0, false},
	} {
		if features, ok := parseCookie([]byte(tt.nonce)); features != tt.features || ok != tt.ok {
			t.Errorf("parseCookie(%q): got %x, %t, want %x, %t", tt.nonce, features, ok, tt.features, tt.ok)
		}
	}
	for features := range byte(4) {
		if got, ok := parseCookie([]byte(cookie(features))); !ok || got != uint32(features) {
			t.Errorf("features %b read back as %b, %t", features, got, ok)
		}
	}
}

// FuzzNonce reads anything as a nonce; none is valid but those that were made.
func FuzzNonce(f *testing.F) {
	g, client, now := NewGate(testGateConfig()), addrPort("198.51.100.1:5000"), at(0)
	good := g.nonceFor(g.realms.main, client, now)
	for _, seed := range []string{good, good[:len(good)-1], good + "A", "obMatJos2AAAC", cookieText, ""} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, nonce []byte) {
		if o := g.realms.main.offered(nonce); int(o) >= len(offers) {
			t.Fatalf("got offer %d, there are %d", o, len(offers))
		}
		if features, ok := parseCookie(nonce); features > 0xFFFFFF || (!ok && features != 0) {
			t.Errorf("got features %x, %t", features, ok)
		}
		if valid := g.nonceValid(nonce, client, now); valid != (string(nonce) == good) {
			t.Errorf("%q: got valid %t", nonce, valid)
		}
	})
}

// FuzzPasswordAlgorithms has a client choose anything of any list.
func FuzzPasswordAlgorithms(f *testing.F) {
	g, now := NewGate(testGateConfig()), at(0)
	a := alice().with(algorithmSHA256, false)
	nonce := g.nonceFor(g.realms.main, a.Client, now)
	f.Add([]byte{0, 2, 0, 0, 0, 1, 0, 0}, []byte{0, 2, 0, 0})
	f.Add([]byte{0, 2, 0, 0, 0, 1, 0, 0}, []byte{0, 1, 0, 0})
	f.Add([]byte{0, 1, 0, 0}, []byte{0, 1, 0, 0})
	f.Add([]byte{}, []byte{0, 2, 0, 4, 1, 2, 3, 4})
	f.Fuzz(func(t *testing.T, list, choice []byte) {
		if len(list) > 1000 || len(choice) > 1000 {
			t.Skip("long enough")
		}
		credential := a.credential(nonce)
		credential[3], credential[4] = set(stun.AttrPasswordAlgorithms, list...), set(stun.AttrPasswordAlgorithm, choice...)
		q, reply, err := g.Admit(a.FiveTuple, plain(stun.MethodRefresh, txid(1), append(credential, a.key())...), nil, now)
		if err != nil {
			t.Fatal(err)
		}
		want := CodeBadRequest
		if bytes.Equal(list, offers[offerSHA256]) && len(choice) == 4 && choice[0] == 0 && choice[2] == 0 && choice[3] == 0 {
			switch choice[1] {
			case 1:
				want = CodeUnauthenticated // the key is of SHA-256
			case 2:
				want = 0
			}
		}
		if q == nil && reply.Code != want || q != nil && want != 0 {
			t.Errorf("list %x, choice %x: got %v, %v, want code %d", list, choice, q, reply, want)
		}
	})
}
