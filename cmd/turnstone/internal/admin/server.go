package admin

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"
)

// Daemon is what the admin interface shows and changes.
type Daemon interface {
	Status(ctx context.Context) (Status, error)
	View(ctx context.Context, f func(*turn.State)) error
	CloseAllocation(ctx context.Context, id turn.AllocationID) error
	Reload(ctx context.Context) error
	Drain(ctx context.Context, on bool) error
}

// Server serves the admin interface.
type Server struct {
	daemon Daemon
	log    *store.Log
	now    func() turn.Moment
	http   http.Server
}

// NewServer makes a Server.
func NewServer(d Daemon, log *store.Log, now func() turn.Moment) *Server {
	s := &Server{daemon: d, log: log, now: now}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/status", s.status)
	mux.HandleFunc("GET /v1/allocations", s.allocations)
	mux.HandleFunc("GET /v1/allocations/{id}", s.allocation)
	mux.HandleFunc("POST /v1/allocations/{id}/close", s.closeAllocation)
	mux.HandleFunc("GET /v1/log/stat", s.logStat)
	mux.HandleFunc("GET /v1/log/records", s.logRecords)
	mux.HandleFunc("POST /v1/reload", func(w http.ResponseWriter, r *http.Request) { reply(w, struct{}{}, s.daemon.Reload(r.Context())) })
	mux.HandleFunc("POST /v1/drain", func(w http.ResponseWriter, r *http.Request) {
		reply(w, struct{}{}, s.daemon.Drain(r.Context(), r.FormValue("on") != "false"))
	})
	s.http = http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	return s
}

// Listen opens the socket at path, mode 0600. One that a dead daemon left behind gives way.
func Listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("open admin socket: %s is in use by another process", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("open admin socket: %w", err), l.Close())
	}
	return l, nil
}

// Serve serves on l until ctx ends.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	s.http.BaseContext = func(net.Listener) context.Context { return ctx }
	stop := context.AfterFunc(ctx, func() { _ = s.http.Close() })
	defer stop()
	if err := s.http.Serve(l); !errors.Is(err, http.ErrServerClosed) {
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
		w.WriteHeader(code)
		v = map[string]string{"error": err.Error()}
	}
	_ = json.NewEncoder(w).Encode(v) // the client is gone
}

func (s *Server) status(w http.ResponseWriter, r *http.Request) {
	st, err := s.daemon.Status(r.Context())
	reply(w, st, err)
}

func (s *Server) allocations(w http.ResponseWriter, r *http.Request) {
	out := []Allocation{}
	err := s.daemon.View(r.Context(), func(st *turn.State) {
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
		err = s.daemon.View(r.Context(), func(st *turn.State) {
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

func (s *Server) closeAllocation(w http.ResponseWriter, r *http.Request) {
	id, err := allocationID(r)
	if err == nil {
		err = s.daemon.CloseAllocation(r.Context(), id)
	}
	reply(w, struct{}{}, err)
}

func (s *Server) logStat(w http.ResponseWriter, _ *http.Request) {
	st, err := s.log.Stat()
	reply(w, st, err)
}

// logRecords streams records as they are stored, each behind its length in four bytes;
// with follow=true it goes on with what is appended. An error cuts the stream short: the
// last thing a whole stream says is a length of zero.
func (s *Server) logRecords(w http.ResponseWriter, r *http.Request) {
	from, err := strconv.ParseUint(r.FormValue("from"), 10, 64)
	if err != nil {
		http.Error(w, `{"error":"from is no sequence"}`, http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	follow := r.FormValue("follow") == "true"
	next := turn.Seq(max(from, 1))
	send := func() bool {
		for raw, err := range store.Raw(s.log, next) {
			if err != nil {
				return false
			}
			rec, err := store.Decode(raw)
			if err != nil {
				return false
			}
			next = rec.Last() + 1
			head := binary.BigEndian.AppendUint32(nil, uint32(len(raw)))
			if _, err := w.Write(append(head, raw...)); err != nil {
				return false
			}
		}
		return http.NewResponseController(w).Flush() == nil
	}
	if !send() {
		return
	}
	if !follow {
		_, _ = w.Write(make([]byte, 4))
		return
	}
	for _, err := range s.log.Tail(r.Context(), next) {
		if err != nil || !send() {
			return
		}
	}
}
