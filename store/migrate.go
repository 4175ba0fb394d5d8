package store

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"turnstone/migrations"

	"go.etcd.io/bbolt"
)

// Migration is what bringing a file to the present schema took.
type Migration struct {
	Steps    int // 0 where nothing was to be done
	From, To uint64
	Backup   string // the file as it was, which is kept until somebody removes it; empty where there was nothing in it
}

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

// Migrate brings a log's file, which no daemon has open, to the current schema.
func Migrate(file string) (m Migration, err error) {
	if _, err := os.Stat(file); err != nil {
		return m, fmt.Errorf("open log: %w", err)
	}
	if err := unlocked(file); err != nil {
		return m, err
	}
	if err := checkFile(file, readerWait); err != nil {
		return m, err
	}
	db, err := openDatabase(file, bbolt.Options{Timeout: openTimeout})
	if err != nil {
		return m, err
	}
	err = guard(file, func() (err error) {
		m, err = migrate(db)
		return inSchema(file, err)
	})
	return m, errors.Join(err, db.close())
}

// migrate takes the steps that db lacks, after it has put a copy of the file beside it.
func migrate(db *database) (m Migration, err error) {
	m.To = migrations.Current
	var pending []migrations.Step
	err = opened{db}.view(func(tx *bbolt.Tx) (err error) {
		m.From, pending, err = lacking(tx)
		return err
	})
	if err != nil || len(pending) == 0 {
		return m, err
	}
	if m.From > 0 {
		if m.Backup, err = keepCopy(db.file.Name(), m.From); err != nil {
			return m, fmt.Errorf("schema %d: keep a copy before it is brought to schema %d: %w", m.From, m.To, err)
		}
	}
	m.Steps, err = migrations.Up(db.DB)
	return m, err
}

// lacking is the schema of a file and the steps it lacks. The refusal of a newer one says who wrote it.
func lacking(tx *bbolt.Tx) (version uint64, pending []migrations.Step, err error) {
	if version, err = migrations.Version(tx); err != nil {
		return version, nil, err
	}
	pending, err = migrations.Pending(version)
	return version, pending, writtenBy(tx, err)
}

// writtenBy puts to an error about what is newer than this program whose it is.
func writtenBy(tx *bbolt.Tx, err error) error {
	if !errors.Is(err, migrations.ErrNewer) && !errors.Is(err, ErrUnknownKind) && !errors.Is(err, ErrUnknownFormat) {
		return err
	}
	meta := tx.Bucket(migrations.Meta)
	if meta == nil || meta.Get(migrations.WriterKey) == nil {
		return err
	}
	return fmt.Errorf("%w (written by turnstone %s)", err, meta.Get(migrations.WriterKey))
}

// keepCopy copies the file of a log of an old schema, durably, and yields the name of the copy. One that is there
// stays: it is of an attempt before, or of another file.
func keepCopy(file string, schema uint64) (string, error) {
	info, err := os.Stat(file)
	if err != nil {
		return "", err
	}
	name := fmt.Sprintf("%s.schema-%d.bak", file, schema)
	for n := 2; ; n++ {
		same, err := sameFile(file, name)
		if same {
			return name, nil
		}
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return "", err
		}
		name = fmt.Sprintf("%s.schema-%d.%d.bak", file, schema, n)
	}
	if err := enoughRoom(filepath.Dir(file), info.Size()); err != nil {
		return "", err
	}
	return name, copyFile(file, name)
}

// sameFile says whether two files hold the same. The error is ErrNotExist where the second is not there.
func sameFile(file, other string) (bool, error) {
	x, err := os.Open(file)
	if err != nil {
		return false, err
	}
	defer x.Close()
	y, err := os.Open(other)
	if err != nil {
		return false, err
	}
	defer y.Close()
	a, b := make([]byte, 1<<20), make([]byte, 1<<20)
	for {
		n, err := io.ReadFull(x, a)
		m, err2 := io.ReadFull(y, b)
		if !bytes.Equal(a[:n], b[:m]) {
			return false, nil
		}
		if err != nil || err2 != nil {
			return ended(err) && ended(err2), nil
		}
	}
}

func ended(err error) bool { return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) }

// copyFile copies file to name, which is there whole and durable or not at all.
func copyFile(file, name string) error {
	in, err := os.Open(file)
	if err != nil {
		return err
	}
	defer in.Close()
	return writeWhole(name, func(w io.Writer) error {
		_, err := io.Copy(w, in)
		return err
	})
}
