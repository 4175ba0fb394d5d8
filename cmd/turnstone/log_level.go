package main

import (
	"slices"
	"strings"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
)

func logLevelCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "log-level LEVEL", Short: "Have the daemon log more or less", Args: cobra.ExactArgs(1),
		Long:              "Changes the level of the daemon's log lines (trace, debug, info, warn, error) until the next reload or restart,\nwhich put that of the configuration in force again. Nothing else is touched.",
		Example:           "  turnstone log-level debug",
		ValidArgsFunction: cobra.FixedCompletions(admin.Levels, cobra.ShellCompDirectiveNoFileComp),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !slices.Contains(admin.Levels, args[0]) {
				return usageError("%q is no level: want one of %s", args[0], strings.Join(admin.Levels, ", "))
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			l, err := client.SetLogLevel(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, l)
		},
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// SetLogLevel is for the admin interface.
func (d *served) SetLogLevel(level string) admin.LogLevel {
	d.reload.Lock() // which sets it too
	defer d.reload.Unlock()
	before := zerolog.GlobalLevel().String()
	to, err := zerolog.ParseLevel(level)
	if err != nil {
		return admin.LogLevel{Level: before, Before: before} // it is none of admin.Levels
	}
	zerolog.SetGlobalLevel(to)
	return admin.LogLevel{Level: level, Before: before}
}
