package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lab is where everything is measured: a temporary directory on a disk, and
// three hosts in a row, client, relay and peer.
type lab struct {
	options options
	dir     string
	disk    disk
	net     *network
	kinds   []kind
	binary  string // of turnstone
	number  int    // of servers started
	log     *generatedLog

	kernelTest string // the benchmarks of package kernel, once they are built
}

// newLab makes the lab. Its close removes what it made.
func newLab(ctx context.Context, o options) (_ *lab, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("network namespaces need root")
	}
	l := &lab{options: o}
	if l.kinds, err = kindsOf(o.servers); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.close())
		}
	}()
	if l.dir, err = os.MkdirTemp(o.data, "bench-"); err != nil {
		return l, err
	}
	if l.disk, err = diskOf(l.dir); err != nil {
		return l, err
	}
	if l.binary, err = l.build(ctx); err != nil {
		return l, err
	}
	l.net, err = newNetwork()
	return l, err
}

func (l *lab) build(ctx context.Context) (string, error) {
	if l.options.turnstone != "" {
		return filepath.Abs(l.options.turnstone)
	}
	to := filepath.Join(l.dir, "turnstone")
	out, err := exec.CommandContext(ctx, "go", "build", "-o", to, "turnstone/cmd/turnstone").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build turnstone: %w\n%s", err, out)
	}
	return to, nil
}

func (l *lab) close() error {
	var errs []error
	if l.net != nil {
		l.net.close()
	}
	if l.dir != "" {
		errs = append(errs, os.RemoveAll(l.dir))
	}
	return errors.Join(errs...)
}

// about says where and when the figures were measured.
type about struct {
	Time       time.Time `json:"time"`
	Kernel     string    `json:"kernel"`
	CPU        string    `json:"cpu"`
	CPUs       int       `json:"cpus"`
	Filesystem string    `json:"filesystem"`
	Device     string    `json:"device"`
	Runs       int       `json:"runs"`
	Quick      bool      `json:"quick"`
	Load       string    `json:"load"` // /proc/loadavg when the figures were written
	Servers    []string  `json:"servers"`
}

func (l *lab) about() about {
	var u unix.Utsname
	_ = unix.Uname(&u) // it has no way to fail
	load, _ := os.ReadFile("/proc/loadavg")
	a := about{
		Time: time.Now().UTC().Truncate(time.Second), Kernel: unix.ByteSliceToString(u.Release[:]), CPU: cpuModel(), CPUs: runtime.NumCPU(),
		Filesystem: l.disk.filesystem, Device: l.disk.device, Runs: l.options.runs, Quick: l.options.quick,
		Load: strings.TrimSpace(string(load)),
	}
	for _, k := range l.kinds {
		a.Servers = append(a.Servers, k.name+" "+k.version(l))
	}
	return a
}

func (a about) String() string {
	quick := ""
	if a.Quick {
		quick = ", quick"
	}
	return fmt.Sprintf("%s, Linux %s, %d x %s, %s on %s, load %s\n%s; medians of %d runs (min-max)%s",
		a.Time.Format(time.DateTime), a.Kernel, a.CPUs, a.CPU, a.Filesystem, a.Device, a.Load,
		strings.Join(a.Servers, ", "), a.Runs, quick)
}

func cpuModel() string {
	b, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(b)) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return "unknown CPU"
}
