package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/http"
	"strconv"
	"time"

	"turnstone/cmd/turnstone/internal/crash"
	"turnstone/cmd/turnstone/internal/handover"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"
)

// Daemon is what the admin interface shows and changes.
type Daemon interface {
	Status(ctx context.Context) (Status, error)
	View(ctx context.Context, f func(*turn.State)) error
	CloseAllocation(ctx context.Context, id turn.AllocationID) error
	Reload(ctx context.Context) (Reloaded, error)
	Drain(ctx context.Context, on bool) error
	// DrainOut has the daemon end, after a time at the latest. It yields how that goes.
	DrainOut(ctx context.Context, timeout time.Duration) (iter.Seq[Drain], error)
	// TakenOver serves a process that wants to take over.
	TakenOver(w http.ResponseWriter, r *http.Request) error
	Kernel
	Signer
	Privacy
	Auditor
	Operators
	Warden
	Leveller
	Measurer
}

// Server serves the admin interface.
type Server struct {
	daemon Daemon
	log    *store.Log
	now    func() turn.Moment
	http   http.Server

	patterns []string // of its routes
}

// patience is how long the daemon may take to show its state: it cannot while its log is being
// opened again after a failed commit.
const patience = 10 * time.Second

// NewServer makes a Server.
func NewServer(d Daemon, log *store.Log, now func() turn.Moment) *Server {
	s := &Server{daemon: d, log: log, now: now}
	mux := newRoutes()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/allocations", s.allocations)
	mux.HandleFunc("GET /v1/allocations/{id}", s.allocation)
	mux.act(d, "POST /v1/allocations/{id}/close", closes, s.closeAllocation)
	mux.HandleFunc("GET /v1/log/stat", s.logStat)
	mux.HandleFunc("GET /v1/log/pack", s.logPack)
	mux.HandleFunc("GET /v1/log/records", s.logRecords)
	mux.HandleFunc("GET /v1/log/state", s.logState)
	mux.HandleFunc("GET /v1/log/span", s.logSpan)
	mux.HandleFunc("GET /v1/audit", s.audit)
	mux.act(d, "POST /v1/reload", always("reload"), s.reload)
	mux.act(d, "POST /v1/drain", drains, s.drain)
	mux.look(d, "POST "+handover.Path, always("take over"), func(w http.ResponseWriter, r *http.Request) {
		if err := s.daemon.TakenOver(w, r); err != nil {
			reply(w, nil, err)
		}
	})
	kernelRoutes(mux, d, d)
	checkpointRoutes(mux, d, log)
	privacyRoutes(mux, d, log)
	trafficRoutes(mux, d)
	debugRoutes(mux, d)
	levelRoutes(mux, d, d)
	s.banRoutes(mux)
	s.patterns = *mux.patterns
	s.http = http.Server{Handler: crash.Handler(admit(mux)), ReadHeaderTimeout: 5 * time.Second, ConnContext: withPeer}
	return s
}

// farewell is how long whoever follows the log has to take its end.
const farewell = time.Second

// Serve serves on l until ctx ends. What is being asked then is cut short, but the log's last records go out.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	stopped := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(stopped)
		short, cancel := context.WithTimeout(context.WithoutCancel(ctx), farewell)
		defer cancel()
		if s.http.Shutdown(short) != nil {
			_ = s.http.Close()
		}
	})
	err := s.http.Serve(l)
	if stop() {
		return fmt.Errorf("serve admin socket: %w", err)
	}
	<-stopped
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve admin socket: %w", err)
	}
	return nil
}

func reply(w http.ResponseWriter, v any, err error) {
	w.Header().Set("Content-Type", "application/json")
	if err != nil {
		code := http.StatusInternalServerError
		if errors.Is(err, relay.ErrNoAllocation) {
			code = http.StatusNotFound
		}
		replyCode(w, code, err)
		return
	}
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}

// replyCode answers with a failure.
func replyCode(w http.ResponseWriter, code int, err error) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]string{"error": err.Error()}) // the client is gone
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.daemon.Status(r.Context())
	reply(w, st, err)
}

func (s *Server) view(r *http.Request, f func(*turn.State)) error {
	ctx, cancel := context.WithTimeout(r.Context(), patience)
	defer cancel()
	err := s.daemon.View(ctx, f)
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("the daemon's log is not open: its log lines say why")
	}
	return err
}

func (s *Server) reload(w http.ResponseWriter, r *http.Request) {
	done, err := s.daemon.Reload(r.Context())
	reply(w, done, err)
}

// drains says in the log what a drain is to do.
func drains(r *http.Request) string {
	switch {
	case r.FormValue("on") == "false":
		return "end the drain"
	case r.FormValue("timeout") != "":
		return "drain, and end the daemon"
	}
	return "drain"
}

// drain begins or ends a drain. With a timeout the daemon ends by it, and the answer is a line for each step.
func (s *Server) drain(w http.ResponseWriter, r *http.Request) {
	if r.FormValue("timeout") == "" {
		reply(w, struct{}{}, s.daemon.Drain(r.Context(), r.FormValue("on") != "false"))
		return
	}
	timeout, err := time.ParseDuration(r.FormValue("timeout"))
	if err == nil && timeout <= 0 {
		err = errors.New("the time a drain may take has to be above zero")
	}
	var steps iter.Seq[Drain]
	if err == nil {
		steps, err = s.daemon.DrainOut(r.Context(), timeout)
	}
	if err != nil {
		reply(w, nil, err)
		return
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	for p := range steps {
		if json.NewEncoder(w).Encode(p) != nil || http.NewResponseController(w).Flush() != nil {
			return // the client is gone
		}
	}
}

func (s *Server) allocations(w http.ResponseWriter, r *http.Request) {
	out := []Allocation{}
	err := s.view(r, func(st *turn.State) {
		for a := range st.Allocations() {
			out = append(out, Describe(a, s.now()))
		}
	})
	reply(w, out, err)
}

func (s *Server) allocation(w http.ResponseWriter, r *http.Request) {
	id, err := allocationID(r)
	var out Allocation
	if err == nil {
		found := false
		err = s.view(r, func(st *turn.State) {
			if a := st.Allocation(id); a != nil {
				out, found = Describe(a, s.now()), true
			}
		})
		if err == nil && !found {
			err = relay.ErrNoAllocation
		}
	}
	reply(w, out, err)
}

func allocationID(r *http.Request) (turn.AllocationID, error) {
	n, err := strconv.ParseUint(r.PathValue("id"), 10, 64)
	return turn.AllocationID(n), err
}

// closes says in the log which allocation is to end: nothing else that was typed.
func closes(r *http.Request) string {
	id, err := allocationID(r)
	if err != nil {
		return "close allocation unknown"
	}
	return Close(id)
}

func (s *Server) closeAllocation(w http.ResponseWriter, r *http.Request) {
	id, err := allocationID(r)
	if err == nil {
		err = s.daemon.CloseAllocation(r.Context(), id) // as long as it takes: it is answered when nothing is relayed any more
	}
	reply(w, struct{}{}, err)
}

func (s *Server) logStat(w http.ResponseWriter, _ *http.Request) {
	st, err := s.log.Stat()
	reply(w, st, err)
}

// logRecords streams records as they are stored; with follow=true it goes on with what is appended.
func (s *Server) logRecords(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.ParseUint(r.FormValue("from"), 10, 64)
	if err != nil {
		http.Error(w, `{"error":"from is no sequence"}`, http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	next := turn.Seq(max(from, 1))
	next, err = s.sendFrom(w, next)
	if err == nil && r.FormValue("follow") == "true" {
		for _, err = range s.log.Tail(r.Context(), next) {
			if err == nil {
				next, err = s.sendFrom(w, next)
			}
			if err != nil {
				break
			}
		}
		if r.Context().Err() != nil { // the daemon stops: this is all there will be
			_, err = s.sendFrom(w, next)
		}
	}
	if err != nil {
		_ = writeFailure(w, err) // the client is gone, or reads it
		return
	}
	_ = writeEnd(w)
}

// sendFrom sends the records from next on, and yields what comes after them.
func (s *Server) sendFrom(w http.ResponseWriter, next turn.Seq) (turn.Seq, error) {
	for raw, err := range store.Raw(s.log, next) {
		if err != nil {
			return next, err
		}
		if err := writeFrame(w, raw); err != nil {
			return next, err
		}
		last, err := store.RawLast(raw)
		if err != nil {
			return next, err
		}
		next = last + 1
	}
	return next, http.NewResponseController(w).Flush()
}
