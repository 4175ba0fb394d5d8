package store

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// keeper is a log under load whose background work is done between appends.
type keeper struct {
	t      *testing.T
	l      *Log
	state  *turn.State
	gen    *traffic
	tender tender
	fail   func(turn.Event) error // before an event of the background is recorded
}

// newKeeper opens the log in dir as tiny says, and keeps what r says.
func newKeeper(t *testing.T, dir string, r Retention, now func() time.Time) *keeper {
	t.Helper()
	o := tiny
	o.Retention, o.now = r, now
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{t: t, l: l, state: l.State()}
	k.gen = newTraffic(21, k.state, 20)
	k.tender = tender{log: l, sealed: k.state.LastSealed(), news: true, record: func(_ context.Context, events ...turn.Event) error {
		for _, e := range events {
			if k.fail != nil {
				if err := k.fail(e); err != nil {
					return err
				}
			}
		}
		rec := turn.Record{First: k.state.Seq() + 1, Moment: k.state.Moment(), Events: events}
		return errors.Join(k.state.Fold(rec), l.Append(rec))
	}}
	return k
}

// memoryDir is a directory that needs no disk, for tests that commit often and lose no power.
func memoryDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "turnstone-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { must(t, os.RemoveAll(dir)) })
	return dir
}

// load appends records, and has the background look now and then.
func (k *keeper) load(records int) {
	k.t.Helper()
	for i := range records {
		must(k.t, k.l.Append(k.gen.record(48)))
		if i%4 == 3 {
			must(k.t, k.tender.look(context.Background()))
		}
	}
}

func (k *keeper) stat() Stat {
	k.t.Helper()
	st, err := k.l.Stat()
	must(k.t, err)
	return st
}

func (k *keeper) close() {
	k.t.Helper()
	must(k.t, k.l.Close())
}

// archiveIn is where the archives of the tests are.
func archiveIn(dir string) string { return filepath.Join(dir, ArchiveName) }

func TestSizeOfTheLogIsBounded(t *testing.T) {
	for name, archive := range map[string]bool{"archived": true, "gone": false} {
		t.Run(name, func(t *testing.T) {
			dir := memoryDir(t)
			r := Retention{Size: 6 * int64(tiny.SegmentSize)}
			if archive {
				r.Archive = archiveIn(dir)
			}
			k := newKeeper(t, dir, r, nil)
			records := 600
			if testing.Short() {
				records = 300
			}
			var most int64
			largest := 0
			for range records / 20 {
				k.load(20)
				st := k.stat()
				most = max(most, st.Size)
				for _, p := range st.Snapshots {
					largest = max(largest, p.Size)
				}
			}
			st := k.stat()
			if n := len(st.Segments); n > 9 {
				t.Errorf("%d segments are kept, want 6 and what waits: %s", n, k.l.Kept().Waiting)
			}
			if g := st.Segments[len(st.Segments)-1].Number; g < 20 {
				t.Errorf("there were only %d segments: too few to prove anything", g)
			}
			// Six segments and those that wait for free pages to be used up, the free pages, and the snapshots.
			if bound := int64(10*tiny.SegmentSize + 9*largest); most > bound {
				t.Errorf("the file grew to %d bytes, want at most %d", most, bound)
			}
			if st.First == 1 || st.Records == 0 {
				t.Errorf("nothing was retired: %+v", st)
			}
			want := encoded(t, k.state)
			k.close()
			verifyFile(t, dir)
			l := openTest(t, dir, tiny)
			if encoded(t, l.State()) != want {
				t.Error("the log without what was retired has another state")
			}
			if !archive {
				return
			}
			full, err := StateAt(l.Records(1), func(turn.Record) bool { return true })
			must(t, err)
			if encoded(t, full) != want {
				t.Error("the fold of the archives and the file is another state")
			}
		})
	}
}

func TestOldSegmentsGo(t *testing.T) {
	dir := memoryDir(t)
	now := at(0).WallTime()
	k := newKeeper(t, dir, Retention{Age: time.Hour}, func() time.Time { return now })
	k.load(80)
	if st := k.stat(); st.First != 1 {
		t.Fatalf("the log begins at %d before anything is old", st.First)
	}
	if kept := k.l.Kept(); kept.Overdue != 0 || kept.Segments < 5 || kept.Oldest.IsZero() {
		t.Errorf("before anything is old: %+v", kept)
	}
	second := k.stat().Segments[1]
	now = k.stat().Segments[0].To.WallTime().Add(time.Hour + time.Nanosecond)
	must(t, k.tender.look(context.Background()))
	if st := k.stat(); st.First != second.First {
		t.Errorf("the log begins at %d, want %d: one segment is old", st.First, second.First)
	}
	now = now.Add(1000 * time.Hour)
	k.load(80)
	if st := k.stat(); len(st.Segments) > 8 {
		t.Errorf("%d segments are kept although all are old", len(st.Segments))
	}
	k.close()
	verifyFile(t, dir)
}

func TestAClockThatIsSetBackRetiresNothingYoung(t *testing.T) {
	dir := memoryDir(t)
	now := at(0).WallTime()
	k := newKeeper(t, dir, Retention{Age: time.Hour}, func() time.Time { return now })
	k.load(80)
	now = now.Add(-1000 * time.Hour)
	k.gen.moment.Wall -= int64(1000 * time.Hour)
	k.load(80) // of long ago by its moments, and now by the clock
	if st, kept := k.stat(), k.l.Kept(); st.First != 1 || kept.Overdue != 0 {
		t.Fatalf("set back: the log begins at %d, %d segments are overdue, want 1 and none", st.First, kept.Overdue)
	}
	// Set right again, what was written meanwhile looks old, and stays behind what is young before it.
	now = at(0).WallTime().Add(time.Minute)
	must(t, k.tender.look(context.Background()))
	if st := k.stat(); st.First != 1 {
		t.Errorf("set right: the log begins at %d, want 1: its first segment is young", st.First)
	}
	k.close()
	verifyFile(t, dir)
}

func TestNextSegmentWaitsUntilFreePagesAreUsed(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(200)
	list, err := snapshotsIn(k.l)
	must(t, err)
	k.l.options.mostFree = k.l.free.Load() - 2*int64(list[len(list)-1].Size) + 1
	k.l.SetRetention(Retention{Size: 1})
	must(t, k.tender.look(context.Background()))
	first, had := k.stat().First, k.l.Kept()
	if first == 1 || had.Overdue == 0 || !strings.Contains(had.Waiting, "bytes of pages are free") {
		t.Fatalf("the log begins at %d and keeps %+v, want it to wait", first, had)
	}
	must(t, k.tender.look(context.Background()))
	if got := k.stat().First; got != first {
		t.Errorf("the log begins at %d, want %d: no page was used", got, first)
	}
	k.l.options.mostFree = 1 << 30 // as if they were used
	must(t, k.tender.look(context.Background()))
	if got := k.stat().First; got == first {
		t.Errorf("nothing is gone although pages were used: %s", k.l.Kept().Waiting)
	}
	k.close()
}

func TestSegmentsWithoutSnapshotsStay(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{Size: 1}, nil)
	k.l.options.NoSnapshots = true
	k.load(80)
	if st := k.stat(); st.First != 1 {
		t.Errorf("the log begins at %d, and no snapshot covers what is gone", st.First)
	}
	if kept := k.l.Kept(); kept.Overdue == 0 || !strings.Contains(kept.Waiting, "0 good snapshots cover it") {
		t.Errorf("waiting is %+v", kept)
	}
	k.l.options.NoSnapshots = false
	must(t, k.tender.look(context.Background()))
	if st := k.stat(); st.First != 1 {
		t.Errorf("the log begins at %d with one snapshot, want two", st.First)
	}
	k.load(40)
	if st := k.stat(); st.First == 1 {
		t.Errorf("nothing is gone although snapshots cover it: %s", k.l.Kept().Waiting)
	}
	k.close()
}

func TestDamagedSnapshotsCoverNothing(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(80)
	k.close()
	list := snapshotsOf(t, dir)
	edit(t, dir, func(tx *bbolt.Tx) error {
		for _, p := range list[:len(list)-1] {
			b := tx.Bucket(migrations.Snapshots).Bucket(key(uint64(p.At)))
			v := append([]byte(nil), b.Get(key(1))...)
			v[len(v)/2] ^= 1
			if err := b.Put(key(1), v); err != nil {
				return err
			}
		}
		return nil
	})
	k = newKeeper(t, dir, Retention{Size: 1}, nil)
	k.tender.news = false
	must(t, k.tender.look(context.Background()))
	if st := k.stat(); st.First != 1 {
		t.Errorf("the log begins at %d, and only one good snapshot covers what is gone", st.First)
	}
	k.close()
}

func snapshotsOf(t *testing.T, dir string) []Snapshot {
	t.Helper()
	r, err := OpenReader(filepath.Join(dir, FileName))
	must(t, err)
	list, err := snapshotsIn(r)
	must(t, err)
	return list
}

// errCrash ends the background between two of its steps.
var errCrash = errors.New("crash")

func TestInterruptedRetirementIsEnded(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(80)
	// The event is durable, and the bucket is still there.
	first := k.stat().Segments[0].Number
	must(t, k.tender.record(context.Background(), turn.SegmentRetired{Segment: first}))
	want := encoded(t, k.state)
	k.close()

	k = newKeeper(t, dir, Retention{}, nil)
	if encoded(t, k.state) != want {
		t.Error("the log with a retired segment has another state")
	}
	must(t, k.tender.look(context.Background()))
	if got := k.stat().Segments[0].Number; got != first+1 {
		t.Errorf("the first segment is %d, want %d: %d was recorded as retired", got, first+1, first)
	}
	k.close()
	verifyFile(t, dir)

	// The event was not recorded: nothing is gone.
	k = newKeeper(t, dir, Retention{Size: 1}, nil)
	k.fail = func(e turn.Event) error {
		if _, retired := e.(turn.SegmentRetired); retired {
			return errCrash
		}
		return nil
	}
	if err := k.tender.look(context.Background()); !errors.Is(err, errCrash) {
		t.Errorf("got %v, want %v", err, errCrash)
	}
	if got := k.stat().Segments[0].Number; got != first+1 {
		t.Errorf("the first segment is %d, want %d: that it is retired is not recorded", got, first+1)
	}
	k.close()
}

func TestRetiredSegmentsAreArchivedBefore(t *testing.T) {
	dir := memoryDir(t)
	k := newKeeper(t, dir, Retention{}, nil)
	k.load(80)
	before := k.stat().Segments[0]
	k.l.SetRetention(Retention{Size: 1, Archive: archiveIn(dir)})
	k.fail = func(e turn.Event) error {
		if _, retired := e.(turn.SegmentRetired); !retired {
			return nil
		}
		h, err := OpenArchives(archiveIn(dir)).Check(before.Number)
		if err != nil || h.First != before.First || h.Last != before.Last || h.Records != before.Records {
			t.Errorf("as the segment %+v goes its archive is %+v (%v)", before, h, err)
		}
		return errCrash
	}
	if err := k.tender.look(context.Background()); !errors.Is(err, errCrash) {
		t.Fatalf("got %v, want %v", err, errCrash)
	}
	info, err := os.Stat(filepath.Join(archiveIn(dir), archiveFile(before.Number)))
	must(t, err)
	k.fail = nil
	must(t, k.tender.look(context.Background()))
	again, err := os.Stat(filepath.Join(archiveIn(dir), archiveFile(before.Number)))
	must(t, err)
	if !os.SameFile(info, again) {
		t.Error("an archive that was whole was written again")
	}
	if st := k.stat(); st.First == 1 || st.Archives.Last+1 != st.First || st.Archives.First != 1 {
		t.Errorf("the file begins at %d and the archives are %+v", st.First, st.Archives)
	}
	k.close()
}

// soak switches the long tests on.
const soak = "TURNSTONE_SOAK"

func TestFileStaysBoundedUnderEndlessLoad(t *testing.T) {
	if os.Getenv(soak) == "" {
		t.Skip("it takes minutes: make soak runs it")
	}
	dir := t.TempDir()
	const segment, retained, free, events = 1 << 20, 16 << 20, 8 << 20, 1_000_000
	o := Options{SegmentSize: segment, Retention: Retention{Size: retained, Archive: archiveIn(dir)}, NoSync: true, mostFree: free}
	l := openTest(t, dir, o)
	k := &keeper{t: t, l: l, state: l.State()}
	k.gen = newTraffic(23, k.state, 500)
	k.tender = tender{log: l, record: func(_ context.Context, events ...turn.Event) error {
		rec := turn.Record{First: k.state.Seq() + 1, Moment: k.state.Moment(), Events: events}
		return errors.Join(k.state.Fold(rec), l.Append(rec))
	}}
	var plateau int64 // the largest size in the first half
	for k.state.Seq() < events {
		for range 200 {
			must(t, l.Append(k.gen.record(64)))
		}
		must(t, k.tender.look(context.Background()))
		size, largest := l.highWater(), 0
		list, err := snapshotsIn(l)
		must(t, err)
		for i := range list {
			largest = max(largest, list[i].Size)
		}
		// Waypoints are the smaller part of it, and what is free when one of them goes is used for the next.
		if bound := int64(retained + free + 4*segment + 10*largest); size > bound {
			t.Fatalf("at %d the file has %d bytes, want at most %d", k.state.Seq(), size, bound)
		}
		if k.state.Seq() < events/2 {
			plateau = max(plateau, size)
		} else if size > plateau+plateau/8 {
			t.Fatalf("at %d the file has %d bytes, and it had %d at most in the first half", k.state.Seq(), size, plateau)
		}
	}
	st := k.stat()
	t.Logf("%d events, %d segments, of which %d are archived in %d bytes: the file has %d bytes, %d pages free", k.state.Seq(),
		st.Segments[len(st.Segments)-1].Number, st.Archives.Archives, st.Archives.Bytes, st.Size, st.FreePages)
	if st.Archives.First != 1 || st.Archives.Last+1 != st.First {
		t.Errorf("the archives hold %d to %d, and the file begins at %d", st.Archives.First, st.Archives.Last, st.First)
	}
}
