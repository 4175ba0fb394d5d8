package main

import (
	"path/filepath"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"

	"github.com/spf13/cobra"
)

func logBackup(o *options) *cobra.Command {
	var out string
	var keys bool
	cmd := &cobra.Command{
		Use: "backup --out FILE", Short: "Back up the log of the running daemon", Args: cobra.NoArgs,
		Long: "Writes all that is in the log's file, with its snapshots and checkpoints, as it is at this moment; the daemon goes\non meanwhile, and no append waits. Archives are files already, and not in it. Without keys, what is encrypted is\nunreadable to whoever has the backup, and clients need new nonces after a restore; with them it is a secret.",
		Example: `  turnstone log backup --out /backup/turnstone-$(date +%F).cbor.zst
  turnstone log backup --keys --out /backup/secret.cbor.zst`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return usageError("say with --out which file to write")
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			p := store.PackOptions{FileOnly: true, Keys: keys, Dir: "its own"}
			if source.reader != nil {
				p.Dir = filepath.Dir(source.reader.File())
			}
			row, err := source.packFile(cmd.Context(), out, p)
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, row)
		},
	}
	cmd.Flags().StringVar(&out, "out", "", "Write to this `FILE`, which must not be there.")
	cmd.Flags().BoolVar(&keys, "keys", false, "With the keys of nonces, tickets, checkpoints, names and segments.")
	o.daemonFlags(cmd)
	o.dbFlag(cmd)
	o.outputFlag(cmd)
	return cmd
}

// compactRow is what a compaction did.
type compactRow struct {
	File   string `json:"file"`
	Before int64  `json:"before"`
	After  int64  `json:"after"`
}

func logCompact(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "compact", Short: "Give the free pages of the log's file back to the disk", Args: cobra.NoArgs,
		Long:    "Writes the log to a new file without free pages, verifies it and puts it in the place of the old one. The daemon must\nbe stopped, and the disk needs room for both. Where it fails or is interrupted, the log is as it was.",
		Example: `  turnstone log compact --data /var/lib/turnstone`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.located()
			if err != nil {
				return err
			}
			dir := c.DataDir()
			done, err := store.Compact(dir)
			if err != nil {
				return aboutFile(filepath.Join(dir, store.FileName), err)
			}
			return output.Object(cmd.OutOrStdout(), o.format, compactRow{filepath.Join(dir, store.FileName), done.Before, done.After})
		},
	}
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}
