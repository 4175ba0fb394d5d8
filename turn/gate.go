package turn

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/pion/stun/v3"
)

// MaxUsername bounds a username in bytes (RFC 8489 section 14.3). Old clients
// may send up to maxUsernameReceived.
const (
	MaxUsername         = 508
	maxUsernameReceived = 763
)

// GateConfig is what a [Gate] is made of.
type GateConfig struct {
	Realm           string // prepared, see [OpaqueString]
	Software        string // SOFTWARE in every answer, empty for none
	Users           []User
	Realms          []RealmConfig // further ones
	Secrets         [][]byte      // of TURN REST; several, so that they can be rotated
	TokenKeys       []TokenKey
	TokenServer     string // name of this server for authorization servers, told where there are TokenKeys
	NonceKey        [32]byte
	NonceLifetime   time.Duration
	CredentialGrace time.Duration // how long past its expiry a time-limited credential may refresh; <0: without end
	Lookup          Lookup        // of a directory, nil for none
	LookupSHA256    bool          // it knows the SHA-256 keys of everybody
	Pseudonyms      *Pseudonyms   // that users may be held by; nil: they are not
	HashNames       bool          // users are called by Pseudonyms from here on
	Discoveries     []Discovery   // where RFC 5780 is served
}

// Gate authenticates requests (RFC 8489 section 9.2). It keeps nothing of
// them: it does not change and is safe for concurrent use.
type Gate struct {
	GateConfig
	realms realms
	tokens tokens
	macs   sync.Pool // of nonceHash

	discoveries map[netip.AddrPort]*Discovery // by where requests arrive
}

// NewGate makes a Gate; the slices in c belong to it from then on.
func NewGate(c GateConfig) *Gate {
	g := &Gate{GateConfig: c, realms: newRealms(&c), tokens: newTokens(&c), discoveries: discoveriesAt(c.Discoveries)}
	g.macs.New = func() any { return &nonceHash{Hash: hmac.New(sha256.New, c.NonceKey[:])} }
	return g
}

// ErrDrop says that a frame deserves no answer: it is no STUN, its fingerprint
// is wrong, or it is nothing a server is asked (RFC 8489 section 6.3).
var ErrDrop = errors.New("no answer is due")

// Admit checks frame, which came along t at m. It yields a request that is
// authenticated and whose attributes are all known, or the reply that ends the
// matter, or [ErrDrop], or an [UnaskedError]. It keeps nothing of frame.
//
// The order is RFC 8489 section 9.2.4's: no MESSAGE-INTEGRITY of either kind is 401, without the
// rest of a credential 400, another choice of algorithm than was offered 400, a wrong user or password
// 401, a nonce not ours 438; only then 420, so that nobody unauthenticated learns what is supported.
//
// Held is the access token of the allocation of t, nil where it has none.
func (g *Gate) Admit(t FiveTuple, frame []byte, held SealedToken, m Moment) (*Request, *Reply, error) {
	msg := messages.Get().(*stun.Message)
	defer messages.Put(msg)
	if !decodeRequest(msg, frame) {
		return nil, nil, ErrDrop
	}
	q := g.begin(t, msg)
	if q.Method == stun.MethodBinding {
		return nil, g.binding(q, msg), nil
	}
	list, p := proven(msg)
	r := g.realms.of(t, list)
	code := g.authenticate(q, r, msg, list, p, held, m)
	q.Username = g.called(q.given, q.named, q.key != nil)
	switch code {
	case 0:
	case codeUnasked:
		return nil, nil, &UnaskedError{Realm: q.Realm, Username: q.given, As: g.lookedUp(q.given)}
	default:
		return nil, g.refuse(q, r, code, m), nil
	}
	if u := unknown(list, g.tokens.keys != nil); len(u) > 0 {
		reply := q.reply(CodeUnknownAttribute)
		reply.unknown = u
		return nil, reply, nil
	}
	q.decode(msg, list)
	return q, nil, nil
}

// begin is a request of which only the header is read.
func (g *Gate) begin(t FiveTuple, msg *stun.Message) *Request {
	return &Request{
		FiveTuple: t, Tx: msg.TransactionID, Method: msg.Type.Method,
		fingerprint: msg.Contains(stun.AttrFingerprint), software: g.Software,
	}
}

// decodeRequest decodes frame into msg and says whether it is a request for this server.
func decodeRequest(msg *stun.Message, frame []byte) bool {
	if Classify(frame) != FrameSTUN || int(binary.BigEndian.Uint16(frame[2:]))+stunHeader != len(frame) || len(frame)%4 != 0 {
		return false
	}
	msg.Reset()
	if _, err := msg.Write(frame); err != nil {
		return false
	}
	if msg.Type.Class != stun.ClassRequest {
		return false
	}
	if msg.Contains(stun.AttrFingerprint) && stun.Fingerprint.Check(msg) != nil {
		return false
	}
	switch msg.Type.Method {
	case stun.MethodBinding, stun.MethodAllocate, stun.MethodRefresh, stun.MethodCreatePermission, stun.MethodChannelBind,
		stun.MethodConnect, stun.MethodConnectionBind:
		return true
	}
	return false
}

// binding answers a Binding request (RFC 8489 section 3), for which nobody is authenticated.
func (g *Gate) binding(q *Request, msg *stun.Message) *Reply {
	var left stun.Attributes
	list, _ := proven(msg)
	d := g.discovery(q.FiveTuple)
	for _, a := range list {
		if !iceAttribute(a.Type) && (d == nil || !discoveryAttribute(a.Type)) {
			left = append(left, a)
		}
	}
	r := q.reply(0)
	r.Unauthenticated = true
	if u := unknown(left, true); len(u) > 0 {
		r.Code, r.unknown = CodeUnknownAttribute, u
		return r
	}
	r.mapped = q.FiveTuple.Client
	if d != nil {
		d.prepare(r, q.FiveTuple, list)
	}
	return r
}

// refuse is the answer to a request that is not authenticated. It depends on
// nothing but the code: an unknown user and a wrong password look alike.
func (g *Gate) refuse(q *Request, r *realm, code int, m Moment) *Reply {
	q.key = nil
	reply := q.reply(code)
	reply.Unauthenticated = true
	if code != CodeBadRequest {
		reply.challenge, reply.nonce, reply.algorithms = r.name, g.nonceFor(r, q.FiveTuple.Client, m), offers[r.offer]
	}
	if code == CodeUnauthenticated {
		reply.thirdParty = g.tokens.server
	}
	return reply
}

// credential is what a request says of who sent it; nil is absent.
type credential struct {
	name, hash, realm, nonce []byte
	algorithm, algorithms    []byte
	token                    []byte
}

// credentialOf finds the credential in list; the first of duplicates counts.
func credentialOf(list stun.Attributes) (c credential) {
	first := func(field *[]byte, value []byte) {
		if *field == nil {
			*field = value[:len(value):len(value)]
		}
	}
	for i := range list {
		switch list[i].Type {
		case stun.AttrUsername:
			first(&c.name, list[i].Value)
		case stun.AttrUserhash:
			first(&c.hash, list[i].Value)
		case stun.AttrRealm:
			first(&c.realm, list[i].Value)
		case stun.AttrNonce:
			first(&c.nonce, list[i].Value)
		case stun.AttrPasswordAlgorithm:
			first(&c.algorithm, list[i].Value)
		case stun.AttrPasswordAlgorithms:
			first(&c.algorithms, list[i].Value)
		case attrAccessToken:
			first(&c.token, list[i].Value)
		}
	}
	return c
}

// complete says whether c has all it needs: one name, a realm and a nonce.
func (c *credential) complete() bool {
	if c.realm == nil || c.nonce == nil || (c.name == nil) == (c.hash == nil) {
		return false
	}
	if c.hash != nil {
		return len(c.hash) == sha256.Size
	}
	return len(c.name) <= maxUsernameReceived && utf8.Valid(c.name)
}

// negotiates says whether the client knows of password algorithms: one that does
// not gets what it got from RFC 5389.
func (c *credential) negotiates() bool { return c.algorithm != nil || c.algorithms != nil }

// algorithm is how the key of c is made, false where that is not what was
// offered with the nonce: somebody on the way may have changed the offer (RFC 8489 section 9.2.1).
func (r *realm) algorithm(c *credential) (algorithm, bool) {
	if !c.negotiates() {
		return algorithmMD5, true
	}
	a, ok := parseAlgorithm(c.algorithm)
	if features, _ := parseCookie(c.nonce); !ok || features&featureAlgorithms == 0 {
		return a, ok
	}
	o := r.offered(c.nonce)
	return a, bytes.Equal(c.algorithms, offers[o]) && o.has(a)
}

// authenticate proves who sent msg and fills q's name and key, or says with what code to refuse.
func (g *Gate) authenticate(q *Request, r *realm, msg *stun.Message, list stun.Attributes, p proof, held SealedToken, m Moment) int {
	if p.kind == 0 {
		return CodeUnauthenticated
	}
	c := credentialOf(list)
	if !c.complete() || !p.wellFormed(msg) {
		return CodeBadRequest
	}
	a, ok := r.algorithm(&c)
	if !ok {
		return CodeBadRequest
	}
	q.nonceReturned = g.nonceValid(c.nonce, q.FiveTuple.Client, m)
	q.given, q.Realm, q.sha256 = string(bareName(c.name)), r.name, c.negotiates()
	if c.hash != nil {
		q.given = r.names[[sha256.Size]byte(c.hash)]
	}
	q.named = g.named(r, q.given)
	if token := g.tokens.presented(&c, q.given, held); token != nil {
		return g.authorize(q, msg, p, token, c.token != nil, m)
	}
	if g.Lookup != nil && !q.nonceReturned {
		return CodeStaleNonce // before names are looked up, so that all look alike
	}
	user, presence := g.find(r, q.given)
	if presence == Unasked {
		return codeUnasked
	}
	q.key = g.verify(r, msg, p, a, q.given, user)
	q.named = q.named || presence != Absent
	switch {
	case q.key == nil && presence == Dated:
		return codeUnasked
	case q.key == nil, presence == Absent && !g.current(q, m):
		return CodeUnauthenticated
	case !q.nonceReturned:
		return CodeStaleNonce
	}
	return 0
}

// verify yields the key with which the proof of msg holds, nil where none
// does. What it costs does not depend on whether the user exists: every
// secret is tried for every name, and an unknown name is checked against a key of nobody.
func (g *Gate) verify(r *realm, msg *stun.Message, p proof, a algorithm, username string, user keys) []byte {
	var proved []byte
	try := func(key []byte, real bool) {
		if p.holds(msg, key) && real && proved == nil {
			proved = key
		}
	}
	key := user.of(a)
	known := key != nil
	if !known {
		key = r.dummy.of(a)
	}
	try(key, known)
	_, _, limited := timeLimited(username)
	static := user.md5 != nil || user.sha256 != nil
	for _, secret := range g.Secrets {
		try(a.key(username, r.name, TimeLimitedPassword(secret, username)), limited && !static)
	}
	return proved
}

// TakesTokens says whether there are keys of access tokens: only then is what Admit is told of one of use.
func (g *Gate) TakesTokens() bool { return g.tokens.keys != nil }

// authorize fills in the key of q that token gives, or says with what code to refuse: the token
// has to open, prove msg and be good at m (RFC 7635 section 7).
func (g *Gate) authorize(q *Request, msg *stun.Message, p proof, token SealedToken, shown bool, m Moment) int {
	t, err := g.tokens.open(q.given, token)
	key := t.Key
	if err != nil {
		key = g.NonceKey[:] // nobody has that
	}
	left := t.left(m.WallTime()).Truncate(time.Second)
	switch proved := p.holds(msg, key); {
	case !proved, err != nil, left <= 0:
		return CodeUnauthenticated
	case !q.nonceReturned:
		return CodeStaleNonce
	}
	q.key, q.tokenLeft = t.Key, left
	if shown {
		q.access = token
	}
	return 0
}

// current says whether the time-limited credential of q may still do what q asks. Its expiry ends new
// allocations, and after the grace everything but giving up what it holds.
func (g *Gate) current(q *Request, m Moment) bool {
	expiry, _, _ := timeLimited(q.given)
	over := m.WallTime().Sub(expiry)
	switch {
	case over < 0:
		return true
	case q.Method == stun.MethodAllocate:
		return false
	}
	return g.CredentialGrace < 0 || over < g.CredentialGrace
}

// Knows says whether an allocation that username made in a realm at created may live on: after a
// reload that removed its user it may not. A name whose expiry was over by then
// was no time-limited credential, but that of a static user who is gone. One that a
// directory may have lives on until that has been asked.
func (g *Gate) Knows(realm, username string, created Moment) bool {
	if g.holds(g.realms.named(realm), username) != Absent {
		return true
	}
	expiry, _, limited := timeLimited(username)
	return limited && expiry.After(created.WallTime()) && len(g.Secrets) > 0
}
