// Package metrics shows the daemon to Prometheus and to whoever checks its health.
package metrics

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/pion/stun/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Sources are what is measured.
type Sources struct {
	Counters          func() relay.Counters
	Ready             func() bool  // requests are answered
	Alive             func() error // nil while the parts of the relay do their work
	Draining          func() bool
	Room              func() turn.Room
	Allocations       func() int
	Grants            func() (turn.Grants, bool) // false while the state cannot be seen
	Position          func() (last turn.Seq, size int64)
	Start             func() Start
	FreeBytes         func() int64
	Kept              func() store.Kept
	CertificateExpiry func() time.Time             // of the first of them, zero without any
	Kernel            func() (kernel.Status, bool) // false where userspace relays everything
	Version           string
	Users             func() int                          // of the configuration and the file
	UsersBroken       func() bool                         // the file of users cannot be read
	Lookups           func() (relay.LookupCounters, bool) // false where there is no hook
	Checkpoints       func() Checkpoints
}

// Checkpoints counts those of the log.
type Checkpoints struct {
	Signed   uint64
	Failures map[string]uint64 // by what failed
}

// Start is what the start of the daemon took. Ready is zero until it is.
type Start struct{ Replay, Ready time.Duration }

// Handler serves /metrics, /healthz and /readyz.
func Handler(s Sources) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{s})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if err := s.Alive(); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		state, ok := s.readiness()
		if !ok {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		fmt.Fprintln(w, state)
	})
	return mux
}

// readiness says whether new clients should be sent here, and why not.
func (s *Sources) readiness() (state string, ok bool) {
	switch {
	case !s.Ready():
		return "not ready: nobody is answered, the log is not open or the daemon stops", false
	case s.Room() == turn.RoomNone:
		return "not ready: the disk is full, only what ends is recorded", false
	case s.Room() == turn.RoomLow:
		return "not ready: the disk is nearly full, new allocations are refused", false
	case s.Draining():
		return "not ready: draining, new allocations are refused", false
	}
	return "ready", true
}

type collector struct{ Sources }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("turnstone_"+name, help, labels, nil)
}

var (
	info        = desc("build_info", "Version of the daemon.", "version")
	ready       = desc("ready", "1 while requests are answered.")
	draining    = desc("draining", "1 while new allocations are refused because an operator said so.")
	room        = desc("log_room", "Room on the disk of the log: 0 fine, 1 low (no new allocations), 2 none.")
	freeBytes   = desc("log_free_page_bytes", "Free pages inside the log's file.")
	segments    = desc("log_segments", "Segments in the log's file, with the one that grows.")
	oldest      = desc("log_oldest_segment_seconds", "When the oldest segment in the log's file was sealed, in Unix time; absent while there is only one.")
	overdue     = desc("log_overdue_segments", "Segments that are to leave the log's file and are still there.")
	allocations = desc("allocations", "Live allocations in the flow table.")
	permissions = desc("permissions", "Permissions of all allocations.")
	channels    = desc("channels", "Channels of all allocations.")
	connections = desc("connections", "Connections with peers of allocations for TCP.")
	reserved    = desc("reservations", "Relayed addresses that are reserved.")
	banned      = desc("bans", "Users who are banned.")
	packets     = desc("relayed_packets_total", "Datagrams relayed.", "path", "direction")
	bytes       = desc("relayed_bytes_total", "Bytes of application data relayed.", "path", "direction")
	dropped     = desc("dropped_total", "Datagrams dropped.", "reason")
	streams     = desc("streams", "Connections of clients over TCP, TLS and DTLS.", "protocol")
	noStreams   = desc("streams_refused_total", "Such connections refused: for want of room, or after a failed handshake.")
	cutOff      = desc("streams_cut_off_total", "Such connections ended because the client did not take its answers.")
	expiry      = desc("certificate_expiry_seconds", "When the first of the certificates ends, in Unix time; absent without any.")
	requests    = desc("requests_total", "Requests by method.", "method")
	replies     = desc("replies_total", "Replies by method and STUN error code, 0 for success. 486 is a quota that is used up, 508 is want of ports or room.", "method", "code")
	appended    = desc("log_append_seconds", "Time from the first decision of a record to its being durable: what a client waits for, besides the network.")
	committed   = desc("log_commit_seconds", "Time the log took for a record: writing it, and two fdatasyncs.")
	last        = desc("log_last_event", "Sequence of the last event that is durable.")
	size        = desc("log_file_bytes", "Size of the log's file, free pages included.")
	replay      = desc("start_replay_seconds", "Time that opening and replaying the log took at the start.")
	readyAfter  = desc("start_seconds", "Time from the start of the daemon to its being ready; absent until then.")
	commits     = desc("log_commits_total", "Records made durable.")
	events      = desc("log_events_total", "Events made durable.")
	users       = desc("users", "Users with a long-term credential.")
	usersBroken = desc("users_file_broken", "1 while the file of users cannot be read, and the users before are in force.")
	lookups     = desc("lookups_total", "Questions to the hook for users by outcome; refused are requests beyond the rates.", "outcome")
	waiting     = desc("lookups_waiting", "Requests that wait for the hook.")
	checkpoints = desc("log_checkpoints_total", "Checkpoints of the log that were signed.")
	unsigned    = desc("log_checkpoint_failures_total", "Failures to sign a checkpoint, or to publish one to a file or a URL elsewhere.", "at")
	recoveries  = desc("log_recoveries_total", "Commits whose outcome was not known, after which the log was opened again.")

	attached = desc("kernel_attached_interfaces", "Interfaces that have the XDP program.")
	flowsIn  = desc("kernel_flows", "Flows in the kernel's maps, guards included.")
	slots    = desc("kernel_slots", "Slots for flows in the kernel's maps.")
	used     = desc("kernel_slots_used", "Slots in use, those of flows that just ended included.")
	absent   = desc("kernel_absent_flows", "Flows that the kernel does not carry.")
	hops     = desc("kernel_unresolved_gateways", "Gateways without a next hop.")
	lag      = desc("kernel_lag_events", "Events that are durable and not applied to the maps yet.")
	drift    = desc("kernel_drift_repaired_total", "Entries that somebody else changed and that were put right.")
	failures = desc("kernel_write_failures_total", "Writes to the maps that failed.")
	memory   = desc("kernel_map_bytes", "Memory of the kernel's maps.")
	verdicts = desc("kernel_verdicts_total", "Packets by the verdict with which the program left.", "verdict")
)

// descs are all metrics of the daemon's own.
var descs = []*prometheus.Desc{
	info, ready, draining, room, freeBytes, segments, oldest, overdue, allocations, permissions, channels, connections, reserved, banned, packets, bytes, dropped, streams, noStreams, cutOff, expiry, requests, replies, appended, committed, commits, events, recoveries, last, size, replay, readyAfter,
	users, usersBroken, lookups, waiting, checkpoints, unsigned,
	attached, flowsIn, slots, used, absent, hops, lag, drift, failures, memory, verdicts,
}

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range descs {
		ch <- d
	}
}

func (c *collector) Collect(ch chan<- prometheus.Metric) {
	n := c.Counters()
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	count := func(d *prometheus.Desc, v uint64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(v), labels...)
	}
	gauge(info, 1, c.Version)
	gauge(ready, number(c.Ready()))
	gauge(draining, number(c.Draining()))
	gauge(room, float64(c.Room()))
	gauge(freeBytes, float64(c.FreeBytes()))
	kept := c.Kept()
	gauge(segments, float64(kept.Segments))
	gauge(overdue, float64(kept.Overdue))
	if !kept.Oldest.IsZero() {
		gauge(oldest, float64(kept.Oldest.Unix()))
	}
	gauge(allocations, float64(c.Allocations()))
	path := turn.PathUserspace.String()
	count(packets, n.ToPeerPackets, path, "to_peer")
	count(packets, n.ToClientPackets, path, "to_client")
	count(bytes, n.ToPeerBytes, path, "to_peer")
	count(bytes, n.ToClientBytes, path, "to_client")
	for reason, v := range n.Drops {
		count(dropped, v, reason)
	}
	for p, v := range n.Streams {
		gauge(streams, float64(v), p.String())
	}
	count(noStreams, n.StreamsRefused)
	count(cutOff, n.StreamsCutOff)
	if t := c.CertificateExpiry(); !t.IsZero() {
		gauge(expiry, float64(t.Unix()))
	}
	for method, v := range n.Requests {
		count(requests, v, stun.Method(method).String())
	}
	for of, v := range n.Replies {
		count(replies, v, stun.Method(of.Method).String(), strconv.Itoa(of.Code))
	}
	ch <- histogram(appended, n.Appended)
	ch <- histogram(committed, n.Committed)
	end, bytesOf := c.Position()
	gauge(last, float64(end))
	gauge(size, float64(bytesOf))
	start := c.Start()
	gauge(replay, start.Replay.Seconds())
	if start.Ready > 0 {
		gauge(readyAfter, start.Ready.Seconds())
	}
	if g, ok := c.Grants(); ok {
		gauge(permissions, float64(g.Permissions))
		gauge(channels, float64(g.Channels))
		gauge(connections, float64(g.Connections))
		gauge(reserved, float64(g.Reservations))
		gauge(banned, float64(g.Bans))
	}
	count(commits, n.Commits)
	count(events, n.Events)
	count(recoveries, n.Recoveries)
	gauge(users, float64(c.Users()))
	gauge(usersBroken, number(c.UsersBroken()))
	if l, ok := c.Lookups(); ok {
		count(lookups, l.Found, "found")
		count(lookups, l.None, "none")
		count(lookups, l.Failed, "failed")
		count(lookups, l.Refused, "refused")
		gauge(waiting, float64(l.Waiting))
	}
	k := c.Checkpoints()
	count(checkpoints, k.Signed)
	for at, v := range k.Failures {
		count(unsigned, v, at)
	}
	if st, ok := c.Kernel(); ok {
		collectKernel(st, gauge, count)
	}
}

// histogram is l as Prometheus has it: each bucket with those below.
func histogram(d *prometheus.Desc, l relay.Latency) prometheus.Metric {
	buckets := map[float64]uint64{}
	var sum uint64
	for i, n := range l.Counts {
		sum += n
		if i < len(relay.LatencyBounds) {
			buckets[relay.LatencyBounds[i].Seconds()] = sum
		}
	}
	return prometheus.MustNewConstHistogram(d, sum, l.Sum.Seconds(), buckets)
}

// collectKernel tells of the kernel's side.
func collectKernel(st kernel.Status, gauge func(*prometheus.Desc, float64, ...string), count func(*prometheus.Desc, uint64, ...string)) {
	on, away := 0, 0
	for _, i := range st.Interfaces {
		if i.Mode != "" {
			on++
		}
	}
	for _, n := range st.Absent {
		away += n
	}
	gauge(attached, float64(on))
	gauge(flowsIn, float64(st.Flows))
	gauge(slots, float64(st.Capacity))
	gauge(used, float64(st.Slots))
	gauge(absent, float64(away))
	gauge(hops, float64(st.Unresolved))
	gauge(lag, float64(st.Lag))
	gauge(memory, float64(st.Memory))
	count(drift, st.Drift.Added+st.Drift.Changed+st.Drift.Removed)
	count(failures, st.Failures)
	for _, v := range st.Verdicts {
		count(verdicts, v.Packets, v.Verdict)
	}
	toPeer, toClient := st.Relayed()
	path := turn.PathKernel.String()
	count(packets, toPeer.Packets, path, "to_peer")
	count(packets, toClient.Packets, path, "to_client")
	count(bytes, toPeer.Bytes, path, "to_peer")
	count(bytes, toClient.Bytes, path, "to_client")
}

// Names are the names of all metrics of the daemon's own, in order, with their help.
func Names() (names, help []string) {
	for _, d := range descs {
		text := d.String() // the library has no other way to ask
		_, rest, _ := strings.Cut(text, `fqName: "`)
		name, rest, _ := strings.Cut(rest, `"`)
		_, rest, _ = strings.Cut(rest, `help: "`)
		what, _, _ := strings.Cut(rest, `"`)
		names, help = append(names, name), append(help, what)
	}
	return names, help
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
