package relay

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"syscall"
	"time"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

const (
	dialTimeout = 30 * time.Second // RFC 6062 section 5.2: at least
	maxDials    = 8                // of one allocation at once
	pipeChunk   = 64 << 10         // bytes relayed between two looks at the meters
	pipePiece   = 4 << 10          // of it, taken from them at once: datagrams take from them too, and do not wait
	meterWait   = 5 * time.Millisecond
)

// peerConn is a connection with a peer of a TCP allocation.
type peerConn struct {
	id         turn.ConnectionID
	allocation turn.AllocationID
	peer       netip.AddrPort
	conn       *net.TCPConn
}

// peerConns are those that are open, by id. Some may not be durable yet.
type peerConns struct {
	mu   sync.Mutex // guards open
	open map[turn.ConnectionID]*peerConn
}

func (p *peerConns) add(c *peerConn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.open == nil {
		p.open = map[turn.ConnectionID]*peerConn{}
	}
	p.open[c.id] = c
}

func (p *peerConns) get(id turn.ConnectionID) *peerConn {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.open[id]
}

// close closes those that which says so of.
func (p *peerConns) close(which func(*peerConn) bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, c := range p.open {
		if which(c) {
			_ = c.conn.Close()
			delete(p.open, id)
		}
	}
}

// end closes one.
func (p *peerConns) end(id turn.ConnectionID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if c := p.open[id]; c != nil {
		_ = c.conn.Close()
		delete(p.open, id)
	}
}

// shared lets the connections of a relayed transport address leave from the port that listens for others.
func shared(_, _ string, raw syscall.RawConn) error {
	var failed error
	err := raw.Control(func(fd uintptr) {
		failed = errors.Join(unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	})
	return errors.Join(err, failed)
}

// tcpSocket is a relayed transport address that peers connect to.
type tcpSocket struct {
	server *Server
	listen *net.TCPListener
}

// openTCP opens one. That nobody else has the port is seen by a socket that does not share it.
func (s *Server) openTCP(a netip.AddrPort) (socket, error) {
	probe, err := net.Listen("tcp", a.String())
	if err == nil {
		err = probe.Close()
	}
	if err != nil {
		return nil, err
	}
	open := net.ListenConfig{Control: shared, KeepAlive: 30 * time.Second}
	l, err := open.Listen(context.Background(), "tcp", a.String())
	if err != nil {
		return nil, fmt.Errorf("listen on %v: %w", a, err)
	}
	return &tcpSocket{server: s, listen: l.(*net.TCPListener)}, nil
}

func (k *tcpSocket) serve(r *relayed) { k.server.tcp.Go(func() { k.accept(r) }) }

func (k *tcpSocket) stop() { k.close() }

func (k *tcpSocket) close() { _ = k.listen.Close() } // it may be already

// accept takes in connections of peers until the address is closed.
func (k *tcpSocket) accept(r *relayed) {
	for {
		conn, err := k.listen.AcceptTCP()
		switch {
		case err == nil:
			if err := k.server.arrived(r, conn); err != nil {
				_ = conn.Close()
			}
		case errors.Is(err, net.ErrClosed):
			return
		default:
			k.server.sampled.Error().Err(err).Msg("no connection of a peer can be accepted")
			time.Sleep(50 * time.Millisecond) // those that end make room
		}
	}
}

var errNotLetIn = errors.New("the peer may not connect")

// arrived tells the client of a connection that a peer has made, once it is in the log. After an error the
// connection is to be closed.
func (s *Server) arrived(r *relayed, conn *net.TCPConn) error {
	f, peer := r.flow, addrOf(conn)
	if !r.permits(peer.Addr(), int64(s.clock().Uptime)) {
		s.stats.drop(DropNoPermission) // without asking the writer
		return errNotLetIn
	}
	var entropy [32]byte
	if _, err := io.ReadFull(s.config.Entropy, entropy[:]); err != nil {
		return fmt.Errorf("draw entropy: %w", err)
	}
	ctx, cancel := s.untilStopped(dialTimeout)
	defer cancel()
	var c *peerConn
	err := s.do(ctx, func(w *writer) error {
		e, ok := turn.AcceptPeer(w.state, &w.rules, f.id, peer, entropy, w.begin())
		at := f.at.Load()
		if !ok || at == nil || at.stream.gone.Load() {
			return errNotLetIn
		}
		c = &peerConn{id: e.Connection, allocation: f.id, peer: peer, conn: conn}
		s.conns.add(c)
		w.apply(e)
		b := w.open
		from := len(b.bytes)
		b.bytes = turn.AppendConnectionAttempt(b.bytes, s.indicationID(), e.Connection, w.rules.Shown(peer))
		b.replies = append(b.replies, outgoing{listener: at.listener, stream: at.stream, from: from, to: len(b.bytes), unasked: true})
		return nil
	})
	if err != nil && c != nil {
		s.conns.end(c.id)
	}
	return err
}

// untilStopped is a context that ends with the server, or after a time.
func (s *Server) untilStopped(d time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithTimeout(context.Background(), d)
	done := make(chan struct{})
	go func() {
		select {
		case <-s.stopping:
			cancel()
		case <-done:
		}
	}()
	return ctx, func() { close(done); cancel() }
}

// dials are the connections being made, by allocation and peer. They are the writer's.
type dials map[turn.AllocationID]map[netip.AddrPort]struct{}

// begin says why another is not to begin, or that it has.
func (d dials) begin(a turn.AllocationID, peer netip.AddrPort) turn.Dialled {
	of := d[a]
	if _, going := of[peer]; going {
		return turn.DialTwice
	}
	if len(of) >= maxDials {
		return turn.DialBusy
	}
	if of == nil {
		of = map[netip.AddrPort]struct{}{}
		d[a] = of
	}
	of[peer] = struct{}{}
	return turn.DialConnected
}

func (d dials) end(a turn.AllocationID, peer netip.AddrPort) {
	if delete(d[a], peer); len(d[a]) == 0 {
		delete(d, a)
	}
}

// dial makes the connection that a Connect asks for, away from the writer. It yields the decision where
// there is one already.
func (w *writer) dial(r request, d turn.Dial, m turn.Moment) (turn.Decision, bool) {
	if refused := w.dials.begin(d.Allocation, d.To); refused != turn.DialConnected {
		return turn.DecideDialled(w.state, &w.rules, r.Request, d, refused, m), true
	}
	w.s.tcp.Go(func() {
		ctx, cancel := w.s.untilStopped(dialTimeout)
		defer cancel()
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(d.From), Control: shared, KeepAlive: 30 * time.Second}
		conn, err := dialer.DialContext(ctx, "tcp", d.To.String())
		select {
		case w.s.commands <- func(w *writer) { w.dialled(r, d, conn, err) }:
		case <-w.s.stopping:
			if err == nil {
				_ = conn.Close()
			}
		}
	})
	return turn.Decision{}, false
}

// dialled ends a Connect.
func (w *writer) dialled(r request, d turn.Dial, conn net.Conn, err error) {
	w.dials.end(d.Allocation, d.To)
	outcome := turn.DialConnected
	if err != nil {
		outcome = turn.DialFailed
		w.s.log.Debug().Err(err).Uint64("allocation", uint64(d.Allocation)).Msg("a peer cannot be connected to")
	}
	w.streamsEnded()
	decided := turn.DecideDialled(w.state, &w.rules, r.Request, d, outcome, w.begin())
	if tcp, ok := conn.(*net.TCPConn); ok {
		if decided.Reply.Connection == 0 {
			_ = tcp.Close()
		} else {
			w.s.conns.add(&peerConn{id: decided.Reply.Connection, allocation: d.Allocation, peer: d.To, conn: tcp})
		}
	}
	w.answer(r, decided)
}

// disconnected has the end of a connection recorded, if the log does not have it.
func (s *Server) disconnected(c *peerConn, why turn.Reason) {
	s.conns.end(c.id)
	select {
	case s.commands <- func(w *writer) { w.apply(turn.Disconnect(w.state, c.allocation, c.id, why)...) }:
	case <-s.stopping: // the allocation ends too
	}
}

// errBinds says that what follows on a stream depends on the answer to a ConnectionBind.
var errBinds = errors.New("a connection is to be bound")

// binds waits for the answer to a ConnectionBind. Where that bound a connection it yields it, nil if it has ended since.
func (c *stream) binds() (p *peerConn, bound bool) {
	timer := time.AfterFunc(bindTimeout, c.shut)
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && (c.requests.Load() > 0 || len(c.out) > 0 || c.busy) {
		c.changed.Wait()
	}
	id := turn.ConnectionID(c.bound.Load())
	return c.server.conns.get(id), id != 0 || c.closed
}

// pipe relays between the client, who has said early already, and p, until both have said their last or one of them fails.
func (c *stream) pipe(p *peerConn, early []byte) {
	f := c.server.flows.of(p.allocation)
	if f == nil {
		return
	}
	count := f.connection(p.peer)
	_ = c.conn.SetDeadline(time.Time{})
	c.server.crowd.counts(sourceOf(c.client.Addr()), -1)
	defer c.server.crowd.counts(sourceOf(c.client.Addr()), 1)
	why := turn.ReasonPeerClosed
	var group sync.WaitGroup
	group.Go(func() {
		defer func() { _ = closeWrite(c.conn) }()
		if err := c.copy(f, toClient, c.conn, p.conn, nil, func(n int) {
			count.toClientBytes.Add(uint64(n))
			c.server.stats.toClientBytes.Add(uint64(n))
		}); err != nil {
			_ = p.conn.Close() // whoever fails ends both
			_ = c.conn.Close()
		}
	})
	err := c.copy(f, toPeer, p.conn, c.conn, early, func(n int) {
		count.toPeerBytes.Add(uint64(n))
		c.server.stats.toPeerBytes.Add(uint64(n))
	})
	if err != nil {
		_ = p.conn.Close()
		_ = c.conn.Close()
	} else {
		why = turn.ReasonClient
		_ = p.conn.CloseWrite()
	}
	group.Wait()
	c.server.disconnected(p, why)
}

// copy relays one direction. What waits in sockets while the cap is reached is the sender's to wait for.
func (c *stream) copy(f *flow, direction int, to, from net.Conn, early []byte, relayed func(n int)) error {
	if len(early) > 0 {
		if _, err := to.Write(early); err != nil {
			return err
		}
		relayed(len(early))
	}
	limited := &io.LimitedReader{R: from}
	for !f.gone.Load() {
		limited.N = pipeChunk
		n, err := io.Copy(to, limited) // without leaving the kernel, where both are TCP
		relayed(int(n))
		if err != nil {
			return err
		}
		if limited.N > 0 {
			return nil // the end
		}
		c.wait(f, direction, int(n))
	}
	return net.ErrClosed
}

// wait waits until n bytes are within the cap of each scope.
func (c *stream) wait(f *flow, direction, n int) {
	for over := turn.Scope(0); n > 0 && c.server.surroundings.Load().metered && !f.gone.Load(); {
		over = c.server.surroundings.Load().caps.Take(f.words[direction].Load(), over, min(n, pipePiece), int64(c.server.clock().Uptime))
		if over == turn.Scopes {
			over, n = 0, n-pipePiece
			continue
		}
		time.Sleep(meterWait)
	}
}

// closeWrite says that nothing more will be written.
func closeWrite(conn net.Conn) error {
	if h, ok := conn.(interface{ CloseWrite() error }); ok {
		return h.CloseWrite()
	}
	return conn.Close()
}
