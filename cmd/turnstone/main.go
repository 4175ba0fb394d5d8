// Command turnstone is a TURN relay whose state is an event log.
package main

import (
	"context"
	"errors"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	os.Exit(run(environment{args: os.Args[1:], stdout: os.Stdout, stderr: os.Stderr, context: signalled}))
}

// signalled ends with the first SIGINT or SIGTERM; the second one kills as it would anyway.
func signalled() (context.Context, func() string, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM)
	go func() {
		cancel(signalError{<-signals})
		signal.Stop(signals)
	}()
	cause := func() string {
		var s signalError
		if errors.As(context.Cause(ctx), &s) {
			return s.String()
		}
		return "error"
	}
	return ctx, cause, func() { cancel(nil) }
}

type signalError struct{ os.Signal }

func (s signalError) Error() string { return s.String() }
