package store

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"iter"
	"os"
	"runtime/debug"
	"slices"
	"time"
	"unsafe"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Verify checks that the records in raw, which begin with the log, are what was
// written: form, CRC, gapless sequences, chain and tree heads. What does not hold is
// a *CorruptError. That the events fold is for [StateAt] to say.
func Verify(raw iter.Seq2[[]byte, error]) (Report, error) { return verifyFrom(chain{}, nil, raw) }

// verifyFrom is Verify of records that follow c, along segments, which must begin where the log stands when it
// comes to them.
func verifyFrom(c chain, segments []begun, raw iter.Seq2[[]byte, error]) (Report, error) {
	var x Examination
	e := examiner{x: &x, chain: c, segments: segments, ahead: segments}
	err := e.all(raw, reading{}, func([]hashed) {})
	return x.Report, errors.Join(err, x.err())
}

// Verify checks the whole file: bbolt's own structure, every record and segment, that the events
// fold, and that each snapshot is the fold of the records before it, as far as they are there. The error is the
// first of what [Reader.Examine] finds.
func (r *Reader) Verify() (Report, error) {
	x, err := r.Examine(Evidence{})
	return x.Report, errors.Join(err, x.err())
}

// Examine goes through the whole file and holds it against itself and the evidence. What is wrong is in the findings; the
// error is of reading.
func (r *Reader) Examine(with Evidence) (Examination, error) {
	var x Examination
	damaged := func(what string, err error) (Examination, error) {
		var damage *CorruptError
		if !errors.As(err, &damage) {
			return x, err
		}
		x.find(Finding{What: what, Seq: damage.Seq, Offset: -1, Err: err})
		return x, nil
	}
	if err := r.checkPages(); err != nil {
		return damaged("page", err)
	}
	segments, err := historyOf(r)
	if len(segments) == 0 && err != nil {
		return damaged("segment", err)
	}
	if err := r.weighArchives(&x, segments); err != nil {
		return x, err
	}
	list, err := snapshotsIn(r)
	if err != nil {
		return damaged("snapshot", err)
	}
	held, err := heldSnapshots(&x, list, r.keys, r.snapshot)
	if err != nil {
		return x, err
	}
	log := examined{segments: segments, held: held, keys: r.keys}
	log.records = func(from turn.Seq) iter.Seq2[[]byte, error] { return Raw(r, from) }
	log.load = func(at turn.Seq) (*turn.State, error) { return loadSnapshot(r, at) }
	err = log.examine(&x, with)
	for i := range x.Findings {
		r.place(&x.Findings[i])
	}
	return x, err
}

// place says in which file a finding is, and where there.
func (r *Reader) place(f *Finding) {
	if f.File != "" {
		return
	}
	if a := archiveHolding(r, f); a != "" {
		if f.File = a; f.What == "page" {
			f.What = "archive"
		}
		f.Err = inFile(a, f.Err)
		return
	}
	f.Err = inFile(r.file, f.Err)
	if f.Seq > 0 && f.What != "witness" {
		f.Offset = r.offset(f.Seq)
	}
}

// SegmentHead is the header of a segment, as it is stored: how the log stood before it.
type SegmentHead struct {
	Number uint64
	Header []byte
}

// SegmentHeads are those of l, the ones in archives before those in its file.
func (l *Log) SegmentHeads() ([]SegmentHead, error) {
	segments, err := historyOf(l)
	out := make([]SegmentHead, len(segments))
	for i, s := range segments {
		out[i] = SegmentHead{s.number, s.begin.header(s.begin.next())}
	}
	return out, err
}

// Stored is a log whose file is not to be had, but all that it holds.
type Stored struct {
	Heads     []SegmentHead // of all segments
	Records   func(from turn.Seq) iter.Seq2[[]byte, error]
	Snapshots []Snapshot
	Snapshot  func(at turn.Seq) (Encoded, error) // one of them; Passed says what is wrong with it, and another At that it is gone
	Keys      *Keyring                           // nil: none
}

// Examine goes through records and snapshots and holds them against the evidence. See [Reader.Examine].
func (s *Stored) Examine(with Evidence) (x Examination, err error) {
	var segments []begun
	for _, h := range s.Heads {
		begin, err := parseHeader(h.Header)
		if err != nil {
			return x, &CorruptError{Err: fmt.Errorf("segment %d: %w", h.Number, err)}
		}
		segments = append(segments, begun{h.Number, begin})
	}
	log := examined{segments: segments, records: s.Records, keys: s.Keys}
	if log.held, err = heldSnapshots(&x, s.Snapshots, s.Keys, s.Snapshot); err != nil {
		return x, err
	}
	log.load = func(at turn.Seq) (*turn.State, error) {
		e, err := s.Snapshot(at)
		if err == nil && e.At != at {
			err = errors.Join(append(e.Passed, fmt.Errorf("snapshot %d is gone", at))...)
		}
		if err != nil {
			return nil, err
		}
		return e.State(s.Keys)
	}
	return x, log.examine(&x, with)
}

// examined is what an examination goes through.
type examined struct {
	segments []begun // may be empty where the records are there from the first
	records  func(from turn.Seq) iter.Seq2[[]byte, error]
	keys     *Keyring
	held     []heldSnapshot
	load     func(turn.Seq) (*turn.State, error) // one of held
}

// examine fills x.
func (s *examined) examine(x *Examination, with Evidence) error {
	defer debug.SetGCPercent(debug.SetGCPercent(400)) // nearly all of it is garbage soon
	files := make([][]openedNote, len(with.Checkpoints))
	for i := range files {
		files[i] = with.Checkpoints[i].open(with.Keys)
	}
	e := examiner{x: x, segments: s.segments, ahead: s.segments, wanted: with.wanted(files), stood: map[turn.Seq]standing{}, ended: map[uint64]turn.SegmentSealed{}}
	if len(s.segments) > 0 && s.segments[0].number != 1 { // those before are retired
		e.chain = chain{last: s.segments[0].begin.last, tree: s.segments[0].begin.tree.clone()}
	}
	first := e.chain.next()
	if with.Tree != "" {
		e.made = newTreeFile(&memory{}, 0)
		if err := e.made.reset(&e.chain.tree); err != nil {
			return err
		}
	}
	f := newFolder(first, s.segments, s.held, s.load)
	held := s.held
	if n := len(held); first > 1 && (n == 0 || held[n-1].At+1 < first) {
		f.find("snapshot", first, errors.New("the events before are retired and no snapshot covers them"))
	}
	folding, folded := make(chan []hashed, 4), make(chan struct{})
	go func() {
		defer close(folded)
		for list := range folding {
			for i := range list {
				f.take(&list[i])
			}
		}
	}()
	err := e.all(s.beyondDamage(first), reading{keys: s.keys, decode: true}, func(list []hashed) { folding <- list })
	close(folding)
	<-folded
	if err != nil {
		return err
	}
	x.Unread, x.ReadFrom, x.State = f.x.Unread, f.x.ReadFrom, f.state
	if f.unread {
		x.ReadFrom = x.Last + 1
	}
	if f.state != nil && f.state.Seq() != x.Last {
		x.State = nil
	}
	for _, one := range f.x.Findings {
		x.find(one)
	}
	x.Remarks = append(x.Remarks, f.x.Remarks...)
	if n := len(held); n > 0 && held[n-1].At > x.Last {
		x.find(Finding{What: "snapshot", Seq: held[n-1].At, Offset: -1, Err: &CorruptError{Seq: held[n-1].At, Err: errors.New("a snapshot lies behind the end of the log")}})
	}
	for seq, said := range f.sealed {
		if is, known := e.ended[said.Segment]; known && is != said {
			e.find("segment", seq, fmt.Errorf("segment %d is not the one whose sealing was recorded", said.Segment))
		}
	}
	with.weigh(x, files, e.stood, f.rolled, !e.broken)
	slices.SortStableFunc(x.Findings, func(a, b Finding) int { return cmp.Compare(a.Seq, b.Seq) })
	if e.made != nil && !e.broken { // else a remark says that not all was seen
		weighTree(x, with.Tree, e.made)
	}
	return nil
}

// beyondDamage yields the records from first on. Behind what cannot be read it goes on at the next segment.
func (s *examined) beyondDamage(first turn.Seq) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		for from, more := first, true; more; {
			more = false
			last := from - 1
			for raw, err := range s.records(from) {
				var damage *CorruptError
				more = errors.As(err, &damage)
				if !yield(raw, err) {
					return
				}
				if err == nil {
					last = lastInside(raw)
				}
			}
			i := slices.IndexFunc(s.segments, func(b begun) bool { return b.begin.next() > last+1 })
			if i < 0 {
				return
			}
			from = s.segments[i].begin.next()
		}
	}
}

// offset is where in the file the record is that holds an event, -1 where it is not to be found.
func (r *Reader) offset(seq turn.Seq) (at int64) {
	at = -1
	_ = r.view(func(tx *bbolt.Tx) error { // an event without a place is no less wrong
		p := position{seq: seq, seek: true}
		if err := p.find(tx.Bucket(migrations.Segments)); err != nil || p.segment == nil {
			return err
		}
		if k, v := p.start(tx.Bucket(migrations.Segments).Bucket(p.segment).Cursor()); k != nil && len(v) > 0 {
			at = int64(uintptr(unsafe.Pointer(unsafe.SliceData(v))) - tx.DB().Info().Data)
		}
		return nil
	})
	return at
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
