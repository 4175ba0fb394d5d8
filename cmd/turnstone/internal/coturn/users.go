package coturn

import (
	"encoding/hex"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"turnstone/cmd/turnstone/internal/config"
)

const trailing = "what looks like a comment behind the value is part of it, as for coturn"

// commented adds to v that the value has what looks like a comment in it.
func commented(v verdict, e *entry) verdict {
	if strings.Contains(e.value, " #") {
		v.reason = trailing
	}
	return v
}

func realm(t *translation, e *entry) (verdict, error) {
	s, err := e.text()
	if err != nil {
		return verdict{}, err
	}
	if err := config.CheckText("the result", []byte("realm = "+quoted(s))); err != nil {
		return verdict{}, err
	}
	return commented(t.set("realm", s, e), e), nil
}

// path is a file, from the directory of the configuration where it is not absolute.
func path(name string) key {
	return func(t *translation, e *entry) (verdict, error) {
		s, err := e.text()
		if err != nil {
			return verdict{}, err
		}
		if tls, dtls := t.secure(); !tls && !dtls {
			return verdict{fate: Dropped, reason: notSecure}, nil
		}
		if !filepath.IsAbs(s) {
			s = filepath.Join(t.dir, s)
		}
		return commented(t.add(name, e, s), e), nil
	}
}

// timeLimited says whether the file has coturn take time-limited credentials, and no others.
func (t *translation) timeLimited() bool {
	return t.last("use-auth-secret") != nil || t.last("static-auth-secret") != nil
}

// user takes NAME:PASSWORD or NAME:0xKEY.
func user(t *translation, e *entry) (verdict, error) {
	s, err := e.text()
	if err != nil {
		return verdict{}, errors.New("it is not of the form NAME:PASSWORD")
	}
	name, password, found := strings.Cut(s, ":")
	if !found || name == "" || password == "" {
		return verdict{}, errors.New("it is not of the form NAME:PASSWORD")
	}
	if t.timeLimited() {
		return verdict{fate: Dropped, reason: "with use-auth-secret coturn serves time-limited credentials only: add it to auth.users if it should be served"}, nil
	}
	if digits, isKey := strings.CutPrefix(password, "0x"); isKey {
		if key, err := hex.DecodeString(digits); err != nil || len(key) != 16 {
			return verdict{}, errors.New("its key has not 32 hexadecimal digits")
		}
		if t.last("realm") == nil {
			return verdict{}, errors.New("its key holds for one realm only, and the file has none")
		}
	}
	if config.CheckText("the result", []byte("auth = { users = ["+quoted(s)+"] }")) != nil {
		return verdict{}, errors.New("its name or password has a character that may not be in one, or is too long")
	}
	return commented(t.add("auth.users", e, s), e), nil
}

// useAuthSecret is on whatever its value, as for coturn.
func useAuthSecret(t *translation, _ *entry) (verdict, error) {
	if t.last("static-auth-secret") == nil {
		return verdict{fate: Dropped, reason: "the secrets are in a database, which is not read: put them into auth.secrets"}, nil
	}
	return verdict{fate: Anyway, reason: "time-limited credentials are taken where there is a secret"}, nil
}

func secret(t *translation, e *entry) (verdict, error) {
	s, err := e.text()
	if err != nil {
		return verdict{}, err
	}
	return commented(t.add("auth.secrets", e, s), e), nil
}

func separator(_ *translation, e *entry) (verdict, error) {
	if strings.HasPrefix(e.value, ":") {
		return verdict{fate: Anyway, reason: "the separator is a colon"}, nil
	}
	return verdict{fate: Dropped, reason: fmt.Sprintf("the separator is a colon: have the application make EXPIRY:USER, not EXPIRY%.1sUSER", e.word())}, nil
}

// serverName is for access tokens, where they are on.
func serverName(t *translation, e *entry) (verdict, error) {
	if !t.on("oauth") {
		return verdict{fate: Dropped, reason: "it is for access tokens (RFC 7635), and oauth is not on"}, nil
	}
	s, err := e.text()
	if err != nil {
		return verdict{}, err
	}
	return commented(t.set("auth.access-token-server", s, e), e), nil
}

// staleNonce takes a lifetime, 600 s where none is given.
func staleNonce(t *translation, e *entry) (verdict, error) {
	d, err := e.seconds(600)
	switch {
	case err != nil:
		return verdict{}, err
	case d == 0:
		return verdict{fate: Dropped, reason: fmt.Sprintf("a nonce has to end some time: it does after auth.nonce-lifetime, %s", config.Default().Auth.NonceLifetime)}, nil
	}
	return t.set("auth.nonce-lifetime", d, e), nil
}
