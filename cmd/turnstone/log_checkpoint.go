package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// keyRow is the key of checkpoints as it is shown.
type keyRow struct {
	Key string `json:"key"`
}

func logKey(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "key", Short: "Print the public key that checkpoints are verified with", Args: cobra.NoArgs,
		Long: "Prints the public key of the log's checkpoints, of the running daemon, else of a data directory. Whoever is to\nbelieve proofs needs it, and must have it from somebody who was trusted at the time: keep it elsewhere.",
		Example: `  turnstone log key
  turnstone log key > /elsewhere/relay1.key`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			key, err := o.publicKey(cmd.Context())
			if err != nil {
				return err
			}
			if o.format == "" {
				fmt.Fprintln(cmd.OutOrStdout(), key)
				return nil
			}
			return output.Object(cmd.OutOrStdout(), o.format, keyRow{key})
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// publicKey is the key of the daemon, else that beside the log's file.
func (o *options) publicKey(ctx context.Context) (string, error) {
	source, err := o.openLog(ctx)
	if err != nil {
		return "", err
	}
	if source.client != nil {
		signed, err := source.client.Checkpoint(ctx)
		return signed.Key, err
	}
	file, err := o.logFile()
	if err != nil {
		return "", err
	}
	k, err := store.ReadCheckpointKey(filepath.Dir(file))
	if err != nil {
		return "", err
	}
	return k.Public(), nil
}

// checkpointRow is a checkpoint as it is shown.
type checkpointRow struct {
	Log   string   `json:"log"`
	Epoch uint64   `json:"epoch"`
	Event turn.Seq `json:"event"`
	Root  string   `json:"root"`
	Chain string   `json:"chain"`
	Key   string   `json:"key"`
	Note  string   `json:"note" table:"-"`
}

func logCheckpoint(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "checkpoint", Short: "Sign where the log stands, and print that", Args: cobra.NoArgs,
		Long: "Prints a checkpoint of the log, a signed note (C2SP tlog-checkpoint): one that the running daemon signs now, else\nthe last one beside a log's file. Kept elsewhere, it shows any later change of what was in the log up to there.",
		Example: `  turnstone log checkpoint
  turnstone log checkpoint >> /elsewhere/relay1.checkpoints
  turnstone log checkpoint -o json | jq .event`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			note, key, err := source.checkpoint(cmd.Context())
			if err != nil {
				return err
			}
			if o.format == "" {
				fmt.Fprintf(cmd.OutOrStdout(), "%s\n", note) // with the empty line that divides notes of a file
				return nil
			}
			c, err := store.ParseCheckpoint(note)
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, checkpointRow{
				c.Log.String(), c.Epoch, c.Size, c.Root.String(), c.Chain.String(), key, string(note),
			})
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// checkpoint is one that the daemon signs, else the last beside the file, with the key where that is to be had.
func (s *logSource) checkpoint(ctx context.Context) (note []byte, key string, err error) {
	if s.client != nil {
		signed, err := s.client.Checkpoint(ctx)
		return signed.Note, signed.Key, err
	}
	notes, err := s.notes()
	if err != nil {
		return nil, "", err
	}
	if k, err := store.ReadCheckpointKey(filepath.Dir(s.reader.File())); err == nil {
		key = k.Public()
	}
	return notes[len(notes)-1].Note, key, nil
}

// notes are the checkpoints beside the file, at least one.
func (s *logSource) notes() ([]store.SignedNote, error) {
	name := filepath.Join(filepath.Dir(s.reader.File()), store.CheckpointsName)
	b, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	notes, _ := store.SplitNotes(b)
	if len(notes) == 0 {
		return nil, fmt.Errorf("there is no checkpoint at %s: the daemon signs them, and a copy of the log needs that file beside it", name)
	}
	return notes, nil
}

// prove proves events: by the daemon against a checkpoint of now, else by the file against the last one beside it.
func (s *logSource) prove(ctx context.Context, seqs []turn.Seq) (store.Proof, error) {
	if s.client != nil {
		return s.client.Prove(ctx, seqs)
	}
	notes, err := s.notes()
	if err != nil {
		return store.Proof{}, err
	}
	last := notes[len(notes)-1].Note
	c, err := store.ParseCheckpoint(last)
	if err != nil {
		return store.Proof{}, err
	}
	if len(seqs) > 0 && slices.Max(seqs) > c.Size {
		return store.Proof{}, fmt.Errorf("the last checkpoint is of event %d, before %d: start the daemon, which signs one", c.Size, slices.Max(seqs))
	}
	return s.reader.Prover().ProveAgainst(last, seqs...)
}
