package main

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"turnstone/internal/netlab"

	"golang.org/x/sys/unix"
)

const (
	batch       = 64 // datagrams sent or received at once
	frameSize   = 1500
	controlSize = 96
)

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr unix.Msghdr
	n   uint32
	_   [4]byte
}

// ring is a batch of datagrams.
type ring struct {
	headers [batch]mmsghdr
	iovecs  [batch]unix.Iovec
	names   [batch]unix.RawSockaddrInet4
	control [batch][controlSize]byte
	frames  [batch][frameSize]byte
}

func newRing() *ring {
	r := &ring{}
	for i := range r.headers {
		r.iovecs[i].Base = &r.frames[i][0]
		h := &r.headers[i].hdr
		h.Iov, h.Iovlen = &r.iovecs[i], 1
		h.Name, h.Control = (*byte)(unsafe.Pointer(&r.names[i])), &r.control[i][0]
	}
	return r
}

// socket is one UDP socket that stands for all addresses of its host: each
// datagram names its own source. It is not safe for concurrent use.
type socket struct {
	fd       int
	in, out  *ring
	queued   int // datagrams
	messages int // they are in
}

// newSocket opens a socket on a port of every address of s. The kernel notes when
// each datagram came off the cable.
func newSocket(s *netlab.Space, port uint16) (*socket, error) {
	k := &socket{in: newRing(), out: newRing()}
	err := s.Do(func() (err error) {
		k.fd, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("open a socket: %w", err)
	}
	set := func(level, name, value int) {
		if err == nil {
			err = unix.SetsockoptInt(k.fd, level, name, value)
		}
	}
	set(unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20)
	set(unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, 64<<20)
	set(unix.SOL_IP, unix.IP_PKTINFO, 1)
	set(unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	if err == nil {
		err = unix.Bind(k.fd, &unix.SockaddrInet4{Port: int(port)})
	}
	if err != nil {
		k.close()
		return nil, fmt.Errorf("set up a socket: %w", err)
	}
	return k, nil
}

func (k *socket) close() { _ = unix.Close(k.fd) }

// next is the frame of the datagram to be queued next, for the caller to fill.
func (k *socket) next() []byte { return k.out.frames[k.queued][:] }

// queue queues the first n bytes of next for to, from one of the host's addresses. It
// flushes when a batch is full.
func (k *socket) queue(from netip.Addr, to netip.AddrPort, n int) error {
	k.iovec(n)
	i := k.messages
	port := to.Port()
	k.out.names[i] = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port<<8 | port>>8, Addr: to.Addr().As4()}
	h := &k.out.headers[i].hdr
	h.Namelen = unix.SizeofSockaddrInet4
	h.Iov, h.Iovlen = &k.out.iovecs[k.queued], 1
	a := from.As4()
	information := make([]byte, 0, unix.SizeofInet4Pktinfo)
	information = append(information, 0, 0, 0, 0) // any interface
	information = append(information, a[:]...)    // ipi_spec_dst
	information = append(information, 0, 0, 0, 0)
	h.Controllen = uint64(len(appendControl(k.out.control[i][:0], unix.SOL_IP, unix.IP_PKTINFO, information)))
	k.messages++
	return k.queuedOne()
}

// join queues the first n bytes of next as one more datagram in the train of the
// one queued last, which has the same size.
func (k *socket) join(n int) error {
	k.iovec(n)
	i := k.messages - 1
	h := &k.out.headers[i].hdr
	if h.Iovlen == 1 {
		size := binary.NativeEndian.AppendUint16(nil, uint16(n))
		h.Controllen = uint64(len(appendControl(k.out.control[i][:h.Controllen], unix.SOL_UDP, unix.UDP_SEGMENT, size)))
	}
	h.Iovlen++
	return k.queuedOne()
}

func (k *socket) iovec(n int) { k.out.iovecs[k.queued].Len = uint64(n) }

func (k *socket) queuedOne() error {
	k.queued++
	if k.queued == batch {
		return k.flush()
	}
	return nil
}

// appendControl appends a control message.
func appendControl(c []byte, level, kind uint32, value []byte) []byte {
	c = binary.NativeEndian.AppendUint64(c, uint64(unix.SizeofCmsghdr+len(value)))
	c = binary.NativeEndian.AppendUint32(c, level)
	c = binary.NativeEndian.AppendUint32(c, kind)
	c = append(c, value...)
	for len(c)%8 != 0 {
		c = append(c, 0)
	}
	return c
}

// flush sends what is queued. It waits for room in the socket.
func (k *socket) flush() error {
	for sent := 0; sent < k.messages; {
		n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(k.fd), uintptr(unsafe.Pointer(&k.out.headers[sent])), uintptr(k.messages-sent), 0, 0, 0)
		switch errno {
		case 0:
			sent += int(n)
		case unix.EINTR, unix.ENOBUFS, unix.ECONNREFUSED:
		default:
			return fmt.Errorf("send: %w", errno)
		}
	}
	k.queued, k.messages = 0, 0
	return nil
}

// receive takes what is there, waiting for at most wait for the first.
func (k *socket) receive(wait time.Duration) (int, error) {
	n, err := k.take()
	if n > 0 || err != nil || wait <= 0 {
		return n, err
	}
	p := []unix.PollFd{{Fd: int32(k.fd), Events: unix.POLLIN}}
	ts := unix.NsecToTimespec(int64(wait))
	if _, err := unix.Ppoll(p, &ts, nil); err != nil && err != unix.EINTR {
		return 0, fmt.Errorf("wait for a datagram: %w", err)
	}
	return k.take()
}

func (k *socket) take() (int, error) {
	for i := range k.in.headers {
		k.in.iovecs[i].Len = frameSize
		h := &k.in.headers[i].hdr
		h.Namelen, h.Controllen, h.Flags = unix.SizeofSockaddrInet4, controlSize, 0
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_RECVMMSG, uintptr(k.fd), uintptr(unsafe.Pointer(&k.in.headers[0])), batch, unix.MSG_DONTWAIT, 0, 0)
	switch errno {
	case 0:
		return int(n), nil
	case unix.EAGAIN, unix.EINTR, unix.ECONNREFUSED:
		return 0, nil
	}
	return 0, fmt.Errorf("receive: %w", errno)
}

// datagram is one that was received. Its data is good until the next receive.
type datagram struct {
	at    netip.Addr // which of the host's addresses it came to
	data  []byte
	stamp int64 // when, in nanoseconds of the wall clock
}

// datagram is what receive took, from 0.
func (k *socket) datagram(i int) datagram {
	h := &k.in.headers[i]
	d := datagram{data: k.in.frames[i][:h.n]}
	for c := k.in.control[i][:h.hdr.Controllen]; len(c) >= unix.SizeofCmsghdr; {
		length := int(binary.NativeEndian.Uint64(c))
		level, name := binary.NativeEndian.Uint32(c[8:]), binary.NativeEndian.Uint32(c[12:])
		switch {
		case level == unix.SOL_IP && name == unix.IP_PKTINFO:
			d.at = netip.AddrFrom4([4]byte(c[24:28])) // ipi_addr
		case level == unix.SOL_SOCKET && name == unix.SCM_TIMESTAMPNS:
			d.stamp = int64(binary.NativeEndian.Uint64(c[16:]))*1e9 + int64(binary.NativeEndian.Uint64(c[24:]))
		}
		c = c[min((length+7)&^7, len(c)):]
	}
	return d
}
