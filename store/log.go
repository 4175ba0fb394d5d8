package store

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Names in the directory of a log.
const (
	FileName    = "log.db"
	lockName    = "lock"
	ballastName = "ballast"
	keysName    = "keys"
)

// openTimeout is how long an offline reader may keep a daemon from starting. It sees
// the daemon's lock before its next chunk.
const openTimeout = 900 * time.Millisecond

// Options change how a log is kept. The zero Options are what a daemon uses.
type Options struct {
	SegmentSize int           // bytes of pages after which a segment is sealed; 0: 16 MiB
	SoftLimit   int64         // bytes of room below which it is low; 0: 64 MiB, an eighth of a small disk
	HardLimit   int64         // bytes of room below which there is none; 0: 16 MiB, a 32nd of a small disk
	BallastSize int64         // bytes; 0: 8 MiB, a 64th of a small disk
	KeepEvents  int           // events kept in memory for tails, at least; 0: 16384
	CheckEvery  time.Duration // how often Background looks for work; 0: 1 s
	NoSnapshots bool          // Background takes none
	NoSync      bool          // nothing is durable before Close: for logs that are made, not kept
	Encrypt     bool          // what is appended is sealed, see [Keyring]
	ForgetAge   time.Duration // of events whose segments Background forgets; 0: it forgets none
	Version     string        // of the program, kept in the file; empty for none
	Retention   Retention     // what Background keeps; SetRetention changes it
	Trouble     func(error)   // told by Background of what fails and is tried again; may be nil

	now          func() time.Time
	mostFree     int64 // bytes of free pages beside which a segment may go; 0: 32 MiB
	pageSize     int
	snapshotSize int // of a chunk, for tests
}

func (o Options) withDefaults() Options {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&o.SegmentSize, 16<<20)
	set(&o.KeepEvents, 16384)
	set(&o.snapshotSize, snapshotChunk)
	if o.CheckEvery == 0 {
		o.CheckEvery = time.Second
	}
	if o.mostFree == 0 {
		o.mostFree = 32 << 20
	}
	if o.now == nil {
		o.now = time.Now
	}
	return o
}

// Log is an open log. Append and Recover belong to one goroutine; everything
// else may be called from any.
type Log struct {
	dir     string
	options Options
	lock    *os.File
	room    *room
	keys    *Keyring

	// life guards db: whoever uses the file holds it shared, Recover and Close
	// hold it alone.
	life   sync.RWMutex
	db     *database // nil while the file is closed
	closed bool
	stuck  bool // the file was not to be closed

	// write serializes what writes the file, and guards the fields below.
	// It is taken after life.
	write   sync.Mutex
	chain   chain
	segment segment
	renew   bool  // the next record begins a segment
	zeroed  int64 // bytes up to which the file has blocks of its own
	failed  error // of the commit after which only Recover may follow
	signed  bool  // the file says which version writes it

	free atomic.Int64 // bytes of free pages in the file, as of the last commit

	forgetting sync.Mutex // held while segments are forgotten

	retention atomic.Pointer[Retention]
	kept      atomic.Pointer[Kept]
	archives  atomic.Pointer[Archives] // of the log; nil for none

	tails  tails
	opened *turn.State

	migration Migration

	id    turn.LogID // of the last EpochBegan; guarded by write
	epoch uint64

	prover   *Prover
	treeFile io.Closer // nil where the tree is in memory
}

// Open opens the log in dir, which is made if it is not there, and replays it. It yields
// *LockedError where another daemon has it, *CorruptError where the file is damaged.
func Open(dir string, o Options) (*Log, error) {
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	lock, err := takeLock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, err
	}
	l := &Log{dir: dir, options: o.withDefaults(), lock: lock, keys: NewKeyring(Keys(dir))}
	l.tails.keep = l.options.KeepEvents
	l.SetRetention(o.Retention)
	l.room = newRoom(dir, l.options)
	if err = makeFile(l.name(), l.options.pageSize); err == nil {
		l.opened, err = l.load()
	}
	if err != nil {
		return nil, errors.Join(err, l.closeFile(), lock.Close())
	}
	l.openTree()
	return l, nil
}

// openTree opens DIR/tree. Where that cannot be had, memory does.
func (l *Log) openTree() {
	tree, file, err := openTreeFile(l.dir)
	if err != nil {
		tree = newTreeFile(&memory{}, 0)
	}
	l.treeFile = file
	l.prover = newProver(tree, l, l.extent)
}

// State is the fold of the log as Open or Recover found it. It belongs to the caller.
func (l *Log) State() *turn.State { return l.opened }

// Migration is what opening took to bring the file to the present schema.
func (l *Log) Migration() Migration { return l.migration }

// Dir is the directory of l.
func (l *Log) Dir() string { return l.dir }

// load opens the file, migrates it and folds the log. Called with no one else in l.
func (l *Log) load() (*turn.State, error) {
	file := l.name()
	if err := checkFile(file, openTimeout); err != nil {
		return nil, err
	}
	db, err := openDatabase(file, bbolt.Options{Timeout: openTimeout, NoSync: l.options.NoSync})
	if err != nil {
		return nil, err
	}
	l.db = db
	var state *turn.State
	err = guard(file, func() error {
		m, err := migrate(l.db)
		if err != nil {
			return inSchema(file, err)
		}
		if m.Steps > 0 {
			l.migration = m
		}
		l.zeroed = l.highWater()
		if state, err = l.replay(); err != nil {
			return fileOf{l}.view(func(tx *bbolt.Tx) error { return writtenBy(tx, err) })
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	l.failed, l.id, l.epoch = nil, state.Log(), state.Epoch()
	l.countFree()
	l.tails.reset(state.Seq())
	return state, nil
}

// highWater is the size of the part of the file that has been written to, in bytes.
func (l *Log) highWater() (size int64) {
	_ = l.db.View(func(tx *bbolt.Tx) error {
		size = tx.Size()
		return nil
	})
	return size
}

// Close ends l. Records that Append confirmed are safe without it.
func (l *Log) Close() error {
	l.tails.close()
	l.life.Lock()
	defer l.life.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.treeFile != nil {
		_ = l.treeFile.Close() // it can be made again
	}
	return errors.Join(l.closeFile(), l.lock.Close())
}

func (l *Log) closeFile() error {
	if l.db == nil {
		return nil
	}
	db := l.db
	l.db = nil
	var err error
	if l.options.NoSync {
		err = db.Sync()
	}
	err = errors.Join(err, db.close())
	l.stuck = l.stuck || errors.Is(err, errStuck)
	return err
}

// Recover goes on after Append failed, when nobody knows whether its record is on disk. It
// closes the file, drops what the kernel has cached of it (after a failed sync its
// pages look clean and are not), and opens and replays it from the disk. The state
// it yields is the truth; what it lacks was never answered. After an error of
// Recover only Recover may follow, or Close.
func (l *Log) Recover() (*turn.State, error) {
	l.life.Lock()
	defer l.life.Unlock()
	if l.closed {
		return nil, os.ErrClosed
	}
	err := l.closeFile()
	if l.stuck { // its pages stay mapped, and what is mapped cannot be dropped
		err = errStuck
	}
	if err != nil {
		return nil, fmt.Errorf("recover log: %w", err)
	}
	if err := dropCache(l.name()); err != nil {
		return nil, fmt.Errorf("recover log: %w", err)
	}
	if l.opened, err = l.load(); err != nil {
		return nil, errors.Join(fmt.Errorf("recover log: %w", err), l.closeFile())
	}
	return l.opened, nil
}
