package main

import (
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// replayed is the state at a moment as it is shown.
type replayed struct {
	Seq         turn.Seq           `json:"seq"`
	Time        time.Time          `json:"time"`
	At          time.Time          `json:"at"`
	Log         turn.LogID         `json:"log"`
	Epoch       uint64             `json:"epoch"`
	Digest      string             `json:"digest"`
	Count       int                `json:"count"`
	Allocations []admin.Allocation `json:"allocations" table:"-"`
}

func replayCommand(o *options) *cobra.Command {
	var at string
	var to uint64
	cmd := &cobra.Command{
		Use: "replay --at TIME | --to SEQ", Short: "Show the state at any moment of the log", Args: cobra.NoArgs,
		Long: "Folds the log up to a moment and shows who was there. --at takes RFC 3339 or a duration before now, such as\n10m, and means the last record whose predecessors are all of then or before; --to takes a sequence, and means\nthe last record that ends at or before it. What was overdue then is shown as overdue. Without either it is the end of the log.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("at") && cmd.Flags().Changed("to") {
				return usageError("--at and --to exclude each other")
			}
			when, err := parseTime(at)
			if err != nil {
				return err
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			s, err := store.StateAt(source.records(cmd.Context(), 1), func(r turn.Record) bool {
				switch {
				case cmd.Flags().Changed("to"):
					return r.Last() <= turn.Seq(to)
				case at != "":
					return r.Moment.Wall <= when.UnixNano()
				}
				return true
			})
			if err != nil {
				return err
			}
			m := s.Moment()
			if at != "" && s.Seq() > 0 {
				m = asOf(m, when)
			}
			return showState(cmd, o.format, s, m)
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "the moment: RFC 3339, or how long ago")
	cmd.Flags().Uint64Var(&to, "to", 0, "the sequence")
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// parseTime reads RFC 3339 or a duration before now.
func parseTime(s string) (time.Time, error) {
	if s == "" {
		return time.Time{}, nil
	}
	if ago, err := time.ParseDuration(strings.TrimPrefix(s, "-")); err == nil {
		return time.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, usageError("%q is neither RFC 3339, such as 2026-01-02T15:04:05Z, nor a duration", s)
	}
	return t, nil
}

func showState(cmd *cobra.Command, format string, s *turn.State, m turn.Moment) error {
	digest, err := stateDigest(s)
	if err != nil {
		return err
	}
	r := replayed{
		Seq: s.Seq(), Time: s.Moment().WallTime(), At: m.WallTime(), Log: s.Log(), Epoch: s.Epoch(), Digest: digest,
		Count: s.Len(), Allocations: describeAll(s, m),
	}
	w, err := output.New(cmd.OutOrStdout(), format)
	if err != nil {
		return usageError("%w", err)
	}
	if err := output.Object(cmd.OutOrStdout(), format, r); err != nil || !w.Table() {
		return err
	}
	return output.Section(cmd.OutOrStdout(), format, anys(r.Allocations))
}
