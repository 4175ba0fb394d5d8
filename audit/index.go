package audit

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/store"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// FileName is the name of the index in the directory of a log.
const FileName = "index.db"

// blockEvents is how many events a block is of at most, unless one record has more.
const blockEvents = 16 << 10

// Source is the log that an index is of.
type Source interface {
	// Records yields the records from the one that holds from.
	Records(from turn.Seq) iter.Seq2[turn.Record, error]
	// Head is the last sequence there is.
	Head() (turn.Seq, error)
	// ChainAt is the hash of the record that ends at a sequence, false where none does.
	ChainAt(seq turn.Seq) ([32]byte, bool, error)
	// Segments lists where the segments begin that there are, with those that are archived if that is asked for: that may take a while.
	Segments(archived bool) ([]store.SegmentStart, error)
	// Before is the state before seq, where the events before it are gone; nil where it is not known.
	Before(seq turn.Seq) (*turn.State, error)
}

// Options say how an index is opened.
type Options struct {
	Keys     *store.Keyring // of segments whose events are encrypted
	ReadOnly bool           // it is used as it is
	Lazy     bool           // it is written only where it is of little use as it is, and where it cannot be, one is made for this once
	Wait     time.Duration  // for others who have it open
	Owner    bool           // Keys are all there are: what they do not open nobody can read any more, and it goes

	blockEvents turn.Seq // 0: as the constant has it
}

// Index is an index.db and the log it is of. It may be used from any goroutine.
type Index struct {
	name    string
	source  Source
	options Options

	advancing sync.Mutex    // one goroutine at a time brings it up to date
	done, all atomic.Uint64 // how far it has come
	oldest    atomic.Uint64 // event in the log's file when what is gone was removed last

	life     sync.RWMutex // guards the fields below: whoever uses file holds it shared
	file     *store.Side
	readOnly bool
	once     string // directory of one that is made for this once, empty for none
}

// errStale says that an index is of another log, or of another history of it.
var errStale = errors.New("the index is not of this log as it is now")

// Names in index.db.
var (
	blocksName = []byte("blocks")
	openName   = []byte("open")
)

// Open opens the index of s in the file name. It is made where it is missing, and made anew where it is damaged; with
// ReadOnly that is an error.
func Open(name string, s Source, o Options) (*Index, error) {
	if o.blockEvents == 0 {
		o.blockEvents = blockEvents
	}
	x := &Index{name: name, source: s, options: o, readOnly: o.ReadOnly || o.Lazy}
	file, err := store.OpenSide(name, x.readOnly, o.Wait)
	switch {
	case err == nil:
		x.file = file
		return x, nil
	case o.ReadOnly, !o.Lazy && errors.Is(err, store.ErrInUse):
		return nil, err
	case o.Lazy && (errors.Is(err, os.ErrNotExist) || errors.Is(err, store.ErrInUse)):
		return x, x.write(true)
	}
	return x, x.renew()
}

// Close closes the file.
func (x *Index) Close() error {
	x.life.Lock()
	defer x.life.Unlock()
	return x.close()
}

func (x *Index) close() (err error) {
	if x.file != nil {
		err = x.file.Close()
		x.file = nil
	}
	if x.once != "" {
		err = errors.Join(err, os.RemoveAll(x.once))
		x.once = ""
	}
	return err
}

// renew begins the file anew, with nothing in it.
func (x *Index) renew() error {
	x.life.Lock()
	defer x.life.Unlock()
	if x.options.ReadOnly {
		return errStale
	}
	_ = x.close() // what is wrong with it does not matter any more
	var err error
	if failed := os.Remove(x.name); failed != nil && !errors.Is(failed, os.ErrNotExist) {
		err = failed
	} else if x.file, err = store.OpenSide(x.name, false, x.options.Wait); err == nil {
		x.readOnly = false
		return nil
	}
	if x.options.Lazy {
		return x.onceOnly()
	}
	return fmt.Errorf("renew index: %w", err)
}

// write has a lazy index written from now on. Where that is not possible it stays as it is, unless it is of no use so.
func (x *Index) write(useless bool) error {
	x.life.Lock()
	defer x.life.Unlock()
	_ = x.close()
	var err error
	if x.file, err = store.OpenSide(x.name, false, x.options.Wait); err == nil {
		x.readOnly = false
		return nil
	}
	if useless {
		return x.onceOnly()
	}
	x.file, err = store.OpenSide(x.name, true, x.options.Wait)
	return err
}

// onceOnly makes an index that goes with x.
func (x *Index) onceOnly() (err error) {
	if x.once, err = os.MkdirTemp("", "turnstone-index-*"); err != nil {
		return fmt.Errorf("make an index for this once: %w", err)
	}
	x.name, x.readOnly = filepath.Join(x.once, FileName), false
	x.file, err = store.OpenSide(x.name, false, x.options.Wait)
	return err
}

func (x *Index) view(f func(*bbolt.Tx) error) error {
	x.life.RLock()
	defer x.life.RUnlock()
	if x.file == nil {
		return os.ErrClosed
	}
	return x.file.View(f)
}

func (x *Index) update(f func(*bbolt.Tx) error) error {
	x.life.RLock()
	defer x.life.RUnlock()
	if x.file == nil {
		return os.ErrClosed
	}
	return x.file.Update(f)
}

// bad says whether err means that the index has to be made anew.
func (x *Index) bad(err error) bool {
	var damage *store.CorruptError
	return errors.Is(err, errStale) || errors.Is(err, errBlock) || errors.Is(err, errRow) || errors.As(err, &damage) && damage.File == x.name
}

func (x *Index) cipherFor(segment uint64, sealed bool) (*cipher, error) {
	return cipherOf(x.options.Keys, segment, sealed)
}

// cipherNow is what rows of a segment are to be stored with: encrypted where there is a key for it.
func (x *Index) cipherNow(segment uint64) (*cipher, error) {
	sealed := false
	if x.options.Keys != nil {
		var err error
		if sealed, err = x.options.Keys.Has(segment); err != nil {
			return nil, err
		}
	}
	return x.cipherFor(segment, sealed)
}

// load reads how far the index has come, with what is open there if rows is set. The error is errStale where it is not of the log.
func (x *Index) load(rows bool) (c *carried, err error) {
	var in carriedRows
	err = x.view(func(tx *bbolt.Tx) error {
		open := tx.Bucket(openName)
		if open == nil {
			c = &carried{builder: NewBuilder()}
			return nil
		}
		if c, in, err = parseCarried(open.Get(carriedKey)); err != nil || !rows {
			return err
		}
		for i := range in.chunks {
			in.chunks[i] = bytes.Clone(open.Get(chunkKey(i)))
		}
		return nil
	})
	if err != nil || c.last == 0 {
		return c, err
	}
	if rows {
		if err := in.decode(c, x.options.Keys); err != nil {
			return c, err
		}
	}
	chain, ok, err := x.source.ChainAt(c.last)
	if err == nil && (!ok || chain != c.chain) {
		err = errStale
	}
	return c, err
}

// Behind is how many events of the log are not in the index. It yields all of them where that is not of this log.
func (x *Index) Behind() (turn.Seq, error) {
	head, err := x.source.Head()
	if err != nil {
		return 0, err
	}
	c, err := x.load(false)
	switch {
	case x.bad(err):
		return head, nil
	case err != nil:
		return 0, err
	}
	return head - min(c.last, head), nil
}

// Progress is told how far an index has come, and how far it has to come.
type Progress func(done, all turn.Seq)

// Advance brings the index up to the last block that is complete. It makes it anew where it is not of the log, or damaged. What
// it has done stays done when ctx ends.
func (x *Index) Advance(ctx context.Context, p Progress) error {
	if err := x.turn(ctx, p); err != nil {
		return err
	}
	defer x.advancing.Unlock()
	tell := func(done, all turn.Seq) {
		x.done.Store(uint64(done))
		x.all.Store(uint64(all))
		if p != nil {
			p(done, all)
		}
	}
	err := x.advance(ctx, tell)
	if !x.bad(err) {
		return err
	}
	if err := x.renew(); err != nil {
		return err
	}
	return x.advance(ctx, tell)
}

// turn waits until nobody else brings x up to date, and tells p meanwhile how they get on.
func (x *Index) turn(ctx context.Context, p Progress) error {
	if x.advancing.TryLock() {
		return nil
	}
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for !x.advancing.TryLock() {
		if p != nil {
			p(turn.Seq(x.done.Load()), turn.Seq(x.all.Load()))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (x *Index) advance(ctx context.Context, p Progress) error {
	head, err := x.source.Head()
	if err != nil {
		return err
	}
	starts, err := x.source.Segments(true) // after head, so that it has all of them up to there
	if err != nil || len(starts) == 0 {
		return err
	}
	c, err := x.load(true)
	if err != nil {
		return err
	}
	first := starts[0].First
	if err := x.forget(first); err != nil {
		return err
	}
	for {
		if c.last+1 < first {
			if c.last > 0 {
				return errStale // it ends in what is gone
			}
			if err := x.begin(c, first); err != nil {
				return err
			}
		}
		err := x.read(ctx, advancing{index: x, starts: starts, head: head, carried: c, progress: p})
		var missing *store.KeyError
		if !errors.As(err, &missing) {
			return err
		}
		if first = behind(starts, missing.Segment); first == 0 || c.last > 0 && !x.options.Owner {
			return err
		}
		if c.last > 0 {
			if err := x.renew(); err != nil {
				return err
			}
		}
		c = &carried{builder: NewBuilder()}
	}
}

// behind is where the segment after number n begins, 0 where there is none.
func behind(starts []store.SegmentStart, n uint64) turn.Seq {
	for _, s := range starts {
		if s.Number > n {
			return s.First
		}
	}
	return 0
}

// read adds the records that follow, up to the head.
func (x *Index) read(ctx context.Context, a advancing) error {
	for r, err := range x.source.Records(a.carried.last + 1) {
		if err = errors.Join(err, ctx.Err()); err != nil {
			return err
		}
		if r.Last() > a.head {
			break
		}
		if err := a.add(r); err != nil {
			return err
		}
	}
	return nil
}

// begin has c begin with the log, whose events before first are gone.
func (x *Index) begin(c *carried, first turn.Seq) error {
	c.last = first - 1
	c.builder.last = c.last
	s, err := x.source.Before(first)
	if err != nil || s == nil {
		return err
	}
	c.builder.Seed(s)
	return nil
}

// forget removes the blocks of events that are in the log no more, and those that nobody can read.
func (x *Index) forget(first turn.Seq) error {
	var gone [][]byte
	err := x.view(func(tx *bbolt.Tx) error {
		return eachHead(tx, func(k []byte, h blockHead) (err error) {
			there := true
			if h.Sealed && x.options.Owner {
				if there, err = x.options.Keys.Has(h.Segment); err != nil {
					return err
				}
			}
			if h.First < first || !there {
				gone = append(gone, bytes.Clone(k))
			}
			return nil
		})
	})
	if err != nil || len(gone) == 0 {
		return err
	}
	return x.update(func(tx *bbolt.Tx) error {
		for _, k := range gone {
			if err := tx.Bucket(blocksName).DeleteBucket(k); err != nil {
				return err
			}
		}
		return nil
	})
}

// commitBlocks is how many blocks are written in one transaction where many are to come.
const commitBlocks = 8

// advancing is an index on its way to the end of the log.
type advancing struct {
	index    *Index
	starts   []store.SegmentStart
	head     turn.Seq
	carried  *carried
	pending  []pendingBlock
	progress Progress
}

type pendingBlock struct {
	first turn.Seq
	pairs []pair
}

// segmentOf is the number of the segment that seq is in.
func segmentOf(starts []store.SegmentStart, seq turn.Seq) (n uint64) {
	for _, s := range starts {
		if s.First <= seq {
			n = s.Number
		}
	}
	return n
}

// cuts says whether a block that begins at first and holds all before r ends there.
func cuts(starts []store.SegmentStart, first turn.Seq, r turn.Record, most turn.Seq) bool {
	if r.First == first {
		return false
	}
	if r.Last()-first+1 > most {
		return true
	}
	for _, s := range starts {
		if s.First == r.First {
			return true
		}
	}
	return false
}

func (a *advancing) add(r turn.Record) error {
	if r.First != a.carried.builder.last+1 {
		return fmt.Errorf("index the log: the record after event %d begins at %d", a.carried.builder.last, r.First)
	}
	if cuts(a.starts, a.carried.last+1, r, a.index.options.blockEvents) {
		if err := a.cut(); err != nil {
			return err
		}
	}
	a.carried.builder.Add(r)
	return nil
}

// cut makes a block of what was added since the last one.
func (a *advancing) cut() error {
	c := a.carried
	first, last := c.last+1, c.builder.last
	segment := segmentOf(a.starts, first)
	k, err := a.index.cipherNow(segment)
	if err != nil {
		return err
	}
	b, err := encodeBlock(blockHead{First: first, Last: last, Segment: segment}, c.builder.cut(), k)
	if err != nil {
		return err
	}
	a.pending = append(a.pending, pendingBlock{first, b})
	c.last, c.segment = last, segment
	a.progress(last, a.head)
	if len(a.pending) < commitBlocks && a.head-last > 2*a.index.options.blockEvents {
		return nil
	}
	return a.commit(k)
}

// commit writes the blocks that wait, and what is open behind them.
func (a *advancing) commit(k *cipher) error {
	c := a.carried
	chain, ok, err := a.index.source.ChainAt(c.last)
	if err != nil {
		return err
	}
	if !ok {
		return errStale
	}
	c.chain = chain
	head, chunks, err := c.encode(k)
	if err != nil {
		return err
	}
	pending := a.pending
	a.pending = nil
	return a.index.update(func(tx *bbolt.Tx) error {
		blocks, err := tx.CreateBucketIfNotExists(blocksName)
		if err != nil {
			return err
		}
		for _, p := range pending {
			if err := p.put(blocks); err != nil {
				return err
			}
		}
		if tx.Bucket(openName) != nil {
			if err := tx.DeleteBucket(openName); err != nil {
				return err
			}
		}
		open, err := tx.CreateBucket(openName)
		if err != nil {
			return err
		}
		open.FillPercent = 1
		for i, one := range chunks {
			if err := open.Put(chunkKey(i), one); err != nil {
				return err
			}
		}
		return open.Put(carriedKey, head)
	})
}

func (p *pendingBlock) put(blocks *bbolt.Bucket) error {
	b, err := blocks.CreateBucket(binary.BigEndian.AppendUint64(nil, uint64(p.first)))
	if err != nil {
		return err
	}
	b.FillPercent = 1
	for _, v := range p.pairs {
		if err := b.Put(v.key, v.value); err != nil {
			return err
		}
	}
	return nil
}
