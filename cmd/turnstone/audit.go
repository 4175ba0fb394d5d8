package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"turnstone/audit"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// auditFlags are what an audit asks for, as it is typed.
type auditFlags struct {
	client, user, realm, relayed, peer, channel string
	from, to, at                                string
	port                                        uint16
	allocation                                  uint64
	refused                                     bool
	limit                                       int
	proof                                       string
}

// auditLimit is how many answers there are where nothing is said.
const auditLimit = 1000

func auditCommand(o *options) *cobra.Command {
	var a auditFlags
	cmd := &cobra.Command{
		Use: "audit", Short: "Find out who relayed to whom, from where, when and how much", Args: cobra.NoArgs,
		Long: "Searches the log for allocations: by who had them, from where, what they were seen as, whom they could relay\n" +
			"to, and when, in any combination. A time is about what else is asked for: with a peer it is that the binding\n" +
			"lasted then. The relayed address may be the one behind a 1:1 NAT or the one in front. A permission is for all\n" +
			"ports of its peer, so it matches any. A table and CSV have a row for each binding, JSON one for each allocation,\n" +
			"with all the events that prove it. Asks the running daemon, else reads the log by the index beside it, which is\n" +
			"made where it is missing. Exits 1 where nothing matches.",
		Example: `  turnstone audit --relayed 198.51.100.1:51873 --at 2026-11-26T14:02:07Z
  turnstone audit --port 51873 --peer 203.0.113.9 --from 2026-11-26T14:00:00Z --to 2026-11-26T14:05:00Z
  turnstone audit --client 192.0.2.0/24 --user alice -o jsonl | jq '.bindings[].usage'
  turnstone audit --allocation 4711 --proof proof.json
  turnstone audit --refused --peer 169.254.169.254 --from 24h`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := a.filter()
			if err != nil {
				return err
			}
			if a.proof != "" && a.refused && f == (audit.Filter{Refused: true}) {
				return usageError("--proof of everything that was refused: say what for")
			}
			source, err := o.openLog(cmd.Context())
			if err != nil {
				return err
			}
			if f.Also, err = source.pseudonyms(cmd.Context(), o, f.User); err != nil {
				return err
			}
			return a.run(cmd, o, source, f)
		},
	}
	a.flags(cmd, o)
	return cmd
}

func (a *auditFlags) flags(cmd *cobra.Command, o *options) {
	f := cmd.Flags()
	f.StringVar(&a.client, "client", "", "Where the client came from: `ADDR`, ADDR/BITS or ADDR:PORT.")
	f.StringVar(&a.user, "user", "", "Its user `NAME`; of time-limited credentials with or without the time.")
	f.StringVar(&a.realm, "realm", "", "The `REALM` the user is of.")
	f.StringVar(&a.relayed, "relayed", "", "The relayed address `ADDR` or ADDR:PORT, as the relay or as its peers know it.")
	f.Uint16Var(&a.port, "port", 0, "The `PORT` of the relayed address.")
	f.StringVar(&a.peer, "peer", "", "A peer `ADDR` or ADDR:PORT it could relay to.")
	f.StringVar(&a.channel, "channel", "", "A channel `NUMBER` that was bound, such as 0x4001.")
	f.Uint64Var(&a.allocation, "allocation", 0, "The allocation `ID`.")
	f.StringVar(&a.from, "from", "", "Not before `TIME`, in RFC 3339, or how long ago.")
	f.StringVar(&a.to, "to", "", "Not after `TIME`.")
	f.StringVar(&a.at, "at", "", "At `TIME`: in the whole second, where none of its parts is given.")
	f.BoolVar(&a.refused, "refused", false, "Requests that were refused, and clients that were sent elsewhere, instead of allocations.")
	f.IntVar(&a.limit, "limit", auditLimit, "At most so many `N`; 0: all.")
	f.StringVar(&a.proof, "proof", "", "Write the events that prove the answers to `FILE`, each with its inclusion proof to a signed checkpoint.")
	o.completeFilters(cmd)
	o.logFlags(cmd)
	o.outputFlag(cmd)
}

// filter is what a asks for.
func (a *auditFlags) filter() (f audit.Filter, err error) {
	f = audit.Filter{User: a.user, Realm: a.realm, Relay: a.port, Allocation: turn.AllocationID(a.allocation), Refused: a.refused}
	if f.Client, f.Port, err = parsePrefix(a.client); err != nil {
		return f, usageError("--client: %w", err)
	}
	if f.Relayed, err = parseAddress(a.relayed); err != nil {
		return f, usageError("--relayed: %w", err)
	}
	if f.Peer, err = parseAddress(a.peer); err != nil {
		return f, usageError("--peer: %w", err)
	}
	if a.channel != "" {
		n, err := strconv.ParseUint(a.channel, 0, 16)
		if err != nil || n == 0 {
			return f, usageError("--channel: %q is no channel number, such as 0x4001", a.channel)
		}
		f.Channel = turn.ChannelNumber(n)
	}
	switch {
	case f.Relayed.Port() != 0 && f.Relay != 0 && f.Relayed.Port() != f.Relay:
		return f, usageError("--relayed %s and --port %d contradict each other", a.relayed, a.port)
	case a.at != "" && (a.from != "" || a.to != ""):
		return f, usageError("--at excludes --from and --to")
	case a.refused && (a.relayed != "" || a.port != 0 || a.channel != "" || a.allocation != 0):
		return f, usageError("what was refused has no relayed address, channel or allocation")
	case a.limit < 0:
		return f, usageError("--limit %d is less than none", a.limit)
	}
	return f, a.times(&f)
}

// times puts the window into f.
func (a *auditFlags) times(f *audit.Filter) error {
	for _, one := range []struct {
		text     string
		from, to *int64
	}{{a.from, &f.From, nil}, {a.to, nil, &f.To}, {a.at, &f.From, &f.To}} {
		if one.text == "" {
			continue
		}
		t, err := parseTime(one.text)
		if err != nil {
			return err
		}
		if one.from != nil {
			*one.from = t.UnixNano()
		}
		if one.to != nil {
			*one.to = t.UnixNano()
			if _, ago := time.ParseDuration(strings.TrimPrefix(one.text, "-")); ago != nil && t.Nanosecond() == 0 && !strings.Contains(one.text, ".") {
				*one.to += int64(time.Second) - 1 // who says a second means all of it
			}
		}
	}
	if f.To != 0 && f.From > f.To {
		return usageError("--from %s is behind --to %s", a.from, a.to)
	}
	return nil
}

// parseAddress reads an address with or without a port.
func parseAddress(s string) (netip.AddrPort, error) {
	if s == "" {
		return netip.AddrPort{}, nil
	}
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return turn.Canonical(netip.AddrPortFrom(a, 0)), nil
	}
	a, err := netip.ParseAddrPort(s)
	if err != nil || a.Port() == 0 {
		return a, fmt.Errorf("%q is no address with or without a port", s)
	}
	return turn.Canonical(a), nil
}

// parsePrefix reads an address, one with a port, or a network.
func parsePrefix(s string) (netip.Prefix, uint16, error) {
	if p, err := netip.ParsePrefix(s); err == nil {
		return p.Masked(), 0, nil
	}
	a, err := parseAddress(s)
	if err != nil || !a.IsValid() {
		return netip.Prefix{}, 0, err
	}
	return netip.PrefixFrom(a.Addr(), a.Addr().BitLen()), a.Port(), nil
}

// run writes the answers, and says where there are none what was searched.
func (a *auditFlags) run(cmd *cobra.Command, o *options, source *logSource, f audit.Filter) error {
	w := newAuditWriter(cmd.OutOrStdout(), o.format, f)
	var events []turn.Seq
	s, err := source.audit(cmd.Context(), f, a.limit, slowly(cmd), func(one audit.Answer) (bool, error) {
		if a.proof != "" {
			events = append(events, one.Events...)
		}
		return true, w.answer(one)
	})
	if err != nil {
		return errors.Join(err, w.close(false))
	}
	if err := w.close(true); err != nil {
		return err
	}
	if s.Forgotten > 0 {
		cmd.PrintErrf("what ended in events up to %d was forgotten: the keys it was encrypted with are erased, or not here\n", s.Forgotten)
	}
	if s.Matched == 0 {
		return errors.New(nothing(a, s))
	}
	if s.More {
		cmd.PrintErrf("there are more: these are the first %d, --limit 0 shows all\n", s.Matched)
	}
	if a.proof != "" {
		return writeProofs(cmd, source, a.proof, events)
	}
	return nil
}

// slowly says on stderr how far an index has come, once that takes longer than one would wait without a word.
func slowly(cmd *cobra.Command) audit.Progress {
	next := time.Now().Add(time.Second)
	return func(done, all turn.Seq) {
		if now := time.Now(); now.After(next) && all > 0 {
			cmd.PrintErrf("making the index: %d of %d events (%d %%)\n", done, all, done*100/all)
			next = now.Add(2 * time.Second)
		}
	}
}

// nothing says that nothing was found, and where that was looked for.
func nothing(a *auditFlags, s audit.Summary) string {
	what := "no allocation matches"
	if a.refused {
		what = "nothing that was refused matches"
	}
	if s.Last == 0 {
		return what + ": the log is empty"
	}
	stamp := func(t time.Time) string { return t.UTC().Format(time.RFC3339) }
	text := fmt.Sprintf("%s: searched were events %d to %d, from %s to %s", what, s.First, s.Last, stamp(s.From), stamp(s.To))
	from, _ := parseTime(a.from + a.at)
	to, _ := parseTime(a.to + a.at)
	switch {
	case !to.IsZero() && to.Before(s.From) && s.First > 1:
		text += "; what was before is not in the log any more"
	case !to.IsZero() && to.Before(s.From):
		text += "; it begins later than what you ask for"
	case !from.IsZero() && from.After(s.To):
		text += "; it ends earlier than what you ask for"
	}
	return text
}

// writeProofs writes the proofs of events to a file.
func writeProofs(cmd *cobra.Command, source *logSource, name string, events []turn.Seq) error {
	slices.Sort(events)
	events = slices.Compact(events)
	p, err := source.prove(cmd.Context(), events)
	if errors.Is(err, store.ErrRetired) {
		return fmt.Errorf("prove the answers: some of their events are not in the log any more: %w", err)
	}
	if err != nil {
		return fmt.Errorf("prove the answers: %w", err)
	}
	out, err := os.OpenFile(name, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(store.WriteProof(out, p, readable), out.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	cmd.PrintErrf("%s proves %d events; turnstone log verify --proof %s --key KEY checks it anywhere\n", name, len(events), name)
	return nil
}

// audit asks the daemon, else searches the file.
func (s *logSource) audit(ctx context.Context, f audit.Filter, limit int, p audit.Progress, found audit.Found) (audit.Summary, error) {
	if s.client != nil {
		return s.client.Audit(ctx, f, limit, p, found)
	}
	x, err := openIndex(s.reader.File(), s.reader)
	if err != nil {
		return audit.Summary{}, err
	}
	sum, err := x.Query(ctx, f, limit, p, found)
	return sum, errors.Join(err, x.Close())
}
