package store

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// packTo writes a pack of s to a file.
func packTo(t *testing.T, s source, o PackOptions) (string, PackEnd) {
	t.Helper()
	file := filepath.Join(t.TempDir(), "pack.cbor.zst")
	out, err := os.Create(file)
	must(t, err)
	packed, err := Compress(out)
	must(t, err)
	end, err := WritePack(context.Background(), packed, s, o)
	must(t, err)
	must(t, errors.Join(packed.Close(), out.Close()))
	return file, end
}

// kept is a log with archives, closed, and the state it ends in.
func kept(t *testing.T) (dir string, state string) {
	t.Helper()
	return keptOf(t, 21)
}

func keptOf(t *testing.T, seed uint64) (dir string, state string) {
	t.Helper()
	dir = memoryDir(t)
	k := newKeeper(t, dir, Retention{Size: 4 * int64(tiny.SegmentSize), Archive: archiveIn(dir)}, nil)
	k.gen = newTraffic(seed, k.state, 20)
	k.load(160)
	if st := k.stat(); st.First == 1 || st.Archives.Archives < 3 {
		t.Fatalf("the file begins at %d with %d archives, want some", st.First, st.Archives.Archives)
	}
	k.close()
	return dir, encoded(t, k.state)
}

// foldsTo wants the log in dir to verify, and to be the state given: from its snapshots, and from its beginning.
func foldsTo(t *testing.T, dir, want string) {
	t.Helper()
	verifyFile(t, dir)
	s, _, err := readerOf(t, dir).StateWithin(Everything(), func(err error) { t.Error(err) })
	must(t, err)
	if encoded(t, s) != want {
		t.Error("the log folds to another state")
	}
	s, err = StateAt(readerOf(t, dir).Records(1), func(turn.Record) bool { return true })
	must(t, err)
	if encoded(t, s) != want {
		t.Error("the log folds from its beginning to another state")
	}
}

func TestExportsAndArchivesMakeTheSameLog(t *testing.T) {
	dir, want := kept(t)
	foldsTo(t, dir, want)
	whole, end := packTo(t, readerOf(t, dir), PackOptions{})
	again, _ := packTo(t, readerOf(t, dir), PackOptions{})
	if !bytes.Equal(readBytes(t, whole), readBytes(t, again)) {
		t.Error("two exports of the same log differ")
	}
	archives, err := PackFiles([]string{archiveIn(dir)})
	must(t, err)
	file, _ := packTo(t, readerOf(t, dir), PackOptions{FileOnly: true})
	for name, packs := range map[string][]string{"export": {whole}, "archives-and-file": append(archives, file)} {
		t.Run(name, func(t *testing.T) {
			made := memoryDir(t)
			report, err := Import(context.Background(), made, packs, ImportOptions{})
			must(t, err)
			if report.Last != end.Last || report.Chain != end.Chain || report.Root != end.Root {
				t.Errorf("the log that was made is %+v, want %+v", report, end)
			}
			foldsTo(t, made, want)
			got, had := records(t, made), records(t, dir)
			if len(got) != len(had) {
				t.Fatalf("%d records were made of %d", len(got), len(had))
			}
			for i := range got {
				if !bytes.Equal(got[i], had[i]) {
					t.Fatalf("record %d is another", i)
				}
			}
			l := openTest(t, made, tiny) // a daemon goes on from there
			if encoded(t, l.State()) != want {
				t.Error("it opens with another state")
			}
			if _, err := Import(context.Background(), dir, packs, ImportOptions{}); !errors.Is(err, ErrExists) {
				t.Errorf("import over a log: got %v, want %v", err, ErrExists)
			}
		})
	}
	foldsTo(t, dir, want)
}

func records(t *testing.T, dir string) (out [][]byte) {
	t.Helper()
	for raw, err := range Raw(readerOf(t, dir), 1) {
		must(t, err)
		out = append(out, raw)
	}
	return out
}

func readBytes(t *testing.T, file string) []byte {
	t.Helper()
	b, err := os.ReadFile(file)
	must(t, err)
	return b
}

func TestPartsOfALogAreExported(t *testing.T) {
	dir, s := filled(t, 31, 300)
	r := readerOf(t, dir)
	list := snapshotsOf(t, dir)
	for _, from := range []turn.Seq{1, list[0].At, list[0].At + 1, list[1].At + 7, s.Seq()} {
		for _, to := range []turn.Seq{list[1].At + 9, s.Seq() - 1, 0} {
			if to > 0 && to < from {
				continue
			}
			file, end := packTo(t, r, PackOptions{From: from, To: to})
			made := memoryDir(t)
			report, err := Import(context.Background(), made, []string{file}, ImportOptions{})
			if err != nil {
				t.Fatalf("from %d to %d: %v", from, to, err)
			}
			if report.Last != end.Last || to > 0 && report.Last > to || to == 0 && report.Last != s.Seq() {
				t.Errorf("from %d to %d: ends at %d", from, to, report.Last)
			}
			first, err := Oldest(readerOf(t, made))
			must(t, err)
			if first > from {
				t.Errorf("from %d: it begins at %d", from, first)
			}
			want, _, err := r.StateWithin(Through(report.Last), func(error) {})
			must(t, err)
			got, _, err := readerOf(t, made).StateWithin(Everything(), func(error) {})
			must(t, err)
			if encoded(t, got) != encoded(t, want) {
				t.Errorf("from %d to %d: it folds to another state", from, to)
			}
		}
	}
}

func TestDamagedPacksAreRefused(t *testing.T) {
	dir, _ := kept(t)
	whole, _ := packTo(t, readerOf(t, dir), PackOptions{})
	plain := unpacked(t, whole)
	pack := func(b []byte) string {
		file := filepath.Join(t.TempDir(), "damaged.cbor.zst")
		out, err := os.Create(file)
		must(t, err)
		packed, err := Compress(out)
		must(t, err)
		_, err = packed.Write(b)
		must(t, errors.Join(err, packed.Close(), out.Close()))
		return file
	}
	refused := func(what, file string) {
		t.Helper()
		made := memoryDir(t)
		_, err := Import(context.Background(), made, []string{file}, ImportOptions{})
		if err == nil {
			t.Errorf("%s: a log was made of it", what)
		}
		if entries, _ := os.ReadDir(made); len(entries) > 1 { // the lock
			t.Errorf("%s: %v are left", what, entries)
		}
	}
	for i := range 60 {
		at := i * len(plain) / 60
		b := bytes.Clone(plain)
		b[at] ^= 1
		refused("a flipped bit", pack(b))
		if i%10 == 0 {
			refused("a cut pack", pack(plain[:at]))
		}
	}
	compressed := readBytes(t, whole)
	cut := filepath.Join(t.TempDir(), "cut.cbor.zst")
	must(t, os.WriteFile(cut, compressed[:len(compressed)/2], 0o600))
	refused("half a file", cut)
	archives, err := PackFiles([]string{archiveIn(dir)})
	must(t, err)
	made := memoryDir(t)
	if _, err := Import(context.Background(), made, append(archives[:1:1], archives[2:]...), ImportOptions{}); err == nil || !strings.Contains(err.Error(), "follows segment") {
		t.Errorf("archives with a gap: got %v", err)
	}
	// Archives that do not begin with the log have no state to stand on.
	if _, err := Import(context.Background(), made, archives[1:], ImportOptions{}); err == nil {
		t.Error("a log was made of archives without their beginning")
	}
}

func unpacked(t *testing.T, file string) []byte {
	t.Helper()
	in, err := os.Open(file)
	must(t, err)
	defer in.Close()
	r, err := Decompress(in)
	must(t, err)
	defer r.Close()
	b, err := io.ReadAll(r)
	must(t, err)
	return b
}

func TestGapsInArchivesAreSaid(t *testing.T) {
	dir, want := kept(t)
	r := readerOf(t, dir)
	list, err := archivedBefore(r, 0)
	must(t, err)
	must(t, os.Remove(filepath.Join(archiveIn(dir), archiveFile(list[1].Segment))))
	var got error
	for _, got = range Raw(r, 1) {
	}
	if !errors.Is(got, ErrRetired) || !strings.Contains(got.Error(), "events 1 to ") || !strings.Contains(got.Error(), archiveIn(dir)) {
		t.Errorf("reading over a gap: %v", got)
	}
	oldest, err := Oldest(r)
	must(t, err)
	if oldest != list[2].First {
		t.Errorf("the log begins at %d, want %d", oldest, list[2].First)
	}
	verifyFile(t, dir)
	s, _, err := r.StateWithin(Everything(), func(error) {})
	must(t, err)
	if encoded(t, s) != want {
		t.Error("the log with a gap in its archives folds to another state")
	}
	// An archive of another history is none of this log's; the same one is.
	for _, seed := range []uint64{22, 21} {
		other, _ := keptOf(t, seed)
		name := archiveFile(list[1].Segment)
		must(t, copyFile(filepath.Join(archiveIn(other), name), filepath.Join(archiveIn(dir), name)))
		want := list[2].First
		if seed == 21 {
			want = 1
		}
		if got, err := Oldest(readerOf(t, dir)); err != nil || got != want {
			t.Errorf("with an archive of the history %d it begins at %d (%v), want %d", seed, got, err, want)
		}
	}
}

func TestDamagedArchivesAreFound(t *testing.T) {
	dir, _ := kept(t)
	list, err := archivedBefore(readerOf(t, dir), 0)
	must(t, err)
	file := filepath.Join(archiveIn(dir), archiveFile(list[1].Segment))
	b := readBytes(t, file)
	b[len(b)/2] ^= 1
	must(t, os.WriteFile(file, b, 0o600))
	var damage *CorruptError
	_, err = readerOf(t, dir).Verify()
	if !errors.As(err, &damage) || damage.File != file {
		t.Errorf("verification of a damaged archive: %v, want a *CorruptError about %s", err, file)
	}
}

func TestOtherArchivesArePutAside(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(120)
	must(t, os.MkdirAll(archiveIn(dir), 0o700))
	name := filepath.Join(archiveIn(dir), archiveFile(1))
	must(t, os.WriteFile(name, []byte("of another history"), 0o600))
	k.l.SetRetention(Retention{Size: 1, Archive: archiveIn(dir)})
	must(t, k.tender.look(context.Background()))
	if _, err := OpenArchives(archiveIn(dir)).Check(1); err != nil {
		t.Errorf("the archive of segment 1: %v", err)
	}
	if b := readBytes(t, name+".other-1"); string(b) != "of another history" {
		t.Errorf("what was there is now %q", b)
	}
	k.close()
}

func TestOldArchivesGo(t *testing.T) {
	dir := memoryDir(t)
	now := at(0).WallTime()
	r := Retention{Size: 3 * int64(tiny.SegmentSize), Archive: archiveIn(dir), ArchiveAge: time.Hour}
	k := newKeeper(t, dir, r, func() time.Time { return now })
	k.load(160)
	list, err := archivedBefore(k.l, 0)
	must(t, err)
	if len(list) < 4 {
		t.Fatalf("%d archives, want 4", len(list))
	}
	now = time.Unix(0, list[1].Wall).Add(time.Hour + 1)
	must(t, k.tender.look(context.Background()))
	left, err := OpenArchives(archiveIn(dir)).names()
	must(t, err)
	if len(left) == 0 || left[0] != archiveFile(list[2].Segment) {
		t.Errorf("left are %v, want them from %d on", left, list[2].Segment)
	}
	var removed []uint64
	for rec, err := range k.l.Records(k.stat().First) {
		must(t, err)
		for _, e := range rec.Events {
			if e, ok := e.(turn.ArchiveRemoved); ok {
				removed = append(removed, e.Segment)
			}
		}
	}
	if len(removed) != 2 || removed[0] != 1 || removed[1] != 2 {
		t.Errorf("recorded as removed are %v, want 1 and 2", removed)
	}
	k.close()
	verifyFile(t, dir)
}

// slow is a writer that has whoever writes wait.
type slow struct {
	at, goon chan struct{}
	once     bool
}

func (s *slow) Write(b []byte) (int, error) {
	if !s.once {
		s.once = true
		close(s.at)
		<-s.goon
	}
	return len(b), nil
}

func TestBackupIsInNoCommitsWay(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(120)
	before := k.state.Seq()
	w := &slow{at: make(chan struct{}), goon: make(chan struct{})}
	type outcome struct {
		end PackEnd
		err error
	}
	done := make(chan outcome, 1)
	go func() {
		end, err := WritePack(context.Background(), w, k.l, PackOptions{FileOnly: true})
		done <- outcome{end, err}
	}()
	<-w.at // the backup stands still in the middle
	if n := k.l.db.Stats().OpenTxN; n != 0 {
		t.Errorf("%d read transactions are open while the backup waits", n)
	}
	k.load(60)
	during := k.state.Seq()
	close(w.goon)
	got := <-done
	must(t, got.err)
	if got.end.Last != before || during <= before {
		t.Errorf("the backup ends at %d, want %d, where the log was as it began; it is at %d now", got.end.Last, before, during)
	}
	k.close()
}

func TestBackupsAreRestoredWithTheirFiles(t *testing.T) {
	dir, want := kept(t)
	must(t, os.WriteFile(filepath.Join(dir, CheckpointsName), []byte("signed\n"), 0o644))
	secret, err := LoadKey(dir, "nonce", 32)
	must(t, err)
	without, _ := packTo(t, readerOf(t, dir), PackOptions{FileOnly: true, Dir: dir})
	if bytes.Contains(unpacked(t, without), secret) {
		t.Error("a backup without keys holds one")
	}
	with, _ := packTo(t, readerOf(t, dir), PackOptions{FileOnly: true, Dir: dir, Keys: true})
	made := memoryDir(t)
	_, err = Import(context.Background(), made, []string{with}, ImportOptions{Files: true})
	must(t, err)
	verifyFile(t, made)
	l := openTest(t, made, tiny)
	if encoded(t, l.State()) != want {
		t.Error("the restored log has another state")
	}
	if got := readBytes(t, filepath.Join(made, CheckpointsName)); string(got) != "signed\n" {
		t.Errorf("the checkpoints are %q", got)
	}
	if got, err := LoadKey(made, "nonce", 32); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("the restored key is another (%v)", err)
	}
	info, err := os.Stat(filepath.Join(made, keysName, "nonce"))
	must(t, err)
	if info.Mode().Perm() != 0o600 {
		t.Errorf("the restored key has the mode %v", info.Mode())
	}
}

func TestForeignFilesAreNotRestored(t *testing.T) {
	for _, name := range []string{"../evil", "/etc/evil", "log.db", "keys/../../evil", "lock"} {
		in := importer{files: []PackFile{{Name: name, Body: []byte("evil")}}}
		dir := filepath.Join(memoryDir(t), "deep")
		if err := in.place(dir); err == nil {
			t.Errorf("%s was put into the directory", name)
		}
	}
}

func TestCompactionKeepsTheLog(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(160)
	k.l.SetRetention(Retention{Size: 1})
	for range 10 {
		must(t, k.tender.look(context.Background()))
	}
	want := encoded(t, k.state)
	if _, err := Compact(dir); err == nil {
		t.Error("a log was compacted that is open")
	}
	k.close()
	had := tail(t, dir)
	c, err := Compact(dir)
	must(t, err)
	if c.After >= c.Before || c.Last != k.state.Seq() {
		t.Errorf("compacted: %+v", c)
	}
	verifyFile(t, dir)
	got := tail(t, dir)
	if len(got) != len(had) {
		t.Fatalf("%d records are left of %d", len(got), len(had))
	}
	for i := range got {
		if !bytes.Equal(got[i], had[i]) {
			t.Fatalf("record %d is another", i)
		}
	}
	k = newKeeper(t, dir, Retention{}, nil)
	if encoded(t, k.state) != want {
		t.Error("the compacted log has another state")
	}
	k.load(80)
	k.close()
	verifyFile(t, dir)
	if left, _ := filepath.Glob(filepath.Join(dir, freshPrefix+"*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
}

// tail is the records that the file in dir holds.
func tail(t *testing.T, dir string) (out [][]byte) {
	t.Helper()
	r := readerOf(t, dir)
	first, err := Oldest(r)
	must(t, err)
	for raw, err := range Raw(r, first) {
		must(t, err)
		out = append(out, raw)
	}
	return out
}

func TestFullDiskLosesNothingOfWhatIsKept(t *testing.T) {
	dir := smallDisk(t, 64<<20)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(160)
	want := k.stat()

	leave(t, dir, 0)
	k.l.SetRetention(Retention{Size: 1, Archive: archiveIn(dir)})
	if err := k.tender.look(context.Background()); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("archive on a full disk: %v, want %v", err, unix.ENOSPC)
	}
	if !strings.Contains(k.l.Kept().Waiting, "no space left") {
		t.Errorf("it waits for %q", k.l.Kept().Waiting)
	}
	if st := k.stat(); st.First != want.First {
		t.Errorf("the log begins at %d although nothing could be archived", st.First)
	}
	if left, _ := filepath.Glob(filepath.Join(archiveIn(dir), "*")); len(left) > 0 {
		t.Errorf("%v are left", left)
	}
	state := encoded(t, k.state)
	k.close()
	if _, err := Compact(dir); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("compact on a full disk: %v, want %v", err, unix.ENOSPC)
	}
	pack, _ := packTo(t, readerOf(t, dir), PackOptions{})
	made := filepath.Join(dir, "made")
	if _, err := Import(context.Background(), made, []string{pack}, ImportOptions{}); !errors.Is(err, unix.ENOSPC) {
		t.Errorf("import on a full disk: %v, want %v", err, unix.ENOSPC)
	}
	if _, err := os.Stat(filepath.Join(made, FileName)); err == nil {
		t.Error("a log was made on a full disk")
	}
	verifyFile(t, dir)

	must(t, os.Remove(filepath.Join(dir, "filler")))
	k = newKeeper(t, dir, Retention{Size: 1, Archive: archiveIn(dir)}, nil)
	if encoded(t, k.state) != state {
		t.Error("the log has another state")
	}
	must(t, k.tender.look(context.Background()))
	if st := k.stat(); st.First == want.First {
		t.Errorf("with room again nothing goes: %s", k.l.Kept().Waiting)
	}
	k.close()
	verifyFile(t, dir)
}
