package turn

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"slices"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

const tokenServer = "turn.example.org"

var (
	tokenKey  = TokenKey{ID: "key-1", Key: [32]byte{1, 2, 3}}
	otherKey  = TokenKey{ID: "key-2", Key: [32]byte{4, 5, 6}}
	macKey    = bytes.Repeat([]byte{0x5A}, 20)
	newMACKey = bytes.Repeat([]byte{0xA5}, 32)
)

func tokenConfig() GateConfig {
	c := testGateConfig()
	c.TokenKeys, c.TokenServer = []TokenKey{tokenKey, otherKey}, tokenServer
	return c
}

func tokenCore(t *testing.T) *core {
	c := newCore(t)
	c.gate = NewGate(tokenConfig())
	return c
}

// sealed is a token of key made at m.
func sealed(t tb, key TokenKey, server string, m Moment, mac []byte, lifetime time.Duration) SealedToken {
	t.Helper()
	token, err := key.Seal(server, [TokenNonceSize]byte{9, byte(lifetime / time.Second), byte(m.Uptime / time.Second)}, AccessToken{Key: mac, Made: m.WallTime(), Lifetime: lifetime})
	if err != nil {
		t.Fatal(err)
	}
	return token
}

// tokenCaller is a client with a token made at m.
func tokenCaller(t tb, m Moment, lifetime time.Duration, address string) *caller {
	who := newCaller(tokenKey.ID, "", address)
	who.mac, who.token = macKey, sealed(t, tokenKey, tokenServer, m, macKey, lifetime)
	return who
}

// without is c when it shows no token.
func (c *caller) without() *caller {
	other := *c
	other.token = nil
	return &other
}

// TestSealedToken holds the form of a token against RFC 7635 section 6.2.
func TestSealedToken(t *testing.T) {
	made := at(1500 * time.Microsecond)
	token := sealed(t, tokenKey, tokenServer, made, macKey, time.Hour)
	if binary.BigEndian.Uint16(token) != 12 {
		t.Fatalf("got nonce length %d, want 12", binary.BigEndian.Uint16(token))
	}
	block, err := aes.NewCipher(tokenKey.Key[:])
	if err != nil {
		t.Fatal(err)
	}
	gcm, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	b, err := gcm.Open(nil, token[2:14], token[14:], []byte(tokenServer))
	if err != nil {
		t.Fatal(err)
	}
	want := append([]byte{0, 20}, macKey...)
	want = binary.BigEndian.AppendUint64(want, startWall<<16|96) // 1.5 ms in 1/64000 s
	want = binary.BigEndian.AppendUint32(want, 3600)
	if !bytes.Equal(b, want) {
		t.Errorf("got %x, want %x", b, want)
	}
	got, err := openToken(tokenKey.aead(), tokenServer, token)
	if err != nil || !bytes.Equal(got.Key, macKey) || !got.Made.Equal(made.WallTime()) || got.Lifetime != time.Hour {
		t.Errorf("got %+v, %v, want it as it was made at %v", got, err, made.WallTime())
	}
	for i := range token {
		tampered := slices.Clone(token)
		tampered[i] ^= 1
		if _, err := openToken(tokenKey.aead(), tokenServer, tampered); err == nil {
			t.Errorf("it opens with byte %d changed", i)
		}
	}
	for n := range token {
		if _, err := openToken(tokenKey.aead(), tokenServer, token[:n]); err == nil {
			t.Errorf("it opens cut to %d bytes", n)
		}
	}
}

func TestSealRefuses(t *testing.T) {
	now := at(0).WallTime()
	for name, token := range map[string]AccessToken{
		"KeyShort":     {Key: macKey[1:], Made: now, Lifetime: time.Hour},
		"KeyLong":      {Key: make([]byte, 65), Made: now, Lifetime: time.Hour},
		"NoLifetime":   {Key: macKey, Made: now},
		"LifetimeLong": {Key: macKey, Made: now, Lifetime: 1 << 32 * time.Second},
		"BeforeTime":   {Key: macKey, Made: time.Unix(-1, 0), Lifetime: time.Hour},
	} {
		if _, err := tokenKey.Seal(tokenServer, [TokenNonceSize]byte{}, token); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestOpenTokenRefuses has what a holder of the key could seal, but never should.
func TestOpenTokenRefuses(t *testing.T) {
	key := tokenKey.aead()
	seal := func(b []byte) []byte {
		nonce := make([]byte, TokenNonceSize)
		return key.Seal(append([]byte{0, TokenNonceSize}, nonce...), nonce, b, []byte(tokenServer))
	}
	good := append(append([]byte{0, 20}, macKey...), binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint64(nil, startWall<<16), 60)...)
	if _, err := openToken(key, tokenServer, seal(good)); err != nil {
		t.Fatal(err)
	}
	with := func(at int, b ...byte) []byte {
		other := slices.Clone(good)
		copy(other[at:], b)
		return other
	}
	for name, b := range map[string][]byte{
		"KeyShorterThanItSays": with(0, 0, 21),
		"KeyLongerThanItSays":  with(0, 0, 19),
		"KeyOfNothing":         with(0, 0, 0),
		"KeyBeyondTheEnd":      with(0, 0xFF, 0xFF),
		"MoreBehind":           append(slices.Clone(good), 0),
		"Less":                 good[:len(good)-1],
		"FractionTooLarge":     with(28, 0xFA, 0x00),
		"FarFuture":            with(22, 0xFF),
	} {
		if got, err := openToken(key, tokenServer, seal(b)); err == nil {
			t.Errorf("%s: opens as %+v", name, got)
		}
	}
}

// TestThirdPartyAuthorization has the answers that tell a client where to ask for a token (RFC 7635 section 6.1).
func TestThirdPartyAuthorization(t *testing.T) {
	with, bare := NewGate(tokenConfig()), NewGate(testGateConfig())
	now := at(0)
	stale := plain(allocateMethod, txid(1), append(alice().credential("stale"), alice().key())...)
	for _, tt := range []struct {
		name  string
		gate  *Gate
		frame []byte
		code  int
		told  bool
	}{
		{"Challenge", with, plain(allocateMethod, txid(1)), 401, true},
		{"WrongPassword", with, newCaller("alice", "x", alice().Client.String()).signed(with, now, allocateMethod, txid(1), nil), 401, true},
		{"Stale", with, stale, 438, false},
		{"Bad", with, plain(allocateMethod, txid(1), alice().key()), 400, false},
		{"ChallengeWithoutKeys", bare, plain(allocateMethod, txid(1)), 401, false},
	} {
		_, reply, err := tt.gate.Admit(alice().FiveTuple, tt.frame, nil, now)
		if err != nil || reply == nil || reply.Code != tt.code {
			t.Errorf("%s: got %v, %v, want code %d", tt.name, reply, err, tt.code)
			continue
		}
		got, err := see(t, reply.Append(nil)).message.Get(attrThirdPartyAuthorization)
		if told := err == nil; told != tt.told || (told && string(got) != tokenServer) {
			t.Errorf("%s: got THIRD-PARTY-AUTHORIZATION %q, %v, want it %t", tt.name, got, err, tt.told)
		}
	}
	for _, g := range []*Gate{with, bare} {
		if features, _ := parseCookie([]byte(g.nonceFor(g.realms.main, alice().Client, now))); features != featureAlgorithms {
			t.Errorf("got features %b, want no anonymity", features)
		}
	}
}

// TestAccessToken follows a client from its token to the end of what it grants.
func TestAccessToken(t *testing.T) {
	for _, a := range []algorithm{0, algorithmMD5, algorithmSHA256} {
		c := tokenCore(t)
		who := tokenCaller(t, c.now, 20*time.Minute, "198.51.100.9:5000").with(a, false)
		got := c.mustDo(0, who, stun.MethodAllocate, transport(17), lifetime(3600))
		if want := int64(20*60 + 5); got.lifetime != want {
			t.Errorf("got a lifetime of %d s, want that of the token and the skew, %d s", got.lifetime, want)
		}
		c.mustDo(0, who.without(), stun.MethodCreatePermission, peer(peerA))
		c.mustDo(0, who.without(), stun.MethodChannelBind, channel(0x4000), peer(peerA))
		c.mustDo(0, who, stun.MethodCreatePermission, peer(peerA))
		c.wait(10 * time.Minute)
		if got := c.mustDo(0, who.without(), stun.MethodRefresh, lifetime(3600)); got.lifetime != 10*60+5 {
			t.Errorf("got a lifetime of %d s, want what is left of the token, 605 s", got.lifetime)
		}
		next := tokenCaller(t, c.now, time.Hour, "198.51.100.9:5000").with(a, false)
		next.mac, next.token = newMACKey, sealed(t, tokenKey, tokenServer, c.now, newMACKey, time.Hour)
		c.mustDo(401, next.without(), stun.MethodCreatePermission, peer(peerA))
		if got := c.mustDo(0, next, stun.MethodRefresh, lifetime(3600)); got.lifetime != 3600 {
			t.Errorf("got a lifetime of %d s with a new token, want 3600 s", got.lifetime)
		}
		c.mustDo(401, who.without(), stun.MethodCreatePermission, peer(peerA))
		c.mustDo(0, next.without(), stun.MethodCreatePermission, peer(peerA))
		c.state = fold(t, c.records)
		c.mustDo(0, next.without(), stun.MethodCreatePermission, peer(peerA))
		s, err := FromImage(c.state.Image())
		if err != nil {
			t.Fatal(err)
		}
		c.state = s
		events := c.mustDo(0, next, stun.MethodRefresh).events
		if len(events) != 1 {
			t.Errorf("the same token again made %v, want a refresh alone", describeAll(events))
		}
		c.mustDo(0, next.without(), stun.MethodRefresh, lifetime(0))
		c.mustDo(401, next.without(), stun.MethodAllocate, transport(17))
	}
}

func TestAccessTokenIsGoodForItsTime(t *testing.T) {
	const life = 10 * time.Minute
	for _, tt := range []struct {
		name string
		made time.Duration // before or after the request
		code int
		left int64 // seconds that are granted
	}{
		{"Fresh", 0, 0, 605},
		{"Used", -5 * time.Minute, 0, 305},
		{"LastMoment", -life - 4*time.Second, 0, 1},
		{"LessThanASecond", -life - 4*time.Second - time.Millisecond, 401, 0},
		{"Over", -life - 5*time.Second, 401, 0},
		{"LongOver", -24 * time.Hour, 401, 0},
		{"ClockAhead", 5 * time.Second, 0, 600},
		{"ClockFarAhead", life + 4*time.Second, 0, 1},
		{"ClockTooFarAhead", life + 5*time.Second, 401, 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := tokenCore(t)
			c.wait(48 * time.Hour)
			m := c.now
			m.Wall += int64(tt.made)
			got := c.mustDo(tt.code, tokenCaller(t, m, life, "198.51.100.9:5000"), stun.MethodAllocate, transport(17), lifetime(3600))
			if tt.code == 0 && got.lifetime != tt.left {
				t.Errorf("got a lifetime of %d s, want %d s", got.lifetime, tt.left)
			}
		})
	}
}

// TestWrongTokensLookAlike has tokens that are refused, all with the same bytes.
func TestWrongTokensLookAlike(t *testing.T) {
	g, now := NewGate(tokenConfig()), at(0)
	const address = "198.51.100.9:5000"
	right := tokenCaller(t, now, time.Hour, address)
	with := func(change func(*caller)) *caller {
		other := *right
		change(&other)
		return &other
	}
	held := right.token
	var first []byte
	for name, who := range map[string]*caller{
		"OtherMAC":        with(func(c *caller) { c.mac = newMACKey }),
		"OtherKey":        with(func(c *caller) { c.user = otherKey.ID }),
		"UnknownKey":      with(func(c *caller) { c.user = "key-3" }),
		"KeyOfAUser":      with(func(c *caller) { c.user = "alice" }),
		"OtherServer":     with(func(c *caller) { c.token = sealed(t, tokenKey, "turn.example.net", now, macKey, time.Hour) }),
		"Tampered":        with(func(c *caller) { c.token = append(slices.Clone(held[:len(held)-1]), held[len(held)-1]^1) }),
		"Empty":           with(func(c *caller) { c.token = SealedToken{} }),
		"Huge":            with(func(c *caller) { c.token = make(SealedToken, 4000) }),
		"HugeNonce":       with(func(c *caller) { c.token = append(SealedToken{0xFF, 0xFF}, held[2:]...) }),
		"Over":            tokenCaller(t, at(-2*time.Hour), time.Hour, address),
		"None":            with(func(c *caller) { c.token, c.mac = nil, newMACKey }),
		"KeyIDAsPassword": newCaller(tokenKey.ID, tokenKey.ID, address),
		"Hashed":          with(func(c *caller) { c.anonymous = true }),
		"RightPassword":   with(func(c *caller) { c.user, c.password, c.mac = "alice", "wonderland", nil }),
	} {
		_, reply, err := g.Admit(who.FiveTuple, who.signed(g, now, allocateMethod, txid(1), nil), held, now)
		if err != nil || reply == nil {
			t.Errorf("%s: got %v, %v, want a refusal", name, reply, err)
			continue
		}
		got := reply.Append(nil)
		if first == nil {
			first = got
		}
		if !bytes.Equal(got, first) || reply.Code != CodeUnauthenticated {
			t.Errorf("%s: got code %d,\n%x, want\n%x", name, reply.Code, got, first)
		}
	}
	if q, reply, err := g.Admit(right.FiveTuple, right.signed(g, now, allocateMethod, txid(1), nil), nil, now); q == nil {
		t.Errorf("the right one: got %v, %v", reply, err)
	}
}

// TestHeldTokenIsForItsKeyAlone has requests without a token on a five-tuple that has one.
func TestHeldTokenIsForItsKeyAlone(t *testing.T) {
	c := tokenCore(t)
	who := tokenCaller(t, c.now, time.Hour, alice().Client.String())
	c.mustDo(0, who, stun.MethodAllocate, transport(17))
	c.mustDo(441, alice(), stun.MethodRefresh)
	second := who.without()
	second.user = otherKey.ID
	c.mustDo(401, second, stun.MethodRefresh)
	other := who.without()
	other.Client = addrPort("198.51.100.9:5001")
	c.mustDo(401, other, stun.MethodAllocate, transport(17))
	c.mustDo(0, who.without(), stun.MethodRefresh)
}

func TestAccessTokenWithoutKeysIsUnknown(t *testing.T) {
	c := newCore(t)
	got := c.mustDo(420, alice(), stun.MethodAllocate, transport(17), set(attrAccessToken, 1, 2, 3))
	if want := []stun.AttrType{attrAccessToken}; !slices.Equal(got.unknown, want) {
		t.Errorf("got UNKNOWN-ATTRIBUTES %v, want %v", got.unknown, want)
	}
	c.mustDo(401, tokenCaller(t, c.now, time.Hour, "198.51.100.9:5000"), stun.MethodAllocate, transport(17))
}

// TestReloadOfTokenKeys ends the allocations of a key that is gone.
func TestReloadOfTokenKeys(t *testing.T) {
	c := tokenCore(t)
	c.mustDo(0, tokenCaller(t, c.now, time.Hour, "198.51.100.9:5000"), stun.MethodAllocate, transport(17))
	if events := c.reload(); len(events) > 0 {
		t.Errorf("the same keys made %v", describeAll(events))
	}
	config := tokenConfig()
	config.TokenKeys = config.TokenKeys[1:]
	c.gate = NewGate(config)
	c.reload()
	if n := c.state.Len(); n != 0 {
		t.Errorf("got %d allocations of a key that is gone, want none", n)
	}
}

// TestRefusedTokensTakeTheSameWork is TestRefusalsTakeTheSameWork for access tokens.
func TestRefusedTokensTakeTheSameWork(t *testing.T) {
	g, now := NewGate(tokenConfig()), at(0)
	var work [2]float64
	for i, id := range []string{tokenKey.ID, "key-3"} {
		who := tokenCaller(t, now, time.Hour, "198.51.100.9:5000")
		who.user, who.token = id, sealed(t, otherKey, tokenServer, now, macKey, time.Hour)
		frame := who.signed(g, now, allocateMethod, txid(1), nil)
		work[i] = leastAllocations(func() { _, _, _ = g.Admit(who.FiveTuple, frame, nil, now) })
	}
	if diff := work[0] - work[1]; diff > 2 || diff < -2 {
		t.Errorf("got %v allocations for a known key and %v for an unknown one, want the same", work[0], work[1])
	}
}

// FuzzOpenToken opens anything, raw and as what a holder of the key has sealed.
func FuzzOpenToken(f *testing.F) {
	key := tokenKey.aead()
	good, err := tokenKey.Seal(tokenServer, [TokenNonceSize]byte{1}, AccessToken{Key: macKey, Made: at(0).WallTime(), Lifetime: time.Hour})
	if err != nil {
		f.Fatal(err)
	}
	plainText := append(append([]byte{0, 20}, macKey...), make([]byte, 12)...)
	f.Add([]byte(good), false)
	f.Add(plainText, true)
	f.Add([]byte{0, 12}, false)
	f.Fuzz(func(t *testing.T, b []byte, seal bool) {
		if seal {
			nonce := make([]byte, TokenNonceSize)
			b = key.Seal(append([]byte{0, TokenNonceSize}, nonce...), nonce, b, []byte(tokenServer))
		}
		token, err := openToken(key, tokenServer, b)
		if err != nil {
			return
		}
		if !seal && !bytes.Equal(b, good) {
			t.Errorf("%x opens as %+v", b, token)
		}
		if len(token.Key) < tokenLeast || len(token.Key) > tokenMost || token.Lifetime < 0 {
			t.Errorf("got %+v", token)
		}
		if left := token.left(at(0).WallTime()); left > token.Lifetime+tokenDelta {
			t.Errorf("%+v is good for %v", token, left)
		}
	})
}
