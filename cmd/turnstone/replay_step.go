package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/cmd/turnstone/internal/replay"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
	"golang.org/x/term"
)

// walkRow is an event with what became of the state by it.
type walkRow struct {
	Seq     turn.Seq        `json:"seq"`
	Time    time.Time       `json:"time"`
	Kind    string          `json:"kind"`
	What    string          `json:"what"`
	Event   output.Fields   `json:"event" table:"-"`
	Changes []replay.Change `json:"changes" table:"-"`
}

func rowOfStep(s replay.Step) walkRow {
	e := rowOf(turn.Record{First: s.Seq, Moment: s.Moment, Events: []turn.Event{s.Event}}, 0)
	row := walkRow{Seq: e.Seq, Time: e.Time, Kind: e.Kind, What: s.String(), Event: e.Event, Changes: s.Changes}
	if row.Changes == nil {
		row.Changes, row.What = []replay.Change{}, output.Text(e.Event, true)
	}
	return row
}

// walk walks event by event from the begin moment to the end moment.
func (f *replayFlags) walk(cmd *cobra.Command, source *logSource) error {
	ctx := cmd.Context()
	state, err := f.walkFrom(cmd, source)
	if err != nil {
		return err
	}
	p := &pacer{cmd: cmd, format: f.format, filter: f.filter, in: bufio.NewReader(cmd.InOrStdin()), asks: f.asks(cmd)}
	p.rows = output.New(cmd.OutOrStdout(), f.format)
	w := replay.NewWalk(state, f.filter)
	end := replay.Lifetime{ID: f.filter.Allocation}
	for r, err := range source.records(ctx, state.Seq()+1) {
		if err != nil {
			_ = p.rows.Close() // the error that matters is the log's
			return err
		}
		if !f.end.bound.Holds(r) {
			break
		}
		more, err := w.Record(r, func(s replay.Step) (bool, error) {
			if s.Seq < f.begin.seq {
				return true, nil
			}
			return p.show(s, w.State())
		})
		if err != nil {
			return err
		}
		if !more || end.Over(w.State(), r.Moment) {
			break
		}
	}
	return p.rows.Close()
}

// walkFrom is the state to begin the walk with.
func (f *replayFlags) walkFrom(cmd *cobra.Command, source *logSource) (*turn.State, error) {
	ctx := cmd.Context()
	bound := f.begin.bound
	if !f.begin.set {
		bound = store.Through(0)
		if f.filter.Allocation != 0 {
			made, err := created(ctx, source, f.filter.Allocation)
			if err != nil && !errors.Is(err, errNoHistory) {
				return nil, err
			}
			bound = store.Through(max(made, 1) - 1)
		}
	}
	first, _, err := source.span(ctx)
	if err != nil {
		return nil, err
	}
	if !f.begin.set && bound.Seq+1 < first {
		at, err := oldest(ctx, source)
		if err != nil {
			return nil, err
		}
		cmd.PrintErrf("the log begins at event %d: what was before is retired\n", at+1)
		bound = store.Through(at)
	}
	state, _, err := source.stateWithin(ctx, bound, warn(cmd))
	return state, err
}

// asks says whether to wait for the user after each step.
func (f *replayFlags) asks(cmd *cobra.Command) bool {
	in, ok := cmd.InOrStdin().(*os.File)
	out, ok2 := cmd.OutOrStdout().(*os.File)
	return ok && ok2 && term.IsTerminal(int(in.Fd())) && term.IsTerminal(int(out.Fd())) && f.format.For(out) == output.Table
}

// pacer shows steps, as fast as the user wants them.
type pacer struct {
	cmd    *cobra.Command
	format output.Format
	filter replay.Filter
	rows   *output.Writer
	in     *bufio.Reader
	asks   bool
	ahead  int // steps to show before asking again
}

// show shows s, and yields whether there are to be more.
func (p *pacer) show(s replay.Step, state *turn.State) (more bool, err error) {
	if err := p.rows.Row(rowOfStep(s)); err != nil {
		return false, err
	}
	if !p.asks {
		return true, nil
	}
	if err := p.rows.Flush(); err != nil {
		return false, err
	}
	if p.ahead > 0 {
		p.ahead--
		return true, nil
	}
	for {
		p.cmd.PrintErr("[Enter, N, a, s, q] ")
		line, err := p.in.ReadString('\n')
		if errors.Is(err, io.EOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		switch answer := strings.TrimSpace(line); answer {
		case "", "n":
			return true, nil
		case "q":
			return false, nil
		case "a":
			p.asks = false
			return true, nil
		case "s":
			if err := showState(p.cmd, p.format, state, time.Time{}, p.filter); err != nil {
				return false, err
			}
		default:
			if n, err := strconv.Atoi(answer); err == nil && n > 0 {
				p.ahead = n - 1
				return true, nil
			}
		}
	}
}
