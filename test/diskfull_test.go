package test

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// TestDiskFull fills the disk of the log: below the soft limit only new allocations are refused, at the hard limit all but
// ends, and when there is room again nobody has to tell the daemon.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := newDaemon(t, s, onLoopback...)
	if err := os.Mkdir(d.dir, 0o700); err != nil {
		t.Fatal(err)
	}
	s.mount(d.dir, "64m") // soft limit 8 MiB, hard limit 2 MiB, ballast 1 MiB
	disk := filler{t, s, d.dir}
	d.start()
	room := func(want string, code int, level int) {
		t.Helper()
		eventually(t, "room "+want, func() error {
			got, body := d.get("/readyz")
			_, metrics := d.get("/metrics")
			line := fmt.Sprintf("\nturnstone_log_room %d\n", level)
			if status := d.status(); got != code || status.Room != want || !strings.Contains(metrics, line) {
				return fmt.Errorf("status %q, readyz %d %q, and %t that metrics show %d", status.Room, got, body, strings.Contains(metrics, line), level)
			}
			return nil
		})
	}
	clients := make([]*client, 6)
	relayed := map[string]netip.AddrPort{}
	for i := range clients {
		clients[i] = newClient(t, s, "127.0.0.1:0", server4)
		if i < 4 {
			relayed[clients[i].addr()] = clients[i].allocate()
		}
	}
	peer := addr("127.0.0.9:9")
	ask := func(i, want int, method stun.Method, setters ...stun.Setter) {
		t.Helper()
		_, err := clients[i].call(clients[i].request(method, setters...))
		var code refusal
		errors.As(err, &code)
		if int(code) != want || (want == 0 && err != nil) {
			t.Errorf("%v of client %d: got %v, want code %d", method, i, err, want)
		}
	}
	room("fine", 200, 0)

	disk.leave(5 << 20)
	room("low", 503, 1)
	ask(4, 508, stun.MethodAllocate, transport())
	ask(0, 0, stun.MethodRefresh, lifetime(700))
	ask(0, 0, stun.MethodCreatePermission, xor(peer))
	ask(0, 0, stun.MethodChannelBind, number(0x4001), xor(peer))
	ask(3, 0, stun.MethodRefresh, lifetime(0))

	disk.leave(0)
	room("none", 503, 2)
	ask(4, 508, stun.MethodAllocate, transport())
	ask(1, 500, stun.MethodRefresh, lifetime(700))
	ask(1, 500, stun.MethodCreatePermission, xor(peer))
	ask(1, 500, stun.MethodChannelBind, number(0x4001), xor(peer))
	ask(1, 0, stun.MethodRefresh, lifetime(0))
	id := d.allocations()[clients[2].addr()].ID
	d.ask("allocation", "close", fmt.Sprint(id))
	if got := d.allocations(); len(got) != 1 || len(got[clients[0].addr()].Channels) != 1 {
		t.Errorf("got %+v on the full disk, want client 0 with its channel", got)
	}

	d.kill() // on the full disk
	d.start()
	room("none", 503, 2)
	if got := d.allocations(); len(got) != 1 || got[clients[0].addr()].Relayed[0] != relayed[clients[0].addr()].String() {
		t.Errorf("got %+v after a restart on the full disk, want client 0 with %v", got, relayed[clients[0].addr()])
	}

	disk.leave(-1)
	room("fine", 200, 0)
	ask(1, 0, stun.MethodAllocate, transport())
	ask(5, 0, stun.MethodAllocate, transport())
	ask(0, 0, stun.MethodRefresh, lifetime(700))
	d.stop()
	s.do(func() error {
		if _, err := os.Stat(filepath.Join(d.dir, "ballast")); err != nil {
			t.Errorf("the ballast was not made again: %v", err)
		}
		return nil
	})
	d.verify()
}

// filler takes the room on a disk away, and gives it back.
type filler struct {
	t     *testing.T
	space *space
	dir   string
}

// leave leaves n bytes of room, everything that there is for -1.
func (f filler) leave(n int64) {
	f.t.Helper()
	file := filepath.Join(f.dir, "filler")
	f.space.do(func() error {
		if err := os.Remove(file); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
		if n < 0 {
			return nil
		}
		var disk unix.Statfs_t
		if err := unix.Statfs(f.dir, &disk); err != nil {
			return err
		}
		w, err := os.Create(file)
		if err != nil {
			return err
		}
		defer w.Close()
		return unix.Fallocate(int(w.Fd()), 0, 0, int64(disk.Bavail)*disk.Bsize-n)
	})
}
