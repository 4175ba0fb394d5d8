package main

import (
	"crypto/rand"
	"errors"
	"fmt"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/cmd/turnstone/internal/slice"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// sliceRow is a slice that was taken.
type sliceRow struct {
	File       string            `json:"file"`
	Log        turn.LogID        `json:"log"`
	Source     turn.LogID        `json:"source"`
	Epoch      uint64            `json:"epoch"`
	Allocation turn.AllocationID `json:"allocation"`
	Events     int               `json:"events"`
	From       turn.Seq          `json:"from"` // in the source
	To         turn.Seq          `json:"to"`
	Proved     int               `json:"proved"`
	Tree       turn.Seq          `json:"tree"` // events in the tree that the proofs lead to
	Signed     bool              `json:"signed"`
	Anonymised bool              `json:"anonymised"`
}

func logSlice(o *options) *cobra.Command {
	var id uint64
	var out string
	var anonymise bool
	cmd := &cobra.Command{
		Use: "slice --allocation ID --out FILE", Short: "Copy the history of one allocation into a log of its own", Args: cobra.NoArgs,
		Long: `Writes a small log, with an id of its own, that replays: turnstone replay --db FILE and the other commands read it.
It has all events of the allocation at their times, and the starts and stops of the server while it lived; behind each
stands its sequence in the source and the proof that it is there, against the newest signed checkpoint. turnstone log
verify --db FILE --key KEY checks these, with nothing of the source. Events that are encrypted in the source are in the
clear in a slice, which takes the keys.

--anonymise puts other addresses (of 198.18.0.0/15 and 2001:db8::/32), user names, realms, tokens and ids in the place of
those there are: the same for the same, of the same family. Ports, times and counters stay. It leaves the proofs out,
since they would tell.`,
		Example: `  turnstone log slice --allocation 4711 --out call.db
  turnstone log slice --allocation 4711 --anonymise --out for-the-bug-report.db
  turnstone replay --step --db call.db -o table`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if id == 0 || out == "" {
				return usageError("--allocation and --out are needed: see %s --help", cmd.CommandPath())
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			row, err := source.slice(cmd, turn.AllocationID(id), out, anonymise)
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, row)
		},
	}
	cmd.Flags().Uint64Var(&id, "allocation", 0, "The allocation `ID`.")
	cmd.Flags().StringVar(&out, "out", "", "The `FILE` to write, which must not be there yet.")
	cmd.Flags().BoolVar(&anonymise, "anonymise", false, "Say nothing of who it was.")
	o.completeFilters(cmd)
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// slice writes the slice of an allocation.
func (s *logSource) slice(cmd *cobra.Command, id turn.AllocationID, out string, anonymise bool) (row sliceRow, err error) {
	ctx := cmd.Context()
	first, err := created(ctx, s, id)
	if errors.Is(err, errNoHistory) {
		return row, fmt.Errorf("%w: turnstone log dump shows what is", err)
	}
	if err != nil {
		return row, err
	}
	parts, err := slice.Collect(s.records(ctx, first), id)
	if err != nil {
		return row, err
	}
	seqs := slice.Seqs(parts)
	state, _, err := s.stateWithin(ctx, store.Through(first), warn(cmd))
	if err != nil {
		return row, err
	}
	taken := turn.SliceTaken{Source: state.Log(), Epoch: state.Epoch(), Allocation: id, Anonymised: anonymise}
	var proofs []store.Proven
	if anonymise {
		parts = slice.Anonymise(parts)
	} else {
		p, err := s.proveSlice(cmd, seqs)
		if err != nil {
			return row, err
		}
		proofs, taken.Size, taken.Root, taken.Checkpoint = p.Events, p.Checkpoint.Size, p.Checkpoint.Root, string(p.Note)
	}
	var log turn.LogID
	rand.Read(log[:])
	records, err := slice.Records(log, taken, parts, proofs, s.keys(ctx))
	if err != nil {
		return row, err
	}
	if err := store.WriteFile(out, records); err != nil {
		return row, err
	}
	return sliceRow{
		File: out, Log: log, Source: taken.Source, Epoch: taken.Epoch, Allocation: id, Events: len(seqs),
		From: seqs[0], To: seqs[len(seqs)-1], Proved: len(proofs), Tree: taken.Size, Signed: taken.Checkpoint != "", Anonymised: anonymise,
	}, nil
}

// proveSlice proves events against a signed checkpoint, or, of a file that has none which reaches so far, against the
// root of what it holds.
func (s *logSource) proveSlice(cmd *cobra.Command, seqs []turn.Seq) (store.Proof, error) {
	p, err := s.prove(cmd.Context(), seqs)
	if err == nil || s.client != nil {
		return p, err
	}
	_, last, err2 := s.reader.Span()
	if err2 != nil {
		return p, err2
	}
	prover := s.reader.Prover()
	root, err2 := prover.Root(last)
	if err2 != nil {
		return p, err2
	}
	cmd.PrintErrf("warning: %v: the proofs lead to the root of event %d, which nobody has signed\n", err, last)
	p = store.Proof{Checkpoint: store.Checkpoint{Size: last, Root: root}}
	p.Events, err = prover.Prove(last, seqs...)
	return p, err
}

// verifySlice says of a log that is a slice what of it is proved.
func verifySlice(cmd *cobra.Command, source *logSource, keys []string) error {
	first, _, err := source.span(cmd.Context())
	switch {
	case damageOf(err) != nil:
		return nil //nolint:nilerr // it is a finding already
	case err != nil || first != 1: // a slice has its beginning
		return err
	}
	r, err := slice.Verify(source.records(cmd.Context(), 1), keys...)
	switch {
	case errors.Is(err, slice.ErrNoSlice), withoutKey(err) != nil:
		return nil //nolint:nilerr // nor has one anything that is encrypted
	case err != nil:
		return exitError{errMismatch, err}
	case r.Taken.Anonymised:
		cmd.PrintErrf("it is an anonymised slice of log %v, epoch %d: %d events, which nothing proves\n", r.Taken.Source, r.Taken.Epoch, r.Events)
		return nil
	}
	by := "whose checkpoint the key signed"
	if !r.Signed {
		by = "whose root was held against no key: say --key"
	}
	cmd.PrintErrf("it is a slice of log %v, epoch %d: %d of %d events are proved to be in its tree of %d events, %s\n",
		r.Taken.Source, r.Taken.Epoch, r.Proved, r.Events, r.Taken.Size, by)
	return nil
}
