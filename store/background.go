package store

import (
	"context"
	"fmt"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Background does what need not be done at once, until ctx ends: it has sealed segments
// recorded and takes snapshots of them. What it has to say goes to record, which sends it
// through the one writer. It returns the error that stopped it, or that of ctx.
func (l *Log) Background(ctx context.Context, sealed uint64, record func(context.Context, turn.Event) error) error {
	tick := time.NewTicker(l.options.CheckEvery)
	defer tick.Stop()
	for {
		if err := l.tend(ctx, &sealed, record); err != nil && ctx.Err() == nil {
			return fmt.Errorf("tend log: %w", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (l *Log) tend(ctx context.Context, sealed *uint64, record func(context.Context, turn.Event) error) error {
	news := false
	for {
		e, ok, err := l.sealedAfter(*sealed)
		if err != nil {
			return err
		}
		if !ok {
			break
		}
		if err := record(ctx, e); err != nil {
			return err
		}
		*sealed, news = e.Segment, true
	}
	if !news || l.options.NoSnapshots {
		return nil
	}
	taken, err := l.takeSnapshot()
	if err != nil || taken.At == 0 {
		return err
	}
	if err := record(ctx, taken); err != nil {
		return err
	}
	return l.dropSnapshots()
}

// sealedAfter is the event of the next sealed segment after number n, if there is one.
func (l *Log) sealedAfter(n uint64) (e turn.SegmentSealed, ok bool, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		c := segments.Cursor()
		k, _ := c.Seek(key(n + 1))
		if k == nil {
			return nil
		}
		next, _ := c.Next()
		if next == nil {
			return nil
		}
		begin, err := parseHeader(segments.Bucket(k).Get(headKey))
		if err != nil {
			return &CorruptError{File: l.name(), Err: fmt.Errorf("segment %d: %w", number(k), err)}
		}
		end, err := parseHeader(segments.Bucket(next).Get(headKey))
		if err != nil {
			return &CorruptError{File: l.name(), Err: fmt.Errorf("segment %d: %w", number(next), err)}
		}
		e = turn.SegmentSealed{Segment: number(k), First: begin.next(), Last: end.next() - 1, Chain: end.last, Root: end.tree.root()}
		ok = true
		return nil
	})
	return e, ok, err
}
