package metrics

import (
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"turnstone/turn"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"go.yaml.in/yaml/v3"
)

const shipped = "../../../../deploy/"

// queries are the expressions of the dashboard and of the alerts.
func queries(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{}
	var dashboard struct {
		Panels []struct {
			Title   string
			Type    string
			Targets []struct{ Expr string }
		}
	}
	b, err := os.ReadFile(shipped + "grafana.json")
	if err == nil {
		err = json.Unmarshal(b, &dashboard)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range dashboard.Panels {
		if p.Type != "row" && len(p.Targets) == 0 {
			t.Errorf("panel %q shows nothing", p.Title)
		}
		for i, q := range p.Targets {
			out["panel "+p.Title+" "+string(rune('A'+i))] = q.Expr
		}
	}
	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	if b, err = os.ReadFile(shipped + "alerts.yaml"); err == nil {
		err = yaml.Unmarshal(b, &rules)
	}
	if err != nil {
		t.Fatal(err)
	}
	for _, g := range rules.Groups {
		for _, r := range g.Rules {
			if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
				t.Errorf("alert %s does not say what it is about and what to do", r.Alert)
			}
			out["alert "+r.Alert] = r.Expr
		}
	}
	return out
}

var (
	series   = regexp.MustCompile(`\b([a-z_]+(?:_total|_seconds|_bytes|_bucket|_info)|up|turnstone_[a-z_]+)(\{[^}]*\})?`)
	label    = regexp.MustCompile(`(\w+)\s*(?:=~|!~|!=|=)\s*"`)
	grouping = regexp.MustCompile(`\b(?:by|on)\s*\(([^)]*)\)`)
)

// TestWhatWatchesExists holds every query of the dashboard and the alerts against the registry: its series, and their labels.
func TestWhatWatchesExists(t *testing.T) {
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}), &collector{sources(true, turn.RoomFine)})
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	scraped := []string{"instance", "job"} // what Prometheus adds
	labels := map[string][]string{"up": scraped}
	for _, f := range families {
		names := slices.Clone(scraped)
		for _, l := range f.GetMetric()[0].GetLabel() {
			names = append(names, l.GetName())
		}
		labels[f.GetName()] = names
		if f.GetMetric()[0].GetHistogram() != nil {
			labels[f.GetName()+"_bucket"] = append(slices.Clone(names), "le")
		}
	}
	used := map[string]bool{}
	for where, q := range queries(t) {
		var known []string
		found := series.FindAllStringSubmatch(q, -1)
		if len(found) == 0 {
			t.Errorf("%s: no series in %s", where, q)
		}
		for _, m := range found {
			names, ok := labels[m[1]]
			if !ok {
				t.Errorf("%s: there is no %s", where, m[1])
				continue
			}
			used[m[1]] = true
			known = append(known, names...)
			for _, l := range label.FindAllStringSubmatch(m[2], -1) {
				if !slices.Contains(names, l[1]) {
					t.Errorf("%s: %s has no label %s, but %v", where, m[1], l[1], names)
				}
			}
		}
		for _, g := range grouping.FindAllStringSubmatch(q, -1) {
			for l := range strings.SplitSeq(g[1], ",") {
				if l = strings.TrimSpace(l); !slices.Contains(known, l) {
					t.Errorf("%s: no series of it has the label %s", where, l)
				}
			}
		}
	}
	if len(used) < 30 {
		t.Errorf("%d series are watched, want 30 at least: is the test reading the files?", len(used))
	}
}
