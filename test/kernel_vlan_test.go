package test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"turnstone/bpf"

	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/pion/stun/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// wire sends and receives whole frames on an interface of a space.
type wire struct {
	t   *testing.T
	fd  int
	mac net.HardwareAddr
}

// tagged is a datagram as it came off a wire, with the tag that the kernel took out of its frame.
type tagged struct {
	vlan     uint16 // with priority; 0 for none
	from, to netip.AddrPort
	ttl      uint8
	payload  []byte
	valid    bool // checksums add up
}

func (s *space) wire(t *testing.T, name string) *wire {
	t.Helper()
	w := &wire{t: t}
	s.do(func() error {
		nic, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		w.mac = nic.Attrs().HardwareAddr
		all := binary.BigEndian.Uint16(binary.NativeEndian.AppendUint16(nil, unix.ETH_P_ALL))
		if w.fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		return errors.Join(
			unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptInt(w.fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1),
			unix.SetsockoptTimeval(w.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Usec: 100_000}),
			unix.Bind(w.fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: nic.Attrs().Index}),
		)
	})
	t.Cleanup(func() { _ = unix.Close(w.fd) })
	return w
}

// send sends a UDP datagram to a station, with a tag, or without one where it is 0.
func (w *wire) send(station net.HardwareAddr, tag uint16, from, to netip.AddrPort, payload []byte) {
	w.t.Helper()
	ethernet := &layers.Ethernet{SrcMAC: w.mac, DstMAC: station, EthernetType: layers.EthernetTypeIPv4}
	udp := &layers.UDP{SrcPort: layers.UDPPort(from.Port()), DstPort: layers.UDPPort(to.Port())}
	var ip interface {
		gopacket.SerializableLayer
		gopacket.NetworkLayer
	}
	if from.Addr().Is4() {
		ip = &layers.IPv4{Version: 4, TTL: 64, Protocol: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	} else {
		ethernet.EthernetType = layers.EthernetTypeIPv6
		ip = &layers.IPv6{Version: 6, HopLimit: 64, NextHeader: layers.IPProtocolUDP, SrcIP: from.Addr().AsSlice(), DstIP: to.Addr().AsSlice()}
	}
	all := []gopacket.SerializableLayer{ethernet}
	if tag != 0 {
		all = append(all, &layers.Dot1Q{Priority: uint8(tag >> 13), VLANIdentifier: tag & 0xfff, Type: ethernet.EthernetType})
		ethernet.EthernetType = layers.EthernetTypeDot1Q
	}
	b := gopacket.NewSerializeBuffer()
	err := errors.Join(udp.SetNetworkLayerForChecksum(ip), gopacket.SerializeLayers(b,
		gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}, append(all, ip, udp, gopacket.Payload(payload))...))
	if err == nil {
		_, err = unix.Write(w.fd, b.Bytes())
	}
	if err != nil {
		w.t.Fatalf("send a frame: %v", err)
	}
}

// receive waits for the next datagram between two addresses.
func (w *wire) receive(from, to netip.AddrPort) tagged {
	w.t.Helper()
	frame, control := make([]byte, 1<<16), make([]byte, 256)
	for end := time.Now().Add(patience); time.Now().Before(end); {
		n, c, _, _, err := unix.Recvmsg(w.fd, frame, control, 0)
		if errors.Is(err, unix.EAGAIN) {
			continue
		}
		if err != nil {
			w.t.Fatalf("receive a frame: %v", err)
		}
		if d, ok := datagramOf(frame[:n]); ok && d.from == from && d.to == to {
			d.vlan = tagOf(w.t, control[:c])
			return d
		}
	}
	w.t.Fatalf("no datagram came from %v to %v", from, to)
	return tagged{}
}

// datagramOf is the UDP datagram in a frame without tag.
func datagramOf(frame []byte) (d tagged, ok bool) {
	p := gopacket.NewPacket(frame, layers.LayerTypeEthernet, gopacket.Default)
	udp, ok := p.TransportLayer().(*layers.UDP)
	if !ok {
		return d, false
	}
	source, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Src().Raw())
	destination, _ := netip.AddrFromSlice(p.NetworkLayer().NetworkFlow().Dst().Raw())
	d = tagged{
		from: netip.AddrPortFrom(source, uint16(udp.SrcPort)), to: netip.AddrPortFrom(destination, uint16(udp.DstPort)),
		payload: bytes.Clone(udp.Payload),
	}
	switch ip := p.NetworkLayer().(type) {
	case *layers.IPv4:
		d.ttl = ip.TTL
	case *layers.IPv6:
		d.ttl = ip.HopLimit
	}
	if udp.SetNetworkLayerForChecksum(p.NetworkLayer()) != nil {
		return d, false
	}
	bad, mismatches := p.VerifyChecksums()
	d.valid = bad == nil && len(mismatches) == 0
	return d, true
}

// tagOf is the tag that a control message tells of.
func tagOf(t *testing.T, control []byte) uint16 {
	t.Helper()
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		// struct tpacket_auxdata: status first, tag after two more words and two half ones.
		if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID != 0 {
			return binary.NativeEndian.Uint16(m.Data[16:])
		}
	}
	return 0
}

// retag has the flows of a lab whose daemon is dead come and leave with a tag, as if its addresses were on VLAN devices.
func (p *pinned) retag(tag uint16) {
	p.l.t.Helper()
	wire := [2]byte{byte(tag >> 8), byte(tag)}
	flows, hops := p.open("flows"), p.open("next_hops")
	edited := 0
	for slot := range flows.MaxEntries() {
		var f bpf.TurnstoneFlow
		err := flows.Lookup(slot, &f)
		if err == nil && f.Generation != 0 {
			f.Vlan = wire
			edited++
			err = flows.Put(slot, f)
		}
		if err != nil {
			p.l.t.Fatal(err)
		}
	}
	err := p.editGateway(func(at uint64) uint64 {
		var h bpf.TurnstoneNextHop
		if err := hops.Lookup(uint32(at), &h); err != nil {
			p.l.t.Error(err)
		}
		h.Vlan = wire
		if err := hops.Put(uint32(at), h); err != nil {
			p.l.t.Error(err)
		}
		return at
	})
	if err != nil || edited == 0 {
		p.l.t.Fatalf("edit the gateways of %d flows: %v", edited, err)
	}
}

// verdict reads how many packets left by one.
func (p *pinned) verdict(v bpf.TurnstoneVerdict) (sum uint64) {
	p.l.t.Helper()
	var each []bpf.TurnstoneCpu
	if err := p.open("cpus").Lookup(uint32(0), &each); err != nil {
		p.l.t.Fatal(err)
	}
	for _, c := range each {
		sum += c.Verdicts[v].Packets
	}
	return sum
}

// TestKernelRelaysTaggedFrames sends frames with a VLAN tag through the program. This kernel has no VLAN devices, of which
// the daemon would learn of the tag: the records are given one by hand, while it is dead.
func TestKernelRelaysTaggedFrames(t *testing.T) {
	const tag = 100
	for _, mode := range []string{"native", "generic"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t)
			d := l.start("--xdp", mode)
			type call struct {
				*talker
				peer, relayed netip.AddrPort
			}
			var calls []call
			for _, row := range []struct {
				client, server, peer string
				family               byte
			}{
				{labClient4 + ":5001", labServer4, labPeer4 + ":6001", familyIPv4},
				{"[" + labClient6 + "]:5002", "[" + labServer6 + "]", "[" + labPeer6 + "]:6002", familyIPv6},
				{"[" + labClient6 + "]:5003", "[" + labServer6 + "]", labPeer4 + ":6003", familyIPv4},
			} {
				peer := l.peer.listen(addr(row.peer))
				go reflect(peer)
				c := talkerOf(newClient(t, l.clients, row.client, row.server+":3478"), 0x4001)
				relayed := relayedIn(c.must(c.request(stun.MethodAllocate, transport(), requested(row.family))))
				c.bind(0x4001, addr(row.peer))
				calls = append(calls, call{c, addr(row.peer), relayed})
			}
			d.offloaded(3*len(calls) + 2)
			p := l.pinned()
			clients, peers := l.clients.wire(t, "far0"), l.peer.wire(t, "far0")
			stations := map[string]net.HardwareAddr{}
			l.relay.do(func() error {
				for _, name := range []string{"relay0", "relay1"} {
					nic, err := netlink.LinkByName(name)
					if err != nil {
						return err
					}
					stations[name] = nic.Attrs().HardwareAddr
				}
				return nil
			})
			d.kill()
			p.retag(tag)

			toPeer, toClient, away := p.verdict(bpf.TurnstoneVerdictVERDICT_TO_PEER), p.verdict(bpf.TurnstoneVerdictVERDICT_TO_CLIENT), p.verdict(bpf.TurnstoneVerdictVERDICT_DROP_AWAY)
			const n = 25
			for i, c := range calls {
				client, server := c.conn.LocalAddr().(*net.UDPAddr).AddrPort(), c.server
				want := func(what string, got tagged, payload []byte) {
					t.Helper()
					if got.vlan != tag || got.ttl != 63 || !got.valid || !bytes.Equal(got.payload, payload) {
						t.Fatalf("call %d, %s: got tag %d, TTL %d, checksums good %t, payload %x; want tag %d, TTL 63, %x", i, what, got.vlan, got.ttl, got.valid, got.payload, tag, payload)
					}
				}
				for k := range n {
					payload := bytes.Repeat([]byte{byte(k)}, 8+k*47)
					data := binary.BigEndian.AppendUint16([]byte{0x40, 0x01}, uint16(len(payload)))
					data = append(data, payload...)
					priority := uint16(k%8) << 13 // is not the flow's business, and does not go on
					clients.send(stations["relay0"], priority|tag, client, server, data)
					want("to the peer", peers.receive(c.relayed, c.peer), payload)
					peers.send(stations["relay1"], priority|tag, c.peer, c.relayed, payload)
					want("to the client", clients.receive(server, client), data)
				}
				// Without the tag, or with another: not relayed. Nobody is there to pass it up to.
				for _, other := range []uint16{0, tag + 1} {
					clients.send(stations["relay0"], other, client, server, []byte{0x40, 0x01, 0, 4, 1, 2, 3, 4})
					peers.send(stations["relay1"], other, c.peer, c.relayed, []byte{1, 2, 3, 4})
				}
			}
			sent, dropped := uint64(n*len(calls)), uint64(4*len(calls))
			eventually(t, "the frames with another tag are dropped", func() error {
				if got := p.verdict(bpf.TurnstoneVerdictVERDICT_DROP_AWAY) - away; got != dropped {
					return fmt.Errorf("%d of %d", got, dropped)
				}
				return nil
			})
			for _, row := range []struct {
				name      string
				got, want uint64
			}{
				{"to peers", p.verdict(bpf.TurnstoneVerdictVERDICT_TO_PEER) - toPeer, sent},
				{"to clients", p.verdict(bpf.TurnstoneVerdictVERDICT_TO_CLIENT) - toClient, sent},
			} {
				if row.got != row.want {
					t.Errorf("%d packets %s, want %d", row.got, row.name, row.want)
				}
			}
			d.start() // and takes the tags away
			d.offloaded(3*len(calls) + 2)
			d.wantByKernel("untagged again", map[string]uint64{"to-peer": 100, "to-client": 100}, func() {
				calls[0].talk(100, func(int) int { return 100 })
			})
		})
	}
}
