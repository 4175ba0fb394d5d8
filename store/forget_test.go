package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"turnstone/turn"
)

// recorder appends what is recorded to l, whose state is s.
func recorder(l *Log, s *turn.State) func(context.Context, ...turn.Event) error {
	return func(_ context.Context, events ...turn.Event) error {
		r := turn.Record{First: s.Seq() + 1, Moment: s.Moment(), Events: events}
		return errors.Join(s.Fold(r), l.Append(r))
	}
}

// opened opens a log again whose state is folded anew.
func reopened(t *testing.T, dir string, o Options) (*Log, *turn.State) {
	t.Helper()
	l := openTest(t, dir, o)
	return l, l.State()
}

func keyFiles(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(dir, keysName, segmentKeys))
	must(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func TestForgetErasesKeysOfCoveredSegments(t *testing.T) {
	dir, _ := filledSealed(t, 31, 400)
	l, s := reopened(t, dir, tinySealed())
	secrets := map[string][]byte{}
	for _, n := range keyFiles(t, dir) {
		b, err := os.ReadFile(filepath.Join(dir, keysName, segmentKeys, n))
		must(t, err)
		secrets[n] = b
	}
	all, err := snapshotsIn(l)
	must(t, err)
	newest := all[len(all)-1].At
	list, err := l.Forget(context.Background(), Which{Before: time.Now().Add(1000 * time.Hour)}, "uid 0", recorder(l, s))
	must(t, err)
	var forgotten []uint64
	refused := map[uint64]string{}
	for _, f := range list {
		if f.Refused == "" {
			forgotten = append(forgotten, f.Segment)
			if f.Last > newest {
				t.Errorf("segment %d, up to %d, is forgotten; the newest snapshot is of %d", f.Segment, f.Last, newest)
			}
		} else {
			refused[f.Segment] = f.Refused
		}
	}
	if len(forgotten) < 3 {
		t.Fatalf("%v are forgotten", list)
	}
	last := list[len(list)-1]
	if !strings.Contains(last.Refused, "not sealed") {
		t.Errorf("the last segment: %+v, want that it is not sealed", last)
	}
	left := keyFiles(t, dir)
	file := readFile(t, dir)
	for _, n := range forgotten {
		name := fmt.Sprint(n)
		if slices.Contains(left, name) || slices.Contains(left, name+erasing) {
			t.Errorf("the key of segment %d is still there: %v", n, left)
		}
		if bytes.Contains(file, secrets[name]) {
			t.Errorf("the file of the log holds the key of segment %d", n)
		}
	}
	var said []turn.SegmentForgotten
	for r, err := range l.Records(newest + 1) {
		must(t, err)
		for _, e := range r.Events {
			if e, ok := e.(turn.SegmentForgotten); ok {
				said = append(said, e)
			}
		}
	}
	if len(said) != len(forgotten) || said[0].By != "uid 0" || said[0].First != 1 {
		t.Errorf("recorded: %+v, want %v by uid 0", said, forgotten)
	}
	now, err := snapshotsIn(l)
	must(t, err)
	if len(now) == 0 || len(now) >= len(all) || now[len(now)-1].At != newest {
		t.Errorf("snapshots %v are left of %v, want those under keys that are left", now, all)
	}
	var missing *KeyError
	_, _, err = collect(l.Records(1))
	if !errors.As(err, &missing) {
		t.Errorf("read what is forgotten: got %v, want a *KeyError", err)
	}
	again, err := l.Forget(context.Background(), Which{Before: time.Now().Add(1000 * time.Hour)}, "uid 0", recorder(l, s))
	must(t, err)
	for _, f := range again {
		if f.Refused == "" {
			t.Errorf("segment %d is forgotten twice", f.Segment)
		}
	}
	want := encoded(t, s)
	must(t, l.Close())
	l, s = reopened(t, dir, tinySealed())
	if encoded(t, s) != want {
		t.Error("the state is another after what was forgotten")
	}
	must(t, l.Close())
	report := verifyFile(t, dir)
	if report.Unread == 0 || report.Last != s.Seq() {
		t.Errorf("verify: got %+v", report)
	}
}

func collect(records func(func(turn.Record, error) bool)) (events int, last turn.Seq, err error) {
	for r, e := range records {
		if e != nil {
			return events, last, e
		}
		events, last = events+len(r.Events), r.Last()
	}
	return events, last, nil
}

func TestForgetRefusesWithTheReason(t *testing.T) {
	dir := t.TempDir()
	o := tinySealed()
	o.NoSnapshots = true
	l := openTest(t, dir, o)
	s := l.State()
	var sealed uint64
	for sealed < 3 {
		fill(t, l, s, 8, 8)
		must(t, tend(l, s, &sealed))
	}
	nothing := func(context.Context, ...turn.Event) error { t.Error("something is recorded"); return nil }
	for _, tt := range []struct {
		segment uint64
		want    string
	}{{1, "no snapshot covers it"}, {sealed + 1, "not sealed"}} {
		list, err := l.Forget(context.Background(), Which{Segment: tt.segment}, "x", nothing)
		if err != nil || len(list) != 1 || !strings.Contains(list[0].Refused, tt.want) {
			t.Errorf("segment %d: got %+v (%v), want %q", tt.segment, list, err, tt.want)
		}
	}
	if _, err := l.Plan(Which{Segment: 99}); err == nil {
		t.Error("a segment that is not there is planned to be forgotten")
	}
	must(t, l.Close())
	o.Encrypt = false
	l, s = reopened(t, dir, o)
	fill(t, l, s, 2, 8)
	for was := l.segment.number; l.segment.number == was; {
		fill(t, l, s, 2, 8)
	}
	list, err := l.Plan(Which{Segment: l.segment.number - 1})
	if err != nil || list[0].Refused != "it is not encrypted" {
		t.Errorf("a plain segment: got %+v (%v)", list, err)
	}
}

// TestForgettingGoesOnAfterACrash has a run end at each step of forgetting.
func TestForgettingGoesOnAfterACrash(t *testing.T) {
	source, _ := filledSealed(t, 32, 300)
	crash := errors.New("crash")
	for _, step := range []string{"before the event", "after the event"} {
		dir := copyLog(t, source)
		must(t, os.CopyFS(filepath.Join(dir, keysName), os.DirFS(filepath.Join(source, keysName))))
		l, s := reopened(t, dir, tinySealed())
		record := recorder(l, s)
		_, err := l.Forget(context.Background(), Which{Segment: 1}, "uid 0", func(ctx context.Context, events ...turn.Event) error {
			if step == "after the event" {
				must(t, record(ctx, events...))
			}
			return crash
		})
		if !errors.Is(err, crash) {
			t.Fatalf("%s: got %v", step, err)
		}
		must(t, l.Close())
		if !slices.Contains(keyFiles(t, dir), "1"+erasing) {
			t.Fatalf("%s: keys %v, want that of segment 1 aside", step, keyFiles(t, dir))
		}
		l, s = reopened(t, dir, tinySealed())
		sealed := s.LastSealed()
		before := s.Seq()
		must(t, tend(l, s, &sealed))
		if names := keyFiles(t, dir); slices.Contains(names, "1") || slices.Contains(names, "1"+erasing) {
			t.Errorf("%s: the next run leaves %v", step, names)
		}
		said := 0
		for r, err := range l.Records(before + 1) {
			must(t, err)
			for _, e := range r.Events {
				if e, ok := e.(turn.SegmentForgotten); ok && e.Segment == 1 && e.First == 1 && e.Last > 1 {
					said++
				}
			}
		}
		if said != 1 {
			t.Errorf("%s: the next run says %d times that segment 1 is forgotten", step, said)
		}
		must(t, l.Close())
	}
}

// TestOldSegmentsAreClosedAndForgotten has a log with an age at which it forgets, in days of a clock of its own.
func TestOldSegmentsAreClosedAndForgotten(t *testing.T) {
	const hour = 60 * 60 * 1000
	clock := time.Unix(0, at(0).Wall)
	o := Options{Encrypt: true, ForgetAge: 8 * 24 * time.Hour, now: func() time.Time { return clock }}
	dir := t.TempDir()
	l := openTest(t, dir, o)
	s := l.State()
	var sealed uint64
	appendTest(t, l, s, at(0), turn.EpochBegan{Log: turn.LogID{9}, Epoch: 1})
	tending := tender{log: l, news: true}
	tending.record = func(ctx context.Context, events ...turn.Event) error {
		r := turn.Record{First: s.Seq() + 1, Moment: at(int(clock.Sub(time.Unix(0, at(0).Wall)) / time.Millisecond)), Events: events}
		return errors.Join(s.Fold(r), l.Append(r))
	}
	for day := range 20 {
		clock = time.Unix(0, at(day*24*hour).Wall)
		n := s.Len() + 1
		appendTest(t, l, s, at(day*24*hour), created(n), bound(n, 0x4000))
		clock = clock.Add(25 * time.Hour / 2)
		must(t, tending.look(context.Background()))
	}
	sealed = tending.sealed
	if sealed < 9 || sealed > 21 { // each is closed at the first look at which it is older than a day
		t.Errorf("%d segments are sealed in 20 days, want one in one or two", sealed)
	}
	names := keyFiles(t, dir)
	if slices.Contains(names, "1") || len(names) > 12 {
		t.Errorf("after 20 days there are the keys %v, want those of the last 8 or 9 days", names)
	}
	if s.Len() != 20 {
		t.Errorf("%d allocations are in the state", s.Len())
	}
	before := s.Seq()
	clock = clock.Add(60 * 24 * time.Hour) // nobody comes
	for range 4 {
		clock = clock.Add(2 * 24 * time.Hour)
		must(t, tending.look(context.Background()))
	}
	if names := keyFiles(t, dir); len(names) > 3 {
		t.Errorf("after 60 idle days there are the keys %v", names)
	}
	must(t, tending.look(context.Background()))
	if n := s.Seq() - before; n > 60 {
		t.Errorf("an idle log got %d events", n)
	}
}
