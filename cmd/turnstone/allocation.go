package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/spf13/cobra"
)

func allocationCommand(o *options) *cobra.Command {
	return group("allocation", "List, show and end allocations", allocationList(o), allocationShow(o), allocationClose(o))
}

func allocationList(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "list", Short: "List the allocations", Args: cobra.NoArgs,
		Long: "Lists the allocations: those of the running daemon, else those that a log holds, as of its last record.",
		Example: `  turnstone allocation list
  turnstone allocation list -o jsonl | jq -r 'select(.username == "alice") | .id'
  turnstone allocation list --db copy-of-log.db`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := o.allocations(cmd.Context())
			if err != nil {
				return err
			}
			return output.Rows(cmd.OutOrStdout(), o.format, list)
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func allocationShow(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "show ID", Short: "Show one allocation with its permissions, channels and usage", Args: cobra.ExactArgs(1),
		Example: `  turnstone allocation show 17
  turnstone allocation show 17 -o json
  turnstone allocation show 17 --db copy-of-log.db`,
		ValidArgsFunction: o.completeAllocation,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			a, err := o.allocation(cmd.Context(), id)
			if err != nil {
				return err
			}
			return showAllocation(cmd, o.format, a, o.carried(cmd.Context(), id))
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// carriedAllocation is an allocation with what the kernel relays of it, nothing where there is no daemon to say so.
type carriedAllocation struct {
	admin.Allocation
	Kernel []kernel.Carried `json:"kernel"`
}

// showAllocation writes a with all it holds, and what of it the kernel relays.
func showAllocation(cmd *cobra.Command, f output.Format, a admin.Allocation, carried []kernel.Carried) error {
	out := cmd.OutOrStdout()
	if f.For(out) == output.JSON || f.For(out) == output.JSONL {
		return output.Object(out, f, carriedAllocation{a, carried})
	}
	if err := output.Object(out, f, a); err != nil {
		return err
	}
	if len(a.Addresses) > 1 { // one ends with its allocation
		if err := output.Section(out, f, "relayed addresses", a.Addresses); err != nil {
			return err
		}
	}
	if err := output.Section(out, f, "permissions", a.Permissions); err != nil {
		return err
	}
	if a.Transport == "tcp" {
		if err := output.Section(out, f, "connections", a.Connections); err != nil {
			return err
		}
	}
	if err := output.Section(out, f, "channels", a.Channels); err != nil {
		return err
	}
	if err := output.Section(out, f, "usage recorded in the log", a.Usage); err != nil {
		return err
	}
	return output.Section(out, f, "relayed by the kernel", carried)
}

// carried says of the channels of an allocation whether the kernel relays them, where there is a daemon to ask.
func (o *options) carried(ctx context.Context, id turn.AllocationID) []kernel.Carried {
	if o.db != "" {
		return nil
	}
	client, err := o.client()
	if err != nil {
		return nil
	}
	list, err := client.Carries(ctx, id)
	if err != nil {
		return nil // the daemon is away: nobody knows
	}
	return list
}

type closedRow struct {
	ID    turn.AllocationID `json:"id"`
	State string            `json:"state"`
}

func allocationClose(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "close ID", Short: "End an allocation", Args: cobra.ExactArgs(1),
		Long:              "Ends an allocation with its permissions and channels. It returns when that is durable and nothing\nis relayed for it any more.",
		Example:           "  turnstone allocation close 17",
		ValidArgsFunction: o.completeAllocation,
		RunE: func(cmd *cobra.Command, args []string) error {
			id, err := parseID(args[0])
			if err != nil {
				return err
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			if err := client.CloseAllocation(cmd.Context(), id); err != nil {
				return aboutAllocation(id, err)
			}
			return output.Object(cmd.OutOrStdout(), o.format, closedRow{id, "closed"})
		},
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func parseID(s string) (turn.AllocationID, error) {
	n, err := strconv.ParseUint(s, 10, 64)
	if err != nil {
		return 0, usageError("%q is no allocation id: want a number, as turnstone allocation list shows them", s)
	}
	return turn.AllocationID(n), nil
}

func aboutAllocation(id turn.AllocationID, err error) error {
	if errors.Is(err, relay.ErrNoAllocation) {
		return fmt.Errorf("there is no allocation %d: turnstone allocation list shows those there are", id)
	}
	return fmt.Errorf("allocation %d: %w", id, err)
}

// allocation asks the daemon for one, else reads the log.
func (o *options) allocation(ctx context.Context, id turn.AllocationID) (a admin.Allocation, err error) {
	source, err := o.openLog(ctx)
	if err != nil {
		return a, err
	}
	if source.client != nil {
		if a, err = source.client.Allocation(ctx, id); err != nil {
			err = aboutAllocation(id, err)
		}
		return a, err
	}
	s, err := source.state(ctx)
	if err != nil {
		return a, err
	}
	found := s.Allocation(id)
	if found == nil {
		return a, aboutAllocation(id, relay.ErrNoAllocation)
	}
	return admin.Describe(found, s.Moment()), nil
}

// allocations asks the daemon, else reads the log, where they are shown as of its last record.
func (o *options) allocations(ctx context.Context) ([]admin.Allocation, error) {
	return daemonOrLog(ctx, o, (*admin.Client).Allocations, describeAll)
}

// daemonOrLog asks the daemon, else reads it from the state of the log, as of its last record.
func daemonOrLog[T any](ctx context.Context, o *options, ask func(*admin.Client, context.Context) (T, error), read func(*turn.State, turn.Moment) T) (out T, err error) {
	source, err := o.openLog(ctx)
	if err != nil {
		return out, err
	}
	if source.client != nil {
		return ask(source.client, ctx)
	}
	s, err := source.state(ctx)
	if err != nil {
		return out, err
	}
	return read(s, s.Moment()), nil
}

// state is the fold of the whole log.
func (s *logSource) state(ctx context.Context) (*turn.State, error) {
	state, _, err := s.stateWithin(ctx, store.Everything(), func(error) {})
	return state, err
}

func describeAll(s *turn.State, m turn.Moment) []admin.Allocation {
	out := []admin.Allocation{}
	for a := range s.Allocations() {
		out = append(out, admin.Describe(a, m))
	}
	return out
}
