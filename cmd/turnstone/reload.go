package main

import (
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

type reloadRow struct {
	State   string   `json:"state"`
	Restart []string `json:"restart"`
}

func reloadCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "reload", Short: "Have the daemon read its configuration again", Args: cobra.NoArgs,
		Long:    "Has the daemon read its configuration again, as SIGHUP does. What the new one forbids is revoked: peers, and the\nallocations of users that are gone. It returns when that is durable and relayed no more. Where the new one is\nwrong, nothing changes. Settings that wait for a restart are named.",
		Example: "  turnstone check-config --config /etc/turnstone/turnstone.toml && turnstone reload",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			restart, err := client.Reload(cmd.Context())
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, reloadRow{"reloaded", restart})
		},
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}
