// Command bench measures turnstone beside coturn and a small server on
// pion/turn, all three in the same run, in network namespaces of its own.
//
// Each measurement is one file; measurements.go lists them. What they measure
// and how to read it is in docs/benchmarks.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"syscall"
	"time"
)

func main() {
	if err := asChild(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	if errors.Is(err, flag.ErrHelp) {
		os.Exit(2)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// options are what the command line says.
type options struct {
	runs      int
	only      *regexp.Regexp
	servers   string
	quick     bool
	output    string
	data      string
	turnstone string
	trains    bool
	rate      int
	profile   string
	wait      time.Duration
}

func parse(args []string) (options, error) {
	var o options
	f := flag.NewFlagSet("bench", flag.ContinueOnError)
	f.IntVar(&o.runs, "runs", 0, "runs of each measurement (default 3, 1 with -quick)")
	only := f.String("only", "", "run only the measurements whose name matches this expression")
	f.StringVar(&o.servers, "servers", "turnstone,coturn,pion", "servers to measure, in this order")
	f.BoolVar(&o.quick, "quick", false, "smaller and shorter, for a first look: some minutes")
	f.StringVar(&o.output, "o", "table", "table or json")
	f.StringVar(&o.data, "data", "", "directory on the disk to measure (default: the temporary directory)")
	f.StringVar(&o.turnstone, "turnstone", "", "turnstone binary (default: build it)")
	f.BoolVar(&o.trains, "trains", true, "bursts come as trains, as the receive offload of a network card joins them")
	f.IntVar(&o.rate, "rate", 20000, "packets per second of the steady relaying")
	f.StringVar(&o.profile, "profile", "", "record the relaying servers with perf into this directory")
	f.DurationVar(&o.wait, "wait", 0, "before each run, wait at most so long until the machine is quiet")
	if err := f.Parse(args); err != nil {
		return o, err
	}
	if o.runs == 0 {
		o.runs = 3
		if o.quick {
			o.runs = 1
		}
	}
	if o.output != "table" && o.output != "json" {
		return o, fmt.Errorf("-o %s: table or json", o.output)
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}

func run(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	l, err := newLab(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.close()) }()
	t := newTable()
	failed := l.measureAll(ctx, t)
	if o.output == "json" {
		err = t.writeJSON(os.Stdout, l.about())
	} else {
		err = t.write(os.Stdout, l.about())
	}
	return errors.Join(append(failed, err, ctx.Err())...)
}
