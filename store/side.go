package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Side is a bbolt file beside the log that can be made again from it. Damage in it is a *CorruptError, not a crash.
type Side struct{ db *database }

// OpenSide opens the file name, which is made where it is not there, unless it is only to be read. It waits for others who have it
// open, and then fails with [ErrInUse].
func OpenSide(name string, readOnly bool, wait time.Duration) (*Side, error) {
	if _, err := os.Lstat(name); errors.Is(err, os.ErrNotExist) && !readOnly {
		if err := makeSide(name); err != nil {
			return nil, err
		}
	}
	if err := checkFile(name, wait); err != nil {
		return nil, err
	}
	db, err := openDatabase(name, bbolt.Options{ReadOnly: readOnly, Timeout: wait})
	if err != nil {
		return nil, err
	}
	return &Side{db}, nil
}

// makeSide makes an empty file, whole or not at all.
func makeSide(name string) error {
	f, err := os.CreateTemp(filepath.Dir(name), freshPrefix+"*")
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	defer os.Remove(f.Name())
	db, err := bbolt.Open(f.Name(), 0o600, &bbolt.Options{Timeout: openTimeout, FreelistType: bbolt.FreelistMapType})
	if err = errors.Join(err, f.Close()); err == nil {
		err = db.Close()
	}
	if err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return fmt.Errorf("create %s: %w", name, err)
	}
	if info, err := os.Stat(filepath.Dir(name)); err == nil && os.Geteuid() == 0 {
		if owner, ok := info.Sys().(*syscall.Stat_t); ok { // the daemon's user, who is to write it too
			_ = os.Chown(name, int(owner.Uid), int(owner.Gid))
		}
	}
	return nil
}

// View runs f in a read transaction.
func (s *Side) View(f func(*bbolt.Tx) error) error {
	return guard(s.db.file.Name(), func() error { return s.db.View(f) })
}

// Update runs f in a transaction of its own and makes what it wrote durable.
func (s *Side) Update(f func(*bbolt.Tx) error) error { return s.db.transact(f) }

// Close closes the file once nobody uses it.
func (s *Side) Close() error { return s.db.close() }

// SegmentStart is where a segment begins.
type SegmentStart struct {
	Number uint64
	First  turn.Seq
}

// Segments lists where the segments begin, in order: those in the file, and where it is asked for those in archives before them.
func (l *Log) Segments(archived bool) ([]SegmentStart, error) { return startsIn(l, archived) }

// Segments is like that of a Log.
func (r *Reader) Segments(archived bool) ([]SegmentStart, error) { return startsIn(r, archived) }

func startsIn(s source, archived bool) (out []SegmentStart, err error) {
	if archived && pastOf(s) != nil {
		list, err := archivedBefore(s, 0)
		if err != nil {
			return nil, err
		}
		for _, h := range list {
			out = append(out, SegmentStart{h.Segment, h.First})
		}
	}
	list, err := segmentsOf(s)
	for _, b := range list {
		if n := len(out); n == 0 || out[n-1].Number < b.number { // it was archived meanwhile
			out = append(out, SegmentStart{b.number, b.begin.next()})
		}
	}
	return out, err
}

// Head is the last sequence in the file and the hash of the record that ends there.
func (r *Reader) Head() (last turn.Seq, hash [sha256.Size]byte, err error) {
	err = r.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		k, _ := segments.Cursor().Last()
		if k == nil {
			return nil
		}
		at, raw := segments.Bucket(k).Cursor().Last()
		if len(at) == len(headKey) {
			return &CorruptError{File: r.file, Err: fmt.Errorf("segment %d is empty", number(k))}
		}
		last, hash = lastOf(at, raw), sha256.Sum256(raw)
		return nil
	})
	return last, hash, err
}

// ChainAt is the hash of the record that ends at seq, false where no record does, or it is in the log no more.
func (r *Reader) ChainAt(seq turn.Seq) (hash [sha256.Size]byte, ok bool, err error) {
	last, hash, err := r.Head()
	if err != nil || last == seq {
		return hash, err == nil, err
	}
	return chainAt(r, seq)
}

// SnapshotWithin is the newest good snapshot of which all records are within b. Its At is 0 where there is none.
func (r *Reader) SnapshotWithin(b Bound) (Encoded, error) { return snapshotWithin(r, b, nil) }
