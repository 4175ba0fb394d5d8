package metrics

import (
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"
)

func sources(ready bool, room turn.Room) Sources {
	return Sources{
		Counters: func() relay.Counters {
			return relay.Counters{
				ToPeerPackets: 3, Drops: map[string]uint64{"ttl": 2}, Requests: map[uint16]uint64{3: 5}, Replies: map[relay.Outcome]uint64{{Method: 3, Code: 401}: 7},
				Committed: relay.Latency{Counts: [14]uint64{0: 2, 3: 1, 13: 1}, Sum: 3 * time.Second},
				Streams:   map[turn.Protocol]int64{turn.TLS: 23}, StreamsRefused: 29, StreamsCutOff: 31,
			}
		},
		Alive: func() error { return nil }, Ready: func() bool { return ready }, Draining: func() bool { return false }, Room: func() turn.Room { return room },
		Allocations: func() int { return 11 },
		Grants:      func() (turn.Grants, bool) { return turn.Grants{Permissions: 59, Channels: 61, Reservations: 67}, true },
		Position:    func() (turn.Seq, int64) { return 71, 73 }, Start: func() Start { return Start{Replay: 2 * time.Second, Ready: 3 * time.Second} },
		FreeBytes: func() int64 { return 13 },
		Kept:      func() store.Kept { return store.Kept{Segments: 17, Oldest: time.Unix(41, 0), Overdue: 3} }, CertificateExpiry: func() time.Time { return time.Unix(37, 0) }, Version: "1.2.3",
		Users: func() int { return 23 }, UsersBroken: func() bool { return true },
		Lookups: func() (relay.LookupCounters, bool) {
			return relay.LookupCounters{Found: 29, None: 31, Failed: 37, Refused: 41, Waiting: 43}, true
		},
		Checkpoints: func() Checkpoints { return Checkpoints{Signed: 47, Failures: map[string]uint64{"url": 53}} },
		Kernel: func() (kernel.Status, bool) {
			return kernel.Status{Flows: 4, Verdicts: []kernel.VerdictCounts{
				{Verdict: "to-peer", Packets: 17, Bytes: 170}, {Verdict: "to-channel", Packets: 1, Bytes: 10}, {Verdict: "miss", Packets: 19},
			}}, true
		},
	}
}

func get(t *testing.T, s Sources, path string) (code int, body string) {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(s).ServeHTTP(w, httptest.NewRequest(http.MethodGet, path, nil))
	return w.Code, w.Body.String()
}

func TestMetricsTellWhatIsCounted(t *testing.T) {
	_, body := get(t, sources(true, turn.RoomFine), "/metrics")
	for _, want := range []string{
		`turnstone_build_info{version="1.2.3"} 1`,
		`turnstone_allocations 11`,
		`turnstone_relayed_packets_total{direction="to_peer",path="userspace"} 3`,
		`turnstone_relayed_packets_total{direction="to_peer",path="kernel"} 18`,
		`turnstone_relayed_bytes_total{direction="to_client",path="kernel"} 10`,
		`turnstone_dropped_total{reason="ttl"} 2`,
		`turnstone_replies_total{code="401",method="Allocate"} 7`,
		`turnstone_log_commit_seconds_bucket{le="0.0001"} 2`,
		`turnstone_log_commit_seconds_bucket{le="1"} 3`,
		`turnstone_log_commit_seconds_bucket{le="+Inf"} 4`,
		`turnstone_log_commit_seconds_sum 3`,
		`turnstone_log_append_seconds_count 0`,
		`turnstone_permissions 59`,
		`turnstone_channels 61`,
		`turnstone_reservations 67`,
		`turnstone_log_last_event 71`,
		`turnstone_log_file_bytes 73`,
		`turnstone_start_replay_seconds 2`,
		`turnstone_start_seconds 3`,
		`turnstone_kernel_verdicts_total{verdict="miss"} 19`,
		`turnstone_kernel_flows 4`,
		`turnstone_users 23`,
		`turnstone_lookups_total{outcome="none"} 31`,
		`turnstone_lookups_total{outcome="failed"} 37`,
		`turnstone_lookups_waiting 43`,
		`turnstone_log_checkpoints_total 47`,
		`turnstone_log_checkpoint_failures_total{at="url"} 53`,
		`turnstone_users_file_broken 1`,
		`turnstone_streams{protocol="tls"} 23`,
		`turnstone_streams_refused_total 29`,
		`turnstone_streams_cut_off_total 31`,
		`turnstone_certificate_expiry_seconds 37`,
	} {
		if !strings.Contains(body, want+"\n") {
			t.Errorf("no line %s in\n%s", want, body)
		}
	}
}

func TestReadinessSaysWhyNot(t *testing.T) {
	for _, c := range []struct {
		ready bool
		room  turn.Room
		code  int
		want  string
	}{
		{true, turn.RoomFine, 200, "ready"},
		{false, turn.RoomFine, 503, "nobody is answered"},
		{true, turn.RoomLow, 503, "nearly full"},
		{true, turn.RoomNone, 503, "the disk is full"},
	} {
		code, body := get(t, sources(c.ready, c.room), "/readyz")
		if code != c.code || !strings.Contains(body, c.want) {
			t.Errorf("ready %t, room %v: got %d %q, want %d with %q", c.ready, c.room, code, body, c.code, c.want)
		}
	}
	if code, body := get(t, sources(false, turn.RoomNone), "/healthz"); code != 200 || body != "ok\n" {
		t.Errorf("/healthz: got %d %q, want 200: the process lives", code, body)
	}
	stuck := sources(true, turn.RoomFine)
	stuck.Alive = func() error { return &relay.StuckError{Part: "the writer"} }
	if code, body := get(t, stuck, "/healthz"); code != 503 || body != "stuck: the writer\n" {
		t.Errorf("/healthz: got %d %q, want 503 and what is stuck", code, body)
	}
}

func TestEveryMetricIsDocumented(t *testing.T) {
	const file = "../../../../docs/operations.md"
	doc, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	names, help := Names()
	for i, n := range names {
		if line := "| `" + n + "` | " + help[i] + " |"; !strings.Contains(string(doc), line) {
			t.Errorf("%s lacks the line\n%s", file, line)
		}
	}
	for line := range strings.Lines(string(doc)) {
		name, _, ok := strings.Cut(strings.TrimPrefix(line, "| `turnstone_"), "`")
		if ok && strings.HasPrefix(line, "| `turnstone_") && !contains(names, "turnstone_"+name) {
			t.Errorf("%s documents turnstone_%s, which there is not", file, name)
		}
	}
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}
