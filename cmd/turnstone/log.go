package main

import (
	"context"
	"io"
	"iter"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func logCommand(o *options) *cobra.Command {
	return group("log", "Read and verify the event log", logDump(o), logTail(o), logStat(o), logVerify(o), logForget(o), logCheckpoint(o), logKey(o), logProve(o), logSlice(o),
		logExport(o), logImport(o), logBackup(o), logRestore(o), logCompact(o))
}

func logDump(o *options) *cobra.Command {
	var from, to, allocation uint64
	cmd := &cobra.Command{
		Use: "dump", Short: "Print the events of the log", Args: cobra.NoArgs,
		Long: "Prints the events of the running daemon's log, else of a log's file, in their order. A table leaves out what\nonly machines read; the other formats have all.",
		Example: `  turnstone log dump
  turnstone log dump --allocation 17 -o table
  turnstone log dump --from 1000 --to 2000 -o jsonl | jq -r 'select(.kind == "AllocationDeleted") | .event.reason'
  turnstone log dump --db copy-of-log.db`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to > 0 && from > to {
				return usageError("--from %d is behind --to %d", from, to)
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			return source.dump(cmd.Context(), cmd.OutOrStdout(), o.format, turn.Seq(from), turn.Seq(to), func(e turn.Event) bool {
				return allocation == 0 || turn.AllocationOf(e) == turn.AllocationID(allocation)
			})
		},
	}
	cmd.Flags().Uint64Var(&from, "from", 0, "The first `SEQ` to print; default: the first there is.")
	cmd.Flags().Uint64Var(&to, "to", 0, "The last `SEQ` to print; default: the end.")
	cmd.Flags().Uint64Var(&allocation, "allocation", 0, "Print only the history of the allocation `ID`.")
	o.completeFilters(cmd)
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// dump writes the events from from, 0 for the first there is, to to, 0 for the last, that wanted accepts, nil for all.
func (s *logSource) dump(ctx context.Context, w io.Writer, f output.Format, from, to turn.Seq, wanted func(turn.Event) bool) error {
	if from == 0 {
		var err error
		if from, _, err = s.span(ctx); err != nil {
			return err
		}
	}
	return writeEvents(w, f, s.records(ctx, from), func(r turn.Record, i int) (bool, bool) {
		seq := r.First + turn.Seq(i)
		if to > 0 && seq > to {
			return false, false
		}
		return seq >= from && (wanted == nil || wanted(r.Events[i])), true
	}, false)
}

// writeEvents writes the events that show accepts, until it says that there are no more to come.
func writeEvents(to io.Writer, f output.Format, records iter.Seq2[turn.Record, error], show func(turn.Record, int) (show, more bool), follow bool) error {
	w := output.New(to, f)
	for r, err := range records {
		if err != nil {
			_ = w.Close() // the error that matters is the log's
			return err
		}
		for i := range r.Events {
			shown, more := show(r, i)
			if !more {
				return w.Close()
			}
			if shown {
				if err := w.Row(rowOf(r, i)); err != nil {
					return err
				}
			}
		}
		if follow {
			if err := w.Flush(); err != nil {
				return err
			}
		}
	}
	return w.Close()
}

func logTail(o *options) *cobra.Command {
	var last uint64
	cmd := &cobra.Command{
		Use: "tail", Short: "Follow the log of the running daemon", Args: cobra.NoArgs,
		Long: "Prints the last events of the running daemon's log, and then each as soon as it is durable, until it is\ninterrupted or the daemon stops.",
		Example: `  turnstone log tail
  turnstone log tail -n 0 -o jsonl | jq 'select(.kind == "AllocationCreated")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			st, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			from := st.Seq + 1 - min(turn.Seq(last), st.Seq)
			err = writeEvents(cmd.OutOrStdout(), o.format, decodeEach(client.Raw(cmd.Context(), from, true), client.Keys(cmd.Context())), func(r turn.Record, i int) (bool, bool) {
				return r.First+turn.Seq(i) >= from, true
			}, true)
			if cmd.Context().Err() != nil {
				return nil //nolint:nilerr // the user has seen enough
			}
			return err
		},
	}
	cmd.Flags().Uint64VarP(&last, "lines", "n", 10, "`N` events to begin with.")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// decodeEach decodes records one by one, as they come.
func decodeEach(raw iter.Seq2[[]byte, error], keys *store.Keyring) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		for b, err := range raw {
			var r turn.Record
			if err == nil {
				r, err = store.Decode(b, keys)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}
