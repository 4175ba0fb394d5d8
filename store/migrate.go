package store

import (
	"errors"
	"fmt"
	"os"

	"turnstone/migrations"

	"go.etcd.io/bbolt"
)

// Schema is the schema of a log's file, which no daemon has open.
func Schema(file string) (version uint64, err error) {
	if err := unlocked(file); err != nil {
		return 0, err
	}
	if err := checkFile(file, readerWait); err != nil {
		return 0, err
	}
	r := Reader{file: file}
	err = r.view(func(tx *bbolt.Tx) (err error) {
		version, err = migrations.Version(tx)
		return err
	})
	return version, inSchema(file, err)
}

// inSchema puts the name of the file to an error about its schema.
func inSchema(file string, err error) error {
	var damage *CorruptError
	if err == nil || errors.As(err, &damage) || errors.Is(err, ErrInUse) {
		return err
	}
	return fmt.Errorf("%s: %w", file, err)
}

// Migrate brings a log's file, which no daemon has open, to the current schema, and
// says how many steps that took.
func Migrate(file string) (n int, err error) {
	if _, err := os.Stat(file); err != nil {
		return 0, fmt.Errorf("open log: %w", err)
	}
	if err := unlocked(file); err != nil {
		return 0, err
	}
	if err := checkFile(file, readerWait); err != nil {
		return 0, err
	}
	db, err := openDatabase(file, bbolt.Options{Timeout: openTimeout})
	if err != nil {
		return 0, err
	}
	err = guard(file, func() (err error) {
		n, err = migrations.Up(db.DB)
		return inSchema(file, err)
	})
	return n, errors.Join(err, db.close())
}
