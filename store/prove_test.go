package store

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// roots are the tree heads of a log, by the last event of each record.
func roots(t testing.TB, s source) map[turn.Seq]Hash {
	t.Helper()
	out := map[turn.Seq]Hash{}
	for raw, err := range Raw(s, 1) {
		must(t, err)
		v, err := parseEnvelope(raw)
		must(t, err)
		out[v.last()] = v.root
	}
	return out
}

// proveSome proves events all over the trees of some sizes, from first on.
func proveSome(t testing.TB, p *Prover, heads map[turn.Seq]Hash, first, last turn.Seq) {
	t.Helper()
	random := rand.New(rand.NewPCG(uint64(first), uint64(last)))
	for range 40 {
		size := first + turn.Seq(random.Uint64N(uint64(last-first+1)))
		for heads[size] == (Hash{}) {
			size++
		}
		seqs := []turn.Seq{first, size, first + turn.Seq(random.Uint64N(uint64(size-first+1)))}
		proven, err := p.Prove(size, seqs...)
		must(t, err)
		for i, e := range proven {
			if err := e.Check(size, heads[size]); err != nil || e.Seq != seqs[i] {
				t.Fatalf("the proof of event %d of %d is of %d: %v", seqs[i], size, e.Seq, err)
			}
		}
		if _, err := p.Consistency(seqs[2], size); err != nil {
			t.Fatalf("consistency of %d and %d: %v", seqs[2], size, err)
		}
	}
}

func readerOf(t testing.TB, dir string) *Reader {
	t.Helper()
	r, err := OpenReader(filepath.Join(dir, FileName))
	must(t, err)
	return r
}

func TestAnyEventIsProvedWhateverBecameOfTheTreeFile(t *testing.T) {
	dir, s := filled(t, 21, 400)
	heads, last := roots(t, readerOf(t, dir)), s.Seq()
	if last < 5*treeBlock {
		t.Fatalf("the log has %d events: too few for this test", last)
	}
	proveSome(t, readerOf(t, dir).Prover(), heads, 1, last)
	l := openTest(t, dir, tiny)
	must(t, l.Prover().Grow(context.Background()))
	proveSome(t, l.Prover(), heads, 1, last)
	must(t, l.Close())
	file := filepath.Join(dir, treeName)
	good, err := os.ReadFile(file)
	must(t, err)
	if want := int(last/treeBlock)*2*32 - 10*32; len(good) < want {
		t.Fatalf("the tree file has %d bytes, want at least %d", len(good), want)
	}
	for name, tree := range map[string][]byte{
		"whole": good, "none": nil, "short": good[:len(good)-40], "long": append(bytes.Clone(good), good...),
		"another-inside": append(flipped(good[:32]), good[32:]...), "another-at-the-end": append(bytes.Clone(good[:len(good)-32]), flipped(good[len(good)-32:])...),
		"zeros": make([]byte, len(good)), "another": bytes.Repeat([]byte("tree"), len(good)/4),
	} {
		t.Run(name, func(t *testing.T) {
			must(t, os.WriteFile(file, tree, 0o600))
			proveSome(t, readerOf(t, dir).Prover(), heads, 1, last)
			l := openTest(t, dir, tiny)
			proveSome(t, l.Prover(), heads, 1, last)
			must(t, l.Close())
			if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, good) {
				t.Errorf("the tree file has %d bytes (%v), want the %d it had", len(now), err, len(good))
			}
		})
	}
}

// flipped is b with its first bit changed.
func flipped(b []byte) []byte {
	b = bytes.Clone(b)
	b[0] ^= 1
	return b
}

// retired is a copy of dir without the segments before the one that follows its oldest snapshot, and the first event left.
func retired(t testing.TB, dir string) (string, turn.Seq) {
	t.Helper()
	ats, err := snapshotsIn(readerOf(t, dir))
	must(t, err)
	copied := copyLog(t, dir)
	edit(t, copied, func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		for {
			k, _ := segments.Cursor().First()
			if c, err := parseHeader(segments.Bucket(k).Get(headKey)); err != nil || c.next() > ats[0].At {
				return err
			}
			if err := segments.DeleteBucket(k); err != nil {
				return err
			}
		}
	})
	return copied, ats[0].At + 1
}

func TestWhatIsLeftIsProvedAfterRetirement(t *testing.T) {
	dir, s := filled(t, 22, 400)
	heads, last := roots(t, readerOf(t, dir)), s.Seq()
	copied, first := retired(t, dir)
	if first%treeBlock == 1 {
		t.Fatalf("the log begins at %d: not within a block", first)
	}
	l := openTest(t, copied, tiny)
	proveSome(t, l.Prover(), heads, first, last)
	if _, err := l.Prover().Prove(last, first-1); !errors.Is(err, ErrRetired) {
		t.Errorf("prove a retired event: got %v, want %v", err, ErrRetired)
	}
	must(t, l.Close())
	proveSome(t, readerOf(t, copied).Prover(), heads, first, last) // with the tree file
	must(t, os.Remove(filepath.Join(copied, treeName)))
	proveSome(t, readerOf(t, copied).Prover(), heads, first, last) // and without
}

func TestProofsFollowALogThatGrows(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, tiny)
	gen := newTraffic(23, l.State(), 40)
	heads := map[turn.Seq]Hash{}
	for range 30 {
		for range 8 {
			must(t, l.Append(gen.record(16)))
			at := l.position()
			heads[at.Size] = at.Root
		}
		proveSome(t, l.Prover(), heads, 1, l.position().Size)
	}
	if _, err := l.Prover().Prove(l.position().Size+1, 1); err == nil {
		t.Error("proved by a tree that is larger than the log")
	}
}

func TestTheTreeFileOfARolledBackLogIsMadeAgain(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, tiny)
	gen := newTraffic(24, l.State(), 40)
	for range 60 {
		must(t, l.Append(gen.record(16)))
	}
	older := copyLog(t, dir) // nobody appends
	for range 60 {
		must(t, l.Append(gen.record(16)))
	}
	must(t, l.Prover().Grow(context.Background()))
	must(t, l.Close())
	writeFile(t, dir, readFile(t, older))
	l = openTest(t, dir, tiny)
	gen = newTraffic(25, l.State(), 40)
	for range 90 { // another future, longer than the first
		must(t, l.Append(gen.record(16)))
	}
	last := l.position().Size
	must(t, l.Close())
	l = openTest(t, dir, tiny)
	proveSome(t, l.Prover(), roots(t, l), 1, last)
}
