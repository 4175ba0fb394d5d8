package store

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"
	"runtime"
	"slices"

	"turnstone/turn"
)

// Report is what a verification went through, and where it ended.
type Report struct {
	Records, Events uint64
	Bytes           uint64
	Last            turn.Seq
	Chain           Hash // of the last record
	Root            Hash // RFC 6962 head over all events

	Unread   uint64   // events that were not folded: a key is missing, or what lies before them is damaged or gone
	ReadFrom turn.Seq // all from here on were; 0 where none was left out
}

// Examination is all that was found out about a log.
type Examination struct {
	Report
	State       *turn.State // the fold of all of it, nil where it does not fold
	Checkpoints uint64      // signed ones that the log agrees with
	Findings    []Finding   // what is wrong, in the order of the log
	Remarks     []string    // what could not be looked at, and what is no fault
}

// Finding is one thing that is wrong with a log.
type Finding struct {
	What    string   // page, segment, archive, record, event, snapshot, checkpoint, witness, tree, index
	Segment uint64   // where it is; 0 where it is not in one
	Seq     turn.Seq // of the event, 0 where it is not about one
	File    string   // empty: the log's
	Offset  int64    // in the file, -1 where there is none
	Err     error
}

// maxFindings of one kind are told. A log that is wrong everywhere need not be listed.
const maxFindings = 20

// find adds a finding.
func (x *Examination) find(f Finding) {
	same := 0
	for i := range x.Findings {
		if x.Findings[i].What == f.What {
			same++
		}
	}
	if same < maxFindings {
		x.Findings = append(x.Findings, f)
	}
	if same == maxFindings {
		x.Remarks = append(x.Remarks, fmt.Sprintf("there are more findings like the last about a %s: they are left out", f.What))
	}
}

// err is the first finding as an error.
func (x *Examination) err() error {
	if len(x.Findings) == 0 {
		return nil
	}
	f := x.Findings[0]
	var damage *CorruptError
	if errors.As(f.Err, &damage) || errors.Is(f.Err, ErrUnknownKind) || errors.Is(f.Err, ErrUnknownFormat) {
		return f.Err
	}
	return &CorruptError{File: f.File, Seq: f.Seq, Err: f.Err}
}

// examiner goes through the records of a log once, in order. Where one is wrong it goes on at the next segment, whose header
// says where the log stood.
type examiner struct {
	x        *Examination
	chain    chain
	segments []begun
	ahead    []begun // of segments, those that are still to come
	broken   bool
	wanted   []turn.Seq // where somebody wants to know how the log stood, in order
	stood    map[turn.Seq]standing
	begun    turn.Seq                      // first event of the segment, 0 where it was not seen
	ended    map[uint64]turn.SegmentSealed // what is to be said of the segments that were seen whole
	made     *treeFile                     // nil where nobody wants it
}

// standing is how a log stood behind an event.
type standing struct {
	root, chain Hash
	whole       bool // a record ends there, and chain is its hash
}

// hashed is a record whose hashes are known.
type hashed struct {
	envelope
	size   int
	self   Hash
	leaves []Hash
	err    error // of its form
	record turn.Record
	unread error // of decoding
}

// parcel is records on their way: raw ones are hashed and decoded in any order, and taken in theirs.
type parcel struct {
	raw    [][]byte
	failed error // of reading what comes behind
	hashed []hashed
	ready  chan struct{}
}

// parcelSize is how many bytes of records go from one goroutine to the other at once.
const parcelSize = 64 << 10

// reading is how records are read for an examination.
type reading struct {
	keys   *Keyring
	decode bool
}

// hash fills p.hashed.
func (p *parcel) hash(h *hasher, known *names, how reading) {
	defer close(p.ready)
	p.hashed = make([]hashed, len(p.raw))
	for i, raw := range p.raw {
		one := &p.hashed[i]
		if one.envelope, one.err = parseEnvelope(raw); one.err != nil {
			continue
		}
		one.size, one.self = len(raw), sha256.Sum256(raw)
		one.leaves = make([]Hash, len(one.events))
		for n, e := range one.events {
			one.leaves[n] = h.leafHash(one.first+turn.Seq(n), one.moment, e)
		}
		if how.decode {
			one.record, one.unread = one.envelope.record(known, how.keys)
		}
		one.events, p.raw[i] = nil, nil
	}
}

// hashedIn hashes and decodes the records of raw on all CPUs, and yields them, and its errors, in order.
func hashedIn(raw iter.Seq2[[]byte, error], how reading) iter.Seq2[[]hashed, error] {
	return func(yield func([]hashed, error) bool) {
		workers := runtime.GOMAXPROCS(0)
		work, order := make(chan *parcel, workers), make(chan *parcel, 2*workers)
		stop := make(chan struct{})
		for range workers {
			go func() {
				var h hasher
				known := &names{}
				for p := range work {
					p.hash(&h, known, how)
				}
			}()
		}
		go func() {
			defer close(order)
			defer close(work)
			send := func(p *parcel) bool {
				select {
				case order <- p:
					work <- p
					return true
				case <-stop:
					return false
				}
			}
			p, size := &parcel{ready: make(chan struct{})}, 0
			for one, err := range raw {
				if p.failed = err; err == nil {
					p.raw = append(p.raw, one)
				}
				if size += len(one); size >= parcelSize || err != nil {
					if !send(p) {
						return
					}
					p, size = &parcel{ready: make(chan struct{})}, 0
				}
			}
			send(p)
		}()
		defer func() {
			close(stop)
			for p := range order {
				<-p.ready
			}
		}()
		for p := range order {
			<-p.ready
			if !yield(p.hashed, nil) || p.failed != nil && !yield(nil, p.failed) {
				return
			}
		}
	}
}

// all goes through all records. Those that follow go to fold, a parcel at a time. The error is of reading; damage is a finding.
func (e *examiner) all(raw iter.Seq2[[]byte, error], how reading, fold func([]hashed)) error {
	var damage *CorruptError
	for list, err := range hashedIn(raw, how) {
		switch {
		case errors.As(err, &damage):
			e.find("page", e.chain.next(), err)
			e.broken = true
			continue
		case err != nil:
			return err
		}
		good := list[:0]
		for i := range list {
			if e.take(&list[i]) {
				good = append(good, list[i])
			}
		}
		fold(good)
	}
	if e.broken {
		e.x.Remarks = append(e.x.Remarks, fmt.Sprintf("nothing behind event %d could be held against the chain", e.chain.next()-1))
	} else if len(e.ahead) > 0 {
		e.find("segment", e.chain.next()-1, fmt.Errorf("segment %d is missing", e.ahead[0].number))
	}
	e.x.Last, e.x.Chain, e.x.Root = e.chain.next()-1, e.chain.last, e.chain.tree.root()
	return nil
}

func (e *examiner) find(what string, seq turn.Seq, err error) {
	var damage *CorruptError
	if !errors.As(err, &damage) && !errors.Is(err, ErrUnknownFormat) {
		err = &CorruptError{Seq: seq, Err: err}
	}
	e.x.find(Finding{What: what, Segment: segmentAt(e.segments, seq), Seq: seq, Offset: -1, Err: err})
}

// segmentAt is the number of the segment that an event is in, 0 where that is not known.
func segmentAt(segments []begun, seq turn.Seq) uint64 {
	i, _ := slices.BinarySearchFunc(segments, seq+1, func(s begun, at turn.Seq) int { return cmp.Compare(s.begin.next(), at) })
	if i == 0 {
		return 0
	}
	return segments[i-1].number
}

// take checks one record, and says whether it follows and is what was written.
func (e *examiner) take(h *hashed) bool {
	if !e.broken {
		if err := e.follows(h); err != nil {
			e.find("record", e.chain.next(), err)
			e.broken = true
		}
	}
	if e.broken && !e.resume(h) {
		return false
	}
	if len(e.ahead) > 0 && e.ahead[0].begin.next() <= h.first {
		s := e.ahead[0]
		e.ahead = e.ahead[1:]
		e.end(s.number-1, h.first)
		if !bytes.Equal(s.begin.header(s.begin.next()), e.chain.header(h.first)) {
			e.find("segment", h.first, fmt.Errorf("the header of segment %d is not where the log stands", s.number))
		}
	}
	e.grow(h)
	if e.chain.tree.root() != h.root {
		e.find("record", h.first, errors.New("the tree head does not match the events"))
		e.broken = true
		return false
	}
	e.x.Records++
	e.x.Events += uint64(len(h.leaves))
	e.x.Bytes += uint64(h.size)
	return true
}

// end notes what is to be recorded of the segment that ends before next.
func (e *examiner) end(number uint64, next turn.Seq) {
	if e.begun > 0 && e.ended != nil {
		e.ended[number] = turn.SegmentSealed{Segment: number, First: e.begun, Last: next - 1, Chain: e.chain.last, Root: e.chain.tree.root()}
	}
	e.begun = next
}

// follows says why h is not the next record.
func (e *examiner) follows(h *hashed) error {
	switch {
	case h.err != nil:
		return h.err
	case h.first != e.chain.next():
		return &CorruptError{Seq: e.chain.next(), Err: fmt.Errorf("the next record begins at %d", h.first)}
	case h.chain != e.chain.last:
		return &CorruptError{Seq: h.first, Err: errors.New("the record does not follow the one before it")}
	}
	return nil
}

// resume goes on at h, if a segment begins there that says how the log stood.
func (e *examiner) resume(h *hashed) bool {
	if h.err != nil {
		return false
	}
	for i, s := range e.ahead {
		if s.begin.next() == h.first && s.begin.last == h.chain {
			e.begun = 0
			e.chain = chain{last: s.begin.last, tree: s.begin.tree.clone()}
			e.ahead, e.broken = e.ahead[i:], false
			if e.made != nil {
				e.made = nil
				e.x.Remarks = append(e.x.Remarks, "the file tree was not looked at: the log is damaged")
			}
			return true
		}
	}
	return false
}

// grow adds h to the chain and the tree, and notes how they stand where somebody wants to know.
func (e *examiner) grow(h *hashed) {
	for i, leaf := range h.leaves {
		e.chain.tree.add(leaf)
		if e.chain.tree.size%treeBlock == 0 && e.made != nil {
			_ = e.made.add(e.chain.tree.block) // in memory
		}
		if len(e.wanted) > 0 && uint64(e.wanted[0]) == e.chain.tree.size {
			e.stood[e.wanted[0]] = standing{root: e.chain.tree.root(), chain: h.self, whole: i == len(h.leaves)-1}
			e.wanted = e.wanted[1:]
		}
	}
	for len(e.wanted) > 0 && uint64(e.wanted[0]) < e.chain.tree.size {
		e.wanted = e.wanted[1:] // retired, or within damage
	}
	e.chain.last = h.self
}
