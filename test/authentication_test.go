package test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"strings"
	"testing"

	"github.com/pion/stun/v3"
)

const (
	attrAccessToken stun.AttrType = 0x001B
	attrThirdParty  stun.AttrType = 0x802E
)

// sha256Key signs a request with MESSAGE-INTEGRITY-SHA256.
type sha256Key []byte

func (k sha256Key) AddTo(m *stun.Message) error {
	m.Length += 36 // what the attribute will take
	m.WriteLength()
	mac := hmac.New(sha256.New, k)
	mac.Write(m.Raw)
	m.Length -= 36
	m.Add(stun.AttrMessageIntegritySHA256, mac.Sum(nil))
	return nil
}

// signed says whether an answer has this key's MESSAGE-INTEGRITY-SHA256, and no other integrity.
func (k sha256Key) signed(t *testing.T, answer *stun.Message) bool {
	t.Helper()
	again := stun.New()
	again.TransactionID, again.Type = answer.TransactionID, answer.Type
	again.WriteHeader()
	for _, a := range answer.Attributes {
		if a.Type == stun.AttrMessageIntegritySHA256 {
			break
		}
		again.Add(a.Type, a.Value)
	}
	if err := k.AddTo(again); err != nil {
		t.Fatal(err)
	}
	want, _ := again.Get(stun.AttrMessageIntegritySHA256)
	got, err := answer.Get(stun.AttrMessageIntegritySHA256)
	return err == nil && hmac.Equal(got, want) && !answer.Contains(stun.AttrMessageIntegrity)
}

// TestAnonymousClient is a client of RFC 8489: it chooses the first algorithm it is offered, and says no name.
func TestAnonymousClient(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	c := newClient(t, s, "127.0.0.2:0", server4)
	challenge, err := c.exchange(build(stun.MethodAllocate, transport()), patience)
	if err != nil {
		t.Fatal(err)
	}
	offered, err := challenge.Get(stun.AttrPasswordAlgorithms)
	if err != nil || len(offered) != 8 || offered[1] != 2 {
		t.Fatalf("got PASSWORD-ALGORITHMS %x, %v, want SHA-256 first", offered, err)
	}
	if !strings.HasPrefix(c.nonce.String(), "obMatJos2AAAD") {
		t.Fatalf("got NONCE %q, want one with both security features", c.nonce)
	}
	hash, key := sha256.Sum256([]byte(username+":"+realm)), sha256.Sum256([]byte(username+":"+realm+":"+password))
	request := func(method stun.Method, setters ...stun.Setter) *stun.Message {
		return build(method, append(setters,
			stun.RawAttribute{Type: stun.AttrUserhash, Value: hash[:]}, stun.NewRealm(realm), c.nonce,
			stun.RawAttribute{Type: stun.AttrPasswordAlgorithms, Value: offered},
			stun.RawAttribute{Type: stun.AttrPasswordAlgorithm, Value: offered[:4]}, sha256Key(key[:]))...)
	}
	for _, m := range []*stun.Message{
		request(stun.MethodAllocate, transport()),
		request(stun.MethodCreatePermission, xor(addr("127.0.0.3:9"))),
		request(stun.MethodRefresh, lifetime(600)),
	} {
		if answer := c.must(m); !sha256Key(key[:]).signed(t, answer) {
			t.Errorf("%v: got an answer that is not signed as it should be: %v", m.Type, answer)
		}
	}
	if a, ok := d.allocations()[c.addr()]; !ok || a.Username != username {
		t.Errorf("got allocation %+v, %t, want one of %s", a, ok, username)
	}
	c.must(c.request(stun.MethodRefresh, lifetime(0))) // as an old client
}

// TestAccessTokenSurvivesRestart is a client with an access token, which it shows with its Allocate and Refresh
// only (RFC 7635 section 9): the relay still knows it after a kill.
func TestAccessTokenSurvivesRestart(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	flags := []string{"--access-token-key", "k1:0x" + strings.Repeat("5a", 32), "--access-token-server", "turn.example.org"}
	d := startDaemon(t, s, append(flags, onLoopback...)...)
	c := newClient(t, s, "127.0.0.2:0", server4)
	challenge, err := c.exchange(build(stun.MethodAllocate, transport()), patience)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := challenge.Get(attrThirdParty); err != nil || string(name) != "turn.example.org" {
		t.Errorf("got THIRD-PARTY-AUTHORIZATION %q, %v, want turn.example.org", name, err)
	}
	made := decode[struct {
		KID   string `json:"kid"`
		Token []byte `json:"access_token"`
		Key   []byte `json:"key"`
	}](t, d.ask(append([]string{"credentials", "--access-token", "--ttl", "1h", "-o", "json"}, flags...)...))
	request := func(method stun.Method, setters ...stun.Setter) *stun.Message {
		return build(method, append(setters, stun.NewUsername(made.KID), stun.NewRealm(realm), c.nonce, stun.MessageIntegrity(made.Key))...)
	}
	token := stun.RawAttribute{Type: attrAccessToken, Value: made.Token}
	permit := func() *stun.Message {
		return request(stun.MethodCreatePermission, xor(addr("127.0.0.3:9")))
	}
	if _, err := c.call(request(stun.MethodAllocate, transport())); err == nil {
		t.Error("an Allocate without the token is granted")
	}
	c.must(request(stun.MethodAllocate, transport(), token))
	c.must(permit())
	d.kill()
	d.start()
	if answer := c.must(permit()); stun.MessageIntegrity(made.Key).Check(answer) != nil {
		t.Errorf("got an answer that the key of the token did not sign: %v", answer)
	}
	c.must(request(stun.MethodRefresh, lifetime(600), token))
	d.verify()
	kinds := map[string]int{}
	for _, e := range d.events() {
		kinds[e.Kind]++
		if text := fmt.Sprint(e.Event); strings.Contains(text, base64.StdEncoding.EncodeToString(made.Key)) {
			t.Errorf("the log shows the key: %s", text)
		}
	}
	if kinds["TokenAccepted"] != 1 {
		t.Errorf("got events %v, want one TokenAccepted: the same token is told once", kinds)
	}
}
