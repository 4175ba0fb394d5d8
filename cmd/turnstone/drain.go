package main

import (
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

type drainRow struct {
	Draining    bool `json:"draining"`
	Allocations int  `json:"allocations"`
}

func drainCommand(o *options) *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "drain", Short: "Make no new allocations; those that are there go on", Args: cobra.NoArgs,
		Long: "Has the daemon refuse new allocations (508), while those that are there are refreshed and relayed for. It is not\nready any more, and forgets about it with a restart.",
		Example: `  turnstone drain
  turnstone drain --off
  until [ "$(turnstone status -o json | jq .allocations)" = 0 ]; do sleep 5; done`,
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
			return output.Object(cmd.OutOrStdout(), o.format, drainRow{st.Draining, st.Allocations})
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "Make new allocations again.")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}
