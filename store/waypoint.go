package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"math"
	"slices"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// snapshotShare is how many bytes of segments there are for one of the snapshots that are kept as waypoints, as long as
// their segments are in the log.
const snapshotShare = 4

// Bound says how much of a log a state is the fold of: all records before the first that it does not hold.
type Bound struct {
	Seq  turn.Seq // records that end at or before it
	Wall int64    // records of then or before, ns since the Unix epoch
}

// Everything is the Bound of a whole log.
func Everything() Bound { return Bound{Seq: math.MaxUint64, Wall: math.MaxInt64} }

// Through is the Bound of the records that end at or before seq.
func Through(seq turn.Seq) Bound { return Bound{Seq: seq, Wall: math.MaxInt64} }

// AsOf is the Bound of the records before the first that is of after t.
func AsOf(t time.Time) Bound { return Bound{Seq: math.MaxUint64, Wall: t.UnixNano()} }

// Holds says whether r is within b.
func (b Bound) Holds(r turn.Record) bool { return r.Last() <= b.Seq && r.Moment.Wall <= b.Wall }

// HoldsRaw is Holds for a record in its stored form.
func (b Bound) HoldsRaw(raw []byte) bool {
	last, err := RawLast(raw)
	return err == nil && last <= b.Seq && int64(binary.BigEndian.Uint64(raw[41:])) <= b.Wall
}

// RawLast is the last sequence of a record in its stored form, of which no more is checked than its length.
func RawLast(raw []byte) (turn.Seq, error) {
	if len(raw) < recordHeader {
		return 0, &CorruptError{Err: fmt.Errorf("a record of %d bytes", len(raw))}
	}
	return lastOf(raw[5:13], raw), nil
}

func (b Bound) covers(p Snapshot) bool { return p.At <= b.Seq && p.Latest <= b.Wall }

// Encoded is a snapshot in its stored form (see [DecodeState]).
type Encoded struct {
	Snapshot
	Body   []byte
	Passed []error // what is wrong with later ones
}

// SnapshotWithin is the newest good snapshot of which all records are within b. Its At is 0 where there is none.
func (l *Log) SnapshotWithin(b Bound) (Encoded, error) {
	return snapshotWithin(l, b, func(e Encoded) error {
		_, err := openSnapshot(l.keys, e.At, e.Body)
		return err
	})
}

// snapshotWithin takes the newest snapshot that good, unless it is nil, does not refuse.
func snapshotWithin(s source, b Bound, good func(Encoded) error) (e Encoded, err error) {
	list, err := snapshotsIn(s)
	if err != nil {
		return e, err
	}
	for _, p := range slices.Backward(list) {
		if !b.covers(p) {
			continue
		}
		e.Snapshot, e.Body, err = readSnapshot(s, p.At)
		if err == nil && good != nil {
			err = good(e)
		}
		if err == nil {
			return e, nil
		}
		if errors.Is(err, ErrInUse) || errors.Is(err, ErrUnavailable) {
			return e, err
		}
		e.Passed = append(e.Passed, err)
	}
	return Encoded{Passed: e.Passed}, nil
}

// State is the state in e, the empty one where At is 0. One that is sealed takes keys, which may be nil.
func (e Encoded) State(keys *Keyring) (*turn.State, error) {
	if e.At == 0 {
		return turn.NewState(), nil
	}
	body, err := openSnapshot(keys, e.At, e.Body)
	if err != nil {
		return nil, err
	}
	s, err := DecodeState(body)
	if err != nil {
		return nil, fmt.Errorf("snapshot %d: %w", e.At, err)
	}
	if s.Seq() != e.At {
		return nil, fmt.Errorf("snapshot %d holds the state at %d", e.At, s.Seq())
	}
	return s, nil
}

// StateWithin is the fold of all records within b, and the record that follows, nil at the end of the log. It goes on
// from the newest snapshot it can; what is wrong with those it had to pass over it tells warn. Where the log
// has neither a snapshot nor its beginning the error is [ErrRetired].
func (r *Reader) StateWithin(b Bound, warn func(error)) (*turn.State, *turn.Record, error) {
	state := turn.NewState()
	e, err := snapshotWithin(r, b, func(e Encoded) (err error) {
		state, err = e.State(r.keys)
		return err
	})
	if err != nil {
		return nil, nil, err
	}
	for _, err := range e.Passed {
		warn(err)
	}
	if e.At == 0 {
		state = turn.NewState()
	}
	next, err := FoldWithin(state, r.Records(state.Seq()+1), b)
	return state, next, inFile(r.file, err)
}

// FoldWithin folds those of records that are within b, which follow s, into s, and yields the one after them, nil where
// records end before.
func FoldWithin(s *turn.State, records iter.Seq2[turn.Record, error], b Bound) (next *turn.Record, err error) {
	for r, err := range records {
		if err != nil {
			return nil, err
		}
		if !b.Holds(r) {
			return &r, nil
		}
		if err := s.Fold(r); err != nil {
			return nil, &CorruptError{Seq: r.First, Err: err}
		}
	}
	return nil, nil
}

// surplus are those of list, the snapshots of a log with these segments of size bytes, that are to go. What stays are
// the newest, the one the log begins with, and from there on one for each segment, from which any moment is soon
// folded; where so many are alive that a snapshot is no small part of a segment, one for so many segments that it is.
func surplus(list []Snapshot, segments []begun, size int) (out []turn.Seq) {
	numbers := map[turn.Seq]uint64{}
	for _, s := range segments {
		numbers[s.begin.next()] = s.number
	}
	var kept uint64 // number of the segment that follows the last one
	for i, p := range list {
		number, known := numbers[p.At+1]
		if known && (kept == 0 || int(number-kept)*size >= p.Size*snapshotShare) {
			kept = number
			continue
		}
		if i < len(list)-keepSnapshots {
			out = append(out, p.At)
		}
	}
	return out
}

// dropSnapshots removes what is surplus, and what was never finished, one a transaction.
func (l *Log) dropSnapshots() error {
	list, err := snapshotsIn(l)
	if err != nil || len(list) == 0 {
		return err
	}
	segments, err := segmentsOf(l)
	if err != nil {
		return err
	}
	out := surplus(list, segments, l.options.SegmentSize)
	err = l.view(func(tx *bbolt.Tx) error {
		snapshots := tx.Bucket(migrations.Snapshots)
		return snapshots.ForEachBucket(func(k []byte) error {
			if _, ok := parseHead(0, snapshots.Bucket(k).Get(headKey)); !ok && seqOf(k) < list[len(list)-1].At {
				out = append(out, seqOf(k))
			}
			return nil
		})
	})
	for _, at := range out {
		if err == nil {
			err = l.update(func(tx *bbolt.Tx) error { return tx.Bucket(migrations.Snapshots).DeleteBucket(key(uint64(at))) })
		}
	}
	return err
}

// Span is the sequences of the first and the last event there are, in archives too; 0 for none.
func (l *Log) Span() (first, last turn.Seq, err error) { return spanOf(l) }

// Span is the sequences of the first and the last event there are, in archives too; 0 for none.
func (r *Reader) Span() (first, last turn.Seq, err error) { return spanOf(r) }

func spanOf(s source) (first, last turn.Seq, err error) {
	list, err := segmentsOf(s)
	if err != nil || len(list) == 0 {
		return 0, 0, err
	}
	err = s.view(func(tx *bbolt.Tx) error {
		b := tx.Bucket(migrations.Segments).Bucket(key(list[len(list)-1].number))
		if b == nil {
			return fmt.Errorf("read the last segment: %w", ErrRetired)
		}
		if k, v := b.Cursor().Last(); len(k) == 8 {
			last = lastOf(k, v)
		}
		return nil
	})
	if err != nil {
		return 0, 0, err
	}
	first, err = Oldest(s)
	return first, last, err
}
