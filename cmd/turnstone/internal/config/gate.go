package config

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"time"

	"turnstone/turn"
)

func (c *Config) gate(p *problems) turn.GateConfig {
	g := turn.GateConfig{
		Realm: c.Realm, Software: c.Software,
		NonceLifetime: time.Duration(c.Auth.NonceLifetime), CredentialGrace: time.Duration(c.Auth.CredentialGrace),
	}
	switch {
	case c.Realm == "":
		p.check("realm", errors.New("it is empty"))
	case len(c.Realm) > 127:
		p.check("realm", errors.New("it is longer than 127 bytes"))
	case strings.ContainsAny(c.Realm, "\"\x00"):
		p.check("realm", fmt.Errorf("%q has a quote or a zero in it", c.Realm))
	}
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
	return g
}

// user reads NAME:PASSWORD or NAME:0xKEY. Its errors do not show the secret.
func user(s string) (turn.User, error) {
	name, password, found := strings.Cut(s, ":")
	if !found || name == "" || password == "" || len(name) > turn.MaxUsername {
		return turn.User{}, errors.New("not of the form NAME:PASSWORD")
	}
	u := turn.User{Name: name, Password: password}
	if rest, isKey := strings.CutPrefix(password, "0x"); isKey && len(rest) == 32 {
		key, err := hex.DecodeString(rest)
		if err != nil {
			return turn.User{}, fmt.Errorf("the key of %q is not hexadecimal", name)
		}
		u.Key = key
	}
	return u, nil
}
