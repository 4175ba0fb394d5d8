package turn

import (
	"encoding/binary"
	"errors"
	"time"
	"unicode/utf8"

	"github.com/pion/stun/v3"
)

// MaxUsername bounds a USERNAME in bytes (RFC 8489 section 14.3).
const MaxUsername = 508

// GateConfig is what a [Gate] is made of.
type GateConfig struct {
	Realm           string
	Software        string // SOFTWARE in every answer, empty for none
	Users           []User
	Secrets         [][]byte // of TURN REST; several, so that they can be rotated
	NonceKey        [32]byte
	NonceLifetime   time.Duration
	CredentialGrace time.Duration // how long past its expiry a time-limited credential may refresh; <0: without end
}

// Gate authenticates requests (RFC 8489 section 9.2). It keeps nothing between
// them: it does not change and is safe for concurrent use.
type Gate struct {
	GateConfig
	keys  map[string][]byte
	dummy []byte
}

// NewGate makes a Gate; the slices in c belong to it from then on.
func NewGate(c GateConfig) *Gate {
	g := &Gate{GateConfig: c, keys: map[string][]byte{}}
	for _, u := range c.Users {
		g.keys[u.Name] = u.Key
		if u.Key == nil {
			g.keys[u.Name] = longTermKey(u.Name, c.Realm, u.Password)
		}
	}
	g.dummy = longTermKey("", c.Realm, string(c.NonceKey[:]))
	return g
}

// ErrDrop says that a frame deserves no answer: it is no STUN, its fingerprint
// is wrong, or it is nothing a server is asked (RFC 8489 section 6.3).
var ErrDrop = errors.New("no answer is due")

// Admit checks frame, which came along t at m. It yields a request that is
// authenticated and whose attributes are all known, or the reply that ends the
// matter, or [ErrDrop]. It keeps nothing of frame.
//
// The order is RFC 8489 section 9.2.4's: no MESSAGE-INTEGRITY is 401, without the rest
// of a credential 400, a wrong user or password 401, a nonce not ours 438;
// only then 420, so that nobody unauthenticated learns what is supported.
func (g *Gate) Admit(t FiveTuple, frame []byte, m Moment) (*Request, *Reply, error) {
	msg := messages.Get().(*stun.Message)
	defer messages.Put(msg)
	if !decodeRequest(msg, frame) {
		return nil, nil, ErrDrop
	}
	q := &Request{
		FiveTuple: t, Tx: msg.TransactionID, Method: msg.Type.Method,
		fingerprint: msg.Contains(stun.AttrFingerprint), software: g.Software,
	}
	if q.Method == stun.MethodBinding {
		return nil, g.binding(q, msg), nil
	}
	if code := g.authenticate(q, msg, m); code != 0 {
		return nil, g.refuse(q, code, m), nil
	}
	list := covered(msg)
	if u := unknown(list); len(u) > 0 {
		r := q.reply(CodeUnknownAttribute)
		r.unknown = u
		return nil, r, nil
	}
	q.decode(msg, list)
	return q, nil, nil
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
	case stun.MethodBinding, stun.MethodAllocate, stun.MethodRefresh, stun.MethodCreatePermission, stun.MethodChannelBind:
		return true
	}
	return false
}

// binding answers a Binding request (RFC 8489 section 3), for which nobody is authenticated.
func (g *Gate) binding(q *Request, msg *stun.Message) *Reply {
	var left stun.Attributes
	for _, a := range covered(msg) {
		if !iceAttribute(a.Type) {
			left = append(left, a)
		}
	}
	r := q.reply(0)
	r.Unauthenticated = true
	if u := unknown(left); len(u) > 0 {
		r.Code, r.unknown = CodeUnknownAttribute, u
		return r
	}
	r.mapped = q.FiveTuple.Client
	return r
}

// refuse is the answer to a request that is not authenticated. It depends on
// nothing but the code: an unknown user and a wrong password look alike.
func (g *Gate) refuse(q *Request, code int, m Moment) *Reply {
	q.key = nil
	r := q.reply(code)
	r.Unauthenticated = true
	if code != CodeBadRequest {
		r.realm, r.nonce = g.Realm, g.nonceFor(q.FiveTuple.Client, m)
	}
	return r
}

// authenticate proves who sent msg and fills q's name and key, or says with what code to refuse.
func (g *Gate) authenticate(q *Request, msg *stun.Message, m Moment) int {
	mac, err := msg.Get(stun.AttrMessageIntegrity)
	if err != nil {
		return CodeUnauthenticated
	}
	list := covered(msg)
	name, hasName := list.Get(stun.AttrUsername)
	_, hasRealm := list.Get(stun.AttrRealm)
	nonce, hasNonce := list.Get(stun.AttrNonce)
	if !hasName || !hasRealm || !hasNonce || len(mac) != 20 || len(name.Value) > MaxUsername || !utf8.Valid(name.Value) {
		return CodeBadRequest
	}
	q.nonceReturned = g.nonceValid(nonce.Value, q.FiveTuple.Client, m)
	q.Username, q.Realm = string(name.Value), g.Realm
	q.key = g.verify(msg, q.Username)
	switch {
	case q.key == nil, !g.current(q, m):
		return CodeUnauthenticated
	case !q.nonceReturned:
		return CodeStaleNonce
	}
	return 0
}

// verify yields the key with which the integrity of msg holds, nil where none
// does. What it costs does not depend on whether the user exists: every
// secret is tried for every name, and an unknown name is checked against a key of nobody.
func (g *Gate) verify(msg *stun.Message, username string) []byte {
	var proved []byte
	try := func(key []byte, real bool) {
		if stun.MessageIntegrity(key).Check(msg) == nil && real && proved == nil {
			proved = key
		}
	}
	key, known := g.keys[username]
	if !known {
		key = g.dummy
	}
	try(key, known)
	_, _, limited := timeLimited(username)
	for _, secret := range g.Secrets {
		try(longTermKey(username, g.Realm, TimeLimitedPassword(secret, username)), limited && !known)
	}
	return proved
}

// current says whether the credential of q may still do what q asks. A static
// user's may always. The expiry of a time-limited one ends new
// allocations, and after the grace everything but giving up what it holds.
func (g *Gate) current(q *Request, m Moment) bool {
	if _, static := g.keys[q.Username]; static {
		return true
	}
	expiry, _, _ := timeLimited(q.Username)
	over := m.WallTime().Sub(expiry)
	switch {
	case over < 0:
		return true
	case q.Method == stun.MethodAllocate:
		return false
	}
	return g.CredentialGrace < 0 || over < g.CredentialGrace
}

// Knows says whether an allocation that username made at created may live on: after a
// reload that removed its user it may not. A name whose expiry was over by then
// was no time-limited credential, but that of a static user who is gone.
func (g *Gate) Knows(username string, created Moment) bool {
	if _, static := g.keys[username]; static {
		return true
	}
	expiry, _, limited := timeLimited(username)
	return limited && expiry.After(created.WallTime()) && len(g.Secrets) > 0
}
