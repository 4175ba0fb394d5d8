package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"sync/atomic"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/metrics"
	"turnstone/store"
	"turnstone/turn"

	"golang.org/x/sync/errgroup"
)

// checkpoints are the daemon's: signed, kept beside the log, and published elsewhere.
type checkpoints struct {
	signer   atomic.Pointer[store.Checkpointer] // nil while it could not be opened
	signed   atomic.Uint64
	newest   atomic.Pointer[signing] // nil before the first
	failures atomic.Uint64
	file     *sink // nil for none
	url      *sink
}

// signing is when a checkpoint was signed, and the last event in it.
type signing struct {
	seq turn.Seq
	at  time.Time
}

// checkpointsAgain is how long after a failure to open the key or the file they are tried again.
const checkpointsAgain = time.Minute

func (k *checkpoints) counters() metrics.Checkpoints {
	c := metrics.Checkpoints{Signed: k.signed.Load(), Failures: map[string]uint64{"sign": k.failures.Load()}}
	for name, s := range map[string]*sink{"file": k.file, "url": k.url} {
		if s != nil {
			c.Failures[name] = s.failures.Load()
		}
	}
	return c
}

// Checkpoint is for the admin interface.
func (d *served) Checkpoint() (admin.Signed, error) {
	c := d.checkpoints.signer.Load()
	if c == nil {
		return admin.Signed{}, errors.New("the daemon has no key of checkpoints: its log lines say why")
	}
	note, err := c.Sign()
	return admin.Signed{Note: note, Key: c.Public()}, err
}

// newSinks makes the places that checkpoints are published at.
func (d *served) newSinks(p config.Publication) {
	warn := func(to string) func(error) {
		return func(err error) {
			d.log.Warn().Err(err).Str("to", to).Msg("a checkpoint could not be published: trying again")
		}
	}
	if p.File != "" {
		d.checkpoints.file = newSink(appendNote(p.File), warn(p.File))
	}
	if p.URL != "" {
		d.checkpoints.url = newSink(postNote(p.URL), warn(p.URL))
	}
}

// keepCheckpoints signs checkpoints until ctx ends, which is once nothing is appended any more. That it fails
// is logged and counted, and stops nothing.
func (d *served) keepCheckpoints(ctx context.Context) {
	failed := func(err error) {
		d.checkpoints.failures.Add(1)
		d.log.Warn().Err(err).Msg("checkpoints are not kept as they are to be: trying again")
	}
	c := d.openCheckpoints(ctx, failed)
	if c == nil {
		return
	}
	defer c.Close()
	d.checkpoints.signer.Store(c)
	var sinks errgroup.Group
	all := []*sink{}
	for _, s := range []*sink{d.checkpoints.file, d.checkpoints.url} {
		if s != nil {
			all = append(all, s)
			sinks.Go(func() error { s.run(); return nil })
		}
	}
	c.Run(ctx, d.recordRollback, func(note []byte) {
		d.checkpoints.signed.Add(1)
		if p, err := store.OpenCheckpoint(note, c.Public()); err == nil { // it is ours
			d.checkpoints.newest.Store(&signing{p.Size, time.Now().UTC()})
		}
		for _, s := range all {
			s.put(note)
		}
	}, failed)
	d.checkpoints.signer.Store(nil)
	for _, s := range all {
		close(s.next)
	}
	_ = sinks.Wait() // they fail at nothing
}

// recordRollback records that the log was rolled back, and says so.
func (d *served) recordRollback(ctx context.Context, events ...turn.Event) error {
	for _, e := range events {
		if e, ok := e.(turn.RollbackFound); ok {
			d.log.Error().Uint64("kept", uint64(e.Kept)).Uint64("signed", uint64(e.Size)).
				Msg("the log was rolled back: checkpoints are signed for events that it does not have. An epoch begins")
		}
	}
	return d.relay.Record(ctx, events...)
}

// openCheckpoints opens the key and the file, nil where ctx ends first.
func (d *served) openCheckpoints(ctx context.Context, failed func(error)) *store.Checkpointer {
	for {
		c, fresh, err := d.store.Checkpointer()
		if err == nil {
			if fresh {
				d.log.Info().Str("key", c.Public()).Msg("checkpoints of the log are signed from now on: keep this public key elsewhere, to verify with")
			}
			return c
		}
		failed(err)
		select {
		case <-time.After(checkpointsAgain):
		case <-ctx.Done():
			return nil
		}
	}
}

// sink takes the newest checkpoint somewhere else. What it cannot send it tries again, and newer ones instead.
type sink struct {
	next     chan []byte // at most one; closed at the end
	send     func([]byte) error
	warn     func(error)
	failures atomic.Uint64
}

func newSink(send func([]byte) error, warn func(error)) *sink {
	return &sink{next: make(chan []byte, 1), send: send, warn: warn}
}

// put hands over a note. Only one goroutine may.
func (s *sink) put(note []byte) {
	select {
	case <-s.next: // older, and not taken yet
	default:
	}
	s.next <- note
}

// Waiting after failures.
const (
	firstWait   = time.Second
	longestWait = time.Minute
)

// run sends until next is closed, and then, if need be, once more.
func (s *sink) run() {
	wait := firstWait
	note, open := <-s.next
	for open {
		err := s.send(note)
		if err == nil {
			wait = firstWait
			note, open = <-s.next
			continue
		}
		s.failures.Add(1)
		s.warn(err)
		again := time.After(wait)
		wait = min(2*wait, longestWait)
		for waiting := true; waiting && open; {
			var newer []byte
			select {
			case newer, open = <-s.next:
				if open {
					note = newer
				}
			case <-again:
				waiting = false
			}
		}
		if !open && s.send(note) != nil {
			s.failures.Add(1)
		}
	}
}

// appendNote appends notes to a file, as they are in DIR/checkpoints.
func appendNote(name string) func([]byte) error {
	return func(note []byte) error {
		f, err := os.OpenFile(name, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.Write(append(bytes.Clone(note), '\n')); err != nil {
			return err
		}
		return f.Sync()
	}
}

// postTimeout bounds a POST.
const postTimeout = 5 * time.Second

// postNote sends notes in the bodies of HTTP POSTs. Whoever takes them can see who signed: they need no other secret.
func postNote(url string) func([]byte) error {
	client := http.Client{Timeout: postTimeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	return func(note []byte) error {
		resp, err := client.Post(url, "text/plain; charset=utf-8", bytes.NewReader(note))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, 64<<10)) // so that the connection can be used again
		if resp.StatusCode/100 != 2 {
			return fmt.Errorf("post %s: %s", url, resp.Status)
		}
		return nil
	}
}
