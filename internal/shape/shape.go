// Package shape writes logs of a realistic shape, for tests and measurements.
package shape

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"turnstone/internal/shape/calls"
	"turnstone/store"
	"turnstone/turn"
)

// Options say what the relay is like that wrote the log, and how it is stored.
type Options struct {
	calls.Options
	Store store.Options // NoSync is set: nobody relies on what is made here
}

// tendEvery is how many records come between two looks for a sealed segment.
const tendEvery = 32

// Write makes a log in dir of at least so many events, with what a daemon in the background adds: sealed segments
// recorded, and snapshots. It yields the fold of the log. The same options make the same log.
func Write(ctx context.Context, dir string, events int, o Options) (_ *turn.State, err error) {
	o.Store.NoSync = true
	l, err := store.Open(dir, o.Store)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	c := calls.New(o.Options)
	if at := l.State().Seq(); at > 0 {
		return nil, fmt.Errorf("%s holds %d events already", File(dir), at)
	}
	var sealed uint64
	record := func(_ context.Context, events ...turn.Event) error { return l.Append(c.Record(events...)) }
	for n := 1; c.State().Seq() < turn.Seq(events); n++ {
		if err := l.Append(c.Next()); err != nil {
			return nil, err
		}
		if n%tendEvery != 0 {
			continue
		}
		if sealed, err = l.Tend(ctx, sealed, record); err != nil {
			return nil, err
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
	}
	return c.State(), nil
}

// File is the log's file in dir.
func File(dir string) string { return filepath.Join(dir, store.FileName) }
