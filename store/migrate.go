package store

import (
	"errors"
	"fmt"
	"os"

	"turnstone/migrations"

	"go.etcd.io/bbolt"
)

// Schema is the schema of a log's file.
func Schema(file string) (version uint64, err error) {
	if _, err := os.Stat(file); err != nil {
		return 0, fmt.Errorf("open log: %w", err)
	}
	r := Reader{file: file}
	err = r.view(func(tx *bbolt.Tx) (err error) {
		version, err = migrations.Version(tx)
		return err
	})
	return version, err
}

// Migrate brings a log's file, which no daemon has open, to the current schema, and
// says how many steps that took.
func Migrate(file string) (n int, err error) {
	if _, err := os.Stat(file); err != nil {
		return 0, fmt.Errorf("open log: %w", err)
	}
	err = guard(file, func() error {
		db, err := bbolt.Open(file, 0o600, &bbolt.Options{Timeout: openTimeout, FreelistType: bbolt.FreelistMapType})
		if err != nil {
			return openError(file, err)
		}
		n, err = migrations.Up(db)
		return errors.Join(err, db.Close())
	})
	return n, err
}
