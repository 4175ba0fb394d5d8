package audit

import (
	"iter"

	"turnstone/store"
	"turnstone/turn"
)

// Live is the log of a running daemon.
func Live(l *store.Log) Source { return live{l} }

// File is a log that no daemon has open.
func File(r *store.Reader) Source { return file{r} }

type live struct{ log *store.Log }

func (l live) Records(from turn.Seq) iter.Seq2[turn.Record, error] { return l.log.Records(from) }

func (l live) ChainAt(seq turn.Seq) ([32]byte, bool, error) { return l.log.ChainAt(seq) }

func (l live) Segments(archived bool) ([]store.SegmentStart, error) {
	return l.log.Segments(archived)
}

func (l live) Head() (turn.Seq, error) {
	last, _ := l.log.Head()
	return last, nil
}

func (l live) Before(seq turn.Seq) (*turn.State, error) {
	e, err := l.log.SnapshotWithin(store.Through(seq - 1))
	if err != nil || e.At != seq-1 {
		return nil, err
	}
	return e.State(l.log.Keys())
}

type file struct{ reader *store.Reader }

func (f file) Records(from turn.Seq) iter.Seq2[turn.Record, error] { return f.reader.Records(from) }

func (f file) ChainAt(seq turn.Seq) ([32]byte, bool, error) { return f.reader.ChainAt(seq) }

func (f file) Segments(archived bool) ([]store.SegmentStart, error) {
	return f.reader.Segments(archived)
}

func (f file) Head() (turn.Seq, error) {
	last, _, err := f.reader.Head()
	return last, err
}

func (f file) Before(seq turn.Seq) (*turn.State, error) {
	e, err := f.reader.SnapshotWithin(store.Through(seq - 1))
	if err != nil || e.At != seq-1 {
		return nil, err
	}
	return e.State(f.reader.Keys())
}
