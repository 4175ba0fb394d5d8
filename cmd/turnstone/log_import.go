package main

import (
	"encoding/hex"
	"errors"
	"fmt"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/spf13/cobra"
)

// importRow is the log that was made.
type importRow struct {
	Data    string   `json:"data"`
	First   turn.Seq `json:"first"`
	Last    turn.Seq `json:"last"`
	Records uint64   `json:"records"`
	Events  uint64   `json:"events"`
	Chain   string   `json:"chain"`
	Root    string   `json:"root"`
}

func logImport(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "import FILE... --data DIR", Short: "Make a log of an export, a backup or archives", Args: cobra.MinimumNArgs(1),
		Long: "Makes a log of exports, backups or archives, given in their order; a directory stands for the archives in it. Every\nrecord is verified, and at the end the log as a whole, before it is put in its place. A log that is there is never\nreplaced.",
		Example: `  turnstone log import log.cbor.zst --data /tmp/replayed
  turnstone log import /var/lib/turnstone/archive --data /tmp/history`,
		RunE: func(cmd *cobra.Command, args []string) error {
			row, err := o.makeLog(cmd, args, store.ImportOptions{})
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, row)
		},
	}
	o.dataFlag(cmd)
	o.outputFlag(cmd)
	return cmd
}

// dataFlag is for commands that make a log: they never ask a daemon.
func (o *options) dataFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.data, "data", "", "`DIR` to make the log in.")
}

func (o *options) makeLog(cmd *cobra.Command, args []string, i store.ImportOptions) (importRow, error) {
	if o.data == "" {
		return importRow{}, usageError("say with --data in which directory to make the log")
	}
	files, err := store.PackFiles(args)
	if err != nil {
		return importRow{}, err
	}
	report, err := store.Import(cmd.Context(), o.data, files, i)
	if errors.Is(err, store.ErrExists) {
		return importRow{}, fmt.Errorf("%w: move it away, or choose another directory", err)
	}
	if err != nil {
		return importRow{}, err
	}
	return importRow{
		Data: o.data, First: report.Last - turn.Seq(report.Events) + 1, Last: report.Last, Records: report.Records, Events: report.Events,
		Chain: hex.EncodeToString(report.Chain[:]), Root: hex.EncodeToString(report.Root[:]),
	}, nil
}

func logRestore(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "restore FILE --data DIR", Short: "Put a backup in the place of a lost log", Args: cobra.ExactArgs(1),
		Long:    "Makes the log of a backup in a directory that has none, with the checkpoints and the keys that the backup has and\nthe directory has not. Since nobody knows what was recorded after the backup, an epoch begins: what was signed,\nand what the kernel's maps hold, of what is lost is told apart from what comes now.",
		Example: `  turnstone log restore backup.cbor.zst --data /var/lib/turnstone`,
		RunE: func(cmd *cobra.Command, args []string) error {
			row, err := o.makeLog(cmd, args, store.ImportOptions{Files: true, Then: beginEpoch})
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, row)
		},
	}
	o.dataFlag(cmd)
	o.outputFlag(cmd)
	return cmd
}

// beginEpoch appends the beginning of an epoch to the log in dir, as of now.
func beginEpoch(dir string) error {
	clock, err := relay.HostClock()
	if err != nil {
		return err
	}
	l, err := store.Open(dir, store.Options{NoSnapshots: true, Version: version()})
	if err != nil {
		return err
	}
	s := l.State()
	err = l.Append(turn.Record{First: s.Seq() + 1, Moment: clock(), Events: []turn.Event{turn.EpochBegan{Log: s.Log(), Epoch: s.Epoch() + 1}}})
	return errors.Join(err, l.Close())
}
