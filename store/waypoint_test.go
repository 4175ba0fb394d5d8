package store

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// waypoints is a log with snapshots all along, whose clock now and then goes back, and its reader.
func waypoints(t testing.TB, seed uint64) *Reader {
	t.Helper()
	dir := t.TempDir()
	o := tiny
	o.NoSync = true
	l, err := Open(dir, o)
	if err != nil {
		t.Fatal(err)
	}
	s := l.State()
	gen := newTraffic(seed, s, 6)
	var sealed uint64
	for i := range 4000 {
		if err := l.Append(gen.record(8)); err != nil {
			t.Fatal(err)
		}
		if i%16 == 15 {
			if err := tend(l, s, &sealed); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	return reader(t, dir)
}

func reader(t testing.TB, dir string) *Reader {
	t.Helper()
	r, err := OpenReader(dir + "/" + FileName)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func silent(t testing.TB) func(error) {
	return func(err error) {
		t.Helper()
		t.Errorf("warned of %v", err)
	}
}

// within folds what is within b from the beginning of the log.
func within(t interface{ Fatal(...any) }, records []turn.Record, b Bound) (*turn.State, turn.Seq) {
	s := turn.NewState()
	for _, r := range records {
		if !b.Holds(r) {
			return s, r.First
		}
		if err := s.Fold(r); err != nil {
			t.Fatal(err)
		}
	}
	return s, 0
}

func TestSnapshotAndTailEqualFullReplay(t *testing.T) {
	r := waypoints(t, 11)
	list, err := snapshotsIn(r)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) < 6 {
		t.Fatalf("the log has %d snapshots, want at least 6", len(list))
	}
	var all []turn.Record
	back := 0
	for rec, err := range r.Records(1) {
		if err != nil {
			t.Fatal(err)
		}
		if n := len(all); n > 0 && rec.Moment.Wall < all[n-1].Moment.Wall {
			back++
		}
		all = append(all, rec)
	}
	if back == 0 {
		t.Fatal("the clock never went back")
	}
	last := all[len(all)-1]
	used := map[turn.Seq]bool{}
	rapid.Check(t, func(rt *rapid.T) {
		var b Bound
		if rapid.Bool().Draw(rt, "by sequence") {
			b = Through(turn.Seq(rapid.Uint64Range(0, uint64(last.Last())+2).Draw(rt, "seq")))
		} else { // of a record, or next to it
			at := all[rapid.IntRange(0, len(all)-1).Draw(rt, "record")].Moment.WallTime()
			b = AsOf(at.Add(time.Duration(rapid.IntRange(-1, 1).Draw(rt, "ns"))))
		}
		s, next, err := r.StateWithin(b, silent(t))
		if err != nil {
			rt.Fatal(err)
		}
		want, wantNext := within(rt, all, b)
		if encoded(t, s) != encoded(t, want) {
			rt.Fatalf("the state within %+v is that at %d, want that at %d", b, s.Seq(), want.Seq())
		}
		if (next == nil) != (wantNext == 0) || next != nil && next.First != wantNext {
			rt.Fatalf("the record after %+v is %+v, want the one at %d", b, next, wantNext)
		}
		e, err := snapshotWithin(r, b, nil)
		if err != nil {
			rt.Fatal(err)
		}
		used[e.At] = true
		for _, p := range list { // none newer would have done
			if p.At > e.At && p.At <= want.Seq() {
				rt.Fatalf("the state at %d began at snapshot %d, there is %d", want.Seq(), e.At, p.At)
			}
		}
	})
	if len(used) < 4 {
		t.Errorf("the moments began at %d snapshots, want at least 4", len(used))
	}
}

func TestDamagedSnapshotIsPassedOver(t *testing.T) {
	r := waypoints(t, 12)
	list, err := snapshotsIn(r)
	if err != nil {
		t.Fatal(err)
	}
	want := encoded(t, stateOf(t, r, Everything(), silent(t)))
	dir := copyLog(t, strings.TrimSuffix(r.File(), "/"+FileName))
	bad := list[len(list)-1].At
	edit(t, dir, func(tx *bbolt.Tx) error {
		b := tx.Bucket(migrations.Snapshots).Bucket(key(uint64(bad)))
		chunk := bytes.Clone(b.Get(key(1)))
		chunk[len(chunk)/2] ^= 1
		return b.Put(key(1), chunk)
	})
	var warnings []error
	got := encoded(t, stateOf(t, reader(t, dir), Everything(), func(err error) { warnings = append(warnings, err) }))
	if got != want {
		t.Error("the state is another one")
	}
	if len(warnings) != 1 || !strings.Contains(warnings[0].Error(), "the digest does not match") {
		t.Errorf("warned of %v, want the digest of snapshot %d", warnings, bad)
	}
	without := withoutSnapshots(t, dir)
	if encoded(t, stateOf(t, reader(t, without), Everything(), silent(t))) != want {
		t.Error("without snapshots the state is another one")
	}
}

func stateOf(t testing.TB, r *Reader, b Bound, warn func(error)) *turn.State {
	t.Helper()
	s, _, err := r.StateWithin(b, warn)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestVerifyHoldsTheTimesOfSnapshots(t *testing.T) {
	r := waypoints(t, 13)
	list, err := snapshotsIn(r)
	if err != nil {
		t.Fatal(err)
	}
	dir := copyLog(t, strings.TrimSuffix(r.File(), "/"+FileName))
	p := list[len(list)/2]
	p.Latest--
	edit(t, dir, func(tx *bbolt.Tx) error {
		return tx.Bucket(migrations.Snapshots).Bucket(key(uint64(p.At))).Put(headKey, p.head())
	})
	var damage *CorruptError
	if _, err := reader(t, dir).Verify(); !errors.As(err, &damage) || damage.Seq != p.At {
		t.Errorf("verify a snapshot with another time: got %v, want damage at %d", err, p.At)
	}
}

func TestSnapshotsThatAreKept(t *testing.T) {
	const size = 1000
	log := func(first, last uint64) (list []begun) {
		for n := first; n <= last; n++ {
			list = append(list, begun{number: n, begin: chain{tree: tree{size: n * 100}}})
		}
		return list
	}
	snapshots := func(size int, numbers ...uint64) (list []Snapshot) {
		for _, n := range numbers {
			list = append(list, Snapshot{At: turn.Seq(n * 100), Size: size})
		}
		return list
	}
	for name, c := range map[string]struct {
		list     []Snapshot
		segments []begun
		want     []turn.Seq
	}{
		"small":             {snapshots(100, 2, 3, 4, 5, 6), log(1, 6), nil},
		"large":             {snapshots(500, 2, 3, 4, 5, 6, 7, 8), log(1, 8), []turn.Seq{300, 500}},
		"larger-than-all":   {snapshots(5000, 2, 3, 4, 5), log(1, 5), []turn.Seq{300}},
		"retired":           {snapshots(100, 2, 3, 4, 5, 6), log(4, 6), []turn.Seq{200, 300}},
		"begins-the-log":    {snapshots(500, 3, 4, 5, 6, 7), log(4, 7), []turn.Seq{300, 500}},
		"of-no-segment":     {append(snapshots(100, 2, 3), Snapshot{At: 350}, Snapshot{At: 400}, Snapshot{At: 500}), log(1, 5), []turn.Seq{350}},
		"always-the-newest": {snapshots(9000, 2, 3), log(1, 3), nil},
	} {
		if got := surplus(c.list, c.segments, size); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v are to go, want %v (%s)", name, got, c.want, cmp.Diff(c.want, got))
		}
	}
}
