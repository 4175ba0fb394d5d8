package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// PackOptions say what of a log goes into a pack.
type PackOptions struct {
	From     turn.Seq // it begins at or before From, where a snapshot or the log begins; 0: all there is
	To       turn.Seq // the last record ends at or before To; 0: at the end
	FileOnly bool     // leave out what only archives have
	Dir      string   // data directory whose checkpoints go along; empty for none
	Keys     bool     // and whose keys do
}

// WritePack writes the segments of s with the snapshots between them. It reads a chunk in each transaction, so that it
// is in the way of no append, and keeps a segment in memory. What is appended meanwhile is not in it. An error goes
// into the pack as well.
func WritePack(ctx context.Context, w io.Writer, s source, o PackOptions) (PackEnd, error) {
	x := exporter{s: s, p: newPackWriter(w), options: o}
	err := x.all(ctx)
	if err != nil {
		return x.end, errors.Join(err, x.p.fail(err))
	}
	return x.end, x.p.w.Flush()
}

type exporter struct {
	s       source
	p       *packWriter
	options PackOptions
	id      turn.LogID
	end     PackEnd
}

func (x *exporter) all(ctx context.Context) (err error) {
	to, err := lastOfFile(x.s)
	if err != nil {
		return err
	}
	if x.options.To > 0 {
		to = min(to, x.options.To)
	}
	segments, err := x.segments()
	if err != nil {
		return err
	}
	list, err := snapshotsIn(x.s)
	if err != nil {
		return err
	}
	var ats []turn.Seq
	for _, p := range list {
		ats = append(ats, p.At)
	}
	if x.id, err = identityOf(x.s, ats); err != nil {
		return err
	}
	begun := false
	for i, g := range segments[x.beginning(segments, ats):] {
		if g.begin.next() > to {
			break
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		if at := g.begin.next() - 1; slices.Contains(ats, at) {
			if err := x.snapshot(at); err != nil {
				return err
			}
		}
		last := to
		if rest := segments[x.beginning(segments, ats)+i:]; len(rest) > 1 {
			last = min(to, rest[1].begin.next()-1)
		}
		err := x.segment(ctx, g, last)
		if errors.Is(err, ErrRetired) && !begun && x.options.From == 0 {
			continue // while it was read
		}
		if err != nil {
			return err
		}
		begun = true
	}
	if err := x.files(); err != nil {
		return err
	}
	return x.p.item(packEnd, x.end)
}

func (x *exporter) segments() ([]begun, error) {
	if x.options.FileOnly {
		return segmentsOf(x.s)
	}
	return historyOf(x.s)
}

// beginning is the segment to begin with.
func (x *exporter) beginning(segments []begun, ats []turn.Seq) (first int) {
	for i, g := range segments {
		if g.begin.next() <= x.options.From && slices.Contains(ats, g.begin.next()-1) {
			first = i
		}
	}
	return first
}

// segment writes the records of g up to last, if there are any.
func (x *exporter) segment(ctx context.Context, g begun, last turn.Seq) error {
	h := PackHead{Format: packFormat, Log: x.id, Segment: g.number, First: g.begin.next(), Begin: g.begin.header(g.begin.next())}
	var records [][]byte
	for raw, err := range rawWithin(x.s, h.First, last) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if lastInside(raw) > last {
			break
		}
		records = append(records, raw)
		h.Bytes += uint64(len(raw))
	}
	if len(records) == 0 {
		return nil
	}
	end := records[len(records)-1]
	v, err := parseEnvelope(end)
	if err != nil {
		return inFile(x.s.name(), err)
	}
	h.Last, h.Chain, h.Root, h.Records, h.Wall = v.last(), sha256.Sum256(end), v.root, uint64(len(records)), v.moment.Wall
	if err := x.p.item(packSegment, h); err != nil {
		return err
	}
	for _, raw := range records {
		if err := x.p.record(raw); err != nil {
			return err
		}
	}
	x.end.Last, x.end.Chain, x.end.Root = h.Last, h.Chain, h.Root
	x.end.Records += h.Records
	return nil
}

// snapshot writes the snapshot at, unless it is gone by now.
func (x *exporter) snapshot(at turn.Seq) error {
	snap := PackSnapshot{At: at}
	var chunks [][]byte
	for n := uint64(1); ; n++ {
		var chunk []byte
		err := x.s.view(func(tx *bbolt.Tx) error {
			b := tx.Bucket(migrations.Snapshots).Bucket(key(uint64(at)))
			if b == nil {
				snap.Head = nil
				return nil
			}
			snap.Head, chunk = bytes.Clone(b.Get(headKey)), bytes.Clone(b.Get(key(n)))
			return nil
		})
		if err != nil {
			return err
		}
		if snap.Head == nil {
			return nil
		}
		if chunk == nil {
			break
		}
		chunks = append(chunks, chunk)
	}
	snap.Chunks = uint64(len(chunks))
	if err := x.p.item(packSnapshot, snap); err != nil {
		return err
	}
	for _, c := range chunks {
		if err := x.p.item(packChunk, c); err != nil {
			return err
		}
	}
	return nil
}

// files writes what stands beside the log.
func (x *exporter) files() error {
	if x.options.Dir == "" {
		return nil
	}
	names := []string{CheckpointsName}
	if x.options.Keys {
		err := filepath.WalkDir(filepath.Join(x.options.Dir, keysName), func(path string, d fs.DirEntry, err error) error {
			if errors.Is(err, os.ErrNotExist) {
				return nil
			}
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			name, err := filepath.Rel(x.options.Dir, path)
			names = append(names, name)
			return err
		})
		if err != nil {
			return err
		}
	}
	for _, name := range names {
		body, err := os.ReadFile(filepath.Join(x.options.Dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if err := x.p.item(packFile, PackFile{Name: filepath.ToSlash(name), Mode: 0o600, Body: body}); err != nil {
			return err
		}
	}
	return nil
}

// lastOfFile is the last event in the file of s, 0 for none.
func lastOfFile(s source) (last turn.Seq, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		if segments == nil {
			return &CorruptError{File: s.name(), Err: errors.New("there are no segments")}
		}
		k, _ := segments.Cursor().Last()
		if k == nil {
			return nil
		}
		if k, v := segments.Bucket(k).Cursor().Last(); len(k) == 8 {
			last = lastOf(k, v)
		}
		return nil
	})
	return last, err
}

// identityOf is the id of the log s, which has the snapshots ats.
func identityOf(s source, ats []turn.Seq) (id turn.LogID, err error) {
	for _, at := range slices.Backward(ats) {
		state, err := loadSnapshot(s, at)
		if err == nil {
			return state.Log(), nil
		}
	}
	for raw, err := range Raw(s, 1) {
		if err != nil {
			return id, err
		}
		r, err := Decode(raw, s.keyring())
		if err != nil {
			return id, inFile(s.name(), err)
		}
		for _, e := range r.Events {
			if began, ok := e.(turn.EpochBegan); ok {
				return began.Log, nil
			}
		}
		return id, fmt.Errorf("%s does not begin with an epoch", s.name())
	}
	return id, nil
}
