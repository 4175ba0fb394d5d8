package config

import (
	"cmp"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"turnstone/turn"
)

func (c *Config) gate(p *problems) turn.GateConfig {
	g := turn.GateConfig{
		Software:      c.Software,
		NonceLifetime: time.Duration(c.Auth.NonceLifetime), CredentialGrace: time.Duration(c.Auth.CredentialGrace),
	}
	var err error
	g.Realm, err = realmName(c.Realm)
	p.check("realm", err)
	if len(c.Software) > 127 {
		p.check("software", errors.New("it is longer than 127 bytes"))
	}
	if c.Auth.NonceLifetime <= 0 {
		p.check("auth.nonce-lifetime", fmt.Errorf("%s: a nonce has to end some time", c.Auth.NonceLifetime))
	}
	for i, s := range c.Auth.Users {
		u, err := user(s)
		if err != nil {
			p.check("auth.users", fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		g.Users = append(g.Users, u)
	}
	for i, s := range c.Auth.Secrets {
		if s == "" {
			p.check("auth.secrets", fmt.Errorf("entry %d is empty", i+1))
		}
		g.Secrets = append(g.Secrets, []byte(s))
	}
	c.tokens(&g, p)
	return g
}

// tokens puts what is needed for access tokens into g.
func (c *Config) tokens(g *turn.GateConfig, p *problems) {
	for i, s := range c.Auth.AccessTokenKeys {
		k, err := tokenKey(s)
		static := slices.ContainsFunc(g.Users, func(u turn.User) bool { return u.Name == k.ID })
		if err == nil && (static || slices.ContainsFunc(g.TokenKeys, func(o turn.TokenKey) bool { return o.ID == k.ID })) {
			err = fmt.Errorf("%q is the id of another key or the name of a user", k.ID)
		}
		if err != nil {
			p.check("auth.access-token-keys", fmt.Errorf("entry %d: %w", i+1, err))
			continue
		}
		g.TokenKeys = append(g.TokenKeys, k)
	}
	if len(c.Auth.AccessTokenKeys) == 0 {
		return
	}
	g.TokenServer = cmp.Or(c.Auth.AccessTokenServer, g.Realm)
	if len(g.TokenServer) > 255 || !utf8.ValidString(g.TokenServer) {
		p.check("auth.access-token-server", errors.New("it is longer than 255 bytes or no UTF-8"))
	}
}

// tokenKey reads KID:0xKEY. Its errors do not show the secret.
func tokenKey(s string) (k turn.TokenKey, err error) {
	id, digits, found := strings.Cut(s, ":")
	if !found || id == "" || len(id) > turn.MaxUsername {
		return k, errors.New("not of the form KID:0xKEY")
	}
	if k.ID, err = prepared("the id", id); err != nil {
		return k, err
	}
	b, err := hex.DecodeString(strings.TrimPrefix(digits, "0x"))
	if err != nil || copy(k.Key[:], b) != len(b) || len(b) != len(k.Key) {
		return k, fmt.Errorf("the key of %q does not have 64 hexadecimal digits", id)
	}
	return k, nil
}

// realmName is the name of a realm, prepared.
func realmName(s string) (string, error) {
	switch {
	case s == "":
		return "", errors.New("it is empty")
	case len(s) > 127:
		return "", errors.New("it is longer than 127 bytes")
	case strings.ContainsAny(s, "\"\x00"):
		return "", fmt.Errorf("%q has a quote or a zero in it", s)
	}
	return prepared("it", s)
}

// prepared is a string as it goes into a key. The error does not show it.
func prepared(what, s string) (string, error) {
	out, err := turn.OpaqueString(s)
	if err != nil {
		return "", fmt.Errorf("%s has a character that may not be in one (RFC 8265, OpaqueString)", what)
	}
	return out, nil
}

// Lengths of the keys a user can be given by, in bytes.
const (
	keyMD5    = 16
	keySHA256 = 32
)

// user reads NAME:PASSWORD or NAME:0xKEY. Its errors do not show the secret.
func user(s string) (turn.User, error) {
	name, password, found := strings.Cut(s, ":")
	if !found || name == "" || password == "" {
		return turn.User{}, errors.New("not of the form NAME:PASSWORD")
	}
	name, err := prepared("the name", name)
	if err != nil {
		return turn.User{}, err
	}
	if len(name) > turn.MaxUsername {
		return turn.User{}, fmt.Errorf("the name is longer than %d bytes", turn.MaxUsername)
	}
	u := turn.User{Name: name}
	digits, isKey := strings.CutPrefix(password, "0x")
	if length := len(digits); !isKey || (length != 2*keyMD5 && length != 2*keySHA256 && length != 2*(keyMD5+keySHA256)) {
		u.Password, err = prepared(fmt.Sprintf("the password of %q", name), password)
		return u, err
	}
	key, err := hex.DecodeString(digits)
	if err != nil {
		return turn.User{}, fmt.Errorf("the key of %q is not hexadecimal", name)
	}
	if len(key) != keySHA256 {
		u.Key, key = key[:keyMD5:keyMD5], key[keyMD5:]
	}
	if len(key) > 0 {
		u.KeySHA256 = key
	}
	return u, nil
}
