package turn

import (
	"encoding/binary"
	"net/netip"
	"slices"

	"github.com/pion/stun/v3"
)

// Discovery are two addresses of one family with two ports each, at all four of which Binding requests over
// UDP are answered: clients find out by them how their NAT behaves (RFC 5780).
type Discovery struct {
	Addresses [2]netip.Addr
	Ports     [2]uint16
}

// FindDiscoveries finds a Discovery for each family among listeners over UDP. Those that come first are taken.
func FindDiscoveries(listeners []netip.AddrPort) []Discovery {
	var out []Discovery
	for i, first := range listeners {
		done := slices.ContainsFunc(out, func(d Discovery) bool { return sameFamily(d.Addresses[0], first.Addr()) })
		for _, second := range listeners[i+1:] {
			a, b := first.Addr(), second.Addr()
			if done || a == b || first.Port() == second.Port() || !sameFamily(a, b) ||
				!slices.Contains(listeners, netip.AddrPortFrom(a, second.Port())) || !slices.Contains(listeners, netip.AddrPortFrom(b, first.Port())) {
				continue
			}
			out = append(out, Discovery{Addresses: [2]netip.Addr{a, b}, Ports: [2]uint16{first.Port(), second.Port()}})
			done = true
		}
	}
	return out
}

// other is the other address of d with the other port.
func (d *Discovery) other(a netip.AddrPort) netip.AddrPort {
	ip, port := d.Addresses[0], d.Ports[0]
	if a.Addr() == ip {
		ip = d.Addresses[1]
	}
	if a.Port() == port {
		port = d.Ports[1]
	}
	return netip.AddrPortFrom(ip, port)
}

// discoveriesAt are the discoveries in list by where requests arrive.
func discoveriesAt(list []Discovery) map[netip.AddrPort]*Discovery {
	out := map[netip.AddrPort]*Discovery{}
	for i := range list {
		d := &list[i]
		for _, ip := range d.Addresses {
			for _, port := range d.Ports {
				out[netip.AddrPortFrom(ip, port)] = d
			}
		}
	}
	return out
}

// discovery is what requests along t may ask of RFC 5780, nil for nothing. A stream has but one way back.
func (g *Gate) discovery(t FiveTuple) *Discovery {
	if t.Protocol != UDP {
		return nil
	}
	return g.discoveries[t.Server]
}

// Flags of CHANGE-REQUEST (RFC 5780 section 7.2).
const (
	changePort = 1 << 1
	changeIP   = 1 << 2
)

// maxPadding is the length of PADDING in an answer, in bytes: enough for a fragment on an Ethernet.
const maxPadding = 1500

// discoveryAttribute says whether kind is an attribute of requests that RFC 5780 defines.
func discoveryAttribute(kind stun.AttrType) bool {
	return kind == stun.AttrChangeRequest || kind == stun.AttrPadding || kind == stun.AttrResponsePort
}

// prepare makes of r, the answer to a Binding request along t with the attributes list, what RFC 5780 section 6.1
// wants. The padding of an answer is never longer than that of the request, which may be forged.
func (d *Discovery) prepare(r *Reply, t FiveTuple, list stun.Attributes) {
	origin, other := t.Server, d.other(t.Server)
	change, changes := list.Get(stun.AttrChangeRequest)
	port, elsewhere := list.Get(stun.AttrResponsePort)
	padding, padded := list.Get(stun.AttrPadding)
	if changes && len(change.Value) != 4 || elsewhere && (padded || !responsePort(port.Value)) {
		r.Code, r.mapped = CodeBadRequest, netip.AddrPort{}
		return
	}
	if changes && change.Value[3]&changeIP != 0 {
		origin = netip.AddrPortFrom(other.Addr(), origin.Port())
	}
	if changes && change.Value[3]&changePort != 0 {
		origin = netip.AddrPortFrom(origin.Addr(), other.Port())
	}
	if elsewhere {
		r.Port = binary.BigEndian.Uint16(port.Value)
	}
	if padded {
		r.padding = min((len(padding.Value)+3)&^3, maxPadding)
	}
	r.padded, r.Origin, r.other = padded, origin, other
}

// responsePort says whether v is the value of RESPONSE-PORT: a port, with or without the two bytes behind it.
func responsePort(v []byte) bool {
	return (len(v) == 2 || len(v) == 4) && binary.BigEndian.Uint16(v) != 0
}

// To is where r is to be sent, which answers a request from client.
func (r *Reply) To(client netip.AddrPort) netip.AddrPort {
	if r.Port == 0 {
		return client
	}
	return netip.AddrPortFrom(client.Addr(), r.Port)
}

// addDiscovery adds what [Discovery.prepare] has prepared.
func (r *Reply) addDiscovery(m *stun.Message) {
	if !r.Origin.IsValid() {
		return
	}
	addAddress(m, stun.AttrMappedAddress, r.mapped)
	addAddress(m, stun.AttrResponseOrigin, r.Origin)
	addAddress(m, stun.AttrOtherAddress, r.other)
	if r.padded {
		m.Add(stun.AttrPadding, make([]byte, r.padding))
	}
}
