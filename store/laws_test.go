package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"turnstone/migrations"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// tiny makes many segments and snapshot chunks of little.
var tiny = Options{SegmentSize: 32 << 10, snapshotSize: 1 << 10, KeepEvents: 64}

// open opens a log in a rapid check.
func open(t interface {
	Helper()
	Fatal(...any)
}, dir string, o Options,
) *Log {
	t.Helper()
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// tend does what Background does, once, and appends what it records.
func tend(l *Log, s *turn.State, sealed *uint64) error {
	t := tender{log: l, sealed: *sealed, news: true, record: func(_ context.Context, events ...turn.Event) error {
		r := turn.Record{First: s.Seq() + 1, Moment: s.Moment(), Events: events}
		return errors.Join(s.Fold(r), l.Append(r))
	}}
	err := t.look(context.Background())
	*sealed = t.sealed
	return err
}

// withoutSnapshots is a copy of dir whose log has none, so that all of it is replayed.
func withoutSnapshots(t testing.TB, dir string) string {
	t.Helper()
	copied := copyLog(t, dir)
	edit(t, copied, func(tx *bbolt.Tx) error {
		if err := tx.DeleteBucket(migrations.Snapshots); err != nil {
			return err
		}
		_, err := tx.CreateBucket(migrations.Snapshots)
		return err
	})
	return copied
}

func TestReplayAndSnapshotEqualLive(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir := t.TempDir()
		l := open(rt, dir, tiny)
		s := l.State()
		gen := newTraffic(rapid.Uint64().Draw(rt, "seed"), s, 30)
		var sealed uint64
		var appended []turn.Record
		for range rapid.IntRange(1, 120).Draw(rt, "records") {
			r := gen.record(rapid.SampledFrom([]int{1, 8, 64}).Draw(rt, "events"))
			if err := l.Append(r); err != nil {
				rt.Fatal(err)
			}
			appended = append(appended, r)
			if rapid.IntRange(0, 9).Draw(rt, "tend") == 0 {
				before := s.Seq()
				if err := tend(l, s, &sealed); err != nil {
					rt.Fatal(err)
				}
				appended = append(appended, recordsSince(rt, l, before)...)
			}
			if rapid.IntRange(0, 19).Draw(rt, "reopen") == 0 {
				if err := l.Close(); err != nil {
					rt.Fatal(err)
				}
				l = open(rt, dir, tiny)
				if got, want := encoded(t, l.State()), encoded(t, s); got != want {
					rt.Fatal("the replayed state is not the live one")
				}
			}
		}
		verifyAll(rt, l, appended)
		if err := l.Close(); err != nil {
			rt.Fatal(err)
		}
		full := open(rt, withoutSnapshots(t, dir), tiny)
		defer full.Close()
		if encoded(t, full.State()) != encoded(t, s) {
			rt.Fatal("the replay of everything is not the live state")
		}
		verifyFile(rt, dir)
	})
}

func recordsSince(t interface{ Fatal(...any) }, l *Log, seq turn.Seq) (out []turn.Record) {
	for r, err := range l.Records(seq + 1) {
		if err != nil {
			t.Fatal(err)
		}
		if r.First > seq {
			out = append(out, r)
		}
	}
	return out
}

// verifyAll wants the log to hold exactly the records given, and a fold for every prefix.
func verifyAll(t *rapid.T, l *Log, want []turn.Record) {
	t.Helper()
	got := recordsSince(t, l, 0)
	if len(got) != len(want) {
		t.Fatalf("the log holds %d records, want %d", len(got), len(want))
	}
	s := turn.NewState()
	for i := range got {
		if diff := cmp.Diff(want[i], got[i], comparing); diff != "" {
			t.Fatalf("record %d differs (-want +got):\n%s", i, diff)
		}
		if err := s.Fold(got[i]); err != nil {
			t.Fatalf("the prefix up to %d does not fold: %v", got[i].Last(), err)
		}
	}
	from := turn.Seq(rapid.Uint64Range(1, uint64(s.Seq())+2).Draw(t, "from"))
	var first turn.Seq
	for r, err := range l.Records(from) {
		if err != nil {
			t.Fatal(err)
		}
		if first == 0 && (r.First > from || r.Last() < from) {
			t.Fatalf("reading from %d begins with the record %d-%d", from, r.First, r.Last())
		}
		first = r.First
	}
	if (first == 0) != (from > s.Seq()) {
		t.Fatalf("reading from %d of %d ends at the record of %d", from, s.Seq(), first)
	}
}

func verifyFile(t interface{ Fatal(...any) }, dir string) Report {
	r, err := OpenReader(dir + "/" + FileName)
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Verify()
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// filled is a log of many segments with snapshots, closed, and the state it ends in.
func filled(t testing.TB, seed uint64, records int) (string, *turn.State) {
	t.Helper()
	dir := t.TempDir()
	l, err := Open(dir, tiny)
	if err != nil {
		t.Fatal(err)
	}
	s := l.State()
	gen := newTraffic(seed, s, 40)
	var sealed uint64
	for i := range records {
		if err := l.Append(gen.record(8)); err != nil {
			t.Fatal(err)
		}
		if i%64 == 63 {
			if err := tend(l, s, &sealed); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return dir, s
}

func TestSameLogFoldsToSameBytes(t *testing.T) {
	dir, s := filled(t, 5, 400)
	want := encoded(t, s)
	for range 3 {
		l := openTest(t, dir, tiny)
		folded, err := StateAt(l.Records(1), func(turn.Record) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		if encoded(t, folded) != want || encoded(t, l.State()) != want {
			t.Fatal("the state of the same log differs from run to run")
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
	other, _ := filled(t, 5, 400)
	if a, b := verifyFile(t, dir), verifyFile(t, other); a != b {
		t.Errorf("the same records make the logs %+v and %+v", a, b)
	}
}

func TestSegmentsAreSealedAndBounded(t *testing.T) {
	dir, s := filled(t, 6, 400)
	r, err := OpenReader(dir + "/" + FileName)
	if err != nil {
		t.Fatal(err)
	}
	st, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Segments) < 5 || len(st.Snapshots) < keepSnapshots {
		t.Fatalf("%d segments and %d snapshots, want at least 5 and %d", len(st.Segments), len(st.Snapshots), keepSnapshots)
	}
	next := turn.Seq(1)
	for _, g := range st.Segments {
		if g.First != next || g.Last < g.First {
			t.Errorf("segment %d holds %d-%d, want it to begin at %d", g.Number, g.First, g.Last, next)
		}
		if g.Bytes > uint64(tiny.SegmentSize) {
			t.Errorf("segment %d holds %d bytes, want at most %d", g.Number, g.Bytes, tiny.SegmentSize)
		}
		next = g.Last + 1
	}
	if st.Last != s.Seq() || st.First != 1 {
		t.Errorf("the log holds %d-%d, want 1-%d", st.First, st.Last, s.Seq())
	}
	pages := 0
	edit(t, copyLog(t, dir), func(tx *bbolt.Tx) error {
		return tx.Bucket(migrations.Segments).ForEachBucket(func(k []byte) error {
			stats := tx.Bucket(migrations.Segments).Bucket(k).Stats()
			size := (stats.BranchPageN + stats.BranchOverflowN + stats.LeafPageN + stats.LeafOverflowN) * tx.DB().Info().PageSize
			if pages++; size > tiny.SegmentSize || size < tiny.SegmentSize/2 && pages < len(st.Segments) {
				return fmt.Errorf("segment %d takes %d bytes of pages, want up to %d", number(k), size, tiny.SegmentSize)
			}
			return nil
		})
	})
	if pages != len(st.Segments) {
		t.Errorf("measured %d segments, want %d", pages, len(st.Segments))
	}
}

func TestRetiredSegmentsAreCoveredBySnapshots(t *testing.T) {
	dir, s := filled(t, 7, 400)
	retire := func(through turn.Seq) string {
		copied := copyLog(t, dir)
		edit(t, copied, func(tx *bbolt.Tx) error {
			segments := tx.Bucket(migrations.Segments)
			for {
				k, _ := segments.Cursor().First()
				c, err := parseHeader(segments.Bucket(k).Get(headKey))
				if err != nil || c.next() > through {
					return err
				}
				if err := segments.DeleteBucket(k); err != nil {
					return err
				}
			}
		})
		return copied
	}
	r, err := OpenReader(dir + "/" + FileName)
	if err != nil {
		t.Fatal(err)
	}
	list, err := snapshotsIn(r)
	if err != nil {
		t.Fatal(err)
	}
	last := list[len(list)-1].At
	covered := retire(list[len(list)-keepSnapshots].At)
	l := openTest(t, covered, tiny)
	if encoded(t, l.State()) != encoded(t, s) {
		t.Error("the log without its retired segments has another state")
	}
	for _, err := range l.Records(1) {
		if !errors.Is(err, ErrRetired) {
			t.Errorf("reading retired events: got %v, want %v", err, ErrRetired)
		}
		break
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	verifyFile(t, covered)

	var damage *CorruptError
	short := retire(last)
	edit(t, short, func(tx *bbolt.Tx) error { return tx.Bucket(migrations.Snapshots).DeleteBucket(key(uint64(last))) })
	if _, err := Open(short, tiny); !errors.As(err, &damage) {
		t.Errorf("open a log whose snapshots do not reach its segments: got %v, want a *CorruptError", err)
	}
}

func TestBackgroundRecordsEverySegmentAndSnapshot(t *testing.T) {
	dir, s := filled(t, 8, 400)
	var sealed uint64
	var taken []turn.Seq
	l := openTest(t, dir, tiny)
	for r, err := range l.Records(1) {
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range r.Events {
			switch e := e.(type) {
			case turn.SegmentSealed:
				if e.Segment != sealed+1 || e.Last < e.First {
					t.Errorf("segment %d was recorded after %d: %+v", e.Segment, sealed, e)
				}
				sealed = e.Segment
			case turn.SnapshotTaken:
				taken = append(taken, e.At)
			}
		}
	}
	if sealed < 4 || s.LastSealed() != sealed {
		t.Errorf("%d segments were recorded, the state says %d", sealed, s.LastSealed())
	}
	stored, err := snapshotsIn(l)
	if err != nil {
		t.Fatal(err)
	}
	if len(taken) < 3 || len(stored) < keepSnapshots {
		t.Fatalf("%d snapshots are stored and %d were recorded, want at least %d and 3", len(stored), len(taken), keepSnapshots)
	}
	for i, p := range stored {
		if !slices.Contains(taken, p.At) {
			t.Errorf("the snapshot at %d is stored, recorded were %v", p.At, taken)
		}
		if back := len(stored) - i; back <= keepSnapshots && p.At != taken[len(taken)-back] {
			t.Errorf("snapshot %d from the end is at %d, want %d", back, p.At, taken[len(taken)-back])
		}
	}
}

// copyLog copies the file of a log into a directory of its own.
func copyLog(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	b := readFile(t, dir)
	writeFile(t, to, b)
	return to
}

// edit changes a log's file behind the store's back.
func edit(t testing.TB, dir string, f func(*bbolt.Tx) error) {
	t.Helper()
	db, err := bbolt.Open(dir+"/"+FileName, 0o600, &bbolt.Options{Timeout: openTimeout})
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(db.Update(f), db.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestAppendRefusesWhatDoesNotFollow(t *testing.T) {
	l := openTest(t, t.TempDir(), Options{})
	s := l.State()
	fill(t, l, s, 2, 4)
	next := s.Seq() + 1
	for name, r := range map[string]turn.Record{
		"gap":      {First: next + 1, Events: []turn.Event{turn.ServerStopped{}}},
		"again":    {First: next - 1, Events: []turn.Event{turn.ServerStopped{}}},
		"empty":    {First: next},
		"too-long": {First: next, Events: []turn.Event{turn.ServerStopped{Signal: string(bytes.Repeat([]byte{'x'}, maxEvent))}}},
	} {
		if err := l.Append(r); err == nil {
			t.Errorf("%s: appended, want an error", name)
		}
	}
	appendTest(t, l, s, at(9000), turn.ServerStopped{Signal: "terminated"})
}
