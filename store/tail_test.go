package store

import (
	"context"
	"errors"
	"os"
	"sync"
	"testing"
	"time"

	"turnstone/turn"
)

// follow takes n records of the tail from a sequence and checks that they follow each other.
func follow(l *Log, from turn.Seq, until turn.Seq) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	next := turn.Seq(0)
	for r, err := range l.Tail(ctx, from) {
		switch {
		case err != nil:
			return err
		case next == 0 && (r.First > from || r.Last() < from):
			return errors.New("the first record does not hold the sequence that was asked for")
		case next != 0 && r.First != next:
			return errors.New("a record is missing, or told twice")
		}
		if next = r.Last() + 1; next > until {
			return nil
		}
	}
	return errors.New("the tail ended")
}

func TestTailYieldsEveryRecordInOrderFromAnywhere(t *testing.T) {
	l := openTest(t, t.TempDir(), tiny) // keeps few in memory: late followers read the disk
	s := l.State()
	fill(t, l, s, 10, 4)
	const records, size = 300, 4
	until := s.Seq() + records*size
	var group sync.WaitGroup
	for _, from := range []turn.Seq{1, 2, 17, s.Seq(), s.Seq() + 1, s.Seq() + 100} {
		group.Go(func() {
			if err := follow(l, from, until); err != nil {
				t.Errorf("from %d: %v", from, err)
			}
		})
	}
	fill(t, l, s, records, size)
	group.Wait()
	if err := follow(l, until-5, until); err != nil {
		t.Errorf("from memory: %v", err)
	}
	if err := follow(l, 1, until); err != nil {
		t.Errorf("from disk: %v", err)
	}
}

func TestTailEndsWithItsContextAndWithTheLog(t *testing.T) {
	l := openTest(t, t.TempDir(), tiny)
	fill(t, l, l.State(), 1, 2)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	for _, err := range l.Tail(ctx, l.State().Seq()+1) {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("got %v, want %v", err, context.Canceled)
		}
	}
	ended := make(chan error, 1)
	go func() {
		for _, err := range l.Tail(context.Background(), l.State().Seq()+1) {
			ended <- err
		}
	}()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v, want %v", err, os.ErrClosed)
	}
}

func TestWitness(t *testing.T) {
	dir := t.TempDir()
	l := openTest(t, dir, tiny)
	s := l.State()
	heads := map[turn.Seq][32]byte{}
	note := func() {
		seq, chain := l.Head()
		if seq != s.Seq() {
			t.Fatalf("the head is at %d, want %d", seq, s.Seq())
		}
		heads[seq] = chain
	}
	note()
	for range 100 {
		fill(t, l, s, 1, 8)
		note()
	}
	delete(heads, 0)
	for seq, want := range heads {
		if got, ok, err := l.ChainAt(seq); err != nil || !ok || got != want {
			t.Fatalf("the chain at %d: got %x, %t (%v), want %x", seq, got, ok, err, want)
		}
	}
	if _, ok, err := l.ChainAt(s.Seq() - 1); ok || err != nil {
		t.Errorf("within a record: got %t (%v), want none", ok, err)
	}
	if _, ok, err := l.ChainAt(s.Seq() + 1); ok || err != nil {
		t.Errorf("beyond the end: got %t (%v), want none", ok, err)
	}
}
