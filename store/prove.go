package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"path/filepath"
	"sync"

	"turnstone/turn"

	"golang.org/x/mod/sumdb/tlog"
)

// Proven is an event as it is stored, and what proves that it is in a tree.
type Proven struct {
	Seq    turn.Seq
	Moment turn.Moment
	Stored []byte
	Shown  []byte // its [Keyring.Disclosure], nil where it is not sealed, or not disclosed
	Path   []Hash // RFC 6962 section 2.1.1, from the leaf up
}

// Event decodes p.
func (p *Proven) Event() (turn.Event, error) { return DecodeDisclosed(p.Stored, p.Seq, p.Shown) }

// leaf is the hash of the event's leaf.
func (p *Proven) leaf() Hash { return (&hasher{}).leafHash(p.Seq, p.Moment, p.Stored) }

// Check says whether p is in the tree of size events with this root.
func (p *Proven) Check(size turn.Seq, root Hash) error {
	if p.Seq == 0 || p.Seq > size {
		return fmt.Errorf("event %d is not among the first %d", p.Seq, size)
	}
	path := make(tlog.RecordProof, len(p.Path))
	for i, h := range p.Path {
		path[i] = tlog.Hash(h)
	}
	if tlog.CheckRecord(path, int64(size), tlog.Hash(root), int64(p.Seq-1), tlog.Hash(p.leaf())) != nil {
		return fmt.Errorf("the proof of event %d does not lead to the root of %d events", p.Seq, size)
	}
	return nil
}

// Prover proves what is in a log. It may be used from any goroutine.
type Prover struct {
	records func(from turn.Seq) iter.Seq2[[]byte, error]
	stands  func() (extent, error)
	mu      sync.Mutex // guards the fields below
	tree    *treeFile
	known   bool // tree was held against the log
	base    tree
	blocks  map[uint64]*block
}

// cachedBlocks is how many blocks a Prover remembers, of about 60 KiB.
const cachedBlocks = 64

// Prover proves what is in l, by the file DIR/tree, which it keeps.
func (l *Log) Prover() *Prover { return l.prover }

// Prover proves what is in the file r reads, by the file tree beside it, where there is one.
func (r *Reader) Prover() *Prover {
	stands := sync.OnceValues(func() (extent, error) {
		segments, err := historyOf(r)
		if err != nil || len(segments) == 0 {
			return extent{}, err
		}
		last := segments[len(segments)-1].begin
		e := extent{base: segments[0].begin.tree, size: last.next() - 1, root: last.tree.root()}
		for raw, err := range Raw(r, last.next()) {
			var v envelope
			if err == nil {
				v, err = parseEnvelope(raw)
			}
			if err != nil {
				return e, inFile(r.file, err)
			}
			e.size, e.root = v.last(), v.root
		}
		return e, nil
	})
	return newProver(readTreeFile(filepath.Dir(r.file)), r, stands)
}

func newProver(t *treeFile, s source, stands func() (extent, error)) *Prover {
	records := func(from turn.Seq) iter.Seq2[[]byte, error] { return Raw(s, from) }
	return &Prover{tree: t, records: records, stands: stands, blocks: map[uint64]*block{}}
}

// extent is where a log begins and ends.
type extent struct {
	base tree // before the first event that is there
	size turn.Seq
	root Hash
}

// extent is where l begins, and where it durably ends.
func (l *Log) extent() (e extent, err error) {
	l.write.Lock()
	e.size, e.root = l.chain.next()-1, l.chain.tree.root()
	l.write.Unlock()
	first, ok, err := firstSegment(l)
	if err != nil || !ok {
		return e, err
	}
	e.base = first.begin.tree
	if first.number == 1 {
		return e, nil
	}
	old, err := archivedBefore(l, 0)
	if err == nil && len(old) > 0 {
		var begin chain
		begin, err = old[0].begin()
		e.base = begin.tree
	}
	return e, err
}

// Prove yields the events with these sequences and their proofs against the tree of the first size events. It is
// fastest in order. The error is ErrRetired for what is in the log no more.
func (p *Prover) Prove(size turn.Seq, seqs ...turn.Seq) (out []Proven, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.twice(size, func(root Hash) error {
		out = nil
		for _, seq := range seqs {
			one, err := p.prove(seq, size)
			if err != nil {
				return fmt.Errorf("prove event %d: %w", seq, err)
			}
			if err := one.Check(size, root); err != nil {
				return errors.Join(errStale, err)
			}
			out = append(out, one)
		}
		return nil
	})
	return out, err
}

// Root is the root over the first size events.
func (p *Prover) Root(size turn.Seq) (root Hash, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.twice(size, func(r Hash) error {
		root = r
		return nil
	})
	return root, err
}

// Consistency proves that the tree of the first older events is the beginning of that of the first newer ones (RFC 6962
// section 2.1.2).
func (p *Prover) Consistency(older, newer turn.Seq) (path []Hash, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	err = p.twice(newer, func(root Hash) error {
		proof, err := tlog.ProveTree(int64(newer), int64(older), p)
		if err != nil {
			return err
		}
		before, err := tlog.TreeHash(int64(older), p)
		if err != nil {
			return err
		}
		if err := tlog.CheckTree(proof, int64(newer), tlog.Hash(root), int64(older), before); err != nil {
			return errors.Join(errStale, err)
		}
		path = nil
		for _, h := range proof {
			path = append(path, Hash(h))
		}
		return nil
	})
	return path, err
}

// Grow brings the file up to date, unless ctx ends first.
func (p *Prover) Grow(ctx context.Context) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	e, err := p.stands()
	if err != nil || e.size == 0 {
		return err
	}
	return p.grow(ctx, e)
}

// twice runs f with the root over size events, and again with a tree made anew where the first one is wrong.
func (p *Prover) twice(size turn.Seq, f func(root Hash) error) error {
	e, err := p.stands()
	if err != nil {
		return err
	}
	if size > e.size || size == 0 {
		return fmt.Errorf("prove by the tree of %d events: the log has %d", size, e.size)
	}
	once := func() error {
		if err := p.grow(context.Background(), e); err != nil {
			return err
		}
		root, err := tlog.TreeHash(int64(size), p)
		if err != nil {
			return err
		}
		return f(Hash(root))
	}
	if err = once(); !errors.Is(err, errStale) {
		return err
	}
	p.known = false
	if again := p.tree.reset(&e.base); again != nil {
		return again
	}
	return once()
}

// grow brings the tree up to the log's end. The first time it is held against the log, and made anew where it is another's.
func (p *Prover) grow(ctx context.Context, e extent) error {
	p.base = e.base
	if !p.known {
		clear(p.blocks)
		if err := p.tree.cut(uint64(e.size) / treeBlock); err != nil {
			return err
		}
	}
	if p.tree.blocks < e.base.size/treeBlock { // what was retired cannot be read any more
		if err := p.tree.reset(&e.base); err != nil {
			return err
		}
	}
	for again := false; ; again = true {
		err := p.fill(ctx, uint64(e.size))
		if err == nil && !p.known {
			err = p.fits(e)
		}
		if !errors.Is(err, errStale) || again {
			p.known = err == nil
			return err
		}
		if err := p.tree.reset(&e.base); err != nil {
			return err
		}
	}
}

// fits says whether the tree is that of the log.
func (p *Prover) fits(e extent) error {
	root, err := tlog.TreeHash(int64(e.size), p)
	if err == nil && Hash(root) != e.root {
		err = errors.Join(errStale, &CorruptError{Seq: e.size, Err: errors.New("the tree head does not match the events")})
	}
	return err
}

// fill adds the blocks that the first size events complete.
func (p *Prover) fill(ctx context.Context, size uint64) error {
	if p.tree.blocks >= size/treeBlock {
		return nil
	}
	b := newBlock(p.tree.blocks, &p.base)
	for e, err := range p.events(b.next()) {
		if err != nil {
			return err
		}
		b.add(e)
		if !b.full() {
			continue
		}
		if err := p.tree.add(b.nodes[treeLevel][0]); err != nil {
			return err
		}
		if p.tree.blocks >= size/treeBlock || ctx.Err() != nil {
			return ctx.Err()
		}
		b = newBlock(p.tree.blocks, &p.base)
	}
	return &CorruptError{Seq: b.next(), Err: errors.New("the log ends before its end")}
}

// stored is an event as it is in its record.
type stored struct {
	seq    turn.Seq
	moment turn.Moment
	event  []byte // aliases the record
}

// events yields the events from seq on.
func (p *Prover) events(from turn.Seq) iter.Seq2[stored, error] {
	return func(yield func(stored, error) bool) {
		for raw, err := range p.records(from) {
			var v envelope
			if err == nil {
				v, err = parseEnvelope(raw)
			}
			if err != nil {
				yield(stored{}, err)
				return
			}
			for i, e := range v.events {
				if seq := v.first + turn.Seq(i); seq >= from && !yield(stored{seq, v.moment, e}, nil) {
					return
				}
			}
		}
	}
}

func (p *Prover) prove(seq, size turn.Seq) (Proven, error) {
	if seq == 0 || seq > size {
		return Proven{}, fmt.Errorf("it is not among the first %d", size)
	}
	b, err := p.block((uint64(seq)-1)/treeBlock, uint64(size))
	if err != nil {
		return Proven{}, err
	}
	e := b.events[(seq-1)%treeBlock]
	if e.seq != seq {
		return Proven{}, ErrRetired
	}
	path, err := tlog.ProveRecord(int64(size), int64(seq-1), p)
	if err != nil {
		return Proven{}, err
	}
	out := Proven{Seq: seq, Moment: e.moment, Stored: e.event}
	for _, h := range path {
		out.Path = append(out.Path, Hash(h))
	}
	return out, nil
}

// ReadHashes is for tlog.
func (p *Prover) ReadHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, at := range indexes {
		level, n := tlog.SplitStoredHashIndex(at)
		if level >= treeLevel {
			h, ok := p.tree.hash(level, n)
			if !ok {
				return nil, p.missing(level, n)
			}
			out[i] = tlog.Hash(h)
			continue
		}
		k := uint64(n) << level / treeBlock
		b, err := p.block(k, (uint64(n)+1)<<level)
		if err != nil {
			return nil, err
		}
		h := b.nodes[level][uint64(n)-k*treeBlock>>level]
		if h == (Hash{}) {
			return nil, p.missing(level, n)
		}
		out[i] = tlog.Hash(h)
	}
	return out, nil
}

// missing says why the n-th node of a level is not there.
func (p *Prover) missing(level int, n int64) error {
	if uint64(n+1)<<level <= p.base.size {
		return ErrRetired
	}
	return errStale
}

// block is the block k with its events at least up to size, as far as they belong to it.
func (p *Prover) block(k, size uint64) (*block, error) {
	need := min((k+1)*treeBlock, size)
	if b := p.blocks[k]; b != nil && uint64(b.next()) > need {
		return b, nil
	}
	if len(p.blocks) >= cachedBlocks {
		clear(p.blocks)
	}
	b := newBlock(k, &p.base)
	if uint64(b.next()) <= need {
		for e, err := range p.events(b.next()) {
			if err != nil {
				return nil, err
			}
			e.event = append([]byte(nil), e.event...)
			b.add(e)
			if b.full() {
				break
			}
		}
	}
	if uint64(b.next()) <= need {
		return nil, &CorruptError{Seq: b.next(), Err: errors.New("the log ends before its end")}
	}
	p.blocks[k] = b
	return b, nil
}

// block is a subtree of 256 events with all its nodes, by level; zeros are nodes that are not known (yet).
type block struct {
	first  uint64 // events before it
	have   int    // events in it so far, those that were retired counted
	nodes  [treeLevel + 1][]Hash
	events [treeBlock]stored
	hasher
}

// newBlock is the k-th block, begun where base stands if that is within it.
func newBlock(k uint64, base *tree) *block {
	b := &block{first: k * treeBlock}
	for level := range b.nodes {
		b.nodes[level] = make([]Hash, treeBlock>>level)
	}
	if base.size/treeBlock != k {
		if base.size > b.first {
			b.have = treeBlock // all of it is retired
		}
		return b
	}
	b.have = int(base.size - b.first)
	for _, s := range base.subtrees() {
		if s.level < treeLevel {
			b.nodes[s.level][uint64(s.n)-b.first>>s.level] = s.root
		}
	}
	return b
}

// next is the sequence of the next event.
func (b *block) next() turn.Seq { return turn.Seq(b.first+uint64(b.have)) + 1 }

func (b *block) full() bool { return b.have == treeBlock }

func (b *block) add(e stored) {
	b.events[b.have] = e
	h, i := b.leafHash(e.seq, e.moment, e.event), b.have
	b.nodes[0][i] = h
	for level := 1; i&1 == 1; level++ {
		h = nodeHash(b.nodes[level-1][i-1], h)
		i >>= 1
		b.nodes[level][i] = h
	}
	b.have++
}
