package main

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/store"
	"turnstone/turn"
)

// childLog is the first argument of this program where it is to make a log or to time one: it is
// followed by verify or replay, and the file.
const childLog = "child-log"

// logTiming is what the child writes.
type logTiming struct {
	Events  uint64
	Seconds float64
}

// timeLog verifies or replays a file, in a process that has done nothing else.
func timeLog(args []string) error {
	if len(args) == 3 && args[0] == "make" {
		return makeLog(args[1], args[2])
	}
	if len(args) != 2 {
		return fmt.Errorf("%q: want verify or replay, and a file", args)
	}
	reader, err := store.OpenReader(args[1])
	if err != nil {
		return err
	}
	began := time.Now()
	var events uint64
	if args[0] == "verify" {
		report, err := reader.Verify()
		if err != nil {
			return err
		}
		events = report.Events
	} else {
		s, err := store.StateAt(reader.Records(1), func(turn.Record) bool { return true })
		if err != nil {
			return err
		}
		events = uint64(s.Seq())
	}
	took := time.Since(began)
	b, err := json.Marshal(logTiming{Events: events, Seconds: took.Seconds()})
	if err == nil {
		fmt.Println(string(b))
	}
	return err
}

// generatedLog is a log made for measuring.
type generatedLog struct {
	file   string
	events uint64
}

// measureLog times verification and replay of a generated log, both in a process of their own through the
// store, and what an operator types for it.
func measureLog(ctx context.Context, l *lab, _ kind, r recorder) error {
	if err := l.generated(ctx); err != nil {
		return err
	}
	for what, g := range map[string]*goal{"verify": atLeast(1e6, "1,000,000"), "replay": atLeast(5e5, "500,000")} {
		out, err := command(ctx, self(childLog, what, l.log.file))
		if err != nil {
			return err
		}
		var t logTiming
		if err := json.Unmarshal(out, &t); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if t.Events != l.log.events {
			return fmt.Errorf("%s went through %d events of %d", what, t.Events, l.log.events)
		}
		r.add(what+", in process", "events/s", float64(t.Events)/t.Seconds, g)
	}
	began := time.Now()
	if _, err := command(ctx, exec.Command(l.binary, "log", "verify", "--db", l.log.file)); err != nil {
		return err
	}
	r.add("turnstone log verify (both, and start)", "events/s", float64(l.log.events)/time.Since(began).Seconds(), nil)
	return l.measureMoments(ctx, r)
}

// moments are how many are asked for.
const moments = 12

// measureMoments times turnstone replay --to at moments all over the log, beside the fold of all of it, which is what a
// log without snapshots takes.
func (l *lab) measureMoments(ctx context.Context, r recorder) error {
	var slowest, most, busiest float64
	rng := rand.New(rand.NewPCG(1, 1))
	for range moments {
		took, cpu, memory, err := timed(ctx, exec.Command(l.binary, "replay", "--db", l.log.file, "-o", "jsonl",
			"--to", strconv.FormatUint(1+rng.Uint64N(l.log.events), 10)))
		if err != nil {
			return err
		}
		slowest, most, busiest = max(slowest, took), max(most, memory), max(busiest, cpu)
	}
	r.add(fmt.Sprintf("turnstone replay --to, slowest of %d", moments), "s", slowest, atMost(1, "1 s"))
	r.add("most CPU of them", "s", busiest, nil)
	r.add("most memory of them", "MiB", most, nil)
	full, cpu, memory, err := timed(ctx, self(childLog, "replay", l.log.file))
	if err != nil {
		return err
	}
	r.add("full replay", "s", full, nil)
	r.add("CPU of it", "s", cpu, nil)
	r.add("memory of it", "MiB", memory, nil)
	r.add("full replay / slowest moment", "times", full/slowest, nil)
	return nil
}

// timed runs c, and yields how many seconds it took, how many of CPU, and how many MiB it had at most.
func timed(ctx context.Context, c *exec.Cmd) (took, cpu, memory float64, err error) {
	began := time.Now()
	_, err = command(ctx, c)
	took = time.Since(began).Seconds()
	if err != nil {
		return took, 0, 0, err
	}
	if u, ok := c.ProcessState.SysUsage().(*syscall.Rusage); ok {
		memory = float64(u.Maxrss) / 1024
	}
	return took, (c.ProcessState.UserTime() + c.ProcessState.SystemTime()).Seconds(), memory, nil
}

// generated has l have a generated log.
func (l *lab) generated(ctx context.Context) error {
	if l.log != nil {
		return nil
	}
	g, err := generateLog(ctx, filepath.Join(l.dir, "log"), pick(l, 10_000_000, 1_000_000))
	if err != nil {
		return fmt.Errorf("generate a log: %w", err)
	}
	l.log = &g
	return nil
}

// command runs c and yields its output.
func command(ctx context.Context, c *exec.Cmd) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() {
		if c.Process != nil {
			_ = c.Process.Kill()
		}
	})
	defer stop()
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return out, nil
}

// logCommit is the time between two records: about thirty events, as a busy relay's commits join them.
const logCommit = 100 * time.Millisecond

// generateLog has a child write a log as of a busy relay: ten thousand calls of minutes each that come and go. Were it
// made here, what this process then has would be counted as the least that each of its children has.
func generateLog(ctx context.Context, dir string, events int) (generatedLog, error) {
	out, err := command(ctx, self(childLog, "make", dir, strconv.Itoa(events)))
	if err != nil {
		return generatedLog{}, err
	}
	var made logTiming
	if err := json.Unmarshal(out, &made); err != nil {
		return generatedLog{}, err
	}
	return generatedLog{shape.File(dir), made.Events}, nil
}

// makeLog is what the child does.
func makeLog(dir, events string) error {
	n, err := strconv.Atoi(events)
	if err != nil {
		return err
	}
	began := time.Now()
	state, err := shape.Write(context.Background(), dir, n, shape.Options{Options: calls.Options{Commit: logCommit, RestartEvery: n / 5}})
	if err != nil {
		return err
	}
	b, err := json.Marshal(logTiming{Events: uint64(state.Seq()), Seconds: time.Since(began).Seconds()})
	if err == nil {
		fmt.Println(string(b))
	}
	return err
}
