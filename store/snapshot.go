package store

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

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

// newestSnapshot is the newest that can be read and is followed by one of segments, or the
// empty state where the log is there from its beginning.
func (l *Log) newestSnapshot(segments []begun) (*turn.State, error) {
	ats, err := snapshotsIn(fileOf{l})
	if err != nil {
		return nil, err
	}
	var tried []error
	for i := len(ats) - 1; i >= 0; i-- {
		s, err := loadSnapshot(fileOf{l}, ats[i])
		if err == nil && !slices.ContainsFunc(segments, func(b begun) bool { return b.begin.next() == s.Seq()+1 }) {
			err = fmt.Errorf("snapshot %d: no segment begins where it ends", ats[i])
		}
		if err == nil {
			return s, nil
		}
		tried = append(tried, err)
	}
	switch {
	case len(segments) > 0 && segments[0].begin.next() != 1:
		tried = append(tried, fmt.Errorf("events before %d are retired and no snapshot covers them", segments[0].begin.next()))
		return nil, &CorruptError{File: l.name(), Err: errors.Join(tried...)}
	case len(segments) == 0 && len(tried) > 0:
		return nil, &CorruptError{File: l.name(), Err: errors.Join(tried...)}
	}
	return turn.NewState(), nil
}

// snapshotsIn lists the finished snapshots in order.
func snapshotsIn(s source) (ats []turn.Seq, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		snapshots := tx.Bucket(migrations.Snapshots)
		if snapshots == nil {
			return &CorruptError{File: s.name(), Err: errors.New("there are no snapshots")}
		}
		return snapshots.ForEachBucket(func(k []byte) error {
			if snapshots.Bucket(k).Get(headKey) != nil {
				ats = append(ats, seqOf(k))
			}
			return nil
		})
	})
	return ats, err
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
func (l *Log) takeSnapshot(ctx context.Context) (turn.SnapshotTaken, error) {
	ats, err := snapshotsIn(l)
	if err != nil {
		return turn.SnapshotTaken{}, err
	}
	end := l.unsealed()
	if end <= 1 || len(ats) > 0 && ats[len(ats)-1]+1 >= end {
		return turn.SnapshotTaken{}, nil
	}
	state := turn.NewState()
	for i := len(ats) - 1; i >= 0; i-- {
		if state, err = loadSnapshot(l, ats[i]); err == nil {
			break
		}
		state = turn.NewState() // the damaged one stays until it is old
	}
	for r, err := range l.Records(state.Seq() + 1) {
		if err = errors.Join(err, ctx.Err()); err != nil {
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

// unsealed is the first sequence of the segment that is not sealed, 0 in an empty log.
func (l *Log) unsealed() turn.Seq {
	l.life.RLock()
	defer l.life.RUnlock()
	l.write.Lock()
	defer l.write.Unlock()
	return l.segment.first
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
	ats, err := snapshotsIn(l)
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
	return l.commit(f)
}
