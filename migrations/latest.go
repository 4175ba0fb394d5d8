package migrations

import (
	"encoding/binary"
	"fmt"
	"math"

	"go.etcd.io/bbolt"
)

// Forms of schema 1 that schema 2 changes or reads.
const (
	digestSize = 32 // the head of a snapshot, in schema 1
	recordHead = 113
	wallAt     = 41 // in a record
)

// headKey is the key of the head of a snapshot, and of the header of a segment.
var headKey = []byte{0}

// noteLatest puts behind the digest of each finished snapshot the latest wall time of any record up to it, eight
// bytes, big-endian. Where records before are gone it is the latest there can be.
func noteLatest(tx *bbolt.Tx) error {
	snapshots, segments := tx.Bucket(Snapshots), tx.Bucket(Segments)
	if snapshots == nil || segments == nil {
		return fmt.Errorf("a bucket is missing")
	}
	w := walls{segments: segments}
	if err := w.begin(); err != nil {
		return err
	}
	return snapshots.ForEachBucket(func(k []byte) error {
		b := snapshots.Bucket(k)
		head := b.Get(headKey)
		if len(k) != 8 || len(head) != digestSize { // never finished
			return nil
		}
		latest, err := w.through(binary.BigEndian.Uint64(k))
		if err != nil {
			return err
		}
		return b.Put(headKey, binary.BigEndian.AppendUint64(append([]byte(nil), head...), uint64(latest)))
	})
}

// walls walks the records of all segments, once.
type walls struct {
	segments *bbolt.Bucket
	outer    *bbolt.Cursor
	inner    *bbolt.Cursor
	k, v     []byte // the record it is at, nil at the end
	latest   int64  // of those before
}

func (w *walls) begin() error {
	w.latest = math.MinInt64
	w.outer = w.segments.Cursor()
	first, _ := w.outer.First()
	if err := w.enter(first); err != nil {
		return err
	}
	if w.k != nil && binary.BigEndian.Uint64(w.k) != 1 {
		w.latest = math.MaxInt64
	}
	return nil
}

// enter goes to the first record of the segment k or of the next one that has some.
func (w *walls) enter(k []byte) error {
	for w.k, w.v = nil, nil; k != nil; k, _ = w.outer.Next() {
		b := w.segments.Bucket(k)
		if b == nil {
			return fmt.Errorf("segment %x is no bucket", k)
		}
		w.inner = b.Cursor()
		if w.k, w.v = w.inner.Seek(make([]byte, 8)); w.k != nil {
			return w.check()
		}
	}
	return nil
}

func (w *walls) check() error {
	if w.k != nil && (len(w.k) != 8 || len(w.v) < recordHead) {
		return fmt.Errorf("%x is no record", w.k)
	}
	return nil
}

// through is the latest wall time of the records that begin at or before seq.
func (w *walls) through(seq uint64) (int64, error) {
	for w.k != nil && binary.BigEndian.Uint64(w.k) <= seq {
		w.latest = max(w.latest, int64(binary.BigEndian.Uint64(w.v[wallAt:])))
		if w.k, w.v = w.inner.Next(); w.k != nil {
			if err := w.check(); err != nil {
				return 0, err
			}
			continue
		}
		next, _ := w.outer.Next()
		if err := w.enter(next); err != nil {
			return 0, err
		}
	}
	return w.latest, nil
}
