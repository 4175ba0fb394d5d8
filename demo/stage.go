package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"unsafe"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// stage is where the story happens: three hosts in a row, or the loopback.
type stage struct {
	description         string
	shown               string // what is shown of the daemon's arguments
	arguments           []string
	server              netip.AddrPort
	client, relay, peer *host
	clientAt, peerAt    netip.AddrPort
	kernel              bool // relays
}

// Addresses of the hosts (RFC 5737).
var (
	clientNet = netip.MustParsePrefix("192.0.2.2/24")
	serverNet = netip.MustParsePrefix("192.0.2.1/24")
	relayNet  = netip.MustParsePrefix("198.51.100.1/24")
	peerNet   = netip.MustParsePrefix("198.51.100.2/24")
)

const (
	username = "alice"
	password = "secret"
	realm    = "example.org"
	port     = 3478
)

func newStage() (*stage, error) {
	credentials := []string{"--user", username + ":" + password, "--realm", realm}
	if os.Geteuid() != 0 {
		lo := netip.MustParseAddr("127.0.0.1")
		listen := netip.AddrPortFrom(lo, freePort())
		return &stage{
			description: "without root: everything on the loopback, and userspace relays",
			shown:       fmt.Sprintf("--listen udp://%v --user alice:secret --allow-peer 127.0.0.1/32", listen),
			arguments:   append(credentials, "--listen", "udp://"+listen.String(), "--allow-peer", "127.0.0.1/32", "--kernel", "off"),
			server:      listen, clientAt: netip.AddrPortFrom(lo, 0), peerAt: netip.AddrPortFrom(lo, 0),
		}, nil
	}
	s := &stage{
		description: "three network namespaces: client 192.0.2.2 | relay | peer 198.51.100.2",
		shown:       "--listen udp://192.0.2.1 --relay-ip 198.51.100.1 --user alice:secret",
		server:      netip.AddrPortFrom(serverNet.Addr(), port),
		clientAt:    netip.AddrPortFrom(clientNet.Addr(), 0), peerAt: netip.AddrPortFrom(peerNet.Addr(), 0),
		kernel: true,
	}
	s.arguments = append(credentials, "--listen", "udp://"+s.server.String(), "--relay-ip", relayNet.Addr().String(),
		"--kernel", "required", "--kernel-instance", fmt.Sprintf("demo-%d", os.Getpid()), "--kernel-max-channels", "64",
		// Both ends of the call are networks for documentation, which are no peers unless that is said.
		"--allow-peer", peerNet.Masked().String())
	return s, s.build()
}

// freePort is a UDP port of the loopback that was free just now.
func freePort() uint16 {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return port
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Port()
}

// build makes the hosts and the cables between them.
func (s *stage) build() (err error) {
	defer func() {
		if err != nil {
			s.close()
		}
	}()
	for _, h := range []**host{&s.client, &s.relay, &s.peer} {
		if *h, err = newHost(); err != nil {
			return err
		}
	}
	return errors.Join(
		s.relay.cable("clients", serverNet, s.client, clientNet),
		s.relay.cable("peers", relayNet, s.peer, peerNet),
	)
}

func (s *stage) close() {
	for _, h := range []*host{s.client, s.relay, s.peer} {
		if h != nil {
			h.close()
		}
	}
}

// host is a network namespace without a name: it ends with this process, however that ends. A nil host is the
// namespace of this process.
type host struct {
	fd    int
	calls chan func()
	done  chan struct{}
}

func newHost() (*host, error) {
	h := &host{calls: make(chan func()), done: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(h.done)
		runtime.LockOSThread() // for good: the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		if err == nil {
			h.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		}
		made <- err
		if err != nil {
			return
		}
		for f := range h.calls {
			f()
		}
	}()
	if err := <-made; err != nil {
		return nil, fmt.Errorf("make a network namespace: %w", err)
	}
	return h, h.do(func() error { return addressed("lo") })
}

// do runs f in the namespace. Sockets that f opens and processes that it starts stay there.
func (h *host) do(f func() error) error {
	if h == nil {
		return f()
	}
	errs := make(chan error)
	h.calls <- func() { errs <- f() }
	return <-errs
}

func (h *host) close() {
	close(h.calls)
	<-h.done
	_ = unix.Close(h.fd)
}

// listen opens a UDP socket at the host.
func (h *host) listen(at netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.do(func() error {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	return c, err
}

// cable joins two hosts.
func (h *host) cable(name string, near netip.Prefix, far *host, farNet netip.Prefix) error {
	return errors.Join(
		h.do(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(far.fd)})
		}),
		h.do(func() error { return addressed(name, near) }),
		far.do(func() error { return addressed("eth0", farNet) }),
	)
}

// addressed gives a link addresses and sets it up. It calculates checksums itself: what a veth leaves to the
// hardware that it does not have is half a checksum, which the kernel's program passes up.
func addressed(name string, addresses ...netip.Prefix) error {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, p := range addresses {
		if err := wholeChecksums(name); err != nil {
			return fmt.Errorf("switch the offloads of %s off: %w", name, err)
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := netlink.AddrAdd(nic, a); err != nil {
			return fmt.Errorf("address %s: %w", name, err)
		}
	}
	return netlink.LinkSetUp(nic)
}

// wholeChecksums does what ethtool -K NAME tx off does.
func wholeChecksums(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	value := struct{ command, data uint32 }{unix.ETHTOOL_STXCSUM, 0}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return errno
	}
	return nil
}
