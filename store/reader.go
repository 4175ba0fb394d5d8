package store

import (
	"bytes"
	"errors"
	"iter"
	"path/filepath"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Reader reads a log file that no daemon has open. It opens the file for each chunk and closes it
// again, and stops with ErrInUse when it sees a daemon's lock, so that it never keeps one from starting.
type Reader struct {
	file     string
	keys     *Keyring
	archives *Archives // nil for none
}

// readerWait is for how long a Reader waits for whoever has the file; another
// reader is done sooner.
const readerWait = 300 * time.Millisecond

// OpenReader opens the log file for reading. The error is ErrInUse while a daemon has it open. The keys of encrypted
// segments are those beside the file.
func OpenReader(file string) (*Reader, error) {
	r := &Reader{file: file, keys: NewKeyring(Keys(filepath.Dir(file))), archives: archivesBeside(file)}
	if err := unlocked(file); err != nil {
		return nil, err
	}
	if err := checkFile(file, readerWait); err != nil {
		return nil, err
	}
	if err := current(r); err != nil {
		return nil, inSchema(file, err)
	}
	return r, nil
}

func (r *Reader) name() string { return r.file }

func (r *Reader) keyring() *Keyring { return r.keys }

// Keys are the keys that r reads encrypted segments with.
func (r *Reader) Keys() *Keyring { return r.keys }

// UseKeys has r read encrypted segments with other keys.
func (r *Reader) UseKeys(k *Keyring) { r.keys = k }

// File is the file that r reads.
func (r *Reader) File() string { return r.file }

func (r *Reader) view(f func(*bbolt.Tx) error) error {
	if err := unlocked(r.file); err != nil {
		return err
	}
	db, err := openDatabase(r.file, bbolt.Options{ReadOnly: true, Timeout: readerWait})
	if err != nil {
		return err
	}
	return errors.Join(guard(r.file, func() error { return db.View(f) }), db.close())
}

// Records yields the records from the one that holds from.
func (r *Reader) Records(from turn.Seq) iter.Seq2[turn.Record, error] {
	return decoded(Raw(r, from), r.keys)
}

// Decoded decodes records in their stored form, wherever they come from. What of them is sealed takes keys, which may
// be nil: the error is a *KeyError where one is missing.
func Decoded(raw iter.Seq2[[]byte, error], keys *Keyring) iter.Seq2[turn.Record, error] {
	return decoded(raw, keys)
}

// StateAt folds records, which begin with the log, while more says so. The error is of the records.
func StateAt(records iter.Seq2[turn.Record, error], more func(turn.Record) bool) (*turn.State, error) {
	s := turn.NewState()
	for r, err := range records {
		if err != nil {
			return nil, err
		}
		if !more(r) {
			break
		}
		if err := s.Fold(r); err != nil {
			return nil, &CorruptError{Seq: r.First, Err: err}
		}
	}
	return s, nil
}

// Stat is what the file of a log is made of.
type Stat struct {
	File      string
	Size      int64 // bytes of the file
	PageSize  int
	FreePages int
	Schema    uint64
	First     turn.Seq // of the events that are there; 0 for none
	Last      turn.Seq
	Records   uint64
	Bytes     uint64 // of records
	Segments  []Segment
	Snapshots []Snapshot
	Archives  Past
	Kept      Kept // of a daemon's log
}

// Segment is what Stat says of one.
type Segment struct {
	Number      uint64
	First, Last turn.Seq
	Records     uint64
	Bytes       uint64
	From, To    turn.Moment
	Privacy     string // Plain, Encrypted or Unread

	forms form
}

// Stat describes the file, a segment in each transaction.
func (l *Log) Stat() (Stat, error) {
	st, err := statOf(l)
	st.Kept = l.Kept()
	return st, err
}

// Stat describes the file, a segment in each transaction.
func (r *Reader) Stat() (Stat, error) { return statOf(r) }

func statOf(s source) (Stat, error) {
	st := Stat{File: s.name()}
	var numbers [][]byte
	err := s.view(func(tx *bbolt.Tx) (err error) {
		st.Size, st.PageSize = tx.Size(), tx.DB().Info().PageSize
		st.FreePages = tx.DB().Stats().FreePageN
		if st.Schema, err = migrations.Version(tx); err != nil {
			return err
		}
		return tx.Bucket(migrations.Segments).ForEachBucket(func(k []byte) error {
			numbers = append(numbers, append([]byte(nil), k...))
			return nil
		})
	})
	if err != nil {
		return st, err
	}
	for _, n := range numbers {
		g, err := statSegment(s, n)
		if err != nil {
			return st, inFile(s.name(), err)
		}
		if st.First == 0 {
			st.First = g.First
		}
		st.Last = g.Last
		st.Records += g.Records
		st.Bytes += g.Bytes
		st.Segments = append(st.Segments, g)
	}
	if st.Archives, err = describePast(s); err != nil {
		return st, err
	}
	st.Snapshots, err = snapshotsIn(s)
	return st, err
}

func statSegment(s source, n []byte) (Segment, error) {
	g := Segment{Number: number(n)}
	for from := key(0); from != nil; {
		err := s.view(func(tx *bbolt.Tx) (err error) {
			b := tx.Bucket(migrations.Segments).Bucket(n)
			if b == nil { // retired meanwhile
				from = nil
				return nil
			}
			from, err = g.add(b.Cursor(), from)
			return err
		})
		if err != nil {
			return g, err
		}
	}
	there, err := s.keyring().Has(g.Number)
	g.Privacy = g.forms.privacy(there)
	return g, err
}

// add counts the records at c from the key from on, and yields the key to go on
// from, nil at the end.
func (g *Segment) add(c *bbolt.Cursor, from []byte) ([]byte, error) {
	end := time.Now().Add(chunkTime)
	var last []byte
	for k, v := c.Seek(from); k != nil; k, v = c.Next() {
		if g.Records&63 == 0 && time.Now().After(end) {
			return bytes.Clone(k), g.ends(last)
		}
		if g.Records == 0 {
			first, err := parseEnvelope(v)
			if err != nil {
				return nil, err
			}
			g.First, g.From = first.first, first.moment
		}
		if err := g.forms.see(v); err != nil {
			return nil, err
		}
		g.Records++
		g.Bytes += uint64(len(v))
		last = v
	}
	return nil, g.ends(last)
}

func (g *Segment) ends(last []byte) error {
	if last == nil {
		return nil
	}
	v, err := parseEnvelope(last)
	g.Last, g.To = v.last(), v.moment
	return err
}
