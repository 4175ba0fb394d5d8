package test

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// manager is a service manager as far as a daemon sees one: it is notified, stores descriptors, and hands them to
// the next process.
type manager struct {
	t      *testing.T
	dir    string
	socket int

	mu    sync.Mutex // guards the fields below
	store map[string][]int
	said  map[string]int // lines, by how often
}

// newManager makes one with a notify socket of its own.
func newManager(t *testing.T) *manager {
	t.Helper()
	dir, err := os.MkdirTemp("", "manager-") // a short path: it has to fit into an address
	if err != nil {
		t.Fatal(err)
	}
	m := &manager{t: t, dir: dir, store: map[string][]int{}, said: map[string]int{}}
	if m.socket, err = unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(m.socket, &unix.SockaddrUnix{Name: m.path()}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o711), os.Chmod(m.path(), 0o777)); err != nil { //nolint:gosec // as systemd's
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { defer close(done); m.listen() }()
	t.Cleanup(func() {
		_ = unix.Shutdown(m.socket, unix.SHUT_RD)
		<-done
		_ = unix.Close(m.socket)
		for _, fds := range m.store {
			for _, fd := range fds {
				_ = unix.Close(fd)
			}
		}
		_ = os.RemoveAll(dir)
	})
	return m
}

func (m *manager) path() string { return filepath.Join(m.dir, "notify") }

func (m *manager) listen() {
	b, oob := make([]byte, 4096), make([]byte, 4096)
	for {
		n, oobn, _, _, err := unix.Recvmsg(m.socket, b, oob, unix.MSG_CMSG_CLOEXEC)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		var fds []int
		list, err := unix.ParseSocketControlMessage(oob[:oobn])
		for i := range list {
			some, _ := unix.ParseUnixRights(&list[i])
			fds = append(fds, some...)
		}
		if err != nil {
			m.t.Error(err)
		}
		m.hear(string(b[:n]), fds)
	}
}

func (m *manager) hear(text string, fds []int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	value := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		m.said[line]++
		k, v, _ := strings.Cut(line, "=")
		value[k] = v
	}
	name := value["FDNAME"]
	switch {
	case value["FDSTORE"] == "1":
		if value["FDPOLL"] != "0" || strings.Contains(name, ":") || len(fds) != 1 {
			m.t.Errorf("got %q with %d descriptors", text, len(fds))
		}
		m.store[name] = append(m.store[name], fds...)
	case value["FDSTOREREMOVE"] == "1":
		for _, fd := range m.store[name] {
			_ = unix.Close(fd)
		}
		delete(m.store, name)
	}
}

// heard is how often a line was said.
func (m *manager) heard(line string) int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.said[line]
}

// names are those of what is stored, one for each descriptor.
func (m *manager) names() (list []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.store)) {
		for range m.store[name] {
			list = append(list, name)
		}
	}
	return list
}

// put stores a descriptor, as an earlier process would have.
func (m *manager) put(name string, fd int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.store[name] = append(m.store[name], fd)
}

// stop ends d for good: what is stored is let go.
func (m *manager) stop(d *daemon) {
	m.t.Helper()
	d.stop()
	m.mu.Lock()
	defer m.mu.Unlock()
	for name, fds := range m.store {
		for _, fd := range fds {
			_ = unix.Close(fd)
		}
		delete(m.store, name)
	}
}

// manages has d's next process hand its sockets to m, with those of before and of files, of a socket unit.
func (m *manager) manages(d *daemon, most int, files ...*os.File) {
	m.t.Helper()
	d.trace = []string{"sh", "-c", `LISTEN_PID=$$ exec "$0" "$@"`}
	d.files = slices.Clone(files)
	names := slices.Repeat([]string{"turnstone.socket"}, len(files))
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(m.store)) {
		for _, fd := range m.store[name] {
			n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
			if err != nil {
				m.t.Fatal(err)
			}
			d.files, names = append(d.files, os.NewFile(uintptr(n), name)), append(names, name)
		}
	}
	d.environment = []string{
		"NOTIFY_SOCKET=" + m.path(), fmt.Sprintf("FDSTORE=%d", most), fmt.Sprintf("LISTEN_FDS=%d", len(d.files)),
		"LISTEN_FDNAMES=" + strings.Join(names, ":"),
	}
}

// loopback is a lab whose clients and peers are on the loopback of one space, beside the relay.
func loopback(t *testing.T, s *space) *lab { return &lab{t: t, clients: s, peer: s, relay: s} }

func TestRestartLosesNothingOfUserspace(t *testing.T) {
	t.Parallel()
	s, m := newSpace(t), newManager(t)
	d := newDaemon(t, s, onLoopback...)
	m.manages(d, 1000)
	d.start()
	if m.heard("READY=1") != 1 {
		t.Error("the manager was not told that the daemon is ready")
	}
	l := loopback(t, s)
	calls := []*talker{
		l.dial("127.0.0.1:0", server4, "127.0.0.1:0", 0x4001, 1),
		l.dial("[::1]:0", server6, "[::1]:0", 0x4002, 2),
	}
	ends := l.dial("127.0.0.1:0", server4, "127.0.0.1:0", 0x4003, 1)
	var stops []func()
	for _, c := range calls {
		stops = append(stops, c.steady(2*time.Millisecond))
	}
	stored := m.names()
	for round := range 3 {
		said := calls[0].sentSoFar()
		eventually(t, "both talk", func() error {
			if calls[0].sentSoFar()-said < 100 {
				return errors.New("not yet")
			}
			return nil
		})
		d.stop()
		if m.heard("STOPPING=1") != round+1 {
			t.Error("the manager was not told that the daemon stops")
		}
		m.manages(d, 1000)
		d.start()
		if got := m.names(); !slices.Equal(got, stored) {
			t.Errorf("round %d: stored are\n%v, want what was before\n%v", round, got, stored)
		}
	}
	for i, stop := range stops {
		stop()
		calls[i].wantNoLoss()
		t.Logf("channel %#x: %d packets each way over 3 restarts, none lost", calls[i].channel, calls[i].sent)
	}
	ends.must(ends.request(stun.MethodRefresh, lifetime(0)))
	eventually(t, "the socket of what ended is taken out", func() error {
		if got := len(m.names()); got != len(stored)-1 {
			return fmt.Errorf("%d of %d are stored", got, len(stored))
		}
		return nil
	})
	m.stop(d)
	d.verify()
}

// TestKilledDaemonKeepsItsSockets has the store serve after a crash too: of what the process had in hand some may be
// lost, but not what waits in the sockets.
func TestKilledDaemonKeepsItsSockets(t *testing.T) {
	t.Parallel()
	s, m := newSpace(t), newManager(t)
	d := newDaemon(t, s, onLoopback...)
	m.manages(d, 1000)
	d.start()
	c := loopback(t, s).dial("127.0.0.1:0", server4, "127.0.0.1:0", 0x4001, 1)
	eventually(t, "the relayed socket is stored", func() error {
		if n := len(m.names()); !strings.HasPrefix(m.names()[n-1], "relayed/") {
			return fmt.Errorf("%v", m.names())
		}
		return nil
	})
	d.kill()
	const waiting = 300
	for range waiting {
		c.say(160)
	}
	m.manages(d, 1000)
	d.start()
	c.wantNoLoss()
	d.stop()
}

func TestStoredSocketsThatDoNotFitTheLogAreClosed(t *testing.T) {
	t.Parallel()
	s, m := newSpace(t), newManager(t)
	d := newDaemon(t, s, onLoopback...)
	m.manages(d, 1000)
	d.start()
	d.stop()
	stray := "127.0.0.1:50123"
	conn := s.listen(addr(stray))
	raw, err := conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			t.Error(err)
		}
		m.put("relayed/127.0.0.1/50123", n)
	}); err != nil {
		t.Fatal(err)
	}
	_ = conn.Close()
	m.manages(d, 1000)
	d.start()
	d.files = nil
	eventually(t, "it is taken out of the store", func() error {
		if slices.Contains(m.names(), "relayed/127.0.0.1/50123") {
			return errors.New("not yet")
		}
		return nil
	})
	eventually(t, "its port is free", func() error {
		return onSpace(s, func() error {
			c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr(stray)))
			if err != nil {
				return err
			}
			return c.Close()
		})
	})
	if !strings.Contains(d.log(), "a socket of the process before is closed") {
		t.Error("the log does not say so")
	}
	d.stop()
}

func TestStoreIsBounded(t *testing.T) {
	t.Parallel()
	s, m := newSpace(t), newManager(t)
	d := newDaemon(t, s, onLoopback...)
	m.manages(d, 8)
	d.start()
	l := loopback(t, s)
	for i := range 12 {
		l.dial("127.0.0.1:0", server4, "127.0.0.1:0", uint16(0x4001+i), 1).talk(1, func(int) int { return 100 })
	}
	if got := len(m.names()); got > 8 {
		t.Errorf("%d descriptors are stored, want 8 at most", got)
	}
	if n := strings.Count(d.log(), "the service manager's store is full"); n != 1 {
		t.Errorf("got %d lines that it is full, want 1", n)
	}
	d.stop()
	m.manages(d, 8)
	d.start()
	if got := d.status().Allocations; got != 12 {
		t.Errorf("got %d allocations after the restart, want all 12", got)
	}
	d.stop()
}

// TestSocketUnitOpensPrivilegedPorts runs a daemon that may not open its ports.
func TestSocketUnitOpensPrivilegedPorts(t *testing.T) {
	t.Parallel()
	s, m := newSpace(t), newManager(t)
	const port = "127.0.0.1:443"
	var files []*os.File
	s.do(func() error {
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(addr(port)))
		if err != nil {
			return err
		}
		defer udp.Close()
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(addr(port)))
		if err != nil {
			return err
		}
		defer tcp.Close()
		f, err1 := udp.File()
		g, err2 := tcp.File()
		files = []*os.File{f, g}
		return errors.Join(err1, err2)
	})
	d := newDaemon(t, s, "--listen", "udp://"+port, "--listen", "tcp://"+port, "--relay-ip", "127.0.0.1", "--realm", realm,
		"--user", username+":"+password, "--metrics", "off", "--allow-peer", "127.0.0.1/32")
	const nobody = 65534
	if err := errors.Join(os.Chmod(filepath.Dir(filepath.Dir(d.dir)), 0o711), os.Chmod(filepath.Dir(d.dir), 0o711), //nolint:gosec // for nobody to get to
		os.Mkdir(d.dir, 0o700), os.Chown(d.dir, nobody, nobody)); err != nil {
		t.Fatal(err)
	}
	d.attributes = syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}}
	m.manages(d, 100, files...)
	d.start()
	c := loopback(t, s).dial("127.0.0.1:0", port, "127.0.0.1:0", 0x4001, 1)
	c.talk(100, func(int) int { return 160 })
	var conn net.Conn
	s.do(func() (err error) { conn, err = net.Dial("tcp", port); return err })
	newStreamClient(t, conn, port).allocate()
	if got := d.status().Allocations; got != 2 {
		t.Errorf("got %d allocations, want 2", got)
	}
	d.stop()
}

func TestWatchdogIsFed(t *testing.T) {
	t.Parallel()
	s, m := newSpace(t), newManager(t)
	d := newDaemon(t, s, onLoopback...)
	m.manages(d, 100)
	d.environment = append(d.environment, "WATCHDOG_USEC=300000")
	d.start()
	eventually(t, "the watchdog is fed again and again", func() error {
		if n := m.heard("WATCHDOG=1"); n < 5 {
			return fmt.Errorf("%d times", n)
		}
		return nil
	})
	if err := syscall.Kill(d.pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the manager is told of the reload", func() error {
		if m.heard("RELOADING=1") != 1 || m.heard("READY=1") != 2 {
			return errors.New("not yet")
		}
		return nil
	})
	d.stop()
}

// onSpace is do for what may fail.
func onSpace(s *space, f func() error) (err error) {
	s.do(func() error { err = f(); return nil })
	return err
}
