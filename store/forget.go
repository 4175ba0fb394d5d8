package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// To forget a segment is to erase its key. The file of the key is first given another name, by which nobody reads it; then
// an event says so, what else is under the key is removed, and the file is overwritten and removed. A crash at any
// point leaves a file of that name, and the next run goes on with it.

// erasing is the end of the name of a key that is being erased.
const erasing = ".erase"

// Forgettable is a segment that is to be forgotten.
type Forgettable struct {
	Segment     uint64
	First, Last turn.Seq
	From, To    time.Time // of its first and last record
	Refused     string    // why it is not to be; empty: its key is, or will be, erased
}

// Which names segments: the one of that number, or where it is zero all that end before a moment.
type Which struct {
	Segment uint64
	Before  time.Time
}

// Plan lists the segments that which names, in the log and its archives, and says of each that is not to be forgotten why: of
// a moment those that reach beyond it too, as far as they begin before it. Plain segments, and those that are forgotten, are
// only listed where they are asked for by number.
func (l *Log) Plan(which Which) ([]Forgettable, error) {
	out, err := l.planArchived(which)
	if err != nil {
		return nil, err
	}
	segments, err := segmentsOf(l)
	if err != nil {
		return nil, err
	}
	covered := sync.OnceValues(l.covered)
	for i, s := range segments {
		if which.Segment != 0 && s.number != which.Segment {
			continue
		}
		f, forms, err := l.describe(s)
		if err != nil {
			return nil, err
		}
		if which.Segment == 0 && !f.From.Before(which.Before) {
			break
		}
		there, err := l.keys.Has(s.number)
		if err != nil {
			return nil, err
		}
		plain := forms&formPlain != 0
		switch sealed := i+1 < len(segments); {
		case which.Segment == 0 && (plain || !there):
			continue
		case plain:
			f.Refused = "it is not encrypted"
		case !there:
			f.Refused = "it has no key: it was forgotten, or its events are about no client"
		case !sealed:
			f.Refused = "it is not sealed: records are still added to it"
		case which.Segment == 0 && !f.To.Before(which.Before):
			f.Refused = "it has events from " + which.Before.UTC().Format(time.RFC3339) + " on too"
		default:
			through, err := covered()
			if err != nil {
				return nil, err
			}
			if f.Last > through {
				f.Refused = "no snapshot covers it yet: the state could not be had from the log without it"
			}
		}
		out = append(out, f)
	}
	if which.Segment != 0 && len(out) == 0 {
		return nil, fmt.Errorf("there is no segment %d in the log, and no key of it", which.Segment)
	}
	return out, nil
}

// planArchived is Plan of the segments that have left the log. One whose archive is elsewhere is only found by its number.
func (l *Log) planArchived(which Which) (out []Forgettable, err error) {
	first, ok, err := firstSegment(l)
	if err != nil || !ok {
		return nil, err
	}
	old, err := archivedBefore(l, 0)
	if err != nil {
		return nil, err
	}
	for _, h := range old {
		f := Forgettable{Segment: h.Segment, First: h.First, Last: h.Last, To: time.Unix(0, h.Wall)}
		f.From = f.To
		there, err := l.keys.Has(h.Segment)
		if err != nil {
			return nil, err
		}
		if there && (which.Segment == h.Segment || which.Segment == 0 && f.To.Before(which.Before)) {
			out = append(out, f)
		}
	}
	if len(out) > 0 || which.Segment == 0 || which.Segment >= first.number {
		return out, nil
	}
	there, err := l.keys.Has(which.Segment)
	if there {
		out = append(out, Forgettable{Segment: which.Segment})
	}
	return out, err
}

// covered is the sequence up to which a snapshot that can be read covers the log.
func (l *Log) covered() (turn.Seq, error) {
	list, err := snapshotsIn(l)
	if err != nil {
		return 0, err
	}
	for _, p := range slices.Backward(list) {
		if _, err := loadSnapshot(l, p.At); err == nil {
			return p.At, nil
		}
	}
	return 0, nil
}

// describe looks at a segment, at no more of it than shows whether it is plain.
func (l *Log) describe(s begun) (f Forgettable, forms form, err error) {
	f = Forgettable{Segment: s.number, First: s.begin.next()}
	err = l.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(migrations.Segments).Bucket(key(s.number))
		if b == nil {
			return fmt.Errorf("segment %d: %w", s.number, ErrRetired)
		}
		c := b.Cursor()
		k, v := c.Last()
		last, err := parseEnvelope(v)
		if err != nil {
			return inFile(l.name(), err)
		}
		f.Last, f.To = lastOf(k, v), last.moment.WallTime()
		end := time.Now().Add(chunkTime)
		for k, v = c.Seek(key(0)); k != nil && forms&(formPlain|formSealed) == 0 && time.Now().Before(end); k, v = c.Next() {
			if err := forms.see(v); err != nil {
				return inFile(l.name(), err)
			}
			if seqOf(k) == f.First {
				f.From = time.Unix(0, int64(binary.BigEndian.Uint64(v[41:])))
			}
		}
		return nil
	})
	return f, forms, err
}

// Forget erases the keys of the segments that which names, as far as that may be: see [Log.Plan], whose list it yields. What it
// did is recorded, and by whom. Nobody can read those segments any more, nor the snapshots and the blocks of
// projections that are under the same keys; that all is what was written can still be verified.
func (l *Log) Forget(ctx context.Context, which Which, by string, record func(context.Context, ...turn.Event) error) ([]Forgettable, error) {
	l.forgetting.Lock()
	defer l.forgetting.Unlock()
	list, err := l.Plan(which)
	if err != nil {
		return nil, err
	}
	var events []turn.Event
	var segments []uint64
	for _, f := range list {
		if f.Refused == "" {
			segments = append(segments, f.Segment)
			events = append(events, turn.SegmentForgotten{Segment: f.Segment, First: f.First, Last: f.Last, By: by})
		}
	}
	if len(segments) == 0 {
		return list, nil
	}
	for _, n := range segments {
		if err := l.keys.putAside(n); err != nil {
			return nil, err
		}
	}
	if err := syncDir(l.keys.dir); err != nil {
		return nil, err
	}
	return list, l.finishForgetting(ctx, segments, events, record)
}

// finishForgetting does what is left of forgetting segments whose keys are aside.
func (l *Log) finishForgetting(ctx context.Context, segments []uint64, events []turn.Event, record func(context.Context, ...turn.Event) error) error {
	if err := record(ctx, events...); err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	if err := l.dropSealed(segments); err != nil {
		return err
	}
	for _, n := range segments {
		if err := l.keys.erase(n); err != nil {
			return err
		}
	}
	return nil
}

// resumeForgetting goes on where a run before this one ended while it forgot segments.
func (l *Log) resumeForgetting(ctx context.Context, record func(context.Context, ...turn.Event) error) error {
	l.forgetting.Lock()
	defer l.forgetting.Unlock()
	segments, err := l.keys.aside()
	if err != nil || len(segments) == 0 {
		return err
	}
	there, err := historyOf(l)
	if err != nil {
		return err
	}
	var events []turn.Event
	for _, n := range segments {
		e := turn.SegmentForgotten{Segment: n, By: "a run that ended before it was done"}
		for i, s := range there {
			if s.number == n {
				e.First = s.begin.next()
			}
			if s.number == n && i+1 < len(there) {
				e.Last = there[i+1].begin.next() - 1
			}
		}
		events = append(events, e)
	}
	return l.finishForgetting(ctx, segments, events, record)
}

// dropSealed removes the snapshots that are under keys of these segments.
func (l *Log) dropSealed(segments []uint64) error {
	list, err := snapshotsIn(l)
	if err != nil {
		return err
	}
	for _, p := range list {
		err := l.update(func(tx *bbolt.Tx) error {
			snapshots := tx.Bucket(migrations.Snapshots)
			b := snapshots.Bucket(key(uint64(p.At)))
			if b == nil {
				return nil
			}
			if by, sealed := SealedBy(b.Get(key(1))); !sealed || !slices.Contains(segments, by) {
				return nil
			}
			return snapshots.DeleteBucket(key(uint64(p.At)))
		})
		if err != nil {
			return fmt.Errorf("forget: remove snapshot %d: %w", p.At, err)
		}
	}
	return nil
}

// forgetOld forgets the segments that end before now less the age that is configured.
func (l *Log) forgetOld(ctx context.Context, now time.Time, record func(context.Context, ...turn.Event) error) error {
	if l.options.ForgetAge <= 0 {
		return nil
	}
	_, err := l.Forget(ctx, Which{Before: now.Add(-l.options.ForgetAge)}, "log.forget-age", record)
	return err
}

// segmentAge is after how long a segment takes no more records, 0 for any time: what is to be forgotten by
// time is to be sealed in time.
func (l *Log) segmentAge() time.Duration {
	const day = 24 * time.Hour
	switch {
	case !l.options.Encrypt:
		return 0
	case l.options.ForgetAge > 0:
		return min(day, l.options.ForgetAge/8)
	}
	return day
}

// closeOld has the next record begin a segment where the last one is old, and records that, so that there is a next record.
func (l *Log) closeOld(ctx context.Context, now time.Time, record func(context.Context, ...turn.Event) error) error {
	age := l.segmentAge()
	if age == 0 {
		return nil
	}
	number, over := l.close(now.Add(-age))
	if !over {
		return nil
	}
	return record(ctx, turn.SegmentClosed{Segment: number})
}

// close has the next record begin a segment if the last one was begun before a moment, and has something to forget.
func (l *Log) close(before time.Time) (uint64, bool) {
	l.life.RLock()
	defer l.life.RUnlock()
	l.write.Lock()
	defer l.write.Unlock()
	over := l.segment.sealed && time.Unix(0, l.segment.wall).Before(before)
	l.renew = l.renew || over
	return l.segment.number, over
}

func (k *Keyring) file(segment uint64) string {
	return filepath.Join(k.dir, strconv.FormatUint(segment, 10))
}

// putAside keeps the key of a segment from being read. It is not durable yet.
func (k *Keyring) putAside(segment uint64) error {
	err := os.Rename(k.file(segment), k.file(segment)+erasing)
	k.drop(segment)
	if err != nil {
		return fmt.Errorf("forget: %w", err)
	}
	return nil
}

// aside lists the segments whose keys are put aside.
func (k *Keyring) aside() (segments []uint64, err error) {
	entries, err := os.ReadDir(k.dir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("look for keys to erase: %w", err)
	}
	for _, e := range entries {
		digits, found := strings.CutSuffix(e.Name(), erasing)
		if n, err := strconv.ParseUint(digits, 10, 64); found && err == nil {
			segments = append(segments, n)
		}
	}
	slices.Sort(segments)
	return segments, nil
}

// erase overwrites and removes the key of a segment, put aside or not. That there is none is no error.
func (k *Keyring) erase(segment uint64) error {
	k.drop(segment)
	for _, file := range []string{k.file(segment), k.file(segment) + erasing} {
		if err := eraseFile(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("erase key of segment %d: %w", segment, err)
		}
	}
	err := syncDir(k.dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

// eraseFile overwrites a file where it lies, and removes it.
func eraseFile(file string) error {
	f, err := os.OpenFile(file, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.Write(bytes.Repeat([]byte{0xff}, keySize))
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Remove(file)
}
