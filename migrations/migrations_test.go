package migrations

import (
	"errors"
	"path/filepath"
	"testing"

	"go.etcd.io/bbolt"
)

func openTest(t *testing.T) *bbolt.DB {
	t.Helper()
	db, err := bbolt.Open(filepath.Join(t.TempDir(), "log.db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

func versionOf(t *testing.T, db *bbolt.DB) (v uint64) {
	t.Helper()
	err := db.View(func(tx *bbolt.Tx) (err error) {
		v, err = Version(tx)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestStepsAreNumberedWithoutGaps(t *testing.T) {
	for i, s := range Steps {
		if s.Version != uint64(i)+1 || s.Name == "" || s.Apply == nil {
			t.Errorf("step %d is %+v", i+1, s)
		}
	}
}

func TestUpTakesEveryStepOnce(t *testing.T) {
	db := openTest(t)
	if v := versionOf(t, db); v != 0 {
		t.Fatalf("an empty file has schema %d, want 0", v)
	}
	n, err := Up(db)
	if err != nil || n != len(Steps) {
		t.Fatalf("got %d steps (%v), want %d", n, err, len(Steps))
	}
	if v := versionOf(t, db); v != Current {
		t.Errorf("schema %d, want %d", v, Current)
	}
	if n, err := Up(db); n != 0 || err != nil {
		t.Errorf("a second time: %d steps (%v), want none", n, err)
	}
	err = db.View(func(tx *bbolt.Tx) error {
		for _, name := range [][]byte{Meta, Segments, Snapshots} {
			if tx.Bucket(name) == nil {
				t.Errorf("there is no bucket %s", name)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func setVersion(t *testing.T, db *bbolt.DB, v []byte) {
	t.Helper()
	err := db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists(Meta)
		if err != nil {
			return err
		}
		return b.Put(SchemaKey, v)
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNewerSchemaIsRefused(t *testing.T) {
	db := openTest(t)
	setVersion(t, db, []byte{0, 0, 0, 0, 0, 0, 0, byte(Current) + 1})
	if _, err := Up(db); !errors.Is(err, ErrNewer) {
		t.Errorf("got %v, want %v", err, ErrNewer)
	}
}

func TestDamagedSchemaIsAnError(t *testing.T) {
	db := openTest(t)
	setVersion(t, db, []byte{1, 2, 3})
	if _, err := Up(db); err == nil {
		t.Error("a version of three bytes is taken")
	}
}

func TestUpcastGoesAsManyStepsAsItTakes(t *testing.T) {
	const first, second, present = 60001, 60002, 60003
	upcasters[first] = func(b []byte) (uint16, []byte, error) { return second, append(b, 'b'), nil }
	upcasters[second] = func(b []byte) (uint16, []byte, error) { return present, append(b, 'c'), nil }
	t.Cleanup(func() { delete(upcasters, first); delete(upcasters, second) })
	kind, body, err := Upcast(first, []byte("a"))
	if err != nil || kind != present || string(body) != "abc" {
		t.Errorf("got kind %d, body %q (%v), want %d and abc", kind, body, err, present)
	}
	if kind, body, err := Upcast(present, []byte("a")); err != nil || kind != present || string(body) != "a" {
		t.Errorf("a present kind became %d, %q (%v)", kind, body, err)
	}
	damage := errors.New("damaged")
	upcasters[second] = func([]byte) (uint16, []byte, error) { return 0, nil, damage }
	if _, _, err := Upcast(first, nil); !errors.Is(err, damage) {
		t.Errorf("got %v, want %v", err, damage)
	}
}
