package main

import (
	"fmt"
	"net"
	"net/netip"
	"os"

	"turnstone/internal/netlab"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// The lab's addresses are of RFC 5737, and those of the many clients and peers of the
// range for benchmarks (RFC 2544).
var (
	clientHost      = netip.MustParsePrefix("192.0.2.1/30")
	listenHost      = netip.MustParsePrefix("192.0.2.2/30")
	relayHost       = netip.MustParsePrefix("203.0.113.1/30")
	peerHost        = netip.MustParsePrefix("203.0.113.2/30")
	clientAddresses = netip.MustParsePrefix("198.18.0.0/16")
	peerAddresses   = netip.MustParsePrefix("198.19.0.0/16")

	listenAddress = netip.AddrPortFrom(listenHost.Addr(), 3478)
)

const (
	clientPort = 4000
	peerPort   = 9000
)

// nth is the i-th address of a /16.
func nth(p netip.Prefix, i int) netip.Addr {
	a := p.Addr().As4()
	a[2], a[3] = byte(i>>8), byte(i)
	return netip.AddrFrom4(a)
}

// network is three hosts in a row. They are nameless namespaces: they vanish with
// the last thread, socket and process in them, however this process ends.
type network struct {
	client, relay, peer *netlab.Space
}

func newNetwork() (_ *network, err error) {
	n := &network{}
	defer func() {
		if err != nil {
			n.close()
		}
	}()
	for _, s := range []**netlab.Space{&n.client, &n.relay, &n.peer} {
		if *s, err = netlab.New(); err != nil {
			return nil, err
		}
	}
	if err = n.relay.Do(n.wire); err != nil {
		return nil, fmt.Errorf("wire the relay: %w", err)
	}
	if err = n.client.Do(func() error { return endHost("relay", clientHost, clientAddresses, listenHost.Addr()) }); err != nil {
		return nil, fmt.Errorf("wire the clients: %w", err)
	}
	if err = n.peer.Do(func() error { return endHost("relay", peerHost, peerAddresses, relayHost.Addr()) }); err != nil {
		return nil, fmt.Errorf("wire the peers: %w", err)
	}
	return n, nil
}

// wire makes the cables and the relay's end of them.
func (n *network) wire() error {
	ends := []struct {
		name    string
		far     *netlab.Space
		address netip.Prefix
		beyond  netip.Prefix
		gateway netip.Addr
	}{
		{"clients", n.client, listenHost, clientAddresses, clientHost.Addr()},
		{"peers", n.peer, relayHost, peerAddresses, peerHost.Addr()},
	}
	if err := sysctl("net/ipv4/ip_local_port_range", "10000 65535"); err != nil { // for pion, which lets the kernel choose
		return err
	}
	if err := up("lo"); err != nil {
		return err
	}
	for _, e := range ends {
		cable := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: e.name, TxQLen: 10000, NumTxQueues: 1, NumRxQueues: 1},
			PeerName:  "relay", PeerNamespace: netlink.NsFd(e.far.FD()),
		}
		if err := netlink.LinkAdd(cable); err != nil {
			return fmt.Errorf("make cable %s: %w", e.name, err)
		}
		if err := setAddress(e.name, e.address); err != nil {
			return err
		}
		if err := addRoute(netlink.Route{Dst: ipNet(e.beyond), Gw: e.gateway.AsSlice()}, e.name); err != nil {
			return err
		}
	}
	return nil
}

// idleLink is where programs are attached that are only run.
const idleLink = "idle"

// endHost makes a host that has all addresses of many, behind one cable.
func endHost(cable string, own, many netip.Prefix, gateway netip.Addr) error {
	if err := up("lo"); err != nil {
		return err
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: idleLink}, PeerName: idleLink + "1"}); err != nil {
		return fmt.Errorf("make link %s: %w", idleLink, err)
	}
	if err := setAddress(cable, own); err != nil {
		return err
	}
	local := netlink.Route{Dst: ipNet(many), Type: unix.RTN_LOCAL, Table: unix.RT_TABLE_LOCAL, Scope: netlink.SCOPE_HOST}
	if err := addRoute(local, "lo"); err != nil {
		return err
	}
	return addRoute(netlink.Route{Gw: gateway.AsSlice()}, cable)
}

func up(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("bring up %s: %w", name, err)
	}
	return nil
}

func setAddress(name string, p netip.Prefix) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.AddrAdd(link, &netlink.Addr{IPNet: &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}})
	}
	if err != nil {
		return fmt.Errorf("address %s: %w", name, err)
	}
	return up(name)
}

func addRoute(r netlink.Route, name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		r.LinkIndex = link.Attrs().Index
		err = netlink.RouteAdd(&r)
	}
	if err != nil {
		return fmt.Errorf("route %v over %s: %w", r.Dst, name, err)
	}
	return nil
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), 32)}
}

func sysctl(name, value string) error {
	return os.WriteFile("/proc/sys/"+name, []byte(value), 0o644)
}

func (n *network) close() {
	for _, s := range []*netlab.Space{n.client, n.relay, n.peer} {
		if s != nil {
			s.Close()
		}
	}
}
