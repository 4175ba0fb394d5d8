package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

type reportRow struct {
	Records uint64   `json:"records"`
	Events  uint64   `json:"events"`
	Bytes   uint64   `json:"bytes"`
	Last    turn.Seq `json:"last"`
	Chain   string   `json:"chain"`
	Root    string   `json:"root"`
	State   string   `json:"state,omitempty"`
	Index   turn.Seq `json:"index,omitempty"` // the event up to which the index for audits was held against the log; 0: there is none
}

func logVerify(o *options) *cobra.Command {
	var proof string
	var keys []string
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that the log is what was written", Args: cobra.NoArgs,
		Long: "Checks every record (CRC-32C, gapless sequences, hash chain, RFC 6962 tree heads), that all events decode and\nfold, and of a file that no daemon has open also its pages and that each snapshot is the fold of the records\nbefore it, and that the index for audits is what the records lead to. Exits 3 where something does not hold, and\nsays where.",
		Example: `  turnstone log verify
  turnstone log verify --db copy-of-log.db && echo good
  turnstone log verify --proof proof.json --key "$(cat relay1.key)" -o table`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if proof != "" {
				return verifyProof(cmd, o, proof, keys)
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			report, err := source.verify(cmd.Context())
			if err != nil {
				return err
			}
			if err := verifySlice(cmd, source, keys); err != nil {
				return err
			}
			index, err := source.verifyIndex(cmd.Context())
			if missing := withoutKey(err); missing != nil {
				cmd.PrintErrf("remark: the index for audits cannot be verified: %v\n", err)
			} else if err != nil {
				return err
			}
			digest, err := foldTo(cmd.Context(), source, report.Last)
			if missing := withoutKey(err); missing != nil {
				cmd.PrintErrf("remark: the records are what was written, but not all can be read and folded: %v\n", err)
				err = nil
			} else if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, reportRow{
				Records: report.Records, Events: report.Events, Bytes: report.Bytes, Last: report.Last,
				Chain: hex.EncodeToString(report.Chain[:]), Root: hex.EncodeToString(report.Root[:]), State: digest, Index: index.Last,
			})
		},
	}
	cmd.Flags().StringVar(&proof, "proof", "", "Check the proof in this `FILE` (- for stdin), by the key alone: no log is needed.")
	cmd.Flags().StringArrayVar(&keys, "key", nil, "`KEY`, as turnstone log key prints it, that must have signed; several are possible.")
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// foldTo folds the log up to a sequence, from a snapshot where its beginning is gone, and yields the digest of the state.
func foldTo(ctx context.Context, source *logSource, last turn.Seq) (string, error) {
	first, _, err := source.span(ctx)
	if err != nil {
		return "", err
	}
	var s *turn.State
	if first > 1 {
		s, _, err = source.stateWithin(ctx, store.Through(last), func(error) {})
	} else {
		s, err = store.StateAt(source.records(ctx, 1), func(r turn.Record) bool { return r.Last() <= last })
	}
	if err != nil {
		return "", err
	}
	return stateDigest(s)
}

// stateDigest is the SHA-256 of the one encoding of s.
func stateDigest(s *turn.State) (string, error) {
	b, err := store.EncodeState(s)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
