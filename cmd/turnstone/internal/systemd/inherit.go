package systemd

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"turnstone/turn"
	"turnstone/turn/relay"

	"golang.org/x/sys/unix"
)

// firstFD is where inherited descriptors begin (sd_listen_fds(3)).
const firstFD = 3

// Names of descriptors in the store.
const (
	adminName   = "admin"
	listenName  = "listen"
	relayedName = "relayed"
)

// Inherited are the sockets that the manager has handed to this process.
type Inherited struct {
	Sockets []relay.Socket
	Admin   int            // a listening Unix socket, -1 for none
	Named   map[string]int // how many of each name of the store there are
	Others  []error        // what is no socket that can be used, and why. It is closed
}

// Inherit takes them, once.
func Inherit() Inherited {
	in := Inherited{Admin: -1, Named: map[string]int{}}
	n, names := listenFDs()
	for i := range n {
		fd, name := firstFD+i, ""
		if i < len(names) {
			name = names[i]
		}
		unix.CloseOnExec(fd)
		if err := in.add(fd, name); err != nil {
			in.Others = append(in.Others, fmt.Errorf("descriptor %d (%s) of the service manager: %w", fd, name, err))
			_ = unix.Close(fd)
		}
	}
	return in
}

func listenFDs() (n int, names []string) {
	defer func() {
		for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
			_ = os.Unsetenv(name)
		}
	}()
	if os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return 0, nil
	}
	n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
	if err != nil {
		return 0, nil
	}
	return n, strings.Split(os.Getenv("LISTEN_FDNAMES"), ":")
}

func (in *Inherited) add(fd int, name string) error {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return fmt.Errorf("it is no socket: %w", err)
	}
	listens, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
	if err != nil {
		return err
	}
	at, err := unix.Getsockname(fd)
	if err != nil {
		return err
	}
	if kind == unix.SOCK_STREAM && listens == 0 {
		return errors.New("it is a stream that nothing is accepted from")
	}
	if _, local := at.(*unix.SockaddrUnix); local {
		if kind != unix.SOCK_STREAM || in.Admin >= 0 {
			return errors.New("it is no second admin socket")
		}
		in.Admin = fd
	} else {
		k := relay.Socket{Relayed: strings.HasPrefix(name, relayedName+"/"), Stream: kind == unix.SOCK_STREAM, FD: fd}
		if k.Address, err = address(at); err != nil {
			return err
		}
		in.Sockets = append(in.Sockets, k)
	}
	in.Named[name]++
	return nil
}

// address is where a socket of a listener is bound.
func address(at unix.Sockaddr) (a netip.AddrPort, err error) {
	switch at := at.(type) {
	case *unix.SockaddrInet4:
		a = netip.AddrPortFrom(netip.AddrFrom4(at.Addr), uint16(at.Port))
	case *unix.SockaddrInet6:
		a = turn.Canonical(netip.AddrPortFrom(netip.AddrFrom16(at.Addr), uint16(at.Port)))
	default:
		return a, errors.New("it is of no Internet address")
	}
	if a.Addr().IsUnspecified() {
		return a, fmt.Errorf("it is bound to %v, and answers have to come from one address: name each in the socket unit, as ListenDatagram=192.0.2.1:%d", a, a.Port())
	}
	return a, nil
}

// stored says whether a name is one that [Store] gives. Others are of socket units.
func stored(name string) bool {
	return name == adminName || strings.HasPrefix(name, listenName+"/") || strings.HasPrefix(name, relayedName+"/")
}

// nameOf is what a socket is called in the store. Colons may not be in a name.
func nameOf(k relay.Socket) string {
	ip := strings.ReplaceAll(k.Address.Addr().String(), ":", "_")
	if k.Relayed {
		return fmt.Sprintf("%s/%s/%d", relayedName, ip, k.Address.Port())
	}
	transport := "udp"
	if k.Stream {
		transport = "tcp"
	}
	return fmt.Sprintf("%s/%s/%s/%d", listenName, transport, ip, k.Address.Port())
}
