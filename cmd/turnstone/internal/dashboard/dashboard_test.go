package dashboard

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"
)

// file is a log without its daemon, unless live says how that is.
type file struct {
	*store.Reader
	live *Live
	made map[turn.AllocationID]turn.Seq // where
}

func (f file) StateWithin(_ context.Context, b store.Bound) (*turn.State, error) {
	s, _, err := f.Reader.StateWithin(b, func(error) {})
	return s, err
}

func (f file) Records(_ context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return f.Reader.Records(from)
}

func (f file) Span(context.Context) (first, last turn.Seq, err error) { return f.Reader.Span() }

func (f file) Before(_ context.Context, id turn.AllocationID) (turn.Seq, error) {
	return max(f.made[id], 1) - 1, nil
}

func (f file) About() (string, bool) { return "a test", f.live != nil }

func (f file) Live(context.Context) (Live, error) {
	if f.live == nil {
		return Live{}, ErrNoDaemon
	}
	return *f.live, nil
}

// served is a dashboard of a log, and the state at its end.
type served struct {
	t    *testing.T
	file file
	end  *turn.State
	url  string
}

func serve(t *testing.T, live *Live) *served {
	t.Helper()
	return serveFor(t, live, nil)
}

// serveFor is serve with somebody who acts.
func serveFor(t *testing.T, live *Live, o Operator) *served {
	t.Helper()
	dir := t.TempDir()
	end, err := shape.Write(t.Context(), dir, 2500, shape.Options{
		Options: calls.Options{Seed: 1, Allocations: 60, RestartEvery: 1000}, Store: store.Options{SegmentSize: 64 << 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := store.OpenReader(shape.File(dir))
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &served{t: t, file: file{r, live, map[turn.AllocationID]turn.Seq{}}, end: end, url: "http://" + l.Addr().String()}
	for seq, e := range s.events() {
		if made, ok := e.(turn.AllocationCreated); ok {
			s.file.made[made.Allocation] = seq
		}
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- NewServer(s.file, o).Serve(ctx, l) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s
}

// events are those of the log.
func (s *served) events() iter.Seq2[turn.Seq, turn.Event] {
	return func(yield func(turn.Seq, turn.Event) bool) {
		for r, err := range s.file.Reader.Records(1) {
			if err != nil {
				s.t.Fatal(err)
			}
			for i, e := range r.Events {
				if !yield(r.First+turn.Seq(i), e) {
					return
				}
			}
		}
	}
}

// do asks for a path and yields the code, the head and the body of the answer.
func (s *served) do(method, path string, change func(*http.Request)) (code int, head http.Header, body string) {
	s.t.Helper()
	r, err := http.NewRequestWithContext(s.t.Context(), method, s.url+path, nil)
	if err != nil {
		s.t.Fatal(err)
	}
	if change != nil {
		change(r)
	}
	resp, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, resp.Header, string(b)
}

func get[T any](s *served, path string) (v T) {
	s.t.Helper()
	code, _, body := s.do("GET", path, nil)
	if code != http.StatusOK {
		s.t.Fatalf("%s: got %d: %s", path, code, body)
	}
	if err := json.Unmarshal([]byte(body), &v); err != nil {
		s.t.Fatal(err)
	}
	return v
}

func TestHostileRequestsAreRefused(t *testing.T) {
	s := serve(t, nil)
	set := func(pairs ...string) func(*http.Request) {
		return func(r *http.Request) {
			for i := 0; i < len(pairs); i += 2 {
				r.Header.Set(pairs[i], pairs[i+1])
			}
		}
	}
	host := func(name string) func(*http.Request) { return func(r *http.Request) { r.Host = name } }
	for _, c := range []struct {
		name, method, path string
		change             func(*http.Request)
		want               int
	}{
		{"plain", "GET", "/api/state", nil, 200},
		{"head", "HEAD", "/", nil, 200},
		{"localhost", "GET", "/api/state", host("localhost:9479"), 200},
		{"forwarded-port", "GET", "/api/state", host("127.0.0.1:8000"), 200},
		{"loopback-v6", "GET", "/api/state", host("[::1]:9479"), 200},
		{"rebound-name", "GET", "/api/state", host("attacker.example"), 421},
		{"rebound-name-with-port", "GET", "/", host("attacker.example:9479"), 421},
		{"name-that-begins-well", "GET", "/", host("127.0.0.1.attacker.example"), 421},
		{"another-address", "GET", "/", host("192.0.2.1"), 421},
		{"own-origin", "GET", "/api/state", set("Origin", s.url), 200},
		{"foreign-origin", "GET", "/api/state", set("Origin", "http://attacker.example"), 403},
		{"null-origin", "GET", "/api/state", set("Origin", "null"), 403},
		{"another-port", "GET", "/api/state", set("Origin", "http://127.0.0.1:1"), 403},
		{"own-site", "GET", "/api/state", set("Sec-Fetch-Site", "same-origin"), 200},
		{"typed", "GET", "/", set("Sec-Fetch-Site", "none"), 200},
		{"cross-site", "GET", "/api/state", set("Sec-Fetch-Site", "cross-site"), 403},
		{"same-site", "GET", "/api/state", set("Sec-Fetch-Site", "same-site"), 403},
		{"link-elsewhere", "GET", "/", set("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), 200},
		{"link-to-the-api", "GET", "/api/state", set("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document"), 403},
		{"frame-elsewhere", "GET", "/", set("Sec-Fetch-Site", "cross-site", "Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"), 403},
		{"post", "POST", "/api/state", nil, 405},
		{"sign-in-where-nobody-may", "POST", "/api/operator", set("Authorization", "Bearer "+token), 405},
		{"act-where-nobody-may", "POST", "/api/allocations/1/close", set("Authorization", "Bearer "+token), 405},
		{"delete", "DELETE", "/", nil, 405},
		{"options", "OPTIONS", "/api/state", nil, 405},
		{"no-file", "GET", "/../dashboard.go", nil, 404},
	} {
		t.Run(c.name, func(t *testing.T) {
			code, head, body := s.do(c.method, c.path, c.change)
			if code != c.want {
				t.Errorf("got %d, want %d: %s", code, c.want, body)
			}
			if code != 200 && strings.Contains(body, "allocations") {
				t.Errorf("a refusal tells of the log: %s", body)
			}
			for name, want := range map[string]string{
				"X-Frame-Options": "DENY", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-store",
				"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Access-Control-Allow-Origin": "",
			} {
				if got := head.Get(name); got != want && (name != "Cache-Control" || code != 404) {
					t.Errorf("%s: got %q, want %q", name, got, want)
				}
			}
			if got := head.Get("Content-Security-Policy"); !strings.Contains(got, "default-src 'self'") || !strings.Contains(got, "frame-ancestors 'none'") {
				t.Errorf("Content-Security-Policy: got %q", got)
			}
		})
	}
}

// TestStateAtAnyMoment goes through a log forth, back and by leaps, and holds what is shown to the fold from scratch.
func TestStateAtAnyMoment(t *testing.T) {
	s := serve(t, nil)
	span := get[Span](s, "/api/span")
	if span.First.Seq != 1 || span.Last.Seq != s.end.Seq() || !span.Last.Time.After(span.First.Time) || span.Live {
		t.Fatalf("got the span %+v, want events 1 to %d of a file", span, s.end.Seq())
	}
	moment := func(part int) time.Time {
		return span.First.Time.Add(span.Last.Time.Sub(span.First.Time) * time.Duration(part) / 100)
	}
	check := func(path string, b store.Bound) {
		t.Helper()
		want, err := s.file.StateWithin(t.Context(), b)
		if err != nil {
			t.Fatal(err)
		}
		channels := 0
		for a := range want.Allocations() {
			channels += len(a.Channels)
		}
		if got := get[State](s, path); got.Seq != want.Seq() || got.Count != want.Len() || got.Matching != want.Len() || got.Channels != channels {
			t.Errorf("%s: got event %d, %d allocations, %d channels; want %d, %d, %d", path, got.Seq, got.Count, got.Channels, want.Seq(), want.Len(), channels)
		}
	}
	for _, part := range []int{0, 10, 11, 12, 50, 49, 51, 100, 3, 90, 30} {
		at := moment(part)
		check("/api/state?at="+url.QueryEscape(at.Format(time.RFC3339Nano)), store.AsOf(at))
		check("/api/state", store.Everything())
	}
	for _, seq := range []turn.Seq{0, 1, 2, 3, 1000, 999, 2499, 1500} {
		check(fmt.Sprintf("/api/state?seq=%d", seq), store.Through(seq))
	}
	early := moment(0).Add(-time.Hour)
	check("/api/state?at="+url.QueryEscape(early.Format(time.RFC3339Nano)), store.AsOf(early))
}

func TestAllocationsAreSearchedAndPaged(t *testing.T) {
	s := serve(t, nil)
	all := get[State](s, "/api/state?limit=200")
	if all.Count < 30 || len(all.Allocations) != all.Count {
		t.Fatalf("got %d of %d allocations", len(all.Allocations), all.Count)
	}
	var one admin.Allocation
	for _, a := range all.Allocations {
		if len(a.Channels) > 0 {
			one = a
		}
	}
	if one.ID == 0 {
		t.Fatal("no allocation has a channel")
	}
	for field, text := range map[string]string{
		"client": one.Client, "user": strings.ToUpper(one.Username), "relayed": one.Relayed[0], "peer": one.Channels[0].Peer, "channel": one.Channels[0].Number.String(),
	} {
		for _, in := range []string{field, "any"} {
			got := get[State](s, "/api/state?limit=200&field="+in+"&q="+url.QueryEscape(text))
			found := false
			for _, a := range got.Allocations {
				found = found || a.ID == one.ID
			}
			if !found || got.Matching != len(got.Allocations) {
				t.Errorf("%q in %s: got %d allocations, want allocation %d among them", text, in, got.Matching, one.ID)
			}
		}
	}
	if got := get[State](s, "/api/state?field=client&q="+url.QueryEscape(one.Relayed[0])); got.Matching != 0 || got.Count != all.Count {
		t.Errorf("a relayed address among clients: got %d of %d, want none of %d", got.Matching, got.Count, all.Count)
	}
	var paged []turn.AllocationID
	for offset := 0; offset < all.Count; offset += 7 {
		for _, a := range get[State](s, fmt.Sprintf("/api/state?limit=7&offset=%d", offset)).Allocations {
			paged = append(paged, a.ID)
		}
	}
	for i, a := range all.Allocations {
		if i >= len(paged) || paged[i] != a.ID {
			t.Fatalf("the pages differ from the whole at %d: %v", i, paged)
		}
	}
	for _, bad := range []string{"limit=201", "limit=-1", "offset=x", "seq=-1", "at=yesterday", "field=password"} {
		if code, _, body := s.do("GET", "/api/state?"+bad, nil); code != http.StatusBadRequest {
			t.Errorf("%s: got %d: %s", bad, code, body)
		}
	}
}

// TestNothingIsKeptForNobody holds that a dashboard lets go of what it has folded, and shows the same again.
func TestNothingIsKeptForNobody(t *testing.T) {
	s := serve(t, nil)
	d := NewServer(s.file, nil)
	defer d.idle.Stop()
	ask := func() (all string) {
		for _, path := range []string{"/api/state", "/api/state?seq=1000", "/api/rates?seq=1000", "/api/history?allocation=3"} {
			w := httptest.NewRecorder()
			d.http.Handler.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), "GET", "http://localhost"+path, nil))
			all += w.Body.String()
		}
		return all
	}
	before := ask()
	if d.past.state == nil || d.latest.state == nil || d.history.state == nil || d.rates.next == 0 {
		t.Error("nothing is kept between two requests")
	}
	d.forget()
	if d.past.state != nil || d.latest.state != nil || d.history.state != nil || d.rates.next != 0 || d.rates.read != nil {
		t.Error("states are kept")
	}
	if after := ask(); after != before || strings.Contains(after, "error") {
		t.Errorf("got %s\nbefore %s", after, before)
	}
}

func TestLiveTrafficIsByPathAndWay(t *testing.T) {
	if code, _, _ := serve(t, nil).do("GET", "/api/live", nil); code != http.StatusNotFound {
		t.Errorf("a file: got %d, want 404", code)
	}
	k := kernel.Status{Verdicts: make([]kernel.VerdictCounts, kernel.Verdicts), Lag: 3}
	for i := range k.Verdicts {
		k.Verdicts[i] = kernel.VerdictCounts{Verdict: kernel.Verdict(i).String(), Packets: uint64(i + 10), Bytes: uint64(i + 100)}
	}
	live := NewLive(admin.Status{ToPeer: turn.Count{Packets: 1, Bytes: 2}, ToClient: turn.Count{Packets: 3, Bytes: 4}}, &k)
	s := serve(t, &live)
	got := get[struct {
		Kernel  struct{ Lag int }
		Traffic []struct {
			Path, Way      string
			Packets, Bytes uint64
		}
	}](s, "/api/live")
	want := "[{userspace to-peer 1 2} {userspace to-client 3 4} {kernel to-peer 10 100} {kernel to-client 11 101} {kernel to-channel 12 102}]"
	if text := fmt.Sprint(got.Traffic); text != want || got.Kernel.Lag != 3 {
		t.Errorf("got %s and a lag of %d, want %s and 3", text, got.Kernel.Lag, want)
	}
	if !get[Span](s, "/api/span").Live {
		t.Error("the span does not say that more is to come")
	}
}
