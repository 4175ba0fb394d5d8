package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// earlier are the states a log has had. Where the newer of bbolt's two meta pages is lost, the older one
// rules: the file is as it was a transaction ago, which only a witness elsewhere could tell.
func earlier(t *testing.T, dir string, at int) map[string]bool {
	t.Helper()
	out := map[string]bool{}
	if at < 2*os.Getpagesize() {
		for _, p := range prefixesOf(t, dir) {
			out[p.state] = true
		}
	}
	return out
}

// inspectDamaged opens and verifies the log in dir, and yields what is found.
func inspectDamaged(t *testing.T, dir string) (state string, err error) {
	t.Helper()
	r, err := OpenReader(filepath.Join(dir, FileName))
	if err != nil {
		return "", err
	}
	if _, err := r.Verify(); err != nil {
		return "", err
	}
	s, err := StateAt(r.Records(1), func(turn.Record) bool { return true })
	if err != nil {
		return "", err
	}
	return encoded(t, s), nil
}

// openDamaged opens the log in dir as a daemon does: it must fail with damage, or hold what was written.
func openDamaged(t *testing.T, what, dir, whole string) {
	t.Helper()
	l, err := Open(dir, tiny)
	var damage *CorruptError
	switch {
	case errors.As(err, &damage):
		return
	case err != nil:
		t.Errorf("%s: open: %v, want a *CorruptError or none", what, err)
		return
	}
	defer l.Close()
	if encoded(t, l.State()) != whole {
		t.Errorf("%s: opened without an error, with another state", what)
	}
}

func TestFlippedBitsAreFoundOrHarmless(t *testing.T) {
	dir, s := filled(t, 11, 300)
	whole, good := encoded(t, s), readFile(t, dir)
	random := rand.New(rand.NewPCG(3, 4))
	damaged := t.TempDir()
	flips, found := 400, 0
	if testing.Short() {
		flips = 80
	}
	for range flips {
		b := bytes.Clone(good)
		at := random.IntN(len(b))
		b[at] ^= 1 << random.IntN(8)
		writeFile(t, damaged, b)
		state, err := inspectDamaged(t, damaged)
		var damage *CorruptError
		switch {
		case errors.As(err, &damage), errors.Is(err, migrations.ErrNewer), errors.Is(err, ErrUnknownFormat), errors.Is(err, ErrUnknownKind):
			found++
		case err != nil:
			t.Errorf("bit at %d: %v, want a *CorruptError", at, err)
		case state != whole && !earlier(t, dir, at)[state]:
			t.Errorf("bit at %d: verified, with another state", at)
		}
		if at%7 == 0 && at >= 2*os.Getpagesize() {
			openDamaged(t, "a flipped bit", damaged, whole)
		}
		if t.Failed() {
			return
		}
	}
	if found < flips/8 {
		t.Errorf("%d of %d flips were found: too few to prove anything", found, flips)
	}
}

func TestCutFilesAreDiagnosed(t *testing.T) {
	dir, s := filled(t, 12, 300)
	whole, good := encoded(t, s), readFile(t, dir)
	damaged := t.TempDir()
	for n := 0; n < len(good); n += max(len(good)/places(), 1) {
		writeFile(t, damaged, good[:n])
		if state, err := inspectDamaged(t, damaged); err == nil && state != whole {
			t.Fatalf("cut at %d: verified, with another state", n)
		}
		openDamaged(t, "a cut file", damaged, whole)
	}
}

// places is how many places of a file are damaged.
func places() int {
	if testing.Short() {
		return 20
	}
	return 120
}

func TestOverwrittenPagesAreDiagnosed(t *testing.T) {
	dir, s := filled(t, 13, 300)
	whole, good := encoded(t, s), readFile(t, dir)
	damaged, page := t.TempDir(), os.Getpagesize()
	random := rand.New(rand.NewPCG(5, 6))
	for at := 0; at+page <= len(good); at += page {
		for _, fill := range []func([]byte){
			func(b []byte) { clear(b) },
			func(b []byte) {
				for i := range b {
					b[i] = byte(random.Uint32())
				}
			},
			func(b []byte) { copy(b, good[random.IntN(len(good)/page)*page:][:page]) }, // another page
		} {
			b := bytes.Clone(good)
			fill(b[at : at+page])
			writeFile(t, damaged, b)
			state, err := inspectDamaged(t, damaged)
			if err == nil && state != whole && !earlier(t, dir, at)[state] {
				t.Fatalf("page %d: verified, with another state", at/page)
			}
			if at >= 2*page {
				openDamaged(t, "an overwritten page", damaged, whole)
			}
		}
		if at > places()*page {
			break
		}
	}
}

// reseal makes the CRC of a record right again.
func reseal(b []byte) []byte {
	binary.BigEndian.PutUint32(b[1:], crc32.Checksum(b[5:], castagnoli))
	return b
}

func TestForgedLogsAreDiagnosed(t *testing.T) {
	dir, _ := filled(t, 14, 300)
	// inSegment changes the second segment, which is sealed and has records on both sides.
	inSegment := func(f func(b *bbolt.Bucket) error) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error { return f(tx.Bucket(migrations.Segments).Bucket(key(2))) }
	}
	third := func(b *bbolt.Bucket) (k, v []byte) {
		c := b.Cursor()
		c.Seek(key(0))
		c.Next()
		k, v = c.Next()
		return bytes.Clone(k), bytes.Clone(v)
	}
	for name, forge := range map[string]func(*bbolt.Tx) error{
		"an event is edited": inSegment(func(b *bbolt.Bucket) error {
			k, v := third(b)
			v[len(v)-1] ^= 1
			return b.Put(k, reseal(v))
		}),
		"a moment is edited": inSegment(func(b *bbolt.Bucket) error {
			k, v := third(b)
			v[48] ^= 1
			return b.Put(k, reseal(v))
		}),
		"a chain hash is forged": inSegment(func(b *bbolt.Bucket) error {
			k, v := third(b)
			v[49] ^= 1
			return b.Put(k, reseal(v))
		}),
		"a tree head is forged": inSegment(func(b *bbolt.Bucket) error {
			k, v := third(b)
			v[81] ^= 1
			return b.Put(k, reseal(v))
		}),
		"a record is deleted": inSegment(func(b *bbolt.Bucket) error {
			k, _ := third(b)
			return b.Delete(k)
		}),
		"two records are swapped": inSegment(func(b *bbolt.Bucket) error {
			k, v := third(b)
			c := b.Cursor()
			c.Seek(k)
			k2, v2 := c.Next()
			k2, v2 = bytes.Clone(k2), bytes.Clone(v2)
			return errors.Join(b.Put(k, v2), b.Put(k2, v))
		}),
		"a record is doubled": inSegment(func(b *bbolt.Bucket) error {
			k, v := third(b)
			return b.Put(key(number(k)+1<<40), v)
		}),
		"a segment is dropped": func(tx *bbolt.Tx) error { return tx.Bucket(migrations.Segments).DeleteBucket(key(2)) },
		"the end is cut off": func(tx *bbolt.Tx) error {
			k, _ := tx.Bucket(migrations.Segments).Cursor().First()
			return tx.Bucket(migrations.Segments).DeleteBucket(bytes.Clone(k))
		},
		"a snapshot is edited": func(tx *bbolt.Tx) error {
			k, _ := tx.Bucket(migrations.Snapshots).Cursor().Last()
			b := tx.Bucket(migrations.Snapshots).Bucket(k)
			chunk := bytes.Clone(b.Get(key(1)))
			chunk[len(chunk)/2] ^= 1
			return b.Put(key(1), chunk)
		},
	} {
		forged := copyLog(t, dir)
		edit(t, forged, forge)
		_, err := inspectDamaged(t, forged)
		var damage *CorruptError
		if !errors.As(err, &damage) && !errors.Is(err, ErrRetired) {
			t.Errorf("%s: got %v, want a *CorruptError", name, err)
		}
	}
}

func TestFilesThatAreNoLogAreRefused(t *testing.T) {
	for name, put := range map[string]func(t *testing.T, file string){
		"empty":     func(t *testing.T, file string) { write(t, file, nil) },
		"garbage":   func(t *testing.T, file string) { write(t, file, bytes.Repeat([]byte("garbage!"), 4096)) },
		"zeros":     func(t *testing.T, file string) { write(t, file, make([]byte, 1<<16)) },
		"directory": func(t *testing.T, file string) { must(t, os.Mkdir(file, 0o700)) },
		"newer": func(t *testing.T, file string) {
			foreign(t, file, func(tx *bbolt.Tx) error {
				b, err := tx.CreateBucket(migrations.Meta)
				if err != nil {
					return err
				}
				return b.Put(migrations.SchemaKey, key(migrations.Current+1))
			})
		},
	} {
		dir := t.TempDir()
		put(t, filepath.Join(dir, FileName))
		if l, err := Open(dir, tiny); err == nil {
			t.Errorf("%s: opened", name)
			_ = l.Close()
		}
	}
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	must(t, os.WriteFile(file, b, 0o600))
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// foreign makes a bbolt file that is not the store's.
func foreign(t *testing.T, file string, f func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(file, 0o600, nil)
	must(t, err)
	must(t, errors.Join(db.Update(f), db.Close()))
}
