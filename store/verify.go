package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"math"
	"os"
	"slices"
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

	Unread   uint64   // events that were not decoded: the key of their segment, or of one before it, is missing
	ReadFrom turn.Seq // all from here on were; 0 where none was missing
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
	segments, err := historyOf(r)
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
	report.Unread, report.ReadFrom, err = r.verifySnapshots(first, report.Last)
	return report, err
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

// heldSnapshot is a snapshot in the file.
type heldSnapshot struct {
	Snapshot
	state *turn.State // nil: the key it takes is missing
	body  Hash        // of the encoding of state
}

// heldSnapshots reads the snapshots of the file, in order.
func (r *Reader) heldSnapshots() (held []heldSnapshot, err error) {
	list, err := snapshotsIn(r)
	if err != nil {
		return nil, err
	}
	for _, p := range list {
		h := heldSnapshot{Snapshot: p}
		if h.state, err = loadSnapshot(r, p.At); err != nil && withoutKey(err) == nil {
			return nil, &CorruptError{File: r.file, Seq: p.At, Err: err}
		}
		if h.state != nil {
			body, err := EncodeState(h.state)
			if err != nil {
				return nil, err
			}
			h.body = sha256.Sum256(body)
		}
		held = append(held, h)
	}
	return held, nil
}

// verifySnapshots folds the records from first to last, or from the oldest snapshot where those before first are
// retired, and holds each snapshot, and what was recorded of it, against that. What takes a key that is missing it
// passes over, up to the next snapshot that can be read: it counts the events that it has not seen, and yields
// the one from which on it has seen all.
func (r *Reader) verifySnapshots(first, last turn.Seq) (unread uint64, from turn.Seq, err error) {
	held, err := r.heldSnapshots()
	if err != nil {
		return 0, 0, err
	}
	if n := len(held); n > 0 && held[n-1].At > last {
		return 0, 0, &CorruptError{File: r.file, Seq: held[n-1].At, Err: errors.New("a snapshot lies behind the end of the log")}
	}
	if n := len(held); first > 1 && (n == 0 || held[n-1].At+1 < first) {
		return 0, 0, &CorruptError{File: r.file, Seq: first, Err: errors.New("the events before are retired and no snapshot covers them")}
	}
	begin := heldSnapshot{Snapshot: Snapshot{Latest: math.MinInt64}, state: turn.NewState()}
	if first > 1 {
		begin = nextReadable(held, first-1)
	}
	seen := first - 1
	for ; begin.state != nil; begin = nextReadable(held, seen+1) {
		if begin.At > seen {
			unread, from = unread+uint64(begin.At-seen), begin.At+1
		}
		err := r.foldVerified(begin, held)
		if withoutKey(err) == nil {
			return unread, from, inFile(r.file, err)
		}
		seen = begin.state.Seq()
	}
	return unread + uint64(last-seen), last + 1, nil
}

// nextReadable is the first snapshot from at on that can be read; its state is nil where there is none.
func nextReadable(held []heldSnapshot, at turn.Seq) heldSnapshot {
	for _, h := range held {
		if h.state != nil && h.At >= at {
			return h
		}
	}
	return heldSnapshot{}
}

// foldVerified folds the records behind begin into its state, and compares it with the snapshots there are.
func (r *Reader) foldVerified(begin heldSnapshot, held []heldSnapshot) error {
	s, latest := begin.state, begin.Latest
	for rec, err := range r.Records(s.Seq() + 1) {
		if err != nil {
			return err
		}
		latest = max(latest, rec.Moment.Wall)
		if err := s.Fold(rec); err != nil {
			return &CorruptError{Seq: rec.First, Err: err}
		}
		for _, e := range rec.Events {
			taken, ok := e.(turn.SnapshotTaken)
			if i, there := findHeld(held, taken.At); ok && there && held[i].Digest != taken.Digest {
				return &CorruptError{Seq: taken.At, Err: errors.New("the snapshot is not the one that was recorded")}
			}
		}
		if i, there := findHeld(held, rec.Last()); there && held[i].state != nil {
			if err := held[i].holds(s, latest); err != nil {
				return err
			}
		}
	}
	return nil
}

// holds says whether s is what h is said to be: the fold of the records before it, the latest of which is of latest.
func (h *heldSnapshot) holds(s *turn.State, latest int64) error {
	body, err := EncodeState(s)
	switch {
	case err != nil:
		return err
	case sha256.Sum256(body) != h.body:
		return &CorruptError{Seq: h.At, Err: errors.New("the snapshot is not the fold of the records before it")}
	case h.Latest != latest:
		return &CorruptError{Seq: h.At, Err: errors.New("the snapshot does not say which of its records is the latest")}
	}
	return nil
}

func findHeld(held []heldSnapshot, at turn.Seq) (int, bool) {
	return slices.BinarySearchFunc(held, at, func(h heldSnapshot, at turn.Seq) int { return cmp.Compare(h.At, at) })
}
