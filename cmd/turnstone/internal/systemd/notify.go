// Package systemd speaks with a service manager: sd_notify(3), sockets it opened (sd_listen_fds(3)), and its store of
// file descriptors, by which sockets outlive the process. Whatever sets the same variables is spoken with.
package systemd

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"
)

// What the manager can be told.
const (
	Ready    = daemon.SdNotifyReady
	Stopping = daemon.SdNotifyStopping
	Alive    = daemon.SdNotifyWatchdog
)

// Status is a line for people.
func Status(format string, args ...any) string {
	return "STATUS=" + strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", " ")
}

// Reloading begins a reload, which [Ready] ends.
func Reloading() string {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, ts.Nano()/1000)
}

// MainPID says that this process is the service from now on.
func MainPID() string { return fmt.Sprintf("MAINPID=%d", os.Getpid()) }

// Notify tells the manager, if there is one.
func Notify(lines string) error {
	_, err := daemon.SdNotify(false, lines)
	return err
}

// send tells the manager at a socket's name, and hands it descriptors, which stay the caller's.
func send(s int, name, lines string, fds []int) error {
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(s, []byte(lines), rights, &unix.SockaddrUnix{Name: name}, unix.MSG_NOSIGNAL)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("notify the service manager: %w", err)
		}
		return nil
	}
}

// Watchdog is how often the manager wants to hear that the process lives, zero where it does not.
func Watchdog() time.Duration {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		return 0 // a malformed WATCHDOG_USEC is no reason not to relay
	}
	return every
}
