package main

import (
	"context"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func userBan(o *options) *cobra.Command {
	var realm string
	var long time.Duration
	cmd := &cobra.Command{
		Use: "ban NAME", Short: "Keep a user out", Args: cobra.ExactArgs(1),
		Long: "Ends what a user has, and has the daemon answer 403 (Forbidden) to all that the user asks for from then on. It returns\nwhen that is durable and nothing is relayed for the user any more. A user of time-limited credentials is banned by\nwhat is behind the expiry. Whoever is banned already is banned anew.",
		Example: `  turnstone user ban mallory
  turnstone user ban mallory --for 24h
  turnstone user ban mallory --realm example.org -o json`,
		ValidArgsFunction: o.completeUser,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("for") && long < time.Second {
				return usageError("--for has to be a second or more")
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			banned, err := client.BanUser(cmd.Context(), realm, args[0], long)
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, banned)
		},
	}
	cmd.Flags().StringVar(&realm, "realm", "", "`REALM` of the user; default: the daemon's first.")
	cmd.Flags().DurationVar(&long, "for", 0, "Lift the ban after this `DURATION`; default: when unban says so.")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func userUnban(o *options) *cobra.Command {
	var realm string
	cmd := &cobra.Command{
		Use: "unban NAME", Short: "Let a user in again", Args: cobra.ExactArgs(1),
		Long:              "Lifts the ban of a user, who has to begin anew: what the ban ended is gone.",
		Example:           "  turnstone user unban mallory",
		ValidArgsFunction: o.completeBanned,
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			if err := client.UnbanUser(cmd.Context(), realm, args[0]); err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, unbannedRow{args[0], "unbanned"})
		},
	}
	cmd.Flags().StringVar(&realm, "realm", "", "`REALM` of the user; default: the daemon's first.")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

type unbannedRow struct {
	Name  string `json:"name"`
	State string `json:"state"`
}

func userBanned(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "banned", Short: "List the users who are banned", Args: cobra.NoArgs,
		Long: "Lists the bans: those of the running daemon, else those that a log holds, as of its last record.",
		Example: `  turnstone user banned
  turnstone user banned --db copy-of-log.db -o csv`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := o.bans(cmd.Context())
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

// bans asks the daemon, else reads the log, where they are shown as of its last record.
func (o *options) bans(ctx context.Context) ([]admin.Ban, error) {
	return daemonOrLog(ctx, o, (*admin.Client).Bans, admin.Bans)
}

// completeUser completes an argument that is the name of a user.
func (o *options) completeUser(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.completing(func(a admin.Allocation) []cobra.Completion { return []cobra.Completion{turn.Owner(a.Username)} })(cmd, args, typed)
}

// completeBanned completes an argument that is the name of a user who is banned.
func (o *options) completeBanned(cmd *cobra.Command, args []string, _ string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
	client, err := o.client()
	if err != nil || len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
	defer cancel()
	list, _ := client.Bans(ctx) // silent where no daemon answers in time
	for _, b := range list {
		out = append(out, cobra.CompletionWithDesc(b.Name, b.Realm))
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
