package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"iter"
	"reflect"
	"strings"
	"time"
	"unicode"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func logCommand(o *options) *cobra.Command {
	return group("log", "Read and verify the event log", logDump(o), logTail(o), logStat(o), logVerify(o))
}

// eventRow is an event as it is shown.
type eventRow struct {
	Seq   turn.Seq       `json:"seq"`
	Time  time.Time      `json:"time"`
	Kind  string         `json:"kind"`
	Event map[string]any `json:"event"`
}

// rowOf shows event i of r.
func rowOf(r turn.Record, i int) eventRow {
	t := reflect.TypeOf(r.Events[i])
	return eventRow{Seq: r.First + turn.Seq(i), Time: r.Moment.WallTime(), Kind: t.Name(), Event: fields(reflect.ValueOf(r.Events[i]))}
}

// fields are the fields of a struct under their names in lower case, what is empty left out.
func fields(v reflect.Value) map[string]any {
	out := map[string]any{}
	for i := range v.NumField() {
		if f := v.Field(i); !f.IsZero() {
			out[snake(v.Type().Field(i).Name)] = plain(f)
		}
	}
	return out
}

func plain(v reflect.Value) any {
	switch {
	case v.Type() == reflect.TypeFor[turn.FiveTuple](), v.Type() == reflect.TypeFor[turn.Count]():
		return fields(v)
	case v.Kind() == reflect.Array && v.Type().Elem().Kind() == reflect.Uint8 && !v.Type().Implements(reflect.TypeFor[fmt.Stringer]()):
		b := make([]byte, v.Len())
		reflect.Copy(reflect.ValueOf(b), v)
		return hex.EncodeToString(b)
	case v.Kind() == reflect.Slice && v.Type().Elem() == reflect.TypeFor[turn.Refusal]():
		list := make([]any, v.Len())
		for i := range list {
			list[i] = fields(v.Index(i))
		}
		return list
	}
	return v.Interface()
}

func snake(name string) string {
	var b strings.Builder
	for i, r := range name {
		if unicode.IsUpper(r) && i > 0 && !unicode.IsUpper(rune(name[i-1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

func logDump(o *options) *cobra.Command {
	var from, to, allocation uint64
	cmd := &cobra.Command{
		Use: "dump", Short: "Print the events of the log", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			return writeEvents(cmd, o.format, source.records(cmd.Context(), turn.Seq(from)), func(r turn.Record, i int) (bool, bool) {
				seq := uint64(r.First) + uint64(i)
				if to > 0 && seq > to {
					return false, false
				}
				return seq >= from && (allocation == 0 || concerns(r.Events[i], turn.AllocationID(allocation))), true
			}, false)
		},
	}
	cmd.Flags().Uint64Var(&from, "from", 1, "first sequence")
	cmd.Flags().Uint64Var(&to, "to", 0, "last sequence (default: the end)")
	cmd.Flags().Uint64Var(&allocation, "allocation", 0, "only the history of this allocation")
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// concerns says whether e is about the allocation id.
func concerns(e turn.Event, id turn.AllocationID) bool {
	f := reflect.ValueOf(e).FieldByName("Allocation")
	return f.IsValid() && f.Uint() == uint64(id)
}

// writeEvents writes the events that show accepts, until it says that there are no more to come.
func writeEvents(cmd *cobra.Command, format string, records iter.Seq2[turn.Record, error], show func(turn.Record, int) (show, more bool), follow bool) error {
	w, err := output.New(cmd.OutOrStdout(), format)
	if err != nil {
		return usageError("%w", err)
	}
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
			err = writeEvents(cmd, o.format, decodeEach(client.Raw(cmd.Context(), from, true)), func(r turn.Record, i int) (bool, bool) {
				return r.First+turn.Seq(i) >= from, true
			}, true)
			if cmd.Context().Err() != nil {
				return nil //nolint:nilerr // the user has seen enough
			}
			return err
		},
	}
	cmd.Flags().Uint64VarP(&last, "lines", "n", 10, "events to begin with")
	o.daemonFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// decodeEach decodes records one by one, as they come.
func decodeEach(raw iter.Seq2[[]byte, error]) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		for b, err := range raw {
			var r turn.Record
			if err == nil {
				r, err = store.Decode(b)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

func logStat(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stat", Short: "Describe the log's file: segments, snapshots, sizes", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			st, err := source.stat(cmd.Context())
			if err != nil {
				return err
			}
			return showStat(cmd, o.format, st)
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

type statRow struct {
	File      string        `json:"file"`
	Size      int64         `json:"size"`
	FreePages int           `json:"free_pages"`
	Schema    uint64        `json:"schema"`
	First     turn.Seq      `json:"first"`
	Last      turn.Seq      `json:"last"`
	Records   uint64        `json:"records"`
	Bytes     uint64        `json:"bytes"`
	Segments  []segmentRow  `json:"segments" table:"-"`
	Snapshots []snapshotRow `json:"snapshots" table:"-"`
}

type segmentRow struct {
	Segment uint64    `json:"segment"`
	First   turn.Seq  `json:"first"`
	Last    turn.Seq  `json:"last"`
	Records uint64    `json:"records"`
	Bytes   uint64    `json:"bytes"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
}

type snapshotRow struct {
	Snapshot turn.Seq `json:"snapshot"`
	Size     int      `json:"size"`
	Digest   string   `json:"digest"`
}

func showStat(cmd *cobra.Command, format string, st store.Stat) error {
	row := statRow{
		File: st.File, Size: st.Size, FreePages: st.FreePages, Schema: st.Schema, First: st.First, Last: st.Last,
		Records: st.Records, Bytes: st.Bytes, Segments: []segmentRow{}, Snapshots: []snapshotRow{},
	}
	for _, g := range st.Segments {
		row.Segments = append(row.Segments, segmentRow{g.Number, g.First, g.Last, g.Records, g.Bytes, g.From.WallTime(), g.To.WallTime()})
	}
	for _, p := range st.Snapshots {
		row.Snapshots = append(row.Snapshots, snapshotRow{p.At, p.Size, hex.EncodeToString(p.Digest[:])})
	}
	w, err := output.New(cmd.OutOrStdout(), format)
	if err != nil {
		return usageError("%w", err)
	}
	if err := output.Object(cmd.OutOrStdout(), format, row); err != nil || !w.Table() {
		return err
	}
	if err := output.Section(cmd.OutOrStdout(), format, anys(row.Segments)); err != nil {
		return err
	}
	return output.Section(cmd.OutOrStdout(), format, anys(row.Snapshots))
}

type reportRow struct {
	Records uint64   `json:"records"`
	Events  uint64   `json:"events"`
	Bytes   uint64   `json:"bytes"`
	Last    turn.Seq `json:"last"`
	Chain   string   `json:"chain"`
	Root    string   `json:"root"`
	State   string   `json:"state"`
}

func logVerify(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "verify", Short: "Check that the log is what was written", Args: cobra.NoArgs,
		Long: "Checks every record (CRC-32C, gapless sequences, hash chain, RFC 6962 tree heads), that all events decode and\nfold, and of a file that no daemon has open also its pages and that each snapshot is the fold of the records\nbefore it. Exits 3 where something does not hold.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			report, err := source.verify(cmd.Context())
			if err != nil {
				return err
			}
			digest, err := foldTo(cmd.Context(), source, report.Last)
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, reportRow{
				Records: report.Records, Events: report.Events, Bytes: report.Bytes, Last: report.Last,
				Chain: hex.EncodeToString(report.Chain[:]), Root: hex.EncodeToString(report.Root[:]), State: digest,
			})
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// foldTo folds the log up to a sequence and yields the digest of the state.
func foldTo(ctx context.Context, source *logSource, last turn.Seq) (string, error) {
	s, err := store.StateAt(source.records(ctx, 1), func(r turn.Record) bool { return r.Last() <= last })
	if err != nil {
		return "", err
	}
	return stateDigest(s)
}

// stateDigest is the SHA-256 of the one encoding of s.
func stateDigest(s *turn.State) (string, error) {
	b, err := store.EncodeState(s)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), nil
}
