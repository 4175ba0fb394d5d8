package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"turnstone/store"

	"golang.org/x/sys/unix"
)

// processAt looks at the process that listens at a Unix socket. What it says of its own pid may be true in another
// pid namespace only.
func processAt(socket string, memoryLimit func(string) (int64, bool)) Process {
	pid, err := listener(socket)
	if err == nil {
		return process(pid, memoryLimit)
	}
	return Process{
		PID: pid, Capabilities: Known[uint64]{Err: err}, Files: Known[Files]{Err: err}, BootOffset: Known[time.Duration]{Err: err},
		Memory: Known[uint64]{Err: err}, PrivateMount: Known[bool]{Err: err},
	}
}

// unseen stands for the pid of a process that this command does not see.
const unseen = -1

func listener(socket string) (int, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return unseen, err
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return unseen, err
	}
	var who *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { who, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err := errors.Join(err, failed); err != nil {
		return unseen, err
	}
	if who.Pid == 0 {
		return unseen, errors.New("the daemon runs in another pid namespace")
	}
	return int(who.Pid), nil
}

// process looks at a process, 0 for this one.
func process(pid int, memoryLimit func(string) (int64, bool)) Process {
	dir := "/proc/self"
	if pid != 0 {
		dir = fmt.Sprintf("/proc/%d", pid)
	}
	p := Process{PID: pid, Capabilities: capabilities(dir + "/status"), Files: fileLimits(dir + "/limits"), BootOffset: bootOffset(dir)}
	if n, limited := memoryLimit(dir + "/cgroup"); limited {
		p.Memory.Value = uint64(n)
	} else {
		p.Memory.Err = errNothing
	}
	init, err := os.Readlink("/proc/1/ns/mnt")
	own, err2 := os.Readlink(dir + "/ns/mnt")
	p.PrivateMount = known(init != own, errors.Join(err, err2))
	if pid == 0 {
		return p
	}
	for _, kind := range []string{"net", "mnt", "time"} {
		its, err := os.Readlink(dir + "/ns/" + kind)
		ours, err2 := os.Readlink("/proc/self/ns/" + kind)
		if err == nil && err2 == nil && its != ours && (kind != "mnt" || !sameFile(dir+"/root", "/")) { // a service manager's mounts are over the host's
			p.Elsewhere = append(p.Elsewhere, kind)
		}
	}
	return p
}

// sameFile says whether two names are of one file.
func sameFile(a, b string) bool {
	x, err := os.Stat(a)
	y, err2 := os.Stat(b)
	return err == nil && err2 == nil && os.SameFile(x, y)
}

// field is what stands behind a name at the beginning of a line.
func field(file, name string) (string, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			return strings.TrimSpace(rest), nil
		}
	}
	return "", fmt.Errorf("%s has no line %q", file, name)
}

func capabilities(status string) Known[uint64] {
	text, err := field(status, "CapEff:")
	if err != nil {
		return Known[uint64]{Err: err}
	}
	return known(strconv.ParseUint(text, 16, 64))
}

func fileLimits(limits string) Known[Files] {
	text, err := field(limits, "Max open files")
	if err != nil {
		return Known[Files]{Err: err}
	}
	var f Files
	words := strings.Fields(text)
	for i, to := range []*uint64{&f.Soft, &f.Hard} {
		if i >= len(words) {
			return Known[Files]{Err: fmt.Errorf("%s: %q is no limit of files", limits, text)}
		}
		if words[i] == "unlimited" {
			*to = 1 << 63
		} else if *to, err = strconv.ParseUint(words[i], 10, 64); err != nil {
			return Known[Files]{Err: err}
		}
	}
	return Known[Files]{Value: f}
}

// bootOffset is by how much a process's boot-time clock differs from the kernel's. The kernel shows the offsets of
// the namespace that children get, which after an exec is the process's own.
func bootOffset(dir string) Known[time.Duration] {
	text, err := field(dir+"/timens_offsets", "boottime")
	if errors.Is(err, fs.ErrNotExist) {
		return Known[time.Duration]{} // a kernel without time namespaces
	}
	own, err2 := os.Readlink(dir + "/ns/time")
	children, err3 := os.Readlink(dir + "/ns/time_for_children")
	if err := errors.Join(err, err2, err3); err != nil {
		return Known[time.Duration]{Err: err}
	}
	if own != children {
		return Known[time.Duration]{Err: errors.New("the kernel shows the clock of its children only")}
	}
	var seconds, nanos int64
	if _, err := fmt.Sscan(text, &seconds, &nanos); err != nil {
		return Known[time.Duration]{Err: fmt.Errorf("%q is no offset: %w", text, err)}
	}
	return Known[time.Duration]{Value: time.Duration(seconds)*time.Second + time.Duration(nanos)}
}

// taken tries to listen where a daemon would, unless one does already.
func taken(d *Known[Daemon], w Wanted) Known[[]Taken] {
	switch {
	case d.Err == nil:
		return Known[[]Taken]{}
	case !errors.Is(d.Err, errNothing):
		return Known[[]Taken]{Err: d.Err}
	}
	var out []Taken
	for _, at := range w.Listeners {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err == nil {
			err = c.Close()
		}
		if err != nil {
			out = append(out, Taken{at, err})
		}
	}
	return Known[[]Taken]{Value: out}
}

// clock asks the kernel whether anything keeps its wall clock right, and looks when the log in a data directory was written.
func clock(data string) (Clock, error) {
	var t unix.Timex
	if _, err := unix.Adjtimex(&t); err != nil {
		return Clock{}, err
	}
	c := Clock{Unsynced: t.Status&unix.STA_UNSYNC != 0, Error: time.Duration(t.Maxerror) * time.Microsecond}
	if info, err := os.Stat(filepath.Join(data, store.FileName)); err == nil {
		c.Written = info.ModTime()
	}
	return c, nil
}
