package testenv

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
)

// portsGiven are those that Port has given out.
var portsGiven sync.Map

// Port is a port nobody has on ip, over UDP or TCP. Nobody gets it by chance before it is used: it is below those that
// the host and a relay give out, and no test of this process gets it twice.
func Port(ip netip.Addr) (netip.AddrPort, error) {
	for range 1000 {
		a := netip.AddrPortFrom(ip, uint16(10000+rand.IntN(10000))) //nolint:gosec // for a test
		udp, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		if err != nil {
			continue
		}
		tcp, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(a))
		_ = udp.Close()
		if err != nil {
			continue
		}
		_ = tcp.Close()
		if _, given := portsGiven.LoadOrStore(a, true); !given {
			return a, nil
		}
	}
	return netip.AddrPort{}, fmt.Errorf("no port of %v is free", ip)
}
