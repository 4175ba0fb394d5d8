package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"syscall"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// Socket is an open socket that outlives a process: that of a listener, or of a relayed transport address.
type Socket struct {
	Relayed bool
	Stream  bool // TCP, listening
	Address netip.AddrPort
	FD      int
}

// Keeper holds sockets beyond the life of the process. Its methods wait for nobody.
type Keeper interface {
	Keep(Socket)   // the descriptor stays open until the call returns
	Forget(Socket) // it is about to be closed for good
}

// place is what a socket is for.
type place struct {
	relayed, stream bool
	address         netip.AddrPort
}

func (k Socket) place() place { return place{k.Relayed, k.Stream, k.Address} }

// inheritance holds the sockets of an earlier process that nobody has taken yet. Of a listener there may be
// several: one for each loop.
type inheritance struct {
	mu sync.Mutex // guards m
	m  map[place][]int
}

func (h *inheritance) put(list []Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.m = map[place][]int{}
	for _, k := range list {
		h.m[k.place()] = append(h.m[k.place()], k.FD)
	}
}

// take yields the descriptors at p, which are the caller's from then on.
func (h *inheritance) take(p place) []int {
	h.mu.Lock()
	defer h.mu.Unlock()
	fds := h.m[p]
	delete(h.m, p)
	return fds
}

// rest empties h.
func (h *inheritance) rest() (list []Socket) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for p, fds := range h.m {
		for _, fd := range fds {
			list = append(list, Socket{Relayed: p.relayed, Stream: p.stream, Address: p.address, FD: fd})
		}
	}
	h.m = nil
	return list
}

// disown closes what was inherited and does not fit the log or the configuration.
func (s *Server) disown() {
	for _, k := range s.inherited.rest() {
		s.log.Warn().Stringer("address", k.Address).Bool("relayed", k.Relayed).Msg("a socket of the process before is closed: nothing here has it")
		s.forget(k)
		_ = unix.Close(k.FD)
	}
}

func (s *Server) keep(k Socket) {
	if s.config.Keeper != nil {
		s.config.Keeper.Keep(k)
	}
}

// forget has the keeper let go of a socket, unless it is closed because the process ends.
func (s *Server) forget(k Socket) {
	if s.config.Keeper != nil && !s.leaving.Load() {
		s.config.Keeper.Forget(k)
	}
}

// adoptUDP makes an inherited descriptor what [bindUDP] would have made.
func adoptUDP(fd int, a netip.AddrPort, buffer int, reusePort bool) error {
	family := unix.AF_INET6
	if a.Addr().Is4() {
		family = unix.AF_INET
	}
	unix.CloseOnExec(fd)
	if err := errors.Join(unix.SetNonblock(fd, true), setOptions(fd, family, buffer, reusePort)); err != nil {
		return fmt.Errorf("set up the inherited socket of %v: %w", a, err)
	}
	return nil
}

// duplicate is another descriptor of the socket of c.
func duplicate(c syscall.Conn) (fd int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1, err
	}
	var failed error
	err = raw.Control(func(f uintptr) { fd, failed = unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 3) })
	return fd, errors.Join(err, failed)
}

// inheritTCP is the listener of an earlier process at a; nil where there is none.
func (s *Server) inheritTCP(a netip.AddrPort) (net.Listener, error) {
	fds := s.inherited.take(place{stream: true, address: a})
	if len(fds) == 0 {
		return nil, nil
	}
	defer closeAll(fds)
	l, err := net.FileListener(fileOf(fds[0]))
	if err != nil {
		return nil, fmt.Errorf("listen on the inherited socket of %v: %w", a, err)
	}
	return l, nil
}

// inheritDTLS is likewise a socket that datagrams of DTLS clients come to.
func (s *Server) inheritDTLS(a netip.AddrPort) (*net.UDPConn, error) {
	fds := s.inherited.take(place{address: a})
	if len(fds) == 0 {
		return nil, nil
	}
	defer closeAll(fds)
	c, err := net.FilePacketConn(fileOf(fds[0]))
	if err != nil {
		return nil, fmt.Errorf("listen on the inherited socket of %v: %w", a, err)
	}
	return c.(*net.UDPConn), nil
}

// fileOf is a file of another descriptor of the socket of fd, for those who take one and leave it open. It closes
// itself when it is not used any more.
func fileOf(fd int) *os.File {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		n = -1
	}
	return os.NewFile(uintptr(n), "inherited")
}

func closeAll(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Leave has Run leave its sockets open for another process when it ends: see [Server.Sockets].
func (s *Server) Leave() { s.leaves.Store(true) }

// Sockets are what a server that was told to [Server.Leave] has left. They are the caller's. Run has returned.
func (s *Server) Sockets() []Socket { return s.left }

// leaveAccepts keeps the sockets of listeners that are about to be closed.
func (s *Server) leaveAccepts() error {
	if !s.leaves.Load() {
		return nil
	}
	var errs []error
	for _, l := range s.listeners() {
		for _, a := range l.accepts {
			fd, err := duplicate(a.socket())
			if err != nil {
				errs = append(errs, err)
				continue
			}
			s.left = append(s.left, Socket{Stream: l.Protocol != turn.DTLS, Address: l.Address, FD: fd})
		}
	}
	return errors.Join(errs...)
}

// leaveRest keeps all others. Nobody serves them any more.
func (s *Server) leaveRest() error {
	if !s.leaves.Load() {
		return nil
	}
	var errs []error
	leave := func(k Socket) {
		fd, err := unix.FcntlInt(uintptr(k.FD), unix.F_DUPFD_CLOEXEC, 3)
		if err != nil {
			errs = append(errs, fmt.Errorf("leave the socket of %v: %w", k.Address, err))
			return
		}
		k.FD = fd
		s.left = append(s.left, k)
	}
	for _, l := range s.listeners() {
		for _, fd := range l.distinct {
			leave(Socket{Address: l.Address, FD: fd})
		}
	}
	for _, f := range s.flows.byID {
		for _, r := range f.sockets {
			if k, ok := r.socket.(*rawSocket); ok && !r.ended {
				leave(k.shown())
			}
		}
	}
	for _, k := range s.pool.all() {
		if k, ok := k.(*rawSocket); ok {
			leave(k.shown())
		}
	}
	return errors.Join(errs...)
}
