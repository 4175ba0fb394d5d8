package relay

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"turnstone/turn"
)

// Bounds of a stream, in bytes.
const (
	dataBacklog  = 256 << 10            // of what peers sent and the client has not taken: what is beyond is dropped
	replyBacklog = dataBacklog + 64<<10 // with the answers: whoever does not even take these is cut off
)

const (
	lastAnswers = 5 * time.Second     // that a client which has said its last waits for the answers
	bindTimeout = turn.AnswerLifetime // that one which binds a connection does
)

// hopOfStream is what a datagram to a peer has where nothing came in an IP packet of its own: the usual TTL
// and no DSCP (RFC 8656 section 15).
var hopOfStream = hop{ttl: 65}

// stream is a client's connection to a listener that is not UDP. The allocation that is made over it
// ends with it: its keys, or its sequence numbers, cannot outlive the process.
type stream struct {
	server    *Server
	listener  *listener
	conn      net.Conn
	client    netip.AddrPort
	datagrams bool                 // DTLS: each frame is a message of its own
	seat      atomic.Pointer[seat] // of its allocation, nil while it has none
	gone      atomic.Bool          // it has ended: nothing it asked for is decided any more
	requests  atomic.Int32         // that wait for their answer
	bound     atomic.Uint32        // the connection that a ConnectionBind bound, zero for none

	mu      sync.Mutex // guards the fields below
	changed sync.Cond
	out     []byte // frames that are to be written
	cuts    []int  // the end of each, where datagrams is true
	busy    bool   // some are being written
	closed  bool
}

func newStream(s *Server, l *listener, conn net.Conn, client netip.AddrPort) *stream {
	c := &stream{server: s, listener: l, conn: conn, client: client, datagrams: l.Protocol == turn.DTLS}
	c.changed.L = &c.mu
	return c
}

// serve reads until the client or the server ends the stream.
func (c *stream) serve() {
	written := make(chan struct{})
	go func() { c.writeAll(); close(written) }()
	early, err := c.readAll(nil)
	for errors.Is(err, errBinds) {
		p, bound := c.binds()
		if !bound {
			early, err = c.readAll(early)
			continue
		}
		c.shut() // all is written
		<-written
		if p != nil {
			c.pipe(p, early)
		}
		break
	}
	if errors.Is(err, io.EOF) {
		c.drain()
	}
	c.gone.Store(true)
	c.shut()
	_ = c.conn.Close() // the client knows, or is not there to be told
	<-written
	c.server.log.Debug().Err(err).Stringer("client", c.client).Stringer("protocol", c.listener.Protocol).Msg("stream ended")
}

// shut lets the writing end.
func (c *stream) shut() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.changed.Broadcast()
}

// drain waits until what the client has asked for is answered, and written.
func (c *stream) drain() {
	timer := time.AfterFunc(lastAnswers, c.shut)
	defer timer.Stop()
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && (c.requests.Load() > 0 || len(c.out) > 0 || c.busy) {
		c.changed.Wait()
	}
}

// readAll takes frames, the first of which are in early, until there are no more. After errBinds it yields what follows.
func (c *stream) readAll(early []byte) (rest []byte, err error) {
	in := newIntake(early, c.datagrams)
	last := time.Now() // of a whole frame, or of the end of an allocation
	for fresh := in.n > 0; ; fresh = true {
		if fresh {
			got := in.n
			taken, failed := c.take(in.buf[:in.n])
			if taken > 0 {
				last = time.Now()
			}
			in.skip(taken)
			if failed != nil {
				return in.buf[:in.n], failed
			}
			if failed = in.fit(got, c.seat.Load() != nil, time.Now()); failed != nil {
				return nil, failed
			}
			if err != nil && (!errors.Is(err, os.ErrDeadlineExceeded) || c.seat.Load() == nil && time.Since(last) >= c.server.streams.Load().Idle) {
				return nil, err
			}
		}
		if c.seat.Load() != nil {
			last = time.Now()
		}
		if err := c.conn.SetReadDeadline(in.until(last.Add(c.server.streams.Load().Idle))); err != nil {
			return nil, err
		}
		var n int
		n, err = c.conn.Read(in.buf[in.n:])
		in.n += n
	}
}

var errSlow = errors.New("the client does not take its answers")

// take handles the whole frames that b begins with, and says how many bytes they are.
func (c *stream) take(b []byte) (taken int, err error) {
	hands := &c.server.hands
	h := hands.borrow(c.server)
	defer func() { hands.give(h) }()
	for taken < len(b) {
		n := len(b)
		if !c.datagrams {
			if n, err = turn.StreamFrame(b[taken:]); err != nil || n == 0 || n > len(b)-taken {
				return taken, err
			}
		}
		frame := b[taken : taken+n]
		taken += n
		switch turn.Classify(frame) {
		case turn.FrameChannelData:
			h.channelData(c.seat.Load(), frame, hopOfStream)
		case turn.FrameSTUN:
			if turn.IsSend(frame) {
				h.sendIndication(c.seat.Load(), frame, hopOfStream)
				continue
			}
			hands.give(h) // the writer may be waited for
			c.request(frame)
			h = hands.borrow(c.server)
			if turn.IsConnectionBind(frame) {
				return taken, errBinds
			}
		default:
			c.server.stats.drop(DropMalformed)
		}
	}
	return taken, nil
}

// request takes a STUN request through the gate. Unlike one in a datagram it is never dropped for
// want of room: nobody repeats it.
func (c *stream) request(frame []byte) {
	q, gate, reply := c.server.judge(origin{listener: c.listener, client: c.client, stream: c, frame: frame})
	if reply != nil {
		c.reply(reply.Append(nil))
	}
	if q == nil {
		return
	}
	c.requests.Add(1)
	r := request{Request: q, listener: c.listener, gate: gate, stream: c, frame: append([]byte(nil), frame...)}
	select {
	case c.server.requests <- r:
	case <-c.server.stopping:
	}
}

// again takes a request through the gate that is in force now: it was another when it was asked.
func (c *stream) again(frame []byte) {
	c.request(frame)
	c.answered()
}

// answered says that a request of the client needs no answer any more.
func (c *stream) answered() {
	c.requests.Add(-1)
	c.changed.Broadcast()
}

// channelData sends payload to the client. False: there is no room for it.
func (c *stream) channelData(n turn.ChannelNumber, payload []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.out)+turn.ChannelHeader+len(payload) > dataBacklog {
		return false
	}
	c.out = turn.AppendChannelData(c.out, n, payload) // some clients look for the padding over DTLS too
	c.queued()
	return true
}

// dataIndication is channelData for a peer without a channel.
func (c *stream) dataIndication(tx turn.TransactionID, peer netip.AddrPort, payload []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.out)+turn.DataIndicationOverhead+len(payload) > dataBacklog {
		return false
	}
	c.out = turn.AppendDataIndication(c.out, tx, peer, payload)
	c.queued()
	return true
}

// icmpIndication tells the client of an ICMP error, if there is room.
func (c *stream) icmpIndication(tx turn.TransactionID, peer netip.AddrPort, e turn.ICMPError) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.out)+turn.ICMPIndicationSize > dataBacklog {
		return
	}
	c.out = turn.AppendICMPIndication(c.out, tx, peer, e)
	c.queued()
}

// reply sends an answer.
func (c *stream) reply(b []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
	case len(c.out)+len(b) > replyBacklog:
		c.cutOff(errSlow)
	default:
		c.out = append(c.out, b...)
		c.queued()
	}
}

// queued says that a frame was added to out, with mu held.
func (c *stream) queued() {
	if c.datagrams {
		c.cuts = append(c.cuts, len(c.out))
	}
	if !c.busy {
		c.changed.Broadcast()
	}
}

// cutOff ends the stream of a client that does not take its answers, with mu held.
func (c *stream) cutOff(why error) {
	c.server.stats.cutOff.Add(1)
	c.server.sampled.Info().Err(why).Stringer("client", c.client).Msg("stream cut off")
	c.end()
}

// end ends the stream, with mu held.
func (c *stream) end() {
	c.closed = true
	c.changed.Broadcast()
	go c.conn.Close() //nolint:errcheck // reader and writer end; it may wait to tell the client
}

// writeAll writes what waits, all of it at once, until the stream is shut.
func (c *stream) writeAll() {
	var spare []byte
	var cuts []int
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(c.out) == 0 && !c.closed {
			c.changed.Wait()
		}
		if len(c.out) == 0 {
			return
		}
		b, ends := c.out, c.cuts
		c.out, c.cuts, c.busy = spare[:0], cuts[:0], true
		c.mu.Unlock()
		err := c.write(b, ends)
		c.mu.Lock()
		spare, cuts, c.busy = b, ends, false
		if cap(spare) > 2*replyBacklog {
			spare = nil
		}
		c.changed.Broadcast()
		if err != nil {
			var stalled net.Error
			switch {
			case c.closed:
			case errors.As(err, &stalled) && stalled.Timeout():
				c.cutOff(err)
			default: // the client left
				c.end()
			}
			return
		}
	}
}

func (c *stream) write(b []byte, ends []int) error {
	if err := c.conn.SetWriteDeadline(time.Now().Add(c.server.streams.Load().Stall)); err != nil {
		return err
	}
	if !c.datagrams {
		_, err := c.conn.Write(b)
		return err
	}
	from := 0
	for _, end := range ends {
		if _, err := c.conn.Write(b[from:end]); err != nil {
			return err
		}
		from = end
	}
	return nil
}

// handshake proves a stream's secrecy before it is read from.
type handshake interface {
	HandshakeContext(context.Context) error
}

// shake does the handshake of conn, if its protocol has one.
func (s *Server) shake(conn net.Conn) error {
	h, ok := conn.(handshake)
	if !ok {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.streams.Load().Handshake)
	defer cancel()
	return h.HandshakeContext(ctx)
}
