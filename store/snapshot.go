package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// A snapshot is a bucket named by the sequence it is the fold up to. Its chunks
// are numbered from 1; the digest, under headKey, is written with the last of them: a snapshot without one
// was never finished.

// keepSnapshots is how many are kept: the newest, and one in case it is damaged.
const keepSnapshots = 2

// Snapshot is what Stat says of one.
type Snapshot struct {
	At     turn.Seq
	Digest Hash
	Size   int
}

// EncodeState is the one encoding of s: equal states, equal bytes.
func EncodeState(s *turn.State) ([]byte, error) { return encoding.Marshal(s.Image()) }

// DecodeState is the opposite of EncodeState.
func DecodeState(b []byte) (*turn.State, error) {
	var im turn.Image
	if err := decoding.Unmarshal(b, &im); err != nil {
		return nil, err
	}
	return turn.FromImage(im)
}

// newestSnapshot is the newest that can be read, or the empty state where the
// log is there from its beginning.
func (l *Log) newestSnapshot() (*turn.State, error) {
	var tried []error
	ats, firstSegment, err := snapshotsIn(fileOf{l})
	if err != nil {
		return nil, err
	}
	for i := len(ats) - 1; i >= 0; i-- {
		s, err := loadSnapshot(fileOf{l}, ats[i])
		if err == nil {
			return s, nil
		}
		tried = append(tried, err)
	}
	if firstSegment > 1 {
		tried = append(tried, fmt.Errorf("segments before %d are retired and no snapshot covers them", firstSegment))
		return nil, &CorruptError{File: l.name(), Err: errors.Join(tried...)}
	}
	return turn.NewState(), nil
}

// snapshotsIn lists the finished snapshots in order, and the first segment there is.
func snapshotsIn(s source) (ats []turn.Seq, firstSegment uint64, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		snapshots, segments := tx.Bucket(migrations.Snapshots), tx.Bucket(migrations.Segments)
		if snapshots == nil || segments == nil {
			return &CorruptError{File: s.name(), Err: errors.New("a bucket is missing")}
		}
		if k, _ := segments.Cursor().First(); k != nil {
			firstSegment = number(k)
		}
		return snapshots.ForEachBucket(func(k []byte) error {
			if snapshots.Bucket(k).Get(headKey) != nil {
				ats = append(ats, seqOf(k))
			}
			return nil
		})
	})
	return ats, firstSegment, err
}

// loadSnapshot reads the snapshot at, a chunk in each transaction, and checks its digest.
func loadSnapshot(s source, at turn.Seq) (*turn.State, error) {
	var body, digest []byte
	for n := uint64(1); ; n++ {
		more := false
		err := s.view(func(tx *bbolt.Tx) error {
			b := tx.Bucket(migrations.Snapshots).Bucket(key(uint64(at)))
			if b == nil {
				return fmt.Errorf("snapshot %d is gone", at)
			}
			digest = append(digest[:0], b.Get(headKey)...)
			if chunk := b.Get(key(n)); chunk != nil {
				body, more = append(body, chunk...), true
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		if !more {
			break
		}
	}
	if sum := sha256.Sum256(body); string(sum[:]) != string(digest) {
		return nil, fmt.Errorf("snapshot %d: the digest does not match", at)
	}
	state, err := DecodeState(body)
	if err != nil {
		return nil, fmt.Errorf("snapshot %d: %w", at, err)
	}
	if state.Seq() != at {
		return nil, fmt.Errorf("snapshot %d holds the state at %d", at, state.Seq())
	}
	return state, nil
}

// takeSnapshot folds the sealed segments and stores the result, starting from
// the last snapshot. It yields what to record; At is 0 where there is nothing new.
func (l *Log) takeSnapshot() (turn.SnapshotTaken, error) {
	ats, _, err := snapshotsIn(l)
	if err != nil {
		return turn.SnapshotTaken{}, err
	}
	state := turn.NewState()
	if len(ats) > 0 {
		if state, err = loadSnapshot(l, ats[len(ats)-1]); err != nil {
			return turn.SnapshotTaken{}, err
		}
	}
	l.write.Lock()
	end := l.segment.first // of the one that is not sealed
	l.write.Unlock()
	if state.Seq()+1 >= end {
		return turn.SnapshotTaken{}, nil
	}
	for r, err := range l.Records(state.Seq() + 1) {
		if err != nil {
			return turn.SnapshotTaken{}, err
		}
		if r.First >= end {
			break
		}
		if err := state.Fold(r); err != nil {
			return turn.SnapshotTaken{}, err
		}
	}
	body, err := EncodeState(state)
	if err != nil {
		return turn.SnapshotTaken{}, err
	}
	taken := turn.SnapshotTaken{At: state.Seq(), Digest: sha256.Sum256(body), Size: uint64(len(body))}
	return taken, l.storeSnapshot(taken, body)
}

// storeSnapshot writes a chunk a transaction, so that appends get in between.
func (l *Log) storeSnapshot(taken turn.SnapshotTaken, body []byte) error {
	err := l.update(func(tx *bbolt.Tx) error {
		snapshots := tx.Bucket(migrations.Snapshots)
		if snapshots.Bucket(key(uint64(taken.At))) != nil { // one that was never finished
			if err := snapshots.DeleteBucket(key(uint64(taken.At))); err != nil {
				return err
			}
		}
		_, err := snapshots.CreateBucket(key(uint64(taken.At)))
		return err
	})
	for n := uint64(1); err == nil && len(body) > 0; n++ {
		chunk := body[:min(len(body), l.options.snapshotSize)]
		body = body[len(chunk):]
		err = l.update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(migrations.Snapshots).Bucket(key(uint64(taken.At)))
			if len(body) == 0 {
				if err := b.Put(headKey, taken.Digest[:]); err != nil {
					return err
				}
			}
			return b.Put(binary.BigEndian.AppendUint64(nil, n), chunk)
		})
	}
	if err != nil {
		return fmt.Errorf("store snapshot %d: %w", taken.At, err)
	}
	return nil
}

// dropSnapshots removes all but the newest finished ones, one a transaction.
func (l *Log) dropSnapshots() error {
	ats, _, err := snapshotsIn(l)
	if err != nil || len(ats) <= keepSnapshots {
		return err
	}
	oldest := ats[len(ats)-keepSnapshots]
	for {
		dropped := false
		err := l.update(func(tx *bbolt.Tx) error {
			snapshots := tx.Bucket(migrations.Snapshots)
			k, _ := snapshots.Cursor().First()
			if k == nil || seqOf(k) >= oldest {
				return nil
			}
			dropped = true
			return snapshots.DeleteBucket(k)
		})
		if err != nil || !dropped {
			return err
		}
	}
}

// update runs f in a transaction of its own, between appends.
func (l *Log) update(f func(*bbolt.Tx) error) error {
	l.life.RLock()
	defer l.life.RUnlock()
	l.write.Lock()
	defer l.write.Unlock()
	if l.db == nil {
		return os.ErrClosed
	}
	l.zeroAhead()
	return guard(l.name(), func() error { return l.db.Update(f) })
}
