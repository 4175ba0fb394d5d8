// Package shape writes logs of a realistic shape, for tests and measurements.
package shape

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"runtime/debug"

	"turnstone/internal/shape/calls"
	"turnstone/store"
	"turnstone/turn"
)

// Options say what the relay is like that wrote the log, and how it is stored.
type Options struct {
	calls.Options
	Store store.Options // NoSync is set: nobody relies on what is made here
}

// Records are made while those before them are appended, so many at a time, and every now and then both wait
// for the store to look for sealed segments.
const (
	batch     = 64
	tendEvery = 8 // batches
)

// Write makes a log in dir of at least so many events, with what a daemon in the background adds: sealed segments
// recorded, and snapshots. It yields the fold of the log. The same options make the same log.
func Write(ctx context.Context, dir string, events int, o Options) (_ *turn.State, err error) {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // most of what is made is garbage soon
	o.Store.NoSync = true
	l, err := store.Open(dir, o.Store)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if at := l.State().Seq(); at > 0 {
		return nil, fmt.Errorf("%s holds %d events already", File(dir), at)
	}
	size, every := batch, tendEvery
	if s := o.Store.SegmentSize; s > 0 && s < 4<<20 { // there is more to look for
		size, every = 8, 1
	}
	c := calls.New(o.Options)
	var sealed uint64
	record := func(_ context.Context, events ...turn.Event) error { return l.Append(c.Record(events...)) }
	appended := make(chan error, 1)
	appended <- nil
	for n := 1; ; n++ {
		var made []turn.Record
		for len(made) < size && c.State().Seq() < turn.Seq(events) {
			made = append(made, c.Next())
		}
		if err := errors.Join(<-appended, ctx.Err()); err != nil {
			return nil, err
		}
		go func() { appended <- appendAll(l, made) }()
		last := c.State().Seq() >= turn.Seq(events)
		if !last && n%every != 0 {
			continue
		}
		if err := <-appended; err != nil {
			return nil, err
		}
		if sealed, err = l.Tend(ctx, sealed, record); err != nil || last {
			return c.State(), err
		}
		appended <- nil
	}
}

func appendAll(l *store.Log, records []turn.Record) error {
	for _, r := range records {
		if err := l.Append(r); err != nil {
			return err
		}
	}
	return nil
}

// File is the log's file in dir.
func File(dir string) string { return filepath.Join(dir, store.FileName) }
