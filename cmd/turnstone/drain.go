package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

type drainRow struct {
	Draining    bool `json:"draining"`
	Allocations int  `json:"allocations"`
}

func drainCommand(o *options) *cobra.Command {
	var cancel bool
	var timeout time.Duration
	cmd := &cobra.Command{
		Use: "drain", Short: "Make no new allocations; those that are there go on", Args: cobra.NoArgs,
		Long: "Has the daemon refuse new allocations (508, or 300 with another server where alternate-servers are configured), while\nthose that are there are refreshed and relayed for. It is not ready any more, and forgets about it with a restart.\n\nWith --timeout the daemon ends once there are no allocations left, or when the time is over; what is left then comes\nback where it is started again. The command shows how many are left, and exits 0 if the daemon ended empty, else 1.\nInterrupted, it leaves the drain going on.",
		Example: `  turnstone drain
  turnstone drain --timeout 10m
  turnstone drain --cancel`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			if timeout < 0 || (cmd.Flags().Changed("timeout") && timeout == 0) {
				return usageError("--timeout has to be above zero")
			}
			if timeout > 0 && !cancel {
				return drainOut(cmd.Context(), client, timeout, o.format, cmd.OutOrStdout(), cmd.ErrOrStderr())
			}
			if err := client.Drain(cmd.Context(), !cancel); err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, drainRow{st.Draining, st.Allocations})
		},
	}
	cmd.Flags().BoolVar(&cancel, "cancel", false, "Make new allocations again, and have the daemon go on.")
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "End the daemon when there are no allocations left, and after this `DURATION` at the latest.")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// drainOut shows a drain to its end.
func drainOut(ctx context.Context, client *admin.Client, timeout time.Duration, f output.Format, out, diagnostics io.Writer) error {
	w := output.New(out, f)
	var last admin.Drain
	for p, err := range client.DrainOut(ctx, timeout) {
		if ctx.Err() != nil {
			return errors.Join(errors.New("interrupted: the drain goes on, and turnstone drain --cancel ends it"), w.Close())
		}
		if err != nil {
			return errors.Join(err, w.Close())
		}
		if err := errors.Join(w.Row(p), w.Flush()); err != nil {
			return err
		}
		last = p
	}
	if err := w.Close(); err != nil {
		return err
	}
	switch last.State {
	case admin.Drained:
		fmt.Fprintln(diagnostics, "drained: no allocation is left, the daemon ends")
		return nil
	case admin.Deadline:
		return fmt.Errorf("deadline: %d allocations were left, the daemon ends; they come back if it is started again", last.Allocations)
	}
	return fmt.Errorf("cancelled: the daemon goes on, with %d allocations", last.Allocations)
}
