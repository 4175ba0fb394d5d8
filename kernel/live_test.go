package kernel

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"turnstone/internal/netlab"
	"turnstone/turn"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/rs/zerolog"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// TestLive relays between real sockets over veths: all families, both ways, and from channel to channel, by
// redirect and straight back; with the datapath running, after it has stopped, and after another took over.
// What no socket of a daemon takes arrives only by the program.
func TestLive(t *testing.T) {
	for _, c := range []struct {
		name string
		mode XDPMode
		tags [2]uint16 // of VLAN devices that have the addresses
	}{
		{"Generic", XDPGeneric, [2]uint16{}},
		{"Native", XDPNative, [2]uint16{}},
		{"GenericVLAN", XDPGeneric, [2]uint16{42, 100}},
		{"NativeVLAN", XDPNative, [2]uint16{42, 100}},
		{"NativeOneVLAN", XDPNative, [2]uint16{0, 100}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLive(t, c.mode, c.tags)
			stop := l.start()
			l.relay(40, 172)
			stop()
			l.relay(40, 172) // nobody is there
			stop = l.start()
			l.relay(40, 172)
			l.large(8000)
			stop()
		})
	}
}

// live is a relay with two clients on its first link, and two peers on the second.
type live struct {
	*network
	config  Config
	clients [2]*net.UDPConn
	peers   [2]*net.UDPConn
	d       *Datapath // the last one started
}

const (
	liveServer = 3478
	liveCall   = 0x4002 // channel to the relayed address of the other client
)

// Addresses of what is live, by family of client or peer.
var (
	liveHosts   = [2]netip.Addr{host4, host6}
	liveRelays  = [2]netip.Addr{second4, second6}
	liveClients = [2]netip.AddrPort{netip.AddrPortFrom(router4, 5000), netip.AddrPortFrom(router6, 5001)}
	livePeers   = [2]netip.AddrPort{netip.AddrPortFrom(other4, 9000), netip.AddrPortFrom(other6, 9001)}
)

// liveRelayed is the relayed address of a client, of a family.
func liveRelayed(client, family int) netip.AddrPort {
	return netip.AddrPortFrom(liveRelays[family], uint16(50_000+10*client+family))
}

func newLive(t *testing.T, mode XDPMode, tags [2]uint16) *live {
	t.Helper()
	load(t, Sizes{Channels: 1, Allocations: 1, Listeners: 1}, testSettings) // or skip
	l := &live{network: newNetwork(t)}
	l.widen(9000)
	for i, tag := range tags {
		l.software(l.far[i], "end")
		if tag != 0 {
			l.tag(i, tag)
		}
		if mode == XDPNative {
			l.pass(i)
		}
	}
	state := liveState(t)
	l.config = Config{
		Root: DefaultRoot, Instance: fmt.Sprintf("live-%d", os.Getpid()), Log: silentLog{state.Seq()}, Mode: mode, Logger: zerolog.Nop(),
		Listeners: []netip.AddrPort{netip.AddrPortFrom(host4, liveServer), netip.AddrPortFrom(host6, liveServer)},
		Relays:    liveRelays[:], RelayFirst: 49152, RelayLast: 65535, Sizes: Sizes{Channels: 16, Allocations: 4, Listeners: 2},
	}
	t.Cleanup(func() { removeInstance(t, l.config.Instance) })
	for family := range 2 {
		l.clients[family] = l.socket(l.far[0], liveClients[family])
		l.peers[family] = l.socket(l.far[1], livePeers[family])
	}
	return l
}

// liveState has a client of each family with a channel to a peer of each family, and one to the other client.
func liveState(t testing.TB) *turn.State {
	t.Helper()
	var boot unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &boot); err != nil {
		t.Fatal(err)
	}
	now := turn.Moment{Boot: turn.BootID{1}, Uptime: time.Duration(boot.Nano()), Wall: time.Now().UnixNano()}
	s := turn.NewState()
	record := func(events ...turn.Event) {
		if err := s.Fold(turn.Record{First: s.Seq() + 1, Moment: now, Events: events}); err != nil {
			t.Fatal(err)
		}
	}
	record(turn.EpochBegan{Log: turn.LogID{7}, Epoch: 1})
	for c, client := range liveClients {
		id := turn.AllocationID(c + 1)
		called := liveRelayed(1-c, v4)
		record(
			turn.AllocationCreated{
				Allocation: id, Transport: 17, Username: "alice", Realm: "example.org", Lifetime: 600, Relayed: []netip.AddrPort{liveRelayed(c, v4), liveRelayed(c, v6)},
				FiveTuple: turn.FiveTuple{Client: client, Server: netip.AddrPortFrom(liveHosts[c], liveServer), Protocol: turn.UDP},
			},
			turn.PermissionInstalled{Allocation: id, Peer: other4}, turn.ChannelBound{Allocation: id, Channel: 0x4000, Peer: livePeers[v4]},
			turn.PermissionInstalled{Allocation: id, Peer: other6}, turn.ChannelBound{Allocation: id, Channel: 0x4001, Peer: livePeers[v6]},
			turn.PermissionInstalled{Allocation: id, Peer: called.Addr()}, turn.ChannelBound{Allocation: id, Channel: liveCall, Peer: called},
		)
	}
	return s
}

// widen gives all links an MTU.
func (n *network) widen(mtu int) {
	n.Helper()
	for i := range n.links {
		n.must(n.h.LinkSetMTU(n.links[i], mtu))
		n.must(n.outside[i].LinkSetMTU(n.ends[i], mtu))
	}
}

// software has all checksums and tags in the frames that leave by a link: a veth else hands them over beside.
func (n *network) software(ns netns.NsHandle, name string) {
	n.Helper()
	n.in(ns, func() error {
		return errors.Join(
			netlab.Ethtool(name, unix.ETHTOOL_STXCSUM, 0),
			netlab.Ethtool(name, unix.ETHTOOL_SFLAGS, 0), // tags, among others
		)
	})
}

// tag moves the addresses of link i, at both ends, to VLAN devices. Where the kernel has none, it skips.
func (n *network) tag(i int, tag uint16) {
	n.Helper()
	move := func(h *netlink.Handle, lower netlink.Link, all ...netip.Addr) {
		n.Helper()
		a := netlink.NewLinkAttrs()
		a.Name, a.ParentIndex = fmt.Sprintf("tag%d", tag), lower.Attrs().Index
		err := h.LinkAdd(&netlink.Vlan{LinkAttrs: a, VlanId: int(tag), VlanProtocol: netlink.VLAN_PROTOCOL_8021Q})
		if errors.Is(err, unix.EOPNOTSUPP) {
			n.Skip("this kernel has no VLAN devices: scripts/qemu runs this on kernels that have")
		}
		n.must(err)
		upper := n.link(h, a.Name)
		for _, a := range all {
			bits := 64
			if a.Is4() {
				bits = 24
			}
			n.must(h.AddrDel(lower, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(a, bits))}))
		}
		n.must(h.LinkSetUp(upper))
		n.active(h, upper)
		n.addresses(h, upper, all...)
	}
	ours, theirs := [2][2]netip.Addr{{host4, host6}, {second4, second6}}, [2][2]netip.Addr{{router4, router6}, {other4, other6}}
	move(n.h, n.links[i], ours[i][:]...)
	move(n.outside[i], n.ends[i], theirs[i][:]...)
}

// pass puts a program that passes all frames up on the far end of link i: a veth sends natively
// only to one that has a program.
func (n *network) pass(i int) {
	n.Helper()
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Instructions: asm.Instructions{asm.LoadImm(asm.R0, xdpPass, asm.DWord), asm.Return()}, License: "GPL",
		Flags: unix.BPF_F_XDP_HAS_FRAGS,
	})
	n.must(err)
	n.Cleanup(func() { p.Close() })
	n.in(n.far[i], func() error {
		l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: n.ends[i].Attrs().Index, Flags: link.XDPDriverMode})
		if err == nil {
			n.Cleanup(func() { l.Close() })
		}
		return err
	})
}

// socket opens one that lasts as long as the test.
func (n *network) socket(ns netns.NsHandle, a netip.AddrPort) *net.UDPConn {
	n.Helper()
	var c *net.UDPConn
	n.in(ns, func() (err error) {
		c, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(a))
		return err
	})
	n.Cleanup(func() { c.Close() })
	return c
}

// start runs a datapath until it is stopped. It yields when every flow has its next hop.
func (l *live) start() (stop func()) {
	l.Helper()
	config := l.config
	config.State = liveState(l)
	opened, done := make(chan error, 1), make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		runtime.LockOSThread() // the thread ends with it
		err := netns.Set(l.ns)
		if err == nil {
			l.d, err = Open(config)
		}
		opened <- err
		if err == nil {
			done <- l.d.Run(ctx, func(context.Context, ...turn.Event) error { return nil })
		}
	}()
	if err := <-opened; err != nil {
		cancel()
		l.Fatal(err)
	}
	stop = func() {
		cancel()
		if err := <-done; err != nil {
			l.Error(err)
		}
	}
	s, err := l.d.Status(ctx)
	for deadline := time.Now().Add(patience); err == nil && s.Unresolved > 0 && time.Now().Before(deadline); s, err = l.d.Status(ctx) {
		time.Sleep(time.Millisecond)
	}
	// Two allocations with two guards and two flows for each of three channels, and two listeners.
	if err != nil || s.Unresolved > 0 || s.Flows != 2*(2+6)+2 {
		stop()
		l.Fatalf("got %v, %d flows and %d gateways not resolved: want 18 and none; %v", err, s.Flows, s.Unresolved, s.Absent)
	}
	for _, i := range s.Interfaces {
		if i.Mode != config.Mode {
			l.Errorf("%s is attached in mode %q, want %q: %s", i.Name, i.Mode, config.Mode, i.Reason)
		}
		if _, err := os.Stat(filepath.Join(s.Directory, fmt.Sprintf("link-%d", i.Index))); err != nil {
			l.Errorf("the link of %s is not pinned: %v", i.Name, err)
		}
	}
	return stop
}

// stretch is one way through the relay, between two sockets.
type stretch struct {
	verdict  Verdict
	from, to *net.UDPConn
	at       netip.AddrPort // of the relay, sent to
	source   netip.AddrPort // of the relay, received from
	in, out  turn.ChannelNumber
}

func (l *live) stretches() (all []stretch) {
	for c, client := range l.clients {
		server := netip.AddrPortFrom(liveHosts[c], liveServer)
		for p, peer := range l.peers {
			channel := 0x4000 + turn.ChannelNumber(p)
			all = append(all,
				stretch{VerdictToPeer, client, peer, server, liveRelayed(c, p), channel, 0},
				stretch{VerdictToClient, peer, client, liveRelayed(c, p), server, 0, channel},
			)
		}
		other := netip.AddrPortFrom(liveHosts[1-c], liveServer)
		all = append(all, stretch{VerdictToChannel, client, l.clients[1-c], server, other, liveCall, liveCall})
	}
	return all
}

// message is n bytes of payload as a client or peer has it on the wire.
func message(channel turn.ChannelNumber, payload []byte) []byte {
	if channel == 0 {
		return payload
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(channel))
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	return append(b, payload...)
}

// relay sends datagrams on all stretches: each arrives, as it has to, and is counted once.
func (l *live) relay(datagrams, size int) {
	l.Helper()
	before := l.verdicts()
	var want [Verdicts]uint64
	for _, s := range l.stretches() {
		for i := range datagrams {
			if err := s.send(i, size); err != nil {
				l.Fatal(err)
			}
			if err := s.receive(i, size); err != nil {
				l.Fatalf("%v, number %d of %s to %s: %v; verdicts moved by %v", s.verdict, i, s.from.LocalAddr(), s.to.LocalAddr(), err, l.moved(before))
			}
		}
		want[s.verdict] += uint64(datagrams)
	}
	got := l.moved(before)
	got[VerdictNotOurs] = 0 // the neighbours' own
	if got != want {
		l.Errorf("verdicts moved by %v, want %v", got, want)
	}
}

// large sends datagrams that fill several buffers on all stretches: natively each is relayed, else passed up, where
// nobody is. Before 6.3 the kernel redirects none.
func (l *live) large(size int) {
	l.Helper()
	version, err := features.LinuxVersionCode()
	l.must(err)
	for _, s := range l.stretches() {
		before := l.verdicts()
		if err := s.send(1, size); err != nil {
			l.Fatal(err)
		}
		var got [Verdicts]uint64
		for deadline := time.Now().Add(patience); got[s.verdict]+got[VerdictDropAway] == 0; got = l.moved(before) {
			if time.Now().After(deadline) {
				l.Fatalf("%v of %d bytes: verdicts moved by %v", s.verdict, size, got)
			}
			time.Sleep(time.Millisecond)
		}
		relayed := got[s.verdict] == 1
		if want := version >= 6<<16|3<<8; l.config.Mode == XDPNative && relayed != want {
			l.Errorf("%v of %d bytes: relayed %t, want %t", s.verdict, size, relayed, want)
		}
		if relayed {
			if err := s.receive(1, size); err != nil {
				l.Errorf("%v of %d bytes, relayed by the program: %v", s.verdict, size, err)
			}
		}
	}
}

func (s *stretch) payload(i, size int) []byte {
	b := bytes.Repeat([]byte{byte(s.verdict), byte(s.in), byte(i)}, size/3+1)[:size]
	binary.BigEndian.PutUint32(b, uint32(i))
	return b
}

func (s *stretch) send(i, size int) error {
	_, err := s.from.WriteToUDPAddrPort(message(s.in, s.payload(i, size)), s.at)
	return err
}

func (s *stretch) receive(i, size int) error {
	b := make([]byte, 1<<16)
	if err := s.to.SetReadDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	n, source, err := s.to.ReadFromUDPAddrPort(b)
	if err != nil {
		return err
	}
	source = netip.AddrPortFrom(source.Addr().Unmap(), source.Port())
	if want := message(s.out, s.payload(i, size)); source != s.source || !bytes.Equal(b[:n], want) {
		return fmt.Errorf("got %d bytes from %s: %x, want %d from %s: %x", n, source, b[:min(n, 64)], len(want), s.source, want[:min(len(want), 64)])
	}
	return nil
}

// verdicts counts packets by what became of them, whether the datapath runs or not.
func (l *live) verdicts() (count [Verdicts]uint64) {
	l.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(l.d.pins.version(l.d.layout), "cpus"), nil)
	l.must(err)
	defer m.Close()
	all, err := (&verdictCounters{cpus: m}).read()
	l.must(err)
	for v, c := range all {
		count[v] = c.Packets
	}
	return count
}

// moved is by how much verdicts have moved.
func (l *live) moved(before [Verdicts]uint64) [Verdicts]uint64 {
	l.Helper()
	now := l.verdicts()
	for v := range now {
		now[v] -= before[v]
	}
	return now
}
