package admin

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"turnstone/kernel"
	"turnstone/turn"
)

// Measurer counts what goes through the daemon.
type Measurer interface {
	// Measure reads the counters as they are.
	Measure(ctx context.Context) (Measured, error)
}

// Measured is what the counters of a daemon say. They only grow.
type Measured struct {
	At       time.Time // with the monotonic clock
	Status   Status
	Paths    []PathCount
	Bindings []Binding
	Log      LogCount
	Kernel   *kernel.Status // nil where userspace relays everything, or it did not answer
}

// PathCount is what a path has relayed since the daemon started.
type PathCount struct {
	Path             turn.Path
	ToPeer, ToClient turn.Count
}

// Binding is what a path has relayed for a channel, or for all that has none (0).
type Binding struct {
	Allocation       turn.AllocationID
	Username         string
	Channel          turn.ChannelNumber
	Peer             string
	Path             turn.Path
	ToPeer, ToClient turn.Count
}

// LogCount is how the log is, and what it has done since the daemon started.
type LogCount struct {
	LogHealth
	Events, Commits uint64
	Appending       time.Duration // in all
	Committing      time.Duration
}

// LogHealth is how the log is.
type LogHealth struct {
	Last           turn.Seq  `json:"last"`
	Size           int64     `json:"size"` // bytes of the file
	Free           int64     `json:"free"` // of them in free pages
	Room           string    `json:"room"`
	Segments       uint64    `json:"segments"`
	Recoveries     uint64    `json:"recoveries"`
	Snapshot       turn.Seq  `json:"snapshot"` // the last event in the newest
	SnapshotTime   time.Time `json:"snapshot_time,omitzero"`
	Checkpoint     turn.Seq  `json:"checkpoint"` // the last event in the newest of this run
	CheckpointTime time.Time `json:"checkpoint_time,omitzero"`
}

// Traffic is what a daemon did in an interval, and how it is at its end.
type Traffic struct {
	Time        time.Time     `json:"time"`
	Seconds     float64       `json:"seconds"` // of the interval, 0 before there has been one
	Version     string        `json:"version"`
	PID         int           `json:"pid"`
	Started     time.Time     `json:"started"`
	Ready       bool          `json:"ready"`
	Draining    bool          `json:"draining"`
	Allocations int           `json:"allocations"`
	Permissions int           `json:"permissions"`
	Channels    int           `json:"channels"`
	Paths       []PathRate    `json:"paths"`
	Busiest     []BusyChannel `json:"busiest"`
	Log         LogRate       `json:"log"`
	Kernel      KernelRate    `json:"kernel"`
}

// Rate is what was relayed in a second.
type Rate struct {
	Packets float64 `json:"packets"`
	Bytes   float64 `json:"bytes"`
}

// PathRate is what a path relays.
type PathRate struct {
	Path     turn.Path `json:"path"`
	ToPeer   Rate      `json:"to_peer"`
	ToClient Rate      `json:"to_client"`
}

// BusyChannel is a channel, or what an allocation relays without one (0), by a path.
type BusyChannel struct {
	Allocation turn.AllocationID  `json:"allocation"`
	Username   string             `json:"username"`
	Channel    turn.ChannelNumber `json:"channel"`
	Peer       string             `json:"peer"`
	Path       turn.Path          `json:"path"`
	ToPeer     Rate               `json:"to_peer"`
	ToClient   Rate               `json:"to_client"`
}

// LogRate is how the log is and what it did in a second. Append and Commit are means in seconds, 0 where nothing was appended.
type LogRate struct {
	LogHealth
	Events  float64 `json:"events"`
	Commits float64 `json:"commits"`
	Append  float64 `json:"append_seconds"`
	Commit  float64 `json:"commit_seconds"`
}

// KernelRate is how the kernel's side is.
type KernelRate struct {
	Datapath   string             `json:"datapath"` // who relays, and why
	Interfaces []kernel.Interface `json:"interfaces"`
	Flows      int                `json:"flows"`
	Slots      int                `json:"slots"`
	Capacity   int                `json:"capacity"`
	Unresolved int                `json:"unresolved"`
	Lag        uint64             `json:"lag"`
	Drift      kernel.Drift       `json:"drift"`
	Failures   uint64             `json:"failures"`
	Verdicts   map[string]float64 `json:"verdicts"` // packets a second that the program did not relay, by its verdict
}

// between is what happened from one measurement to the next, with at most busiest channels.
func between(a, b Measured, busiest int) Traffic {
	st := b.Status
	t := Traffic{
		Time: b.At.UTC().Round(0), Version: st.Version, PID: st.PID, Started: st.Started, Ready: st.Ready, Draining: st.Draining,
		Allocations: st.Allocations, Permissions: st.Permissions, Channels: st.Channels,
		Paths: []PathRate{}, Busiest: []BusyChannel{}, Log: LogRate{LogHealth: b.Log.LogHealth},
		Kernel: KernelRate{Datapath: st.Kernel, Interfaces: []kernel.Interface{}, Verdicts: map[string]float64{}},
	}
	if !a.At.IsZero() {
		t.Seconds = b.At.Sub(a.At).Seconds()
	}
	before := map[turn.Path]PathCount{}
	for _, p := range a.Paths {
		before[p.Path] = p
	}
	for _, p := range b.Paths {
		from := before[p.Path]
		t.Paths = append(t.Paths, PathRate{p.Path, t.rate(from.ToPeer, p.ToPeer), t.rate(from.ToClient, p.ToClient)})
	}
	t.rank(a.Bindings, b.Bindings, busiest)
	t.Log.Events, t.Log.Commits = t.per(a.Log.Events, b.Log.Events), t.per(a.Log.Commits, b.Log.Commits)
	if n := b.Log.Commits - a.Log.Commits; t.Seconds > 0 && n > 0 {
		t.Log.Append = (b.Log.Appending - a.Log.Appending).Seconds() / float64(n)
		t.Log.Commit = (b.Log.Committing - a.Log.Committing).Seconds() / float64(n)
	}
	if b.Kernel != nil {
		t.kernel(a.Kernel, b.Kernel)
	}
	return t
}

// per is the growth of a counter in a second. One that shrank began again.
func (t *Traffic) per(a, b uint64) float64 {
	if t.Seconds <= 0 {
		return 0
	}
	if b < a {
		a = 0
	}
	return float64(b-a) / t.Seconds
}

func (t *Traffic) rate(a, b turn.Count) Rate {
	return Rate{t.per(a.Packets, b.Packets), t.per(a.Bytes, b.Bytes)}
}

// rank finds the busiest channels. One that is new has no rate yet: what it counted may be of before.
func (t *Traffic) rank(a, b []Binding, busiest int) {
	type name struct {
		id      turn.AllocationID
		channel turn.ChannelNumber
		peer    string
		path    turn.Path
	}
	of := func(x Binding) name { return name{x.Allocation, x.Channel, x.Peer, x.Path} }
	before := map[name]Binding{}
	for _, x := range a {
		before[of(x)] = x
	}
	for _, x := range b {
		from, there := before[of(x)]
		if !there {
			continue
		}
		c := BusyChannel{x.Allocation, x.Username, x.Channel, x.Peer, x.Path, t.rate(from.ToPeer, x.ToPeer), t.rate(from.ToClient, x.ToClient)}
		if c.ToPeer.Packets+c.ToClient.Packets > 0 {
			t.Busiest = append(t.Busiest, c)
		}
	}
	slices.SortFunc(t.Busiest, func(x, y BusyChannel) int {
		return cmp.Or(cmp.Compare(y.ToPeer.Bytes+y.ToClient.Bytes, x.ToPeer.Bytes+x.ToClient.Bytes), cmp.Compare(x.Allocation, y.Allocation), cmp.Compare(x.Channel, y.Channel))
	})
	t.Busiest = t.Busiest[:min(busiest, len(t.Busiest))]
}

func (t *Traffic) kernel(a, b *kernel.Status) {
	k := &t.Kernel
	k.Interfaces, k.Flows, k.Slots, k.Capacity = append(k.Interfaces, b.Interfaces...), b.Flows, b.Slots, b.Capacity
	k.Unresolved, k.Lag, k.Drift, k.Failures = b.Unresolved, b.Lag, b.Drift, b.Failures
	before := map[string]uint64{}
	if a != nil {
		for _, v := range a.Verdicts {
			before[v.Verdict] = v.Packets
		}
	}
	for i, v := range b.Verdicts {
		if n := t.per(before[v.Verdict], v.Packets); n > 0 && a != nil && !kernel.Verdict(i).Relayed() {
			k.Verdicts[v.Verdict] = n
		}
	}
}

// Bounds of what may be asked for.
const (
	shortestInterval = 100 * time.Millisecond
	mostBusiest      = 1000
)

// trafficRoutes adds the stream of what goes through the daemon to mux.
func trafficRoutes(mux routes, m Measurer) {
	mux.HandleFunc("GET /v1/traffic", func(w http.ResponseWriter, r *http.Request) {
		interval, err := time.ParseDuration(r.FormValue("interval"))
		if err == nil && interval < shortestInterval {
			err = fmt.Errorf("an interval is at least %v", shortestInterval)
		}
		busiest, err2 := strconv.Atoi(r.FormValue("busiest"))
		if err2 == nil && (busiest < 0 || busiest > mostBusiest) {
			err2 = fmt.Errorf("busiest is 0 to %d", mostBusiest)
		}
		var last Measured
		if err = errors.Join(err, err2); err == nil {
			last, err = m.Measure(r.Context())
		}
		if err != nil {
			reply(w, nil, err)
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		send := func(t Traffic) bool {
			return json.NewEncoder(w).Encode(t) == nil && http.NewResponseController(w).Flush() == nil
		}
		ticks := time.NewTicker(interval)
		defer ticks.Stop()
		for good := send(between(Measured{}, last, busiest)); good; {
			select {
			case <-r.Context().Done():
				return
			case <-ticks.C:
			}
			now, err := m.Measure(r.Context())
			if err != nil {
				return // the daemon ends
			}
			good = send(between(last, now, busiest))
			last = now
		}
	})
}

// Traffic yields what goes through the daemon: at once how it is, and then each interval, with its busiest channels. It ends with
// an error, that of ctx or ErrUnreachable where the daemon ended.
func (c *Client) Traffic(ctx context.Context, interval time.Duration, busiest int) iter.Seq2[Traffic, error] {
	return func(yield func(Traffic, error) bool) {
		q := url.Values{"interval": {interval.String()}, "busiest": {strconv.Itoa(busiest)}}
		resp, err := c.do(ctx, http.MethodGet, "/v1/traffic?"+q.Encode())
		if err != nil {
			yield(Traffic{}, err)
			return
		}
		defer resp.Body.Close()
		for lines := json.NewDecoder(resp.Body); ; {
			var t Traffic
			if err := lines.Decode(&t); err != nil {
				if ctx.Err() == nil {
					err = fmt.Errorf("%w any more: %w", ErrUnreachable, err)
				}
				yield(t, cmp.Or(ctx.Err(), err))
				return
			}
			if !yield(t, nil) {
				return
			}
		}
	}
}
