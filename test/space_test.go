package test

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"turnstone/internal/testenv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// space is a network namespace with nothing but lo, and on wish a mount namespace. Both
// have no name: they end with the last process and descriptor in them, even when a test is killed.
type space struct {
	t      testing.TB
	net    netns.NsHandle
	mounts int // descriptor, -1 for the host's
}

// newSpace makes a space for t.
func newSpace(t testing.TB) *space {
	t.Helper()
	testenv.Root(t)
	s := &space{t: t, mounts: -1}
	onThread(t, func() error {
		var err error
		if s.net, err = netns.New(); err != nil {
			return err
		}
		lo, err := netlink.LinkByName("lo")
		if err != nil {
			return err
		}
		// Clients keep out of the relay's ports: one could take the port of an allocation while the daemon is away.
		return errors.Join(netlink.LinkSetUp(lo), os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte("10000 49151"), 0))
	})
	t.Cleanup(func() { _ = s.net.Close() })
	return s
}

// mount mounts a tmpfs of size bytes at dir, for those in s only.
func (s *space) mount(dir, size string) {
	s.t.Helper()
	onThread(s.t, func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			return err
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size="+size+",mode=0700"); err != nil {
			return err
		}
		var err error
		s.mounts, err = unix.Open("/proc/thread-self/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	s.t.Cleanup(func() { _ = unix.Close(s.mounts) })
}

// do runs f in s. Sockets that f opens and processes that it starts stay in s.
func (s *space) do(f func() error) {
	s.t.Helper()
	onThread(s.t, func() error {
		if err := netns.Set(s.net); err != nil {
			return err
		}
		if s.mounts >= 0 {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Setns(s.mounts, unix.CLONE_NEWNS); err != nil {
				return err
			}
		}
		return f()
	})
}

// onThread runs f on a thread of its own, which ends with it: what f changes of
// the thread reaches nobody else.
func onThread(t testing.TB, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// listen opens a UDP socket in s. It is closed when the test ends.
func (s *space) listen(a netip.AddrPort) *net.UDPConn {
	s.t.Helper()
	var c *net.UDPConn
	s.do(func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		return err
	})
	_ = c.SetReadBuffer(1 << 20)
	s.t.Cleanup(func() { _ = c.Close() })
	return c
}

// start starts a process in s. It ends with the test, whatever happens.
func (s *space) start(cmd *exec.Cmd) {
	s.t.Helper()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	s.do(cmd.Start)
	s.t.Cleanup(func() {
		_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
		_ = cmd.Wait()
	})
}

// output runs a program in s to its end and yields what it writes.
func (s *space) output(cmd *exec.Cmd) (string, error) {
	s.t.Helper()
	var out strings.Builder
	if cmd.Stdout == nil {
		cmd.Stdout = &out
	}
	if cmd.Stderr == nil {
		cmd.Stderr = &out
	}
	s.start(cmd)
	err := cmd.Wait()
	return out.String(), err
}

func addr(s string) netip.AddrPort { return netip.MustParseAddrPort(s) }
