package store

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// A snapshot is a bucket named by the sequence it is the fold up to. Its chunks are numbered from 1. The head, under
// headKey, is written with the last of them: a snapshot without one was never finished. It is the digest (32), and
// the latest wall time of any record up to there (8).

// keepSnapshots is how many of the newest are kept: one, and one in case it is damaged. Of the others some are
// kept as waypoints (see surplus).
const keepSnapshots = 2

// Snapshot is a fold that is stored in the log. Whoever wants a later state goes on from it.
type Snapshot struct {
	At     turn.Seq // the last event in it
	Latest int64    // wall time: no record up to At is of after it
	Digest Hash
	Size   int // bytes
}

// head is the form in which p is stored.
func (p Snapshot) head() []byte {
	return binary.BigEndian.AppendUint64(bytes.Clone(p.Digest[:]), uint64(p.Latest))
}

// parseHead is the opposite of head. It refuses one of before the latest wall time was noted: such a snapshot counts
// as never finished.
func parseHead(at turn.Seq, b []byte) (p Snapshot, ok bool) {
	if len(b) != len(p.Digest)+8 {
		return p, false
	}
	p = Snapshot{At: at, Digest: Hash(b[:len(p.Digest)])}
	p.Latest = int64(binary.BigEndian.Uint64(b[len(p.Digest):]))
	return p, true
}

// newestSnapshot is the newest that can be read and is followed by one of segments, or the
// empty state where the log is there from its beginning.
func (l *Log) newestSnapshot(segments []begun) (*turn.State, error) {
	list, err := snapshotsIn(fileOf{l})
	if err != nil {
		return nil, err
	}
	var tried []error
	for _, p := range slices.Backward(list) {
		s, err := loadSnapshot(fileOf{l}, p.At)
		if err == nil && !slices.ContainsFunc(segments, func(b begun) bool { return b.begin.next() == s.Seq()+1 }) {
			err = fmt.Errorf("snapshot %d: no segment begins where it ends", p.At)
		}
		if err == nil {
			return s, nil
		}
		tried = append(tried, err)
	}
	switch {
	case len(segments) > 0 && segments[0].begin.next() != 1 && withoutKey(tried...) != nil:
		return nil, fmt.Errorf("%s: the snapshots that the log is to be read from cannot be read: %w", l.name(), withoutKey(tried...))
	case len(segments) > 0 && segments[0].begin.next() != 1:
		tried = append(tried, fmt.Errorf("events before %d are retired and no snapshot covers them", segments[0].begin.next()))
		return nil, &CorruptError{File: l.name(), Err: errors.Join(tried...)}
	case len(segments) == 0 && len(tried) > 0:
		return nil, &CorruptError{File: l.name(), Err: errors.Join(tried...)}
	}
	return turn.NewState(), nil
}

// snapshotsIn lists the finished snapshots in order.
func snapshotsIn(s source) (list []Snapshot, err error) {
	err = s.view(func(tx *bbolt.Tx) error {
		snapshots := tx.Bucket(migrations.Snapshots)
		if snapshots == nil {
			return &CorruptError{File: s.name(), Err: errors.New("there are no snapshots")}
		}
		return snapshots.ForEachBucket(func(k []byte) error {
			b := snapshots.Bucket(k)
			if p, ok := parseHead(seqOf(k), b.Get(headKey)); ok {
				p.Size = sizeIn(b)
				list = append(list, p)
			}
			return nil
		})
	})
	return list, err
}

// sizeIn is how many bytes the chunks in the bucket of a snapshot have: all but the last have as many.
func sizeIn(b *bbolt.Bucket) int {
	last, rest := b.Cursor().Last()
	return (int(number(last))-1)*len(b.Get(key(1))) + len(rest)
}

// readSnapshot reads the snapshot at, some chunks in each transaction, and checks its digest.
func readSnapshot(s source, at turn.Seq) (p Snapshot, body []byte, err error) {
	for n, more := uint64(1), true; more; {
		err := s.view(func(tx *bbolt.Tx) error {
			b := tx.Bucket(migrations.Snapshots).Bucket(key(uint64(at)))
			if b == nil {
				return fmt.Errorf("snapshot %d is gone", at)
			}
			var ok bool
			if p, ok = parseHead(at, b.Get(headKey)); !ok {
				return fmt.Errorf("snapshot %d has no digest", at)
			}
			if body == nil {
				body = make([]byte, 0, max(0, min(sizeIn(b), 64<<20))) // a damaged one may say anything
			}
			end := time.Now().Add(chunkTime)
			for size := 0; size < chunkSize && time.Now().Before(end); n++ {
				chunk := b.Get(key(n))
				if more = chunk != nil; !more {
					break
				}
				body = append(body, chunk...)
				size += len(chunk)
			}
			return nil
		})
		if err != nil {
			return p, nil, err
		}
	}
	if sha256.Sum256(body) != p.Digest {
		return p, nil, fmt.Errorf("snapshot %d: the digest does not match", at)
	}
	p.Size = len(body)
	return p, body, nil
}

// loadSnapshot is the state in the snapshot at.
func loadSnapshot(s source, at turn.Seq) (*turn.State, error) {
	_, body, err := readSnapshot(s, at)
	if err != nil {
		return nil, err
	}
	if body, err = openSnapshot(s.keyring(), at, body); err != nil {
		return nil, err
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
	list, err := snapshotsIn(l)
	if err != nil {
		return turn.SnapshotTaken{}, err
	}
	end, _, key := l.ending()
	if end <= 1 || len(list) > 0 && list[len(list)-1].At+1 >= end {
		return turn.SnapshotTaken{}, nil
	}
	state, latest := turn.NewState(), int64(math.MinInt64)
	for _, p := range slices.Backward(list) { // a damaged one stays until it is old
		if s, err := loadSnapshot(l, p.At); err == nil {
			state, latest = s, p.Latest
			break
		}
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
		latest = max(latest, r.Moment.Wall)
	}
	body, err := EncodeState(state)
	if err != nil {
		return turn.SnapshotTaken{}, err
	}
	if key != nil {
		body = key.seal(snapshotContext(state.Seq()), body)
	}
	p := Snapshot{At: state.Seq(), Latest: latest, Digest: sha256.Sum256(body), Size: len(body)}
	return turn.SnapshotTaken{At: p.At, Digest: p.Digest, Size: uint64(p.Size)}, l.storeSnapshot(p, body)
}

// snapshotContext is what the snapshot at is sealed for. It is sealed with the key of the segment that
// begins behind it: whoever can read on from it can read it.
func snapshotContext(at turn.Seq) string { return fmt.Sprintf("snapshot %d", at) }

// openSnapshot is the body of the snapshot at in the clear.
func openSnapshot(keys *Keyring, at turn.Seq, body []byte) ([]byte, error) {
	if _, sealed := SealedBy(body); !sealed {
		return body, nil
	}
	return keys.Open(snapshotContext(at), body)
}

// unsealed is the first sequence of the segment that is not sealed, 0 in an empty log.
func (l *Log) unsealed() turn.Seq {
	first, _, _ := l.ending()
	return first
}

// ending is the first sequence of the segment that is not sealed, 0 in an empty log, its number, and the key that its
// events are sealed with.
func (l *Log) ending() (turn.Seq, uint64, *segmentKey) {
	l.life.RLock()
	defer l.life.RUnlock()
	l.write.Lock()
	defer l.write.Unlock()
	return l.segment.first, l.segment.number, l.segment.key
}

// Chunks are as large as fits four times into a page, so that a snapshot needs no free pages that lie together: such
// as do are soon rare in a file that segments come and go in. So many bytes of them go into a transaction.
const (
	snapshotChunk = 960
	snapshotTx    = 256 << 10
)

// storeSnapshot writes some chunks a transaction, so that appends get in between.
func (l *Log) storeSnapshot(p Snapshot, body []byte) error {
	err := l.update(func(tx *bbolt.Tx) error {
		snapshots := tx.Bucket(migrations.Snapshots)
		if snapshots.Bucket(key(uint64(p.At))) != nil { // one that was never finished
			if err := snapshots.DeleteBucket(key(uint64(p.At))); err != nil {
				return err
			}
		}
		_, err := snapshots.CreateBucket(key(uint64(p.At)))
		return err
	})
	for n := uint64(1); err == nil && len(body) > 0; {
		err = l.update(func(tx *bbolt.Tx) error {
			b := tx.Bucket(migrations.Snapshots).Bucket(key(uint64(p.At)))
			b.FillPercent = 1
			for size := 0; size < snapshotTx && len(body) > 0; n++ {
				chunk := body[:min(len(body), l.options.snapshotSize)]
				body = body[len(chunk):]
				size += len(chunk)
				if err := b.Put(key(n), chunk); err != nil {
					return err
				}
			}
			if len(body) > 0 {
				return nil
			}
			return b.Put(headKey, p.head())
		})
	}
	if err != nil {
		return fmt.Errorf("store snapshot %d: %w", p.At, err)
	}
	return nil
}

// update runs f in a transaction of its own, between appends.
func (l *Log) update(f func(*bbolt.Tx) error) error {
	l.life.RLock()
	defer l.life.RUnlock()
	l.write.Lock()
	defer l.write.Unlock()
	return l.commit(f)
}
