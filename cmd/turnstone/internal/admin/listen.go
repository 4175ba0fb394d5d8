package admin

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
)

// Listen opens the socket at path, mode 0600. One that a dead daemon left behind gives
// way; anything else that is there does not. It sets the umask for a moment, so it is for the start.
func Listen(path string) (*net.UnixListener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("open admin socket: %s is in use by another process: choose another with --admin-socket", path)
	}
	if info, err := os.Lstat(path); err == nil && info.Mode().Type() != os.ModeSocket {
		return nil, fmt.Errorf("open admin socket: %s is there and is no socket", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	old := syscall.Umask(0o177)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	syscall.Umask(old)
	if err != nil {
		return nil, fmt.Errorf("open admin socket: %w", err)
	}
	return l, nil
}

// Inherit is the socket at path of an earlier process, nil where fd is none that path leads to. The descriptor stays
// the caller's.
func Inherit(fd int, path string) *net.UnixListener {
	dup, err := syscall.Dup(fd)
	if err != nil {
		return nil
	}
	syscall.CloseOnExec(dup)
	file := os.NewFile(uintptr(dup), path)
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil
	}
	u, ok := l.(*net.UnixListener)
	if !ok || u.Addr().String() != path || !leads(path) {
		l.Close()
		return nil
	}
	return u
}

// leads says whether path still leads to a socket that listens.
func leads(path string) bool {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
