package store

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
)

// follow takes the records of the tail from a sequence on until one ends at until or later, and checks that they
// follow each other and are what was appended.
func follow(l *Log, from, until turn.Seq, appended *sync.Map) error {
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
		want, ok := appended.Load(r.First)
		if diff := cmp.Diff(want, any(r), comparing); !ok || diff != "" {
			return fmt.Errorf("the record at %d is not what was appended (-want +got):\n%s", r.First, diff)
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
	gen := newTraffic(17, s, 30)
	var appended sync.Map
	add := func(records int) {
		for range records {
			r := gen.record(6)
			appended.Store(r.First, r)
			if err := l.Append(r); err != nil {
				t.Fatal(err)
			}
		}
	}
	add(20)
	const events = 1000
	until := s.Seq() + events
	var group sync.WaitGroup
	for _, from := range []turn.Seq{1, 2, 17, s.Seq(), s.Seq() + 1, s.Seq() + 100} {
		group.Go(func() {
			if err := follow(l, from, until, &appended); err != nil {
				t.Errorf("from %d: %v", from, err)
			}
		})
	}
	for recovered := false; s.Seq() < until; add(1) {
		if !recovered && s.Seq() > until-events/2 {
			recovered = true
			if _, err := l.Recover(); err != nil {
				t.Fatal(err)
			}
		}
	}
	group.Wait()
	if err := follow(l, until-5, until, &appended); err != nil {
		t.Errorf("from memory: %v", err)
	}
	if err := follow(l, 1, until, &appended); err != nil {
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
