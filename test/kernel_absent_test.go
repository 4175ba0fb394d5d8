package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inAnotherTime has what the thread starts live an hour ahead of the kernel's boot-time clock.
func inAnotherTime() error {
	if err := unix.Unshare(unix.CLONE_NEWTIME); err != nil {
		return fmt.Errorf("make a time namespace: %w", err)
	}
	return os.WriteFile(fmt.Sprintf("/proc/%d/timens_offsets", unix.Gettid()), []byte("boottime 3600 0\n"), 0)
}

// withoutCapabilities has what the thread starts be a root that may do nothing with BPF.
func withoutCapabilities() error {
	return errors.Join(
		unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_BPF, 0, 0, 0), unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_ADMIN, 0, 0, 0))
}

// refused has bpf(2) fail with errno in what the thread starts, as a kernel without it, or a container, has.
func refused(errno unix.Errno) func() error {
	return func() error {
		filter := []unix.SockFilter{
			{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: 0}, // number of the system call
			{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.SYS_BPF},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ERRNO | uint32(errno)},
			{Code: unix.BPF_RET | unix.BPF_K, K: unix.SECCOMP_RET_ALLOW},
		}
		program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
		return unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0)
	}
}

// TestKernelCannotRelay starts the daemon where the kernel's side is not to be had, behind one that had it: it says why,
// takes what that left off, and relays in userspace; or does not start, where the kernel is required.
func TestKernelCannotRelay(t *testing.T) {
	for _, row := range []struct {
		name    string
		prepare func() error
		why     string
	}{
		{"TimeNamespace", inAnotherTime, "it runs in a time namespace with an offset"},
		{"NoCapabilities", withoutCapabilities, "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"},
		{"Refused", refused(unix.EPERM), "CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON"},
		{"Absent", refused(unix.ENOSYS), "the kernel has no BPF"},
	} {
		t.Run(row.name, func(t *testing.T) {
			l := newLab(t)
			d := l.start()
			before := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4)
			d.offloaded(4)
			d.kill()

			d.prepare = row.prepare
			d.launch()
			if code := d.wait(); code != 1 {
				t.Errorf("exit code where the kernel is required: got %d, want 1", code)
			}
			said, err := os.ReadFile(d.stderr())
			if err != nil {
				t.Fatal(err)
			}
			for _, want := range []string{"kernel.mode is required, and the kernel cannot relay", row.why} {
				if !strings.Contains(string(said), want) {
					t.Errorf("the daemon does not say %q", want)
				}
			}
			l.wantAttached(true)

			d.dir = filepath.Join(filepath.Dir(d.dir), "another") // in another time, the log's deadlines are nobody's
			d.flags = append(slices.Clone(d.flags), "--kernel", "auto")
			d.start()
			l.wantAttached(false)
			if st := d.status().Kernel; !strings.HasPrefix(st, "userspace: ") || !strings.Contains(st, row.why) {
				t.Errorf("status says %q of the kernel, want userspace because %q", st, row.why)
			}
			if code, _, errs := d.command("kernel", "status", "--data", d.dir); code != 1 || !strings.Contains(errs, row.why) {
				t.Errorf("kernel status: got exit code %d and %q, want 1 and that %q", code, errs, row.why)
			}
			_ = before.conn.Close()
			c := l.dial(labClient4+":5002", labServer4+":3478", labPeer4+":6002", 0x4001, familyIPv4)
			const n = 200
			c.talk(n, func(i int) int { return 8 + i%1200 })
			if st := d.status(); st.ToPeer.Packets != n || st.ToClient.Packets != n {
				t.Errorf("userspace relayed %d packets to the peer and %d to the client, want %d each", st.ToPeer.Packets, st.ToClient.Packets, n)
			}
			ways := d.carried(d.allocations()[c.addr()].ID)
			if len(ways) != 2 {
				t.Errorf("got %d directions of the channel, want 2", len(ways))
			}
			for _, w := range ways {
				if w.Kernel || !strings.Contains(w.Reason, row.why) {
					t.Errorf("got %+v, want userspace because %q", w, row.why)
				}
			}
			d.stop()
		})
	}
}

// wantAttached waits until an XDP program is on each of the relay's interfaces, or on none. The kernel takes one off in
// its own time after the pin is removed.
func (l *lab) wantAttached(want bool) {
	l.t.Helper()
	eventually(l.t, fmt.Sprintf("programs are attached: %t", want), func() (wrong error) {
		l.relay.do(func() error {
			for _, name := range []string{"relay0", "relay1"} {
				nic, err := netlink.LinkByName(name)
				if err != nil {
					return err
				}
				if x := nic.Attrs().Xdp; (x != nil && x.Attached) != want {
					wrong = fmt.Errorf("not so on %s", name)
				}
			}
			return nil
		})
		return wrong
	})
}
