package store

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"turnstone/turn"
)

// checkpointsMode is that of the file: what is in it is to be seen by others.
const checkpointsMode = 0o644

// checkpointEvery is how often a log that moves gets a checkpoint. A segment that is sealed gets one at once.
const checkpointEvery = time.Minute

// Checkpointer signs where a log stands. What it signs is durable, and so is the note when it is handed out.
type Checkpointer struct {
	log   *Log
	key   *Key
	name  string
	dense int // notes that are all kept

	mu        sync.Mutex // guards the fields below
	file      *os.File
	end       int64  // of the last whole note in file
	last      []byte // the note
	size      turn.Seq
	unthinned int // notes since the file was thinned
}

// Checkpointer opens DIR/checkpoints, and makes the key where there is none: fresh says so. The log must have begun.
func (l *Log) Checkpointer() (c *Checkpointer, fresh bool, err error) {
	at := l.position()
	c = &Checkpointer{log: l, name: filepath.Join(l.dir, CheckpointsName), dense: denseNotes, unthinned: thinEvery}
	if c.key, fresh, err = LoadCheckpointKey(l.dir, at.Log); err != nil {
		return nil, false, err
	}
	if c.file, err = os.OpenFile(c.name, os.O_RDWR|os.O_CREATE, checkpointsMode); err != nil {
		return nil, false, fmt.Errorf("open checkpoints: %w", err)
	}
	b, err := os.ReadFile(c.name)
	notes, rest := SplitNotes(b)
	if n := len(notes); n > 0 {
		c.last = notes[n-1].Note
		c.end = notes[n-1].Offset + int64(len(c.last))
	}
	if len(rest) > 0 { // a crash cut it off
		err = errors.Join(err, c.file.Truncate(c.end))
	}
	if err = errors.Join(err, syncDir(l.dir)); err != nil {
		return nil, false, errors.Join(fmt.Errorf("open checkpoints: %w", err), c.file.Close())
	}
	return c, fresh, nil
}

// Public is the key to verify with.
func (c *Checkpointer) Public() string { return c.key.Public() }

// Close closes the file.
func (c *Checkpointer) Close() error { return c.file.Close() }

// position is where l durably stands.
func (l *Log) position() Checkpoint {
	l.write.Lock()
	defer l.write.Unlock()
	return Checkpoint{Log: l.id, Epoch: l.epoch, Size: l.chain.next() - 1, Root: l.chain.tree.root(), Chain: l.chain.last}
}

// Sign is a note that says where the log stands now.
func (c *Checkpointer) Sign() ([]byte, error) {
	at := c.log.position()
	c.mu.Lock()
	defer c.mu.Unlock()
	if at.Size <= c.size {
		return c.last, nil
	}
	signed, err := c.key.Sign(at)
	if err != nil {
		return nil, fmt.Errorf("sign checkpoint: %w", err)
	}
	gap := ""
	if c.end > 0 {
		gap = "\n"
	}
	b := append([]byte(gap), signed...)
	if _, err = c.file.WriteAt(b, c.end); err == nil {
		err = c.file.Sync()
	}
	if err != nil {
		return nil, fmt.Errorf("write checkpoint: %w", errors.Join(err, c.file.Truncate(c.end)))
	}
	c.end += int64(len(b))
	c.last, c.size = signed, at.Size
	c.unthinned++
	return signed, nil
}

// Lost looks for checkpoints that were signed for events which the log does not have: it was rolled back, or put together anew. It
// yields what to record of them.
func (c *Checkpointer) Lost() (lost turn.RollbackFound, found bool, err error) {
	b, err := os.ReadFile(c.name)
	if err != nil {
		return lost, false, fmt.Errorf("read checkpoints: %w", err)
	}
	notes, _ := SplitNotes(b)
	for i := len(notes) - 1; i >= 0; i-- {
		one, err := OpenCheckpoint(notes[i].Note, c.key.Public())
		if err != nil {
			continue // nobody who could sign has said that
		}
		holds, err := c.log.holds(&one)
		if err != nil {
			return lost, false, err
		}
		if holds {
			lost.Kept = one.Size
			break
		}
		if found = true; one.Size > lost.Size {
			lost.Size, lost.Root = one.Size, one.Root
		}
		lost.Epoch = max(lost.Epoch, one.Epoch)
	}
	return lost, found, nil
}

// holds says whether the record that ends where o says is the one that was signed. Of what is retired nobody
// knows better.
func (l *Log) holds(o *Checkpoint) (bool, error) {
	for raw, err := range Raw(l, o.Size) {
		if errors.Is(err, ErrRetired) {
			return true, nil
		}
		var v envelope
		if err == nil {
			v, err = parseEnvelope(raw)
		}
		if err != nil {
			return false, err
		}
		return v.last() == o.Size && v.root == o.Root && sha256.Sum256(raw) == o.Chain, nil
	}
	return false, nil // beyond the end
}

// Run signs at once, every minute in which the log moved, whenever a segment is sealed, and when ctx ends, which is to be
// once nothing is appended any more. Before all that it has record told of a rollback. Each note goes
// to publish, each failure, after which it goes on, to failed.
func (c *Checkpointer) Run(ctx context.Context, record func(context.Context, ...turn.Event) error, publish func([]byte), failed func(error)) {
	told := false
	sign := func() {
		if !told {
			if err := c.tell(ctx, record); err != nil {
				failed(err)
				return
			}
			told = true
		}
		note, err := c.Sign()
		if err != nil {
			failed(err)
			return
		}
		publish(note)
		if err := c.thin(); err != nil {
			failed(err)
		}
	}
	tick := time.NewTicker(c.log.options.CheckEvery)
	defer tick.Stop()
	for {
		segment, at := c.log.unsealed(), time.Now()
		sign()
		for moved := false; !moved; {
			select {
			case <-tick.C:
				moved = c.log.unsealed() != segment || time.Since(at) > checkpointEvery && c.behind()
			case <-ctx.Done():
				if told {
					sign()
				}
				return
			}
		}
	}
}

// behind says whether the log has more than the last checkpoint says.
func (c *Checkpointer) behind() bool {
	last, _ := c.log.Head()
	c.mu.Lock()
	defer c.mu.Unlock()
	return last > c.size
}

// tell records that the log was rolled back, where it was, and that an epoch begins.
func (c *Checkpointer) tell(ctx context.Context, record func(context.Context, ...turn.Event) error) error {
	lost, found, err := c.Lost()
	if err != nil || !found {
		return err
	}
	at := c.log.position()
	events := []turn.Event{lost}
	if at.Epoch <= lost.Epoch {
		events = []turn.Event{turn.EpochBegan{Log: at.Log, Epoch: lost.Epoch + 1}, lost}
	}
	return record(ctx, events...)
}
