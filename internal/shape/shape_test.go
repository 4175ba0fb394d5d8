package shape_test

import (
	"bytes"
	"testing"
	"time"

	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/store"
	"turnstone/turn"
)

// small is a relay that restarts now and then, its log in many segments.
func small(seed uint64) shape.Options {
	return shape.Options{
		Options: calls.Options{Seed: seed, Allocations: 200, Users: 20, Clients: 100, Peers: 100, RestartEvery: 3000, ClockBack: true},
		Store:   store.Options{SegmentSize: 256 << 10},
	}
}

func TestWrittenLogVerifiesAndFolds(t *testing.T) {
	const events = 30_000
	dir := t.TempDir()
	state, err := shape.Write(t.Context(), dir, events, small(1))
	if err != nil {
		t.Fatal(err)
	}
	r, err := store.OpenReader(shape.File(dir))
	if err != nil {
		t.Fatal(err)
	}
	report, err := r.Verify()
	if err != nil {
		t.Fatal(err)
	}
	if report.Last != state.Seq() || report.Events < events || report.Events > events+events/10 {
		t.Errorf("the log holds %d events up to %d, want %d up to %d", report.Events, report.Last, events, state.Seq())
	}
	folded, err := store.StateAt(r.Records(1), func(turn.Record) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(encoded(t, folded), encoded(t, state)) {
		t.Error("the fold of the log is not the state that was written")
	}
	st, err := r.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if len(st.Segments) < 5 || len(st.Snapshots) == 0 {
		t.Errorf("the log has %d segments and %d snapshots, want at least 5 and 1", len(st.Segments), len(st.Snapshots))
	}
}

func TestShapeIsRealistic(t *testing.T) {
	c := calls.New(calls.Options{Seed: 2, Allocations: 1000, RestartEvery: 40_000, ClockBack: true})
	kinds, boots := map[turn.Kind]int{}, map[turn.BootID]bool{}
	users, clients := map[string]bool{}, map[string]bool{}
	var last time.Duration
	back := false
	for n := 0; n < 200_000; {
		r := c.Next()
		back = back || boots[r.Moment.Boot] && r.Moment.Uptime < last
		last = r.Moment.Uptime
		boots[r.Moment.Boot] = true
		for _, e := range r.Events {
			kinds[e.Kind()]++
			if made, ok := e.(turn.AllocationCreated); ok {
				users[made.Username], clients[made.FiveTuple.Client.Addr().String()] = true, true
			}
		}
		n += len(r.Events)
	}
	if n := c.State().Len(); n < 700 || n > 1400 {
		t.Errorf("%d allocations are alive, want about 1000", n)
	}
	if back {
		t.Error("the boot-time clock goes back within a boot")
	}
	if len(boots) < 3 || len(users) < 300 || len(clients) < 2000 {
		t.Errorf("%d boots, %d users and %d clients, want at least 3, 300 and 2000", len(boots), len(users), len(clients))
	}
	for k, least := range map[turn.Kind]int{
		turn.KindAllocationCreated: 15_000, turn.KindAllocationRefreshed: 3000, turn.KindAllocationDeleted: 10_000,
		turn.KindAllocationExpired: 2000, turn.KindPermissionInstalled: 30_000, turn.KindPermissionExpired: 5000,
		turn.KindChannelBound: 15_000, turn.KindUsageRecorded: 15_000, turn.KindAttemptsRefused: 10,
		turn.KindServerStarted: 4, turn.KindClockWentBack: 1, turn.KindAllocationMoved: 100, turn.KindFiveTupleLeft: 100,
		turn.KindReservationMade: 20, turn.KindReservationExpired: 20,
	} {
		if kinds[k] < least {
			t.Errorf("%d events of kind %d, want at least %d", kinds[k], k, least)
		}
	}
}

func TestSameOptionsMakeTheSameLog(t *testing.T) {
	var reports []store.Report
	for range 2 {
		dir := t.TempDir()
		if _, err := shape.Write(t.Context(), dir, 5000, small(3)); err != nil {
			t.Fatal(err)
		}
		r, err := store.OpenReader(shape.File(dir))
		if err != nil {
			t.Fatal(err)
		}
		report, err := store.Verify(store.Raw(r, 1))
		if err != nil {
			t.Fatal(err)
		}
		reports = append(reports, report)
	}
	if reports[0] != reports[1] {
		t.Errorf("the same options made %+v and %+v", reports[0], reports[1])
	}
}

func encoded(t *testing.T, s *turn.State) []byte {
	t.Helper()
	b, err := store.EncodeState(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}
