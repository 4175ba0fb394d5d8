package store

import "testing"

func TestLastSnapshotIsTheNewest(t *testing.T) {
	empty := openTest(t, t.TempDir(), Options{})
	if got, err := empty.LastSnapshot(); err != nil || got != (Snapshot{}) {
		t.Errorf("without one: got %+v, %v, want the zero one", got, err)
	}
	dir, _ := filledSealed(t, 32, 400)
	l, _ := reopened(t, dir, tinySealed())
	st, err := l.Stat()
	must(t, err)
	if len(st.Snapshots) < 2 {
		t.Fatalf("%d snapshots: the test needs two", len(st.Snapshots))
	}
	got, err := l.LastSnapshot()
	must(t, err)
	if want := st.Snapshots[len(st.Snapshots)-1]; got != want || got.At <= st.Snapshots[0].At {
		t.Errorf("got %+v, want %+v of %v", got, want, st.Snapshots)
	}
}
