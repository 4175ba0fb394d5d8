package relay

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"

	"github.com/pion/stun/v3"
	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
)

// maxReply bounds an encoded reply, in bytes.
const maxReply = 4096

// ErrStopped says that the server does not run any more.
var ErrStopped = errors.New("the server has stopped")

// ErrNoAllocation says that there is no such allocation.
var ErrNoAllocation = errors.New("no such allocation")

// Server relays. New makes it, Run serves; everything else may be called from any
// goroutine while Run runs.
type Server struct {
	config  Config
	log     zerolog.Logger
	sampled zerolog.Logger // for what clients can cause at will
	clock   func() turn.Moment

	listeners []*listener
	shards    []*shard
	endpoints *endpoints
	readers   sync.WaitGroup // of a virtual network

	flows        flows
	pool         socketPool
	caps         turn.Caps // in each direction
	gate         atomic.Pointer[turn.Gate]
	surroundings atomic.Pointer[surroundings]
	limiter      atomic.Pointer[limiter]
	writer       *writer

	requests chan request
	commands chan func(*writer)
	commits  chan *batch
	failures chan failure
	resumed  chan struct{}
	posted   posted
	spare    sync.Pool // of batches

	hands hands // of streams
	conns peerConns
	tcp   sync.WaitGroup // of relayed addresses and connections of TCP allocations
	crowd crowd
	ended reports // streams that have
	moved reports // where clients have moved to

	withdrawer  withdrawer
	replies     replier
	refusals    refusals
	stats       stats
	indications [4]byte
	indicated   atomic.Uint64

	ready     atomic.Bool
	stopCause string
	stopping  chan struct{} // closed when Run ends serving
	stopped   chan struct{} // closed when Run returns
}

// New makes a server that has its listeners and its relayed sockets open: what is
// overdue has expired, and an allocation whose port is not to be had any more has ended. All
// that is in the log when New returns.
func New(c Config) (*Server, error) {
	if err := c.check(); err != nil {
		return nil, err
	}
	s := &Server{
		config: c, log: c.Logger, sampled: c.Logger.Sample(&zerolog.BurstSampler{Burst: 1, Period: time.Second}),
		clock: c.Clock, endpoints: new(endpoints),
		requests: make(chan request, maxQueue), commands: make(chan func(*writer)), commits: make(chan *batch),
		failures: make(chan failure), resumed: make(chan struct{}),
		stopping: make(chan struct{}), stopped: make(chan struct{}),
	}
	s.posted.wake, s.withdrawer.wake, s.ended.wake = make(chan struct{}, 1), make(chan struct{}, 1), make(chan struct{}, 1)
	s.moved.wake, s.flows.moved = make(chan struct{}, 1), &s.moved
	s.spare.New = func() any { return &batch{} }
	if _, err := io.ReadFull(c.Entropy, s.indications[:]); err != nil {
		return nil, fmt.Errorf("draw entropy: %w", err)
	}
	s.flows.byID, s.flows.conns, s.flows.sockets, s.flows.listener = map[turn.AllocationID]*flow{}, &s.conns, &s.pool, s.listenerOf
	if s.caps = c.Caps; s.caps != (turn.Caps{}) {
		s.flows.meters = new(meters)
	}
	s.writer = newWriter(s, c.State, c.Settings.Rules)
	s.use(c.Settings)
	s.newReplier()
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if err := s.restore(); err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

// Carry has another relay carry what the log grants. It is called before Run, if at all. Where the
// other has meters, they are shared: the caps hold for both together.
func (s *Server) Carry(d Datapath) {
	s.config.Datapath = d
	if m, ok := d.(Meters); ok && s.flows.meters != nil {
		s.flows.meters.share(m, s.flows.byID)
	}
}

// use puts settings in force for the data path and the gate.
func (s *Server) use(t Settings) {
	s.gate.Store(t.Gate)
	s.surroundings.Store(newSurroundings(t.Rules, t.ICMP))
	s.limiter.Store(newLimiter(t.UnauthRate, t.UnauthBurst))
}

func (s *Server) newBatch() *batch { return s.spare.Get().(*batch) }

// recycle keeps b's memory for another batch. The events may be in other hands.
func (s *Server) recycle(b *batch) {
	clear(b.replies)
	clear(b.after)
	*b = batch{replies: b.replies[:0], bytes: b.bytes[:0], after: b.after[:0]}
	s.spare.Put(b)
}

// open opens shards and listeners.
func (s *Server) open() error {
	for _, l := range s.config.Listeners {
		s.listeners = append(s.listeners, &listener{Listener: l})
	}
	if s.config.Net != nil {
		for _, l := range s.listeners {
			if l.Protocol != turn.UDP {
				return fmt.Errorf("listen on %v/%v: a virtual network has only udp", l.Protocol, l.Address)
			}
			c, err := s.openNet(l.Address)
			if err != nil {
				return fmt.Errorf("listen on %v: %w", l.Address, err)
			}
			l.conn = c
		}
		return nil
	}
	n := s.config.Shards
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	for i := range n {
		h, err := newShard(s, i)
		if h != nil {
			s.shards = append(s.shards, h)
		}
		if err != nil {
			return err
		}
	}
	for _, l := range s.listeners {
		listen := s.listenStream
		if l.Protocol == turn.UDP {
			listen = s.listen
		}
		if err := listen(l); err != nil {
			return err
		}
	}
	return nil
}

// listen opens a socket of l in each shard. The first is bound alone for a
// moment: sharing the port is for our shards, not for somebody else's server.
func (s *Server) listen(l *listener) error {
	probe, err := bindUDP(l.Address, 0, false)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	if err := unix.Close(probe); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	for range s.shards {
		fd, err := bindUDP(l.Address, ListenerBuffer, true)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		l.fds = append(l.fds, fd)
	}
	return nil
}

// openRelayed opens the relayed transport address a in a shard.
func (s *Server) openRelayed(a netip.AddrPort, shard int, tcp bool) (socket, error) {
	if tcp {
		return s.openTCP(a)
	}
	if s.config.Net != nil {
		c, err := s.openNet(a)
		if err != nil {
			return nil, err
		}
		return &netSocket{server: s, conn: c}, nil
	}
	fd, err := bindUDP(a, relayedBuffer, false)
	if err != nil {
		return nil, err
	}
	if err := hearICMP(fd, a.Addr().Is4()); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if fd>>8 >= len(s.endpoints.chunks) {
		return nil, errors.Join(errTooManyFiles, unix.Close(fd))
	}
	return &rawSocket{fd: fd, shard: s.shards[shard%len(s.shards)]}, nil
}

func (s *Server) listenerOf(a netip.AddrPort, p turn.Protocol) *listener {
	for _, l := range s.listeners {
		if l.Address == a && l.Protocol == p {
			return l
		}
	}
	return nil
}

// originOf is the listener that r, which answers a request that came to l, is to be sent from. It is nil where
// that is configured and not open yet.
func (s *Server) originOf(r *turn.Reply, l *listener) *listener {
	if !r.Origin.IsValid() || r.Origin == l.Address {
		return l
	}
	return s.listenerOf(r.Origin, turn.UDP)
}

// Ready says whether requests are being answered: the server runs and its log takes records.
func (s *Server) Ready() bool {
	select {
	case <-s.stopping:
		return false
	default:
		return s.ready.Load()
	}
}

// Run serves until ctx ends. The allocations stay in the log; cause says there
// why the server stopped.
func (s *Server) Run(ctx context.Context, cause func() string) error {
	defer close(s.stopped)
	group, inner := errgroup.WithContext(ctx)
	s.serve(group)
	if s.config.Lookups != nil {
		for range asksAtOnce {
			group.Go(func() error { return s.askAll(inner) })
		}
	}
	stopWriter := make(chan struct{})
	writerDone, committerDone := make(chan error, 1), make(chan struct{})
	withdrawing, giveUp := context.WithCancel(context.WithoutCancel(ctx))
	defer giveUp()
	quarantined := make(chan []socket, 1)
	go func() { s.commitAll(); close(committerDone) }()
	go func() { quarantined <- s.withdrawAll(withdrawing) }()
	go func() { writerDone <- s.writer.run(stopWriter) }()
	s.ready.Store(true)

	var err error
	select {
	case <-inner.Done():
	case err = <-writerDone:
		writerDone <- err
	}
	s.ready.Store(false)
	s.stopCause = cause()
	close(s.stopping)
	for _, h := range s.shards {
		h.stop()
	}
	for _, l := range s.listeners {
		if l.conn != nil {
			_ = l.conn.Close()
		}
		for _, a := range l.accepts {
			err = errors.Join(err, a.close())
		}
	}
	s.conns.close(func(*peerConn) bool { return true })
	s.crowd.stop()
	err = errors.Join(err, group.Wait())
	close(stopWriter)
	err = errors.Join(err, <-writerDone)
	close(s.resumed)
	close(s.commits)
	<-committerDone
	s.withdrawer.end()
	defer time.AfterFunc(withdrawLast, giveUp).Stop()
	closeSockets(<-quarantined)
	return errors.Join(err, s.close())
}

// serve starts the loops over sockets.
func (s *Server) serve(group *errgroup.Group) {
	for i, h := range s.shards {
		for _, l := range s.listeners {
			if l.Protocol != turn.UDP {
				continue
			}
			s.endpoints.set(l.fds[i], &endpoint{listener: l})
			if err := h.watch(l.fds[i]); err != nil {
				group.Go(func() error { return err })
			}
		}
		group.Go(h.run)
	}
	for _, l := range s.listeners {
		for _, a := range l.accepts {
			group.Go(func() error { a.accept(); return nil })
		}
		if l.conn != nil {
			s.readers.Go(func() {
				s.readAll(l.conn, func(from netip.AddrPort, b []byte) { s.netFromClient(l, from, b) })
			})
		}
	}
}

// close closes all sockets.
func (s *Server) close() error {
	for id := range s.flows.byID {
		s.flows.remove(id)
	}
	s.closeRemoved()
	s.pool.closeAll(nil)
	s.conns.close(func(*peerConn) bool { return true })
	s.tcp.Wait()
	var errs []error
	for _, l := range s.listeners {
		for _, fd := range l.fds {
			errs = append(errs, unix.Close(fd))
		}
		if l.conn != nil {
			_ = l.conn.Close()
		}
		for _, a := range l.accepts {
			_ = a.close() // it may be already
		}
	}
	for _, h := range s.shards {
		errs = append(errs, h.close())
	}
	s.readers.Wait()
	return errors.Join(errs...)
}

// admit takes a request that came in a datagram through the gate. It yields the answer where there is
// one already; else the request is on its way to the writer, or dropped.
func (s *Server) admit(l *listener, shard int, client netip.AddrPort, frame []byte, now int64) *turn.Reply {
	q, gate, reply := s.judge(origin{listener: l, shard: shard, client: client, frame: frame})
	if reply != nil && reply.Unauthenticated && !s.limiter.Load().allow(client.Addr(), now) {
		s.stats.drop(DropRateLimited)
		return nil
	}
	if q == nil {
		return reply
	}
	select {
	case s.requests <- request{Request: q, listener: l, shard: shard, gate: gate}:
	default:
		s.stats.drop(DropBusy)
	}
	return nil
}

// judge asks the gate. It yields the answer where there is one already, else the request and the gate that let it in, or
// nothing: it is no request, or waits for a directory.
func (s *Server) judge(o origin) (*turn.Request, *turn.Gate, *turn.Reply) {
	gate := s.gate.Load()
	var held turn.SealedToken
	if gate.TakesTokens() {
		held = o.listener.seats.get(o.client).of().held()
	}
	q, reply, err := gate.Admit(o.listener.fiveTuple(o.client), o.frame, held, s.clock())
	if err != nil {
		s.wait(o, err)
		return nil, nil, nil
	}
	if reply != nil {
		s.stats.requests[reply.Method&15].Add(1)
		s.counted(reply, o.client.Addr())
		return nil, nil, reply
	}
	s.stats.requests[q.Method&15].Add(1)
	if q.Method == stun.MethodAllocate || q.Method == stun.MethodConnect {
		if _, err := io.ReadFull(s.config.Entropy, q.Entropy[:]); err != nil {
			s.log.Error().Err(err).Msg("no entropy")
			return nil, nil, nil
		}
	}
	return q, gate, nil
}

// wait has a request wait for a directory, if that is what err says.
func (s *Server) wait(o origin, err error) {
	var unasked *turn.UnaskedError
	if !errors.As(err, &unasked) || s.config.Lookups == nil {
		s.stats.drop(DropMalformed)
		return
	}
	if o.stream != nil {
		o.stream.requests.Add(1)
	}
	if why, ok := s.config.Lookups.ask(who{unasked.Realm, unasked.As}, unasked.Username, o); !ok {
		s.stats.drop(why)
		s.unavailable(o)
	}
}

// counted counts an answer, and a refusal for the log where its source is not forged.
func (s *Server) counted(r *turn.Reply, client netip.Addr) {
	s.stats.replies[r.Code].Add(1)
	if r.Code != 0 && r.Code != turn.CodeTryAlternate && r.NonceReturned { // that one is an event of its own
		s.refusals.add(r, client)
	}
}

// indicationID is a transaction id for a Data indication: unique, and no more than that.
func (s *Server) indicationID() (t turn.TransactionID) {
	copy(t[:], s.indications[:])
	binary.BigEndian.PutUint64(t[4:], s.indicated.Add(1))
	return t
}

// Record has events of another part of the daemon recorded, in one record. It returns when that is durable.
func (s *Server) Record(ctx context.Context, events ...turn.Event) error {
	return s.do(ctx, func(w *writer) error {
		w.apply(events...)
		return nil
	})
}

// View runs f on the state, in the writer. It returns when all that f saw is durable.
func (s *Server) View(ctx context.Context, f func(*turn.State)) error {
	return s.do(ctx, func(w *writer) error {
		f(w.state)
		return nil
	})
}

// CloseAllocation ends an allocation for an operator.
func (s *Server) CloseAllocation(ctx context.Context, id turn.AllocationID) error {
	return s.do(ctx, func(w *writer) error {
		events := turn.Close(w.state, id, turn.ReasonOperator)
		if len(events) == 0 {
			return ErrNoAllocation
		}
		w.apply(events...)
		return nil
	})
}

// Drain stops or resumes making new allocations; those that are go on.
func (s *Server) Drain(ctx context.Context, on bool) error {
	return s.do(ctx, func(w *writer) error {
		w.rules.Draining = on
		return nil
	})
}

// Reload puts other settings in force and revokes what they forbid. It returns when that is durable
// and relayed no more.
func (s *Server) Reload(ctx context.Context, t Settings) error {
	return s.do(ctx, func(w *writer) error {
		t.Rules.Draining = w.rules.Draining
		w.rules = t.Rules
		s.use(t)
		w.configured(t)
		return nil
	})
}
