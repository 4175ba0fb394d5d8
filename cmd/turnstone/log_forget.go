package main

import (
	"errors"
	"fmt"
	"time"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// forgetRow is what becomes of a segment.
type forgetRow struct {
	Segment uint64    `json:"segment"`
	First   turn.Seq  `json:"first"`
	Last    turn.Seq  `json:"last"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	State   string    `json:"state"`
	Why     string    `json:"why,omitempty"`
}

func logForget(o *options) *cobra.Command {
	var before string
	var segment uint64
	var plan bool
	cmd := &cobra.Command{
		Use: "forget --before TIME | --segment N", Short: "Erase the keys of old segments, for good", Args: cobra.NoArgs,
		Long: "Has the daemon erase the keys of encrypted segments (log.privacy), so that nobody can read their events any\nmore, nor the snapshots and index blocks under the same keys; the chain still verifies. --before takes RFC 3339\nor a duration before now, and means the segments that end before it. Only what is sealed, and covered by a later\nsnapshot, is forgotten: the rest is listed with the reason, and stays. The log records what was forgotten, and\nby whom. Copies of the keys elsewhere are yours to erase.",
		Example: `  turnstone log forget --before 720h --dry-run -o table
  turnstone log forget --before 2026-01-02T15:04:05Z
  turnstone log forget --segment 3`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			which := store.Which{Segment: segment}
			byTime, byNumber := cmd.Flags().Changed("before"), cmd.Flags().Changed("segment")
			if byTime == byNumber {
				return usageError("either --before or --segment is needed")
			}
			if byNumber && segment == 0 {
				return usageError("segments are numbered from 1: turnstone log stat shows them")
			}
			var err error
			if byTime {
				if which.Before, err = parseTime(before); err != nil {
					return err
				}
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			list, err := client.Forget(cmd.Context(), which, plan)
			if err != nil {
				return err
			}
			return showForgotten(cmd, o.format, list, which, plan)
		},
	}
	cmd.Flags().StringVar(&before, "before", "", "Forget what ends before `TIME`, in RFC 3339 or as a duration before now.")
	cmd.Flags().Uint64Var(&segment, "segment", 0, "Forget the segment `N`.")
	cmd.Flags().BoolVar(&plan, "dry-run", false, "Only say what would be forgotten.")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// showForgotten lists what was forgotten and what was not. That one segment that was named was not is an error.
func showForgotten(cmd *cobra.Command, f output.Format, list []store.Forgettable, which store.Which, plan bool) error {
	done := "forgotten"
	if plan {
		done = "to be forgotten"
	}
	rows := []forgetRow{}
	var refused error
	for _, s := range list {
		row := forgetRow{s.Segment, s.First, s.Last, s.From.UTC(), s.To.UTC(), done, s.Refused}
		if s.Refused != "" {
			row.State = "kept"
			if which.Segment != 0 {
				refused = fmt.Errorf("segment %d is not forgotten: %s", s.Segment, s.Refused)
			}
		}
		rows = append(rows, row)
	}
	if len(rows) == 0 {
		cmd.PrintErrf("no encrypted segment begins before %s and has a key\n", which.Before.UTC().Format(time.RFC3339))
	}
	return errors.Join(output.Rows(cmd.OutOrStdout(), f, rows), refused)
}
