package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Retention says which sealed segments leave the log, the oldest first. The zero Retention keeps all.
type Retention struct {
	Age        time.Duration // since the last record of a segment; 0 for ever
	Size       int64         // bytes of pages of all segments, each counted as a full one; 0 for no bound
	Archive    string        // directory a segment is written to before it goes; empty: it is not
	ArchiveAge time.Duration // since the last record of an archive; 0 for ever
}

// Kept is what Background last saw of what the log keeps.
type Kept struct {
	Segments uint64    // in the file, with the one that grows
	Oldest   time.Time // of the last record of the oldest segment, zero where that one still grows
	Overdue  uint64    // segments that are to go
	Waiting  string    // why the next of them is still there; empty where nothing is in the way
}

// mostOverdue is how many segments wait until free pages are used up.
const mostOverdue = 2

// coverings is how many good snapshots must cover a segment that goes: the one to start from, and one in case
// that is damaged.
const coverings = 2

// SetRetention puts r in force.
func (l *Log) SetRetention(r Retention) {
	l.retention.Store(&r)
	past := archivesBeside(l.name())
	if r.Archive != "" {
		past = OpenArchives(r.Archive)
	}
	l.archives.Store(past)
}

// Kept is what the log keeps, as of the last look of Background.
func (l *Log) Kept() Kept {
	if k := l.kept.Load(); k != nil {
		return *k
	}
	return Kept{}
}

// noteRetired has the file know which segments the record being appended retires, so that whoever opens it next ends
// what a crash has interrupted.
func noteRetired(tx *bbolt.Tx, events []turn.Event) error {
	for _, e := range events {
		if r, ok := e.(turn.SegmentRetired); ok {
			if err := tx.Bucket(migrations.Meta).Put(migrations.RetiredKey, key(r.Segment)); err != nil {
				return err
			}
		}
	}
	return nil
}

// aging is the oldest segment of the log.
type aging struct {
	number   uint64
	first    turn.Seq
	last     turn.Seq
	wall     int64  // of its last record
	segments uint64 // there are, with the one that grows
	retired  bool   // the log says that it is gone
}

// oldest is the oldest segment, false where that is the one that grows.
func (l *Log) oldest() (a aging, sealed bool, err error) {
	err = l.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		c := segments.Cursor()
		end, _ := c.Last()
		if end == nil {
			return nil
		}
		k, _ := c.First()
		a = aging{number: number(k), segments: number(end) - number(k) + 1}
		next, _ := c.Next()
		if next == nil {
			return nil
		}
		sealed = true
		from, err := parseHeader(segments.Bucket(k).Get(headKey))
		if err != nil {
			return &CorruptError{File: l.name(), Err: fmt.Errorf("segment %d: %w", a.number, err)}
		}
		to, err := parseHeader(segments.Bucket(next).Get(headKey))
		if err != nil {
			return &CorruptError{File: l.name(), Err: fmt.Errorf("segment %d: %w", number(next), err)}
		}
		a.first, a.last = from.next(), to.next()-1
		if _, v := segments.Bucket(k).Cursor().Last(); len(v) >= recordHeader {
			a.wall = wallOf(v)
		}
		through := tx.Bucket(migrations.Meta).Get(migrations.RetiredKey)
		a.retired = through != nil && number(through) >= a.number
		return nil
	})
	return a, sealed, err
}

// retire has the segments go that are to, and archives that are too old, as far as it can.
func (t *tender) retire(ctx context.Context) error {
	r := t.log.retention.Load()
	if r == nil {
		r = &Retention{}
	}
	for ctx.Err() == nil {
		a, sealed, err := t.log.oldest()
		if err != nil {
			return err
		}
		if sealed && a.retired { // a crash came between
			if err := t.log.removeSegment(ctx, a, r.Archive != ""); err != nil {
				return err
			}
			continue
		}
		k := Kept{Segments: a.segments}
		if sealed {
			k.Oldest = time.Unix(0, a.wall).UTC()
			k.Overdue = t.log.overdue(a, r)
		}
		if k.Overdue > 0 {
			k.Waiting, err = t.retireOldest(ctx, a, r)
		}
		if err != nil {
			k.Waiting = err.Error()
		}
		t.log.kept.Store(&k)
		if err != nil || k.Overdue == 0 || k.Waiting != "" {
			return errors.Join(err, t.dropArchives(ctx, r))
		}
	}
	return ctx.Err()
}

// overdue is how many segments are to go, at least: the oldest for its age, or as many as there are too many.
func (l *Log) overdue(a aging, r *Retention) uint64 {
	var n uint64
	if l.tooOld(a, r) {
		n = 1
	}
	if most := uint64(r.Size) / uint64(l.options.SegmentSize); r.Size > 0 && a.segments > most {
		n = max(n, min(a.segments-most, a.segments-1))
	}
	return n
}

func (l *Log) tooOld(a aging, r *Retention) bool {
	return r.Age > 0 && l.options.now().Sub(time.Unix(0, a.wall)) > r.Age
}

// retireOldest has the segment a go, or says what it waits for.
func (t *tender) retireOldest(ctx context.Context, a aging, r *Retention) (waiting string, err error) {
	if a.number > t.sealed {
		return "that it is sealed is not recorded yet", nil
	}
	id, covered, err := t.covering(a)
	if err != nil {
		return "", err
	}
	if covered < coverings {
		return fmt.Sprintf("%d good snapshots cover it, and %d are to", covered, coverings), nil
	}
	limit, err := t.log.freeLimit()
	if err != nil {
		return "", err
	}
	if t.log.tooOld(a, r) {
		limit += 2 * int64(t.log.options.SegmentSize)
	}
	// Far over its size, the file is to stop growing first.
	if free := t.log.free.Load(); free > limit && t.log.overdue(a, r) <= mostOverdue {
		return fmt.Sprintf("%d bytes of pages are free, and at most %d are to be", free, limit), nil
	}
	var events []turn.Event
	if r.Archive != "" {
		archived, err := archiveSegment(ctx, t.log, r.Archive, id, a)
		if err != nil {
			return "", fmt.Errorf("archive segment %d: %w", a.number, err)
		}
		events = append(events, archived)
	}
	if err := t.record(ctx, append(events, turn.SegmentRetired{Segment: a.number})...); err != nil {
		return "", err
	}
	return "", t.log.removeSegment(ctx, a, r.Archive != "")
}

// covering is how many good snapshots there are from which the log can be read without a, and whose they are.
func (t *tender) covering(a aging) (id turn.LogID, n int, err error) {
	list, err := snapshotsIn(t.log)
	if err != nil {
		return id, 0, err
	}
	segments, err := segmentsOf(t.log)
	if err != nil {
		return id, 0, err
	}
	begins := map[turn.Seq]bool{}
	for _, s := range segments {
		begins[s.begin.next()] = true
	}
	whole := map[turn.Seq]turn.LogID{}
	for i := len(list) - 1; i >= 0 && n < coverings && list[i].At >= a.last; i-- {
		at := list[i].At
		of, known := t.whole[at]
		if !known {
			s, err := loadSnapshot(t.log, at)
			if err != nil { // a damaged one covers nothing
				continue
			}
			of = s.Log()
		}
		whole[at] = of
		if begins[at+1] {
			id = of
			n++
		}
	}
	t.whole = whole
	return id, n, nil
}

// removeSegment removes the bucket of a, whose end is recorded, in one transaction, which takes a few milliseconds for
// 4096 pages. What costs more is that the list of free pages, which each commit writes, is longer then: 16,000 of
// them cost a commit about half a millisecond, 32,000 two to three. So the next one goes when it is short again.
// The key of one that is archived nowhere goes with it: then what its free pages still hold is unreadable too.
func (l *Log) removeSegment(ctx context.Context, a aging, archived bool) error {
	if !archived {
		if err := errors.Join(l.dropSealed([]uint64{a.number}), l.keys.erase(a.number)); err != nil {
			return fmt.Errorf("retire segment %d: %w", a.number, err)
		}
	}
	if err := l.warm(ctx, a); err != nil {
		return fmt.Errorf("retire segment %d: %w", a.number, err)
	}
	err := l.update(func(tx *bbolt.Tx) error { return tx.Bucket(migrations.Segments).DeleteBucket(key(a.number)) })
	if err != nil {
		return fmt.Errorf("retire segment %d: %w", a.number, err)
	}
	return nil
}

// warm touches the pages of a, so that the transaction that frees them, which looks at each, does not wait for the
// disk.
func (l *Log) warm(ctx context.Context, a aging) error {
	for from := key(0); from != nil && ctx.Err() == nil; {
		err := l.view(func(tx *bbolt.Tx) error {
			b := tx.Bucket(migrations.Segments).Bucket(key(a.number))
			if b == nil {
				from = nil
				return nil
			}
			end := time.Now().Add(chunkTime)
			c, n := b.Cursor(), 0
			for k, v := c.Seek(from); k != nil; k, v = c.Next() {
				if n++; len(v) > 0 && n&63 == 0 && time.Now().After(end) {
					from = bytes.Clone(k)
					return nil
				}
			}
			from = nil
			return nil
		})
		if err != nil {
			return err
		}
	}
	return ctx.Err()
}

// freeLimit is how many bytes of pages may be free when a segment goes for the size of the log: then they are used up
// before the next does. What a snapshot takes is free and used in turns. A segment that goes for its age waits less.
func (l *Log) freeLimit() (int64, error) {
	list, err := snapshotsIn(l)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return l.options.mostFree + 2*int64(list[len(list)-1].Size), nil
}
