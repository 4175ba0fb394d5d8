package main

import (
	"context"
	"errors"
	"fmt"
	"iter"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/store"
	"turnstone/turn"
)

// logSource is a log to read: a running daemon's, or a file.
type logSource struct {
	client   *admin.Client // nil: the file
	reader   *store.Reader
	archives *store.Archives // of what the daemon's log has no more; nil for none
}

// openLog asks the daemon, if one answers and no file is named, else opens the file.
func (o *options) openLog(ctx context.Context) (*logSource, error) {
	var unreachable error
	if o.db == "" {
		client, err := o.client()
		if err != nil {
			return nil, err
		}
		if _, err = client.Status(ctx); err == nil {
			source := &logSource{client: client}
			if o.archive != "" {
				source.archives = store.OpenArchives(o.archive)
			}
			return source, nil
		}
		if !errors.Is(err, admin.ErrUnreachable) {
			return nil, err
		}
		unreachable = err
	}
	file, err := o.logFile()
	if err != nil {
		return nil, err
	}
	reader, err := store.OpenReader(file)
	if errors.Is(err, store.ErrInUse) && unreachable != nil {
		return nil, fmt.Errorf("a daemon has %s open, but %w", file, unreachable)
	}
	if errors.Is(err, store.ErrInUse) {
		return nil, fmt.Errorf("%s is open in another process: leave out --db to ask the daemon that has it, or name a copy", file)
	}
	if err != nil {
		return nil, aboutFile(file, err)
	}
	if o.archive != "" {
		if err := reader.SetArchives(o.archive); err != nil {
			return nil, err
		}
	}
	if o.keys != "" {
		reader.UseKeys(store.NewKeyring(o.keys))
	}
	return &logSource{reader: reader}, nil
}

func (s *logSource) raw(ctx context.Context, from turn.Seq) iter.Seq2[[]byte, error] {
	if s.client == nil {
		return store.Raw(s.reader, from)
	}
	if s.archives == nil {
		return s.client.Raw(ctx, from, false)
	}
	return func(yield func([]byte, error) bool) {
		first, _, err := s.client.LogSpan(ctx)
		if err != nil {
			yield(nil, err)
			return
		}
		if from < first {
			for raw, err := range s.archives.Raw(from, first) {
				if !yield(raw, err) || err != nil {
					return
				}
			}
		}
		s.client.Raw(ctx, max(from, first), false)(yield)
	}
}

func (s *logSource) records(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		for r, err := range store.Decoded(s.raw(ctx, from), s.keys(ctx)) {
			if !yield(r, s.explain(ctx, err)) {
				return
			}
		}
	}
}

func (s *logSource) each(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return decodeEach(s.raw(ctx, from), s.keys(ctx))
}

// keys are those of encrypted segments: the daemon's, or what the file is read with.
func (s *logSource) keys(ctx context.Context) *store.Keyring {
	if s.client != nil {
		return s.client.Keys(ctx)
	}
	return s.reader.Keys()
}

// span is the sequences of the first and the last event there are, 0 for none.
func (s *logSource) span(ctx context.Context) (first, last turn.Seq, err error) {
	if s.client != nil {
		if first, last, err = s.client.LogSpan(ctx); err != nil || s.archives == nil || first <= 1 {
			return first, last, err
		}
		older, err := s.archives.Ending(first)
		if older > 0 {
			first = older
		}
		return first, last, err
	}
	return s.reader.Span()
}

func (s *logSource) stat(ctx context.Context) (store.Stat, error) {
	if s.client != nil {
		return s.client.LogStat(ctx)
	}
	return s.reader.Stat()
}

// examine checks all that can be checked from where it stands: of a running
// daemon's log the records and snapshots, of a file also its pages.
func (s *logSource) examine(ctx context.Context, with store.Evidence) (store.Examination, error) {
	if s.client == nil {
		return s.reader.Examine(with)
	}
	heads, err := s.client.SegmentHeads(ctx)
	if err != nil {
		return store.Examination{}, err
	}
	snapshots, err := s.client.Snapshots(ctx)
	if err != nil {
		return store.Examination{}, err
	}
	log := store.Stored{
		Heads: heads, Records: func(from turn.Seq) iter.Seq2[[]byte, error] { return s.raw(ctx, from) }, Snapshots: snapshots,
		Snapshot: func(at turn.Seq) (store.Encoded, error) { return s.client.Snapshot(ctx, at) }, Keys: s.keys(ctx),
	}
	return log.Examine(with)
}
