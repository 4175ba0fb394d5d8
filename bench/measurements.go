package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"time"
)

// measurement is one thing to measure, of one server at a time.
type measurement struct {
	name  string
	alone bool // there is nothing like it in the peers
	run   func(ctx context.Context, l *lab, k kind, r recorder) error
}

// measurements are in the order in which they run and are printed.
func measurements() []measurement {
	return []measurement{
		{name: "disk", alone: true, run: measureDisk},
		{name: "allocate", run: measureAllocate},
		{name: "channelbind", run: measureChannelBind},
		{name: "unloaded", run: measureUnloaded},
		{name: "log", alone: true, run: measureLog},
		{name: "restart", alone: true, run: measureRestart},
		{name: "memory", run: measureMemory},
		{name: "relay", run: measureRelay},
	}
}

// measureAll runs what was asked for, the servers taking turns within each run. It
// goes on after a failure and yields all of them.
func (l *lab) measureAll(ctx context.Context, t *table) (failed []error) {
	for _, m := range measurements() {
		if !l.options.only.MatchString(m.name) {
			continue
		}
		for i := range l.options.runs {
			for _, k := range l.kinds {
				if m.alone && k.name != turnstoneName {
					continue
				}
				if ctx.Err() != nil {
					return failed
				}
				began := time.Now()
				err := m.run(ctx, l, k, recorder{t: t, measurement: m.name, server: k.name})
				fmt.Fprintf(os.Stderr, "%-12s %-10s run %d of %d, %.1fs\n", m.name, k.name, i+1, l.options.runs, time.Since(began).Seconds())
				if err != nil {
					err = fmt.Errorf("%s of %s: %w", m.name, k.name, err)
					fmt.Fprintln(os.Stderr, "bench:", err)
					failed = append(failed, err)
				}
			}
		}
	}
	return failed
}

// pick is full, or quick where the run is to be quick.
func pick[T any](l *lab, full, quick T) T {
	if l.options.quick {
		return quick
	}
	return full
}

// kindsOf are the servers named in list.
func kindsOf(list string) ([]kind, error) {
	var out []kind
	for name := range strings.SplitSeq(list, ",") {
		found := false
		for _, k := range allKinds {
			if k.name == name {
				out, found = append(out, k), true
			}
		}
		if !found {
			return nil, fmt.Errorf("-servers %s: there is no %q", list, name)
		}
	}
	return out, nil
}
