package kernel

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"turnstone/turn"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
)

// station is an Ethernet address.
type station [6]byte

// packet is a UDP datagram in an Ethernet frame, said in the words of its headers.
type packet struct {
	to, from    station
	tags        []uint16 // VLAN tags, outermost first; a frame with none is untagged
	source      netip.AddrPort
	destination netip.AddrPort
	tos, ttl    uint8
	label       uint32 // IPv6 flow label
	id          uint16 // IPv4 identification
	df          bool
	noChecksum  bool
	channel     turn.ChannelNumber // 0: no ChannelData header
	payload     []byte
	padding     []byte // behind the payload, inside the datagram
	trailer     []byte // behind the datagram
}

// bytes is the frame of p, put together by gopacket.
func (p *packet) bytes(t testing.TB) []byte {
	t.Helper()
	tags := make([]layers.Dot1Q, len(p.tags)) // gopacket wants pointers
	ether := layers.Ethernet{DstMAC: p.to[:], SrcMAC: p.from[:]}
	stack := []gopacket.SerializableLayer{&ether}
	next := &ether.EthernetType
	for i, tag := range p.tags {
		*next = layers.EthernetTypeDot1Q
		tags[i] = layers.Dot1Q{VLANIdentifier: tag}
		stack = append(stack, &tags[i])
		next = &tags[i].Type
	}
	udp := layers.UDP{SrcPort: layers.UDPPort(p.source.Port()), DstPort: layers.UDPPort(p.destination.Port())}
	var network gopacket.NetworkLayer
	if p.source.Addr().Is4() {
		*next = layers.EthernetTypeIPv4
		ip := &layers.IPv4{
			Version: 4, IHL: 5, TOS: p.tos, TTL: p.ttl, Id: p.id, Protocol: layers.IPProtocolUDP,
			SrcIP: p.source.Addr().AsSlice(), DstIP: p.destination.Addr().AsSlice(),
		}
		if p.df {
			ip.Flags = layers.IPv4DontFragment
		}
		network, stack = ip, append(stack, ip)
	} else {
		*next = layers.EthernetTypeIPv6
		ip := &layers.IPv6{
			Version: 6, TrafficClass: p.tos, FlowLabel: p.label, HopLimit: p.ttl, NextHeader: layers.IPProtocolUDP,
			SrcIP: p.source.Addr().AsSlice(), DstIP: p.destination.Addr().AsSlice(),
		}
		network, stack = ip, append(stack, ip)
	}
	if err := udp.SetNetworkLayerForChecksum(network); err != nil {
		t.Fatal(err)
	}
	data := p.data()
	stack = append(stack, &udp, gopacket.Payload(data))
	buf := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(buf, options, stack...); err != nil {
		t.Fatal(err)
	}
	frame := append([]byte(nil), buf.Bytes()[:p.network()+p.header()+8+len(data)]...) // without gopacket's minimum of 60
	if p.noChecksum {
		clear(frame[p.udp()+6 : p.udp()+8])
	}
	return append(frame, p.trailer...)
}

// data is what the datagram carries.
func (p *packet) data() []byte {
	var b []byte
	if p.channel != 0 {
		b = binary.BigEndian.AppendUint16(b, uint16(p.channel))
		b = binary.BigEndian.AppendUint16(b, uint16(len(p.payload)))
	}
	return append(append(b, p.payload...), p.padding...)
}

// network is the offset of the IP header.
func (p *packet) network() int { return 14 + 4*len(p.tags) }

// header is the length of the IP header.
func (p *packet) header() int {
	if p.source.Addr().Is4() {
		return 20
	}
	return 40
}

// udp is the offset of the UDP header.
func (p *packet) udp() int { return p.network() + p.header() }
