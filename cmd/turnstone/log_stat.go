package main

import (
	"encoding/hex"
	"time"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func logStat(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "stat", Short: "Describe the log's file: segments, snapshots, sizes", Args: cobra.NoArgs,
		Long: "Describes the file of the running daemon's log, else of one that no daemon has open: its size and free pages\n(in bytes and in number), its segments and snapshots, the archives that go on into it without a gap, and how many\nsegments are overdue to leave it, with what the next of them waits for. First and last are sequences.",
		Example: `  turnstone log stat
  turnstone log stat --db copy-of-log.db -o json`,
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
	From      time.Time     `json:"from,omitzero"`
	To        time.Time     `json:"to,omitzero"`
	Archives  archivesRow   `json:"archives"`
	Overdue   uint64        `json:"overdue"`
	Waiting   string        `json:"waiting,omitempty"`
	Segments  []segmentRow  `json:"segments" table:"-"`
	Snapshots []snapshotRow `json:"snapshots" table:"-"`
}

type archivesRow struct {
	Count int      `json:"count"`
	Size  int64    `json:"size"`
	First turn.Seq `json:"first"`
	Last  turn.Seq `json:"last"`
}

type segmentRow struct {
	Segment uint64    `json:"segment"`
	First   turn.Seq  `json:"first"`
	Last    turn.Seq  `json:"last"`
	Records uint64    `json:"records"`
	Bytes   uint64    `json:"bytes"`
	From    time.Time `json:"from"`
	To      time.Time `json:"to"`
	Privacy string    `json:"privacy"`
}

type snapshotRow struct {
	Snapshot turn.Seq `json:"snapshot"`
	Size     int      `json:"size"`
	Digest   string   `json:"digest"`
}

func showStat(cmd *cobra.Command, f output.Format, st store.Stat) error {
	row := statRow{
		File: st.File, Size: st.Size, FreePages: st.FreePages, Schema: st.Schema, First: st.First, Last: st.Last,
		Records: st.Records, Bytes: st.Bytes, Segments: []segmentRow{}, Snapshots: []snapshotRow{},
	}
	row.Archives = archivesRow{st.Archives.Archives, st.Archives.Bytes, st.Archives.First, st.Archives.Last}
	row.Overdue, row.Waiting = st.Kept.Overdue, st.Kept.Waiting
	if n := len(st.Segments); n > 0 {
		row.From, row.To = st.Segments[0].From.WallTime(), st.Segments[n-1].To.WallTime()
	}
	for _, g := range st.Segments {
		row.Segments = append(row.Segments, segmentRow{g.Number, g.First, g.Last, g.Records, g.Bytes, g.From.WallTime(), g.To.WallTime(), g.Privacy})
	}
	for _, p := range st.Snapshots {
		row.Snapshots = append(row.Snapshots, snapshotRow{p.At, p.Size, hex.EncodeToString(p.Digest[:])})
	}
	if err := output.Object(cmd.OutOrStdout(), f, row); err != nil {
		return err
	}
	if err := output.Section(cmd.OutOrStdout(), f, "segments", row.Segments); err != nil {
		return err
	}
	return output.Section(cmd.OutOrStdout(), f, "snapshots", row.Snapshots)
}
