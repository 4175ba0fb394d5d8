package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/store"
	"turnstone/turn"
)

// namesKey is the key of the pseudonyms of users.
const namesKey = "names"

// openPseudonyms has users called by pseudonyms where that is configured. Where it was once, those who are are still known.
func (d *served) openPseudonyms(r config.Resolved) error {
	if !r.HashNames {
		if _, err := os.Stat(filepath.Join(store.Keys(r.Data), namesKey)); errors.Is(err, os.ErrNotExist) {
			return nil
		}
	}
	key, err := store.LoadKey(r.Data, namesKey, 32)
	if err != nil {
		return err
	}
	d.pseudonyms = turn.NewPseudonyms([32]byte(key))
	return nil
}

// Forget is for the admin interface.
func (d *served) Forget(ctx context.Context, which store.Which, plan bool, by string) ([]store.Forgettable, error) {
	if plan {
		return d.store.Plan(which)
	}
	list, err := d.store.Forget(ctx, which, by, d.relay.Record)
	for _, f := range list {
		if f.Refused == "" && err == nil {
			d.log.Info().Uint64("segment", f.Segment).Uint64("first", uint64(f.First)).Uint64("last", uint64(f.Last)).Str("by", by).Msg("segment forgotten")
		}
	}
	return list, err
}

// CalledAs is for the admin interface.
func (d *served) CalledAs(username string) []string { return calledAs(d.pseudonyms, username) }

// calledAs is the usernames that a user may have in the log: the name itself, and the pseudonyms of it.
func calledAs(p *turn.Pseudonyms, username string) []string {
	all := []string{username}
	if p == nil || username == "" {
		return all
	}
	all = append(all, p.Of(username))
	if limited, ok := p.OfLimited(username); ok && !slices.Contains(all, limited) {
		all = append(all, limited)
	}
	return all
}

// calledAs asks the daemon how a user may be called in the log, else looks for the key beside the log.
func (s *logSource) calledAs(ctx context.Context, o *options, username string) ([]string, error) {
	if s.client != nil {
		return s.client.CalledAs(ctx, username)
	}
	keys := o.keys
	if keys == "" {
		keys = store.Keys(filepath.Dir(s.reader.File()))
	}
	key, err := os.ReadFile(filepath.Join(keys, namesKey))
	if errors.Is(err, os.ErrNotExist) {
		return calledAs(nil, username), nil
	}
	if err != nil || len(key) != 32 {
		return nil, fmt.Errorf("load key of the names in %s: %w", keys, errors.Join(err, errKeyLength(len(key))))
	}
	return calledAs(turn.NewPseudonyms([32]byte(key)), username), nil
}

// pseudonyms are what a user may be called besides the name itself.
func (s *logSource) pseudonyms(ctx context.Context, o *options, username string) (p [2]string, err error) {
	if username == "" {
		return p, nil
	}
	all, err := s.calledAs(ctx, o, username)
	if err == nil {
		copy(p[:], all[1:])
	}
	return p, err
}

// withoutKey is what err says of a key that is missing, nil where it is about something else.
func withoutKey(err error) *store.KeyError {
	var missing *store.KeyError
	errors.As(err, &missing)
	return missing
}

// explain adds to an error about a missing key what can be read and what cannot.
func (s *logSource) explain(ctx context.Context, err error) error {
	if err == nil || withoutKey(err) == nil {
		return err
	}
	st, failed := s.stat(ctx)
	if failed != nil {
		return err
	}
	var list []string
	for i := 0; i < len(st.Segments); {
		from := i
		for unread := st.Segments[i].Privacy == store.Unread; i < len(st.Segments) && (st.Segments[i].Privacy == store.Unread) == unread; {
			i++
		}
		what := "can be read"
		if st.Segments[from].Privacy == store.Unread {
			what = "cannot be read"
		}
		list = append(list, fmt.Sprintf("events %d to %d (segments %d to %d) %s",
			st.Segments[from].First, st.Segments[i-1].Last, st.Segments[from].Number, st.Segments[i-1].Number, what))
	}
	return fmt.Errorf("%w\n%s", err, strings.Join(list, "\n"))
}

func errKeyLength(n int) error {
	if n == 32 {
		return nil
	}
	return fmt.Errorf("%d bytes, want 32", n)
}
