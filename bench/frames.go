package main

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"turnstone/bpf"
	"turnstone/internal/netlab"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// way is one through the relay: where frames are made, where they arrive at the relay, and where they are
// taken.
type way struct {
	up         bool
	from, to   *netlab.Space
	arrival    string // the relay's interface
	payload    int    // offset of the payload where frames are made; where they are taken it is below
	taken      int
	takenPorts uint16
}

// ways are those of n: to the peer and to the client.
func (n *network) ways() []way {
	const plain, channel = 14 + 20 + 8, 14 + 20 + 8 + 4
	return []way{
		{up: true, from: n.client, to: n.peer, arrival: "clients", payload: channel, taken: plain, takenPorts: peerPort},
		{up: false, from: n.peer, to: n.client, arrival: "peers", payload: plain, taken: channel, takenPorts: clientPort},
	}
}

func (w way) String() string {
	if w.up {
		return "to peer"
	}
	return "to client"
}

// maker sends frames of a payload's size towards the relay, of all flows in turn, as a network card hands them over: no socket and no
// stack takes part.
type maker struct {
	space   *netlab.Space
	objects bpf.ReferenceObjects
	idle    link.Link
	frame   []byte
	context [24]byte
}

// newMaker makes one for w. relayed are the relayed transport addresses, one of each flow. Frames may carry the time.
func (n *network) newMaker(w way, relayed []netip.AddrPort, size int, stamped bool) (*maker, error) {
	m := &maker{space: w.from}
	var ifindex int
	var from, to net.HardwareAddr
	err := errors.Join(
		w.from.Do(func() error { return linkInto("relay", &ifindex, &from) }),
		n.relay.Do(func() error { return linkInto(w.arrival, nil, &to) }),
	)
	if err != nil {
		return nil, err
	}
	if m.frame, err = frameOf(w, from, to, size); err != nil {
		return nil, err
	}
	binary.NativeEndian.PutUint32(m.context[4:], uint32(len(m.frame)))
	binary.NativeEndian.PutUint32(m.context[12:], uint32(ifindex))
	var template [10]uint64
	words := min(len(template), len(m.frame)/8)
	if err := binary.Read(bytes.NewReader(m.frame), binary.NativeEndian, template[:words]); err != nil {
		return nil, err
	}
	settings := map[string]any{
		bpf.ReferenceVarTemplate: template, bpf.ReferenceVarTemplateWords: uint32(words), bpf.ReferenceVarFlowMask: uint32(flowCount - 1),
		bpf.ReferenceVarSourceAt: uint32(14 + 14), bpf.ReferenceVarIdAt: uint32(14 + 4), bpf.ReferenceVarPayloadAt: uint32(w.payload),
	}
	if stamped {
		settings[bpf.ReferenceVarStamped] = uint32(1)
	}
	if !w.up {
		var ports [flowCount]uint16
		for i, a := range relayed {
			ports[i] = wire(a.Port())
		}
		settings[bpf.ReferenceVarDestinations], settings[bpf.ReferenceVarDestinationAt] = ports, uint32(14+20+2)
	}
	if err := loadReference(&m.objects, settings); err != nil {
		return nil, err
	}
	// Attached, the kernel calls it as it calls one in use; else each run waits for two grace periods.
	if m.idle, err = attach(w.from, idleLink, m.objects.Generate); err != nil {
		return nil, errors.Join(err, m.objects.Close())
	}
	return m, nil
}

// attach attaches a program natively, until the link that is returned is closed.
func attach(s *netlab.Space, name string, program *ebpf.Program) (on link.Link, err error) {
	err = s.Thread(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			on, err = link.AttachXDP(link.XDPOptions{Interface: l.Attrs().Index, Program: program, Flags: link.XDPDriverMode})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach a program to %s: %w", name, err)
	}
	return on, nil
}

// wire is v as it lies in a frame.
func wire(v uint16) uint16 {
	return binary.NativeEndian.Uint16([]byte{byte(v >> 8), byte(v)})
}

// frameOf is the frame of the first flow, with the opposite of what flows add to sums.
func frameOf(w way, from, to net.HardwareAddr, size int) ([]byte, error) {
	ether := &layers.Ethernet{SrcMAC: from, DstMAC: to, EthernetType: layers.EthernetTypeIPv4}
	ip := &layers.IPv4{Version: 4, IHL: 5, TTL: 64, Id: 0xffff, Flags: layers.IPv4DontFragment, Protocol: layers.IPProtocolUDP}
	udp := &layers.UDP{}
	var data []byte
	if w.up {
		ip.SrcIP, ip.DstIP = nth(clientAddresses, 0).AsSlice(), listenAddress.Addr().AsSlice()
		udp.SrcPort, udp.DstPort = clientPort, layers.UDPPort(listenAddress.Port())
		data = binary.BigEndian.AppendUint16(data, firstChannel)
		data = binary.BigEndian.AppendUint16(data, uint16(size))
	} else {
		ip.SrcIP, ip.DstIP = nth(peerAddresses, 0).AsSlice(), relayHost.Addr().AsSlice()
		udp.SrcPort = peerPort // to port 0, which the flow adds to
	}
	data = append(append(data, 0xff, 0xff), make([]byte, size-2)...)
	if err := udp.SetNetworkLayerForChecksum(ip); err != nil {
		return nil, err
	}
	b := gopacket.NewSerializeBuffer()
	options := gopacket.SerializeOptions{FixLengths: true, ComputeChecksums: true}
	if err := gopacket.SerializeLayers(b, options, ether, ip, udp, gopacket.Payload(data)); err != nil {
		return nil, fmt.Errorf("make a frame: %w", err)
	}
	return b.Bytes()[:14+20+8+len(data)], nil // without gopacket's minimum of 60
}

func loadReference(into any, settings map[string]any) error {
	spec, err := bpf.LoadReference()
	if err != nil {
		return err
	}
	for name, v := range settings {
		if err := spec.Variables[name].Set(v); err != nil {
			return err
		}
	}
	if err := spec.LoadAndAssign(into, nil); err != nil {
		return fmt.Errorf("load the programs to measure with: %w", err)
	}
	return nil
}

func linkInto(name string, ifindex *int, mac *net.HardwareAddr) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find %s: %w", name, err)
	}
	if ifindex != nil {
		*ifindex = l.Attrs().Index
	}
	*mac = l.Attrs().HardwareAddr
	return nil
}

func (m *maker) close() error { return errors.Join(m.idle.Close(), m.objects.Close()) }

// pace sends so many frames at once, at a rate, until it has sent for d or is to stop. It yields how many, and the CPU time of its
// thread, which all that the frames cause at once belongs to.
func (m *maker) pace(rate, atOnce int, d time.Duration, stop *atomic.Bool) (sent int, cpu time.Duration, err error) {
	err = m.space.Thread(func() error {
		if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
			return fmt.Errorf("ask for exact timers: %w", err)
		}
		before, err := threadTime()
		if err != nil {
			return err
		}
		options := ebpf.RunOptions{Data: m.frame, Context: m.context[:], Repeat: uint32(atOnce), Flags: unix.BPF_F_TEST_XDP_LIVE_FRAMES}
		every := time.Second * time.Duration(atOnce) / time.Duration(rate)
		now := time.Now()
		for end, next := now.Add(d), now; now.Before(end) && (stop == nil || !stop.Load()); now = time.Now() {
			if next.After(now) {
				pause(next.Sub(now))
				continue
			}
			if next = next.Add(every); now.Sub(next) > lateAtMost {
				next = now
			}
			if _, err := m.objects.Generate.Run(&options); err != nil {
				return err
			}
			sent += atOnce
		}
		after, err := threadTime()
		cpu = after - before
		return err
	})
	return sent, cpu, err
}

func threadTime() (time.Duration, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &ts); err != nil {
		return 0, fmt.Errorf("processor time of a thread: %w", err)
	}
	return time.Duration(ts.Nano()), nil
}

// sink takes what is to a port, counts it and, if frames are stamped, notes how long they took.
type sink struct {
	objects bpf.ReferenceObjects
	on      link.Link
}

// newSink makes one at an interface: before the stack, where what the kernel relays is a frame, or behind its receiver, where what a
// socket sent is a packet. payload is its offset where times are to be read, else 0.
func newSink(s *netlab.Space, name string, port uint16, payload int, packets bool) (*sink, error) {
	k := &sink{}
	err := loadReference(&k.objects, map[string]any{
		bpf.ReferenceVarSinkPorts: [2]uint16{wire(port)}, bpf.ReferenceVarSinkAt: uint32(payload),
	})
	if err != nil {
		return nil, err
	}
	if packets {
		k.on, err = attachBehind(s, name, k.objects.SinkPacket)
	} else {
		k.on, err = attach(s, name, k.objects.SinkFrame)
	}
	if err != nil {
		return nil, errors.Join(err, k.objects.Close())
	}
	return k, nil
}

// attachBehind is attach behind the stack's receiver.
func attachBehind(s *netlab.Space, name string, program *ebpf.Program) (on link.Link, err error) {
	err = s.Thread(func() error {
		l, err := netlink.LinkByName(name)
		if err == nil {
			on, err = link.AttachTCX(link.TCXOptions{Interface: l.Attrs().Index, Program: program, Attach: ebpf.AttachTCXIngress})
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("attach a program to %s: %w", name, err)
	}
	return on, nil
}

func (k *sink) close() error { return errors.Join(k.on.Close(), k.objects.Close()) }

// taken is how many frames the sink took.
func (k *sink) taken() (sum int, err error) {
	var all [64]struct{ Packets, Bytes, _, _, _, _, _, _ uint64 }
	err = k.objects.Sunk.Get(&all)
	for _, s := range all {
		sum += int(s.Packets)
	}
	return sum, err
}

// takes waits until the sink has taken n frames, or no more come.
func (k *sink) takes(n int) (int, error) {
	last, changed := -1, time.Now()
	for {
		got, err := k.taken()
		if err != nil || got >= n {
			return got, err
		}
		if got != last {
			last, changed = got, time.Now()
		}
		if time.Since(changed) > quiet {
			return got, nil
		}
		time.Sleep(time.Millisecond)
	}
}

// latencyUnit is the width of a bucket of the sink.
const latencyUnit = 16 * time.Nanosecond

// latency is the q-quantile of the times frames took, in microseconds.
func (k *sink) latency(q float64) (float64, error) {
	var buckets [16384]uint64
	if err := k.objects.Latencies.Get(&buckets); err != nil {
		return 0, err
	}
	var all, sum uint64
	for _, n := range buckets {
		all += n
	}
	for i, n := range buckets {
		if sum += n; n > 0 && float64(sum) >= q*float64(all) {
			return micros(time.Duration(2*i+1) * latencyUnit / 2), nil
		}
	}
	return 0, errors.New("no frame carried a time")
}
