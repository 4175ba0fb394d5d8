// Package hook asks an operator's own directory for users, over HTTP.
//
// The question is a POST of {"username": NAME, "realm": REALM}. The answer is 200 with {"password": PASSWORD}, or with
// {"md5": KEY, "sha256": KEY} in hex, of which one is enough, and in both an "expires" in Unix seconds may say how long it is good;
// or 404 where there is no such user. Anything else is a failure, and lets nobody in.
package hook

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"time"

	"turnstone/turn"
	"turnstone/turn/relay"
)

// maxAnswer bounds an answer in bytes.
const maxAnswer = 64 << 10

// maxConnections is how many may be open at once.
const maxConnections = 16

// Hook is a directory behind a URL. It is safe for concurrent use.
type Hook struct {
	url, token string
	client     *http.Client
}

// New is the hook at a URL. A token, where there is one, goes with each question.
func New(at, token string) *Hook {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.MaxConnsPerHost, transport.MaxIdleConnsPerHost = maxConnections, maxConnections
	return &Hook{url: at, token: token, client: &http.Client{
		Transport:     transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}
}

// Close closes the connections that are not in use.
func (h *Hook) Close() { h.client.CloseIdleConnections() }

type question struct {
	Username string `json:"username"`
	Realm    string `json:"realm"`
}

type answer struct {
	Password string `json:"password"`
	MD5      string `json:"md5"`
	SHA256   string `json:"sha256"`
	Expires  int64  `json:"expires"`
}

// Find asks for a user. Its errors show nothing of the answer.
func (h *Hook) Find(ctx context.Context, username, realm string) (relay.Found, error) {
	body, err := json.Marshal(question{username, realm})
	if err != nil {
		return relay.Found{}, fmt.Errorf("ask the hook: %w", err)
	}
	q, err := http.NewRequestWithContext(ctx, http.MethodPost, h.url, bytes.NewReader(body))
	if err != nil {
		return relay.Found{}, errors.New("ask the hook: its URL is wrong")
	}
	q.Header.Set("Content-Type", "application/json")
	q.Header.Set("Accept", "application/json")
	if h.token != "" {
		q.Header.Set("Authorization", "Bearer "+h.token)
	}
	resp, err := h.client.Do(q)
	if err != nil {
		return relay.Found{}, fmt.Errorf("ask the hook: %w", withoutURL(err))
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch {
	case resp.StatusCode == http.StatusNotFound:
		return relay.Found{}, nil
	case resp.StatusCode != http.StatusOK:
		return relay.Found{}, fmt.Errorf("ask the hook: it answers %d", resp.StatusCode)
	case err != nil:
		return relay.Found{}, fmt.Errorf("ask the hook: %w", withoutURL(err))
	case len(text) > maxAnswer:
		return relay.Found{}, fmt.Errorf("ask the hook: its answer is longer than %d bytes", maxAnswer)
	}
	found, err := read(text)
	if err != nil {
		return relay.Found{}, fmt.Errorf("ask the hook: its answer %w", err)
	}
	return found, nil
}

// withoutURL is err without the URL, which may have a secret in it.
func withoutURL(err error) error {
	var u *url.Error
	if errors.As(err, &u) {
		return u.Err
	}
	return err
}

// read reads an answer.
func read(text []byte) (relay.Found, error) {
	var a answer
	if json.Unmarshal(text, &a) != nil {
		return relay.Found{}, errors.New("is not the JSON that is wanted")
	}
	f := relay.Found{Known: true}
	if a.Expires != 0 {
		f.Until = time.Unix(a.Expires, 0)
	}
	if a.Password != "" {
		var err error
		if f.User.Password, err = turn.OpaqueString(a.Password); err != nil {
			return relay.Found{}, errors.New("has a password with a character that may not be in one (RFC 8265, OpaqueString)")
		}
		return f, nil
	}
	var err1, err2 error
	f.User.Key, err1 = key(a.MD5, 16)
	f.User.KeySHA256, err2 = key(a.SHA256, 32)
	if err := errors.Join(err1, err2); err != nil {
		return relay.Found{}, err
	}
	if f.User.Key == nil && f.User.KeySHA256 == nil {
		return relay.Found{}, errors.New("has neither a password nor a key")
	}
	return f, nil
}

// key is a key in hex, nil where there is none.
func key(s string, size int) ([]byte, error) {
	if s == "" {
		return nil, nil
	}
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != size {
		return nil, fmt.Errorf("has a key that has not %d hexadecimal digits", 2*size)
	}
	return b, nil
}
