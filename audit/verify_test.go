package audit

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"turnstone/store"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// advanced is an index that is up to date.
func (w *written) advanced() *Index {
	w.t.Helper()
	x := w.index(Options{})
	if err := x.Advance(w.t.Context(), nil); err != nil {
		w.t.Fatal(err)
	}
	return x
}

func TestGoodIndexVerifies(t *testing.T) {
	for _, o := range []store.Options{small, {SegmentSize: small.SegmentSize, NoSync: true, Encrypt: true}} {
		w := newWritten(t, 21, o)
		w.add(600)
		x := w.advanced()
		v, err := x.Verify(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if v.Blocks < 10 || v.Rows < 100 || v.Last == 0 || v.Unproven != 0 || v.Forgotten != 0 {
			t.Errorf("got %+v, want many blocks and rows, all proved", v)
		}
	}
}

// TestForgedIndexIsFoundOut changes what is stored with checksums that fit, and takes away.
func TestForgedIndexIsFoundOut(t *testing.T) {
	w := newWritten(t, 22, small)
	w.add(600)
	x := w.advanced()
	forge := func(tx *bbolt.Tx, f func(first turn.Seq, b *bbolt.Bucket, c *bbolt.Cursor) error) error {
		blocks := tx.Bucket(blocksName)
		k, _ := blocks.Cursor().First()
		for i := 0; i < 4; i++ {
			k, _ = blocks.Cursor().Seek(number64(binary.BigEndian.Uint64(k) + 1))
		}
		b := blocks.Bucket(k)
		return f(turn.Seq(binary.BigEndian.Uint64(k)), b, b.Cursor())
	}
	for what, f := range map[string]func(tx *bbolt.Tx) error{
		"username": func(tx *bbolt.Tx) error {
			return forge(tx, func(first turn.Seq, b *bbolt.Bucket, _ *bbolt.Cursor) error {
				plain, err := opened(first, keyOf('r', 0), b.Get(keyOf('r', 0)))
				if err != nil {
					return err
				}
				r, err := new(decoder).row(plain)
				if err != nil {
					return err
				}
				r.Username = "mallory"
				return b.Put(keyOf('r', 0), closed(first, keyOf('r', 0), encodeRow(&r)))
			})
		},
		"list": func(tx *bbolt.Tx) error {
			return forge(tx, func(first turn.Seq, b *bbolt.Bucket, c *bbolt.Cursor) error {
				k, v := c.Seek([]byte{'t'})
				plain, err := opened(first, k, v)
				if err != nil {
					return err
				}
				shorter := append([]byte(nil), plain[:len(plain)-postingSize]...)
				return b.Put(k, closed(first, k, shorter))
			})
		},
		"time": func(tx *bbolt.Tx) error {
			return forge(tx, func(first turn.Seq, b *bbolt.Bucket, _ *bbolt.Cursor) error {
				plain, err := opened(first, keyOf('s', 0), b.Get(keyOf('s', 0)))
				if err != nil {
					return err
				}
				moved := append([]byte(nil), plain...)
				moved[7] ^= 1
				return b.Put(keyOf('s', 0), closed(first, keyOf('s', 0), moved))
			})
		},
		"row-gone": func(tx *bbolt.Tx) error {
			return forge(tx, func(_ turn.Seq, b *bbolt.Bucket, _ *bbolt.Cursor) error { return b.Delete(keyOf('r', 1)) })
		},
		"block-gone": func(tx *bbolt.Tx) error {
			k, _ := tx.Bucket(blocksName).Cursor().First()
			next, _ := tx.Bucket(blocksName).Cursor().Seek(number64(binary.BigEndian.Uint64(k) + 1))
			return tx.Bucket(blocksName).DeleteBucket(next)
		},
		"open": func(tx *bbolt.Tx) error {
			c, err := x.load(true)
			if err != nil {
				return err
			}
			if err := c.builder.wakeAll(); err != nil {
				return err
			}
			for _, r := range c.builder.open {
				r.Realm = "elsewhere"
			}
			k, _ := x.cipherFor(0, false)
			_, chunks, err := c.encode(k)
			for i, one := range chunks {
				err = errors.Join(err, tx.Bucket(openName).Put(chunkKey(i), one))
			}
			return err
		},
		"chain": func(tx *bbolt.Tx) error {
			c, err := x.load(true)
			if err != nil {
				return err
			}
			c.chain[0] ^= 1
			k, _ := x.cipherFor(0, false)
			head, _, err := c.encode(k)
			return errors.Join(err, tx.Bucket(openName).Put(carriedKey, head))
		},
	} {
		if err := x.renew(); err != nil {
			t.Fatal(err)
		}
		if err := x.Advance(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		if _, err := x.Verify(t.Context()); err != nil {
			t.Fatalf("%s: before it was forged: %v", what, err)
		}
		if err := x.update(f); err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		var damage *store.CorruptError
		if _, err := x.Verify(t.Context()); !errors.As(err, &damage) || damage.File != x.name {
			t.Errorf("%s: got %v, want a *CorruptError of the index", what, err)
		}
	}
}

// TestRetiredBlocksGo has segments retired, with and without an archive, and the index made anew after that.
func TestRetiredBlocksGo(t *testing.T) {
	for _, archived := range []bool{false, true} {
		w := newWritten(t, 23, small)
		x := w.index(Options{})
		w.add(300)
		if err := x.Advance(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		keep := store.Retention{Size: int64(12 * small.SegmentSize)}
		if archived {
			keep.Archive = filepath.Join(w.dir, store.ArchiveName)
		}
		w.log.SetRetention(keep)
		w.add(900)
		if err := x.Advance(t.Context(), nil); err != nil {
			t.Fatal(err)
		}
		file, err := w.log.Segments(false)
		if err != nil {
			t.Fatal(err)
		}
		first := file[0].First
		if first < 500 {
			t.Fatalf("the file begins with event %d: nothing was retired", first)
		}
		v, err := x.Verify(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if archived {
			w.sameAnswers(x, 23, 80)
			if v.Unproven != 0 || blocksOf(t, x)[0].First != 1 {
				t.Errorf("got %+v from %d on, want the blocks of what is archived, all proved", v, blocksOf(t, x)[0].First)
			}
			continue
		}
		if blocks := blocksOf(t, x); blocks[0].First < first {
			t.Errorf("there is a block of events from %d on, the log begins with %d", blocks[0].First, first)
		}
		if v.Unproven == 0 {
			t.Errorf("got %+v, want allocations from before the log", v)
		}
		known := asked(t, x, Filter{})
		if err := x.renew(); err != nil {
			t.Fatal(err)
		}
		b := NewBuilder()
		s, err := x.source.Before(first)
		if err != nil || s == nil {
			t.Fatalf("got %v and %v, want the state that the log begins with", s, err)
		}
		b.Seed(s)
		for r, err := range w.log.Records(first) {
			if err != nil {
				t.Fatal(err)
			}
			b.Add(r)
		}
		rows := whole(unwritten(t, b))
		anew := asked(t, x, Filter{})
		if want := scanned(t, rows, b.mappings, Filter{}); len(want) != len(anew) {
			t.Errorf("the new index has %d rows, want %d", len(anew), len(want))
		}
		if len(anew) > len(known) {
			t.Errorf("the new index knows of %d rows, the one from before of %d", len(anew), len(known))
		}
		if v, err := x.Verify(t.Context()); err != nil || v.Unproven == 0 {
			t.Errorf("got %+v and %v, want the new index to verify", v, err)
		}
	}
}

// TestVerifyLeavesOutWhatIsGone has archives moved away that the index has blocks of.
func TestVerifyLeavesOutWhatIsGone(t *testing.T) {
	w := newWritten(t, 25, small)
	archive := filepath.Join(w.dir, store.ArchiveName)
	w.log.SetRetention(store.Retention{Size: int64(12 * small.SegmentSize), Archive: archive})
	w.add(900)
	x := w.advanced()
	whole, err := x.Verify(t.Context())
	if err != nil || whole.Gone != 0 {
		t.Fatalf("with its archives: %+v and %v", whole, err)
	}
	if err := os.Rename(archive, archive+"-elsewhere"); err != nil {
		t.Fatal(err)
	}
	v, err := x.Verify(t.Context())
	if err != nil || v.Gone == 0 || v.Blocks == 0 || v.Gone+v.Blocks != whole.Blocks || v.Rows == 0 {
		t.Errorf("without them: %+v and %v, want some of %d blocks to be left out and the others to hold", v, err, whole.Blocks)
	}
}

// TestForgottenBlocksGo erases keys of segments: what ended in them is not to be found any more, and the rest is.
func TestForgottenBlocksGo(t *testing.T) {
	w := newWritten(t, 24, store.Options{SegmentSize: small.SegmentSize, NoSync: true, Encrypt: true})
	w.add(900)
	x := w.advanced()
	before := len(asked(t, x, Filter{}))
	starts, err := w.log.Segments(true)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.log.Forget(t.Context(), store.Which{Segment: 2}, "test", w.record)
	if err != nil {
		t.Fatal(err)
	}
	s, err := x.Query(t.Context(), Filter{}, 0, nil, func(Answer) (bool, error) { return true, nil })
	if err != nil {
		t.Fatal(err)
	}
	if s.Matched >= before || s.Matched == 0 || s.Forgotten == 0 || s.Forgotten >= starts[3].First {
		t.Errorf("got %+v of %d rows, want fewer, and to hear up to where", s, before)
	}
	x.options.Owner = true
	if err := x.Advance(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, h := range blocksOf(t, x) {
		if h.Segment == 2 {
			t.Errorf("block %d of the forgotten segment is still there", h.First)
		}
	}
	if err := x.renew(); err != nil {
		t.Fatal(err)
	}
	if err := x.Advance(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if first := blocksOf(t, x)[0].First; first != starts[2].First {
		t.Errorf("an index that is made anew begins with %d, want it to begin behind what is forgotten, with %d", first, starts[2].First)
	}
}
