package store

import (
	"fmt"
	"os"
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
	return fmt.Sprintf("%s is held by another turnstone (pid %d)", e.File, e.PID)
}

// takeLock locks file for this process. The lock goes with the descriptor: a
// killed daemon leaves none behind.
func takeLock(file string) (*os.File, error) {
	f, err := os.OpenFile(file, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		defer f.Close()
		holder := make([]byte, 32)
		n, _ := f.Read(holder)
		pid, _ := strconv.Atoi(strings.TrimSpace(string(holder[:n])))
		return nil, &LockedError{File: file, PID: pid}
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
