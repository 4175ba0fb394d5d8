package relay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"turnstone/turn"
)

const (
	maxEvents   = 2048                   // of one record, from which on it takes no more requests
	maxAge      = 100 * time.Millisecond // of the open record, likewise
	maxQueue    = 4096                   // requests waiting for the writer
	expireLimit = 1024                   // events of one round of expiry
)

// request is an admitted request on its way to the writer.
type request struct {
	*turn.Request
	listener *listener
	shard    int
	gate     *turn.Gate // that admitted it
	stream   *stream    // it came on, nil for a datagram
	frame    []byte     // of a request on a stream
}

func (r request) transaction() transaction { return transaction{r.FiveTuple, r.Method, r.Tx} }

// batch is a record in the making with everything that waits for it.
type batch struct {
	record  turn.Record
	replies []outgoing
	bytes   []byte        // of the replies
	after   []func(error) // called when the record is durable and withdrawn, or is not to be
	stored  []func(error) // called when the record is durable, withdrawn or not, or is not to be
	held    []transaction // whose answers wait for the kernel
	durable chan struct{} // closed when the record is durable; nil where nobody asks
	begun   bool          // the record's moment is fixed
	ends    bool          // some event ends a grant
	last    bool          // the committer is to post what is counted and not recorded yet
}

// outgoing is an encoded reply: bytes[from:to] of its batch.
type outgoing struct {
	listener *listener
	stream   *stream           // nil: the client sent a datagram
	unasked  bool              // an indication
	bound    turn.ConnectionID // of a ConnectionBind
	shard    int
	client   netip.AddrPort
	from, to int
}

func (b *batch) empty() bool {
	return len(b.record.Events) == 0 && len(b.replies) == 0 && len(b.after) == 0 && len(b.stored) == 0
}

// full says whether b should take no more requests.
func (b *batch) full(clock func() turn.Moment) bool {
	return !b.empty() && (len(b.record.Events) >= maxEvents || clock().Uptime-b.record.Moment.Uptime > maxAge)
}

// settle tells everyone who waits for b what became of it.
func (b *batch) settle(err error) {
	for _, f := range b.after {
		f(err)
	}
}

// tellStored tells those who wait for no more than that b is durable.
func (b *batch) tellStored(err error) {
	for _, f := range b.stored {
		f(err)
	}
	b.stored = nil
}

// fail tells everyone who waits for b that it failed. Its replies never leave.
func (b *batch) fail(err error) {
	b.tellStored(err)
	b.settle(err)
	for _, r := range b.replies {
		if r.stream != nil && !r.unasked {
			r.stream.answered()
		}
	}
	b.after, b.replies = nil, nil
}

// writer owns the state. It decides at the moment of the open record, which is read
// once for all of it.
type writer struct {
	s       *Server
	state   *turn.State
	rules   turn.Rules
	open    *batch
	refused refused
	dials   dials
	timer   *time.Timer
}

// run decides until stop is closed and nothing is left to commit.
func (w *writer) run(stop <-chan struct{}) error {
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		var in <-chan request
		var hand chan<- *batch
		w.open.begun = !w.open.empty()
		if !w.open.full(w.s.clock) {
			in = w.s.requests
		}
		if !w.open.empty() {
			hand = w.s.commits
		}
		w.schedule()
		select {
		case r := <-in:
			w.requests(r)
		case c := <-w.s.commands:
			c(w)
		case <-w.s.pulse:
		case <-w.s.posted.wake:
			w.apply(w.s.posted.take(maxEvents)...)
		case <-w.s.ended.wake:
			w.streamsEnded()
		case <-w.s.moved.wake:
			w.clientsMoved()
		case hand <- w.open:
			w.open = w.s.newBatch()
		case <-w.timer.C:
			w.begin()
		case <-look.C:
			w.dismiss()
		case f := <-w.s.failures:
			if err := w.recover(stop, f); err != nil {
				return err
			}
		case <-stop:
			return w.finish()
		}
	}
}

// schedule sets the timer to the next deadline. It looks at least once a second, since
// timers stand still while the host is suspended and deadlines do not. Where the moment
// of the open record is fixed nothing more can expire before it is handed on.
func (w *writer) schedule() {
	wait := time.Second
	if next, ok := w.state.NextDeadline(); ok && !w.open.begun {
		wait = max(min(wait, next-w.s.clock().Uptime), time.Millisecond)
	}
	w.timer.Reset(wait)
}

// requests takes r and what waits behind it.
func (w *writer) requests(r request) {
	w.request(r)
	for range 63 {
		select {
		case r := <-w.s.requests:
			w.request(r)
		default:
			return
		}
	}
}

// begin is the moment of the open record. The first to ask fixes it, and has
// what is over by then expire.
func (w *writer) begin() turn.Moment {
	b := w.open
	if !b.begun {
		b.begun, b.record.Moment = true, w.s.clock()
		w.rules.Storage = w.s.config.Log.Room()
		w.add(turn.Expire(w.state, b.record.Moment, expireLimit))
	}
	return b.record.Moment
}

// apply puts events into the open record and the state.
func (w *writer) apply(events ...turn.Event) {
	if len(events) > 0 {
		w.begin()
		w.add(events)
	}
}

func (w *writer) add(events []turn.Event) {
	b := w.open
	for _, e := range events {
		if len(b.record.Events) == 0 {
			b.record.First = w.state.Seq() + 1
			w.state.Begin(b.record.Moment)
		}
		if err := w.state.Apply(e); err != nil {
			panic(fmt.Sprintf("turnstone: the state refuses what was decided on it: %v", err))
		}
		b.record.Events = append(b.record.Events, e)
		b.ends = b.ends || ends(e)
	}
}

// ends says whether e ends something that may be relayed.
func ends(e turn.Event) bool {
	switch e.Kind() {
	case turn.KindAllocationDeleted, turn.KindAllocationExpired, turn.KindPermissionExpired,
		turn.KindPermissionRevoked, turn.KindChannelExpired, turn.KindChannelRevoked,
		turn.KindRelayedDeleted, turn.KindRelayedExpired, turn.KindPeerDisconnected:
		return true
	}
	return false
}

// request decides one request and encodes its answer, which waits for the record.
func (w *writer) request(r request) {
	if r.stream != nil && !w.takes(r) {
		return
	}
	if r.gate != w.s.gate.Load() || w.s.withdrawer.holds(r.transaction()) || !w.grants(r) {
		w.s.stats.drop(DropBusy) // to be repeated, and admitted by the gate in force
		return
	}
	m := w.begin()
	if w.refused.again(w.open, r, m) {
		return
	}
	d := turn.Decide(w.state, &w.rules, r.Request, m)
	if len(d.Ports) > 0 {
		d = turn.DecideBound(w.state, &w.rules, r.Request, m, w.bindPorts(d.Ports, r.shard))
	}
	if d.Dial != nil {
		var decided bool
		if d, decided = w.dial(r, *d.Dial, m); !decided {
			return
		}
	}
	w.answer(r, d)
}

// answer puts what was decided of r into the open record.
func (w *writer) answer(r request, d turn.Decision) {
	w.apply(d.Events...)
	b := w.open
	if w.s.carrier.any() && slices.ContainsFunc(d.Events, ends) {
		b.held = append(b.held, r.transaction())
		w.s.withdrawer.hold(r.transaction())
	}
	from := len(b.bytes)
	b.bytes = d.Reply.Append(b.bytes)
	out := r.outgoing(from, len(b.bytes))
	out.bound = d.Reply.Bound
	b.replies = append(b.replies, out)
	w.s.counted(d.Reply, r.FiveTuple.Client.Addr())
	if d.Reply.Code != 0 && len(d.Events) == 0 {
		w.refused.remember(r, b.bytes[from:], w.begin())
	}
}

// takes says whether a request that came on a stream is to be decided: it is not repeated by its client, and not
// worth an answer once the stream has ended.
func (w *writer) takes(r request) bool {
	w.streamsEnded() // an earlier one from this address first
	switch {
	case r.stream.gone.Load(), w.s.withdrawer.holds(r.transaction()), !w.grants(r):
		r.stream.answered()
		return false
	case r.gate != w.s.gate.Load():
		go r.stream.again(r.frame)
		return false
	}
	return true
}

// outgoing is the answer to r, which is bytes[from:to] of its batch.
func (r request) outgoing(from, to int) outgoing {
	return outgoing{listener: r.listener, stream: r.stream, shard: r.shard, client: r.FiveTuple.Client, from: from, to: to}
}

// bindPorts opens what it can of each plan.
func (w *writer) bindPorts(plans []turn.PortPlan, shard int) (bound []netip.AddrPort) {
	for i := range plans {
		bound = append(bound, w.bindPort(&plans[i], shard)...)
	}
	return bound
}

// bindPort opens one of the addresses of a plan, or a pair; none where none can be had.
func (w *writer) bindPort(p *turn.PortPlan, shard int) []netip.AddrPort {
	for a := range p.Candidates() {
		bound := []netip.AddrPort{a}
		if p.Pair() {
			bound = append(bound, netip.AddrPortFrom(a.Addr(), a.Port()+1))
		}
		err := w.s.openAll(bound, shard, p.TCP())
		if err == nil {
			return bound
		}
		if !errors.Is(err, errAddressInUse) {
			w.s.sampled.Error().Err(err).Msg("no relayed socket")
			return nil
		}
	}
	return nil
}

// openAll opens addresses into the pool, all or none.
func (s *Server) openAll(addresses []netip.AddrPort, shard int, tcp bool) error {
	for i, a := range addresses {
		k, err := s.openRelayed(a, shard, tcp)
		if err != nil {
			for _, opened := range addresses[:i] {
				if k, ok := s.pool.take(opened); ok {
					k.close()
				}
			}
			return err
		}
		s.pool.put(a, k)
	}
	return nil
}

// recover opens the log again after f, and makes everything fit what it holds. Until
// that succeeds nobody is answered.
func (w *writer) recover(stop <-chan struct{}, f failure) error {
	w.s.ready.Store(false)
	w.s.stats.recoveries.Add(1)
	w.s.log.Error().Err(f.err).Msg("the log failed: nobody is answered until it is open again")
	f.batch.fail(f.err)
	w.open.fail(f.err)
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 30*time.Second) {
		state, err := w.s.config.Log.Recover()
		if err == nil {
			w.resume(state, f)
			return nil
		}
		w.s.log.Error().Err(err).Dur("retry", wait).Msg("the log cannot be opened")
		if !w.pause(stop, wait) {
			return fmt.Errorf("stopped while the log could not be opened: %w", err)
		}
	}
}

// pause waits and drops requests, which their clients repeat. Commands wait. It says whether to go on.
func (w *writer) pause(stop <-chan struct{}, wait time.Duration) bool {
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-w.s.pulse:
		case r := <-w.s.requests:
			w.s.stats.drop(DropBusy)
			if r.stream != nil {
				r.stream.answered()
			}
		case <-stop:
			return false
		}
	}
}

// resume goes on from the state the log holds. The committer waits meanwhile.
// What was counted is told again; what may have been revoked, though nobody
// knew, is withdrawn with the record of the recovery.
func (w *writer) resume(state *turn.State, f failure) {
	lost := counts(w.open.record.Events)
	if state.Seq() < f.batch.record.Last() {
		lost = append(counts(f.batch.record.Events), lost...)
	}
	held := append(f.batch.held, w.open.held...)
	w.state, w.open, w.refused = state, w.s.newBatch(), refused{}
	final := w.s.flows.reconcile(state)
	w.s.conns.close(func(c *peerConn) bool {
		a := state.Allocation(c.allocation)
		return a == nil || a.Connection(c.id) == nil
	})
	w.s.pool.closeAll(state)
	w.open.held, w.open.ends = held, true
	w.apply(turn.LogRecovered{Cause: f.err.Error()})
	w.apply(lost...)
	w.apply(final...)
	w.apply(w.s.orphans(state, turn.ReasonStreamClosed)...)
	w.s.log.Info().Uint64("seq", uint64(state.Seq())).Msg("the log is open again")
	w.s.ready.Store(true)
	w.s.resumed <- struct{}{}
}

// counts are the events among list that hold what is counted nowhere else.
func counts(list []turn.Event) (out []turn.Event) {
	for _, e := range list {
		switch e.Kind() {
		case turn.KindUsageRecorded, turn.KindAttemptsRefused:
			out = append(out, e)
		}
	}
	return out
}

// finish commits what is left, the last counts, and that the server stopped.
func (w *writer) finish() error {
	w.open.last = true
	if err := w.flush(); err != nil {
		return err
	}
	for events := w.s.posted.take(maxEvents); len(events) > 0; events = w.s.posted.take(maxEvents) {
		w.apply(events...)
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.streamsEnded()
	w.apply(turn.ServerStopped{Signal: w.s.stopCause})
	return w.flush()
}

// flush waits until the open record, and every one before it, is durable.
func (w *writer) flush() error {
	durable := make(chan struct{})
	w.open.durable = durable
	select {
	case w.s.commits <- w.open:
		w.open = w.s.newBatch()
	case f := <-w.s.failures:
		return w.abandon(f)
	}
	select {
	case <-durable:
		return nil
	case f := <-w.s.failures:
		return w.abandon(f)
	}
}

// abandon gives up after f. What the log holds of it, the next start will see.
func (w *writer) abandon(f failure) error {
	f.batch.fail(f.err)
	w.open.fail(f.err)
	return f.err
}

// do runs f in the writer and waits until what f saw and made is durable.
func (s *Server) do(ctx context.Context, f func(*writer) error) error {
	done := make(chan error, 1)
	return s.command(ctx, done, func(w *writer) {
		w.begin()
		err := f(w)
		w.open.after = append(w.open.after, func(failed error) { done <- cmp.Or(failed, err) })
	})
}

// Snapshot is a copy of the state, which is durable. What it has revoked may not be withdrawn yet.
func (s *Server) Snapshot(ctx context.Context) (*turn.State, error) {
	done := make(chan error, 1)
	var state *turn.State
	err := s.command(ctx, done, func(w *writer) {
		w.begin()
		state = w.state.Clone()
		w.open.stored = append(w.open.stored, func(failed error) { done <- failed })
	})
	if err != nil {
		return nil, err
	}
	return state, nil
}

// command runs c in the writer and waits for what comes of it.
func (s *Server) command(ctx context.Context, done <-chan error, c func(*writer)) error {
	select {
	case s.commands <- c:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return ErrStopped
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-s.stopped:
		return ErrStopped
	}
}
