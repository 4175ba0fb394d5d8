package hook

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"testing"
	"time"

	"turnstone/turn"
	"turnstone/turn/relay"
)

const (
	md5    = "00112233445566778899aabbccddeeff"
	sha256 = md5 + md5
)

func serve(t *testing.T, f http.HandlerFunc) *Hook {
	t.Helper()
	s := httptest.NewServer(f)
	t.Cleanup(s.Close)
	h := New(s.URL+"/users?key=c4n4ry", "t0ken")
	t.Cleanup(h.Close)
	return h
}

func unhex(t *testing.T, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestFind(t *testing.T) {
	for _, tt := range []struct {
		name, body string
		status     int
		want       relay.Found
		fails      string
	}{
		{"Password", `{"password":"secret"}`, 200, relay.Found{Known: true, User: turn.User{Password: "secret"}}, ""},
		{"PreparedPassword", `{"password":"e\u0301"}`, 200, relay.Found{Known: true, User: turn.User{Password: "\u00e9"}}, ""},
		{"Keys", `{"md5":"` + md5 + `","sha256":"` + sha256 + `"}`, 200, relay.Found{Known: true, User: turn.User{Key: unhex(t, md5), KeySHA256: unhex(t, sha256)}}, ""},
		{"OneKey", `{"md5":"` + md5 + `"}`, 200, relay.Found{Known: true, User: turn.User{Key: unhex(t, md5)}}, ""},
		{"Expires", `{"password":"secret","expires":1795738002}`, 200, relay.Found{Known: true, User: turn.User{Password: "secret"}, Until: time.Unix(1795738002, 0)}, ""},
		{"More", `{"password":"secret","mail":"a@example.org"}`, 200, relay.Found{Known: true, User: turn.User{Password: "secret"}}, ""},
		{"NoSuchUser", `{"password":"c4n4ry"}`, 404, relay.Found{}, ""},
		{"ServerError", `{"password":"c4n4ry"}`, 500, relay.Found{}, "it answers 500"},
		{"Unauthorized", ``, 401, relay.Found{}, "it answers 401"},
		{"NoContent", ``, 204, relay.Found{}, "it answers 204"},
		{"Redirect", ``, 302, relay.Found{}, "it answers 302"},
		{"Nothing", ``, 200, relay.Found{}, "is not the JSON that is wanted"},
		{"Empty", `{}`, 200, relay.Found{}, "has neither a password nor a key"},
		{"NoJSON", `c4n4ry`, 200, relay.Found{}, "is not the JSON that is wanted"},
		{"List", `["c4n4ry"]`, 200, relay.Found{}, "is not the JSON that is wanted"},
		{"ShortKey", `{"md5":"c4n4ry"}`, 200, relay.Found{}, "has a key that has not 32 hexadecimal digits"},
		{"WrongKeyBesideAGoodOne", `{"md5":"` + md5 + `","sha256":"` + md5 + `"}`, 200, relay.Found{}, "has a key that has not 64 hexadecimal digits"},
		{"PasswordOfControls", `{"password":"c4n4ry\u0007"}`, 200, relay.Found{}, "has a password with a character"},
		{"Long", `{"password":"` + strings.Repeat("x", maxAnswer) + `"}`, 200, relay.Found{}, "longer than 65536 bytes"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			h := serve(t, func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if want := `{"username":"al\"ice","realm":"example.org"}`; r.Method != http.MethodPost || string(body) != want {
					t.Errorf("got %s %s, want POST %s", r.Method, body, want)
				}
				if got := r.Header.Get("Authorization"); got != "Bearer t0ken" {
					t.Errorf("got Authorization %q", got)
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(tt.status)
				fmt.Fprint(w, tt.body)
			})
			got, err := h.Find(t.Context(), `al"ice`, "example.org")
			if tt.fails == "" && err != nil || tt.fails != "" && (err == nil || !strings.Contains(err.Error(), tt.fails)) {
				t.Errorf("got error %v, want %q", err, tt.fails)
			}
			if err != nil && (strings.Contains(err.Error(), "c4n4ry") || strings.Contains(err.Error(), "t0ken")) {
				t.Errorf("the error shows a secret: %v", err)
			}
			if !reflect.DeepEqual(got, tt.want) {
				t.Errorf("got %+v, want %+v", got, tt.want)
			}
		})
	}
}

// TestFindGivesUp holds that a slow hook does not keep who asks, neither before its header nor in its answer.
func TestFindGivesUp(t *testing.T) {
	for name, slow := range map[string]func(w http.ResponseWriter, stop <-chan struct{}){
		"Header": func(_ http.ResponseWriter, stop <-chan struct{}) { <-stop },
		"Body": func(w http.ResponseWriter, stop <-chan struct{}) {
			fmt.Fprint(w, `{"password":`)
			w.(http.Flusher).Flush()
			<-stop
		},
	} {
		t.Run(name, func(t *testing.T) {
			h := serve(t, func(w http.ResponseWriter, r *http.Request) {
				_, _ = io.Copy(io.Discard, r.Body) // so that the server sees the client go
				slow(w, r.Context().Done())
			})
			ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
			defer cancel()
			found, err := h.Find(ctx, "alice", "example.org")
			if !errors.Is(err, context.DeadlineExceeded) || found.Known {
				t.Errorf("got %+v, %v, want %v", found, err, context.DeadlineExceeded)
			}
			if err != nil && strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("the error shows the URL: %v", err)
			}
		})
	}
}

func TestFindWithoutAServer(t *testing.T) {
	s := httptest.NewServer(http.NotFoundHandler())
	s.Close()
	found, err := New(s.URL, "").Find(t.Context(), "alice", "example.org")
	if err == nil || found.Known {
		t.Errorf("got %+v, %v, want an error: nobody said that there is no such user", found, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add(`{"password":"secret","expires":1}`)
	f.Add(`{"md5":"` + md5 + `","sha256":"` + sha256 + `"}`)
	f.Fuzz(func(t *testing.T, text string) {
		found, err := read([]byte(text))
		u := found.User
		switch {
		case err != nil && !reflect.DeepEqual(found, relay.Found{}):
			t.Errorf("%q: got %+v beside %v", text, found, err)
		case err == nil && u.Password == "" && len(u.Key) != 16 && len(u.KeySHA256) != 32:
			t.Errorf("%q: got %+v, which nobody can prove", text, found)
		}
	})
}
