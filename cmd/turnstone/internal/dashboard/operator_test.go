package dashboard

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"turnstone/turn"
	"turnstone/turn/relay"
)

const token = "0123456789abcdef"

// operator records what it is told to do.
type operator struct {
	mu    sync.Mutex // guards what follows
	token string
	did   []string
	fails error
}

func (o *operator) note(format string, args ...any) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.did = append(o.did, fmt.Sprintf(format, args...))
}

// done is what was done since it was asked last.
func (o *operator) done() []string {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.did
	o.did = nil
	return out
}

func (o *operator) Token() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.token
}

func (o *operator) Guessed(from string) { o.note("guessed from %s", from) }

func (o *operator) Acted(_ context.Context, e turn.OperatorActed) error {
	o.note("recorded %d %d %s", e.UID, e.PID, e.What)
	return o.fails
}

func (o *operator) CloseAllocation(_ context.Context, id turn.AllocationID) error {
	if id == 404 {
		return relay.ErrNoAllocation
	}
	o.note("closed %d", id)
	return nil
}

// shows has a request show a token.
func shows(text string) func(*http.Request) {
	return func(r *http.Request) { r.Header.Set("Authorization", "Bearer "+text) }
}

func TestWhoHasTheTokenActs(t *testing.T) {
	o := &operator{token: token}
	s := serveFor(t, nil, o)
	if !get[Span](s, "/api/span").Acts {
		t.Error("the page is not told that there is a token")
	}
	acted := []string{"recorded 4294967295 0 close allocation 17, in the dashboard, from 127.0.0.1", "closed 17"}
	for _, c := range []struct {
		name, method, path string
		change             func(*http.Request)
		want               int
		did                []string
	}{
		{"sign-in", "POST", "/api/operator", shows(token), 200, nil},
		{"act", "POST", "/api/allocations/17/close", shows(token), 200, acted},
		{"nobody", "POST", "/api/allocations/404/close", shows(token), 404, []string{strings.Replace(acted[0], "17", "404", 1)}},
		{"no-number", "POST", "/api/allocations/x/close", shows(token), 400, nil},
		{"no-token", "POST", "/api/allocations/17/close", nil, 401, nil},
		{"token-in-the-url", "POST", "/api/allocations/17/close?token=" + token, nil, 401, nil},
		{"token-in-a-cookie", "POST", "/api/allocations/17/close", func(r *http.Request) { r.Header.Set("Cookie", "token="+token) }, 401, nil},
		{"other-scheme", "POST", "/api/allocations/17/close", func(r *http.Request) { r.SetBasicAuth("", token) }, 401, nil},
		{"wrong-token", "POST", "/api/allocations/17/close", shows(token + "0"), 401, []string{"guessed from 127.0.0.1"}},
		{"half-a-token", "POST", "/api/allocations/17/close", shows(token[:8]), 401, []string{"guessed from 127.0.0.1"}},
		{"by-reading", "GET", "/api/allocations/17/close", shows(token), 404, nil},
		{"post-for-a-state", "POST", "/api/state", shows(token), 405, nil},
		{"delete", "DELETE", "/api/allocations/17/close", shows(token), 405, nil},
		{"preflight", "OPTIONS", "/api/allocations/17/close", nil, 405, nil},
		{"other-origin", "POST", "/api/allocations/17/close", both(shows(token), func(r *http.Request) { r.Header.Set("Origin", "http://attacker.example") }), 403, nil},
		{"other-site", "POST", "/api/allocations/17/close", both(shows(token), func(r *http.Request) { r.Header.Set("Sec-Fetch-Site", "cross-site") }), 403, nil},
		{"other-name", "POST", "/api/allocations/17/close", both(shows(token), func(r *http.Request) { r.Host = "attacker.example" }), 421, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, head, body := s.do(c.method, c.path, c.change)
			if did := o.done(); code != c.want || !slices.Equal(did, c.did) {
				t.Errorf("got %d and that was done: %q; want %d and %q: %s", code, did, c.want, c.did, body)
			}
			if code == 401 && head.Get("WWW-Authenticate") != "Bearer" {
				t.Errorf("got WWW-Authenticate %q, want Bearer", head.Get("WWW-Authenticate"))
			}
		})
	}
	o.fails = errors.New("the log is full")
	code, _, body := s.do("POST", "/api/allocations/17/close", shows(token))
	if did := o.done(); code != 500 || !slices.Equal(did, acted[:1]) || !strings.Contains(body, "not done, since it cannot be recorded") {
		t.Errorf("what cannot be recorded: got %d, %q, and that was done: %q", code, body, did)
	}
	o.mu.Lock()
	o.token = ""
	o.mu.Unlock()
	if code, _, _ := s.do("POST", "/api/operator", shows("")); code != 405 || get[Span](s, "/api/span").Acts {
		t.Errorf("with the token gone: got %d, want 405 and that the page is told", code)
	}
}

func both(f, g func(*http.Request)) func(*http.Request) {
	return func(r *http.Request) { f(r); g(r) }
}

func TestGuessesAreFew(t *testing.T) {
	o := &operator{token: token}
	s := serveFor(t, nil, o)
	codes := map[int]int{}
	for i := range 40 {
		code, _, _ := s.do("POST", "/api/operator", shows(fmt.Sprintf("guess%011d", i)))
		codes[code]++
	}
	if did := o.done(); codes[401] < guessesAtOnce || codes[401] > guessesAtOnce+5 || codes[401]+codes[429] != 40 || len(did) != codes[401] {
		t.Errorf("got the codes %v and %d warnings, want about %d guesses looked at", codes, len(did), guessesAtOnce)
	}

	var g guesses
	now := time.Now()
	for i := range guessesAtOnce {
		if !g.take(now, true) || !g.take(now, false) {
			t.Fatalf("guess %d is not taken", i)
		}
	}
	if g.take(now, true) {
		t.Error("the token is looked at although all guesses are used up: who guesses it would know")
	}
	if now = now.Add(guessEvery); !g.take(now, false) || g.take(now, false) {
		t.Error("want one more guess after a while, and not two")
	}
	if now = now.Add(time.Hour); !g.take(now, false) {
		t.Error("want guesses back after an hour")
	}
}
