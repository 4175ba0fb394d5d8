// Package dashboard is a web page that shows a relay, and its log at any moment. It is for reading,
// unless an operator has a token.
package dashboard

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"net"
	"net/http"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/crash"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"
)

// Source is what a dashboard shows. It may be used from any goroutine.
type Source interface {
	// StateWithin is the state within a bound. It is the caller's.
	StateWithin(ctx context.Context, b store.Bound) (*turn.State, error)
	// Records are those of the log, from the one that holds from.
	Records(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error]
	// Span is the sequences of the first and the last event of the log, 0 for none.
	Span(ctx context.Context) (first, last turn.Seq, err error)
	// Before is the moment right before an allocation was made, or where that is not in the log any more, the oldest one
	// that a state is known of.
	Before(ctx context.Context, id turn.AllocationID) (turn.Seq, error)
	// About says in a line what this is, and whether a daemon writes it.
	About() (what string, live bool)
	// Live is how the daemon is, [ErrNoDaemon] where there is only a file.
	Live(ctx context.Context) (Live, error)
}

// ErrNoDaemon says that a log is shown without the daemon that writes it.
var ErrNoDaemon = errors.New("this is a log without its daemon")

// Live is how a daemon is.
type Live struct {
	Status  admin.Status   `json:"status"`
	Kernel  *kernel.Status `json:"kernel"` // nil where userspace relays everything
	Traffic []Traffic      `json:"traffic"`
}

// Traffic is what went one way in all, since the start of what counts it: the daemon in userspace, the XDP program in
// the kernel. What goes from channel to channel in one step has a way of its own.
type Traffic struct {
	Path turn.Path `json:"path"`
	Way  string    `json:"way"`
	turn.Count
}

// NewLive puts together what a daemon and its kernel's side say of themselves.
func NewLive(st admin.Status, k *kernel.Status) Live {
	l := Live{Status: st, Kernel: k, Traffic: []Traffic{{turn.PathUserspace, "to-peer", st.ToPeer}, {turn.PathUserspace, "to-client", st.ToClient}}}
	if k == nil {
		return l
	}
	for i, v := range k.Verdicts {
		if kernel.Verdict(i).Relayed() {
			l.Traffic = append(l.Traffic, Traffic{turn.PathKernel, v.Verdict, turn.Count{Packets: v.Packets, Bytes: v.Bytes}})
		}
	}
	return l
}

//go:embed page
var page embed.FS

// Server serves a dashboard.
type Server struct {
	source   Source
	operator Operator // nil where there is none
	http     http.Server
	turns    turns
	past     cursor // at the moment that was looked at last
	latest   cursor // at the end of the log
	history  cursor // where a history goes on
	rates    meter
	idle     *time.Timer // since the last request
	guesses  guesses
}

// kept is for how long states are kept that nobody looks at.
const kept = 2 * time.Minute

// NewServer makes a Server. Without an Operator it is for reading only.
func NewServer(s Source, o Operator) *Server {
	one := make(turns, 1)
	at := cursor{source: s, turns: one}
	d := &Server{source: s, operator: o, turns: one, past: at, latest: at, history: at, rates: meter{source: s, turns: one}}
	d.idle = time.AfterFunc(kept, d.forget)
	files, err := fs.Sub(page, "page")
	if err != nil {
		panic(err) // it is embedded
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.HandleFunc("GET /api/span", d.span)
	mux.HandleFunc("GET /api/state", d.state)
	mux.HandleFunc("GET /api/rates", d.showRates)
	mux.HandleFunc("GET /api/history", d.showHistory)
	mux.HandleFunc("GET /api/live", d.live)
	mux.HandleFunc("POST /api/operator", d.act(func(*http.Request) error { return nil }))
	mux.HandleFunc("POST /api/allocations/{id}/close", d.act(d.closeAllocation))
	d.http = http.Server{
		Handler: crash.Handler(guard(d.noted(mux), d.acts)), ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 5 * time.Second,
		WriteTimeout: 2 * time.Minute, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 1 << 14,
	}
	return d
}

// Serve serves on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	defer s.idle.Stop()
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve dashboard: %w", err)
	}
	return nil
}

// noted is h, and somebody looks.
func (s *Server) noted(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.idle.Reset(kept)
		h.ServeHTTP(w, r)
	})
}

// forget lets go of the states.
func (s *Server) forget() {
	s.turns <- struct{}{}
	defer s.turns.give()
	s.past.state, s.latest.state, s.history.state = nil, nil, nil
	s.rates = meter{source: s.source, turns: s.turns}
}

// askedError is an error of whoever asks.
type askedError struct{ error }

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		code := http.StatusInternalServerError
		switch {
		case errors.As(err, new(askedError)):
			code = http.StatusBadRequest
		case errors.Is(err, ErrNoDaemon), errors.Is(err, store.ErrRetired), errors.Is(err, relay.ErrNoAllocation), errors.Is(err, errNoHistory):
			code = http.StatusNotFound
		}
		w.WriteHeader(code)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}

func (s *Server) live(w http.ResponseWriter, r *http.Request) {
	l, err := s.source.Live(r.Context())
	reply(w, l, err)
}

// Span is what there is of a log.
type Span struct {
	First Event `json:"first"`
	Last  Event `json:"last"`

	About string `json:"about"`
	Live  bool   `json:"live"` // there is more to come
	Acts  bool   `json:"acts"` // whoever has the token may act
}

// Event says where an event is, 0 for nowhere, and when its record was written.
type Event struct {
	Seq  turn.Seq  `json:"seq"`
	Time time.Time `json:"time"`
}

func (s *Server) span(w http.ResponseWriter, r *http.Request) {
	var out Span
	out.About, out.Live = s.source.About()
	out.Acts = s.acts()
	first, last, err := s.source.Span(r.Context())
	if err == nil && first > 0 {
		out.First, err = s.event(r.Context(), first)
	}
	if err == nil && last > 0 {
		out.Last, err = s.event(r.Context(), last)
	}
	reply(w, out, err)
}

func (s *Server) event(ctx context.Context, seq turn.Seq) (Event, error) {
	for r, err := range s.source.Records(ctx, seq) {
		return Event{seq, r.Moment.WallTime()}, err
	}
	return Event{}, fmt.Errorf("there is no event %d", seq)
}
