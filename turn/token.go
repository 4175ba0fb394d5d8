package turn

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"time"
)

// AccessToken is what an authorization server tells the relay about a client
// (RFC 7635 section 6.2).
type AccessToken struct {
	Key      []byte    // of the message integrity, 20 to 64 bytes
	Made     time.Time // to 1/64000 of a second
	Lifetime time.Duration
}

// SealedToken is an [AccessToken] that only its key opens, as it is in ACCESS-TOKEN.
type SealedToken []byte

func (t SealedToken) String() string { return hex.EncodeToString(t) }

// TokenKey is a key that an authorization server and the relay share
// (RFC 7635 section 4). Clients name it in USERNAME.
type TokenKey struct {
	ID  string   // kid; prepared, see [OpaqueString]
	Key [32]byte // of AEAD_AES_256_GCM
}

// TokenNonceSize is the length of the nonce that a token is sealed with, in bytes.
const TokenNonceSize = 12

const (
	tokenFixed   = 2 + 8 + 4 // length of the key, timestamp, lifetime
	tokenLeast   = 20        // bytes of a key that are asked for
	tokenMost    = 64        // bytes of a key that are taken
	tokenTag     = 16
	tokenMaxSize = 2 + TokenNonceSize + tokenFixed + tokenMost + tokenTag
	tokenDelta   = 5 * time.Second // by how far the clocks may be apart
	tokenTick    = time.Second / 64000
)

// errToken says that a token is malformed, or of another key or another server.
var errToken = errors.New("no access token of this key and server")

// Seal makes the token of a client that it can use with the server of that name.
// The nonce must be of one use with the key.
func (k TokenKey) Seal(server string, nonce [TokenNonceSize]byte, t AccessToken) (SealedToken, error) {
	if len(t.Key) < tokenLeast || len(t.Key) > tokenMost {
		return nil, errors.New("the key of an access token has 20 to 64 bytes")
	}
	seconds := t.Lifetime / time.Second
	if seconds <= 0 || seconds > 1<<32-1 || t.Made.Unix() < 0 {
		return nil, errors.New("an access token is good for some seconds")
	}
	var b []byte
	b = binary.BigEndian.AppendUint16(b, uint16(len(t.Key)))
	b = append(b, t.Key...)
	b = binary.BigEndian.AppendUint64(b, uint64(t.Made.Unix())<<16|uint64(t.Made.Nanosecond())/uint64(tokenTick))
	b = binary.BigEndian.AppendUint32(b, uint32(seconds))
	out := binary.BigEndian.AppendUint16(nil, TokenNonceSize)
	out = append(out, nonce[:]...)
	return k.aead().Seal(out, nonce[:], b, []byte(server)), nil
}

func (k TokenKey) aead() cipher.AEAD {
	block, err := aes.NewCipher(k.Key[:])
	must(err) // 32 bytes are a key
	a, err := cipher.NewGCM(block)
	must(err) // of a block cipher of 16 bytes
	return a
}

// openToken opens a token for a server.
func openToken(key cipher.AEAD, server string, sealed []byte) (t AccessToken, err error) {
	const front = 2 + TokenNonceSize
	if len(sealed) > tokenMaxSize || len(sealed) < front+tokenFixed+tokenLeast+tokenTag || binary.BigEndian.Uint16(sealed) != TokenNonceSize {
		return t, errToken
	}
	b, err := key.Open(nil, sealed[2:front], sealed[front:], []byte(server))
	if err != nil {
		return t, errToken
	}
	n := int(binary.BigEndian.Uint16(b))
	if n < tokenLeast || n > tokenMost || len(b) != tokenFixed+n {
		return t, errToken
	}
	made, lifetime := binary.BigEndian.Uint64(b[2+n:]), binary.BigEndian.Uint32(b[2+n+8:])
	if made>>16 > 1<<40 || made&0xFFFF >= 64000 {
		return t, errToken
	}
	return AccessToken{
		Key: b[2 : 2+n], Made: time.Unix(int64(made>>16), int64(made&0xFFFF)*int64(tokenTick)),
		Lifetime: time.Duration(lifetime) * time.Second,
	}, nil
}

// left is for how long t is good at now, zero or less where it is over: its lifetime, give
// or take what the clocks may differ by (RFC 7635 sections 7 and 9).
func (t *AccessToken) left(now time.Time) time.Duration {
	return t.Lifetime + tokenDelta - now.Sub(t.Made).Abs()
}

// tokens are the keys of access tokens of a gate.
type tokens struct {
	server string
	keys   map[string]cipher.AEAD // by id; nil: tokens are not known
	nobody cipher.AEAD

	pseudonyms map[string]bool // of ids
}

func newTokens(c *GateConfig) tokens {
	if len(c.TokenKeys) == 0 {
		return tokens{}
	}
	all := tokens{server: c.TokenServer, keys: map[string]cipher.AEAD{}, nobody: TokenKey{Key: c.NonceKey}.aead(), pseudonyms: map[string]bool{}}
	for _, k := range c.TokenKeys {
		all.keys[k.ID] = k.aead()
		if c.Pseudonyms != nil {
			all.pseudonyms[c.Pseudonyms.Of(k.ID)] = true
		}
	}
	return all
}

// open opens the token of a client that names the key id; whether there is one shows neither
// in the outcome nor in the work.
func (all *tokens) open(id string, sealed []byte) (AccessToken, error) {
	key, known := all.keys[id]
	if !known {
		key = all.nobody
	}
	t, err := openToken(key, all.server, sealed)
	if !known {
		return AccessToken{}, errToken
	}
	return t, err
}

// presented is the token that proves a request: the one that comes with it, or, of a
// client that has proved one with its Allocate or Refresh, the one held (RFC 7635 section 9). Nil is none.
func (all *tokens) presented(c *credential, username string, held SealedToken) SealedToken {
	switch {
	case all.keys == nil || c.hash != nil:
		return nil
	case c.token != nil:
		return bytes.Clone(c.token)
	case all.keys[username] != nil:
		return held
	}
	return nil
}
