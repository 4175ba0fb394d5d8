package store

import (
	"errors"
	"fmt"
	"iter"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// replay folds the log from its newest good snapshot on, and sets l up to append to it. The
// chain is checked along the whole way, the tree in the last segment.
func (l *Log) replay() (*turn.State, error) {
	state, err := l.newestSnapshot()
	if err != nil {
		return nil, err
	}
	last, header, err := l.lastSegment()
	if err != nil || last.number == 0 {
		l.chain, l.segment = chain{}, segment{}
		return state, err
	}
	if state.Seq()+1 > last.first {
		return nil, &CorruptError{File: l.name(), Err: fmt.Errorf("a snapshot at %d is newer than the sealed segments", state.Seq())}
	}
	c, err := chainAt(l, state.Seq()+1)
	if err != nil {
		return nil, err
	}
	checked := func(yield func([]byte, error) bool) {
		next := state.Seq() + 1
		for raw, err := range Raw(fileOf{l}, next) {
			if err != nil {
				yield(nil, err)
				return
			}
			v, err := parseEnvelope(raw)
			if err == nil && v.first == last.first {
				c.tree = header.tree.clone()
			}
			if err == nil {
				err = c.link(&v, raw, next)
			}
			if err == nil && v.first >= last.first {
				err = c.grow(&v)
				last.size += pagesOf(len(raw))
			}
			if !yield(raw, inFile(l.name(), err)) || err != nil {
				return
			}
			next = v.last() + 1
		}
	}
	if err := foldInto(state, decoded(checked)); err != nil {
		return nil, inFile(l.name(), err)
	}
	if c.next() != state.Seq()+1 {
		return nil, &CorruptError{File: l.name(), Seq: state.Seq(), Err: errors.New("the last segment is empty")}
	}
	l.chain, l.segment = c, last
	return state, nil
}

// foldInto folds records into s. What does not fold is damage.
func foldInto(s *turn.State, records iter.Seq2[turn.Record, error]) error {
	for r, err := range records {
		if err != nil {
			return err
		}
		if err := s.Fold(r); err != nil {
			return &CorruptError{Seq: r.First, Err: err}
		}
	}
	return nil
}

// fileOf reads l's file while l.life is held by the caller.
type fileOf struct{ *Log }

func (f fileOf) view(fn func(*bbolt.Tx) error) error {
	return guard(f.name(), func() error { return f.db.View(fn) })
}

// lastSegment is the one to append to, number 0 where there is none, and where chain and tree stood before it.
func (l *Log) lastSegment() (last segment, header chain, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		k, _ := segments.Cursor().Last()
		if k == nil {
			return nil
		}
		last.number = number(k)
		if header, err = parseHeader(segments.Bucket(k).Get(headKey)); err != nil {
			return &CorruptError{File: l.name(), Err: fmt.Errorf("segment %d: %w", last.number, err)}
		}
		last.first = header.next()
		return nil
	})
	return last, header, err
}

// chainAt is where the chain stood before the segment that begins at first.
// Snapshots end where segments end, so there is one.
func chainAt(l *Log, first turn.Seq) (c chain, err error) {
	err = l.db.View(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		p := position{seq: first}
		if !p.find(segments) {
			return nil
		}
		if c, err = parseHeader(segments.Bucket(p.segment).Get(headKey)); err != nil {
			return &CorruptError{File: l.name(), Err: fmt.Errorf("segment %d: %w", number(p.segment), err)}
		}
		if c.next() != first {
			return &CorruptError{File: l.name(), Err: fmt.Errorf("no segment begins at %d, where the snapshot ends", first)}
		}
		return nil
	})
	return c, err
}
