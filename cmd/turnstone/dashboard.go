package main

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"net"
	"net/netip"
	"time"

	"turnstone/cmd/turnstone/internal/dashboard"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// StateWithin is for the dashboard.
func (s *logSource) StateWithin(ctx context.Context, b store.Bound) (*turn.State, error) {
	state, _, err := s.stateWithin(ctx, b, func(error) {}) // an earlier snapshot serves
	return state, err
}

// Records is for the dashboard.
func (s *logSource) Records(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return s.records(ctx, from)
}

// Span is for the dashboard.
func (s *logSource) Span(ctx context.Context) (first, last turn.Seq, err error) { return s.span(ctx) }

// Before is for the dashboard.
func (s *logSource) Before(ctx context.Context, id turn.AllocationID) (turn.Seq, error) {
	return before(ctx, s, id)
}

// About is for the dashboard.
func (s *logSource) About() (what string, live bool) {
	if s.client != nil {
		return "the log of the daemon that runs", true
	}
	return "the log " + s.reader.File(), false
}

// Live is for the dashboard.
func (s *logSource) Live(ctx context.Context) (dashboard.Live, error) {
	if s.client == nil {
		return dashboard.Live{}, dashboard.ErrNoDaemon
	}
	st, err := s.client.Status(ctx)
	if err != nil {
		return dashboard.Live{}, err
	}
	if k, err := s.client.KernelStatus(ctx); err == nil {
		return dashboard.NewLive(st, &k), nil
	}
	return dashboard.NewLive(st, nil), nil
}

// listenDashboard opens the address of --listen. Others than this machine's users see it only where they are to.
func listenDashboard(cmd *cobra.Command, address string) (net.Listener, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, fmt.Errorf("serve the dashboard: %w", err)
	}
	at := l.Addr().(*net.TCPAddr).AddrPort()
	if !at.Addr().IsLoopback() {
		cmd.PrintErrf("warning: whoever reaches %v sees who relays to whom: there is no password\n", at)
	}
	cmd.PrintErrf("dashboard on http://%v/, until interrupted\n", reachable(at))
	return l, nil
}

// reachable is where a browser of this machine finds what listens at a.
func reachable(a netip.AddrPort) netip.AddrPort {
	if !a.Addr().IsUnspecified() {
		return a
	}
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), a.Port())
}

// serveDashboard shows source in a browser until ctx ends.
func (f *replayFlags) serveDashboard(cmd *cobra.Command, source *logSource) error {
	l, err := listenDashboard(cmd, f.listen)
	if err != nil {
		return err
	}
	return dashboard.NewServer(source, nil).Serve(cmd.Context(), l)
}

// ownSource is what a daemon shows of itself.
type ownSource struct{ *served }

// StateWithin is for the dashboard.
func (d ownSource) StateWithin(ctx context.Context, b store.Bound) (*turn.State, error) {
	e, err := d.store.SnapshotWithin(b)
	if err != nil {
		return nil, err
	}
	state, err := e.State(d.store.Keys())
	if err != nil {
		return nil, err
	}
	_, err = store.FoldWithin(state, d.Records(ctx, state.Seq()+1), b)
	return state, err
}

// Records is for the dashboard.
func (d ownSource) Records(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return whileAsked(ctx, d.store.Records(from))
}

func (d ownSource) each(ctx context.Context, from turn.Seq) iter.Seq2[turn.Record, error] {
	return whileAsked(ctx, decodeEach(store.Raw(d.store, from), d.store.Keys()))
}

// whileAsked is records until ctx ends.
func whileAsked(ctx context.Context, records iter.Seq2[turn.Record, error]) iter.Seq2[turn.Record, error] {
	return func(yield func(turn.Record, error) bool) {
		for r, err := range records {
			if err == nil {
				err = ctx.Err()
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// Span is for the dashboard.
func (d ownSource) Span(context.Context) (first, last turn.Seq, err error) { return d.store.Span() }

func (d ownSource) span(context.Context) (first, last turn.Seq, err error) { return d.store.Span() }

func (d ownSource) stat(context.Context) (store.Stat, error) { return d.store.Stat() }

// Before is for the dashboard.
func (d ownSource) Before(ctx context.Context, id turn.AllocationID) (turn.Seq, error) {
	return before(ctx, d, id)
}

// About is for the dashboard.
func (d ownSource) About() (what string, live bool) {
	return fmt.Sprintf("turnstone %s, started %s", version(), d.started.UTC().Format(time.RFC3339)), true
}

// Live is for the dashboard.
func (d ownSource) Live(ctx context.Context) (dashboard.Live, error) {
	st, err := d.Status(ctx)
	if err != nil {
		return dashboard.Live{}, err
	}
	if k, ok := d.measureKernel(); ok {
		return dashboard.NewLive(st, &k), nil
	}
	return dashboard.NewLive(st, nil), nil
}

// Token is for the dashboard.
func (d ownSource) Token() string { return d.now.Load().resolved.Token }

// Guessed is for the dashboard.
func (d ownSource) Guessed(from string) {
	d.log.Warn().Str("from", from).Msg("somebody has shown the dashboard a wrong token")
}

// dashboardRetry is after what time an address that was taken is tried again: the daemon that this one takes over from
// has it until it ends.
const dashboardRetry = 2 * time.Second

// listenElsewhere opens the address that the dashboard is to move to, nil where it stays where it is or is to be nowhere.
func listenElsewhere(before, after string) (net.Listener, error) {
	if after == before || after == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", after)
	if err != nil {
		return nil, fmt.Errorf("serve the dashboard: %w", err)
	}
	return l, nil
}

// serveDashboard serves the dashboard at an address, empty for nowhere, in place of where it was before: on l, or where that is
// nil, once the address is to be had. The relay goes on without it.
func (d *served) serveDashboard(address string, l net.Listener) {
	if d.closeDashboard != nil {
		d.closeDashboard()
	}
	if address == "" {
		return
	}
	ctx, cancel := context.WithCancel(d.aside)
	d.closeDashboard = cancel
	listen := func() (net.Listener, error) { return (&net.ListenConfig{}).Listen(ctx, "tcp", address) }
	var err error
	if l == nil {
		l, err = listen()
	}
	d.group.Go(func() error {
		defer cancel()
		for said := ""; ; l, err = listen() {
			if err == nil {
				d.log.Info().Stringer("address", l.Addr()).Msg("the dashboard is served, to whoever reaches it")
				err = dashboard.NewServer(ownSource{d}, ownSource{d}).Serve(ctx, l)
			}
			if err != nil && err.Error() != said && !errors.Is(err, context.Canceled) {
				said = err.Error()
				d.log.Warn().Err(err).Msg("no dashboard, and trying again; choose another address with --dashboard, or --dashboard off")
			}
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(dashboardRetry):
			}
		}
	})
}
