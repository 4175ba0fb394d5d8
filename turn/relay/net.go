package relay

import (
	"errors"
	"net"
	"net/netip"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// packetConn is a socket of a network that is not the host's: a virtual one in tests.
type packetConn = net.PacketConn

func udpAddr(a netip.AddrPort) net.Addr { return net.UDPAddrFromAddrPort(a) }

// errAddressInUse says that a relayed transport address belongs to somebody else.
var errAddressInUse = unix.EADDRINUSE

// netSocket is a relayed transport address on a packetConn.
type netSocket struct {
	server *Server
	conn   packetConn
}

func (n *netSocket) serve(r *relayed) {
	n.server.readers.Go(func() {
		n.server.readAll(n.conn, func(from netip.AddrPort, b []byte) { n.server.netFromPeer(r, from, b) })
	})
}

func (n *netSocket) stop() {} // the flow is gone: what still comes is dropped

func (n *netSocket) close() { _ = n.conn.Close() }

// readAll reads c until it is closed.
func (s *Server) readAll(c packetConn, each func(netip.AddrPort, []byte)) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFrom(b)
		if err != nil {
			return
		}
		if u, ok := from.(*net.UDPAddr); ok {
			each(turn.Canonical(u.AddrPort()), b[:n])
		}
	}
}

// openNet opens a socket on the virtual network.
func (s *Server) openNet(a netip.AddrPort) (packetConn, error) {
	c, err := s.config.Net.ListenPacket("udp", a.String())
	if err != nil {
		return nil, errors.Join(errAddressInUse, err)
	}
	return c, nil
}

// netFromClient is what a shard does with a frame of a client, one at a time.
func (s *Server) netFromClient(l *listener, client netip.AddrPort, frame []byte) {
	now := int64(s.clock().Uptime)
	at := l.seats.get(client)
	f := at.of()
	switch turn.Classify(frame) {
	case turn.FrameChannelData:
		number, payload, err := turn.ParseChannelData(frame)
		if err != nil {
			s.stats.drop(DropMalformed)
		} else if f == nil {
			s.stats.drop(DropNoAllocation)
		} else if b := f.channel(number, now); b == nil || b.socket == nil {
			s.stats.drop(DropNoChannel)
		} else {
			s.netArrive(at)
			s.netToPeer(b.socket, b.peer, payload, &b.counters)
		}
	case turn.FrameSTUN:
		if !turn.IsSend(frame) {
			if reply := s.admit(l, 0, client, frame, now); reply != nil {
				if o := s.originOf(reply, l); o != nil {
					_, _ = o.conn.WriteTo(reply.Append(nil), udpAddr(reply.To(client)))
				}
			}
			return
		}
		peer, payload, dontFragment, err := turn.ParseSend(frame)
		if err != nil || dontFragment {
			s.stats.drop(DropMalformed)
			return
		}
		if peer = s.surroundings.Load().private(peer); f == nil || !f.permits(peer.Addr(), now) || f.socketFor(peer.Addr()) == nil {
			s.stats.drop(DropNoPermission)
			return
		}
		s.netArrive(at)
		s.netToPeer(f.socketFor(peer.Addr()), peer, payload, &f.indications)
	default:
		s.stats.drop(DropMalformed)
	}
}

func (s *Server) netArrive(e *seat) {
	if e.coming.Load() {
		s.arrive(e)
	}
}

func (s *Server) netToPeer(r *relayed, peer netip.AddrPort, payload []byte, c *counters) {
	if !s.reachable(peer) {
		s.stats.drop(DropGuarded)
		return
	}
	if !s.within(r.flow, toPeer, len(payload), int64(s.clock().Uptime)) {
		return
	}
	if _, err := r.socket.(*netSocket).conn.WriteTo(payload, udpAddr(peer)); err != nil {
		s.stats.drop(DropSend)
		return
	}
	c.toPeer(len(payload))
	s.stats.toPeerPackets.Add(1)
	s.stats.toPeerBytes.Add(uint64(len(payload)))
}

// netFromPeer is what a shard does with a datagram of a peer.
func (s *Server) netFromPeer(r *relayed, peer netip.AddrPort, payload []byte) {
	f := r.flow
	b, permitted := f.fromPeer(peer, int64(s.clock().Uptime))
	if !permitted || f.gone.Load() {
		s.stats.drop(DropNoPermission)
		return
	}
	if !s.reachable(peer) {
		s.stats.drop(DropGuarded)
		return
	}
	e := f.at.Load()
	if e == nil {
		s.stats.drop(DropAdrift)
		return
	}
	if !s.within(f, toClient, len(payload), int64(s.clock().Uptime)) {
		return
	}
	c := &f.indications
	var frame []byte
	if b != nil {
		c = &b.counters
		frame = append(make([]byte, turn.ChannelHeader, turn.ChannelHeader+len(payload)), payload...)
		turn.PutChannelHeader(frame, b.number, len(payload))
	} else {
		frame = turn.AppendDataIndication(nil, s.indicationID(), s.surroundings.Load().shown(peer), payload)
	}
	if _, err := e.listener.conn.WriteTo(frame, udpAddr(e.client)); err != nil {
		s.stats.drop(DropSend)
		return
	}
	s.stats.toClient(c, len(payload))
}
