package store

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"time"

	"turnstone/turn"
)

// Report is what a verification went through, and where it ended.
type Report struct {
	Records, Events uint64
	Bytes           uint64
	Last            turn.Seq
	Chain           Hash // of the last record
	Root            Hash // RFC 6962 head over all events
}

// Verify checks that the records in raw, which begin with the log, are what was
// written: form, CRC, gapless sequences, chain and tree heads. What does not hold is
// a *CorruptError. That the events fold is for [StateAt] to say.
func Verify(raw iter.Seq2[[]byte, error]) (Report, error) { return verifyFrom(chain{}, nil, raw) }

// verifyFrom is Verify of records that follow c, along segments, which must begin
// where the log stands when it comes to them. The tree, which costs the most, is
// grown by a goroutine of its own.
func verifyFrom(c chain, segments []begun, raw iter.Seq2[[]byte, error]) (Report, error) {
	g := grower{chain: c, segments: segments}
	linked, next := chain{last: g.chain.last}, g.chain.next()
	batches, grown := make(chan []envelope, 4), make(chan error, 1)
	go func() { grown <- g.all(batches) }()
	var report Report
	var err error
	var batch []envelope
	size := 0
	for one, e := range raw {
		var v envelope
		if err = e; err == nil {
			v, err = parseEnvelope(one)
		}
		if err == nil {
			err = linked.link(&v, one, next)
		}
		if err != nil {
			break
		}
		next = v.last() + 1
		report.Records++
		report.Events += uint64(len(v.events))
		report.Bytes += uint64(len(one))
		batch = append(batch, v)
		if size += len(one); size > 64<<10 {
			batches <- batch
			batch, size = nil, 0
		}
	}
	batches <- batch
	close(batches)
	if err = earliest(err, <-grown); err == nil && len(g.segments) > 0 {
		err = &CorruptError{Seq: g.chain.next() - 1, Err: fmt.Errorf("segment %d is missing", g.segments[0].number)}
	}
	report.Last, report.Chain, report.Root = next-1, linked.last, g.chain.tree.root()
	return report, err
}

// grower grows the tree along a log.
type grower struct {
	chain    chain
	segments []begun // those to come
}

// all takes all batches, also after an error.
func (g *grower) all(batches <-chan []envelope) error {
	var err error
	for b := range batches {
		for i := range b {
			if err == nil {
				err = g.take(&b[i])
			}
		}
	}
	return err
}

func (g *grower) take(v *envelope) error {
	if len(g.segments) > 0 && g.segments[0].begin.next() <= v.first {
		g.chain.last = v.chain // which is checked already
		s := g.segments[0]
		g.segments = g.segments[1:]
		if !bytes.Equal(s.begin.header(s.begin.next()), g.chain.header(v.first)) {
			return &CorruptError{Seq: v.first, Err: fmt.Errorf("the header of segment %d is not where the log stands", s.number)}
		}
	}
	return g.chain.grow(v)
}

// earliest is the error about the smallest sequence: what it breaks explains the others.
func earliest(errs ...error) error {
	var first error
	var at turn.Seq
	for _, err := range errs {
		var damage *CorruptError
		if errors.As(err, &damage) && (first == nil || damage.Seq < at) {
			first, at = err, damage.Seq
		}
	}
	if first != nil {
		return first
	}
	return errors.Join(errs...)
}

// Verify checks the whole file: bbolt's own structure, every record and segment, that the events
// fold, and that each snapshot is the fold of the records before it, as far as they are there.
func (r *Reader) Verify() (Report, error) {
	if err := r.checkPages(); err != nil {
		return Report{}, err
	}
	segments, err := segmentsOf(r)
	if err != nil {
		return Report{}, err
	}
	var c chain
	if len(segments) > 0 && segments[0].number != 1 { // those before are retired
		c = segments[0].begin
	}
	first := c.next()
	report, err := verifyFrom(c, segments, Raw(r, first))
	if err != nil {
		return report, inFile(r.file, err)
	}
	return report, r.verifySnapshots(first)
}

// checkPages reads every page of the file, with the lock of a reader for a while at a time.
func (r *Reader) checkPages() error {
	p := &pieces{file: r.file}
	defer p.release()
	if err := p.renew(); err != nil {
		return err
	}
	info, err := p.f.Stat()
	if err != nil {
		return fmt.Errorf("check %s: %w", r.file, err)
	}
	if err := checkPages(p, info.Size(), true); err != nil {
		return damageOrIO(r.file, err)
	}
	return nil
}

// pieces reads a file under a lock that it gives up now and then. The file
// must not change meanwhile.
type pieces struct {
	file  string
	f     *os.File
	until time.Time
	metas []byte
}

// ReadAt reads from the file, or fails with ErrInUse.
func (p *pieces) ReadAt(b []byte, at int64) (int, error) {
	if time.Now().After(p.until) {
		if err := p.renew(); err != nil {
			return 0, err
		}
	}
	return p.f.ReadAt(b, at)
}

func (p *pieces) renew() (err error) {
	p.release()
	if err := unlocked(p.file); err != nil {
		return err
	}
	if p.f, err = os.Open(p.file); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if err := share(p.f, readerWait); err != nil {
		return err
	}
	p.until = time.Now().Add(chunkTime)
	metas := make([]byte, 2*os.Getpagesize())
	n, _ := p.f.ReadAt(metas, 0)
	if p.metas != nil && !bytes.Equal(p.metas, metas[:n]) {
		return fmt.Errorf("%s was written to meanwhile: %w", p.file, ErrInUse)
	}
	p.metas = metas[:n]
	return nil
}

func (p *pieces) release() {
	if p.f != nil {
		_ = p.f.Close()
		p.f = nil
	}
}

// verifySnapshots folds the records from first on, or from the oldest snapshot where those before first are
// retired, and holds each snapshot, and what was recorded of it, against that.
func (r *Reader) verifySnapshots(first turn.Seq) error {
	list, err := snapshotsIn(r)
	if err != nil {
		return err
	}
	state, latest, stored := turn.NewState(), int64(math.MinInt64), map[turn.Seq]Snapshot{}
	for _, p := range list {
		stored[p.At] = p
		_, body, err := readSnapshot(r, p.At)
		if err == nil && first > 1 && state.Seq()+1 < first {
			latest = p.Latest
			state, err = Encoded{Snapshot: p, Body: body}.State()
		}
		if err != nil {
			return &CorruptError{File: r.file, Seq: p.At, Err: err}
		}
	}
	if state.Seq()+1 < first {
		return &CorruptError{File: r.file, Seq: first, Err: errors.New("the events before are retired and no snapshot covers them")}
	}
	for rec, err := range r.Records(state.Seq() + 1) {
		latest = max(latest, rec.Moment.Wall)
		if err == nil {
			err = foldVerified(state, rec, latest, stored)
		}
		if err != nil {
			return inFile(r.file, err)
		}
	}
	for at := range stored {
		if at > state.Seq() {
			return &CorruptError{File: r.file, Seq: at, Err: errors.New("a snapshot lies behind the end of the log")}
		}
	}
	return nil
}

// foldVerified folds rec, up to which no record is of after latest, into s, and compares s with the snapshot there
// is at its end.
func foldVerified(s *turn.State, rec turn.Record, latest int64, stored map[turn.Seq]Snapshot) error {
	if err := s.Fold(rec); err != nil {
		return &CorruptError{Seq: rec.First, Err: err}
	}
	for _, e := range rec.Events {
		taken, ok := e.(turn.SnapshotTaken)
		if p, there := stored[taken.At]; ok && there && p.Digest != taken.Digest {
			return &CorruptError{Seq: taken.At, Err: errors.New("the snapshot is not the one that was recorded")}
		}
	}
	p, there := stored[rec.Last()]
	if !there {
		return nil
	}
	body, err := EncodeState(s)
	switch {
	case err != nil:
		return err
	case sha256.Sum256(body) != p.Digest:
		return &CorruptError{Seq: p.At, Err: errors.New("the snapshot is not the fold of the records before it")}
	case p.Latest != latest:
		return &CorruptError{Seq: p.At, Err: errors.New("the snapshot does not say which of its records is the latest")}
	}
	return nil
}
