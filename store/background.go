package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Background does what need not be done at once, until ctx ends: it has sealed segments
// recorded, from the one after sealed on, and takes snapshots of them. What it has to say goes to
// record, which sends it through the one writer. What fails is tried again at the next look, since
// the writer learns of a failed disk by itself; damage ends it with a *CorruptError.
func (l *Log) Background(ctx context.Context, sealed uint64, record func(context.Context, ...turn.Event) error) error {
	tick := time.NewTicker(l.options.CheckEvery)
	defer tick.Stop()
	t := tender{log: l, sealed: sealed, news: true, record: record}
	var said string
	for {
		var damage *CorruptError
		err := errors.Join(t.look(ctx), l.prover.Grow(ctx))
		if errors.As(err, &damage) {
			return fmt.Errorf("tend log: %w", err)
		}
		if err == nil {
			said = ""
		} else if ctx.Err() == nil && err.Error() != said && l.options.Trouble != nil {
			said = err.Error()
			l.options.Trouble(err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Tend does once what Background does, and yields the number of the last sealed segment that is recorded.
func (l *Log) Tend(ctx context.Context, sealed uint64, record func(context.Context, ...turn.Event) error) (uint64, error) {
	t := tender{log: l, sealed: sealed, record: record}
	err := t.look(ctx)
	return t.sealed, err
}

// tender is what Background has yet to do.
type tender struct {
	log     *Log
	sealed  uint64                  // recorded so far
	news    bool                    // there may be something to take a snapshot of
	taken   turn.SnapshotTaken      // to be recorded; At is 0 for none
	whole   map[turn.Seq]turn.LogID // snapshots that were read and are good, and whose they are
	dropped uint64                  // the last archive recorded as removed
	record  func(context.Context, ...turn.Event) error

	resumed bool      // what a run before began to forget is forgotten
	forget  time.Time // when to look for segments to forget
}

func (t *tender) look(ctx context.Context) error {
	if err := t.tendKeys(ctx); err != nil {
		return err
	}
	if err := t.seal(ctx); err != nil {
		return err
	}
	if err := t.snap(ctx); err != nil {
		return err
	}
	return t.retire(ctx)
}

// seal has the sealed segments recorded.
func (t *tender) seal(ctx context.Context) error {
	for {
		e, ok, err := t.log.sealedAfter(t.sealed)
		if err != nil || !ok {
			return err
		}
		if err := t.record(ctx, e); err != nil {
			return err
		}
		t.sealed, t.news = e.Segment, true
	}
}

// snap takes a snapshot where there is something new to take one of.
func (t *tender) snap(ctx context.Context) error {
	if t.news && t.taken.At == 0 && !t.log.options.NoSnapshots {
		taken, err := t.log.takeSnapshot(ctx)
		if err != nil {
			return err
		}
		t.news, t.taken = false, taken
	}
	if t.taken.At == 0 {
		return nil
	}
	if err := t.record(ctx, t.taken); err != nil {
		return err
	}
	t.taken = turn.SnapshotTaken{}
	return t.log.dropSnapshots()
}

// tendKeys does what is to be done about the keys of encrypted segments, and what is by their age.
func (t *tender) tendKeys(ctx context.Context) error {
	if err := t.log.drawAhead(); err != nil {
		return err
	}
	if !t.resumed {
		if err := t.log.resumeForgetting(ctx, t.record); err != nil {
			return err
		}
		t.resumed = true
	}
	now := t.log.options.now()
	if err := t.log.closeOld(ctx, now, t.record); err != nil {
		return err
	}
	if now.Before(t.forget) {
		return nil
	}
	t.forget = now.Add(min(time.Minute, t.log.options.ForgetAge/8))
	return t.log.forgetOld(ctx, now, t.record)
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
