// Command demo shows what turnstone does with a call when its daemon is killed: a client and a peer, each in a
// network namespace, talk through a relay in a third; the daemon dies, the kernel carries on, the daemon comes
// back from its log, and the log tells what happened. Without root everything is on the loopback, and userspace
// relays: then what is sent while nobody is there is lost, and counted.
//
// With -svg it writes what it showed, with its timing, as an animated picture.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	case err != nil:
		fmt.Fprintln(os.Stderr, "demo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) (err error) {
	f := flag.NewFlagSet("demo", flag.ContinueOnError)
	binary := f.String("turnstone", "bin/turnstone", "the `program` to show")
	picture := f.String("svg", "", "write what is shown to `FILE` as an animated picture")
	talk := f.Duration("talk", 4*time.Second, "how long the call goes on before the kill, while the daemon is dead, and after")
	if err := f.Parse(args); err != nil {
		return err
	}
	program, err := filepath.Abs(*binary)
	if err != nil {
		return err
	}
	if _, err := os.Stat(program); err != nil {
		return fmt.Errorf("%w: run make first, or make demo", err)
	}
	dir, err := os.MkdirTemp("", "turnstone-demo-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	set, err := newStage()
	if err != nil {
		return err
	}
	defer set.close()
	screen := newScreen(os.Stdout)
	s := &story{screen: screen, stage: set, talk: *talk, relay: &daemon{program: program, dir: dir, stage: set}}
	if err := s.tell(ctx); err != nil {
		return err
	}
	if *picture != "" {
		return os.WriteFile(*picture, screen.svg(), 0o644)
	}
	return nil
}
