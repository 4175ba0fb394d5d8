package relay

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"turnstone/turn"

	"github.com/pires/go-proxyproto"
	"golang.org/x/sys/unix"
)

// Streams bounds clients that come over TCP, TLS and DTLS.
type Streams struct {
	TLS       *tls.Config    // of TLS and DTLS listeners; DTLS takes GetCertificate alone
	Max       int            // streams in total
	MaxIdle   int            // without an allocation, of one IPv4 address or IPv6 /64
	Proxies   []netip.Prefix // whose PROXY protocol header (version 2) is believed, and demanded
	Handshake time.Duration  // that TLS, DTLS or a PROXY header may take; 0: 10 s
	Idle      time.Duration  // without a whole frame, where there is no allocation; 0: 30 s
	Stall     time.Duration  // that a client may take nothing of what is sent to it; 0: 30 s
}

func (c *Streams) defaults() {
	for _, d := range []struct {
		field *time.Duration
		value time.Duration
	}{{&c.Handshake, 10 * time.Second}, {&c.Idle, 30 * time.Second}, {&c.Stall, 30 * time.Second}} {
		if *d.field == 0 {
			*d.field = d.value
		}
	}
	if c.Max == 0 {
		c.Max = 16384
	}
	if c.MaxIdle == 0 {
		c.MaxIdle = 256
	}
}

// accepter takes in the streams of a listener.
type accepter interface {
	accept() // until it is closed
	socket() syscall.Conn
	close() error
}

// crowd counts streams, and has them all at hand when the server stops.
type crowd struct {
	mu      sync.Mutex // guards the fields below
	conns   map[net.Conn]struct{}
	idle    map[netip.Prefix]int // that have no allocation, by source
	stopped bool
	running sync.WaitGroup
}

// sourceOf is whom the streams of a client count for: its address, or its /64.
func sourceOf(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // of a canonical address there is one
	return p
}

// enter says whether one more stream finds room. It is to leave then.
func (w *crowd) enter(conn net.Conn, limit int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopped || len(w.conns) >= limit {
		return false
	}
	if w.conns == nil {
		w.conns = map[net.Conn]struct{}{}
	}
	w.conns[conn] = struct{}{}
	w.running.Add(1)
	return true
}

func (w *crowd) leave(conn net.Conn) {
	w.mu.Lock()
	delete(w.conns, conn)
	w.mu.Unlock()
	w.running.Done()
}

// waits counts a stream as one without an allocation. False: its source has limit of them.
func (w *crowd) waits(source netip.Prefix, limit int) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle[source] >= limit {
		return false
	}
	if w.idle == nil {
		w.idle = map[netip.Prefix]int{}
	}
	w.idle[source]++
	return true
}

// counts adds n to the streams of source that have no allocation.
func (w *crowd) counts(source netip.Prefix, n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.idle[source] += n; w.idle[source] == 0 { // it may be less for a moment: ends are told in any order
		delete(w.idle, source)
	}
}

// stop ends all streams, and returns when they have ended.
func (w *crowd) stop() {
	w.mu.Lock()
	w.stopped = true
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.running.Wait()
}

// listenStream opens a listener that is not UDP.
func (s *Server) listenStream(l *listener) error {
	if l.Protocol == turn.DTLS {
		return s.listenDTLS(l)
	}
	n, err := s.inheritTCP(l.Address)
	if err == nil && n == nil {
		open := net.ListenConfig{KeepAlive: 30 * time.Second}
		n, err = open.Listen(context.Background(), "tcp", l.Address.String())
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	l.accepts = append(l.accepts, &tcpAccepter{server: s, listener: l, net: n})
	return nil
}

// tcpAccepter takes in the streams of a TCP or TLS listener.
type tcpAccepter struct {
	server   *Server
	listener *listener
	net      net.Listener
}

func (a *tcpAccepter) close() error { return a.net.Close() }

func (a *tcpAccepter) socket() syscall.Conn { return a.net.(*net.TCPListener) }

func (a *tcpAccepter) accept() {
	for {
		conn, err := a.net.Accept()
		switch {
		case err == nil:
			a.server.welcome(conn, func() { a.server.serveTCP(a.listener, conn) }, func() {})
		case errors.Is(err, net.ErrClosed):
			return
		case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE), errors.Is(err, unix.ENOBUFS), errors.Is(err, unix.ENOMEM):
			a.server.sampled.Error().Err(err).Msg("no stream can be accepted")
			time.Sleep(50 * time.Millisecond) // those that end make room
		}
	}
}

// welcome runs serve for conn, which it closes after it or, saying so to refused, where there is no room.
func (s *Server) welcome(conn net.Conn, serve func(), refused func()) {
	if !s.crowd.enter(conn, s.streams.Load().Max) {
		refused()
		s.stats.refusedStreams.Add(1)
		s.sampled.Warn().Int("max", s.streams.Load().Max).Msg("a stream is refused: there are as many as may be")
		_ = conn.Close()
		return
	}
	go func() {
		defer s.crowd.leave(conn)
		defer func() { _ = conn.Close() }()
		serve()
	}()
}

// serveTCP serves a connection: its PROXY header, its TLS, its frames.
func (s *Server) serveTCP(l *listener, conn net.Conn) {
	peer := addrOf(conn)
	if slices.ContainsFunc(s.streams.Load().Proxies, func(p netip.Prefix) bool { return p.Contains(peer.Addr()) }) {
		proxied, err := s.proxied(conn)
		if err != nil {
			s.refuseStream(peer, err)
			return
		}
		conn, peer = proxied, addrOf(proxied)
	}
	s.serveStream(l, peer, func() (net.Conn, error) {
		if l.Protocol != turn.TLS {
			return conn, nil
		}
		secure := tls.Server(conn, s.streams.Load().TLS)
		return secure, s.shake(secure)
	})
}

func addrOf(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		return turn.Canonical(a.AddrPort())
	}
	return netip.AddrPort{}
}

var (
	errProxyVersion = errors.New("a PROXY header of another version than 2")
	errProxyAddress = errors.New("a PROXY header without the address of a client")
)

// proxied reads the header with which a proxy says whom it speaks for.
func (s *Server) proxied(conn net.Conn) (net.Conn, error) {
	p := proxyproto.NewConn(conn, proxyproto.WithPolicy(proxyproto.REQUIRE), proxyproto.SetReadHeaderTimeout(s.streams.Load().Handshake),
		proxyproto.ValidateHeader(func(h *proxyproto.Header) error {
			if h.Version != 2 {
				return errProxyVersion
			}
			return nil
		}))
	if _, err := p.Read(nil); err != nil {
		return nil, err
	}
	if !addrOf(p).IsValid() {
		return nil, errProxyAddress
	}
	return p, nil
}

func (s *Server) refuseStream(client netip.AddrPort, why error) {
	s.stats.refusedStreams.Add(1)
	s.sampled.Debug().Err(why).Stringer("client", client).Msg("stream refused")
}

var (
	errIdleStreams = errors.New("its address has as many streams without an allocation as it may")
	errTwice       = errors.New("its address has a stream already")
)

// serveStream serves client on the connection that secure yields, which may take a handshake.
func (s *Server) serveStream(l *listener, client netip.AddrPort, secure func() (net.Conn, error)) {
	source := sourceOf(client.Addr())
	if !s.crowd.waits(source, s.streams.Load().MaxIdle) {
		s.refuseStream(client, errIdleStreams)
		return
	}
	defer s.crowd.counts(source, -1)
	conn, err := secure()
	if err != nil {
		s.refuseStream(client, err)
		return
	}
	c := newStream(s, l, conn, client)
	if !l.streams.add(client, c) {
		s.refuseStream(client, errTwice)
		return
	}
	s.stats.streams[l.Protocol].Add(1)
	c.serve()
	s.stats.streams[l.Protocol].Add(-1)
	s.ended.add(l.fiveTuple(client)) // before another may come from the same address
	l.streams.delete(client)
}

// attach gives c a seat with an allocation: it is idle no more.
func (c *stream) attach(e *seat) {
	if c.seat.Swap(e) == nil {
		c.server.crowd.counts(sourceOf(c.client.Addr()), -1)
	}
}

// detach takes it away.
func (c *stream) detach(e *seat) {
	if c.seat.CompareAndSwap(e, nil) {
		c.server.crowd.counts(sourceOf(c.client.Addr()), 1)
		_ = c.conn.SetReadDeadline(time.Now().Add(c.server.streams.Load().Idle))
	}
}

// reports are five-tuples of which the writer is to hear something.
type reports struct {
	mu   sync.Mutex // guards list
	list []turn.FiveTuple
	wake chan struct{}
}

func (e *reports) add(t turn.FiveTuple) {
	e.mu.Lock()
	e.list = append(e.list, t)
	e.mu.Unlock()
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

func (e *reports) take() []turn.FiveTuple {
	e.mu.Lock()
	defer e.mu.Unlock()
	list := e.list
	e.list = nil
	return list
}

// clientsMoved ends what clients had before they moved.
func (w *writer) clientsMoved() {
	for _, t := range w.s.moved.take() {
		w.apply(turn.Arrive(w.state, t)...)
	}
}

// streamsEnded ends the allocations of streams that have ended, but for those of clients that may come back.
func (w *writer) streamsEnded() {
	w.clientsMoved()
	why := turn.ReasonStreamClosed
	select {
	case <-w.s.stopping: // and closed them
		why = turn.ReasonRestart
	default:
	}
	for _, t := range w.s.ended.take() {
		w.apply(turn.Leave(w.state, t, why)...)
	}
}

// orphans are what follows, for a reason, for the allocations whose stream is not there, and of connections
// that are not open.
func (s *Server) orphans(state *turn.State, why turn.Reason) (events []turn.Event) {
	for a := range state.Allocations() {
		ended := false
		for t := range a.FiveTuples() {
			if t.Protocol == turn.UDP {
				continue
			}
			if l := s.listenerOf(t.Server, t.Protocol); l == nil || l.streams.get(t.Client) == nil {
				events = append(events, turn.Leave(state, t, why)...)
				ended = a.Ticket == 0
			}
		}
		if ended {
			continue
		}
		for _, c := range a.Connections {
			if s.conns.get(c.ID) == nil {
				events = append(events, turn.PeerDisconnected{Allocation: a.ID, Connection: c.ID, Reason: why})
			}
		}
	}
	return events
}
