package dashboard

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/turn"
)

// Operator is who acts for whoever shows the token.
type Operator interface {
	// Token is what has to be shown, empty where nobody may act.
	Token() string
	// Guessed is told that another token was shown. That is seldom: see [guesses].
	Guessed(from string)
	admin.Operators
	// CloseAllocation ends an allocation. It returns when nothing is relayed for it any more.
	CloseAllocation(ctx context.Context, id turn.AllocationID) error
}

// acts says whether there is somebody who may act.
func (s *Server) acts() bool { return s.operator != nil && s.operator.Token() != "" }

// A wrong token may be shown so many times at once, and again after so long.
const (
	guessesAtOnce = 5
	guessEvery    = 2 * time.Second
)

// guesses bounds how often tokens are tried, by all together: whoever comes by a forwarded port looks like anybody else.
type guesses struct {
	mu   sync.Mutex // guards full
	full time.Time  // when all of them can be made again
}

// take says whether a token is looked at. A wrong one costs a guess.
func (g *guesses) take(now time.Time, right bool) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.full.Before(now) {
		g.full = now
	}
	if g.full.Sub(now) > (guessesAtOnce-1)*guessEvery {
		return false
	}
	if !right {
		g.full = g.full.Add(guessEvery)
	}
	return true
}

// same compares tokens, in a time that says nothing of them.
func same(shown, token string) bool {
	a, b := sha256.Sum256([]byte(shown)), sha256.Sum256([]byte(token))
	return subtle.ConstantTimeCompare(a[:], b[:]) == 1
}

// act is f for those who show the token, in the header Authorization: no other site can have a browser send that.
func (s *Server) act(f func(*http.Request) error) http.HandlerFunc {
	refuse := func(w http.ResponseWriter, code int, why string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(map[string]string{"error": why}) // the client is gone
	}
	return func(w http.ResponseWriter, r *http.Request) {
		shown, bears := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		token := s.operator.Token()
		right := bears && token != "" && same(shown, token)
		switch {
		case !bears:
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, "this takes the token")
		case !s.guesses.take(time.Now(), right):
			w.Header().Set("Retry-After", strconv.Itoa(int(guessEvery/time.Second)))
			refuse(w, http.StatusTooManyRequests, "too many wrong tokens were shown: try again in a few seconds")
		case !right:
			s.operator.Guessed(from(r))
			w.Header().Set("WWW-Authenticate", "Bearer")
			refuse(w, http.StatusUnauthorized, "this is not the token")
		default:
			reply(w, struct{}{}, f(r))
		}
	}
}

// from is the address that r comes from.
func from(r *http.Request) string {
	if at, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		return at.Addr().Unmap().String()
	}
	return r.RemoteAddr
}

func (s *Server) closeAllocation(r *http.Request) error {
	n, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	if err != nil {
		return askedError{errors.New("the allocation is no number")}
	}
	id := turn.AllocationID(n)
	err = admin.Act(r.Context(), s.operator, turn.OperatorActed{UID: turn.NoUID, What: admin.Close(id) + ", in the dashboard, from " + from(r)})
	if err != nil {
		return err
	}
	return s.operator.CloseAllocation(r.Context(), id)
}
