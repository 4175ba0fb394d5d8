package main

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// packRow is what was written.
type packRow struct {
	File    string   `json:"file"`
	Last    turn.Seq `json:"last"`
	Records uint64   `json:"records"`
	Bytes   int64    `json:"bytes"`
	Chain   string   `json:"chain"`
	Root    string   `json:"root"`
}

func logExport(o *options) *cobra.Command {
	var from, to uint64
	var out string
	cmd := &cobra.Command{
		Use: "export", Short: "Write the records of the log to a file or stream", Args: cobra.NoArgs,
		Long: "Writes the records of the log as they are, with those of its archives and the snapshots between them: a CBOR\nsequence in zstd, from which turnstone log import makes a log again. --from begins at or before an event, where\nthere is a snapshot to stand on. With an output format it writes the events instead, as turnstone log dump does.",
		Example: `  turnstone log export --out log.cbor.zst
  turnstone log export --from 100000 --to 200000 | ssh other 'cat > part.cbor.zst'
  turnstone log export -o jsonl --out events.jsonl`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if to > 0 && from > to {
				return usageError("--from %d is behind --to %d", from, to)
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			if cmd.Flags().Changed("output") {
				return exportEvents(cmd, o.format, source, turn.Seq(from), turn.Seq(to), out)
			}
			if out == "" {
				if output.Terminal(cmd.OutOrStdout()) {
					return usageError("an export is not for a terminal: say with --out where to, or choose a format with -o")
				}
				_, err := source.pack(cmd.Context(), cmd.OutOrStdout(), store.PackOptions{From: turn.Seq(from), To: turn.Seq(to)})
				return err
			}
			row, err := source.packFile(cmd.Context(), out, store.PackOptions{From: turn.Seq(from), To: turn.Seq(to)})
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, row)
		},
	}
	cmd.Flags().Uint64Var(&from, "from", 0, "Begin at or before the event `SEQ`; default: with all there is.")
	cmd.Flags().Uint64Var(&to, "to", 0, "The last `SEQ`; default: the end.")
	cmd.Flags().StringVar(&out, "out", "", "Write to this `FILE`, which must not be there; default: stdout.")
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// exportEvents writes events as log dump does.
func exportEvents(cmd *cobra.Command, f output.Format, source *logSource, from, to turn.Seq, out string) error {
	if out == "" {
		return source.dump(cmd.Context(), cmd.OutOrStdout(), f, from, to, nil)
	}
	return createFile(out, func(w io.Writer) error { return source.dump(cmd.Context(), w, f, from, to, nil) })
}

// pack writes a pack in zstd.
func (s *logSource) pack(ctx context.Context, w io.Writer, o store.PackOptions) (end store.PackEnd, err error) {
	packed, err := store.Compress(w)
	if err != nil {
		return end, err
	}
	if s.client == nil {
		end, err = store.WritePack(ctx, packed, s.reader, o)
	} else {
		var body io.ReadCloser
		if body, err = s.client.Pack(ctx, o); err == nil {
			end, err = store.CopyPack(packed, body)
			_ = body.Close() // only read
		}
	}
	if err != nil {
		return end, err
	}
	return end, packed.Close()
}

// packFile writes a pack to a file that is there whole and durable, or not at all.
func (s *logSource) packFile(ctx context.Context, file string, o store.PackOptions) (row packRow, err error) {
	var end store.PackEnd
	err = createFile(file, func(w io.Writer) error {
		end, err = s.pack(ctx, w, o)
		return err
	})
	if err != nil {
		return row, err
	}
	info, err := os.Stat(file)
	if err != nil {
		return row, err
	}
	return packRow{
		File: file, Last: end.Last, Records: end.Records, Bytes: info.Size(), Chain: hex.EncodeToString(end.Chain[:]), Root: hex.EncodeToString(end.Root[:]),
	}, nil
}

// createFile makes a file of what write writes, mode 0600. It never replaces one.
func createFile(file string, write func(io.Writer) error) (err error) {
	if _, err := os.Lstat(file); !errors.Is(err, os.ErrNotExist) {
		return errors.Join(err, fmt.Errorf("%s is there already", file))
	}
	out, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	err = write(out)
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		return err
	}
	if err := os.Link(out.Name(), file); err != nil { // unlike a rename it fails where somebody made one meanwhile
		return err
	}
	dir, err := os.Open(filepath.Dir(file))
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
