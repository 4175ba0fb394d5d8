package main

import (
	"context"
	"errors"
	"strconv"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func allocationCommand(o *options) *cobra.Command {
	return group("allocation", "List, show and end allocations", allocationList(o), allocationShow(o), allocationClose(o))
}

func allocationList(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the allocations", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := o.allocations(cmd.Context())
			if err != nil {
				return err
			}
			w, err := output.New(cmd.OutOrStdout(), o.format)
			if err != nil {
				return usageError("%w", err)
			}
			for _, a := range list {
				if err := w.Row(a); err != nil {
					return err
				}
			}
			return w.Close()
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func allocationShow(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one allocation with its permissions, channels and usage", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			list, err := o.allocations(cmd.Context())
			if err != nil {
				return err
			}
			for _, a := range list {
				if a.ID == id {
					return showAllocation(cmd, o.format, a)
				}
			}
			return errors.New("no such allocation")
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// showAllocation writes a with all it holds.
func showAllocation(cmd *cobra.Command, format string, a admin.Allocation) error {
	w, err := output.New(cmd.OutOrStdout(), format)
	if err != nil {
		return usageError("%w", err)
	}
	if !w.Table() {
		return output.Object(cmd.OutOrStdout(), format, a)
	}
	if err := output.Object(cmd.OutOrStdout(), format, a); err != nil {
		return err
	}
	for _, rows := range [][]any{anys(a.Permissions), anys(a.Channels), anys(a.Usage)} {
		if err := output.Section(cmd.OutOrStdout(), format, rows); err != nil {
			return err
		}
	}
	return nil
}

func anys[T any](list []T) []any {
	out := make([]any, len(list))
	for i, v := range list {
		out[i] = v
	}
	return out
}

func allocationClose(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "close ID", Short: "End an allocation", Args: cobra.ExactArgs(1),
		Long: "Ends an allocation with its permissions and channels. It returns when that is durable and nothing\nis relayed for it any more.",
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			return client.CloseAllocation(cmd.Context(), id)
		},
	}
	o.daemonFlags(cmd)
	return cmd
}

func parseID(s string) (turn.AllocationID, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usageError("%q is no allocation id", s)
	}
	return turn.AllocationID(n), nil
}

// allocations asks the daemon, else reads the log, where they are shown as of its last record.
func (o *options) allocations(ctx context.Context) ([]admin.Allocation, error) {
	source, err := o.openLog(ctx)
	if err != nil {
		return nil, err
	}
	if source.client != nil {
		return source.client.Allocations(ctx)
	}
	s, err := store.StateAt(source.records(ctx, 1), func(turn.Record) bool { return true })
	if err != nil {
		return nil, err
	}
	return describeAll(s, s.Moment()), nil
}

func describeAll(s *turn.State, m turn.Moment) []admin.Allocation {
	out := []admin.Allocation{}
	for a := range s.Allocations() {
		out = append(out, admin.Describe(a, m))
	}
	return out
}

// asOf is the moment of the wall time at, on the clock of m's boot.
func asOf(m turn.Moment, at time.Time) turn.Moment {
	d := time.Duration(at.UnixNano() - m.Wall)
	return turn.Moment{Boot: m.Boot, Uptime: m.Uptime + d, Wall: m.Wall + int64(d)}
}
