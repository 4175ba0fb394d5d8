// Package metrics shows the daemon to Prometheus and to whoever checks its health.
package metrics

import (
	"fmt"
	"net/http"
	"strconv"

	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/pion/stun/v3"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Sources are what is measured.
type Sources struct {
	Counters    func() relay.Counters
	Ready       func() bool // requests are answered
	Draining    func() bool
	Room        func() turn.Room
	Allocations func() int
	FreeBytes   func() int64
	Version     string
}

// Handler serves /metrics, /healthz and /readyz.
func Handler(s Sources) http.Handler {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{s})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "ok") })
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
	allocations = desc("allocations", "Live allocations in the flow table.")
	packets     = desc("relayed_packets_total", "Datagrams relayed.", "path", "direction")
	bytes       = desc("relayed_bytes_total", "Bytes of application data relayed.", "path", "direction")
	dropped     = desc("dropped_total", "Datagrams dropped.", "reason")
	requests    = desc("requests_total", "Requests by method.", "method")
	replies     = desc("replies_total", "Replies by STUN error code, 0 for success.", "code")
	commits     = desc("log_commits_total", "Records made durable.")
	events      = desc("log_events_total", "Events made durable.")
	recoveries  = desc("log_recoveries_total", "Commits whose outcome was not known, after which the log was opened again.")
)

func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{info, ready, draining, room, freeBytes, allocations, packets, bytes, dropped, requests, replies, commits, events, recoveries} {
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
	gauge(allocations, float64(c.Allocations()))
	path := turn.PathUserspace.String()
	count(packets, n.ToPeerPackets, path, "to_peer")
	count(packets, n.ToClientPackets, path, "to_client")
	count(bytes, n.ToPeerBytes, path, "to_peer")
	count(bytes, n.ToClientBytes, path, "to_client")
	for reason, v := range n.Drops {
		count(dropped, v, reason)
	}
	for method, v := range n.Requests {
		count(requests, v, stun.Method(method).String())
	}
	for code, v := range n.Replies {
		count(replies, v, strconv.Itoa(code))
	}
	count(commits, n.Commits)
	count(events, n.Events)
	count(recoveries, n.Recoveries)
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
