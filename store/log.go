package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// Names in the directory of a log.
const (
	FileName    = "log.db"
	lockName    = "lock"
	ballastName = "ballast"
	keysName    = "keys"
)

const (
	// openTimeout is how long an offline reader may keep a daemon from starting.
	openTimeout = 900 * time.Millisecond

	// mapSize is reserved in the address space: growing the map would wait for
	// every reader, so it is larger than a log gets.
	mapSize = 16 << 30
)

// Options change how a log is kept. The zero Options are what a daemon uses.
type Options struct {
	SegmentSize  int           // bytes of pages after which a segment is sealed; 0: 16 MiB
	SoftLimit    int64         // bytes of room below which it is low; 0: 64 MiB, an eighth of a small disk
	HardLimit    int64         // bytes of room below which there is none; 0: 16 MiB, a 32nd of a small disk
	BallastSize  int64         // bytes; 0: 8 MiB, a 64th of a small disk
	KeepRecords  int           // records kept in memory for tails; 0: 4096
	CheckEvery   time.Duration // how often Background looks for work; 0: 1 s
	NoSnapshots  bool          // Background takes none
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
	set(&o.KeepRecords, 4096)
	set(&o.snapshotSize, 256<<10)
	if o.CheckEvery == 0 {
		o.CheckEvery = time.Second
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

	// life guards db: whoever uses the file holds it shared, Recover and Close
	// hold it alone.
	life   sync.RWMutex
	db     *bbolt.DB // nil while the file is closed
	closed bool

	// write serializes what writes the file, and guards the fields below.
	// It is taken after life.
	write   sync.Mutex
	chain   chain
	segment segment
	zeroed  int64 // bytes up to which the file has blocks of its own

	free atomic.Int64 // bytes of free pages in the file, as of the last commit

	tails  tails
	opened *turn.State
}

// segment is the last one, to which records are appended.
type segment struct {
	number uint64
	first  turn.Seq
	size   int // bytes of pages, estimated from above
}

// Open opens the log in dir, which is made if it is not there, and replays it. It yields
// *LockedError where another daemon has it, *CorruptError where the file is damaged.
func Open(dir string, o Options) (*Log, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	lock, err := takeLock(filepath.Join(dir, lockName))
	if err != nil {
		return nil, err
	}
	l := &Log{dir: dir, options: o.withDefaults(), lock: lock}
	l.tails.keep = l.options.KeepRecords
	l.room = newRoom(dir, l.options)
	if l.opened, err = l.load(); err != nil {
		return nil, errors.Join(err, l.closeFile(), lock.Close())
	}
	return l, nil
}

// State is the fold of the log as Open found it. It belongs to the caller.
func (l *Log) State() *turn.State { return l.opened }

// Dir is the directory of l.
func (l *Log) Dir() string { return l.dir }

// load opens the file, migrates it and folds the log. Called with no one else in l.
func (l *Log) load() (*turn.State, error) {
	file := filepath.Join(l.dir, FileName)
	fresh, err := makeFile(file)
	if err != nil {
		return nil, err
	}
	var state *turn.State
	err = guard(file, func() error {
		l.db, err = bbolt.Open(file, 0o600, &bbolt.Options{
			Timeout: openTimeout, FreelistType: bbolt.FreelistMapType, InitialMmapSize: mapSize, PageSize: l.options.pageSize,
		})
		if err != nil {
			return openError(file, err)
		}
		if _, err := migrations.Up(l.db); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
		l.zeroed = l.highWater()
		state, err = l.replay()
		return err
	})
	if err != nil {
		return nil, err
	}
	if fresh {
		if err := syncDir(l.dir); err != nil {
			return nil, err
		}
	}
	l.tails.reset(state.Seq())
	return state, nil
}

// makeFile makes an empty file where there is none, so that damage (an empty
// file that once was a log) and novelty are told apart by bbolt alone.
func makeFile(file string) (fresh bool, err error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_EXCL|os.O_RDWR, 0o600)
	if errors.Is(err, os.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("create log: %w", err)
	}
	return true, f.Close()
}

// openError says what bbolt's refusal to open means.
func openError(file string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s is in use by another process: %w", file, ErrInUse)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return &CorruptError{File: file, Err: err}
	}
	return fmt.Errorf("open %s: %w", file, err)
}

// ErrInUse says that another process has the file open.
var ErrInUse = errors.New("the log is in use")

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
	return errors.Join(l.closeFile(), l.lock.Close())
}

func (l *Log) closeFile() error {
	if l.db == nil {
		return nil
	}
	db := l.db
	l.db = nil
	return guard(l.dir, db.Close)
}

// Recover goes on after Append failed, when nobody knows whether its record is on disk. It
// closes the file, drops what the kernel has cached of it (after a failed sync its
// pages look clean and are not), and opens and replays it from the disk. The state
// it yields is the truth; what it lacks was never answered.
func (l *Log) Recover() (*turn.State, error) {
	l.life.Lock()
	defer l.life.Unlock()
	if l.closed {
		return nil, os.ErrClosed
	}
	if err := l.closeFile(); err != nil {
		return nil, fmt.Errorf("recover log: %w", err)
	}
	if err := dropCache(filepath.Join(l.dir, FileName)); err != nil {
		return nil, fmt.Errorf("recover log: %w", err)
	}
	state, err := l.load()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("recover log: %w", err), l.closeFile())
	}
	return state, nil
}

func dropCache(file string) error {
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", dir, err)
	}
	return nil
}
