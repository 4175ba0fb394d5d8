package store

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// signer makes logs that are signed as they grow.
type signer struct {
	t      *testing.T
	dir    string
	log    *Log
	gen    *traffic
	points *Checkpointer
	sealed uint64
}

var testLog = turn.LogID{9, 9}

func newSigner(t *testing.T, seed uint64) *signer {
	t.Helper()
	s := &signer{t: t, dir: t.TempDir()}
	s.open(seed)
	return s
}

// open opens the log, which begins where it is new.
func (s *signer) open(seed uint64) {
	s.t.Helper()
	var err error
	s.log, err = Open(s.dir, tiny)
	must(s.t, err)
	s.t.Cleanup(func() { s.log.Close() })
	if s.log.State().Seq() == 0 {
		appendTest(s.t, s.log, s.log.State(), at(0), turn.EpochBegan{Log: testLog, Epoch: 1})
	}
	s.sealed = s.log.State().LastSealed()
	s.gen = newTraffic(seed, s.log.State(), 40)
	s.points, _, err = s.log.Checkpointer()
	must(s.t, err)
}

func (s *signer) record(_ context.Context, events ...turn.Event) error {
	appendTest(s.t, s.log, s.gen.state, s.gen.state.Moment(), events...)
	return nil
}

// grow appends records, and signs after every tenth.
func (s *signer) grow(records int) {
	s.t.Helper()
	for i := range records {
		must(s.t, s.log.Append(s.gen.record(12)))
		if i%10 == 9 {
			must(s.t, tend(s.log, s.gen.state, &s.sealed))
			_, err := s.points.Sign()
			must(s.t, err)
		}
	}
}

func (s *signer) close() {
	s.t.Helper()
	must(s.t, s.log.Prover().Grow(context.Background()))
	must(s.t, s.points.Close())
	must(s.t, s.log.Close())
}

// notes are the checkpoints in a directory.
func notes(t *testing.T, dir string) NoteFile {
	t.Helper()
	f, err := ReadNotes(filepath.Join(dir, CheckpointsName))
	must(t, err)
	return f
}

// examineIn examines the log in dir with what is beside it, and files from elsewhere.
func examineIn(t *testing.T, dir, key string, elsewhere ...NoteFile) Examination {
	t.Helper()
	e := Evidence{Keys: []string{key}, Tree: dir, Checkpoints: elsewhere}
	if _, err := os.Stat(filepath.Join(dir, CheckpointsName)); err == nil {
		e.Checkpoints = append(e.Checkpoints, notes(t, dir))
	}
	x, err := readerOf(t, dir).Examine(e)
	must(t, err)
	return x
}

// found says which kinds of findings there are, in order and once each.
func found(x *Examination) string {
	var out []string
	for _, f := range x.Findings {
		if !slices.Contains(out, f.What) {
			out = append(out, f.What)
		}
	}
	return strings.Join(out, " ")
}

// copyAll copies a directory of a log with all that is in it.
func copyAll(t *testing.T, dir string) string {
	t.Helper()
	to := t.TempDir()
	must(t, os.CopyFS(to, os.DirFS(dir)))
	return to
}

func TestASignedLogHasNoFindings(t *testing.T) {
	s := newSigner(t, 31)
	s.grow(300)
	s.close()
	x := examineIn(t, s.dir, s.points.Public())
	if len(x.Findings) > 0 || len(x.Remarks) > 0 || x.Checkpoints < 25 {
		t.Errorf("%d checkpoints agree, remarks %q, findings %v, want 25 and none", x.Checkpoints, x.Remarks, x.Findings)
	}
	if x.State == nil || encoded(t, x.State) != encoded(t, s.gen.state) {
		t.Error("the fold is not the state of the log")
	}
}

// Crude attacks change the file and nothing else.
func TestCrudeAttacksAreFoundAndPlaced(t *testing.T) {
	s := newSigner(t, 32)
	s.grow(300)
	older := readFile(t, s.dir)
	s.grow(100)
	s.close()
	segments := func(f func(*bbolt.Bucket) error) func(string) {
		return func(dir string) { edit(t, dir, func(tx *bbolt.Tx) error { return f(tx.Bucket(migrations.Segments)) }) }
	}
	inSecond := func(name string) func(string) {
		return segments(func(b *bbolt.Bucket) error { return forgeries[name](b.Bucket(key(2))) })
	}
	last := func(b *bbolt.Bucket) *bbolt.Bucket {
		k, _ := b.Cursor().Last()
		return b.Bucket(k)
	}
	for name, c := range map[string]struct {
		attack  func(dir string)
		want    string // kinds of findings
		segment uint64
		says    string
	}{
		"edit": {inSecond("an event is edited"), "record", 2, "the tree head does not match"},
		"edit-last": {segments(func(b *bbolt.Bucket) error {
			k, v := third(last(b))
			v[len(v)-1] ^= 1
			return last(b).Put(k, v)
		}), "record", 0, "CRC-32C does not match"}, // and what was signed behind it is not called cut off
		"edit-bytes": {segments(func(b *bbolt.Bucket) error {
			k, v := third(b.Bucket(key(2)))
			v[len(v)-1] ^= 1
			return b.Bucket(key(2)).Put(k, v)
		}), "record", 2, "CRC-32C does not match"},
		"delete":         {inSecond("a record is deleted"), "record", 2, "the next record begins at"},
		"reorder":        {inSecond("two records are swapped"), "record", 2, "the next record begins at"},
		"header":         {inSecond("the header is forged"), "segment", 2, "the header of segment 2 is not where the log stands"},
		"delete-segment": {segments(func(b *bbolt.Bucket) error { return b.DeleteBucket(key(3)) }), "segment", 0, "segment 4 does not follow 2"},
		"truncate": {segments(func(b *bbolt.Bucket) error {
			k, _ := last(b).Cursor().Last()
			return last(b).Delete(k)
		}), "checkpoint", 0, "cut off or rolled back"},
		"roll-back": {func(dir string) { writeFile(t, dir, older) }, "checkpoint tree", 0, "cut off or rolled back"},
		"cut-file": {func(dir string) {
			writeFile(t, dir, readFile(t, dir)[:16*os.Getpagesize()])
		}, "", 0, ""},
		"tree": {func(dir string) {
			b, err := os.ReadFile(filepath.Join(dir, treeName))
			must(t, err)
			must(t, os.WriteFile(filepath.Join(dir, treeName), flipped(b), 0o600))
		}, "tree", 0, "delete the file"},
		"snapshot": {func(dir string) {
			edit(t, dir, func(tx *bbolt.Tx) error {
				k, _ := tx.Bucket(migrations.Snapshots).Cursor().Last()
				b := tx.Bucket(migrations.Snapshots).Bucket(k)
				return b.Put(key(1), flipped(b.Get(key(1))))
			})
		}, "snapshot", 0, "the digest does not match"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := copyAll(t, s.dir)
			c.attack(dir)
			if c.want == "" {
				if _, err := OpenReader(filepath.Join(dir, FileName)); err == nil {
					t.Error("it opens")
				}
				return
			}
			x := examineIn(t, dir, s.points.Public())
			if got := found(&x); got != c.want || !strings.Contains(x.Findings[0].Err.Error(), c.says) {
				t.Fatalf("found %s (%v), want %s with %q", got, x.Findings, c.want, c.says)
			}
			f := x.Findings[0]
			if c.segment > 0 && (f.Segment != c.segment || f.Offset <= 0) {
				t.Errorf("placed in segment %d at byte %d, want segment %d", f.Segment, f.Offset, c.segment)
			}
			if f.What == "record" && x.Records < 200 {
				t.Errorf("it went through %d records only: not on behind the damage", x.Records)
			}
		})
	}
}

func TestOffsetsOfFindingsAreThoseOfTheirRecords(t *testing.T) {
	s := newSigner(t, 33)
	s.grow(100)
	s.close()
	r := readerOf(t, s.dir)
	file := readFile(t, s.dir)
	for raw, err := range Raw(r, 1) {
		must(t, err)
		v, err := parseEnvelope(raw)
		must(t, err)
		at := r.offset(v.last())
		if at < 0 || string(file[at:][:len(raw)]) != string(raw) {
			t.Fatalf("record %d is said to be at byte %d, and is not", v.first, at)
		}
	}
}

func TestIndependentFindingsAreAllTold(t *testing.T) {
	s := newSigner(t, 34)
	s.grow(400)
	s.close()
	edit(t, s.dir, func(tx *bbolt.Tx) error {
		b := tx.Bucket(migrations.Segments)
		if err := forgeries["a record is deleted"](b.Bucket(key(2))); err != nil {
			return err
		}
		return forgeries["an event is edited"](b.Bucket(key(4)))
	})
	x := examineIn(t, s.dir, s.points.Public())
	var at []uint64
	for _, f := range x.Findings {
		if f.What == "record" {
			at = append(at, f.Segment)
		}
	}
	if !slices.Equal(at, []uint64{2, 4}) {
		t.Errorf("found in the segments %v (%v), want 2 and 4", at, x.Findings)
	}
}

// rewritten is dir as an attacker leaves it who has everything but the key: the records as change makes them, with CRCs, chain,
// roots, segments, snapshots and tree that fit one another. One who is careless leaves in it what was recorded of them.
func (s *signer) rewritten(careless bool, change func([]turn.Record) []turn.Record) string {
	s.t.Helper()
	var list []turn.Record
	for r, err := range readerOf(s.t, s.dir).Records(1) {
		must(s.t, err)
		r.Events = slices.DeleteFunc(r.Events, func(e turn.Event) bool {
			return !careless && (e.Kind() == turn.KindSegmentSealed || e.Kind() == turn.KindSnapshotTaken)
		})
		if len(r.Events) > 0 {
			list = append(list, r)
		}
	}
	forged := &signer{t: s.t, dir: s.t.TempDir()}
	var err error
	forged.log, err = Open(forged.dir, tiny)
	must(s.t, err)
	state := forged.log.State()
	for i, r := range change(list) {
		appendTest(s.t, forged.log, state, r.Moment, r.Events...)
		if i%10 == 9 && !careless {
			must(s.t, tend(forged.log, state, &forged.sealed))
		}
	}
	must(s.t, forged.log.Prover().Grow(context.Background()))
	must(s.t, forged.log.Close())
	return forged.dir
}

// usage finds a record with an event of usage behind the middle of a log, and which of its events that is.
func usage(t *testing.T, list []turn.Record) (int, int) {
	t.Helper()
	for i := len(list) / 2; i < len(list); i++ {
		if n := slices.IndexFunc(list[i].Events, func(e turn.Event) bool { return e.Kind() == turn.KindUsageRecorded }); n >= 0 {
			return i, n
		}
	}
	t.Fatal("the log has no usage")
	return 0, 0
}

// An attacker who makes everything fit is found by what was signed, beside the log or elsewhere, and by nothing else.
func TestCleverAttacksAreFoundByCheckpointsAlone(t *testing.T) {
	s := newSigner(t, 35)
	s.grow(300)
	s.close()
	signed := notes(t, s.dir)
	for name, change := range map[string]func([]turn.Record) []turn.Record{
		"edit": func(list []turn.Record) []turn.Record {
			i, n := usage(t, list)
			e := list[i].Events[n].(turn.UsageRecorded)
			e.ToPeer.Bytes++
			list[i].Events[n] = e
			return list
		},
		"delete": func(list []turn.Record) []turn.Record {
			i, n := usage(t, list)
			list[i].Events = slices.Delete(list[i].Events, n, n+1)
			if len(list[i].Events) == 0 {
				list = slices.Delete(list, i, i+1)
			}
			return list
		},
		"reorder": func(list []turn.Record) []turn.Record {
			for i := len(list) / 2; i < len(list); i++ {
				if e := list[i].Events; len(e) > 1 && e[0].Kind() == turn.KindUsageRecorded && e[1].Kind() != turn.KindUsageRecorded {
					e[0], e[1] = e[1], e[0]
					return list
				}
			}
			i, n := usage(t, list) // to a record of its own, earlier
			moved := list[i].Events[n]
			list[i].Events = slices.Delete(list[i].Events, n, n+1)
			first := turn.Record{Moment: list[i].Moment, Events: []turn.Event{moved}}
			return slices.Insert(list, i, first)
		},
		"time":     func(list []turn.Record) []turn.Record { list[len(list)/2].Moment.Wall += int64(time.Hour); return list },
		"truncate": func(list []turn.Record) []turn.Record { return list[:len(list)/2] },
		"another-log": func(list []turn.Record) []turn.Record {
			list[0].Events[0] = turn.EpochBegan{Log: turn.LogID{7}, Epoch: 1}
			return list
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := s.rewritten(false, change)
			if x := examineIn(t, dir, s.points.Public()); len(x.Findings) > 0 {
				t.Fatalf("the attack is not clever: %v", x.Findings)
			}
			x := examineIn(t, dir, s.points.Public(), signed)
			if found(&x) != "checkpoint" {
				t.Errorf("held against what was signed: found %q, want checkpoint", found(&x))
			}
		})
	}
}

func TestTheFindingSaysBetweenWhichCheckpointsSomethingWasChanged(t *testing.T) {
	s := newSigner(t, 36)
	s.grow(300)
	s.close()
	signed := notes(t, s.dir)
	var where turn.Seq
	dir := s.rewritten(true, func(list []turn.Record) []turn.Record {
		i, n := usage(t, list)
		e := list[i].Events[n].(turn.UsageRecorded)
		e.ToClient.Packets++
		list[i].Events[n] = e
		where = list[i].First
		return list
	})
	x := examineIn(t, dir, s.points.Public(), signed)
	if found(&x) != "segment checkpoint" {
		t.Fatalf("found %v, want a checkpoint, and segments whose sealing was recorded", x.Findings)
	}
	var before, after turn.Seq
	for _, n := range signed.Notes {
		c, err := ParseCheckpoint(n.Note)
		must(t, err)
		if c.Size < where {
			before = c.Size
		} else if after == 0 {
			after = c.Size
		}
	}
	f := x.Findings[slices.IndexFunc(x.Findings, func(f Finding) bool { return f.What == "checkpoint" })]
	if x.Checkpoints == 0 || f.Seq != after || before == 0 || !strings.Contains(f.Err.Error(), fmt.Sprintf("between %d and %d", before+1, after)) {
		t.Errorf("found at %d (%v), want %d, behind %d", f.Seq, f.Err, after, before)
	}
}

func TestForgedCheckpointsAreFindings(t *testing.T) {
	s := newSigner(t, 37)
	s.grow(60)
	s.close()
	other := newSigner(t, 38)
	other.grow(60)
	other.close()
	good := notes(t, s.dir)
	foreign := notes(t, other.dir)
	edited := slices.Clone(good.Notes)
	edited[2].Note = []byte(strings.Replace(string(edited[2].Note), "epoch 1", "epoch 2", 1))
	resized := slices.Clone(good.Notes)
	resized[1].Note = []byte(strings.Replace(string(good.Notes[2].Note), "\n\n", "\n\nx", 1))
	for name, forged := range map[string]NoteFile{
		"another-key":   {Name: "elsewhere", Notes: foreign.Notes[:1]},
		"edited":        {Name: "elsewhere", Notes: edited[2:3]},
		"not-a-note":    {Name: "elsewhere", Notes: []SignedNote{{Number: 1, Note: []byte("nothing\n\n— nobody\n")}}},
		"not-signed-so": {Name: "elsewhere", Notes: resized[1:2]},
	} {
		x := examineIn(t, s.dir, s.points.Public(), forged)
		if len(x.Findings) != 1 || x.Findings[0].What != "checkpoint" || x.Findings[0].File != "elsewhere" {
			t.Errorf("%s: found %v, want one about a checkpoint", name, x.Findings)
		}
	}
	must(t, os.WriteFile(filepath.Join(s.dir, CheckpointsName), append(slices.Concat(good.Notes[0].Note, []byte("\n")), "turnstone/torn"...), 0o600))
	x := examineIn(t, s.dir, s.points.Public())
	if len(x.Findings) > 0 || len(x.Remarks) != 1 {
		t.Errorf("a torn file: found %v, remarks %q, want none and one", x.Findings, x.Remarks)
	}
}

func TestARollbackIsAFindingUntilTheLogTellsOfIt(t *testing.T) {
	s := newSigner(t, 39)
	s.grow(100)
	older := readFile(t, s.dir)
	kept := s.points.size
	s.grow(100)
	largest := s.points.size
	s.close()
	key := s.points.Public()
	writeFile(t, s.dir, older)
	x := examineIn(t, s.dir, key)
	if !strings.Contains(found(&x), "checkpoint") {
		t.Fatalf("rolled back: found %v, want a checkpoint", x.Findings)
	}
	s.open(40) // with another future
	lost, is, err := s.points.Lost()
	must(t, err)
	if want := (turn.RollbackFound{Kept: kept, Size: largest, Root: lost.Root, Epoch: 1}); !is || lost != want {
		t.Fatalf("lost %+v (%t), want %+v", lost, is, want)
	}
	must(t, s.points.tell(context.Background(), s.record))
	if s.log.epoch != 2 {
		t.Errorf("the epoch is %d, want 2", s.log.epoch)
	}
	s.grow(250) // beyond where the first future ended
	if s.points.size <= largest {
		t.Fatalf("signed up to %d: not beyond %d", s.points.size, largest)
	}
	s.close()
	x = examineIn(t, s.dir, key)
	if len(x.Findings) > 0 || len(x.Remarks) != 1 || !strings.Contains(x.Remarks[0], "lost in a rollback") || x.State.Epoch() != 2 {
		t.Errorf("once told: found %v, remarks %q, want none and one", x.Findings, x.Remarks)
	}
	s.open(41)
	if _, is, err := s.points.Lost(); is || err != nil {
		t.Errorf("the rollback is found again (%v)", err)
	}
	s.close()

	writeFile(t, s.dir, older) // again, beyond what told of the first
	x = examineIn(t, s.dir, key)
	if !strings.Contains(found(&x), "checkpoint") {
		t.Fatalf("rolled back again: found %v, want a checkpoint", x.Findings)
	}
	s.open(42)
	must(t, s.points.tell(context.Background(), s.record))
	if s.log.epoch != 3 {
		t.Errorf("the epoch is %d, want 3", s.log.epoch)
	}
	s.grow(20)
	s.close()
	if x = examineIn(t, s.dir, key); len(x.Findings) > 0 {
		t.Errorf("once told again: found %v", x.Findings)
	}
}

func TestALogThatSawClocksAndBootsIsGood(t *testing.T) {
	s := newSigner(t, 43)
	s.grow(40)
	s.gen.moment.Wall -= int64(time.Hour) // the clock is set back
	s.grow(40)
	s.gen.moment = turn.Moment{Boot: turn.BootID{77}, Uptime: time.Second, Wall: s.gen.moment.Wall - int64(time.Minute)}
	appendTest(t, s.log, s.gen.state, s.gen.moment, turn.ServerStarted{Version: "test"}, turn.ClockWentBack{Nanoseconds: uint64(time.Minute)})
	s.gen.moment = s.gen.state.Moment()
	s.grow(120)
	s.close()
	if x := examineIn(t, s.dir, s.points.Public()); len(x.Findings) > 0 || len(x.Remarks) > 0 {
		t.Errorf("found %v, remarks %q, want none", x.Findings, x.Remarks)
	}
}

func TestWitnessesAreHeard(t *testing.T) {
	s := newSigner(t, 44)
	s.grow(60)
	s.close()
	c, err := ParseCheckpoint(notes(t, s.dir).Notes[1].Note)
	must(t, err)
	knows := Witness{Name: "the kernel", Log: testLog, Epoch: 1, Seq: c.Size, Chain: c.Chain}
	for name, w := range map[string]struct {
		change            func(*Witness)
		findings, remarks int
	}{
		"agrees":       {func(*Witness) {}, 0, 0},
		"ahead":        {func(w *Witness) { w.Seq += 1 << 20 }, 1, 0},
		"another":      {func(w *Witness) { w.Chain[0] ^= 1 }, 1, 0},
		"later-epoch":  {func(w *Witness) { w.Epoch++ }, 1, 0},
		"another-log":  {func(w *Witness) { w.Log = turn.LogID{1} }, 0, 1},
		"within":       {func(w *Witness) { w.Seq-- }, 1, 0},
		"not-of-chain": {func(w *Witness) { w.Chain = Hash{} }, 1, 0},
	} {
		one := knows
		w.change(&one)
		x, err := readerOf(t, s.dir).Examine(Evidence{Witnesses: []Witness{one}})
		must(t, err)
		if len(x.Findings) != w.findings || len(x.Remarks) != w.remarks {
			t.Errorf("%s: found %v, remarks %q, want %d and %d", name, x.Findings, x.Remarks, w.findings, w.remarks)
		}
	}
}

func TestTheCheckpointerSignsAtStartSealAndStop(t *testing.T) {
	o := tiny
	o.CheckEvery = time.Millisecond
	l := openTest(t, t.TempDir(), o)
	s := l.State()
	appendTest(t, l, s, at(0), turn.EpochBegan{Log: testLog, Epoch: 1})
	c, _, err := l.Checkpointer()
	must(t, err)
	defer c.Close()
	signed := make(chan turn.Seq, 100)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		record := func(context.Context, ...turn.Event) error { t.Error("a rollback was recorded"); return nil }
		c.Run(ctx, record, func(note []byte) {
			at, err := OpenCheckpoint(note, c.Public())
			if err != nil {
				t.Error(err)
			}
			signed <- at.Size
		}, func(err error) { t.Error(err) })
	}()
	next := func(what string) turn.Seq {
		t.Helper()
		select {
		case at := <-signed:
			return at
		case <-time.After(10 * time.Second):
			t.Fatalf("nothing was signed at the %s", what)
		}
		return 0
	}
	if got := next("start"); got != 1 {
		t.Errorf("signed event %d at the start, want 1", got)
	}
	gen := newTraffic(45, s, 40)
	for before := l.unsealed(); l.unsealed() == before; {
		must(t, l.Append(gen.record(12)))
	}
	if got := next("seal"); got < l.unsealed() {
		t.Errorf("signed event %d at the seal, want at least %d", got, l.unsealed())
	}
	must(t, l.Append(gen.record(12)))
	cancel()
	<-done
	if got := next("stop"); got != s.Seq() {
		t.Errorf("signed event %d at the stop, want %d", got, s.Seq())
	}
}

func TestTheKeyOfAnotherLogIsPutAside(t *testing.T) {
	s := newSigner(t, 46)
	s.grow(20)
	s.close()
	old := s.points.Public()
	must(t, os.Remove(filepath.Join(s.dir, FileName)))
	l := openTest(t, s.dir, tiny)
	appendTest(t, l, l.State(), at(0), turn.EpochBegan{Log: turn.LogID{8}, Epoch: 1})
	c, fresh, err := l.Checkpointer()
	must(t, err)
	defer c.Close()
	if !fresh || c.Public() == old {
		t.Errorf("the key is %s, fresh %t, want a new one", c.Public(), fresh)
	}
	if _, lost, err := c.Lost(); lost || err != nil {
		t.Errorf("the other log's checkpoints count as lost ones (%v)", err)
	}
	for _, name := range []string{"checkpoints." + testLog.String(), "keys/checkpoint." + testLog.String()} {
		if _, err := os.Stat(filepath.Join(s.dir, name)); err != nil {
			t.Error(err)
		}
	}
}
