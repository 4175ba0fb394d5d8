package store

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// fixtures are files of every schema there was, with what they fold to. -update makes the one of the present schema
// where it is not there.
var fixtures = map[string]string{
	"schema-1.db":              "b8f75ec59933e79892794b8ca24b6987f3404e7257640f1ce9c8d0f274bb9184",
	"schema-1-snapshots.db.gz": "383016a5197a86e8749601e50d3e1723e7b4d1ebfa63adbfae6cecbbfbfe9c87",
	"schema-2-retired.db.gz":   "48f6d4d1ed4c4829267b2721c5488ccf92af9c0b977dac00b16ae9addb5add1d",
}

// fixture is a file of testdata in a directory of its own.
func fixture(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("..", "migrations", "testdata", name))
	must(t, err)
	if strings.HasSuffix(name, ".gz") {
		r, err := gzip.NewReader(bytes.NewReader(b))
		must(t, err)
		b, err = io.ReadAll(r)
		must(t, err)
	}
	dir := memoryDir(t)
	writeFile(t, dir, b)
	return dir
}

func digestOf(t *testing.T, s *turn.State) string {
	t.Helper()
	sum := sha256.Sum256([]byte(encoded(t, s)))
	return hex.EncodeToString(sum[:])
}

func TestFilesOfEverySchemaFoldToTheSame(t *testing.T) {
	for name, want := range fixtures {
		dir := fixture(t, name)
		l := openTest(t, dir, tiny)
		s := l.State()
		if got := digestOf(t, s); got != want {
			t.Errorf("%s folds to %s, want %s", name, got, want)
		}
		sealed := s.LastSealed()
		must(t, tend(l, s, &sealed))
		appendTest(t, l, s, at(1<<20), turn.ServerStopped{Signal: "terminated"}) // and goes on
		must(t, l.Close())
		verifyFile(t, dir)
	}
}

func TestEverySchemaHasAFixture(t *testing.T) {
	for _, s := range migrations.Steps {
		found := false
		for name := range fixtures {
			found = found || strings.HasPrefix(name, "schema-"+string(rune('0'+s.Version)))
		}
		if !found {
			t.Errorf("there is no fixture of schema %d", s.Version)
		}
	}
}

// snapshotsRead are the snapshots of the log in dir, each of which has to be whole.
func snapshotsRead(t *testing.T, dir string) []Snapshot {
	t.Helper()
	list := snapshotsOf(t, dir)
	for _, p := range list {
		if _, err := loadSnapshot(readerOf(t, dir), p.At); err != nil {
			t.Error(err)
		}
		latest := int64(0)
		for raw, err := range Raw(readerOf(t, dir), 1) {
			must(t, err)
			if firstInside(raw) <= p.At {
				latest = max(latest, wallOf(raw))
			}
		}
		if p.Latest != latest {
			t.Errorf("the latest record up to snapshot %d is of %d, want %d", p.At, p.Latest, latest)
		}
	}
	return list
}

func TestMigrationKeepsTheFileAsItWas(t *testing.T) {
	const name = "schema-1-snapshots.db.gz"
	dir := fixture(t, name)
	before := readFile(t, dir)
	l, err := Open(dir, tiny)
	must(t, err)
	m := l.Migration()
	must(t, l.Close())
	if m.Steps != 1 || m.From != 1 || m.To != 2 || m.Backup != filepath.Join(dir, FileName+".schema-1.bak") {
		t.Errorf("the migration was %+v", m)
	}
	if !bytes.Equal(readBytes(t, m.Backup), before) {
		t.Error("the copy is not the file as it was")
	}
	if n := len(snapshotsRead(t, dir)); n != 2 {
		t.Errorf("%d snapshots are left, want 2", n)
	}
	if _, err := OpenReader(m.Backup); err == nil {
		t.Error("the copy is of the present schema")
	}
	again := openTest(t, dir, tiny)
	if m := again.Migration(); m.Steps != 0 || m.Backup != "" {
		t.Errorf("a second start migrates again: %+v", m)
	}
	must(t, again.Close())

	// The same file again needs no second copy, another one does.
	writeFile(t, dir, before)
	m2, err := Migrate(filepath.Join(dir, FileName))
	must(t, err)
	if m2.Backup != m.Backup {
		t.Errorf("the copy is %s, want %s", m2.Backup, m.Backup)
	}
	must(t, os.WriteFile(m.Backup, []byte("another"), 0o600))
	writeFile(t, dir, before)
	m3, err := Migrate(filepath.Join(dir, FileName))
	must(t, err)
	if m3.Backup == m.Backup || string(readBytes(t, m.Backup)) != "another" || !bytes.Equal(readBytes(t, m3.Backup), before) {
		t.Errorf("with another file there the copy is %s", m3.Backup)
	}
}

func TestMigrationNeedsRoomForTheCopy(t *testing.T) {
	dir := smallDisk(t, 8<<20)
	from := fixture(t, "schema-1-snapshots.db.gz")
	before := readFile(t, from)
	writeFile(t, dir, before)
	leave(t, dir, 1<<20)
	if _, err := Open(dir, tiny); !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "bytes free") {
		t.Errorf("open without room for a copy: %v, want %v", err, unix.ENOSPC)
	}
	if !bytes.Equal(readFile(t, dir), before) {
		t.Error("the file has changed")
	}
}

func TestNewerFilesAreRefusedWithTheirWriter(t *testing.T) {
	dir := memoryDir(t)
	o := tiny
	o.Version = "v9.8.7"
	l, err := Open(dir, o)
	must(t, err)
	fill(t, l, l.State(), 1, 2)
	must(t, l.Close())
	unknown := copyLog(t, dir)
	edit(t, dir, func(tx *bbolt.Tx) error {
		return tx.Bucket(migrations.Meta).Put(migrations.SchemaKey, key(migrations.Current+1))
	})
	// A record of a form of tomorrow.
	edit(t, unknown, func(tx *bbolt.Tx) error {
		return tx.Bucket(migrations.Segments).Bucket(key(1)).Put(key(4), []byte{recordFormat + 1, 2, 3})
	})
	for name, dir := range map[string]string{"schema": dir, "record": unknown} {
		_, err := Open(dir, tiny)
		if err == nil || !errors.Is(err, migrations.ErrNewer) && !errors.Is(err, ErrUnknownFormat) || !strings.Contains(err.Error(), "written by turnstone v9.8.7") {
			t.Errorf("%s: open: %v, want a refusal that names v9.8.7", name, err)
		}
	}
	if _, err := OpenReader(filepath.Join(dir, FileName)); !errors.Is(err, migrations.ErrNewer) || !strings.Contains(err.Error(), "v9.8.7") {
		t.Errorf("read: %v, want a refusal that names v9.8.7", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.bak")); len(left) > 0 {
		t.Errorf("a file that was refused was copied: %v", left)
	}
}

// TestMakeFixture makes the fixture of the present schema.
func TestMakeFixture(t *testing.T) {
	const name = "../migrations/testdata/schema-2-retired.db.gz"
	if _, err := os.Stat(name); err == nil || !*update {
		return
	}
	dir := memoryDir(t)
	o := tiny
	o.Version = "v0.2.0"
	k := newKeeper(t, dir, Retention{Size: 3 * int64(tiny.SegmentSize)}, nil)
	k.l.options.Version = o.Version
	k.load(80)
	k.close()
	_, err := Compact(dir)
	must(t, err)
	var b bytes.Buffer
	w, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	must(t, err)
	_, err = w.Write(readFile(t, dir))
	must(t, errors.Join(err, w.Close(), os.WriteFile(name, b.Bytes(), 0o644)))
	t.Errorf("%s folds to %s", name, digestOf(t, k.state))
}
