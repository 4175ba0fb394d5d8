package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"runtime"
	"runtime/pprof"
	"runtime/trace"
	"strconv"
	"sync"
	"time"
)

// What can be asked of the Go runtime, as [Client.Debug] names it.
const (
	DebugTrace      = "trace"      // what every goroutine did, for go tool trace
	DebugProfile    = "profile"    // where CPU time goes, for go tool pprof
	DebugHeap       = "heap"       // what memory is held, for go tool pprof
	DebugGoroutines = "goroutines" // the stacks of all goroutines, as text
)

const (
	longestDebug = 10 * time.Minute // that a profile or a trace may take
	flightAge    = 10 * time.Second // that the flight recorder remembers at least
	flightBytes  = 64 << 20         // that it keeps at most
)

// flight is the flight recorder. It is off until somebody asks for it, since it costs the relay some CPU time.
type flight struct {
	mu       sync.Mutex // guards the fields below, and is held for as long as a trace is made
	recorder *trace.FlightRecorder
}

// recorder is the process's own: the runtime has one.
var recorder flight

// record starts or stops the recorder; it is as it should be already where it does nothing.
func (f *flight) record(on bool) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case on && f.recorder == nil:
		r := trace.NewFlightRecorder(trace.FlightRecorderConfig{MinAge: flightAge, MaxBytes: flightBytes})
		if err := r.Start(); err != nil {
			return fmt.Errorf("start the flight recorder: %w", err)
		}
		f.recorder = r
	case !on && f.recorder != nil:
		f.recorder.Stop()
		f.recorder = nil
	}
	return nil
}

// write writes what the recorder remembers; where it is off, what happens within d.
func (f *flight) write(ctx context.Context, w io.Writer, d time.Duration) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.recorder != nil {
		_, err := f.recorder.WriteTo(w)
		return err
	}
	if err := trace.Start(w); err != nil {
		return err
	}
	waitFor(ctx, d)
	trace.Stop()
	return nil
}

// waitFor waits for d, or until ctx ends.
func waitFor(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// FlightRecorder is whether the flight recorder runs.
type FlightRecorder struct {
	Recording bool `json:"recording"`
}

func debugRoutes(mux routes, o Operators) {
	mux.look(o, "POST /v1/debug/record", func(r *http.Request) string {
		if r.FormValue("on") == "false" {
			return "stop the flight recorder"
		}
		return "start the flight recorder"
	}, func(w http.ResponseWriter, r *http.Request) {
		on := r.FormValue("on") != "false"
		err := recorder.record(on)
		reply(w, FlightRecorder{on}, err)
	})
	mux.look(o, "POST /v1/debug/trace", always("debug trace"), func(w http.ResponseWriter, r *http.Request) {
		debug(w, r, func(out io.Writer, d time.Duration) error { return recorder.write(r.Context(), out, d) })
	})
	mux.look(o, "POST /v1/debug/profile", always("debug profile"), func(w http.ResponseWriter, r *http.Request) {
		debug(w, r, func(out io.Writer, d time.Duration) error {
			if err := pprof.StartCPUProfile(out); err != nil {
				return err
			}
			waitFor(r.Context(), d)
			pprof.StopCPUProfile()
			return nil
		})
	})
	mux.look(o, "POST /v1/debug/heap", always("debug heap"), func(w http.ResponseWriter, r *http.Request) {
		debug(w, r, func(out io.Writer, _ time.Duration) error {
			runtime.GC() // what is garbage by now is not held
			return pprof.Lookup("heap").WriteTo(out, 0)
		})
	})
	mux.look(o, "POST /v1/debug/goroutines", always("debug goroutines"), func(w http.ResponseWriter, r *http.Request) {
		debug(w, r, func(out io.Writer, _ time.Duration) error { return pprof.Lookup("goroutine").WriteTo(out, 2) })
	})
}

// debug answers with what f writes. An error of f before it has written is the answer instead.
func debug(w http.ResponseWriter, r *http.Request, f func(io.Writer, time.Duration) error) {
	d := 5 * time.Second
	if text := r.FormValue("seconds"); text != "" {
		seconds, err := strconv.ParseFloat(text, 64)
		d = time.Duration(seconds * float64(time.Second))
		if err != nil || d <= 0 || d > longestDebug {
			reply(w, nil, fmt.Errorf("%q is no time to look for: want seconds, up to %v", text, longestDebug.Seconds()))
			return
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	if err := f(w, d); err != nil {
		reply(w, nil, err)
	}
}

// Debug writes what is asked of the daemon's Go runtime, which is looked at for d where that takes time.
func (c *Client) Debug(ctx context.Context, what string, d time.Duration, w io.Writer) (int64, error) {
	q := url.Values{"seconds": {strconv.FormatFloat(d.Seconds(), 'f', -1, 64)}}
	resp, err := c.do(ctx, http.MethodPost, "/v1/debug/"+what+"?"+q.Encode())
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	n, err := io.Copy(w, resp.Body)
	if err == nil && n == 0 {
		err = errors.New("the daemon has nothing to show")
	}
	return n, err
}

// Record starts or stops the flight recorder.
func (c *Client) Record(ctx context.Context, on bool) (FlightRecorder, error) {
	return call[FlightRecorder](ctx, c, http.MethodPost, fmt.Sprintf("/v1/debug/record?on=%t", on))
}
