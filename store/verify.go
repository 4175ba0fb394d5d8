package store

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"iter"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Report is what a verification went through, and where it ended.
type Report struct {
	Records, Events uint64
	Bytes           uint64
	Last            turn.Seq
	Chain           Hash // of the last record
	Root            Hash // RFC 6962 head over all events
}

// Verify checks that the records in raw, which begin with the log, are what was
// written: form, CRC, gapless sequences, chain and tree heads. What does not hold is
// a *CorruptError. That the events fold is for [StateAt] to say.
func Verify(raw iter.Seq2[[]byte, error]) (Report, error) {
	c := chain{}
	return verifyFrom(&c, raw)
}

// verifyFrom is Verify from where c stands. The tree, which costs the most, is
// grown by a goroutine of its own.
func verifyFrom(c *chain, raw iter.Seq2[[]byte, error]) (Report, error) {
	var report Report
	batches, grown := make(chan []envelope, 4), make(chan error, 1)
	linked, next := chain{last: c.last}, c.next()
	go func() {
		var err error
		for b := range batches {
			for i := range b {
				if err == nil {
					err = c.grow(&b[i])
				}
			}
		}
		grown <- err
	}()
	var err error
	var batch []envelope
	for one, e := range raw {
		var v envelope
		if err = e; err == nil {
			v, err = parseEnvelope(one)
		}
		if err == nil {
			err = linked.link(&v, one, next)
		}
		if err != nil {
			break
		}
		next = v.last() + 1
		report.Records++
		report.Events += uint64(len(v.events))
		report.Bytes += uint64(len(one))
		if batch = append(batch, v); len(batch) == 128 {
			batches <- batch
			batch = nil
		}
	}
	batches <- batch
	close(batches)
	err = earliest(err, <-grown)
	c.last = linked.last
	report.Last, report.Chain, report.Root = next-1, c.last, c.tree.root()
	return report, err
}

// earliest is the error about the smallest sequence: what it breaks explains the others.
func earliest(errs ...error) error {
	var first error
	var at turn.Seq
	for _, err := range errs {
		var damage *CorruptError
		if errors.As(err, &damage) && (first == nil || damage.Seq < at) {
			first, at = err, damage.Seq
		}
	}
	if first != nil {
		return first
	}
	return errors.Join(errs...)
}

// Verify checks the whole file: bbolt's own structure, every record, and that each
// snapshot is the fold of the records before it.
func (r *Reader) Verify() (Report, error) {
	if err := r.checkPages(); err != nil {
		return Report{}, err
	}
	c, err := r.beginning()
	if err != nil {
		return Report{}, err
	}
	whole := c.next() == 1
	report, err := verifyFrom(&c, Raw(r, c.next()))
	if err != nil {
		return report, inFile(r.file, err)
	}
	return report, r.verifySnapshots(whole)
}

func (r *Reader) checkPages() error {
	return r.view(func(tx *bbolt.Tx) error {
		var errs []error
		for err := range tx.Check() {
			errs = append(errs, err)
		}
		if len(errs) > 0 {
			return &CorruptError{File: r.file, Err: errors.Join(errs[:min(len(errs), 10)]...)}
		}
		return nil
	})
}

// beginning is where chain and tree stood before the first segment that is there.
func (r *Reader) beginning() (c chain, err error) {
	err = r.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		k, _ := segments.Cursor().First()
		if k == nil {
			return nil
		}
		if c, err = parseHeader(segments.Bucket(k).Get(headKey)); err != nil {
			return &CorruptError{File: r.file, Err: fmt.Errorf("segment %d: %w", number(k), err)}
		}
		return nil
	})
	return c, err
}

func (r *Reader) verifySnapshots(whole bool) error {
	ats, _, err := snapshotsIn(r)
	if err != nil {
		return err
	}
	for _, at := range ats {
		s, err := loadSnapshot(r, at)
		if err != nil {
			return &CorruptError{File: r.file, Seq: at, Err: err}
		}
		if !whole {
			continue
		}
		folded, err := StateAt(r.Records(1), func(rec turn.Record) bool { return rec.First <= at })
		if err != nil {
			return err
		}
		got, err1 := EncodeState(s)
		want, err2 := EncodeState(folded)
		if err := errors.Join(err1, err2); err != nil {
			return err
		}
		if sha256.Sum256(got) != sha256.Sum256(want) {
			return &CorruptError{File: r.file, Seq: at, Err: errors.New("the snapshot is not the fold of the records before it")}
		}
	}
	return nil
}
