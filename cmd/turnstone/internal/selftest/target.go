package selftest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// Target is one way to a server: a listener of it at one address.
type Target struct {
	URI      string // as clients name it (RFC 7065)
	Protocol turn.Protocol
	Address  netip.AddrPort
	Name     string // host of the URI, which its certificate is to be for; empty: that is not looked at
	Spare    bool   // the name has other addresses too
	Here     bool   // the server is on this host

	External []netip.Addr // that relayed addresses are to be of; none: it is not known
}

// ErrURI says that something names no server.
var ErrURI = errors.New("no URI")

// Targets are the ways to the server that a URI of RFC 7065 names: one for each address of its host. They ask the resolver
// of this host, unless the host is an address. What is no such URI is an [ErrURI].
func Targets(ctx context.Context, uri string) ([]Target, error) {
	u, err := stun.ParseURI(uri)
	if err != nil || (u.Scheme != stun.SchemeTypeTURN && u.Scheme != stun.SchemeTypeTURNS) || u.Port < 1 || u.Port > 65535 {
		return nil, fmt.Errorf("%q is %w like turn:turn.example.org:3478?transport=udp or turns:turn.example.org:5349", uri, ErrURI)
	}
	addrs, err := addresses(ctx, u.Host)
	if err != nil {
		return nil, err
	}
	protocol := map[bool]map[stun.ProtoType]turn.Protocol{
		false: {stun.ProtoTypeUDP: turn.UDP, stun.ProtoTypeTCP: turn.TCP}, true: {stun.ProtoTypeUDP: turn.DTLS, stun.ProtoTypeTCP: turn.TLS},
	}[u.IsSecure()][u.Proto]
	var out []Target
	for _, a := range addrs {
		out = append(out, Target{URI: u.String(), Protocol: protocol, Address: netip.AddrPortFrom(a, uint16(u.Port)), Name: u.Host, Spare: len(addrs) > 1})
	}
	return out, nil
}

func addresses(ctx context.Context, host string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap()}, nil
	}
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("the name of the server: %w", err)
	}
	for i := range list {
		list[i] = list[i].Unmap()
	}
	slices.SortFunc(list, netip.Addr.Compare)
	return slices.Compact(list), nil
}
