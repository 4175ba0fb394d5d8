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
	segments, err := l.segments()
	if err != nil {
		return nil, err
	}
	state, err := l.newestSnapshot(segments)
	if err != nil || len(segments) == 0 {
		l.chain, l.segment, l.renew = chain{}, segment{page: l.db.Info().PageSize}, false
		return state, err
	}
	f := following{next: state.Seq() + 1, last: segment{number: segments[len(segments)-1].number, page: l.db.Info().PageSize}}
	for _, s := range segments {
		if s.begin.next() == f.next {
			f.chain = chain{last: s.begin.last}
		}
		f.begin, f.last.first = s.begin, s.begin.next()
	}
	f.last.open = []int{f.begin.headerSize() + itemCost}
	if err := foldInto(state, decoded(f.checked(Raw(fileOf{l}, f.next)), l.keys)); err != nil {
		return nil, inFile(l.name(), err)
	}
	if f.chain.next() != state.Seq()+1 {
		return nil, &CorruptError{File: l.name(), Seq: state.Seq(), Err: errors.New("the last segment is empty")}
	}
	l.chain, l.segment = f.chain, f.last
	return state, l.continueSegment(f.forms)
}

// following checks records against what comes before them.
type following struct {
	chain chain
	next  turn.Seq
	last  segment // the one to append to
	forms form    // of the events in it
	begin chain   // where the log stood before it
}

// checked passes the records of raw on that follow one another.
func (f *following) checked(raw iter.Seq2[[]byte, error]) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for b, err := range raw {
			if err == nil {
				err = f.take(b)
			}
			if !yield(b, err) || err != nil {
				return
			}
		}
	}
}

func (f *following) take(b []byte) error {
	v, err := parseEnvelope(b)
	if err != nil {
		return err
	}
	if v.first == f.last.first {
		f.chain.tree, f.last.wall = f.begin.tree.clone(), v.moment.Wall
	}
	if err := f.chain.link(&v, b, f.next); err != nil {
		return err
	}
	f.next = v.last() + 1
	if v.first < f.last.first {
		return nil
	}
	f.last.grow(len(b))
	for _, e := range v.events {
		f.forms |= formOf(e)
	}
	return f.chain.grow(&v)
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

// begun is a segment and where the log stood before it.
type begun struct {
	number uint64
	begin  chain
}

// segments lists the segments there are, none of which may be missing between two others.
func (l *Log) segments() (list []begun, err error) { return segmentsOf(fileOf{l}) }

func segmentsOf(s source) (list []begun, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		if segments == nil {
			return &CorruptError{File: s.name(), Err: errors.New("there are no segments")}
		}
		c := segments.Cursor()
		for k, v := c.First(); k != nil; k, v = c.Next() {
			one := begun{number: number(k)}
			if v != nil || len(k) != 8 {
				return &CorruptError{File: s.name(), Err: fmt.Errorf("%x is no segment", k)}
			}
			if one.begin, err = parseHeader(segments.Bucket(k).Get(headKey)); err != nil {
				return &CorruptError{File: s.name(), Err: fmt.Errorf("segment %d: %w", one.number, err)}
			}
			if n := len(list); n > 0 && (one.number != list[n-1].number+1 || one.begin.next() <= list[n-1].begin.next()) {
				return &CorruptError{File: s.name(), Err: fmt.Errorf("segment %d does not follow %d", one.number, list[n-1].number)}
			}
			list = append(list, one)
		}
		return nil
	})
	return list, err
}

// firstSegment is the first segment in the file of s, false where there is none.
func firstSegment(s source) (one begun, ok bool, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		if segments == nil {
			return &CorruptError{File: s.name(), Err: errors.New("there are no segments")}
		}
		k, v := segments.Cursor().First()
		if k == nil {
			return nil
		}
		if v != nil || len(k) != 8 {
			return &CorruptError{File: s.name(), Err: fmt.Errorf("%x is no segment", k)}
		}
		one.number, ok = number(k), true
		if one.begin, err = parseHeader(segments.Bucket(k).Get(headKey)); err != nil {
			return &CorruptError{File: s.name(), Err: fmt.Errorf("segment %d: %w", one.number, err)}
		}
		return nil
	})
	return one, ok, err
}
