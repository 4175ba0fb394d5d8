package main

import (
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"
)

// row is one figure of every server, with a sample of each run.
type row struct {
	Measurement string               `json:"measurement"`
	Name        string               `json:"name"`
	Columns     []string             `json:"columns"` // ours first
	Unit        string               `json:"unit"`
	Samples     map[string][]float64 `json:"samples"`
	Medians     map[string]float64   `json:"medians"`
	Goal        string               `json:"goal,omitempty"`
	Met         *bool                `json:"met,omitempty"`
	goal        *goal
}

// goal is what a row ought to show.
type goal struct {
	text string
	met  func(r *row) bool
}

// table gathers rows in the order of their first sample.
type table struct {
	rows []*row
}

func newTable() *table { return &table{} }

// recorder adds the samples of one run of one measurement to one column.
type recorder struct {
	t           *table
	measurement string
	columns     []string
	server      string // or program: the column
}

// add adds a sample to the row of that name. goal may be nil.
func (r recorder) add(name, unit string, v float64, g *goal) {
	i := slices.IndexFunc(r.t.rows, func(x *row) bool { return x.Measurement == r.measurement && x.Name == name })
	if i < 0 {
		r.t.rows = append(r.t.rows, &row{Measurement: r.measurement, Columns: r.columns, Name: name, Unit: unit, Samples: map[string][]float64{}, goal: g})
		i = len(r.t.rows) - 1
	}
	x := r.t.rows[i]
	x.Samples[r.server] = append(x.Samples[r.server], v)
}

// finish fills in what follows from the samples.
func (t *table) finish() {
	for _, x := range t.rows {
		x.Medians = map[string]float64{}
		for server, samples := range x.Samples {
			x.Medians[server] = median(samples)
		}
		if x.goal == nil || len(x.Samples[x.Columns[0]]) == 0 {
			continue
		}
		met := x.goal.met(x)
		x.Goal, x.Met = x.goal.text, &met
	}
}

func (t *table) writeJSON(w io.Writer, a about) error {
	t.finish()
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(struct {
		About about  `json:"about"`
		Rows  []*row `json:"rows"`
	}{a, t.rows})
}

func (t *table) write(w io.Writer, a about) error {
	t.finish()
	fmt.Fprintln(w, a)
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	last := ""
	for _, x := range t.rows {
		ours, others := x.Columns[0], x.Columns[1:]
		if x.Measurement != last {
			fmt.Fprintf(tw, "\n%s\tunit\t%s", strings.ToUpper(x.Measurement), strings.Join(x.Columns, "\t"))
			for _, name := range others {
				fmt.Fprintf(tw, "\tto %s", name)
			}
			fmt.Fprint(tw, "\tgoal\n")
			last = x.Measurement
		}
		fmt.Fprintf(tw, "%s\t%s\t%s", x.Name, x.Unit, x.spread(ours))
		for _, name := range others {
			fmt.Fprintf(tw, "\t%s", x.spread(name))
		}
		for _, name := range others {
			fmt.Fprintf(tw, "\t%s", x.ratio(name))
		}
		fmt.Fprintf(tw, "\t%s\n", x.verdict())
	}
	return tw.Flush()
}

// spread is the median with the extremes behind it.
func (x *row) spread(server string) string {
	s := x.Samples[server]
	switch len(s) {
	case 0:
		return "-"
	case 1:
		return short(s[0])
	}
	return fmt.Sprintf("%s (%s-%s)", short(x.Medians[server]), short(slices.Min(s)), short(slices.Max(s)))
}

// ours is the median of what is measured against the others.
func (x *row) ours() float64 { return x.Medians[x.Columns[0]] }

// ratio is ours divided by another's.
func (x *row) ratio(server string) string {
	ours, theirs := x.ours(), x.Medians[server]
	if len(x.Samples[x.Columns[0]]) == 0 || theirs == 0 {
		return "-"
	}
	return fmt.Sprintf("%.2fx", ours/theirs)
}

func (x *row) verdict() string {
	switch {
	case x.Met == nil:
		return ""
	case *x.Met:
		return x.Goal + ": met"
	}
	return x.Goal + ": MISSED"
}

// short is v with three significant digits or all those before the point.
func short(v float64) string {
	switch {
	case v == 0:
		return "0"
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	case v >= 0.01:
		return fmt.Sprintf("%.2f", v)
	}
	return fmt.Sprintf("%.4f", v)
}

func median(samples []float64) float64 { return quantile(samples, 0.5) }

// quantile is the q-quantile of samples, 0 of none; between two it is the mean of both for the median.
func quantile(samples []float64, q float64) float64 {
	if len(samples) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(samples))
	if n := len(s); q == 0.5 && n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[min(int(q*float64(len(s))), len(s)-1)]
}

// atMost is a goal for our median itself.
func atMost(limit float64, text string) *goal {
	return &goal{text, func(r *row) bool { return r.ours() <= limit }}
}

// atLeast is a goal for our median itself.
func atLeast(limit float64, text string) *goal {
	return &goal{text, func(r *row) bool { return r.ours() >= limit }}
}

// noFewer asks for no less than every peer that was measured.
func noFewer() *goal {
	return &goal{"no fewer than peers", func(r *row) bool {
		for _, v := range r.Medians {
			if r.ours() < v {
				return false
			}
		}
		return true
	}}
}

// ofCoturn asks for at most a share of what coturn has; it is missed where coturn was not measured.
func ofCoturn(share float64, text string) *goal {
	return &goal{text, func(r *row) bool {
		return len(r.Samples[coturnName]) > 0 && r.ours() <= share*r.Medians[coturnName]
	}}
}

// timesCoturn asks for at least a multiple of what coturn has; it is missed where coturn was not measured.
func timesCoturn(n float64) *goal {
	return &goal{fmt.Sprintf("%.0f times coturn", n), func(r *row) bool {
		return len(r.Samples[coturnName]) > 0 && r.ours() >= n*r.Medians[coturnName]
	}}
}

// noMoreThan asks for no more than another column has.
func noMoreThan(column string) *goal {
	return &goal{"no more than " + column, func(r *row) bool {
		return len(r.Samples[column]) > 0 && r.ours() <= r.Medians[column]
	}}
}
