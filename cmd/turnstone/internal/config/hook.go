package config

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"turnstone/turn/relay"
)

// Hook is where users are asked for, and how.
type Hook struct {
	URL    string // empty for none
	Token  string
	Lookup relay.LookupConfig // without the directory
}

// maxHookTimeout bounds how long a client waits: it repeats its request for no longer (RFC 8489 section 6.2.1).
const maxHookTimeout = 30 * time.Second

func (c *Config) hook(p *problems) Hook {
	a := &c.Auth
	h := Hook{URL: a.HTTPURL, Token: a.HTTPToken, Lookup: relay.LookupConfig{
		Timeout: time.Duration(a.HTTPTimeout), Keep: time.Duration(a.HTTPCache), Fresh: time.Duration(a.HTTPFresh), Rate: a.HTTPRate,
	}}
	p.check("auth.http-url", plainURL(a.HTTPURL, "use auth.http-token"))
	if strings.ContainsAny(a.HTTPToken, "\r\n") {
		p.check("auth.http-token", errors.New("it has more than one line"))
	}
	if a.HTTPTimeout <= 0 || a.HTTPTimeout > Duration(maxHookTimeout) {
		p.check("auth.http-timeout", fmt.Errorf("%s is not above 0s and at most %s", a.HTTPTimeout, maxHookTimeout))
	}
	if a.HTTPFresh < Duration(time.Second) {
		p.check("auth.http-fresh", fmt.Errorf("%s is less than 1s", a.HTTPFresh))
	}
	if a.HTTPCache < a.HTTPFresh {
		p.check("auth.http-cache", fmt.Errorf("%s is less than auth.http-fresh, %s", a.HTTPCache, a.HTTPFresh))
	}
	if a.HTTPRate < 1 {
		p.check("auth.http-rate", fmt.Errorf("%d is less than 1", a.HTTPRate))
	}
	p.check("auth.http-keys", oneOf(a.HTTPKeys, "md5", "sha256"))
	return h
}

// plainURL checks a URL, without showing it: it may have a secret in it. Instead says what to do about that.
func plainURL(s, instead string) error {
	if s == "" {
		return nil
	}
	u, err := url.Parse(s)
	switch {
	case err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https"):
		return errors.New("it is no URL like https://example.org/users")
	case u.User != nil:
		return errors.New("it has a name or password in it, which is shown where it should not be: " + instead)
	}
	return nil
}
