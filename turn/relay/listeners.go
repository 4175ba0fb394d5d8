package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"turnstone/turn"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// opened are the open listeners. Whoever looks at them sees those of one moment.
type opened struct {
	list atomic.Pointer[[]*listener]

	mu      sync.Mutex // guards changes of list and what of a listener is in force
	ended   bool       // the server stops: nothing is opened any more
	accepts sync.WaitGroup
}

var errLeaving = errors.New("it is being closed just now: try again")

// listeners are those that are open. Some may be retired: see [listener].
func (s *Server) listeners() []*listener {
	if p := s.opened.list.Load(); p != nil {
		return *p
	}
	return nil
}

// Retired are the listeners that no settings name any more, and that are open for the allocations they have.
func (s *Server) Retired() (list []Listener) {
	for _, l := range s.listeners() {
		if l.retired.Load() {
			list = append(list, l.Listener)
		}
	}
	return list
}

// TryListen says why l cannot be opened.
func TryListen(l Listener) error {
	if l.Protocol == turn.TCP || l.Protocol == turn.TLS {
		n, err := net.Listen("tcp", l.Address.String())
		if err == nil {
			err = n.Close()
		}
		return err
	}
	fd, err := bindUDP(l.Address, 0, false)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

// openMore opens those of wanted that are not open, which nothing is heard on yet, and takes back those that
// are retired. undo makes that good, if it is not to be.
func (s *Server) openMore(wanted []Listener) (more []*listener, undo func(), err error) {
	s.opened.mu.Lock()
	defer s.opened.mu.Unlock()
	var back []*listener
	undo = func() {
		s.opened.mu.Lock()
		defer s.opened.mu.Unlock()
		for _, l := range back {
			l.retired.Store(true)
		}
		for _, l := range more {
			_ = l.close()
		}
	}
	fail := func(err error) ([]*listener, func(), error) {
		for _, l := range back {
			l.retired.Store(true)
		}
		for _, l := range more {
			err = errors.Join(err, l.close())
		}
		return nil, nil, err
	}
	for _, w := range wanted {
		switch l := s.listenerOf(w.Address, w.Protocol); {
		case l == nil:
			l = &listener{Listener: w}
			if err := s.openListener(l); err != nil {
				return fail(errors.Join(err, l.close()))
			}
			more = append(more, l)
		case l.leaving:
			return fail(fmt.Errorf("listen on %v/%v: %w", w.Protocol, w.Address, errLeaving))
		case l.retired.Load():
			l.retired.Store(false)
			back = append(back, l)
		}
	}
	return more, undo, nil
}

// openListener opens the sockets of l.
func (s *Server) openListener(l *listener) error {
	switch secret := l.Protocol == turn.TLS || l.Protocol == turn.DTLS; {
	case secret && s.streams.Load().TLS == nil:
		return fmt.Errorf("listen on %v/%v: %w", l.Protocol, l.Address, errNoCertificate)
	case s.config.Net != nil && l.Protocol != turn.UDP:
		return fmt.Errorf("listen on %v/%v: a virtual network has only udp", l.Protocol, l.Address)
	case s.config.Net != nil:
		c, err := s.openNet(l.Address)
		if err != nil {
			return fmt.Errorf("listen on %v: %w", l.Address, err)
		}
		l.conn = c
		return nil
	case l.Protocol == turn.UDP:
		return s.listen(l)
	}
	return s.listenStream(l)
}

// listen opens a socket of l in each shard. The first is bound alone for a
// moment: sharing the port is for our shards, not for somebody else's server. Inherited ones
// come first; where no more may be bound beside them, as with those of systemd, shards share them.
func (s *Server) listen(l *listener) error {
	inherited := s.inherited.take(place{address: l.Address})
	if len(inherited) == 0 {
		probe, err := bindUDP(l.Address, 0, false)
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		if err := unix.Close(probe); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	l.fds, l.distinct = slices.Clone(inherited), inherited
	for _, fd := range inherited {
		if err := adoptUDP(fd, l.Address, ListenerBuffer, true); err != nil {
			return fmt.Errorf("listen: %w", err)
		}
	}
	for i := len(inherited); i < len(s.shards); i++ {
		fd, err := bindUDP(l.Address, ListenerBuffer, true)
		if err == nil {
			l.distinct = append(l.distinct, fd)
		} else if len(inherited) > 0 {
			fd, err = unix.FcntlInt(uintptr(inherited[i%len(inherited)]), unix.F_DUPFD_CLOEXEC, 3)
		}
		if err != nil {
			return fmt.Errorf("listen: %w", err)
		}
		l.fds = append(l.fds, fd)
	}
	return nil
}

// start has l heard.
func (s *Server) start(l *listener) error {
	for i, fd := range l.fds {
		s.endpoints.set(fd, &endpoint{listener: l})
		if err := s.shards[i%len(s.shards)].watch(fd); err != nil {
			return err
		}
	}
	for _, fd := range l.distinct {
		s.keep(Socket{Address: l.Address, FD: fd})
	}
	for _, a := range l.accepts {
		if fd, err := duplicate(a.socket()); err == nil {
			s.keep(Socket{Stream: l.Protocol != turn.DTLS, Address: l.Address, FD: fd})
			_ = unix.Close(fd)
		}
		s.opened.accepts.Go(a.accept)
	}
	if l.conn != nil {
		s.readers.Go(func() {
			s.readAll(l.conn, func(from netip.AddrPort, b []byte) { s.netFromClient(l, from, b) })
		})
	}
	return nil
}

// install has more heard, and retires those that wanted does not name; nil retires none.
func (s *Server) install(more []*listener, wanted []Listener) error {
	s.opened.mu.Lock()
	defer s.opened.mu.Unlock()
	if s.opened.ended {
		return ErrStopped
	}
	list := slices.Concat(s.listeners(), more)
	s.opened.list.Store(&list)
	for _, l := range more {
		if err := s.start(l); err != nil { // out of memory: it is as if no datagram came
			s.log.Error().Err(err).Stringer("listener", l.Address).Msg("a listener is not served")
		}
		s.log.Info().Stringer("protocol", l.Protocol).Stringer("address", l.Address).Msg("listening")
	}
	for _, l := range list {
		if wanted != nil && !slices.Contains(wanted, l.Listener) && !l.retired.Swap(true) {
			s.log.Info().Stringer("protocol", l.Protocol).Stringer("address", l.Address).Msg("no new clients here: those that have allocations are served until they end")
		}
	}
	return nil
}

// heeds says whether what o sent is looked at: a retired listener knows only those that hold an allocation by it,
// and on a new stream who binds a connection of one.
func (o *origin) heeds() bool {
	l := o.listener
	return !l.retired.Load() || l.seats.get(o.client) != nil || (o.stream != nil && turn.IsConnectionBind(o.frame))
}

// grants says whether r may be decided: by a retired listener nothing begins.
func (w *writer) grants(r request) bool {
	return !r.listener.retired.Load() || r.Method == stun.MethodConnectionBind || w.state.ByFiveTuple(r.FiveTuple) != nil
}

// dismiss has retired listeners closed that no allocation needs any more, once that is durable.
func (w *writer) dismiss() {
	var unused []*listener
	for _, l := range w.s.listeners() {
		if l.retired.Load() && !l.leaving {
			unused = append(unused, l)
		}
	}
	if len(unused) == 0 {
		return
	}
	for a := range w.state.Allocations() {
		for t := range a.FiveTuples() {
			unused = slices.DeleteFunc(unused, func(l *listener) bool { return l.Address == t.Server && l.Protocol == t.Protocol })
		}
	}
	for _, l := range unused {
		w.begin()
		w.s.opened.leave(l, true)
		w.open.after = append(w.open.after, func(err error) {
			if w.s.opened.leave(l, false); err == nil {
				w.s.shut(l)
			}
		})
	}
}

func (o *opened) leave(l *listener, is bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	l.leaving = is
}

// shut closes a retired listener that no flow uses.
func (s *Server) shut(l *listener) {
	s.opened.mu.Lock()
	defer s.opened.mu.Unlock()
	if s.opened.ended || !l.retired.Load() {
		return
	}
	list := slices.DeleteFunc(slices.Clone(s.listeners()), func(o *listener) bool { return o == l })
	s.opened.list.Store(&list)
	for i, fd := range l.fds {
		s.endpoints.set(fd, nil)
		_ = unix.EpollCtl(s.shards[i%len(s.shards)].epoll, unix.EPOLL_CTL_DEL, fd, nil) // it may never have been watched
	}
	s.grace()
	s.replies.mu.Lock()
	l.closed = true
	s.replies.mu.Unlock()
	s.forget(Socket{Stream: l.Protocol == turn.TCP || l.Protocol == turn.TLS, Address: l.Address, FD: -1})
	if err := l.close(); err != nil {
		s.log.Warn().Err(err).Stringer("listener", l.Address).Msg("listener not closed well")
	}
	s.log.Info().Stringer("protocol", l.Protocol).Stringer("address", l.Address).Msg("listener closed")
}

// close closes the sockets of l.
func (l *listener) close() error {
	var errs []error
	for _, fd := range l.fds {
		errs = append(errs, unix.Close(fd))
	}
	l.fds, l.distinct = nil, nil
	if l.conn != nil {
		_ = l.conn.Close() // it may be already; likewise below
	}
	for _, a := range l.accepts {
		_ = a.close()
	}
	return errors.Join(errs...)
}
