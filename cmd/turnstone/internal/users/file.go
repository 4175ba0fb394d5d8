package users

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// Identity is which file was read, and in what form. Two that are equal are of the same contents, unless
// somebody goes to great lengths.
type Identity struct {
	device, inode uint64
	size          int64
	modified      unix.Timespec
	changed       unix.Timespec
}

// Identify finds the identity of the file at path; the zero Identity where there is none.
func Identify(path string) Identity {
	var st unix.Stat_t
	if unix.Stat(path, &st) != nil {
		return Identity{}
	}
	return Identity{device: st.Dev, inode: st.Ino, size: st.Size, modified: st.Mtim, changed: st.Ctim} //nolint:unconvert // not on every architecture
}

// Read reads the users of a file. It refuses one that others than its owner may read or write.
func Read(path string) ([]User, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read users: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("read users: %w", err)
	}
	if open := info.Mode().Perm() & 0o077; open != 0 {
		return nil, fmt.Errorf("read users: %s has mode %04o, and keys in it: want 0600", path, info.Mode().Perm())
	}
	text, err := io.ReadAll(f)
	if err != nil {
		return nil, fmt.Errorf("read users: %w", err)
	}
	list, err := parse(text)
	if err != nil {
		return nil, fmt.Errorf("read users: %s: %w", path, err)
	}
	return list, nil
}

// Edit replaces the users of a file by what change makes of them, in one step. It waits until ctx ends for others who
// do the same. A file that is not there is one without users. Where change fails the file stays as it is.
func Edit(ctx context.Context, path string, change func([]User) ([]User, error)) error {
	unlock, err := lock(ctx, path)
	if err != nil {
		return err
	}
	defer unlock()
	list, err := Read(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if list, err = change(list); err != nil {
		return err
	}
	text, err := format(list)
	if err != nil {
		return err
	}
	return replace(path, text)
}

// lock holds a file beside the one at path, which is another after each edit.
func lock(ctx context.Context, path string) (unlock func(), err error) {
	f, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock users: %w", err)
	}
	if err := keepOwner(f, path); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("lock users: %w", err)
	}
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			_ = f.Close()
			return nil, fmt.Errorf("lock users: %s: %w", path, err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			_ = f.Close()
			return nil, fmt.Errorf("lock users: somebody else holds %s.lock: %w", path, ctx.Err())
		}
	}
}

// replace puts text into the place of the file at path. Whoever may read that one may read the new one.
func replace(path string, text []byte) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".*") // mode 0600
	if err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	defer os.Remove(f.Name()) //nolint:errcheck // it is there only after an error
	_, err = f.Write(text)
	err = errors.Join(err, keepOwner(f, path), f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	return syncDir(dir)
}

// keepOwner gives f to the owner of the file at path, else of the directory, where this process may: root writes
// the users of a daemon that is not root.
func keepOwner(f *os.File, path string) error {
	if os.Geteuid() != 0 {
		return nil
	}
	var st unix.Stat_t
	for _, like := range []string{path, filepath.Dir(path)} {
		if unix.Stat(like, &st) == nil {
			return f.Chown(int(st.Uid), int(st.Gid))
		}
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("write users: %w", err)
	}
	return nil
}
