package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"hash/crc32"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
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

// forgeries change records of a segment, each in its own way.
var forgeries = map[string]func(b *bbolt.Bucket) error{
	"an event is edited":     func(b *bbolt.Bucket) error { return forgeThird(b, func(v []byte) { v[len(v)-1] ^= 1 }) },
	"a moment is edited":     func(b *bbolt.Bucket) error { return forgeThird(b, func(v []byte) { v[48] ^= 1 }) },
	"a chain hash is forged": func(b *bbolt.Bucket) error { return forgeThird(b, func(v []byte) { v[49] ^= 1 }) },
	"a tree head is forged":  func(b *bbolt.Bucket) error { return forgeThird(b, func(v []byte) { v[81] ^= 1 }) },
	"a record is deleted": func(b *bbolt.Bucket) error {
		k, _ := third(b)
		return b.Delete(k)
	},
	"two records are swapped": func(b *bbolt.Bucket) error {
		k, v := third(b)
		c := b.Cursor()
		c.Seek(k)
		k2, v2 := c.Next()
		k2, v2 = bytes.Clone(k2), bytes.Clone(v2)
		return errors.Join(b.Put(k, v2), b.Put(k2, v))
	},
	"a record is doubled": func(b *bbolt.Bucket) error {
		k, v := third(b)
		return b.Put(key(number(k)+1<<40), v)
	},
	"a record is cut": func(b *bbolt.Bucket) error {
		k, v := third(b)
		return b.Put(k, v[:len(v)-2])
	},
	"a record is empty": func(b *bbolt.Bucket) error {
		k, _ := third(b)
		return b.Put(k, nil)
	},
	"the header is forged": func(b *bbolt.Bucket) error {
		v := bytes.Clone(b.Get(headKey))
		v[len(v)-1] ^= 1
		return b.Put(headKey, v)
	},
	"the header is cut": func(b *bbolt.Bucket) error { return b.Put(headKey, b.Get(headKey)[:20]) },
}

// third is the third record of a segment.
func third(b *bbolt.Bucket) (k, v []byte) {
	c := b.Cursor()
	c.Seek(key(0))
	c.Next()
	k, v = c.Next()
	return bytes.Clone(k), bytes.Clone(v)
}

func forgeThird(b *bbolt.Bucket, f func(v []byte)) error {
	k, v := third(b)
	f(v)
	return b.Put(k, reseal(v))
}

// lastHolds is a log whose last segment has at least n records.
func lastHolds(t *testing.T, n int) (dir string) {
	t.Helper()
	for records := 300; ; records++ {
		dir, _ = filled(t, 14, records)
		r, err := OpenReader(filepath.Join(dir, FileName))
		must(t, err)
		st, err := r.Stat()
		must(t, err)
		if st.Segments[len(st.Segments)-1].Records >= uint64(n) {
			return dir
		}
	}
}

func TestForgedRecordsAreDiagnosed(t *testing.T) {
	dir := lastHolds(t, 5)
	var damage *CorruptError
	for name, forge := range forgeries {
		sealed := copyLog(t, dir)
		edit(t, sealed, func(tx *bbolt.Tx) error { return forge(tx.Bucket(migrations.Segments).Bucket(key(2))) })
		if _, err := inspectDamaged(t, sealed); !errors.As(err, &damage) && !errors.Is(err, ErrUnknownFormat) {
			t.Errorf("%s: verify: %v, want a *CorruptError", name, err)
		}
		last := copyLog(t, dir)
		edit(t, last, func(tx *bbolt.Tx) error {
			k, _ := tx.Bucket(migrations.Segments).Cursor().Last()
			return forge(tx.Bucket(migrations.Segments).Bucket(k))
		})
		l, err := Open(last, tiny)
		if err == nil {
			_ = l.Close()
		}
		if !errors.As(err, &damage) && !errors.Is(err, ErrUnknownFormat) {
			t.Errorf("%s: open: %v, want a *CorruptError", name, err)
		}
	}
}

func TestForgedStructureIsDiagnosed(t *testing.T) {
	dir, _ := filled(t, 14, 300)
	for name, forge := range map[string]func(*bbolt.Tx) error{
		"a segment is dropped": func(tx *bbolt.Tx) error { return tx.Bucket(migrations.Segments).DeleteBucket(key(2)) },
		"a segment is empty": func(tx *bbolt.Tx) error {
			segments := tx.Bucket(migrations.Segments)
			head := bytes.Clone(segments.Bucket(key(2)).Get(headKey))
			err := segments.DeleteBucket(key(2))
			b, made := segments.CreateBucket(key(2))
			return errors.Join(err, made, b.Put(headKey, head))
		},
		"a snapshot is edited": func(tx *bbolt.Tx) error {
			k, _ := tx.Bucket(migrations.Snapshots).Cursor().Last()
			b := tx.Bucket(migrations.Snapshots).Bucket(k)
			chunk := bytes.Clone(b.Get(key(1)))
			chunk[len(chunk)/2] ^= 1
			return b.Put(key(1), chunk)
		},
		"there are no segments":  func(tx *bbolt.Tx) error { return tx.DeleteBucket(migrations.Segments) },
		"there are no snapshots": func(tx *bbolt.Tx) error { return tx.DeleteBucket(migrations.Snapshots) },
	} {
		forged := copyLog(t, dir)
		edit(t, forged, forge)
		_, err := inspectDamaged(t, forged)
		var damage *CorruptError
		if !errors.As(err, &damage) {
			t.Errorf("%s: got %v, want a *CorruptError", name, err)
		}
	}
}

func TestFilesThatAreNoLogAreRefused(t *testing.T) {
	refused := func(err error) bool { return err != nil }
	damaged := func(err error) bool { var damage *CorruptError; return errors.As(err, &damage) }
	is := func(want error) func(error) bool { return func(err error) bool { return errors.Is(err, want) } }
	schema := func(t *testing.T, file string, v []byte) {
		foreign(t, file, func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucket(migrations.Meta)
			return errors.Join(err, b.Put(migrations.SchemaKey, v))
		})
	}
	for name, c := range map[string]struct {
		put  func(t *testing.T, file string)
		want func(error) bool
	}{
		"empty":     {func(t *testing.T, file string) { write(t, file, nil) }, damaged},
		"garbage":   {func(t *testing.T, file string) { write(t, file, bytes.Repeat([]byte("garbage!"), 4096)) }, damaged},
		"zeros":     {func(t *testing.T, file string) { write(t, file, make([]byte, 1<<16)) }, damaged},
		"directory": {func(t *testing.T, file string) { must(t, os.Mkdir(file, 0o700)) }, refused},
		"pipe":      {func(t *testing.T, file string) { must(t, unix.Mkfifo(file, 0o600)) }, refused},
		"newer":     {func(t *testing.T, file string) { schema(t, file, key(migrations.Current+1)) }, is(migrations.ErrNewer)},
		"no number": {func(t *testing.T, file string) { schema(t, file, []byte("one")) }, refused},
		"foreign": {func(t *testing.T, file string) {
			foreign(t, file, func(tx *bbolt.Tx) error {
				_, err := tx.CreateBucket([]byte("invoices"))
				return err
			})
		}, is(migrations.ErrForeign)},
	} {
		t.Run(strings.ReplaceAll(name, " ", "-"), func(t *testing.T) {
			dir := t.TempDir()
			file := filepath.Join(dir, FileName)
			c.put(t, file)
			before, _ := os.ReadFile(readable(t, file))
			for by, open := range map[string]func() error{
				"Open":       func() error { _, err := Open(dir, tiny); return err },
				"OpenReader": func() error { _, err := OpenReader(file); return err },
				"Migrate":    func() error { _, err := Migrate(file); return err },
			} {
				if err := open(); !c.want(err) {
					t.Errorf("%s: got %v, which says something else", by, err)
				}
			}
			if after, _ := os.ReadFile(readable(t, file)); !bytes.Equal(before, after) {
				t.Error("the file was changed")
			}
		})
	}
}

// readable is file, or a place where nothing is if reading it would block.
func readable(t *testing.T, file string) string {
	t.Helper()
	info, err := os.Lstat(file)
	must(t, err)
	if !info.Mode().IsRegular() {
		return file + "-is-none"
	}
	return file
}

func TestFileCutUnderALiveLogIsAnError(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, tiny)
	s := l.State()
	fill(t, l, s, 200, 8)
	must(t, os.Truncate(filepath.Join(dir, FileName), int64(2*os.Getpagesize())))
	var damage *CorruptError
	last := error(nil)
	for _, err := range l.Records(1) {
		last = err
	}
	if !errors.As(last, &damage) {
		t.Errorf("read: got %v, want a *CorruptError", last)
	}
	r := turn.Record{First: s.Seq() + 1, Moment: s.Moment(), Events: []turn.Event{turn.ServerStopped{}}}
	if err := l.Append(r); !errors.As(err, &damage) {
		t.Errorf("append: got %v, want a *CorruptError", err)
	}
	if _, err := l.Recover(); err == nil {
		t.Error("recovered from a file of which nothing is left")
	}
}

func write(t *testing.T, file string, b []byte) {
	t.Helper()
	must(t, os.WriteFile(file, b, 0o600))
}

func must(t testing.TB, err error) {
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

func TestVerifySaysThatReadingFailedAndNotThatSegmentsAreMissing(t *testing.T) {
	dir, _ := filled(t, 14, 300)
	r, err := OpenReader(filepath.Join(dir, FileName))
	must(t, err)
	segments, err := segmentsOf(r)
	must(t, err)
	for after := range 20 {
		n := 0
		_, err := verifyFrom(chain{}, segments, func(yield func([]byte, error) bool) {
			for raw, err := range Raw(r, 1) {
				if n++; n > after {
					yield(nil, ErrInUse)
					return
				}
				if !yield(raw, err) {
					return
				}
			}
		})
		var damage *CorruptError
		if !errors.Is(err, ErrInUse) || errors.As(err, &damage) {
			t.Errorf("reading failed after %d records: %v, want %v and no damage", after, err, ErrInUse)
		}
	}
	_, err = verifyFrom(chain{}, segments, func(func([]byte, error) bool) {})
	var damage *CorruptError
	if !errors.As(err, &damage) {
		t.Errorf("no records at all: %v, want a *CorruptError", err)
	}
}
