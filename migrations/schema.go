package migrations

import (
	"encoding/binary"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"
)

// Names of the buckets of the store, and of the keys in Meta.
var (
	Meta      = []byte("meta")
	Segments  = []byte("segments")
	Snapshots = []byte("snapshots")

	SchemaKey  = []byte("schema")
	WriterKey  = []byte("writer")  // version of the program that wrote last, absent in files of the first
	RetiredKey = []byte("retired") // the last segment that is recorded as retired, absent before the first
)

// Step brings a file from schema Version-1 to Version. It runs in one transaction.
type Step struct {
	Version uint64
	Name    string
	Apply   func(*bbolt.Tx) error
}

// Steps are all steps in order: Steps[i].Version is i+1.
var Steps = []Step{
	{Version: 1, Name: "segments, snapshots and meta", Apply: createBuckets},
	{Version: 2, Name: "the latest wall time in the heads of snapshots", Apply: noteLatest},
}

// Current is the schema this program reads and writes.
var Current = Steps[len(Steps)-1].Version

// Errors about files that are not to be migrated.
var (
	ErrNewer   = errors.New("the schema is newer than this program")
	ErrForeign = errors.New("the file belongs to another program")
)

func createBuckets(tx *bbolt.Tx) error {
	for _, name := range [][]byte{Meta, Segments, Snapshots} {
		if _, err := tx.CreateBucketIfNotExists(name); err != nil {
			return fmt.Errorf("create bucket %s: %w", name, err)
		}
	}
	return nil
}

// Version is the schema of a file, 0 for an empty one. What holds something else is ErrForeign.
func Version(tx *bbolt.Tx) (uint64, error) {
	meta := tx.Bucket(Meta)
	if meta == nil {
		if k, _ := tx.Cursor().First(); k != nil {
			return 0, ErrForeign
		}
		return 0, nil
	}
	v := meta.Get(SchemaKey)
	if len(v) != 8 {
		return 0, fmt.Errorf("the schema version has %d bytes, want 8", len(v))
	}
	return binary.BigEndian.Uint64(v), nil
}

// Pending are the steps that a file of schema version lacks. The error is ErrNewer, or nil.
func Pending(version uint64) ([]Step, error) {
	if version > Current {
		return nil, fmt.Errorf("schema %d, this program knows %d: %w", version, Current, ErrNewer)
	}
	return Steps[version:], nil
}

// Up brings db to the current schema, one transaction a step, and says how many it took.
func Up(db *bbolt.DB) (int, error) {
	var version uint64
	err := db.View(func(tx *bbolt.Tx) (err error) {
		version, err = Version(tx)
		return err
	})
	if err != nil {
		return 0, err
	}
	pending, err := Pending(version)
	if err != nil {
		return 0, err
	}
	for i, step := range pending {
		err := db.Update(func(tx *bbolt.Tx) error {
			if err := step.Apply(tx); err != nil {
				return err
			}
			return tx.Bucket(Meta).Put(SchemaKey, binary.BigEndian.AppendUint64(nil, step.Version))
		})
		if err != nil {
			return i, fmt.Errorf("migrate to schema %d (%s): %w", step.Version, step.Name, err)
		}
	}
	return len(pending), nil
}
