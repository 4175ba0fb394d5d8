package main

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"turnstone/internal/netlab"

	"github.com/vishvananda/netlink"
)

// stage is where the story happens: three hosts in a row, or the loopback.
type stage struct {
	description         string
	shown               string // what is shown of the daemon's arguments
	arguments           []string
	server              netip.AddrPort
	client, relay, peer *netlab.Space
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
	for _, h := range []**netlab.Space{&s.client, &s.relay, &s.peer} {
		if *h, err = netlab.New(); err != nil {
			return err
		}
		if err = (*h).Do(func() error { return addressed("lo") }); err != nil {
			return err
		}
	}
	return errors.Join(
		cable(s.relay, "clients", serverNet, s.client, clientNet),
		cable(s.relay, "peers", relayNet, s.peer, peerNet),
	)
}

func (s *stage) close() {
	for _, h := range []*netlab.Space{s.client, s.relay, s.peer} {
		if h != nil {
			h.Close()
		}
	}
}

// listen opens a UDP socket at a host.
func listen(h *netlab.Space, at netip.AddrPort) (c *net.UDPConn, err error) {
	err = h.Do(func() error {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		return err
	})
	return c, err
}

// cable joins two hosts.
func cable(h *netlab.Space, name string, near netip.Prefix, far *netlab.Space, farNet netip.Prefix) error {
	return errors.Join(
		h.Do(func() error {
			return netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: "eth0", PeerNamespace: netlink.NsFd(far.FD())})
		}),
		h.Do(func() error { return addressed(name, near) }),
		far.Do(func() error { return addressed("eth0", farNet) }),
	)
}

// addressed gives a link addresses and sets it up.
func addressed(name string, addresses ...netip.Prefix) error {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	for _, p := range addresses {
		if err := netlab.WholeChecksums(name); err != nil {
			return fmt.Errorf("switch the offloads of %s off: %w", name, err)
		}
		a := &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}}
		if err := netlink.AddrAdd(nic, a); err != nil {
			return fmt.Errorf("address %s: %w", name, err)
		}
	}
	return netlink.LinkSetUp(nic)
}
