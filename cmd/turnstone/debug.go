package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

func debugCommand(o *options) *cobra.Command {
	return group("debug", "Look into the running daemon's Go runtime",
		debugDump(o, admin.DebugTrace, "Write what every goroutine does, for go tool trace",
			"Writes an execution trace. Where the flight recorder runs (turnstone debug record) it is of the last ten seconds or more,\nat once: what led to what has just been seen. Else the daemon is looked at for the time of --for.", true),
		debugDump(o, admin.DebugProfile, "Write where CPU time goes, for go tool pprof",
			"Writes a CPU profile of the time of --for.", true),
		debugDump(o, admin.DebugHeap, "Write what memory is held, for go tool pprof",
			"Writes a heap profile, of what is live after a garbage collection.", false),
		debugDump(o, admin.DebugGoroutines, "Write the stacks of all goroutines",
			"Writes the stacks of all goroutines as text.", false),
		debugRecord(o))
}

// dumpedRow is a file that was written.
type dumpedRow struct {
	File  string `json:"file"`
	Bytes int64  `json:"bytes"`
}

func debugDump(o *options, what, short, long string, lasts bool) *cobra.Command {
	var out string
	var d time.Duration
	cmd := &cobra.Command{
		Use: what, Short: short, Args: cobra.NoArgs,
		Long:    long + "\nThe file is there whole or not at all.",
		Example: fmt.Sprintf("  turnstone debug %s --out turnstone.%s", what, what),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usageError("--out is missing: the file to write")
			}
			if lasts && (d <= 0 || d > 10*time.Minute) {
				return usageError("--for has to be above zero, and at most 10m")
			}
			client, err := o.client()
			if err != nil {
				return err
			}
			n, err := dump(cmd.Context(), client, what, d, out)
			if err != nil {
				return fmt.Errorf("write %s: %w", out, err)
			}
			return output.Object(cmd.OutOrStdout(), o.format, dumpedRow{out, n})
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "Write to this `FILE`, which is replaced.")
	if lasts {
		cmd.Flags().DurationVar(&d, "for", 5*time.Second, "Look for this `DURATION`.")
	} else {
		d = time.Second // which nothing looks at
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// dump writes a file beside out and renames it.
func dump(ctx context.Context, client *admin.Client, what string, d time.Duration, out string) (n int64, err error) {
	f, err := os.CreateTemp(filepath.Dir(out), "."+filepath.Base(out)+".*") // mode 0600: there may be secrets in memory
	if err != nil {
		return 0, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	n, err = client.Debug(ctx, what, d, f)
	if err = errors.Join(err, f.Close()); err != nil {
		return n, err
	}
	return n, os.Rename(f.Name(), out)
}

func debugRecord(o *options) *cobra.Command {
	var off bool
	cmd := &cobra.Command{
		Use: "record", Short: "Start the flight recorder", Args: cobra.NoArgs,
		Long:    "Has the daemon remember what every goroutine did in the last ten seconds or more, up to 64 MiB, so that\nturnstone debug trace can show what led to what was seen. It costs the daemon some CPU time, and ends with it.",
		Example: "  turnstone debug record\n  turnstone debug trace --out turnstone.trace\n  turnstone debug record --off",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			f, err := client.Record(cmd.Context(), !off)
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, f)
		},
	}
	cmd.Flags().BoolVar(&off, "off", false, "Stop it.")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}
