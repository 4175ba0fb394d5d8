package relay

import (
	"fmt"
	"io"
	"net/netip"
	"slices"
	"time"

	"turnstone/turn"

	"golang.org/x/sync/errgroup"
)

func newWriter(s *Server, state *turn.State, rules turn.Rules) *writer {
	return &writer{s: s, state: state, rules: rules, open: &batch{}, timer: time.NewTimer(time.Hour), dials: dials{}}
}

// configured records that t is in force, and revokes what it forbids.
func (w *writer) configured(t Settings) {
	if t.Digest != w.state.Config() {
		w.apply(turn.ConfigChanged{Digest: t.Digest})
	}
	if known := w.state.Relays(); !slices.Equal(known, t.Rules.Relays) && (len(known) > 0 || slices.ContainsFunc(t.Rules.Relays, turn.Relay.Mapped)) {
		w.apply(turn.RelaysChanged{Relays: slices.Clone(t.Rules.Relays)})
	}
	if len(t.Changed) > 0 {
		w.apply(turn.SettingsChanged{Changes: t.Changed})
	}
	w.apply(turn.Reconcile(w.state, &t.Rules, t.Gate, w.begin())...)
}

// restore brings the state of the log to the present and opens its sockets.
func (s *Server) restore() error {
	w := s.writer
	before := w.state.Moment()
	now := s.clock()
	w.open.begun, w.open.record.Moment = true, now
	if w.state.Seq() == 0 {
		e := turn.EpochBegan{Epoch: 1}
		if _, err := io.ReadFull(s.config.Entropy, e.Log[:]); err != nil {
			return fmt.Errorf("draw entropy: %w", err)
		}
		w.apply(e)
	}
	w.apply(turn.ServerStarted{Version: s.config.Version, PID: uint32(s.config.PID)})
	if before.Wall > now.Wall && before.Boot != now.Boot {
		w.apply(turn.ClockWentBack{Nanoseconds: uint64(before.Wall - now.Wall)})
	}
	if err := w.store(); err != nil {
		return err
	}
	for {
		events := turn.Expire(w.state, now, maxEvents)
		if len(events) == 0 {
			break
		}
		w.apply(events...)
		if err := w.store(); err != nil {
			return err
		}
	}
	w.apply(s.orphans(w.state, turn.ReasonRestart)...)
	w.configured(s.config.Settings)
	w.apply(s.reopen(w.state)...)
	if err := w.store(); err != nil {
		return err
	}
	for a := range w.state.Allocations() {
		s.flows.adopt(a)
	}
	s.pool.closeAll(w.state)
	return nil
}

// store appends the open record, before there is a committer.
func (w *writer) store() error {
	if len(w.open.record.Events) > 0 {
		if err := w.s.config.Log.Append(w.open.record); err != nil {
			return fmt.Errorf("record the start: %w", err)
		}
	}
	m := w.open.record.Moment
	w.open = &batch{begun: true}
	w.open.record.Moment = m
	return nil
}

// reopen opens the sockets of all allocations and reservations, and yields the end of those that
// cannot go on: their listener is gone, or their port somebody else's.
func (s *Server) reopen(state *turn.State) []turn.Event {
	var all []*turn.Allocation
	var gone []turn.Event
	for a := range state.Allocations() {
		ended := false
		for t := range a.FiveTuples() {
			if s.listenerOf(t.Server, t.Protocol) == nil {
				ended = a.Ticket == 0
				what := "allocation ends"
				if !ended {
					what = "allocation waits for its client elsewhere"
				}
				s.log.Warn().Uint64("allocation", uint64(a.ID)).Stringer("listener", t.Server).
					Msg(what + ": its listener is not configured any more")
				gone = append(gone, turn.Leave(state, t, turn.ReasonListenerGone)...)
			}
		}
		if !ended {
			all = append(all, a)
		}
	}
	lost := make([][]netip.AddrPort, len(all))
	var group errgroup.Group
	workers := max(len(s.shards), 1)
	for shard := range workers {
		group.Go(func() error {
			for i := shard; i < len(all); i += workers {
				lost[i] = s.openEach(all[i].ID, all[i].Relayed, shard)
			}
			return nil
		})
	}
	_ = group.Wait() // the workers fail at nothing
	for i, a := range all {
		switch {
		case len(lost[i]) == len(a.Relayed):
			gone = append(gone, turn.AllocationDeleted{Allocation: a.ID, Reason: turn.ReasonPortTaken})
		case len(lost[i]) == 1:
			gone = append(gone, turn.RelayedDeleted{Allocation: a.ID, Relayed: lost[i][0], Reason: turn.ReasonPortTaken})
		}
	}
	for _, r := range state.Reservations() {
		if len(s.openEach(0, []netip.AddrPort{r.Relayed}, 0)) > 0 {
			gone = append(gone, turn.ReservationRevoked{Relayed: r.Relayed, Reason: turn.ReasonPortTaken})
		}
	}
	return gone
}

// openEach opens relayed addresses of an allocation, or of a reservation, into the pool, and yields those that are not to
// be had any more.
func (s *Server) openEach(of turn.AllocationID, addresses []netip.AddrPort, shard int) (lost []netip.AddrPort) {
	for _, a := range addresses {
		if err := s.openAll([]netip.AddrPort{a}, shard, false); err != nil {
			s.log.Warn().Err(err).Uint64("allocation", uint64(of)).Stringer("relayed", a).Msg("a relayed address ends: it cannot be bound again")
			lost = append(lost, a)
		}
	}
	return lost
}
