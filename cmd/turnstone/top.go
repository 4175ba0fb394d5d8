package main

import (
	"errors"
	"os"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/cmd/turnstone/internal/top"

	"github.com/spf13/cobra"
)

// shortestTop is the shortest interval.
const shortestTop = 100 * time.Millisecond

func topCommand(o *options) *cobra.Command {
	interval, count := time.Second, 0
	cmd := &cobra.Command{
		Use: "top", Short: "Watch the daemon live in the terminal", Args: cobra.NoArgs,
		Long: `Shows what goes through the running daemon by path and direction, its busiest channels, and how its log and the
kernel's side are. q or Ctrl-C quits, p pauses. While the daemon is away it says so, and goes on when that is back.
NO_COLOR is heeded.

Elsewhere than on a terminal, and with -o, it prints an object for each interval: rates are by the second.`,
		Example: `  turnstone top
  turnstone top --interval 5s
  turnstone top -o jsonl --count 3 | jq '.paths[] | {path, to_peer: .to_peer.bytes}'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if interval < shortestTop || count < 0 {
				return usageError("--interval is %v at least, --count not below 0", shortestTop)
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			if _, err := client.Status(cmd.Context()); err != nil { // later it may be away
				return err
			}
			if o.format == "" && count == 0 && output.Terminal(cmd.OutOrStdout()) && output.Terminal(os.Stdin) {
				return top.Run(cmd.Context(), client.Traffic, interval, os.Stdin, os.Stdout)
			}
			if o.format == output.Table {
				return usageError("a table is what it shows on a terminal without -o and --count: want json, jsonl or csv")
			}
			if o.format == "" {
				o.format = output.JSONL
			}
			return printTraffic(cmd, o.format, client, interval, count)
		},
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	cmd.Flags().DurationVar(&interval, "interval", interval, "How long each `INTERVAL` is.")
	cmd.Flags().IntVar(&count, "count", 0, "End after `N` intervals; 0: never.")
	return cmd
}

// printTraffic writes an object for each interval, and says on stderr when the daemon goes away and comes back.
func printTraffic(cmd *cobra.Command, f output.Format, client *admin.Client, interval time.Duration, count int) error {
	w := output.New(cmd.OutOrStdout(), f)
	n, away := 0, false
	for t, err := range top.Follow(cmd.Context(), client.Traffic, interval) {
		if err != nil {
			if !away {
				cmd.PrintErrf("%v: asking again\n", err)
			}
			away = true
			continue
		}
		if away {
			cmd.PrintErrln("the daemon is back")
			away = false
		}
		if t.Seconds == 0 {
			continue // how it is at the beginning: there are no rates yet
		}
		if err := errors.Join(w.Row(t), w.Flush()); err != nil {
			return err
		}
		if n++; n == count {
			break
		}
	}
	return w.Close()
}
