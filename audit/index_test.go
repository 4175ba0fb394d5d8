package audit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"turnstone/store"
	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"go.etcd.io/bbolt"
	"pgregory.net/rapid"
)

// small makes many segments and blocks of little.
var small = store.Options{SegmentSize: 24 << 10, NoSync: true}

const smallBlocks = 150

// written is a log of traffic in a directory of its own, with what a daemon adds to it.
type written struct {
	t   testing.TB
	dir string
	gen *traffic
	log *store.Log

	sealed uint64
}

func newWritten(t testing.TB, seed uint64, o store.Options) *written {
	t.Helper()
	w := &written{t: t, dir: t.TempDir(), gen: newTraffic(seed, 20)}
	var err error
	if w.log, err = store.Open(w.dir, o); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.log.Close() })
	return w
}

// add appends so many records, and has the log tended now and then.
func (w *written) add(records int) {
	w.t.Helper()
	for i := range records {
		if err := w.log.Append(w.gen.record()); err != nil {
			w.t.Fatal(err)
		}
		if i%50 == 49 {
			var err error
			if w.sealed, err = w.log.Tend(w.t.Context(), w.sealed, w.record); err != nil {
				w.t.Fatal(err)
			}
		}
	}
}

// record appends what the store says of itself.
func (w *written) record(_ context.Context, events ...turn.Event) error {
	r := turn.Record{First: w.gen.state.Seq() + 1, Moment: w.gen.state.Moment(), Events: events}
	return errors.Join(w.gen.state.Fold(r), w.log.Append(r))
}

// rows are all rows of the log, by a builder that sees all of it at once.
func (w *written) rows() ([]Row, []Mapping) {
	w.t.Helper()
	b := NewBuilder()
	for r, err := range w.log.Records(1) {
		if err != nil {
			w.t.Fatal(err)
		}
		b.Add(r)
	}
	return whole(unwritten(w.t, b)), b.mappings
}

func unwritten(t interface {
	Helper()
	Fatal(...any)
}, b *Builder,
) []Row {
	t.Helper()
	rows, err := b.unwritten()
	if err != nil {
		t.Fatal(err)
	}
	return rows
}

func (w *written) index(o Options) *Index {
	w.t.Helper()
	o.blockEvents, o.Keys = smallBlocks, w.log.Keys()
	x, err := Open(filepath.Join(w.dir, FileName), Live(w.log), o)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() { _ = x.Close() })
	return x
}

// scanned are the answers to f by looking at every row, by what tells them apart.
func scanned(t testing.TB, rows []Row, mappings []Mapping, f Filter) []string {
	t.Helper()
	m := matcher{Filter: f, mappings: mappings}
	var out []string
	for i := range rows {
		if m.match(&rows[i]) {
			out = append(out, shown(t, m.answer(&rows[i])))
		}
	}
	slices.Sort(out)
	return out
}

func shown(t testing.TB, a Answer) string {
	t.Helper()
	slices.SortFunc(a.Bindings, func(a, b Bound) int {
		return cmp_(fmt.Sprint(a.Binding, a.Channel, a.Peer), fmt.Sprint(b.Binding, b.Channel, b.Peer))
	})
	for i := range a.Bindings {
		slices.SortFunc(a.Bindings[i].Usage, func(a, b Usage) int { return int(a.Path) - int(b.Path) })
	}
	b, err := json.Marshal(a)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func cmp_(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func asked(t testing.TB, x *Index, f Filter) []string {
	t.Helper()
	var out []string
	s, err := x.Query(t.Context(), f, 0, nil, func(a Answer) (bool, error) {
		out = append(out, shown(t, a))
		return true, nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if s.Matched != len(out) || s.More {
		t.Fatalf("got %+v with %d answers", s, len(out))
	}
	slices.Sort(out)
	return out
}

// sameAnswers holds x against a scan, for some filters of every sort.
func (w *written) sameAnswers(x *Index, seed uint64, filters int) {
	w.t.Helper()
	rows, mappings := w.rows()
	rng := rand.New(rand.NewPCG(seed, 3))
	some := 0
	for i := range filters {
		f := Filter{}
		if i > 0 {
			f = someFilter(rng, rows)
		}
		want, got := scanned(w.t, rows, mappings, f), asked(w.t, x, f)
		if diff := cmp.Diff(want, got); diff != "" {
			w.t.Fatalf("%+v: the index answers otherwise than a scan (-want +got):\n%s", f, diff)
		}
		some += min(len(want), 1)
	}
	if some < filters/3 {
		w.t.Errorf("%d of %d filters found something: the test sees too little", some, filters)
	}
}

// someFilter is any combination of what one of the rows, or another, has.
func someFilter(rng *rand.Rand, rows []Row) (f Filter) {
	r := &rows[rng.IntN(len(rows))]
	chance := func(n int) bool { return rng.IntN(n) == 0 }
	f.Refused = r.Refused != nil && !chance(5)
	if chance(4) && len(r.Places) > 0 {
		a := r.Places[rng.IntN(len(r.Places))].Client
		f.Client = netip.PrefixFrom(a.Addr(), []int{a.Addr().BitLen(), 30, 24, 20, 16, 12, 8, 4}[rng.IntN(8)]).Masked()
		if chance(3) {
			f.Port = a.Port()
		}
	} else if r.Refused != nil && chance(3) && r.Refused.Client.IsValid() {
		f.Client = netip.PrefixFrom(r.Refused.Client.Addr(), r.Refused.Client.Addr().BitLen())
	}
	if chance(3) {
		f.User = turn.Owner(r.Username)
		if chance(3) {
			f.User = r.Username
		}
		if chance(4) {
			f.User, f.Also = "nobody", [2]string{f.User, "user3"}
		}
	}
	if chance(4) {
		f.Realm = r.Realm
	}
	if chance(4) && len(r.Relayed) > 0 {
		a := r.Relayed[rng.IntN(len(r.Relayed))].Address
		switch rng.IntN(4) {
		case 0:
			f.Relayed = a
		case 1:
			f.Relayed = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(200 + rng.IntN(3))}), a.Port())
		case 2:
			f.Relayed = netip.AddrPortFrom(a.Addr(), 0)
		default:
			f.Relay = a.Port()
		}
	}
	if chance(4) && len(r.Bindings) > 0 {
		b := r.Bindings[rng.IntN(len(r.Bindings))]
		f.Peer, f.Channel = b.Peer, b.Channel
		switch rng.IntN(4) {
		case 0:
			f.Channel = 0
		case 1:
			f.Peer = netip.AddrPort{}
		case 2:
			f.Peer = netip.AddrPortFrom(b.Peer.Addr(), 0)
		default:
			if b.Peer.Addr() == relay4 {
				f.Peer = netip.AddrPortFrom(netip.AddrFrom4([4]byte{198, 51, 100, byte(200 + rng.IntN(3))}), b.Peer.Port())
			}
		}
	}
	if chance(8) {
		f.Allocation = r.Allocation
	}
	lo, hi := r.bounds()
	hi = min(hi, lo+3600e9)
	switch rng.IntN(4) {
	case 0:
		f.From = lo + rng.Int64N(hi-lo+1)
		f.To = f.From
	case 1:
		f.From = lo
	case 2:
		f.To = hi
	}
	return f
}

// TestIndexAnswersAsAScan adds to a log and asks, with an index that is behind, up to date, read again.
func TestIndexAnswersAsAScan(t *testing.T) {
	for _, o := range []store.Options{small, {SegmentSize: small.SegmentSize, NoSync: true, Encrypt: true}} {
		w := newWritten(t, 11, o)
		x := w.index(Options{})
		for i := range 5 {
			w.add(200)
			if i%2 == 0 {
				if err := x.Advance(t.Context(), nil); err != nil {
					t.Fatal(err)
				}
			}
			w.sameAnswers(x, uint64(i), 60)
			if err := x.Close(); err != nil {
				t.Fatal(err)
			}
			x = w.index(Options{})
		}
		if blocks := blocksOf(t, x); len(blocks) < 10 {
			t.Errorf("the index has %d blocks, want at least 10", len(blocks))
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
		ro := w.index(Options{ReadOnly: true})
		w.add(300)
		w.sameAnswers(ro, 9, 60)
	}
}

func blocksOf(t testing.TB, x *Index) []blockHead {
	t.Helper()
	q := query{index: x, summary: &Summary{}}
	if err := q.load(t.Context()); err != nil {
		t.Fatal(err)
	}
	return q.blocks
}

// TestBlocksAreTheSameHoweverTheyCame holds that an index does not depend on when it was brought up to date.
func TestBlocksAreTheSameHoweverTheyCame(t *testing.T) {
	w := newWritten(t, 12, small)
	x := w.index(Options{})
	for range 12 {
		w.add(60)
		if err := x.Advance(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
	}
	step := contents(t, x)
	if err := x.renew(); err != nil {
		t.Fatal(err)
	}
	if err := x.Advance(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(step, contents(t, x)); diff != "" || len(step) < 20 {
		t.Errorf("an index that was made at once differs from one made in steps, of %d values (-steps +once):\n%s", len(step), diff)
	}
	starts, err := w.log.Segments(true)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range blocksOf(t, x) {
		if segmentOf(starts, h.First) != segmentOf(starts, h.Last) || h.Segment != segmentOf(starts, h.First) {
			t.Errorf("block %d-%d crosses a segment", h.First, h.Last)
		}
	}
}

// TestIndexSurvivesACrash stops the making of an index after each transaction.
func TestIndexSurvivesACrash(t *testing.T) {
	w := newWritten(t, 13, small)
	w.add(800)
	x := w.index(Options{})
	for n := 0; ; n++ {
		ctx, stop := context.WithCancel(t.Context())
		err := x.Advance(ctx, func(done, _ turn.Seq) {
			if done > turn.Seq(400*n) {
				stop()
			}
		})
		stop()
		copied := filepath.Join(t.TempDir(), FileName) // what a kill leaves
		b, failed := os.ReadFile(filepath.Join(w.dir, FileName))
		if failed != nil {
			t.Fatal(failed)
		}
		if err := os.WriteFile(copied, b, 0o600); err != nil {
			t.Fatal(err)
		}
		y, failed := Open(copied, Live(w.log), Options{blockEvents: smallBlocks})
		if failed != nil {
			t.Fatal(failed)
		}
		w.sameAnswers(y, uint64(n), 12)
		_ = y.Close()
		if err == nil {
			break
		}
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
	}
	w.sameAnswers(x, 99, 40)
}

// TestDamagedIndexIsMadeAnew changes bytes anywhere in the file, and cuts it off.
func TestDamagedIndexIsMadeAnew(t *testing.T) {
	w := newWritten(t, 14, small)
	w.add(500)
	x := w.index(Options{})
	if err := x.Advance(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if err := x.Close(); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(w.dir, FileName)
	good, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	rows, mappings := w.rows()
	rng := rand.New(rand.NewPCG(14, 14))
	damages := map[string]func(b []byte) []byte{
		"empty":   func([]byte) []byte { return nil },
		"cut-off": func(b []byte) []byte { return b[:len(b)/2] },
		"noise":   func(b []byte) []byte { return append([]byte("noise"), b[5:]...) },
		"zeros":   func(b []byte) []byte { return make([]byte, len(b)) },
	}
	for i := range 60 {
		damages[fmt.Sprint("bytes-", i)] = func(b []byte) []byte {
			at := rng.IntN(len(b))
			for j := range 1 + rng.IntN(600) {
				if at+j < len(b) {
					b[at+j] ^= byte(1 + rng.IntN(255))
				}
			}
			return b
		}
	}
	for what, damage := range damages {
		if err := os.WriteFile(name, damage(slices.Clone(good)), 0o600); err != nil {
			t.Fatal(err)
		}
		x := w.index(Options{})
		for range 6 {
			f := someFilter(rng, rows)
			if diff := cmp.Diff(scanned(t, rows, mappings, f), asked(t, x, f)); diff != "" {
				t.Fatalf("%s: %+v: the damaged index answers otherwise than a scan (-want +got):\n%s", what, f, diff)
			}
		}
		if diff := cmp.Diff(scanned(t, rows, mappings, Filter{}), asked(t, x, Filter{})); diff != "" {
			t.Fatalf("%s: the damaged index answers otherwise than a scan (-want +got):\n%s", what, diff)
		}
		if err := x.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestStaleIndexIsMadeAnew gives an index to another log, to a longer one with another history, and to one that was rolled back.
func TestStaleIndexIsMadeAnew(t *testing.T) {
	w := newWritten(t, 15, small)
	w.add(300)
	if err := w.log.Close(); err != nil {
		t.Fatal(err)
	}
	early := filepath.Join(t.TempDir(), store.FileName)
	copyFile(t, filepath.Join(w.dir, store.FileName), early)
	at := w.gen.state.Clone()

	reopen := func() {
		t.Helper()
		var err error
		if w.log, err = store.Open(w.dir, small); err != nil {
			t.Fatal(err)
		}
	}
	reopen()
	w.add(300)
	x := w.index(Options{})
	if err := x.Advance(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	ahead := filepath.Join(t.TempDir(), FileName)
	if err := errors.Join(x.Close(), w.log.Close()); err != nil {
		t.Fatal(err)
	}
	copyFile(t, filepath.Join(w.dir, FileName), ahead)
	for _, more := range []int{0, 40, 400} { // shorter than the index, and longer, after a rollback
		copyFile(t, early, filepath.Join(w.dir, store.FileName))
		copyFile(t, ahead, filepath.Join(w.dir, FileName))
		reopen()
		w.gen.state, w.gen.moment, w.sealed = at.Clone(), at.Moment(), at.LastSealed()
		w.gen.rng = rand.New(rand.NewPCG(uint64(more), 77))
		r := turn.Record{First: at.Seq() + 1, Moment: at.Moment(), Events: []turn.Event{turn.EpochBegan{Log: turn.LogID{7}, Epoch: at.Epoch() + 1}}}
		if err := errors.Join(w.gen.state.Fold(r), w.log.Append(r)); err != nil {
			t.Fatal(err)
		}
		w.gen.last = at.Image().LastAllocation
		w.add(more)
		x := w.index(Options{})
		w.sameAnswers(x, uint64(more), 60)
		if _, err := x.load(true); err != nil && more > 0 {
			t.Errorf("%d records behind the rollback: the index was not made anew: %v", more, err)
		}
		if err := errors.Join(x.Close(), w.log.Close()); err != nil {
			t.Fatal(err)
		}
	}
	other := newWritten(t, 16, small)
	other.add(500)
	copyFile(t, ahead, filepath.Join(other.dir, FileName))
	y := other.index(Options{})
	other.sameAnswers(y, 1, 60)
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	b, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestLimitStopsEarlyAndSaysSo(t *testing.T) {
	w := newWritten(t, 17, small)
	w.add(400)
	x := w.index(Options{})
	all := len(asked(t, x, Filter{}))
	for _, limit := range []int{1, 7, all - 1, all, all + 1} {
		n := 0
		s, err := x.Query(t.Context(), Filter{}, limit, nil, func(Answer) (bool, error) { n++; return true, nil })
		if err != nil {
			t.Fatal(err)
		}
		if want := min(limit, all); n != want || s.Matched != want || s.More != (limit < all) {
			t.Errorf("limit %d of %d: got %d answers and %+v", limit, all, n, s)
		}
	}
	n := 0
	if _, err := x.Query(t.Context(), Filter{}, 0, nil, func(Answer) (bool, error) { n++; return n < 3, nil }); err != nil || n != 3 {
		t.Errorf("got %d answers and %v, want it to stop at 3", n, err)
	}
}

func TestNothingMatches(t *testing.T) {
	w := newWritten(t, 18, small)
	x := w.index(Options{})
	if got := asked(t, x, Filter{}); len(got) != 0 {
		t.Errorf("got %v of an empty log", got)
	}
	w.add(300)
	s, err := x.Query(t.Context(), Filter{User: "nobody"}, 0, nil, func(Answer) (bool, error) { return true, nil })
	if err != nil {
		t.Fatal(err)
	}
	first := time.Unix(0, 1_700_000_000e9)
	if s.First != 1 || s.Last != w.gen.state.Seq() || s.From.Sub(first) > time.Minute || !s.To.Equal(w.gen.state.Moment().WallTime()) {
		t.Errorf("got %+v, want the span of the log", s)
	}
}

// TestAnyFilterAnyLog is the law: whatever the log and the index, an answer is what a scan says.
func TestAnyFilterAnyLog(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		w := newWritten(t, rapid.Uint64().Draw(rt, "seed"), small)
		defer w.log.Close()
		x := w.index(Options{})
		defer x.Close()
		for range rapid.IntRange(1, 4).Draw(rt, "rounds") {
			w.add(rapid.IntRange(1, 150).Draw(rt, "records"))
			if rapid.Bool().Draw(rt, "advance") {
				if err := x.Advance(t.Context(), nil); err != nil {
					rt.Fatal(err)
				}
			}
			rows, mappings := w.rows()
			rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "filters"), 1))
			for range 10 {
				f := someFilter(rng, rows)
				if diff := cmp.Diff(scanned(t, rows, mappings, f), asked(t, x, f)); diff != "" {
					rt.Fatalf("%+v (-want +got):\n%s", f, diff)
				}
			}
		}
	})
}

// contents are all values in an index, by where they are.
func contents(t testing.TB, x *Index) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := x.view(func(tx *bbolt.Tx) error {
		return tx.ForEach(func(name []byte, b *bbolt.Bucket) error { return walk(out, string(name), b) })
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func walk(out map[string]string, path string, b *bbolt.Bucket) error {
	return b.ForEach(func(k, v []byte) error {
		at := fmt.Sprintf("%s/%x", path, k)
		if v == nil {
			return walk(out, at, b.Bucket(k))
		}
		out[at] = fmt.Sprintf("%x", v)
		return nil
	})
}
