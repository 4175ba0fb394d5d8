package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"time"

	"turnstone/audit"
	"turnstone/store"
)

const (
	indexEvery = time.Second      // how often the index is looked after
	indexAgain = 10 * time.Second // after it could not be opened
	indexWait  = 2 * time.Second  // for an offline command that has it open
	maxAudits  = 2                // that are answered at a time
)

// indexState is the index of the log, once it is open.
type indexState struct {
	mu     sync.RWMutex // guards the fields below; whoever uses open holds it shared
	open   *audit.Index
	why    error // there is none
	audits chan struct{}
}

// keepIndex keeps the index of the log up to date until ctx ends. Nothing of the relay depends on it.
func (d *served) keepIndex(ctx context.Context) {
	var said string
	for ctx.Err() == nil {
		x, err := audit.Open(filepath.Join(d.store.Dir(), audit.FileName), audit.Live(d.store), audit.Options{
			Keys: d.store.Keys(), Owner: true, Wait: indexWait,
		})
		d.index.set(x, err)
		if err == nil {
			x.Keep(ctx, indexEvery, func(err error) {
				if again := err.Error() != said; again {
					said = err.Error()
					d.log.Warn().Err(err).Msg("the index for audits is not brought up to date: audits take longer")
				}
			})
			d.index.set(nil, errors.New("the daemon stops"))
			if err := x.Close(); err != nil {
				d.log.Warn().Err(err).Msg("close the index for audits")
			}
			return
		}
		if err.Error() != said {
			said = err.Error()
			d.log.Warn().Err(err).Msg("there is no index for audits yet")
		}
		select {
		case <-time.After(indexAgain):
		case <-ctx.Done():
		}
	}
}

func (s *indexState) set(x *audit.Index, why error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.audits == nil {
		s.audits = make(chan struct{}, maxAudits)
	}
	s.open, s.why = x, why
}

// Audit is for the admin interface.
func (d *served) Audit(ctx context.Context, f audit.Filter, limit int, p audit.Progress, found audit.Found) (audit.Summary, error) {
	d.index.mu.RLock()
	x, why, audits := d.index.open, d.index.why, d.index.audits
	d.index.mu.RUnlock()
	switch {
	case why != nil:
		return audit.Summary{}, fmt.Errorf("there is no index of the log: %w", why)
	case x == nil:
		return audit.Summary{}, errors.New("the index of the log is being opened: try again")
	}
	select {
	case audits <- struct{}{}:
		defer func() { <-audits }()
	case <-ctx.Done():
		return audit.Summary{}, ctx.Err()
	}
	return x.Query(ctx, f, limit, p, found)
}

// verifyIndex holds the index beside a file against the log. A daemon's it leaves alone: that is being written.
func (s *logSource) verifyIndex(ctx context.Context) (audit.Verified, error) {
	if s.client != nil {
		return audit.Verified{}, nil
	}
	v, err := audit.VerifyFile(ctx, indexOf(s.reader.File()), audit.File(s.reader), s.reader.Keys())
	if errors.Is(err, os.ErrNotExist) {
		err = nil
	}
	return v, err
}

// openIndex opens the index beside the file that r reads.
func openIndex(file string, r *store.Reader) (*audit.Index, error) {
	debug.SetGCPercent(400) // this process does no more than answer
	return audit.Open(indexOf(file), audit.File(r), audit.Options{Keys: r.Keys(), Lazy: true, Wait: indexWait})
}

// indexOf is where the index of a log's file is.
func indexOf(file string) string {
	dir, name := filepath.Split(file)
	if name == store.FileName {
		return filepath.Join(dir, audit.FileName)
	}
	return file + "." + audit.FileName
}
