package slice

import (
	"bytes"
	"errors"
	"fmt"
	"iter"

	"turnstone/store"
	"turnstone/turn"
)

// Report is what was found in a slice.
type Report struct {
	Taken   turn.SliceTaken
	Events  int  // of the source
	Proved  int  // of them
	Moments int  // that stand for events which were left out, and are proved by nothing
	Signed  bool // the root is that of a checkpoint that a key given signed
}

// ErrNoSlice says that a log is none.
var ErrNoSlice = errors.New("the log is no slice of another")

// Verify holds the events of a slice against the proofs it carries, and these, where there is one, against its
// checkpoint, which one of keys must have signed, unless there are none. The error is ErrNoSlice for another log.
func Verify(records iter.Seq2[turn.Record, error], keys ...string) (Report, error) {
	var v verifier
	for r, err := range records {
		if err == nil {
			err = v.record(r)
		}
		if err != nil {
			return v.Report, err
		}
	}
	if !v.begun {
		return v.Report, ErrNoSlice
	}
	return v.Report, v.checkpoint(keys)
}

type verifier struct {
	Report
	begun bool
	last  turn.Seq // of the source
}

func (v *verifier) record(r turn.Record) error {
	var before turn.Event
	for i, e := range r.Events {
		seq := r.First + turn.Seq(i)
		switch e := e.(type) {
		case turn.EpochBegan:
		case turn.SliceTaken:
			if v.begun {
				return &store.CorruptError{Seq: seq, Err: errors.New("a slice within a slice")}
			}
			v.begun, v.Taken = true, e
		case turn.OriginNoted:
			if err := v.origin(r.Moment, before, e); err != nil {
				return &store.CorruptError{Seq: seq, Err: err}
			}
			before = nil
			continue
		default:
			if !v.begun {
				return ErrNoSlice
			}
			if before != nil {
				return &store.CorruptError{Seq: seq - 1, Err: errors.New("an event without its origin")}
			}
			before = e
			continue
		}
		before = nil
	}
	if before != nil {
		return &store.CorruptError{Seq: r.Last(), Err: errors.New("an event without its origin")}
	}
	if !v.begun {
		return ErrNoSlice
	}
	return nil
}

// origin checks what is said of the event before it, nil for none, which happened at m.
func (v *verifier) origin(m turn.Moment, e turn.Event, o turn.OriginNoted) error {
	if o.Seq <= v.last {
		return fmt.Errorf("event %d of the source does not follow %d", o.Seq, v.last)
	}
	v.last = o.Seq
	if e == nil {
		v.Moments++
		return nil
	}
	v.Events++
	if v.Taken.Size == 0 {
		return nil
	}
	stored, err := store.EncodeEvent(nil, e)
	if err != nil {
		return err
	}
	p := store.Proven{Seq: o.Seq, Moment: m, Stored: stored}
	if len(o.Stored) > 0 {
		p.Stored = o.Stored
		opened, err := store.DecodeDisclosed(o.Stored, o.Seq, o.Key)
		if err != nil {
			return err
		}
		if again, err := store.EncodeEvent(nil, opened); err != nil || !bytes.Equal(again, stored) {
			return fmt.Errorf("event %d of the source is another: %w", o.Seq, errors.Join(err, errors.New("what its seal holds")))
		}
	}
	for _, h := range o.Proof {
		p.Path = append(p.Path, h)
	}
	if err := p.Check(v.Taken.Size, v.Taken.Root); err != nil {
		return err
	}
	v.Proved++
	return nil
}

// checkpoint holds the root against the signed note.
func (v *verifier) checkpoint(keys []string) error {
	if len(keys) == 0 {
		return nil
	}
	if v.Taken.Checkpoint == "" {
		return errors.New("the slice carries no signed checkpoint")
	}
	c, err := store.OpenCheckpoint([]byte(v.Taken.Checkpoint), keys...)
	if err != nil {
		return err
	}
	if c.Log != v.Taken.Source || c.Size != v.Taken.Size || c.Root != v.Taken.Root {
		return errors.New("the checkpoint is not about the tree that the proofs lead to")
	}
	v.Signed = true
	return nil
}
