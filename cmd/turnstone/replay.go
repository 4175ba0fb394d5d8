package main

import (
	"context"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// replayed is the state at a moment as it is shown. Before the first event there is
// no log to name, and no time.
type replayed struct {
	Seq         turn.Seq           `json:"seq"`
	Time        time.Time          `json:"time,omitzero"` // of the last record
	At          time.Time          `json:"at,omitzero"`
	Log         string             `json:"log,omitempty"`
	Epoch       uint64             `json:"epoch"`
	Digest      string             `json:"digest"`
	Count       int                `json:"count"`
	Allocations []admin.Allocation `json:"allocations" table:"-"`

	Reservations []admin.Reservation `json:"reservations" table:"-"`
}

func replayCommand(o *options) *cobra.Command {
	var at string
	var to uint64
	var diffMaps bool
	cmd := &cobra.Command{
		Use: "replay --at TIME | --to SEQ", Short: "Show the state at any moment of the log", Args: cobra.NoArgs,
		Long: "Folds the log up to a moment and shows who was there. --at takes RFC 3339 or a duration before now, such as\n10m, and means the last record whose predecessors are all of then or before; --to takes a sequence, and means\nthe last record that ends at or before it. What was overdue then is shown as overdue. Without either it is the\nend of the log. The digest is of the whole state: two logs with the same one hold the same.",
		Example: `  turnstone replay --at 2026-01-02T15:04:05Z
  turnstone replay --at 10m -o table
  turnstone replay --to 4711 --db copy-of-log.db -o json`,
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
			until := func(turn.Record) bool { return true }
			switch {
			case cmd.Flags().Changed("to"):
				until = func(r turn.Record) bool { return r.Last() <= turn.Seq(to) }
			case at != "":
				until = func(r turn.Record) bool { return r.Moment.Wall <= when.UnixNano() }
			}
			s, next, err := source.stateAt(cmd.Context(), until)
			if err != nil {
				return err
			}
			remark(cmd, s, next, turn.Seq(to))
			if diffMaps {
				list, err := o.comparePinned(s)
				if err != nil {
					return err
				}
				return showDifferences(cmd, o.format, list)
			}
			return showState(cmd, o.format, s, when)
		},
	}
	cmd.Flags().StringVar(&at, "at", "", "The moment: `TIME` in RFC 3339, or how long ago.")
	cmd.Flags().Uint64Var(&to, "to", 0, "The sequence `SEQ`.")
	cmd.Flags().BoolVar(&diffMaps, "diff-maps", false, "Hold the state against the kernel's live maps instead of showing it; exits 3 where they relay what it does not grant.")
	cmd.Flags().StringVar(&o.kernel, "kernel-instance", "", "`NAME` of the pins, for --diff-maps; default: as configured.")
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// stateAt folds the log while until says so, and yields the record it stopped at, if any.
func (s *logSource) stateAt(ctx context.Context, until func(turn.Record) bool) (state *turn.State, next *turn.Record, err error) {
	state, err = store.StateAt(s.records(ctx, 1), func(r turn.Record) bool {
		if until(r) {
			return true
		}
		next = &r
		return false
	})
	return state, next, err
}

// remark says on stderr where the log does not reach as far as was asked for.
func remark(cmd *cobra.Command, s *turn.State, next *turn.Record, to turn.Seq) {
	switch {
	case s.Seq() == 0 && next == nil:
		cmd.PrintErrln("the log is empty")
	case s.Seq() == 0:
		cmd.PrintErrf("that is before the first record, events %d to %d at %s\n", next.First, next.Last(), next.Moment.WallTime().Format(time.RFC3339Nano))
	case to > s.Seq() && next == nil:
		cmd.PrintErrf("the log ends at event %d\n", s.Seq())
	}
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

// showState writes s, as of at where that is set, else as of its last record.
func showState(cmd *cobra.Command, f output.Format, s *turn.State, at time.Time) error {
	digest, err := stateDigest(s)
	if err != nil {
		return err
	}
	r := replayed{Seq: s.Seq(), At: at.UTC(), Epoch: s.Epoch(), Digest: digest, Count: s.Len()}
	m := s.Moment()
	if s.Seq() > 0 {
		r.Time, r.Log = m.WallTime(), s.Log().String()
		if at.IsZero() {
			r.At = r.Time
		}
		m = asOf(m, r.At)
	}
	r.Allocations, r.Reservations = describeAll(s, m), admin.Reservations(s, m)
	if err := output.Object(cmd.OutOrStdout(), f, r); err != nil {
		return err
	}
	if err := output.Section(cmd.OutOrStdout(), f, "allocations", r.Allocations); err != nil {
		return err
	}
	return output.Section(cmd.OutOrStdout(), f, "reservations", r.Reservations)
}

// asOf is the moment of the wall time at, on the clock of m's boot.
func asOf(m turn.Moment, at time.Time) turn.Moment {
	d := time.Duration(at.UnixNano() - m.Wall)
	return turn.Moment{Boot: m.Boot, Uptime: m.Uptime + d, Wall: m.Wall + int64(d)}
}
