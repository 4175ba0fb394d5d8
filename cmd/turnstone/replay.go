package main

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/cmd/turnstone/internal/replay"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// replayed is the state at a moment as it is shown. Before the first event there is
// no log to name, and no time.
type replayed struct {
	Seq         turn.Seq           `json:"seq"`
	Time        time.Time          `json:"time,omitzero"` // of the last record
	At          time.Time          `json:"at,omitzero"`
	Log         string             `json:"log,omitempty"`
	Epoch       uint64             `json:"epoch"`
	Digest      string             `json:"digest"`
	Count       int                `json:"count"`
	Allocations []admin.Allocation `json:"allocations" table:"-"`

	Reservations []admin.Reservation `json:"reservations" table:"-"`
}

// replayFlags are what is typed after replay.
type replayFlags struct {
	*options
	at, to, from         string
	step, diffMaps       bool
	serve                bool
	listen               string
	client, peer, number string
	filter               replay.Filter
	begin, end           moment
}

const replayLong = `Folds the log up to a moment and shows who was there. --at takes RFC 3339 or a duration before now, such as 10m,
and means the last record whose predecessors are all of then or before; --to takes a sequence, and means the last
record that ends at or before it. Without either it is the end of the log. What was overdue then is shown as overdue.
The digest is of the whole state: two logs with the same one hold the same.

--from takes a time or a sequence, and asks what became of the state from there to the end moment: all that the events
after the time, or from the sequence on, have added, changed and removed. --to takes a time here too.

--step walks through these events one by one, each with what it changed; without --from from the beginning of the log,
or of the --allocation. On a terminal it waits after each: Enter or n goes on, a number goes on so many, a shows all
the rest, s the state, q quits. Elsewhere, and in other formats than a table, it prints all.

The filters are joined by "and". Of a state they choose allocations: whose client, user or id is meant, and which have
to do with the peer and the channel. Of changes they choose those of such allocations that are about the peer and
the channel. Snapshots in the log make any moment quick to reach; a damaged one is passed over, and said on stderr.

--serve shows the log in a browser instead, with a slider over all its moments: a file without root, network or its
daemon, else that of the daemon that runs, with what it relays now. It is for reading, and on loopback unless --listen
says else; there it has no password.`

func replayCommand(o *options) *cobra.Command {
	f := &replayFlags{options: o}
	cmd := &cobra.Command{
		Use: "replay [--at TIME | --to SEQ] [--from TIME|SEQ] [--step | --serve]", Short: "Show the state at any moment of the log, or how it came to it",
		Args: cobra.NoArgs, Long: replayLong,
		Example: `  turnstone replay --at 2026-01-02T15:04:05Z
  turnstone replay --at 10m --user alice -o table
  turnstone replay --from 15m --to 10m --peer 203.0.113.7 -o table
  turnstone replay --step --allocation 4711 -o table
  turnstone replay --to 4711 --db copy-of-log.db -o json
  turnstone replay --serve --db copy-of-log.db`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.parse(cmd); err != nil {
				return err
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			if f.filter.Pseudonyms, err = source.pseudonyms(cmd.Context(), o, f.filter.User); err != nil {
				return err
			}
			switch {
			case f.serve:
				return f.serveDashboard(cmd, source)
			case f.step:
				return f.walk(cmd, source)
			case f.begin.set:
				return f.compare(cmd, source)
			}
			return f.show(cmd, source)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&f.at, "at", "", "The moment: `TIME` in RFC 3339, or how long ago.")
	flags.StringVar(&f.to, "to", "", "The moment: the sequence `SEQ`; with --from or --step a time too.")
	flags.StringVar(&f.from, "from", "", "Show what has changed since this `MOMENT`, a sequence or a time.")
	flags.BoolVar(&f.step, "step", false, "Walk event by event.")
	flags.Uint64Var((*uint64)(&f.filter.Allocation), "allocation", 0, "Only the allocation `ID`.")
	flags.StringVar(&f.client, "client", "", "Only of clients at `ADDR`, or ADDR:PORT.")
	flags.StringVar(&f.filter.User, "user", "", "Only of the user `NAME`.")
	flags.StringVar(&f.peer, "peer", "", "Only what has to do with the peer `ADDR`, or ADDR:PORT.")
	flags.StringVar(&f.number, "channel", "", "Only what has to do with the channel `NUMBER`, such as 0x4000.")
	flags.BoolVar(&f.diffMaps, "diff-maps", false, "Hold the state against the kernel's live maps instead of showing it; exits 3 where they relay what it does not grant.")
	flags.BoolVar(&f.serve, "serve", false, "Show the log in a browser, at any moment, until interrupted.")
	flags.StringVar(&f.listen, "listen", config.DefaultDashboard, "`ADDR` that --serve is at.")
	flags.StringVar(&o.kernel, "kernel-instance", "", "`NAME` of the pins, for --diff-maps; default: as configured.")
	_ = cmd.RegisterFlagCompletionFunc("kernel-instance", completeInstance) // the flag is there
	o.completeFilters(cmd)
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// moment is one that was typed.
type moment struct {
	set   bool
	seq   turn.Seq
	time  time.Time // zero: it is seq
	bound store.Bound
}

// parseMoment reads a sequence, which is digits, or a time, which is anything else. With before, a sequence means the
// moment before its event.
func parseMoment(s string, before bool) (moment, error) {
	if n, err := strconv.ParseUint(s, 10, 64); err == nil {
		m := moment{set: true, seq: turn.Seq(n), bound: store.Through(turn.Seq(n))}
		if before {
			m.bound = store.Through(turn.Seq(max(n, 1) - 1))
		}
		return m, nil
	}
	t, err := parseTime(s)
	return moment{set: true, time: t, bound: store.AsOf(t)}, err
}

// parse takes the flags that cobra leaves as text, and says which do not go together.
func (f *replayFlags) parse(cmd *cobra.Command) (err error) {
	set := cmd.Flags().Changed
	switch {
	case set("at") && set("to"):
		return usageError("--at and --to exclude each other")
	case f.serve && (f.step || f.diffMaps || set("at") || set("to") || set("from") || !f.filter.Empty() || f.client+f.peer+f.number != ""):
		return usageError("--serve shows any moment, and searches there: it takes --listen only")
	case set("listen") && !f.serve:
		return usageError("--listen is where --serve is")
	case f.diffMaps && (f.step || set("from") || !f.filter.Empty() || f.client+f.peer+f.number != ""):
		return usageError("--diff-maps is about the whole state at a moment: it takes --at or --to only")
	}
	f.end = moment{bound: store.Everything()}
	if set("at") || set("to") {
		if f.end, err = parseMoment(f.at+f.to, false); err != nil {
			return err
		}
	}
	if set("from") {
		if f.begin, err = parseMoment(f.from, true); err != nil {
			return err
		}
	}
	switch {
	case set("at") && f.end.time.IsZero():
		return usageError("--at %s: a bare number is a sequence: say --to %s, or give the unit of a duration", f.at, f.at)
	case set("to") && !f.end.time.IsZero() && !f.step && !f.begin.set:
		return usageError("--to %s: it takes a sequence, --at a time", f.to)
	case f.begin.set && f.end.set && f.begin.time.IsZero() && f.end.time.IsZero() && f.begin.seq > f.end.seq,
		f.begin.set && f.end.set && !f.begin.time.IsZero() && !f.end.time.IsZero() && f.begin.time.After(f.end.time):
		return usageError("--from %s is behind --%s", f.from, map[bool]string{true: "at " + f.at, false: "to " + f.to}[set("at")])
	}
	return f.parseFilter()
}

func (f *replayFlags) parseFilter() (err error) {
	if f.client != "" {
		if f.filter.Client, err = replay.ParseAddress(f.client); err != nil {
			return usageError("--client: %w", err)
		}
	}
	if f.peer != "" {
		if f.filter.Peer, err = replay.ParseAddress(f.peer); err != nil {
			return usageError("--peer: %w", err)
		}
	}
	if f.number != "" {
		if err = f.filter.Channel.UnmarshalText([]byte(f.number)); err != nil || f.filter.Channel == 0 {
			return usageError("--channel %s: want a number such as 0x4000", f.number)
		}
	}
	return nil
}

// show shows the state at the end moment, or holds it against the kernel's maps.
func (f *replayFlags) show(cmd *cobra.Command, source *logSource) error {
	s, next, err := source.stateWithin(cmd.Context(), f.end.bound, warn(cmd))
	if err != nil {
		return err
	}
	remark(cmd, s, next, f.end.seq)
	if f.diffMaps {
		list, err := f.comparePinned(s)
		if err != nil {
			return err
		}
		return showDifferences(cmd, f.format, list)
	}
	return showState(cmd, f.format, s, f.end.time, f.filter)
}

// compare shows what became of the state from one moment to the other.
func (f *replayFlags) compare(cmd *cobra.Command, source *logSource) error {
	before, _, err := source.stateWithin(cmd.Context(), f.begin.bound, warn(cmd))
	if err != nil {
		return err
	}
	after, next, err := source.stateWithin(cmd.Context(), f.end.bound, warn(cmd))
	if err != nil {
		return err
	}
	if before.Seq() > after.Seq() {
		return usageError("--from %s is behind the end moment: event %d comes after %d", f.from, before.Seq(), after.Seq())
	}
	remark(cmd, after, next, f.end.seq)
	cmd.PrintErrf("events %d to %d, %s to %s\n", before.Seq()+1, after.Seq(), stamp(before), stamp(after))
	return output.Rows(cmd.OutOrStdout(), f.format, replay.Compare(before, after, f.filter))
}

// stamp is when the last record of s was written.
func stamp(s *turn.State) string {
	if s.Seq() == 0 {
		return "the beginning"
	}
	return s.Moment().WallTime().Format(time.RFC3339Nano)
}

// warn says on stderr what is wrong and does not matter yet.
func warn(cmd *cobra.Command) func(error) {
	return func(err error) { cmd.PrintErrf("warning: %v: an earlier one serves\n", err) }
}

// stateWithin is the state within b, and the record after it.
func (s *logSource) stateWithin(ctx context.Context, b store.Bound, warn func(error)) (*turn.State, *turn.Record, error) {
	if s.client != nil {
		state, next, err := s.client.StateWithin(ctx, b, warn)
		if err != nil && s.archives != nil { // it may be of before all that the daemon has
			state = turn.NewState()
			next, err = store.FoldWithin(state, s.records(ctx, 1), b)
		}
		return state, next, s.explain(ctx, err)
	}
	state, next, err := s.reader.StateWithin(b, warn)
	return state, next, s.explain(ctx, err)
}

// remark says on stderr where the log does not reach as far as was asked for.
func remark(cmd *cobra.Command, s *turn.State, next *turn.Record, to turn.Seq) {
	switch {
	case s.Seq() == 0 && next == nil:
		cmd.PrintErrln("the log is empty")
	case s.Seq() == 0:
		cmd.PrintErrf("that is before the first record, events %d to %d at %s\n", next.First, next.Last(), next.Moment.WallTime().Format(time.RFC3339Nano))
	case to > s.Seq() && next == nil:
		cmd.PrintErrf("the log ends at event %d\n", s.Seq())
	}
}

// parseTime reads RFC 3339 or a duration before now.
func parseTime(s string) (time.Time, error) {
	if ago, err := time.ParseDuration(strings.TrimPrefix(s, "-")); err == nil {
		return time.Now().Add(-ago), nil
	}
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return t, usageError("%q is neither RFC 3339, such as 2026-01-02T15:04:05Z, nor a duration", s)
	}
	return t, nil
}

// showState writes what filter takes of s, as of at where that is set, else as of its last record.
func showState(cmd *cobra.Command, f output.Format, s *turn.State, at time.Time, filter replay.Filter) error {
	digest, err := stateDigest(s)
	if err != nil {
		return err
	}
	r := replayed{Seq: s.Seq(), At: at.UTC(), Epoch: s.Epoch(), Digest: digest, Count: s.Len(), Allocations: []admin.Allocation{}, Reservations: []admin.Reservation{}}
	m := s.Moment()
	if s.Seq() > 0 {
		r.Time, r.Log = m.WallTime(), s.Log().String()
		if at.IsZero() {
			r.At = r.Time
		}
		m = m.AsOf(r.At)
	}
	for a := range s.Allocations() {
		if filter.Takes(a) {
			r.Allocations = append(r.Allocations, admin.Describe(a, m))
		}
	}
	for _, one := range admin.Reservations(s, m) {
		if filter.TakesReservation(one.Username) {
			r.Reservations = append(r.Reservations, one)
		}
	}
	out := cmd.OutOrStdout()
	if f.For(out) == output.CSV {
		return output.Rows(out, f, r.Allocations)
	}
	if err := output.Object(out, f, r); err != nil {
		return err
	}
	if err := output.Section(out, f, "allocations", r.Allocations); err != nil {
		return err
	}
	if !filter.Empty() && len(r.Allocations) <= shownInFull {
		for _, a := range r.Allocations {
			if err := showHeld(cmd, f, a); err != nil {
				return err
			}
		}
	}
	return output.Section(out, f, "reservations", r.Reservations)
}

// shownInFull is how many allocations a filter may leave for a table to show all they hold.
const shownInFull = 10

// showHeld writes what a holds, in a table.
func showHeld(cmd *cobra.Command, f output.Format, a admin.Allocation) error {
	of := " of allocation " + a.ID.String()
	out := cmd.OutOrStdout()
	return errors.Join(output.Section(out, f, "permissions"+of, a.Permissions), output.Section(out, f, "channels"+of, a.Channels),
		output.Section(out, f, "connections"+of, a.Connections), output.Section(out, f, "usage"+of, a.Usage))
}
