package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

// Of the checkpoints beside the log all of the newest are kept, a week of minutes, and of those before one in sixty. Its
// own hash chooses it, so that what is kept once is kept for good.
const (
	denseNotes  = 7 * 24 * 60
	sparseNotes = 60
	thinEvery   = 24 * 60 // notes that are signed
)

// thinned is what is kept of notes: the newest dense ones, of the others some, the first and the last of each epoch among them.
func thinned(notes []SignedNote, dense int) (kept []SignedNote) {
	var epoch uint64 // of the note behind
	for i, n := range slices.Backward(notes) {
		c, err := ParseCheckpoint(n.Note)
		last := err != nil || c.Epoch != epoch
		epoch = c.Epoch
		sum := sha256.Sum256(n.Note)
		if last || i == 0 || i >= len(notes)-dense || binary.BigEndian.Uint32(sum[:])%sparseNotes == 0 {
			kept = append(kept, n)
		}
	}
	slices.Reverse(kept)
	return kept
}

// thin leaves old notes out of the file once it has been a day since it did. A crash leaves it as it was, or thinned.
func (c *Checkpointer) thin() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.unthinned < thinEvery {
		return nil
	}
	b, err := os.ReadFile(c.name)
	if err != nil {
		return fmt.Errorf("thin checkpoints: %w", err)
	}
	notes, _ := SplitNotes(b)
	kept := thinned(notes, c.dense)
	if len(kept) == len(notes) {
		c.unthinned = 0
		return nil
	}
	var size int64
	file, err := replaceWhole(c.name, checkpointsMode, func(w io.Writer) error {
		for i, n := range kept {
			gap := ""
			if i > 0 {
				gap = "\n"
			}
			wrote, err := fmt.Fprintf(w, "%s%s", gap, n.Note)
			if size += int64(wrote); err != nil {
				return err
			}
		}
		return nil
	})
	if file != nil { // the one before is in no directory any more
		err = errors.Join(err, c.file.Close())
		c.file, c.end, c.unthinned = file, size, 0
	}
	if err != nil {
		return fmt.Errorf("thin checkpoints: %w", err)
	}
	return nil
}
