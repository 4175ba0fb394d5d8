package main

import (
	"context"
	"os"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/kernel"

	"github.com/spf13/cobra"
)

// completionPatience is how long a shell waits for the daemon. Beyond it there is nothing to choose from.
const completionPatience = 300 * time.Millisecond

// completer yields what an allocation has for a place on the command line, each with a description behind a tab.
type completer func(a admin.Allocation) []cobra.Completion

// completing completes from the allocations of the running daemon, each text once; of --allocation alone where that is given.
// It is silent where no daemon answers in time.
func (o *options) completing(choices completer) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		const directive = cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveKeepOrder
		client, err := o.client()
		if err != nil {
			return nil, directive
		}
		ctx, cancel := context.WithTimeout(cmd.Context(), completionPatience)
		defer cancel()
		list, err := client.Allocations(ctx)
		if err != nil {
			return nil, directive
		}
		only := ""
		if f := cmd.Flags().Lookup("allocation"); f != nil && f.Changed {
			only = f.Value.String()
		}
		var out []cobra.Completion
		seen := map[string]bool{}
		for _, a := range list {
			if only != "" && a.ID.String() != only {
				continue
			}
			for _, c := range choices(a) {
				if !seen[c] {
					seen[c] = true
					out = append(out, c)
				}
			}
		}
		return out, directive
	}
}

func idOf(a admin.Allocation) []cobra.Completion {
	return []cobra.Completion{cobra.CompletionWithDesc(a.ID.String(), a.Username+" at "+a.Client)}
}

func userOf(a admin.Allocation) []cobra.Completion { return []cobra.Completion{a.Username} }

func clientOf(a admin.Allocation) []cobra.Completion {
	return []cobra.Completion{cobra.CompletionWithDesc(a.Client, a.Username)}
}

func relayedOf(a admin.Allocation) []cobra.Completion { return a.Relayed }

func channelsOf(a admin.Allocation) (out []cobra.Completion) {
	for _, c := range a.Channels {
		out = append(out, cobra.CompletionWithDesc(c.Number.String(), c.Peer+" of "+a.Username))
	}
	return out
}

func peersOf(a admin.Allocation) (out []cobra.Completion) {
	for _, p := range a.Permissions {
		out = append(out, p.Peer)
	}
	for _, c := range a.Channels {
		out = append(out, c.Peer)
	}
	for _, c := range a.Connections {
		out = append(out, c.Peer)
	}
	return out
}

// completeAllocation completes an argument that is an allocation id.
func (o *options) completeAllocation(cmd *cobra.Command, args []string, typed string) ([]cobra.Completion, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return o.completing(idOf)(cmd, args, typed)
}

// completeFilters has the flags of cmd that choose allocations completed. It comes after they are defined.
func (o *options) completeFilters(cmd *cobra.Command) {
	for name, choices := range map[string]completer{
		"allocation": idOf, "user": userOf, "client": clientOf, "relayed": relayedOf, "channel": channelsOf, "peer": peersOf,
	} {
		if cmd.Flags().Lookup(name) != nil {
			_ = cmd.RegisterFlagCompletionFunc(name, o.completing(choices)) // the flag is there
		}
	}
}

// completeInstance completes the name of pins from those there are.
func completeInstance(*cobra.Command, []string, string) (out []cobra.Completion, _ cobra.ShellCompDirective) {
	entries, err := os.ReadDir(kernel.DefaultRoot)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	for _, e := range entries {
		if e.IsDir() {
			out = append(out, e.Name())
		}
	}
	return out, cobra.ShellCompDirectiveNoFileComp
}
