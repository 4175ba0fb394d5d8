// Package netlab makes the hosts that demonstrations and measurements run on: network namespaces of their own, and
// settings of the links in them.
package netlab

import (
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// Space is a network namespace with a thread in it. It has no name: it ends with the last thread, socket and process in
// it, however this process ends. A nil Space is the namespace of this process.
type Space struct {
	fd    int
	calls chan func()
	done  chan struct{}
}

// New makes a Space, with a loopback that is down.
func New() (*Space, error) {
	s := &Space{calls: make(chan func()), done: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(s.done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			s.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		made <- err
		if err != nil {
			return
		}
		for f := range s.calls {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return s, nil
}

// FD is a descriptor of the namespace, good until Close.
func (s *Space) FD() int { return s.fd }

// Do runs f in the namespace. Sockets that f opens and processes that it starts stay there.
func (s *Space) Do(f func() error) error {
	if s == nil {
		return f()
	}
	errs := make(chan error)
	s.calls <- func() { errs <- f() }
	return <-errs
}

// Thread runs f on a thread of its own in the namespace.
func (s *Space) Thread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Setns(s.fd, unix.CLONE_NEWNET)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// Close lets go of the namespace.
func (s *Space) Close() {
	close(s.calls)
	<-s.done
	_ = unix.Close(s.fd)
}
