// Package top is a live view of a daemon in a terminal.
package top

import (
	"context"
	"io"
	"iter"
	"time"

	"turnstone/cmd/turnstone/internal/admin"

	tea "charm.land/bubbletea/v2"
)

// Source yields what goes through a daemon, until an error that says why there is no more.
type Source func(ctx context.Context, interval time.Duration, busiest int) iter.Seq2[admin.Traffic, error]

// Busiest is how many channels are asked for: as many as a tall terminal has lines.
const Busiest = 100

// Run shows what s yields until a key or ctx ends it. While the daemon is away it says so, and asks again each interval.
// The environment decides on colours, as NO_COLOR and TERM say.
func Run(ctx context.Context, s Source, interval time.Duration, in io.Reader, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	p := tea.NewProgram(newModel(interval), tea.WithContext(ctx), tea.WithInput(in), tea.WithOutput(out), tea.WithFPS(10), tea.WithoutSignalHandler())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for t, err := range Follow(ctx, s, interval) {
			if err != nil {
				p.Send(away{err})
				continue
			}
			p.Send(t)
		}
	}()
	_, err := p.Run()
	if ctx.Err() != nil { // it was told to end
		err = nil
	}
	cancel()
	<-done
	return err
}

// Follow yields what s yields, and begins again after its errors, until ctx ends.
func Follow(ctx context.Context, s Source, interval time.Duration) iter.Seq2[admin.Traffic, error] {
	return func(yield func(admin.Traffic, error) bool) {
		for {
			for t, err := range s(ctx, interval, Busiest) {
				if ctx.Err() != nil || !yield(t, err) {
					return
				}
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(min(interval, time.Second)):
			}
		}
	}
}
