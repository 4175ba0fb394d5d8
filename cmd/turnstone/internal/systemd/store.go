package systemd

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"turnstone/turn/relay"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Store keeps sockets in the manager's store of descriptors. It is a [relay.Keeper]: what it is given is told the
// manager in the background, in order.
type Store struct {
	log  zerolog.Logger
	most int
	wake chan struct{}

	mu      sync.Mutex     // guards the fields below
	there   map[string]int // descriptors by name, in the store or on their way
	before  map[string]int // of them inherited and not named by this process yet
	total   int
	queue   []message
	ends    bool
	refused bool // it was said that there is no room
}

// message is what the manager is to hear.
type message struct {
	name string
	fd   int // a duplicate; -1 to remove what has the name
}

// NewStore is the store of the manager, nil where it has none: since version 254 it says in $FDSTORE how many descriptors it
// takes. What was inherited of it is known to be there.
func NewStore(in Inherited, log zerolog.Logger) *Store {
	most, err := strconv.Atoi(os.Getenv("FDSTORE"))
	if err != nil || most <= 0 || os.Getenv("NOTIFY_SOCKET") == "" {
		return nil
	}
	s := &Store{log: log, most: most, wake: make(chan struct{}, 1), there: map[string]int{}, before: map[string]int{}}
	for name, n := range in.Named {
		if stored(name) {
			s.there[name], s.before[name] = n, n
			s.total += n
		}
	}
	return s
}

// Keep puts a socket into the store, as far as there is room.
func (s *Store) Keep(k relay.Socket) { s.keep(nameOf(k), k.FD) }

// KeepAdmin does so with the admin socket.
func (s *Store) KeepAdmin(fd int) { s.keep(adminName, fd) }

func (s *Store) keep(name string, fd int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.before[name] > 0 {
		s.before[name]--
		return
	}
	if s.total >= s.most {
		if !s.refused {
			s.log.Warn().Int("max", s.most).Msg("the service manager's store is full: sockets beyond it lose what comes to them during a restart; raise FileDescriptorStoreMax")
		}
		s.refused = true
		return
	}
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, firstFD)
	if err != nil {
		s.log.Warn().Err(err).Msg("a socket is not stored")
		return
	}
	s.there[name]++
	s.total++
	s.add(message{name, n})
}

// Forget takes what has the name of a socket out of the store.
func (s *Store) Forget(k relay.Socket) {
	name := nameOf(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.there[name] == 0 {
		return
	}
	s.total -= s.there[name]
	delete(s.there, name)
	delete(s.before, name)
	s.add(message{name, -1})
}

func (s *Store) add(m message) {
	s.queue = append(s.queue, m)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Run tells the manager until Close.
func (s *Store) Run() error {
	socket, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the way to the service manager: %w", err)
	}
	defer unix.Close(socket)
	_ = unix.SetsockoptTimeval(socket, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: int64(sendPatience / time.Second)})
	name := os.Getenv("NOTIFY_SOCKET")
	for {
		s.mu.Lock()
		queue, ends := s.queue, s.ends
		s.queue = nil
		s.mu.Unlock()
		for _, m := range queue {
			if err := s.tell(socket, name, m); err != nil {
				s.log.Warn().Err(err).Str("name", m.name).Msg("the store of the service manager may not be what it should be")
			}
		}
		if len(queue) == 0 {
			if ends {
				return nil
			}
			<-s.wake
		}
	}
}

// sendPatience is how long the manager may be busy.
const sendPatience = 10 * time.Second

func (s *Store) tell(socket int, to string, m message) error {
	if m.fd < 0 {
		return send(socket, to, "FDSTOREREMOVE=1\nFDNAME="+m.name, nil)
	}
	defer unix.Close(m.fd)
	// Without FDPOLL=0 the manager would drop a socket at the first ICMP error that waits in it.
	return send(socket, to, "FDSTORE=1\nFDPOLL=0\nFDNAME="+m.name, []int{m.fd})
}

// Close has Run end once all is told.
func (s *Store) Close() {
	s.mu.Lock()
	s.ends = true
	s.mu.Unlock()
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// Len is how many descriptors the store holds.
func (s *Store) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}
