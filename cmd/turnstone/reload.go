package main

import (
	"fmt"
	"io"
	"strings"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

type reloadRow struct {
	State   string          `json:"state"`
	Changed []config.Change `json:"changed"`
	Restart []string        `json:"restart"`
}

func reloadCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "reload", Short: "Have the daemon read its configuration again", Args: cobra.NoArgs,
		Long:    "Has the daemon read its configuration again, as SIGHUP does, and shows what changed. What the new one forbids is\nrevoked: peers, and the allocations of users that are gone. It returns when that is durable and relayed no more. Where\nthe new one is wrong, or cannot be had whole, nothing changes. Calls go on; a listener that is gone serves the\nallocations it has until they end. Settings that wait for a restart are named.",
		Example: "  turnstone check-config --config /etc/turnstone/turnstone.toml && turnstone reload\n  turnstone reload -o json | jq -r '.restart[]'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			done, err := client.Reload(cmd.Context())
			if err != nil {
				return err
			}
			if o.format.For(cmd.OutOrStdout()) == output.Table {
				return showReloaded(cmd.OutOrStdout(), done)
			}
			return output.Object(cmd.OutOrStdout(), o.format, reloadRow{"reloaded", done.Changed, done.Restart})
		},
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// showReloaded shows people what a reload did.
func showReloaded(out io.Writer, done admin.Reloaded) error {
	var b strings.Builder
	for _, c := range done.Changed {
		fmt.Fprintf(&b, "%s: %s → %s\n", c.Setting, c.Before, c.After)
	}
	if len(done.Changed) == 0 {
		b.WriteString("nothing has changed\n")
	}
	if len(done.Restart) > 0 {
		fmt.Fprintf(&b, "\nwaiting for a restart: %s\n", strings.Join(done.Restart, ", "))
	}
	_, err := io.WriteString(out, b.String())
	return err
}
