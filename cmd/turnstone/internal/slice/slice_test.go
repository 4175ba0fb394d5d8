package slice_test

import (
	"bytes"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"testing"

	"turnstone/cmd/turnstone/internal/slice"
	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/store"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
)

// source is a log in which the host restarts now and then, with a clock that goes back.
func source(t *testing.T, o store.Options) *store.Reader {
	t.Helper()
	dir := t.TempDir()
	o.SegmentSize = 128 << 10
	_, err := shape.Write(t.Context(), dir, 12_000, shape.Options{
		Options: calls.Options{Seed: 5, Allocations: 60, Users: 10, Clients: 40, Peers: 40, RestartEvery: 1500, ClockBack: true}, Store: o,
	})
	if err != nil {
		t.Fatal(err)
	}
	r, err := store.OpenReader(shape.File(dir))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// interesting are some allocations that lived while the host restarted, that moved, that reserved, and others.
func interesting(t *testing.T, r *store.Reader) []turn.AllocationID {
	t.Helper()
	picked, boots, last := map[turn.AllocationID]bool{}, 0, turn.BootID{}
	count := map[turn.Kind]int{}
	s := turn.NewState()
	for rec, err := range r.Records(1) {
		if err != nil {
			t.Fatal(err)
		}
		if s.Seq() > 0 && rec.Moment.Boot != last {
			boots++
			n := 0
			for a := range s.Allocations() {
				if n++; n%25 == 0 {
					picked[a.ID] = true
				}
			}
		}
		last = rec.Moment.Boot
		if err := s.Fold(rec); err != nil {
			t.Fatal(err)
		}
		for _, e := range rec.Events {
			switch e.(type) {
			case turn.AllocationMoved, turn.ReservationMade, turn.AllocationExpired, turn.AllocationDeleted:
				if count[e.Kind()]++; count[e.Kind()] < 3 {
					picked[turn.AllocationOf(e)] = true
				}
			}
		}
	}
	if boots < 2 || count[turn.KindAllocationMoved] == 0 || count[turn.KindReservationMade] == 0 {
		t.Fatalf("the source has %d boots and %v", boots, count)
	}
	var ids []turn.AllocationID
	for id := range picked {
		ids = append(ids, id)
	}
	return ids
}

func collect(t *testing.T, r *store.Reader, id turn.AllocationID) []slice.Part {
	t.Helper()
	parts, err := slice.Collect(r.Records(1), id)
	if err != nil {
		t.Fatal(err)
	}
	return parts
}

// written is the slice of an allocation as a log, with proofs where there is somebody to prove.
func written(t *testing.T, r *store.Reader, id turn.AllocationID, parts []slice.Part, prove bool) *store.Reader {
	t.Helper()
	taken := turn.SliceTaken{Source: turn.LogID{1}, Epoch: 1, Allocation: id, Anonymised: !prove}
	var proofs []store.Proven
	if prove {
		_, last, err := r.Span()
		if err != nil {
			t.Fatal(err)
		}
		root, err := r.Prover().Root(last)
		if err != nil {
			t.Fatal(err)
		}
		taken.Size, taken.Root = last, root
		if proofs, err = r.Prover().Prove(last, slice.Seqs(parts)...); err != nil {
			t.Fatal(err)
		}
	}
	records, err := slice.Records(turn.LogID{2}, taken, parts, proofs, r.Keys())
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "slice.db")
	if err := store.WriteFile(file, records); err != nil {
		t.Fatal(err)
	}
	if err := store.WriteFile(file, records); !errors.Is(err, os.ErrExist) {
		t.Errorf("write over a file: got %v, want %v", err, os.ErrExist)
	}
	out, err := store.OpenReader(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Verify(); err != nil {
		t.Fatal(err)
	}
	return out
}

// history is what an allocation was at the end of each moment.
type history map[turn.Moment]string

// histories are what allocations were at the moments that are asked for.
func histories(t *testing.T, records iter.Seq2[turn.Record, error], at map[turn.AllocationID]map[turn.Moment]bool) map[turn.AllocationID]history {
	t.Helper()
	out := map[turn.AllocationID]history{}
	for id := range at {
		out[id] = history{}
	}
	s := turn.NewState()
	for rec, err := range records {
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Fold(rec); err != nil {
			t.Fatal(err)
		}
		for id, moments := range at {
			if moments[rec.Moment] {
				out[id][rec.Moment] = describe(s.Allocation(id))
			}
		}
	}
	return out
}

// describe has all exported fields of a.
func describe(a *turn.Allocation) (text string) {
	if a == nil {
		return "none"
	}
	v := reflect.ValueOf(*a)
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.IsExported() {
			text += fmt.Sprintf("%s: %v\n", f.Name, v.Field(i))
		}
	}
	return text
}

func TestSliceReplaysToTheSameAllocation(t *testing.T) {
	for _, privacy := range []string{"plain", "encrypted"} {
		t.Run(privacy, func(t *testing.T) {
			r := source(t, store.Options{Encrypt: privacy == "encrypted"})
			moments, got := map[turn.AllocationID]map[turn.Moment]bool{}, map[turn.AllocationID]history{}
			for _, id := range interesting(t, r) {
				parts := collect(t, r, id)
				moments[id] = map[turn.Moment]bool{}
				for _, p := range parts {
					moments[id][p.Moment] = true
				}
				out := written(t, r, id, parts, true)
				got[id] = histories(t, out.Records(1), moments)[id]
				report, err := slice.Verify(out.Records(1))
				if err != nil {
					t.Fatalf("allocation %d: %v", id, err)
				}
				if n := len(slice.Seqs(parts)); report.Events != n || report.Proved != n || report.Signed {
					t.Errorf("allocation %d: %+v, want %d events proved and none signed", id, report, n)
				}
			}
			for id, want := range histories(t, r.Records(1), moments) {
				if diff := cmp.Diff(want, got[id]); diff != "" {
					t.Errorf("allocation %d differs in the slice (-want +got):\n%s", id, diff)
				}
			}
		})
	}
}

func TestVerifyFindsWhatWasChanged(t *testing.T) {
	r := source(t, store.Options{})
	ids := interesting(t, r)
	good := written(t, r, ids[0], collect(t, r, ids[0]), true)
	var all []turn.Record
	for rec, err := range good.Records(1) {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, rec)
	}
	for name, change := range map[string]func([]turn.Record){
		"time": func(all []turn.Record) { all[1].Moment.Wall++ },
		"event": func(all []turn.Record) {
			e := all[1].Events[0].(turn.AllocationCreated)
			e.Username = "mallory"
			all[1].Events[0] = e
		},
		"seq": func(all []turn.Record) { e := all[1].Events[1].(turn.OriginNoted); e.Seq--; all[1].Events[1] = e },
		"path": func(all []turn.Record) {
			e := all[1].Events[1].(turn.OriginNoted)
			e.Proof = e.Proof[1:]
			all[1].Events[1] = e
		},
		"missing": func(all []turn.Record) { all[1].Events = all[1].Events[:1] },
	} {
		changed := slices.Clone(all)
		for i := range changed {
			changed[i].Events = slices.Clone(changed[i].Events)
		}
		change(changed)
		if _, err := slice.Verify(each(changed)); err == nil {
			t.Errorf("%s: the changed slice verifies", name)
		}
	}
	if _, err := slice.Verify(r.Records(1)); !errors.Is(err, slice.ErrNoSlice) {
		t.Errorf("verify a log that is none: got %v, want %v", err, slice.ErrNoSlice)
	}
	if _, err := slice.Verify(each(all), "turnstone/x+1+x"); err == nil {
		t.Error("a slice without a checkpoint verifies with a key")
	}
}

func each(records []turn.Record) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		for _, r := range records {
			if !yield(r, nil) {
				return
			}
		}
	}
}

// told are what events say of who somebody is.
func told(parts []slice.Part) (addresses []netip.Addr, texts []string) {
	var visit func(reflect.Value, string)
	visit = func(v reflect.Value, name string) {
		switch x := v.Interface().(type) {
		case netip.Addr:
			addresses = append(addresses, x)
			return
		case netip.AddrPort:
			addresses = append(addresses, x.Addr())
			return
		}
		switch v.Kind() {
		case reflect.Struct:
			for i := range v.NumField() {
				visit(v.Field(i), v.Type().Field(i).Name)
			}
		case reflect.Slice:
			for i := range v.Len() {
				visit(v.Index(i), name)
			}
		case reflect.String:
			if name == "Username" || name == "Realm" {
				texts = append(texts, v.String())
			}
		}
	}
	for _, p := range parts {
		for _, one := range p.Pieces {
			if one.Event != nil {
				visit(reflect.ValueOf(one.Event), "")
			}
		}
	}
	return addresses, texts
}

func TestAnonymisedSliceTellsNobody(t *testing.T) {
	r := source(t, store.Options{})
	for _, id := range interesting(t, r) {
		parts := collect(t, r, id)
		hidden := slice.Anonymise(parts)
		out := written(t, r, id, hidden, false)
		b, err := os.ReadFile(out.File())
		if err != nil {
			t.Fatal(err)
		}
		addresses, texts := told(parts)
		others, _ := told(hidden)
		for i, a := range addresses {
			if a.IsValid() && (bytes.Contains(b, a.AsSlice()) || bytes.Contains(b, []byte(a.String()))) {
				t.Errorf("allocation %d: the slice holds %v", id, a)
			}
			if a.IsValid() && a.Is4() != others[i].Is4() {
				t.Errorf("allocation %d: %v became %v, of another family", id, a, others[i])
			}
			for j := range addresses[:i] {
				if (a == addresses[j]) != (others[i] == others[j]) {
					t.Errorf("allocation %d: %v and %v became %v and %v", id, addresses[j], a, others[j], others[i])
				}
			}
		}
		for _, s := range texts {
			if s != "" && bytes.Contains(b, []byte(turn.Owner(s))) {
				t.Errorf("allocation %d: the slice holds %q", id, s)
			}
		}
		for _, p := range parts {
			if bytes.Contains(b, p.Moment.Boot[:]) {
				t.Errorf("allocation %d: the slice holds the id of the boot", id)
			}
		}
		sameShape(t, id, parts, hidden)
		if report, err := slice.Verify(out.Records(1)); err != nil || report.Proved != 0 || report.Events != len(slice.Seqs(parts)) {
			t.Errorf("allocation %d: %+v, %v", id, report, err)
		}
		if again, _ := told(slice.Anonymise(parts)); slices.Equal(again, others) {
			t.Errorf("allocation %d: another slice has the same addresses: they are drawn without a key", id)
		}
	}
}

// sameShape wants events of the same kinds at the same times, with the same numbers in them.
func sameShape(t *testing.T, id turn.AllocationID, parts, hidden []slice.Part) {
	t.Helper()
	for i, p := range parts {
		if h := hidden[i]; h.Moment.Wall != p.Moment.Wall || h.Moment.Uptime != p.Moment.Uptime || len(h.Pieces) != len(p.Pieces) {
			t.Fatalf("allocation %d: the record at %v became one at %v", id, p.Moment, h.Moment)
		}
		for j, one := range p.Pieces {
			other := hidden[i].Pieces[j]
			if other.Seq != one.Seq || (one.Event != nil && other.Event.Kind() != one.Event.Kind()) {
				t.Fatalf("allocation %d: event %d became %d, %T", id, one.Seq, other.Seq, other.Event)
			}
			bound, ok := one.Event.(turn.ChannelBound)
			if ok && (other.Event.(turn.ChannelBound).Channel != bound.Channel || other.Event.(turn.ChannelBound).Peer.Port() != bound.Peer.Port()) {
				t.Errorf("allocation %d: %+v became %+v", id, bound, other.Event)
			}
		}
	}
}
