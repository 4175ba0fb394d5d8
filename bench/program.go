package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
)

// Names of the columns of what is run beside the program.
const (
	programName = "turnstone"
	bounceName  = "bounce"
	fibName     = "bounce+fib"
)

// measureProgram runs the XDP program, on every path, beside the two references: over and over in memory, and by live frames over a
// cable. The benchmarks are those of package kernel.
func measureProgram(ctx context.Context, l *lab, _ kind, r recorder) error {
	for _, b := range []struct{ benchmark, count, what string }{
		{"BenchmarkPath", pick(l, "400x", "200x"), "run"},
		{"BenchmarkRoad", pick(l, "3x", "2x"), "live"},
	} {
		lines, err := l.benchmark(ctx, "^"+b.benchmark+"$"+pick(l, "", "/././1$"), b.count)
		if err != nil {
			return err
		}
		for _, line := range lines {
			name := strings.TrimPrefix(line.name, b.benchmark+"/")
			at := strings.LastIndexByte(name, '/')
			name, count := strings.ReplaceAll(name[:at], "/", " "), name[at+1:]
			flows := "1 flow"
			if count != "1" {
				flows = count + " flows"
			}
			var g *goal
			if count == "1" {
				g = noMoreThan(fibName)
			}
			for column, unit := range map[string]string{programName: "ns/packet", bounceName: "bounce-ns/packet", fibName: "bounce-fib-ns/packet"} {
				one := r
				one.server = column
				one.add(fmt.Sprintf("%s, %s, %s", name, flows, b.what), "ns", line.metrics[unit], g)
			}
		}
	}
	return nil
}

// measureRebuild makes the maps for 100,000 channels from nothing, and takes them over from an earlier run.
func measureRebuild(ctx context.Context, l *lab, _ kind, r recorder) error {
	lines, err := l.benchmark(ctx, "^BenchmarkRebuild$", pick(l, "2x", "1x"))
	if err != nil {
		return err
	}
	for _, line := range lines {
		var g *goal
		name := strings.TrimPrefix(line.name, "BenchmarkRebuild/")
		if name == "fresh" {
			g = atMost(400, "under 400 ms")
		}
		r.add("100,000 channels, "+name, "ms", line.metrics["ns/op"]/1e6, g)
		r.add("100,000 channels, "+name+": CPU", "ms", line.metrics["cpu-ms/op"], nil)
	}
	return nil
}

// benchmarked is one line of the output of a Go benchmark.
type benchmarked struct {
	name    string
	metrics map[string]float64 // by unit
}

// benchmark runs benchmarks of package kernel, each count times.
func (l *lab) benchmark(ctx context.Context, pattern, count string) ([]benchmarked, error) {
	if l.kernelTest == "" {
		to := filepath.Join(l.dir, "kernel.test")
		if out, err := exec.CommandContext(ctx, "go", "test", "-c", "-o", to, "turnstone/kernel").CombinedOutput(); err != nil {
			return nil, fmt.Errorf("build the benchmarks: %w\n%s", err, out)
		}
		l.kernelTest = to
	}
	c := exec.Command(l.kernelTest, "-test.run", "^$", "-test.bench", pattern, "-test.benchtime", count)
	var out bytes.Buffer
	c.Stdout, c.Stderr = &out, &out
	stop := context.AfterFunc(ctx, func() {
		if c.Process != nil {
			_ = c.Process.Kill()
		}
	})
	defer stop()
	if err := c.Run(); err != nil {
		return nil, fmt.Errorf("%s: %w\n%s", c, err, &out)
	}
	var lines []benchmarked
	for scan := bufio.NewScanner(&out); scan.Scan(); {
		fields := strings.Fields(scan.Text())
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name := strings.TrimSuffix(fields[0], fmt.Sprintf("-%d", runtime.GOMAXPROCS(0)))
		one := benchmarked{name: name, metrics: map[string]float64{}}
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", scan.Text(), err)
			}
			one.metrics[fields[i+1]] = v
		}
		lines = append(lines, one)
	}
	if len(lines) == 0 {
		return nil, fmt.Errorf("no benchmark matches %s", pattern)
	}
	return lines, nil
}
