package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"turnstone/store"

	"golang.org/x/sys/unix"
)

// fileSystems are names of those that are good or bad for a log.
var fileSystems = map[int64]string{
	unix.EXT4_SUPER_MAGIC: "ext4", unix.XFS_SUPER_MAGIC: "xfs", unix.BTRFS_SUPER_MAGIC: "btrfs", unix.F2FS_SUPER_MAGIC: "f2fs", 0x2fc12fc1: "zfs",
	unix.TMPFS_MAGIC: "tmpfs", unix.RAMFS_MAGIC: "ramfs", unix.OVERLAYFS_SUPER_MAGIC: "overlay",
	unix.NFS_SUPER_MAGIC: "nfs", 0xff534d42: "cifs", 0xfe534d42: "cifs", unix.FUSE_SUPER_MAGIC: "fuse",
}

func disk(dir string) (Disk, error) {
	var s unix.Statfs_t
	if err := unix.Statfs(dir, &s); err != nil {
		return Disk{}, err
	}
	d := Disk{Free: int64(s.Bavail) * s.Bsize, Total: int64(s.Blocks) * s.Bsize, Type: fileSystems[s.Type]}
	if d.Type == "" {
		d.Type = fmt.Sprintf("file system %#x", s.Type)
	}
	if info, err := os.Stat(filepath.Join(dir, store.FileName)); err == nil {
		d.Log = info.Size()
	}
	d.Sync, d.SyncErr = syncTime(dir)
	return d, nil
}

// syncs is how many fdatasyncs the median is of.
const syncs = 15

// syncTime measures a page written and synced, in a file that has no name.
func syncTime(dir string) (time.Duration, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("make a file in %s: %w", dir, err)
	}
	defer unix.Close(fd)
	page := make([]byte, 4096)
	if _, err := unix.Pwrite(fd, page, 0); err != nil {
		return 0, err
	}
	if err := unix.Fsync(fd); err != nil {
		return 0, err
	}
	var took []time.Duration
	for range syncs {
		start := time.Now()
		if _, err := unix.Pwrite(fd, page, 0); err != nil {
			return 0, err
		}
		if err := unix.Fdatasync(fd); err != nil {
			return 0, err
		}
		took = append(took, time.Since(start))
	}
	slices.Sort(took)
	return took[syncs/2], nil
}

// access looks whether a process may use the data directory. A daemon that runs may.
func access(dir string, pid int) Known[Access] {
	info, err := os.Stat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Known[Access]{Err: errNothing}
	}
	if err != nil {
		return Known[Access]{Err: err}
	}
	a := Access{UID: owner(info), User: uint32(os.Geteuid())}
	if pid != 0 {
		return Known[Access]{Value: a}
	}
	a.Error = unix.Access(dir, unix.W_OK|unix.X_OK)
	if list, err := os.ReadDir(dir); err == nil {
		for _, e := range list {
			if info, err := e.Info(); err == nil && owner(info) != a.UID {
				a.Strangers = append(a.Strangers, e.Name())
			}
		}
	}
	return Known[Access]{Value: a}
}

func owner(info fs.FileInfo) uint32 {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		return s.Uid
	}
	return 0
}

// readable are the files that other users can come to and read: those in the data directory if it lets them in, and
// those that are named, which a group may read.
func readable(data string, private []string) (out []Open) {
	look := func(path, to string, bits fs.FileMode) bool {
		info, err := os.Stat(path)
		if err != nil || info.Mode().Perm()&bits == 0 {
			return false
		}
		out = append(out, Open{Path: path, Mode: fmt.Sprintf("%#o", info.Mode().Perm()), To: to})
		return true
	}
	info, err := os.Stat(data)
	switch {
	case err != nil:
	case info.Mode()&fs.ModeSticky != 0:
		look(data, "", 0o077)
	case look(data, "go", 0o077):
		_ = filepath.WalkDir(data, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == data || d.Type()&fs.ModeSocket != 0 {
				return nil //nolint:nilerr // what cannot be seen is left out
			}
			if !look(path, "go", 0o077) && d.IsDir() {
				return fs.SkipDir
			}
			return nil
		})
	}
	for _, path := range private {
		look(path, "o", 0o007)
	}
	return out
}
