package main

import (
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"time"

	"turnstone/internal/netlab"

	"golang.org/x/sys/unix"
)

// connections are clients on streams, one connection each, behind what a socket has. One thread serves
// all of them. It is not safe for concurrent use.
type connections struct {
	epoll    int
	list     []*connection
	events   [flowCount]unix.EpollEvent
	frame    [frameSize]byte
	got      []datagram
	last     *connection // that of the frame queued last
	unsent   []*connection
	received []*connection // what of got is in their buffers
}

// connection is the stream of one client.
type connection struct {
	address netip.Addr
	raw     *rawStream
	stream  io.ReadWriter // raw, or TLS over it
	in      []byte        // what has come
	taken   int           // bytes of in that were yielded
	out     []byte        // what is queued
}

var errHandshake = errors.New("no handshake")

// newConnections connects the first n clients to a server, over TLS where config is not nil. It yields
// errHandshake where the server does not speak it.
func newConnections(s *netlab.Space, n int, to netip.AddrPort, config *tls.Config) (_ *connections, err error) {
	k := &connections{}
	if k.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return nil, fmt.Errorf("watch connections: %w", err)
	}
	defer func() {
		if err != nil {
			k.close()
		}
	}()
	for i := range n {
		c := &connection{address: nth(clientAddresses, i)}
		if c.raw, err = connect(s, c.address, to); err != nil {
			return nil, fmt.Errorf("connect to %v: %w", to, err)
		}
		k.list = append(k.list, c)
		c.stream = c.raw
		if config != nil {
			t := tls.Client(c.raw, config)
			if err := t.Handshake(); err != nil {
				return nil, fmt.Errorf("%w with %v: %w", errHandshake, to, err)
			}
			c.stream = t
		}
		c.raw.patient = false
		event := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(i)}
		if err := unix.EpollCtl(k.epoll, unix.EPOLL_CTL_ADD, c.raw.fd, &event); err != nil {
			return nil, fmt.Errorf("watch a connection: %w", err)
		}
	}
	return k, nil
}

func (k *connections) close() {
	for _, c := range k.list {
		_ = unix.Close(c.raw.fd)
	}
	_ = unix.Close(k.epoll)
}

func (k *connections) next() []byte { return k.frame[:] }

// queue queues the first n bytes of next on the stream of a client. What is queued there already is sent
// first: frames share a write only where they are joined.
func (k *connections) queue(from netip.Addr, _ netip.AddrPort, n int) error {
	a := from.As4()
	i := int(a[2])<<8 | int(a[3])
	if i >= len(k.list) || k.list[i].address != from {
		return fmt.Errorf("%v has no connection", from)
	}
	k.last = k.list[i]
	if len(k.last.out) > 0 {
		if err := k.last.send(); err != nil {
			return err
		}
	} else {
		k.unsent = append(k.unsent, k.last)
	}
	return k.join(n)
}

// join queues the first n bytes of next behind the frame queued last, with its padding.
func (k *connections) join(n int) error {
	k.last.out = append(k.last.out, k.frame[:n]...)
	for len(k.last.out)%4 != 0 {
		k.last.out = append(k.last.out, 0)
	}
	return nil
}

func (k *connections) flush() error {
	for _, c := range k.unsent {
		if err := c.send(); err != nil {
			return err
		}
	}
	k.unsent = k.unsent[:0]
	return nil
}

// receive takes the whole frames that are there, waiting for at most wait for something to come.
func (k *connections) receive(wait time.Duration) (int, error) {
	k.got = k.got[:0]
	for _, c := range k.received {
		c.in, c.taken = append(c.in[:0], c.in[c.taken:]...), 0
	}
	k.received = k.received[:0]
	n, err := unix.EpollWait(k.epoll, k.events[:], int(wait.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return 0, fmt.Errorf("wait for a connection: %w", err)
	}
	for _, e := range k.events[:max(n, 0)] {
		c := k.list[e.Fd]
		if err := c.fill(); err != nil {
			return 0, fmt.Errorf("receive of %v: %w", c.address, err)
		}
		k.received = append(k.received, c)
		for frame := c.cut(); frame != nil; frame = c.cut() {
			k.got = append(k.got, datagram{at: c.address, data: frame})
		}
	}
	return len(k.got), nil
}

// datagram is what receive took, from 0. It has no stamp.
func (k *connections) datagram(i int) datagram { return k.got[i] }

func (c *connection) send() error {
	_, err := c.stream.Write(c.out)
	c.out = c.out[:0]
	if err != nil {
		return fmt.Errorf("send of %v: %w", c.address, err)
	}
	return nil
}

// fill reads until nothing is left, also in the buffers of TLS.
func (c *connection) fill() error {
	for {
		if cap(c.in)-len(c.in) < 32<<10 {
			c.in = append(make([]byte, 0, 2*cap(c.in)+64<<10), c.in...)
		}
		n, err := c.stream.Read(c.in[len(c.in):cap(c.in)])
		c.in = c.in[:len(c.in)+n]
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return err
		}
	}
}

// cut yields the next message or ChannelData that is there as a whole, without its padding (RFC 8656 §12.5).
func (c *connection) cut() []byte {
	b := c.in[c.taken:]
	if len(b) < 4 {
		return nil
	}
	n := int(binary.BigEndian.Uint16(b[2:])) + 4
	if b[0] < 64 {
		n += 16
	}
	padded := (n + 3) &^ 3
	if len(b) < padded {
		return nil
	}
	c.taken += padded
	return b[:n]
}

// rawStream is a TCP connection of which reads that would wait fail with os.ErrDeadlineExceeded, which TLS
// survives, unless it is patient.
type rawStream struct {
	fd      int
	patient bool
}

// connect connects from an address of s. A server that answers over UDP need not listen yet.
func connect(s *netlab.Space, from netip.Addr, to netip.AddrPort) (*rawStream, error) {
	for began := time.Now(); ; pause(time.Millisecond) {
		r, err := dial(s, from, to)
		if err == nil || !errors.Is(err, unix.ECONNREFUSED) || time.Since(began) > giveUpAfter {
			return r, err
		}
	}
}

func dial(s *netlab.Space, from netip.Addr, to netip.AddrPort) (r *rawStream, err error) {
	r = &rawStream{patient: true}
	err = s.Do(func() (err error) {
		r.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, err
	}
	err = errors.Join(
		unix.SetsockoptInt(r.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1),
		unix.Bind(r.fd, &unix.SockaddrInet4{Addr: from.As4()}),
	)
	if err == nil {
		err = unix.Connect(r.fd, &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())})
	}
	if err == nil {
		err = unix.SetNonblock(r.fd, true)
	}
	if err != nil {
		return nil, errors.Join(err, unix.Close(r.fd))
	}
	return r, nil
}

func (r *rawStream) Read(b []byte) (int, error) {
	for {
		n, err := unix.Read(r.fd, b)
		switch {
		case err == nil && n == 0:
			return 0, io.EOF
		case err == nil:
			return n, nil
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EAGAIN):
			return 0, err
		case !r.patient:
			return 0, os.ErrDeadlineExceeded
		default:
			if err := r.await(unix.POLLIN); err != nil {
				return 0, err
			}
		}
	}
}

// Write waits for room.
func (r *rawStream) Write(b []byte) (int, error) {
	for sent := 0; sent < len(b); {
		n, err := unix.Write(r.fd, b[sent:])
		switch {
		case err == nil:
			sent += n
		case errors.Is(err, unix.EINTR):
		case !errors.Is(err, unix.EAGAIN):
			return sent, err
		default:
			if err := r.await(unix.POLLOUT); err != nil {
				return sent, err
			}
		}
	}
	return len(b), nil
}

// await waits until the connection is ready for events.
func (r *rawStream) await(events int16) error {
	p := []unix.PollFd{{Fd: int32(r.fd), Events: events}}
	n, err := unix.Poll(p, int(giveUpAfter.Milliseconds()))
	if err != nil && !errors.Is(err, unix.EINTR) {
		return fmt.Errorf("wait for a connection: %w", err)
	}
	if err == nil && n == 0 {
		return fmt.Errorf("the server neither reads nor writes for %v", giveUpAfter)
	}
	return nil
}

// The rest of a net.Conn, which TLS asks for and does not use here.

func (r *rawStream) Close() error                     { return unix.Close(r.fd) }
func (r *rawStream) LocalAddr() net.Addr              { return nil }
func (r *rawStream) RemoteAddr() net.Addr             { return nil }
func (r *rawStream) SetDeadline(time.Time) error      { return nil }
func (r *rawStream) SetReadDeadline(time.Time) error  { return nil }
func (r *rawStream) SetWriteDeadline(time.Time) error { return nil }
