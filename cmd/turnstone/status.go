package main

import (
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

func statusCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what the daemon is doing", Args: cobra.NoArgs,
		Long: "Shows the running daemon: whether it answers requests, where it listens and relays, how far its log is, what it\nhas relayed since it started, and what it dropped and why.",
		Example: `  turnstone status
  turnstone status -o json | jq -e .ready`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, st)
		},
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}
