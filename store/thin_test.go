package store

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"turnstone/turn"
)

// signedNotes are so many notes of a log that no one is of, each epoch of so many.
func signedNotes(t *testing.T, n, epoch int) []SignedNote {
	t.Helper()
	k, _, err := LoadCheckpointKey(t.TempDir(), testLog)
	must(t, err)
	var out []SignedNote
	for i := range n {
		b, err := k.Sign(Checkpoint{Log: testLog, Size: turn.Seq(i + 1), Epoch: uint64(i/epoch + 1)})
		must(t, err)
		out = append(out, SignedNote{Number: i + 1, Note: b})
	}
	return out
}

func numbers(notes []SignedNote) (out []int) {
	for _, n := range notes {
		out = append(out, n.Number)
	}
	return out
}

func TestOldCheckpointsAreThinned(t *testing.T) {
	const n, epoch, dense = 6000, 2500, 600
	notes := signedNotes(t, n, epoch)
	kept := thinned(notes, dense)
	if sparse := len(kept) - dense; sparse < 60 || sparse > 130 {
		t.Errorf("of %d old notes %d are kept, want one in 60 or so", n-dense, sparse)
	}
	have := numbers(kept)
	for _, want := range []int{1, epoch, 2 * epoch, n - dense + 1, n} {
		if !slices.Contains(have, want) {
			t.Errorf("note %d is gone", want)
		}
	}
	if !slices.IsSorted(have) {
		t.Error("they are in another order")
	}
	if again := numbers(thinned(kept, dense)); !slices.Equal(again, have) {
		t.Errorf("thinned again %d are kept of %d", len(again), len(have))
	}
	// Day by day it comes to the same as at once.
	var grown []SignedNote
	for day := range slices.Chunk(notes, 500) {
		grown = thinned(append(grown, day...), dense)
	}
	if got := numbers(grown); !slices.Equal(got, have) {
		t.Errorf("day by day %d are kept, at once %d", len(got), len(have))
	}
}

func TestTheFileOfCheckpointsIsThinnedAndSignedOn(t *testing.T) {
	s := newSigner(t, 47)
	s.grow(300)
	before := notes(t, s.dir)
	s.points.dense = 5
	must(t, s.points.thin())
	after := notes(t, s.dir)
	if len(after.Notes) >= len(before.Notes) || len(after.Notes) < 6 || after.Rest > 0 {
		t.Fatalf("%d notes are kept of %d (%d bytes of another), want fewer", len(after.Notes), len(before.Notes), after.Rest)
	}
	last := before.Notes[len(before.Notes)-1].Note
	if got := after.Notes[len(after.Notes)-1].Note; string(got) != string(last) {
		t.Error("the newest is gone")
	}
	info, err := os.Stat(s.points.name)
	must(t, err)
	if info.Mode().Perm() != checkpointsMode {
		t.Errorf("the file has the mode %v, want %v", info.Mode(), os.FileMode(checkpointsMode))
	}
	s.grow(100)
	if got := len(notes(t, s.dir).Notes); got != len(after.Notes)+10 {
		t.Errorf("there are %d notes once ten more are signed, want %d", got, len(after.Notes)+10)
	}
	s.close()
	if x := examineIn(t, s.dir, s.points.Public()); len(x.Findings) > 0 || len(x.Remarks) > 0 {
		t.Errorf("found %v, remarks %q, want none", x.Findings, x.Remarks)
	}
	s.open(48)
	if _, lost, err := s.points.Lost(); lost || err != nil {
		t.Errorf("checkpoints count as lost (%v)", err)
	}
}

func TestCheckpointsThatCannotBeThinnedStayAndAreSignedOn(t *testing.T) {
	dir := smallDisk(t, 8<<20)
	s := &signer{t: t, dir: dir}
	s.open(49)
	s.grow(60)
	before := notes(t, dir)
	s.points.dense = 1
	leave(t, dir, 0)
	if err := s.points.thin(); err == nil {
		t.Fatal("thinned on a full disk")
	}
	left, err := filepath.Glob(filepath.Join(dir, freshPrefix+"*"))
	must(t, err)
	if got := notes(t, dir); len(got.Notes) != len(before.Notes) || got.Rest > 0 || len(left) > 0 {
		t.Errorf("there are %d notes, %d bytes of another and the files %v, want %d and nothing else", len(got.Notes), got.Rest, left, len(before.Notes))
	}
	must(t, os.Remove(filepath.Join(dir, "filler")))
	must(t, s.points.thin())
	s.grow(20)
	if got := notes(t, dir); len(got.Notes) >= len(before.Notes) || got.Rest > 0 {
		t.Errorf("there are %d notes, want fewer than %d", len(got.Notes), len(before.Notes))
	}
}
