package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// LockedError says that another daemon has the log.
type LockedError struct {
	File string
	PID  int // 0 where it is not known
}

func (e *LockedError) Error() string {
	if e.PID == 0 {
		return e.File + " is held by another turnstone"
	}
	return fmt.Sprintf("%s is held by another turnstone (pid %d)", e.File, e.PID)
}

// takeLock locks file for this process. The lock goes with the descriptor: a
// killed daemon leaves none behind. It is a lock of the open file (F_OFD_SETLK), which,
// unlike flock, others can ask for without taking it.
func takeLock(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	err = unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK})
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EACCES):
		defer f.Close()
		return nil, &LockedError{File: file, PID: holder(f)}
	case err != nil:
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", file, err)
	}
	if err = f.Truncate(0); err == nil {
		_, err = f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("write %s: %w", file, err)
	}
	return f, nil
}

// holder is the pid that the one who locked f wrote there.
func holder(f *os.File) int {
	b := make([]byte, 32)
	n, _ := f.ReadAt(b, 0)
	pid, _ := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	return pid
}

// unlocked is an error of ErrInUse where a daemon has the log whose file is given. It takes no
// lock itself, so that it is never in the way of one.
func unlocked(file string) error {
	f, err := os.Open(filepath.Join(filepath.Dir(file), lockName))
	if err != nil {
		return nil // a copy, or a log that no daemon has opened yet
	}
	defer f.Close()
	lock := unix.Flock_t{Type: unix.F_WRLCK}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err == nil && lock.Type != unix.F_UNLCK {
		return fmt.Errorf("%s is held by another turnstone (pid %d): %w", file, holder(f), ErrInUse)
	}
	return nil
}
