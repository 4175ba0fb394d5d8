package main

import (
	"fmt"

	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

func statusCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show what the daemon is doing", Args: cobra.NoArgs,
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

func reloadCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "reload", Short: "Have the daemon read its configuration again", Args: cobra.NoArgs,
		Long: "Has the daemon read its configuration again. What the new one forbids is revoked: peers, and the\nallocations of users that are gone. It returns when that is durable and relayed no more.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			return client.Reload(cmd.Context())
		},
	}
	o.daemonFlags(cmd)
	return cmd
}

func drainCommand(o *options) *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "drain", Short: "Make no new allocations; those that are there go on", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			if err := client.Drain(cmd.Context(), !off); err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "draining: %t, %d allocations left\n", st.Draining, st.Allocations)
			return err
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "make new allocations again")
	o.daemonFlags(cmd)
	return cmd
}
