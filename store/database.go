package store

import (
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"time"

	"turnstone/migrations"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"golang.org/x/sys/unix"
)

// closeTimeout is how long closing may take once nobody uses the file. Only a lock that
// a panic left behind in bbolt takes longer.
const closeTimeout = 2 * time.Second

// mapSizes are tried one after the other. Growing the map would wait for every reader, so
// it is to be larger than a log gets; where the address space is limited it is smaller.
var mapSizes = []int64{16 << 30, 1 << 30, 0}

// Errors of access to the file.
var (
	// ErrInUse says that another process has the file open.
	ErrInUse = errors.New("the log is in use")
	// ErrUnavailable says that the log is closed after a failure, until Recover has opened it again.
	ErrUnavailable = errors.New("the log is not available until it has recovered")
	// errStuck says that bbolt holds a lock for ever.
	errStuck = errors.New("the file cannot be closed: restart the server")
)

// database is an open bbolt file.
type database struct {
	*bbolt.DB
	file *os.File
}

// openDatabase opens an existing file whose pages have been checked. Damage is a *CorruptError.
func openDatabase(file string, o bbolt.Options) (*database, error) {
	d := &database{}
	o.FreelistType = bbolt.FreelistMapType
	o.OpenFile = func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		f, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
		d.file = f
		return f, err
	}
	err := guard(file, func() (err error) {
		for _, size := range mapSizes {
			if size > math.MaxInt || o.ReadOnly && size > 0 {
				continue
			}
			o.InitialMmapSize = int(size)
			if d.DB, err = bbolt.Open(file, 0o600, &o); !errors.Is(err, unix.ENOMEM) {
				break
			}
		}
		return err
	})
	if err == nil {
		return d, nil
	}
	if d.file != nil { // bbolt does not close it when it panics
		_ = unix.Flock(int(d.file.Fd()), unix.LOCK_UN)
		_ = d.file.Close()
	}
	return nil, openError(file, err)
}

// openError says what bbolt's refusal to open means.
func openError(file string, err error) error {
	var damage *CorruptError
	switch {
	case errors.As(err, &damage):
		return err
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("%s is in use by another process: %w", file, ErrInUse)
	case errors.Is(err, berrors.ErrInvalid), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrVersionMismatch):
		return &CorruptError{File: file, Err: err}
	}
	return fmt.Errorf("open %s: %w", file, err)
}

// close closes d, whose users are gone.
func (d *database) close() error {
	closed := make(chan error, 1)
	name := d.file.Name()
	go func() { closed <- guard(name, d.Close) }()
	select {
	case err := <-closed:
		return err
	case <-time.After(closeTimeout):
		return errors.Join(errStuck, unix.Flock(int(d.file.Fd()), unix.LOCK_UN))
	}
}

// transact runs f in a write transaction and commits it. Where something panics the transaction is
// given up, so that d can still be closed.
func (d *database) transact(f func(*bbolt.Tx) error) error {
	return guard(d.file.Name(), func() error {
		tx, err := d.Begin(true)
		if err != nil {
			return err
		}
		defer func() {
			if tx.DB() != nil {
				_ = tx.Rollback()
			}
		}()
		if err := f(tx); err != nil {
			return err
		}
		return tx.Commit()
	})
}

// makeFile makes a log of the current schema where there is none: whole, or not at
// all, so that an empty file is known to be damaged.
func makeFile(file string, pageSize int) error {
	if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	fresh := file + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("create log: %w", err)
	}
	db, err := bbolt.Open(fresh, 0o600, &bbolt.Options{Timeout: openTimeout, FreelistType: bbolt.FreelistMapType, PageSize: pageSize})
	if err != nil {
		return fmt.Errorf("create log: %w", err)
	}
	_, err = migrations.Up(db)
	if err = errors.Join(err, db.Close()); err == nil {
		err = os.Rename(fresh, file)
	}
	if err != nil {
		return fmt.Errorf("create log: %w", errors.Join(err, os.Remove(fresh)))
	}
	return syncDir(filepath.Dir(file))
}

// checkFile checks the pages of a file, for which it waits for a while where someone writes it.
func checkFile(file string, wait time.Duration) error {
	f, err := os.OpenFile(file, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe would wait for its writer
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	if !info.Mode().IsRegular() {
		return fmt.Errorf("open log: %s is not a regular file", file)
	}
	if err := share(f, wait); err != nil {
		return err
	}
	if err := checkPages(f, info.Size(), false); err != nil {
		return damageOrIO(file, err)
	}
	return nil
}

// share takes the lock of f that bbolt's readers take. It goes with the descriptor.
func share(f *os.File, wait time.Duration) error {
	const step = 10 * time.Millisecond
	for ; ; wait -= step {
		err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return err
		}
		if wait <= 0 {
			return fmt.Errorf("%s is in use by another process: %w", f.Name(), ErrInUse)
		}
		time.Sleep(step)
	}
}

// damageOrIO tells a file that makes no sense from one that cannot be read.
func damageOrIO(file string, err error) error {
	var failed *os.PathError
	if errors.As(err, &failed) || errors.Is(err, ErrInUse) {
		return fmt.Errorf("check %s: %w", file, err)
	}
	return &CorruptError{File: file, Err: err}
}

// makeDir makes the directory of a log, durably.
func makeDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	err := syncDir(filepath.Dir(filepath.Clean(dir)))
	if errors.Is(err, os.ErrPermission) {
		return nil // a directory of others, who made dir for us
	}
	return err
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

// dropCache makes sure that what is read next comes from the disk: what the kernel still means to write is
// written, through a descriptor that has seen no error, and then all it has is dropped.
func dropCache(file string) error {
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}
