package main

import (
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turnstone/store"
)

func TestNotesArePostedUntilTheyAreTaken(t *testing.T) {
	got := make(chan string, 10)
	fails := 1
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		if fails--; fails >= 0 || err != nil || r.Method != http.MethodPost {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		got <- string(b)
	}))
	defer server.Close()
	warned := make(chan error, 10)
	s := newSink(postNote(server.URL), func(err error) { warned <- err })
	done := make(chan struct{})
	go func() { s.run(); close(done) }()
	s.put([]byte("one"))
	if err := <-warned; !strings.Contains(err.Error(), "503") {
		t.Errorf("warned of %v, want the status 503", err)
	}
	s.put([]byte("two")) // instead of the first
	select {
	case note := <-got:
		if note != "two" {
			t.Errorf("posted %q, want the newest", note)
		}
	case <-time.After(patience):
		t.Fatal("nothing was posted")
	}
	s.put([]byte("three"))
	close(s.next)
	<-done
	if note := <-got; note != "three" || s.failures.Load() != 1 {
		t.Errorf("the last one is %q after %d failures, want three and 1", note, s.failures.Load())
	}
}

func TestASinkThatAlwaysFailsEnds(t *testing.T) {
	broken := errors.New("broken")
	warned := make(chan error, 10)
	s := newSink(func([]byte) error { return broken }, func(err error) { warned <- err })
	done := make(chan struct{})
	go func() { s.run(); close(done) }()
	s.put([]byte("one"))
	<-warned
	s.put([]byte("two"))
	close(s.next)
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatal("it goes on")
	}
	if s.failures.Load() != 2 {
		t.Errorf("%d failures, want 2", s.failures.Load())
	}
}

func TestPublishedNotesCanBeSplit(t *testing.T) {
	name := filepath.Join(t.TempDir(), "notes")
	add := appendNote(name)
	for _, note := range []string{"text\n\n— one\n", "text\n\n— two\n"} {
		if err := add([]byte(note)); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if notes, rest := store.SplitNotes(b); len(notes) != 2 || len(rest) > 0 || string(notes[1].Note) != "text\n\n— two\n" {
		t.Errorf("got %v and the rest %q", notes, rest)
	}
}
