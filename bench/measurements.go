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
	name    string
	columns []string // ours first; nil: the servers
	alone   bool     // there is nothing like it in the peers
	kernel  bool     // turnstone is measured with its program in the kernel too, or alone so
	run     func(ctx context.Context, l *lab, k kind, r recorder) error
}

// measurements are in the order in which they run and are printed.
func measurements() []measurement {
	return []measurement{
		{name: "disk", alone: true, run: measureDisk},
		{name: "allocate", run: measureAllocate},
		{name: "channelbind", run: measureChannelBind},
		{name: "unloaded", run: measureUnloaded},
		{name: "log", alone: true, run: measureLog},
		{name: "audit", alone: true, run: measureAudit},
		{name: "restart", alone: true, run: measureRestart},
		{name: "memory", run: measureMemory},
		{name: "relay", run: measureRelay},
		{name: "streams", run: measureStreams},
		{name: "program", alone: true, columns: []string{programName, bounceName, fibName}, run: measureProgram},
		{name: "carry", kernel: true, columns: carriers, run: measureCarry},
		{name: "passage", kernel: true, columns: carriers, run: measurePassage},
		{name: "rebuild", alone: true, columns: []string{turnstoneName}, run: measureRebuild},
		{name: "death", kernel: true, alone: true, columns: []string{kernelName}, run: measureDeath},
	}
}

// carriers are the columns of what is measured by kernel too.
var carriers = []string{kernelName, userspaceName, coturnName, pionName}

// kinds are the servers that m measures in l.
func (m measurement) kinds(l *lab) (list []kind) {
	for _, k := range l.kinds {
		if k.name == turnstoneName && m.kernel {
			list = append(list, byKernel)
		}
		if !m.alone || !m.kernel && k.name == turnstoneName {
			list = append(list, k)
		}
	}
	return list
}

// measureAll runs what was asked for, the servers taking turns within each run. It
// goes on after a failure and yields all of them.
func (l *lab) measureAll(ctx context.Context, t *table) (failed []error) {
	for _, m := range measurements() {
		if !l.options.only.MatchString(m.name) {
			continue
		}
		if m.columns == nil {
			m.columns = []string{turnstoneName, coturnName, pionName}
		}
		for i := range l.options.runs {
			for _, k := range m.kinds(l) {
				if ctx.Err() != nil {
					return failed
				}
				if err := l.waitQuiet(ctx); err != nil {
					return append(failed, err)
				}
				began := time.Now()
				err := m.run(ctx, l, k, recorder{t: t, measurement: m.name, columns: m.columns, server: k.name})
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

// quietShare is how much of one CPU others may use on a quiet machine.
const quietShare = 0.2

// waitQuiet waits until others leave the machine alone, no longer than was asked for.
func (l *lab) waitQuiet(ctx context.Context) error {
	const look = 500 * time.Millisecond
	for began := time.Now(); time.Since(began) < l.options.wait && ctx.Err() == nil; {
		before, err := machineTime()
		if err != nil {
			return err
		}
		time.Sleep(look)
		after, err := machineTime()
		if err != nil {
			return err
		}
		if (after - before).Seconds() < quietShare*look.Seconds() {
			return nil
		}
	}
	return nil
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
