package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"turnstone/bpf"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// TestTaggedFrames sends frames with VLAN tags through the program over veths: what arrives at the far end of the
// other link is, tag included, what TestTable has of a test run.
func TestTaggedFrames(t *testing.T) {
	for _, mode := range []XDPMode{XDPGeneric, XDPNative} {
		t.Run(string(mode), func(t *testing.T) {
			w := newTaps(t, mode)
			for _, path := range []Verdict{VerdictToPeer, VerdictToClient} {
				for bits := range 4 {
					for _, tags := range [][2]uint16{{0, 0}, {42, 0}, {0, 100}, {42, 100}, {4094, 4094}} {
						for _, odd := range []bool{true, false} {
							s := newScene(path, bits&1, 0, bits>>1)
							if !odd {
								s.in.payload = append(s.in.payload, '.')
								s.out.payload = s.in.payload
							}
							w.play(s, tags[0], tags[1])
							if t.Failed() {
								t.Fatalf("%v, IPv%d to IPv%d, tags %v, odd %t", path, 4+2*(bits&1), 4+bits>>1*2, tags, odd)
							}
						}
					}
				}
			}
		})
	}
}

// taps are the program on two links, whose far ends see the frames themselves.
type taps struct {
	*network
	o       *bpf.TurnstoneObjects
	tables  *tables
	in, out int // sockets for frames at the far ends
}

func newTaps(t *testing.T, mode XDPMode) *taps {
	t.Helper()
	o := load(t, Sizes{Channels: 4, Allocations: 1, Listeners: 1}, testSettings)
	w := &taps{network: newNetwork(t), o: o}
	var err error
	w.tables, err = openTables(&o.TurnstoneMaps)
	w.must(err)
	t.Cleanup(func() { w.must(w.tables.close()) })
	flags := link.XDPGenericMode
	if mode == XDPNative {
		flags = link.XDPDriverMode
		w.pass(0)
		w.pass(1)
	}
	for i := range w.links {
		l, slot := w.links[i].Attrs(), slotOf(w.index(i))
		w.must(o.Interfaces.Put(slot, bpf.TurnstoneInterface{Ifindex: uint32(l.Index), Mac: [6]byte(l.HardwareAddr)}))
		w.network.in(w.ns, func() error {
			if err := o.Egress.Put(slot, uint32(l.Index)); err != nil { // of this namespace
				return err
			}
			at, err := link.AttachXDP(link.XDPOptions{Program: o.Turnstone, Interface: l.Index, Flags: flags})
			if err == nil {
				t.Cleanup(func() { at.Close() })
			}
			return err
		})
	}
	w.in, w.out = w.tap(0), w.tap(1)
	return w
}

// tap is a socket for all frames at the far end of link i. What it receives has its VLAN tag beside it.
func (w *taps) tap(i int) (fd int) {
	w.Helper()
	w.network.in(w.far[i], func() (err error) {
		all := uint16(unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8)
		if fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, int(all)); err != nil {
			return err
		}
		w.Cleanup(func() { unix.Close(fd) })
		patient := unix.NsecToTimeval(patience.Nanoseconds())
		return errors.Join(
			unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: w.ends[i].Attrs().Index}),
			unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_AUXDATA, 1),
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patient),
		)
	})
	return fd
}

// play sends the frame of s in with a tag, 0 for none, and takes it out with another.
func (w *taps) play(s *scene, in, out uint16) {
	w.Helper()
	stations := func(i int) (ours, theirs station) {
		return station(w.links[i].Attrs().HardwareAddr), station(w.ends[i].Attrs().HardwareAddr)
	}
	s.in.to, s.in.from = stations(0)
	s.out.from, s.out.to = stations(1)
	for _, end := range []struct {
		tags *[]uint16
		tag  uint16
	}{{&s.in.tags, in}, {&s.out.tags, out}} {
		if end.tag != 0 {
			*end.tags = []uint16{end.tag}
		}
	}
	w.tables.hops[1] = bpf.TurnstoneNextHop{
		Ifindex: uint32(w.index(1)), Port: slotOf(w.index(1)), Mtu: 1500, Destination: s.out.to, Source: s.out.from, Vlan: wire(out),
	}
	w.tables.gateways[1] = 1
	s.flow.Gateway, s.flow.VLAN, s.flow.Meter = 1, in, 0
	w.tables.publish(1, s.flow.record(), 1)
	_, err := w.tables.index.put([]Key{s.flow.Key}, []ref{{1, 1}})
	w.must(err)
	defer func() { w.must(w.tables.index.delete([]Key{s.flow.Key})) }()
	w.tables.usage.clear([]uint32{1}) // which identifications count on

	w.must(unix.Sendto(w.in, s.in.bytes(w), 0, &unix.SockaddrLinklayer{Ifindex: w.ends[0].Attrs().Index}))
	if got, want := w.next(s.out.to, s.out.from), s.out.bytes(w); !bytes.Equal(got, want) {
		w.Errorf("got frame\n%x, want\n%x", got, want)
	}
}

// next is the next UDP datagram at the far end of the second link, as it was on the wire.
func (w *taps) next(to, from station) []byte {
	w.Helper()
	b, beside := make([]byte, 4096), make([]byte, 256)
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		n, size, _, _, err := unix.Recvmsg(w.out, b, beside, 0)
		if errors.Is(err, unix.EAGAIN) {
			break
		}
		w.must(err)
		frame := append([]byte(nil), b[:n]...)
		tag, err := tagOf(beside[:size])
		w.must(err)
		if station(frame[:6]) != to || station(frame[6:12]) != from || !isUDP(frame) {
			continue
		}
		if tag == nil {
			return frame
		}
		return append(append(append([]byte(nil), frame[:12]...), tag...), frame[12:]...)
	}
	all, err := (&verdictCounters{cpus: w.o.Cpus}).read()
	w.Errorf("no datagram within %s; verdicts so far: %v, %v", patience, all, err)
	return nil
}

func isUDP(frame []byte) bool {
	switch binary.BigEndian.Uint16(frame[12:]) {
	case 0x0800:
		return frame[14+9] == 17
	case 0x86dd:
		return frame[14+6] == 17
	}
	return false
}

// tagOf is the tag that came beside a frame, as it stands in one, nil for none: struct tpacket_auxdata.
func tagOf(beside []byte) ([]byte, error) {
	all, err := unix.ParseSocketControlMessage(beside)
	if err != nil {
		return nil, err
	}
	for _, m := range all {
		if m.Header.Level != unix.SOL_PACKET || m.Header.Type != unix.PACKET_AUXDATA || len(m.Data) < 20 {
			continue
		}
		if binary.NativeEndian.Uint32(m.Data)&unix.TP_STATUS_VLAN_VALID == 0 {
			return nil, nil
		}
		tag := binary.BigEndian.AppendUint16(nil, binary.NativeEndian.Uint16(m.Data[18:]))
		return binary.BigEndian.AppendUint16(tag, binary.NativeEndian.Uint16(m.Data[16:])), nil
	}
	return nil, fmt.Errorf("no data beside the frame in %x", beside)
}
