package admin

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"

	"turnstone/internal/testenv"
	"turnstone/turn"

	"golang.org/x/sys/unix"
)

func TestWhoMayAsk(t *testing.T) {
	for _, c := range []struct {
		p    peer
		own  int
		want bool
	}{
		{peer{uid: 0, known: true}, 1000, true},
		{peer{uid: 1000, known: true}, 1000, true},
		{peer{uid: 1001, known: true}, 1000, false},
		{peer{uid: 1000, known: true}, 0, false},
		{peer{}, 0, false},
		{peer{}, 1000, false},
	} {
		if got := c.p.may(c.own); got != c.want {
			t.Errorf("%+v at a daemon of %d: got %t, want %t", c.p, c.own, got, c.want)
		}
	}
}

// recorded is a daemon that records and does nothing else.
type recorded struct {
	Daemon
	acts  []turn.OperatorActed
	fails error
}

func (d *recorded) Acted(_ context.Context, e turn.OperatorActed) error {
	d.acts = append(d.acts, e)
	return d.fails
}

func (d *recorded) CloseAllocation(context.Context, turn.AllocationID) error {
	d.acts = append(d.acts, turn.OperatorActed{What: "closed"})
	return nil
}

// serveAdmin serves d at an abstract address, which no mode of a file keeps anybody from.
func serveAdmin(t *testing.T, d Daemon) string {
	t.Helper()
	address := fmt.Sprintf("@turnstone-test-%d-%s", os.Getpid(), t.Name())
	l, err := net.Listen("unix", address)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- NewServer(d, nil, nil).Serve(ctx, l) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return address
}

func TestActsAreRecordedBeforeTheyAreDone(t *testing.T) {
	d := &recorded{}
	c := NewClient(serveAdmin(t, d))
	if err := c.CloseAllocation(t.Context(), 17); err != nil {
		t.Fatal(err)
	}
	want := turn.OperatorActed{UID: uint32(os.Geteuid()), PID: uint32(os.Getpid()), What: "close allocation 17"}
	if len(d.acts) != 2 || d.acts[0] != want || d.acts[1].What != "closed" {
		t.Errorf("got %+v, want %+v before it was closed", d.acts, want)
	}
	d.acts, d.fails = nil, fmt.Errorf("the disk is full")
	if err := c.CloseAllocation(t.Context(), 17); err == nil || !strings.Contains(err.Error(), "cannot be recorded: the disk is full") || len(d.acts) != 1 {
		t.Errorf("got %v and %+v, want a failure and nothing done", err, d.acts)
	}
	var out strings.Builder
	if n, err := c.Debug(t.Context(), DebugGoroutines, 1, &out); err != nil || n == 0 {
		t.Errorf("goroutines while nothing can be recorded: got %d bytes, %v", n, err)
	}
}

// TestOthersAreRefused asks as another user, to whom the socket is open.
func TestOthersAreRefused(t *testing.T) {
	testenv.Root(t)
	d := &recorded{}
	conn, err := dialAs(serveAdmin(t, d), 65534)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprint(conn, "POST /v1/allocations/17/close HTTP/1.1\r\nHost: turnstone\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusForbidden || len(d.acts) != 0 {
		t.Errorf("got status %d and acts %+v, want 403 and none", resp.StatusCode, d.acts)
	}
}

// dialAs connects to an abstract address as a user.
func dialAs(address string, uid uintptr) (net.Conn, error) {
	type outcome struct {
		fd  int
		err error
	}
	done := make(chan outcome)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with the goroutine, and the user it is with it
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err == nil {
			if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uid, ^uintptr(0)); errno != 0 {
				err = errno
			}
		}
		if err == nil {
			err = unix.Connect(fd, &unix.SockaddrUnix{Name: address})
		}
		done <- outcome{fd, err}
	}()
	o := <-done
	if o.err != nil {
		return nil, o.err
	}
	f := os.NewFile(uintptr(o.fd), address)
	defer f.Close()
	return net.FileConn(f)
}
