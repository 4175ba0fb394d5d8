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

	opened    opened
	shards    []*shard
	endpoints *endpoints
	readers   sync.WaitGroup // of a virtual network
	inherited inheritance

	flows        flows
	pool         socketPool
	gate         atomic.Pointer[turn.Gate]
	surroundings atomic.Pointer[surroundings]
	streams      atomic.Pointer[Streams]
	limiter      atomic.Pointer[limiter]
	writer       *writer
	carrier      carrier

	requests chan request
	commands chan func(*writer)
	pulse    chan struct{} // taken by a writer that lives
	tasks    chan func()   // for the committer
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
	leaves    atomic.Bool // it is to leave its sockets open
	leaving   atomic.Bool // sockets are closed because the process ends
	left      []Socket
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
		pulse: make(chan struct{}), tasks: make(chan func()),
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
	s.flows.meters = new(meters)
	s.inherited.put(c.Inherited)
	s.carrier.now = c.Datapath
	s.writer = newWriter(s, c.State, c.Settings.Rules)
	s.use(c.Settings)
	s.newReplier()
	if err := s.open(); err != nil {
		return nil, errors.Join(err, s.giveUp())
	}
	if err := s.restore(); err != nil {
		return nil, errors.Join(err, s.giveUp())
	}
	s.disown()
	return s, nil
}

// giveUp closes all sockets. What another process can inherit it still can.
func (s *Server) giveUp() error {
	s.leaving.Store(true)
	for _, k := range s.inherited.rest() {
		_ = unix.Close(k.FD)
	}
	return s.close()
}

// use puts settings in force for the data path and the gate.
func (s *Server) use(t Settings) {
	s.gate.Store(t.Gate)
	s.surroundings.Store(newSurroundings(&t))
	s.limiter.Store(newLimiter(t.UnauthRate, t.UnauthBurst))
	streams := t.Streams
	streams.defaults()
	if before := s.streams.Load(); before != nil && streams.TLS == nil {
		streams.TLS = before.TLS
	}
	s.streams.Store(&streams)
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
	n := s.config.Shards
	if n == 0 {
		n = runtime.GOMAXPROCS(0)
	}
	if s.config.Net != nil {
		n = 0
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
	list, _, err := s.openMore(s.config.Listeners)
	s.opened.list.Store(&list)
	return err
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
	fd, err := s.bindRelayed(a)
	if err != nil {
		return nil, err
	}
	if err := hearICMP(fd, a.Addr().Is4()); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	if fd>>8 >= len(s.endpoints.chunks) {
		return nil, errors.Join(errTooManyFiles, unix.Close(fd))
	}
	return &rawSocket{fd: fd, shard: s.shards[shard%len(s.shards)], address: a}, nil
}

// bindRelayed is the inherited socket at a, else a new one.
func (s *Server) bindRelayed(a netip.AddrPort) (fd int, err error) {
	fds := s.inherited.take(place{relayed: true, address: a})
	if len(fds) == 0 {
		return bindUDP(a, relayedBuffer, false)
	}
	closeAll(fds[1:])
	if err := adoptUDP(fds[0], a, relayedBuffer, false); err != nil {
		return -1, errors.Join(err, unix.Close(fds[0]))
	}
	return fds[0], nil
}

func (s *Server) listenerOf(a netip.AddrPort, p turn.Protocol) *listener {
	for _, l := range s.listeners() {
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
	err = errors.Join(err, s.endListening())
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
	s.leaving.Store(true)
	return errors.Join(err, s.leaveRest(), s.close())
}

// serve starts the loops over sockets.
func (s *Server) serve(group *errgroup.Group) {
	for _, h := range s.shards {
		group.Go(h.run)
	}
	for _, l := range s.listeners() {
		if err := s.start(l); err != nil {
			group.Go(func() error { return err })
		}
	}
}

// endListening closes what new streams come by.
func (s *Server) endListening() error {
	s.opened.mu.Lock()
	s.opened.ended = true
	s.opened.mu.Unlock()
	errs := []error{s.leaveAccepts()}
	for _, l := range s.listeners() {
		if l.conn != nil {
			_ = l.conn.Close()
		}
		for _, a := range l.accepts {
			errs = append(errs, a.close())
		}
	}
	s.opened.accepts.Wait()
	return errors.Join(errs...)
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
	for _, l := range s.listeners() {
		errs = append(errs, l.close())
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
	if !o.heeds() {
		s.stats.drop(DropNoAllocation)
		return nil, nil, nil
	}
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
	s.stats.replies[r.Method&15][r.Code].Add(1)
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

// Reload is Prepare and Apply.
func (s *Server) Reload(ctx context.Context, t Settings) error {
	p, err := s.Prepare(t)
	if err != nil {
		return err
	}
	return p.Apply(ctx)
}
