package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// WriteFile makes a log of records, which begin with it, in a file of its own: whole or not at all. The error is
// os.ErrExist where there is one already.
func WriteFile(file string, records []turn.Record) (err error) {
	dir, err := os.MkdirTemp(filepath.Dir(file), ".log-*")
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	l, err := Open(dir, Options{NoSnapshots: true, NoSync: true})
	if err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	for _, r := range records {
		if err := l.Append(r); err != nil {
			return errors.Join(err, l.Close())
		}
	}
	size := l.highWater()
	made := filepath.Join(dir, FileName)
	if err := errors.Join(l.Close(), os.Truncate(made, size)); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	if err := renameNew(made, file); err != nil {
		return fmt.Errorf("write log: %w", err)
	}
	return syncDir(filepath.Dir(file))
}

// renameNew renames a file to a name that nothing has.
func renameNew(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // the file system cannot
		if _, err := os.Lstat(to); !errors.Is(err, os.ErrNotExist) {
			return &os.PathError{Op: "create", Path: to, Err: os.ErrExist}
		}
		return os.Rename(from, to)
	}
	if err != nil {
		return &os.PathError{Op: "create", Path: to, Err: err}
	}
	return nil
}
