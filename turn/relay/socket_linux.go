package relay

import (
	"errors"
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"
)

// ListenerBuffer is what a listener asks for as receive and as send buffer, in bytes. The kernel doubles it for its
// own needs and caps it at net.core.{r,w}mem_max unless the server may exceed that.
const ListenerBuffer = 4 << 20

// relayedBuffer is the same for a relayed address.
const relayedBuffer = 512 << 10

// bindUDP opens a UDP socket at exactly a.
func bindUDP(a netip.AddrPort, buffer int, reusePort bool) (fd int, err error) {
	family := unix.AF_INET6
	if a.Addr().Is4() {
		family = unix.AF_INET
	}
	fd, err = unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket for %v: %w", a, err)
	}
	if family == unix.AF_INET6 { // it cannot be set once the socket is bound
		err = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if err := errors.Join(err, setOptions(fd, family, buffer, reusePort)); err != nil {
		return -1, errors.Join(fmt.Errorf("set up socket for %v: %w", a, err), unix.Close(fd))
	}
	var to unix.Sockaddr = &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	if a.Addr().Is4() {
		to = &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	if err := unix.Bind(fd, to); err != nil {
		return -1, errors.Join(fmt.Errorf("bind %v: %w", a, err), unix.Close(fd))
	}
	return fd, nil
}

// setOptions asks for what the data path needs: TTL and DSCP of what is received, trains, and
// no DF of our own, so that what is too large is fragmented as RFC 8656 section 14 wants it.
func setOptions(fd, family, buffer int, reusePort bool) error {
	type option struct{ level, name, value int }
	required := []option{}
	if reusePort {
		required = append(required, option{unix.SOL_SOCKET, unix.SO_REUSEPORT, 1})
	}
	if family == unix.AF_INET {
		required = append(required, option{unix.SOL_IP, unix.IP_RECVTTL, 1}, option{unix.SOL_IP, unix.IP_RECVTOS, 1},
			option{unix.SOL_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DONT})
	} else {
		required = append(required, option{unix.SOL_IPV6, unix.IPV6_RECVHOPLIMIT, 1},
			option{unix.SOL_IPV6, unix.IPV6_RECVTCLASS, 1}, option{unix.SOL_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DONT})
	}
	for _, o := range required {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return err
		}
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_UDP, unix.UDP_GRO, 1) // Linux 5.0
	for _, name := range [][2]int{{unix.SO_RCVBUFFORCE, unix.SO_RCVBUF}, {unix.SO_SNDBUFFORCE, unix.SO_SNDBUF}} {
		if unix.SetsockoptInt(fd, unix.SOL_SOCKET, name[0], buffer) != nil {
			_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, name[1], buffer)
		}
	}
	return nil
}
