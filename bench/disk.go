package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// disk is the filesystem that logs are written to.
type disk struct {
	dir        string
	filesystem string
	device     string
}

// diskOf describes the filesystem of dir. It refuses those on which nothing is durable
// or whose figures are another filesystem's.
func diskOf(dir string) (disk, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return disk{}, fmt.Errorf("examine the filesystem of %s: %w", dir, err)
	}
	switch st.Type {
	case unix.TMPFS_MAGIC, unix.RAMFS_MAGIC:
		return disk{}, fmt.Errorf("%s is in memory: name a directory on a disk with -data", dir)
	case unix.OVERLAYFS_SUPER_MAGIC:
		return disk{}, fmt.Errorf("%s is on overlayfs: name a directory on the disk itself with -data", dir)
	}
	d := disk{dir: dir}
	var err error
	d.filesystem, d.device, err = mountOf(dir)
	return d, err
}

// mountOf finds the filesystem type and device of the mount that dir is on.
func mountOf(dir string) (filesystem, device string, err error) {
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", "", err
	}
	if dir, err = filepath.EvalSymlinks(dir); err != nil {
		return "", "", err
	}
	best := ""
	for line := range strings.Lines(string(b)) {
		before, after, ok := strings.Cut(line, " - ")
		mount, source := strings.Fields(before), strings.Fields(after)
		if !ok || len(mount) < 5 || len(source) < 2 {
			continue
		}
		at := mount[4]
		within := at == "/" || dir == at || strings.HasPrefix(dir, at+"/")
		if within && len(at) >= len(best) {
			best, filesystem, device = at, source[0], source[1]
		}
	}
	return filesystem, device, nil
}

// twoSyncs is what a commit costs at least: a page written and synced, twice, in a
// file whose blocks exist already. It yields a sample for each round, in microseconds.
func (d disk) twoSyncs(rounds int) ([]float64, error) {
	const pages = 64
	f, err := os.CreateTemp(d.dir, "sync-")
	if err != nil {
		return nil, err
	}
	defer os.Remove(f.Name())
	defer f.Close()
	if _, err := f.Write(make([]byte, pages<<12)); err != nil {
		return nil, err
	}
	if err := f.Sync(); err != nil {
		return nil, err
	}
	page, samples := make([]byte, 4096), make([]float64, 0, rounds)
	for i := range rounds {
		began := time.Now()
		for half := range 2 {
			page[0]++
			if _, err := f.WriteAt(page, int64((2*i+half)%pages)<<12); err != nil {
				return nil, err
			}
			if err := unix.Fdatasync(int(f.Fd())); err != nil {
				return nil, fmt.Errorf("fdatasync: %w", err)
			}
		}
		samples = append(samples, micros(time.Since(began)))
	}
	return samples, nil
}

func measureDisk(_ context.Context, l *lab, _ kind, r recorder) error {
	pairs, err := l.disk.twoSyncs(pick(l, 400, 100))
	if err != nil {
		return err
	}
	r.add("write and fdatasync, twice", "us", median(pairs), nil)
	r.add("the same, p99", "us", quantile(pairs, 0.99), nil)
	return nil
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
