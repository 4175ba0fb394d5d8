package turn

import (
	"encoding/binary"
	"encoding/hex"
	"strings"
	"testing"

	"github.com/pion/stun/v3"
)

// The samples of RFC 5769, whole messages.
var (
	sampleRequest = unhexTest(`00010058 2112a442 b7e7a701bc34d686fa87dfae
		80220010 5354554e207465737420636c69656e74 00240004 6e0001ff 80290008 932ff9b151263b36
		00060009 6576746a3a68367659202020 00080014 9aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2 80280004 e57a3bcf`)
	sampleResponseIPv4 = unhexTest(`0101003c 2112a442 b7e7a701bc34d686fa87dfae
		8022000b 7465737420766563746f7220 00200008 0001a147e112a643
		00080014 2b91f599fd9e90c38c7489f92af9ba53f06be7d7 80280004 c07d4c96`)
	sampleResponseIPv6 = unhexTest(`01010048 2112a442 b7e7a701bc34d686fa87dfae
		8022000b 7465737420766563746f7220 00200014 0002a1470113a9faa5d3f179bc25f4b5bed2b9d9
		00080014 a382954e4be67bf11784c97c8292c275bfe3ed41 80280004 c8fb0b4c`)
	sampleLongTerm = unhexTest(`00010060 2112a442 78ad3433c6ad72c029da412e
		00060012 e3839ee38388e383aae38383e382afe382b90000 0015001c 662f2f3439396b39353464364f4c33346f4c39465354767936347341
		0014000b 6578616d706c652e6f726700 00080014 f67024656dd64a3e02b8e0712e85c9a28ca89666`)
)

const samplePassword = "VOkJxbRl1RmTxUk/WvJxBt" // of the short-term samples

func unhexTest(s string) []byte {
	b, err := hex.DecodeString(strings.Join(strings.Fields(s), ""))
	if err != nil {
		panic(err)
	}
	return b
}

// TestRFC5769Request is section 2.1: an ICE check, which a relay answers as a Binding.
func TestRFC5769Request(t *testing.T) {
	g, from := NewGate(testGateConfig()), alice().FiveTuple
	_, reply, err := g.Admit(from, sampleRequest, nil, at(0))
	if err != nil || reply.Code != 0 {
		t.Fatalf("got %v, %v, want a success", reply, err)
	}
	if seen := see(t, reply.Append(nil)); seen.mapped != from.Client || stun.Fingerprint.Check(seen.message) != nil {
		t.Errorf("got %v, want %v and a FINGERPRINT", seen.message, from.Client)
	}
	var msg stun.Message
	if !decodeRequest(&msg, sampleRequest) {
		t.Fatal("the request is dropped")
	}
	if err := stun.NewShortTermIntegrity(samplePassword).Check(&msg); err != nil {
		t.Error(err)
	}
	for i := range sampleRequest {
		if i == 100 || i == 101 {
			continue // the type of FINGERPRINT: the message then has none
		}
		tampered := append([]byte(nil), sampleRequest...)
		tampered[i] ^= 1
		if _, reply, err := g.Admit(from, tampered, nil, at(0)); err == nil {
			t.Errorf("byte %d changed: got %v, want it dropped for its FINGERPRINT", i, reply)
		}
	}
}

// TestRFC5769Responses is sections 2.2 and 2.3: addresses both ways.
func TestRFC5769Responses(t *testing.T) {
	for _, tt := range []struct {
		raw  []byte
		want string
	}{
		{sampleResponseIPv4, "192.0.2.1:32853"},
		{sampleResponseIPv6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"},
	} {
		msg := &stun.Message{Raw: tt.raw}
		if err := msg.Decode(); err != nil {
			t.Fatal(err)
		}
		value, err := msg.Get(stun.AttrXORMappedAddress)
		if err != nil {
			t.Fatal(err)
		}
		got, err := parseXOR(value, tt.raw[4:stunHeader])
		if err != nil || got != addrPort(tt.want) {
			t.Errorf("got %v, %v, want %s", got, err, tt.want)
		}
		r := &Reply{Method: stun.MethodBinding, Tx: msg.TransactionID, mapped: addrPort(tt.want), fingerprint: true}
		made := see(t, r.Append(nil))
		if again, err := made.message.Get(stun.AttrXORMappedAddress); err != nil || string(again) != string(value) {
			t.Errorf("made XOR-MAPPED-ADDRESS %x, %v, want %x", again, err, value)
		}
		indication := AppendDataIndication(nil, msg.TransactionID, addrPort(tt.want), nil)
		if again := indication[stunHeader+4 : stunHeader+4+len(value)]; string(again) != string(value) {
			t.Errorf("made XOR-PEER-ADDRESS %x, want %x", again, value)
		}
		if got, want := stun.FingerprintValue(tt.raw[:len(tt.raw)-8]), binary.BigEndian.Uint32(tt.raw[len(tt.raw)-4:]); got != want {
			t.Errorf("got fingerprint %x, want %x", got, want)
		}
	}
}

// TestRFC5769LongTerm is section 2.4: the key, and the integrity made with it.
func TestRFC5769LongTerm(t *testing.T) {
	const name, password = "マトリックス", "TheMatrIX" // after SASLprep
	config := testGateConfig()
	config.Users = []User{{Name: name, Password: password}}
	var msg stun.Message
	if !decodeRequest(&msg, sampleLongTerm) {
		t.Fatal("the request is dropped")
	}
	username, err := msg.Get(stun.AttrUsername)
	if err != nil || string(username) != name {
		t.Errorf("got USERNAME %q, %v, want %q", username, err, name)
	}
	proved := func() bool {
		_, p := proven(&msg)
		g := NewGate(config)
		user, _ := g.find(g.realms.main, name)
		return g.verify(g.realms.main, &msg, p, algorithmMD5, name, user) != nil
	}
	if !proved() {
		t.Error("the integrity does not hold with the right password")
	}
	config.Users = []User{{Name: name, Key: algorithmMD5.key(name, testRealm, password)}}
	if !proved() {
		t.Error("the integrity does not hold with the key of the right password")
	}
	config.Users = []User{{Name: name, Password: "TheMatrix"}}
	if proved() {
		t.Error("the integrity holds with a wrong password")
	}
}

// sampleSHA256 is the sample of RFC 8489 appendix B.1 as erratum 6268 has it.
var sampleSHA256 = unhexTest(`00010090 2112a442 78ad3433c6ad72c029da412e
	001e0020 4a3cf38fef6992bda952c6780417da0f24819415569e60b205c46e41407f1704
	00150029 6f624d61744a6f733241414143662f2f3439396b39353464364f4c33346f4c394653547679363473 41000000
	0014000b 6578616d706c652e6f726700 001d0004 00020000
	001c0020 b5c7bf005b6c52a21c51c5e892f81924136296cb927c43149309278cc6518e65`)

// TestRFC8489Sample is appendix B.1: USERHASH, the nonce cookie, and
// MESSAGE-INTEGRITY-SHA256 with a key made by SHA-256.
func TestRFC8489Sample(t *testing.T) {
	const name, password = "マトリックス", "TheMatrIX"
	config := testGateConfig()
	config.Users, config.Secrets = []User{{Name: name, Password: password}}, nil
	g := NewGate(config)
	var msg stun.Message
	if !decodeRequest(&msg, sampleSHA256) {
		t.Fatal("the request is dropped")
	}
	list, p := proven(&msg)
	c := credentialOf(list)
	if hash := userHash(name, testRealm); string(c.hash) != string(hash[:]) {
		t.Errorf("got USERHASH %x, want %x", hash, c.hash)
	}
	if features, ok := parseCookie(c.nonce); !ok || features != featureAnonymity {
		t.Errorf("got features %b, %t, want anonymity", features, ok)
	}
	a, ok := g.realms.main.algorithm(&c)
	if !ok || a != algorithmSHA256 {
		t.Fatalf("got algorithm %d, %t, want SHA-256", a, ok)
	}
	username := g.realms.main.names[[32]byte(c.hash)]
	user, _ := g.find(g.realms.main, username)
	key := g.verify(g.realms.main, &msg, p, a, username, user)
	if key == nil {
		t.Fatal("the integrity does not hold")
	}
	made := stun.New()
	made.TransactionID, made.Type = msg.TransactionID, msg.Type
	made.WriteHeader()
	for _, a := range list[:p.at] {
		made.Add(a.Type, a.Value)
	}
	addIntegritySHA256(made, key)
	if string(made.Raw) != string(sampleSHA256) {
		t.Errorf("made\n%x, want\n%x", made.Raw, sampleSHA256)
	}
	for i := stunHeader; i < len(sampleSHA256); i++ {
		tampered := append([]byte(nil), sampleSHA256...)
		tampered[i] ^= 1
		var msg stun.Message
		if !decodeRequest(&msg, tampered) {
			continue
		}
		if _, p := proven(&msg); p.kind != 0 && p.wellFormed(&msg) && p.holds(&msg, key) {
			t.Errorf("the integrity holds with byte %d changed", i)
		}
	}
}
