package store

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// Compacted is what Compact did.
type Compacted struct {
	Before, After int64 // bytes of the file
	Last          turn.Seq
}

// compactTx is how many bytes go into one transaction of a compaction.
const compactTx = 1 << 20

// Compact writes the log in dir, which no daemon has open, to a new file without free pages, verifies that, and puts it
// in the place of the old one. Where it fails, or ends early, the log is as it was.
func Compact(dir string) (c Compacted, err error) {
	file := filepath.Join(dir, FileName)
	if _, err := os.Stat(file); err != nil {
		return c, fmt.Errorf("compact log: %w", err)
	}
	lock, err := takeLock(filepath.Join(dir, lockName))
	if err != nil {
		return c, err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := checkFile(file, readerWait); err != nil {
		return c, err
	}
	fresh := filepath.Join(dir, freshPrefix+"compact")
	if err := os.RemoveAll(fresh); err != nil {
		return c, fmt.Errorf("compact log: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(fresh)) }()
	if err := makeDir(fresh); err != nil {
		return c, fmt.Errorf("compact log: %w", err)
	}
	old, err := openDatabase(file, bbolt.Options{ReadOnly: true, Timeout: readerWait})
	if err != nil {
		return c, err
	}
	err = c.copy(old, filepath.Join(fresh, FileName))
	if err = errors.Join(err, old.close()); err != nil {
		return c, fmt.Errorf("compact %s: %w", file, err)
	}
	if err := os.Rename(filepath.Join(fresh, FileName), file); err != nil {
		return c, fmt.Errorf("compact log: %w", err)
	}
	return c, syncDir(dir)
}

// copy compacts old into file, durably, and verifies that it holds the same.
func (c *Compacted) copy(old *database, file string) error {
	from := opened{old}
	if err := current(from); err != nil {
		return err
	}
	info, err := os.Stat(old.file.Name())
	if err != nil {
		return err
	}
	c.Before = info.Size()
	if err := enoughRoom(filepath.Dir(file), used(from)); err != nil {
		return err
	}
	db, err := bbolt.Open(file, 0o600, &bbolt.Options{FreelistType: bbolt.FreelistMapType, NoSync: true, PageSize: old.Info().PageSize})
	if err != nil {
		return err
	}
	err = guard(old.file.Name(), func() error { return bbolt.Compact(db, old.DB, compactTx) })
	if err = errors.Join(err, db.Sync(), db.Close()); err != nil {
		return err
	}
	if err := c.compare(from, file); err != nil {
		return err
	}
	info, err = os.Stat(file)
	if err == nil {
		c.After = info.Size()
	}
	return err
}

// compare verifies file, and that it ends where from does and has its snapshots.
func (c *Compacted) compare(from source, file string) error {
	r, err := OpenReader(file)
	if err != nil {
		return err
	}
	report, err := r.Verify()
	if err != nil {
		return err
	}
	c.Last = report.Last
	want, err := segmentsOf(from)
	if err != nil {
		return err
	}
	got, err := segmentsOf(r)
	if err != nil {
		return err
	}
	last, err := lastOfFile(from)
	if err != nil {
		return err
	}
	ats, err := snapshotsIn(from)
	if err != nil {
		return err
	}
	copied, err := snapshotsIn(r)
	if err != nil {
		return err
	}
	if len(got) != len(want) || len(got) > 0 && report.Last != last || len(ats) != len(copied) {
		return errors.New("the copy does not hold the same: the log is left as it is")
	}
	return nil
}

// opened is a source of which a file is open, by whoever has its lock.
type opened struct{ *database }

func (o opened) name() string { return o.file.Name() }

func (o opened) keyring() *Keyring { return nil }

func (o opened) view(f func(*bbolt.Tx) error) error {
	return guard(o.name(), func() error { return o.View(f) })
}

// used is how many bytes of the file of s are in use.
func used(s source) (n int64) {
	_ = s.view(func(tx *bbolt.Tx) error {
		n = tx.Size() - int64(tx.DB().Stats().FreePageN*tx.DB().Info().PageSize)
		return nil
	})
	return n
}

// enoughRoom is an error where the disk of dir has not room for n bytes and some more.
func enoughRoom(dir string, n int64) error {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return err
	}
	if room, want := int64(fs.Bavail)*fs.Bsize, n+n/16+1<<20; room < want {
		return fmt.Errorf("there are %d bytes free in %s, and %d are needed: %w", room, dir, want, unix.ENOSPC)
	}
	return nil
}

// current is an error where s has another schema than the present one.
func current(s source) error {
	return s.view(func(tx *bbolt.Tx) error {
		version, pending, err := lacking(tx)
		if err == nil && len(pending) > 0 {
			err = fmt.Errorf("schema %d, this program reads %d: run turnstone migrate up", version, migrations.Current)
		}
		return err
	})
}
