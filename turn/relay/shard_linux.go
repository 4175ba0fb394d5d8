package relay

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"sync/atomic"
	"time"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// shard is one loop over sockets: a listener socket of each listener, which the
// kernel spreads clients over, and a share of the relayed ones.
type shard struct {
	hand
	index  int
	epoll  int
	wake   int // eventfd: the server stops
	in     *inbox
	errors icmpInbox
	slot   int // of in, that is free: those before are in out

	lastClient netip.AddrPort // of the round
	lastSeat   *seat
	lastList   *listener
}

// endpoint is what a descriptor in a shard's epoll stands for.
type endpoint struct {
	listener *listener // of a listener socket
	relayed  *relayed  // of a relayed socket
}

// endpoints finds endpoints by descriptor, without a lock.
type endpoints struct {
	chunks [4096]atomic.Pointer[[256]atomic.Pointer[endpoint]]
}

var errTooManyFiles = errors.New("too many open files for the server's tables")

func (e *endpoints) get(fd int) *endpoint {
	if c := e.chunks[fd>>8].Load(); c != nil {
		return c[fd&255].Load()
	}
	return nil
}

func (e *endpoints) set(fd int, p *endpoint) {
	c := e.chunks[fd>>8].Load()
	if c == nil {
		e.chunks[fd>>8].CompareAndSwap(nil, new([256]atomic.Pointer[endpoint]))
		c = e.chunks[fd>>8].Load()
	}
	c[fd&255].Store(p)
}

func newShard(s *Server, index int) (*shard, error) {
	ep, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("open epoll: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open eventfd: %w", err), unix.Close(ep))
	}
	h := &shard{index: index, epoll: ep, wake: wake, in: newInbox()}
	h.hand.open(s)
	return h, h.watch(wake)
}

func (h *shard) watch(fd int) error {
	err := unix.EpollCtl(h.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)})
	if err != nil {
		return fmt.Errorf("watch descriptor %d: %w", fd, err)
	}
	return nil
}

func (h *shard) stop() { _, _ = unix.Write(h.wake, binary.NativeEndian.AppendUint64(nil, 1)) }

func (h *shard) close() error { return errors.Join(unix.Close(h.wake), unix.Close(h.epoll)) }

// rawSocket is a relayed transport address on a real socket.
type rawSocket struct {
	fd      int
	shard   *shard
	address netip.AddrPort
}

func (r *rawSocket) shown() Socket { return Socket{Relayed: true, Address: r.address, FD: r.fd} }

func (r *rawSocket) serve(at *relayed) {
	r.shard.server.endpoints.set(r.fd, &endpoint{relayed: at})
	if err := r.shard.watch(r.fd); err != nil {
		r.shard.server.log.Error().Err(err).Stringer("relayed", at.address).Msg("relayed socket is not served")
	}
	r.shard.server.keep(r.shown())
}

// stop takes the descriptor from the shard. Rounds that have it in hand go on: see Server.grace.
func (r *rawSocket) stop() {
	r.shard.server.endpoints.set(r.fd, nil)
	_ = unix.EpollCtl(r.shard.epoll, unix.EPOLL_CTL_DEL, r.fd, nil) // not served, or an error that close ends too
}

// close closes the descriptor. It must be stopped, and no shard may have it in hand:
// its number may be anybody's the moment it is closed.
func (r *rawSocket) close() {
	r.shard.server.forget(r.shown())
	_ = unix.Close(r.fd)
}

// run serves until stopped. One round takes what is ready, sends what comes of it, and lets go.
func (h *shard) run() error {
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := unix.EpollWait(h.epoll, events, -1)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return fmt.Errorf("wait for sockets: %w", err)
		}
		h.begin()
		stopped := h.round(events[:n])
		h.end()
		if stopped {
			return nil
		}
	}
}

func (h *shard) round(events []unix.EpollEvent) (stopped bool) {
	for _, e := range events {
		fd := int(e.Fd)
		if fd == h.wake {
			stopped = true
			continue
		}
		switch p := h.server.endpoints.get(fd); {
		case p == nil:
		case p.listener != nil:
			h.fromClients(p.listener, fd)
		default:
			if e.Events&unix.EPOLLERR != 0 {
				h.icmp(p.relayed, fd)
			}
			h.fromPeers(p.relayed, fd)
		}
	}
	h.flush()
	h.lastSeat, h.lastList = nil, nil
	return stopped
}

func (h *shard) flush() {
	h.out.flush()
	h.slot = 0
}

// receive takes what fd has into free slots, which stay as they are until the next flush.
func (h *shard) receive(fd int) (first, end int) {
	if slots-h.slot < slots/4 {
		h.flush()
	}
	n, _ := h.in.receive(fd, h.slot) // EAGAIN, or an error of the network that is about nobody
	first = h.slot
	h.slot += n
	return first, h.slot
}

func (h *shard) fromClients(l *listener, fd int) {
	first, end := h.receive(fd)
	for i := first; i < end; i++ {
		d := h.in.datagram(i)
		for rest := d.data; ; {
			frame := rest[:min(d.segment, len(rest))]
			h.fromClient(l, fd, &d, frame)
			if rest = rest[len(frame):]; len(rest) == 0 {
				break
			}
		}
	}
}

func (h *shard) fromClient(l *listener, fd int, d *datagram, frame []byte) {
	switch turn.Classify(frame) {
	case turn.FrameChannelData:
		h.channelData(h.seatOf(l, d.from), frame, d.hop)
	case turn.FrameSTUN:
		if turn.IsSend(frame) {
			h.sendIndication(h.seatOf(l, d.from), frame, d.hop)
			return
		}
		h.request(l, fd, d.from, frame)
	default:
		h.server.stats.drop(DropMalformed)
	}
}

// seatOf finds a client's seat; of a burst of one client it looks only once.
func (h *shard) seatOf(l *listener, client netip.AddrPort) *seat {
	if h.lastSeat != nil && h.lastList == l && h.lastClient == client && !h.lastSeat.left.Load() {
		return h.lastSeat
	}
	e := l.seats.get(client)
	h.lastList, h.lastClient, h.lastSeat = l, client, e
	return e
}

func (h *shard) fromPeers(r *relayed, fd int) {
	first, end := h.receive(fd)
	for i := first; i < end; i++ {
		d := h.in.datagram(i)
		h.fromPeer(r, &d)
	}
}

func (h *shard) fromPeer(r *relayed, d *datagram) {
	f, st := r.flow, &h.server.stats
	b, permitted := f.fromPeer(d.from, h.now)
	e := f.at.Load()
	switch {
	case f.gone.Load():
		st.drop(DropNoAllocation)
		return
	case !permitted:
		st.drop(DropNoPermission)
		return
	case d.hop.ttl <= 1:
		st.drop(DropTTL)
		return
	case !h.server.reachable(d.from):
		st.drop(DropGuarded)
		return
	case e == nil:
		st.drop(DropAdrift)
		return
	}
	hp := hop{ttl: d.hop.ttl - 1, tos: d.hop.tos}
	c := &f.indications
	if b != nil {
		c = &b.counters
	}
	for rest := d.data; ; {
		payload := rest[:min(d.segment, len(rest))]
		switch {
		case !h.server.within(f, toClient, len(payload), h.now):
		case !h.toClient(e, b, d.from, payload, hp):
			st.drop(DropBacklog)
		default:
			st.toClient(c, len(payload))
		}
		if rest = rest[len(payload):]; len(rest) == 0 {
			return
		}
	}
}

// toClient sends what came from a peer to the client: by b, or in an indication where that is nil. False: the client's
// stream has no room.
func (h *shard) toClient(e *seat, b *binding, peer netip.AddrPort, payload []byte, hp hop) bool {
	switch {
	case e.stream != nil && b != nil:
		return e.stream.channelData(b.number, payload)
	case e.stream != nil:
		return e.stream.dataIndication(h.server.indicationID(), h.server.surroundings.Load().shown(peer), payload)
	}
	fd := e.listener.fds[h.index]
	if b != nil {
		h.out.room(fd, turn.ChannelHeader)
		head := h.out.take(turn.ChannelHeader)[:turn.ChannelHeader]
		turn.PutChannelHeader(head, b.number, len(payload))
		h.out.push(fd, &e.toClient, head, payload, hp, false)
		return true
	}
	n := len(payload) + turn.DataIndicationOverhead
	h.out.room(fd, n)
	shown := h.server.surroundings.Load().shown(peer)
	frame := turn.AppendDataIndication(h.out.take(n), h.server.indicationID(), shown, payload)
	h.out.push(fd, &e.toClient, frame, nil, hp, false)
	return true
}

// request takes a STUN request through the gate: it is answered here, or goes to the writer.
func (h *shard) request(l *listener, fd int, client netip.AddrPort, frame []byte) {
	reply := h.server.admit(l, h.index, client, frame, h.now)
	if reply == nil {
		return
	}
	switch o := h.server.originOf(reply, l); o {
	case l:
	case nil:
		return
	default:
		fd = o.fds[h.index]
	}
	h.out.room(fd, maxReply)
	b := reply.Append(h.out.take(maxReply))
	to := sockaddrOf(reply.To(client))
	h.out.push(fd, &to, b, nil, hop{}, true)
}

// uptime reads the boot-time clock.
func uptime() int64 {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts)
	return int64(time.Duration(ts.Sec)*time.Second) + ts.Nsec
}
