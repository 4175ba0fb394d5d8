package store

import (
	"cmp"
	"crypto/sha256"
	"errors"
	"math"
	"slices"

	"turnstone/turn"
)

// heldSnapshot is a snapshot in the file, whose own digest holds.
type heldSnapshot struct {
	Snapshot
	readable bool // the key it takes is there, if it takes one
	body     Hash // of the encoding of its state
}

// heldSnapshots are those of list, in order. What is wrong with one is a finding, an error is of read.
func heldSnapshots(x *Examination, list []Snapshot, keys *Keyring, read func(turn.Seq) (Encoded, error)) (held []heldSnapshot, err error) {
	for _, p := range list {
		e, err := read(p.At)
		if err != nil {
			return nil, err
		}
		if wrong := errors.Join(e.Passed...); wrong != nil {
			x.find(Finding{What: "snapshot", Seq: p.At, Offset: -1, Err: &CorruptError{Seq: p.At, Err: wrong}})
			continue
		}
		if e.At != p.At { // it is gone by now
			continue
		}
		body, err := openSnapshot(keys, p.At, e.Body)
		if err != nil && withoutKey(err) == nil {
			x.find(Finding{What: "snapshot", Seq: p.At, Offset: -1, Err: &CorruptError{Seq: p.At, Err: err}})
			continue
		}
		held = append(held, heldSnapshot{Snapshot: p, readable: err == nil, body: sha256.Sum256(body)})
	}
	return held, nil
}

// snapshot is the snapshot at. Of one that is damaged Passed says so.
func (r *Reader) snapshot(at turn.Seq) (e Encoded, err error) {
	e.Snapshot, e.Body, err = readSnapshot(r, at)
	if err != nil && !errors.Is(err, ErrInUse) {
		return Encoded{Passed: []error{err}}, nil
	}
	return e, err
}

// folder folds the records that an examiner passes on, and holds the snapshots, and what was recorded of them, against that. Behind
// what takes a key that is missing, or is damaged, it goes on at the next snapshot that can be read.
type folder struct {
	x        Examination // its part of it
	held     []heldSnapshot
	load     func(turn.Seq) (*turn.State, error)
	state    *turn.State // nil: not known here
	latest   int64
	unread   bool       // events were passed over since the state was known
	rolled   []rollback // that the log tells of
	sealed   map[turn.Seq]turn.SegmentSealed
	segments []begun
}

// rollback is a RollbackFound.
type rollback struct {
	turn.RollbackFound
	seq turn.Seq
}

func newFolder(first turn.Seq, segments []begun, held []heldSnapshot, load func(turn.Seq) (*turn.State, error)) *folder {
	f := &folder{held: held, load: load, latest: math.MinInt64, segments: segments, sealed: map[turn.Seq]turn.SegmentSealed{}}
	if first == 1 {
		f.state = turn.NewState()
	}
	return f
}

func (f *folder) find(what string, seq turn.Seq, err error) {
	f.x.find(Finding{What: what, Segment: segmentAt(f.segments, seq), Seq: seq, Offset: -1, Err: &CorruptError{Seq: seq, Err: err}})
}

// take folds one record.
func (f *folder) take(h *hashed) {
	if f.state != nil && f.state.Seq()+1 != h.first {
		f.state = nil
	}
	if f.state == nil {
		f.begin(h.first)
	}
	if h.unread != nil {
		f.pass(h)
		if withoutKey(h.unread) == nil {
			f.x.find(Finding{What: "event", Segment: segmentAt(f.segments, h.first), Seq: h.first, Offset: -1, Err: h.unread})
		}
		return
	}
	for i, e := range h.record.Events {
		switch e := e.(type) {
		case turn.RollbackFound:
			f.rolled = append(f.rolled, rollback{e, h.first + turn.Seq(i)})
		case turn.SegmentSealed:
			f.sealed[h.first+turn.Seq(i)] = e
		case turn.SnapshotTaken:
			if n, there := findHeld(f.held, e.At); there && f.held[n].Digest != e.Digest {
				f.find("snapshot", e.At, errors.New("the snapshot is not the one that was recorded"))
			}
		}
	}
	if f.state == nil {
		f.pass(h)
		return
	}
	f.latest = max(f.latest, h.moment.Wall)
	if err := f.state.Fold(h.record); err != nil {
		f.find("event", h.first, err)
		f.pass(h)
		return
	}
	if n, there := findHeld(f.held, f.state.Seq()); there && f.held[n].readable {
		f.compare(&f.held[n])
	}
}

// begin goes on from the snapshot that ends before first, where there is one.
func (f *folder) begin(first turn.Seq) {
	n, there := findHeld(f.held, first-1)
	if !there || !f.held[n].readable {
		return
	}
	s, err := f.load(first - 1)
	if err != nil {
		f.find("snapshot", first-1, err)
	} else {
		f.state, f.latest = s, f.held[n].Latest
		if f.unread {
			f.unread, f.x.ReadFrom = false, first
		}
	}
}

// pass leaves h out.
func (f *folder) pass(h *hashed) {
	f.state, f.unread = nil, true
	f.x.Unread += uint64(len(h.leaves))
}

// compare holds the state against h, which is said to be the same.
func (f *folder) compare(h *heldSnapshot) {
	body, err := EncodeState(f.state)
	switch {
	case err != nil:
		f.find("snapshot", h.At, err)
	case sha256.Sum256(body) != h.body:
		f.find("snapshot", h.At, errors.New("the snapshot is not the fold of the records before it"))
	case h.Latest != f.latest:
		f.find("snapshot", h.At, errors.New("the snapshot does not say which of its records is the latest"))
	}
}

func findHeld(held []heldSnapshot, at turn.Seq) (int, bool) {
	return slices.BinarySearchFunc(held, at, func(h heldSnapshot, at turn.Seq) int { return cmp.Compare(h.At, at) })
}
