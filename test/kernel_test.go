package test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"turnstone/internal/netlab"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/gopacket/gopacket"
	"github.com/gopacket/gopacket/layers"
	"github.com/pion/stun/v3"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// pinsRoot is where daemons pin.
const pinsRoot = "/sys/fs/bpf/turnstone"

// lab is a relay between two networks: clients on one side of it, peers on the other.
type lab struct {
	t                    *testing.T
	clients, relay, peer *space
	instance             string
	ends                 map[string]link.Link // of the program at the far end of each interface of the relay
}

// Addresses of the lab.
const (
	labServer4, labServer6 = "192.0.2.1", "2001:db8:1::1"
	labClient4, labClient6 = "192.0.2.2", "2001:db8:1::2"
	labRelay4, labRelay6   = "198.51.100.1", "2001:db8:2::1"
	labPeer4, labPeer6     = "198.51.100.2", "2001:db8:2::2"
)

var labs atomic.Int32

// newLab joins three spaces. What an earlier run of the test left pinned is removed, and what this one leaves too.
func newLab(t *testing.T) *lab {
	t.Helper()
	l := &lab{t: t, clients: newSpace(t), relay: newSpace(t), peer: newSpace(t)}
	l.instance = fmt.Sprintf("test-%d-%d", os.Getpid(), labs.Add(1))
	l.join(l.clients, []string{labClient4 + "/24", labClient6 + "/64"}, "relay0", []string{labServer4 + "/24", labServer6 + "/64"})
	l.join(l.peer, []string{labPeer4 + "/24", labPeer6 + "/64"}, "relay1", []string{labRelay4 + "/24", labRelay6 + "/64"})
	t.Cleanup(l.unpin)
	return l
}

// unpin removes what the lab's daemons left pinned.
func (l *lab) unpin() {
	if err := os.RemoveAll(filepath.Join(pinsRoot, l.instance)); err != nil {
		l.t.Error(err)
	}
}

// join joins a space to the relay by a veth. Both ends calculate checksums themselves, and the far end has a program,
// without which what is sent natively would never arrive.
func (l *lab) join(far *space, farAddrs []string, name string, nearAddrs []string) {
	l.t.Helper()
	l.joinAt(0, far, farAddrs, name, nearAddrs)
}

// joinAt is join with the index of the relay's interface, 0 for any.
func (l *lab) joinAt(index int, far *space, farAddrs []string, name string, nearAddrs []string) {
	l.t.Helper()
	l.relay.do(func() error {
		return netlink.LinkAdd(&netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: name, Index: index}, PeerName: "far0", PeerNamespace: netlink.NsFd(far.net),
		})
	})
	l.relay.do(func() error { return setUp(name, nearAddrs) })
	far.do(func() error { return setUp("far0", farAddrs) })
	l.passAt(far, name)
}

// passAt puts the program at the far end of an interface of the relay.
func (l *lab) passAt(far *space, name string) {
	l.t.Helper()
	far.do(func() error {
		on, err := passAll(l.t, "far0")
		if l.ends == nil {
			l.ends = map[string]link.Link{}
		}
		l.ends[name] = on
		return err
	})
}

func setUp(name string, addrs []string) error {
	return errors.Join(netlab.WholeChecksums(name), addAddresses(name, addrs))
}

// addAddresses gives an interface addresses, and sets it up.
func addAddresses(name string, addrs []string) error {
	nic, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		parsed, err := netlink.ParseAddr(a)
		if err != nil {
			return err
		}
		parsed.Flags = unix.IFA_F_NODAD
		if err := netlink.AddrAdd(nic, parsed); err != nil {
			return fmt.Errorf("add %s to %s: %w", a, name, err)
		}
	}
	return netlink.LinkSetUp(nic)
}

// passProgram passes everything.
var passProgram = &ebpf.ProgramSpec{
	Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	Flags: unix.BPF_F_XDP_HAS_FRAGS,
}

// passAll attaches a program that passes everything to name, for as long as the test runs.
func passAll(t *testing.T, name string) (link.Link, error) {
	p, err := ebpf.NewProgram(passProgram)
	if err != nil {
		return nil, err
	}
	defer p.Close()
	nic, err := net.InterfaceByName(name)
	if err != nil {
		return nil, err
	}
	on, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: nic.Index, Flags: link.XDPDriverMode})
	if err != nil {
		return nil, err
	}
	t.Cleanup(func() { _ = on.Close() })
	return on, nil
}

// start starts a daemon of the lab.
func (l *lab) start(flags ...string) *daemon {
	l.t.Helper()
	return startDaemon(l.t, l.relay, append(l.flags(), flags...)...)
}

// flags are those of a daemon of the lab.
func (l *lab) flags() []string {
	return []string{
		"--listen", "udp://" + labServer4 + ":3478", "--listen", "udp://[" + labServer6 + "]:3478",
		"--relay-ip", labRelay4, "--relay-ip", labRelay6, "--realm", realm, "--user", username + ":" + password,
		"--allow-peer", "198.51.100.0/24", "--allow-peer", "2001:db8:2::/64", "--metrics", "off",
		"--kernel", "required", "--xdp", "native", "--kernel-instance", l.instance, "--kernel-max-channels", "1024",
	}
}

type kernelStatus struct {
	Applied    uint64         `json:"applied"`
	Lag        uint64         `json:"lag"`
	Flows      int            `json:"flows"`
	Capacity   int            `json:"capacity"`
	Gateways   int            `json:"gateways"`
	Unresolved int            `json:"unresolved"`
	Absent     map[string]int `json:"absent"` // flows by reason
	Drift      struct{ Added, Changed, Removed uint64 }
	Interfaces []struct{ Interface, Mode, Reason string }
	Verdicts   []struct {
		Verdict        string
		Packets, Bytes uint64
	}
}

func (d *daemon) kernel() kernelStatus {
	d.t.Helper()
	return decode[kernelStatus](d.t, d.ask("kernel", "status", "-o", "json"))
}

func (s kernelStatus) packets(verdict string) uint64 {
	for _, v := range s.Verdicts {
		if v.Verdict == verdict {
			return v.Packets
		}
	}
	return 0
}

// offloaded waits until the kernel carries so many flows, with their next hops.
func (d *daemon) offloaded(flows int) {
	d.t.Helper()
	eventually(d.t, fmt.Sprintf("the kernel carries %d flows", flows), func() error {
		st := d.kernel()
		if st.Lag != 0 || st.Flows < flows || st.Unresolved != 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// wantSound checks that the kernel holds nothing but what the log grants, and all of it.
func (d *daemon) wantSound() {
	d.t.Helper()
	if out := d.ask("kernel", "diff", "-o", "jsonl"); out != "" {
		d.t.Errorf("kernel and log differ:\n%s", out)
	}
}

// reflect answers every datagram at c with itself, until c is closed.
func reflect(c *net.UDPConn) {
	b := make([]byte, 1<<16)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.WriteToUDPAddrPort(b[:n], from)
		}
	}
}

// talker is a channel between a client and a peer that echoes, with what came back.
type talker struct {
	*client
	channel uint16
	sent    uint64
	mu      sync.Mutex // guards back
	back    map[uint64]bool
	arrived chan struct{}
}

// dial has a client of the lab bind a channel to a peer that echoes.
func (l *lab) dial(clientAt, server, peerAt string, channel uint16, family byte) *talker {
	l.t.Helper()
	peer := l.peer.listen(addr(peerAt))
	go reflect(peer)
	return l.dialTo(clientAt, server, peer.LocalAddr().(*net.UDPAddr).AddrPort(), channel, family)
}

func (l *lab) dialTo(clientAt, server string, peer netip.AddrPort, channel uint16, family byte) *talker {
	l.t.Helper()
	c := &talker{client: newClient(l.t, l.clients, clientAt, server), channel: channel, back: map[uint64]bool{}, arrived: make(chan struct{}, 1<<16)}
	c.onData(c.heard)
	c.must(c.request(stun.MethodAllocate, transport(), stun.RawAttribute{Type: attrRequestedFamily, Value: []byte{family, 0, 0, 0}}))
	c.bind(channel, peer)
	return c
}

func (c *talker) heard(channel uint16, payload []byte) {
	if channel != c.channel || len(payload) < 8 {
		return
	}
	c.mu.Lock()
	c.back[binary.BigEndian.Uint64(payload)] = true
	c.mu.Unlock()
	select {
	case c.arrived <- struct{}{}:
	default:
	}
}

// say sends the next numbered payload of n bytes.
func (c *talker) say(n int) {
	b := make([]byte, max(n, 8))
	binary.BigEndian.PutUint64(b, c.sent)
	c.sent++
	c.sendChannel(c.channel, b)
}

func (c *talker) heardBack() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.back)
}

// talk sends n payloads, never more than a window ahead of what came back, and waits for the last.
func (c *talker) talk(n int, size func(i int) int) {
	c.t.Helper()
	const window = 64
	from := c.heardBack()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for i := 0; i < n; {
		if i-(c.heardBack()-from) < window {
			c.say(size(i))
			i++
			continue
		}
		select {
		case <-c.arrived:
		case <-deadline.C:
			c.t.Fatalf("%d of %d payloads came back", c.heardBack()-from, n)
		}
	}
	eventually(c.t, "everything came back", func() error {
		if got := c.heardBack() - from; got != n {
			return fmt.Errorf("%d of %d", got, n)
		}
		return nil
	})
}

func TestKernelRelaysEveryFamilyBothWays(t *testing.T) {
	l := newLab(t)
	d := l.start()
	const v4, v6 = 1, 2
	for i, c := range []*talker{
		l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, v4),
		l.dial("["+labClient6+"]:5002", "["+labServer6+"]:3478", "["+labPeer6+"]:6002", 0x4002, v6),
		l.dial(labClient4+":5003", labServer4+":3478", "["+labPeer6+"]:6003", 0x4003, v6),
		l.dial("["+labClient6+"]:5004", "["+labServer6+"]:3478", labPeer4+":6004", 0x4004, v4),
	} {
		d.offloaded(3 * (i + 1))
		before, user := d.kernel(), d.status()
		n := 25_000
		if soak {
			n = 100_000
		}
		c.talk(n, func(i int) int { return 8 + i%1200 })
		after, userAfter := d.kernel(), d.status()
		for _, v := range []string{"to-peer", "to-client"} {
			if got := after.packets(v) - before.packets(v); got != uint64(n) {
				t.Errorf("call %d: the kernel relayed %d packets %s, want %d", i, got, v, n)
			}
		}
		if user.ToPeer != userAfter.ToPeer || user.ToClient != userAfter.ToClient {
			t.Errorf("call %d: userspace relayed too: %+v, before %+v", i, userAfter, user)
		}
	}
	d.wantSound()
	d.stop()
	usage := 0
	for _, e := range d.events() {
		if e.Kind == "UsageRecorded" && e.Event["path"] == "kernel" {
			usage++
		}
	}
	if usage != 4 {
		t.Errorf("the log has the usage of %d channels, want 4", usage)
	}
}

func TestKernelRelaysBetweenItsOwnAllocations(t *testing.T) {
	l := newLab(t)
	d := l.start()
	a := newClient(t, l.clients, labClient4+":5001", labServer4+":3478")
	b := newClient(t, l.clients, "["+labClient6+"]:5002", "["+labServer6+"]:3478")
	ra := a.allocate()
	rb := relayedIn(b.must(b.request(stun.MethodAllocate, transport(), stun.RawAttribute{Type: attrRequestedFamily, Value: []byte{1, 0, 0, 0}})))
	a.bind(0x4001, rb)
	b.bind(0x4002, ra)
	d.offloaded(6)
	b.onData(func(channel uint16, payload []byte) { b.sendChannel(channel, payload) })
	c := &talker{client: a, channel: 0x4001, back: map[uint64]bool{}, arrived: make(chan struct{}, 1<<16)}
	a.onData(c.heard)
	before, user := d.kernel(), d.status()
	c.talk(2000, func(i int) int { return 8 + i%500 })
	after, userAfter := d.kernel(), d.status()
	if got := after.packets("to-channel") - before.packets("to-channel"); got != 4000 {
		t.Errorf("the kernel relayed %d packets from channel to channel, want 4000", got)
	}
	if user.ToPeer != userAfter.ToPeer || user.ToClient != userAfter.ToClient {
		t.Errorf("userspace relayed too: %+v, before %+v", userAfter, user)
	}
	d.wantSound()
}

func TestKernelStopsBeforeARevocationIsAnswered(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	d.offloaded(3)
	c.talk(10, func(int) int { return 100 })
	c.must(c.request(stun.MethodRefresh, lifetime(0)))
	before := d.kernel()
	for range 50 {
		c.say(100)
	}
	eventually(t, "what came after the answer is passed up", func() error {
		if st := d.kernel(); st.packets("miss")+st.packets("stale")-before.packets("miss")-before.packets("stale") < 50 {
			return fmt.Errorf("%+v", st.Verdicts)
		}
		return nil
	})
	if st := d.kernel(); st.packets("to-peer") != before.packets("to-peer") {
		t.Error("the kernel relayed for an allocation whose end was answered")
	}
	if st := d.kernel(); st.Flows != 0 {
		t.Errorf("the kernel has %d flows, want none", st.Flows)
	}
}

// steady talks in the background at a rate anyone can sustain, until it is stopped.
func (c *talker) steady(every time.Duration) (stop func()) {
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				c.say(160)
			case <-quit:
				return
			}
		}
	}()
	return func() { close(quit); <-done }
}

// wantNoLoss checks that everything said came back.
func (c *talker) wantNoLoss() {
	c.t.Helper()
	eventually(c.t, "everything said came back", func() error {
		if got := uint64(c.heardBack()); got != c.sent {
			c.mu.Lock()
			defer c.mu.Unlock()
			for n := range c.sent {
				if !c.back[n] {
					return fmt.Errorf("%d of %d, the first missing is %d", got, c.sent, n)
				}
			}
		}
		return nil
	})
}

func TestKernelRelaysOnWhileTheDaemonIsDead(t *testing.T) {
	l := newLab(t)
	d := l.start()
	calls := []*talker{
		l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1),
		l.dial("["+labClient6+"]:5002", "["+labServer6+"]:3478", labPeer4+":6002", 0x4002, 1),
	}
	d.offloaded(6)
	var stops []func()
	for _, c := range calls {
		stops = append(stops, c.steady(2*time.Millisecond))
	}
	rounds := 3
	if soak {
		rounds = 20
	}
	for round := range rounds {
		flags := slices.Clone(d.flags)
		if round%2 == 1 { // an upgrade that changes the layout of the maps
			d.flags = append(d.flags, "--kernel-max-channels", fmt.Sprint(1024+round))
		}
		d.kill()
		said := calls[0].sentSoFar()
		eventually(t, "five seconds' worth is said while the daemon is dead", func() error {
			if calls[0].sentSoFar()-said < 2500 {
				return errors.New("not yet")
			}
			return nil
		})
		d.start()
		d.flags = flags
		if st := d.status(); st.ToPeer.Packets != 0 || st.ToClient.Packets != 0 {
			t.Errorf("userspace relayed %+v", st)
		}
	}
	for i, stop := range stops {
		stop()
		calls[i].wantNoLoss()
	}
	if st := d.status(); st.ToPeer.Packets != 0 || st.ToClient.Packets != 0 {
		t.Errorf("userspace relayed %+v", st)
	}
	d.wantSound()
	d.stop()
	want := map[string]uint64{"0x4001": calls[0].sent, "0x4002": calls[1].sent}
	got := map[string]uint64{}
	for _, e := range d.events() {
		if e.Kind == "UsageRecorded" && e.Event["path"] == "kernel" {
			got[fmt.Sprint(e.Event["channel"])] = uint64(e.Event["to_peer"].(map[string]any)["packets"].(float64))
		}
	}
	for channel, n := range want {
		if got[channel] != n {
			t.Errorf("the log has %d packets of channel %s by the kernel, want %d: counting goes on across deaths and layouts", got[channel], channel, n)
		}
	}
}

func (c *talker) sentSoFar() int { return c.heardBack() }

func TestKernelLeavesForeignProgramsAlone(t *testing.T) {
	l := newLab(t)
	l.relay.do(func() error {
		_, err := passAll(t, "relay0")
		return err
	})
	d := l.start("--kernel", "auto")
	st := d.kernel()
	for _, i := range st.Interfaces {
		switch i.Interface {
		case "relay0":
			if i.Mode != "" || !strings.Contains(i.Reason, "another program") {
				t.Errorf("%+v, want it left to the other program", i)
			}
		case "relay1":
			if i.Mode != "native" {
				t.Errorf("%+v, want native", i)
			}
		}
	}
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	c.talk(100, func(int) int { return 100 }) // in userspace
	if got := d.status().ToPeer.Packets; got != 100 {
		t.Errorf("userspace relayed %d packets, want 100", got)
	}
}

// TestCapHoldsInBothPaths floods a channel: what arrives is bounded by the cap, whoever relays.
func TestCapHoldsInBothPaths(t *testing.T) {
	const rate, size, n = 1_000_000, 1000, 3000
	l := newLab(t)
	d := newDaemon(t, l.relay, l.flags()...)
	flags := d.flags
	for _, mode := range []string{"required", "off"} {
		d.flags = append(slices.Clone(flags), "--kernel", mode, "--max-bandwidth", fmt.Sprint(rate))
		d.start()
		peer := l.peer.listen(addr(labPeer4 + ":6001"))
		var arrived atomic.Int64
		drained := make(chan struct{})
		go func() {
			defer close(drained)
			b := make([]byte, 2048)
			for {
				n, _, err := peer.ReadFromUDPAddrPort(b)
				if errors.Is(err, net.ErrClosed) {
					return
				}
				arrived.Add(int64(n))
			}
		}()
		c := newClient(t, l.clients, labClient4+":0", labServer4+":3478")
		c.allocate()
		c.bind(0x4001, peer.LocalAddr().(*net.UDPAddr).AddrPort())
		if mode == "required" {
			d.offloaded(3)
		}
		began := time.Now()
		for range n {
			c.sendChannel(0x4001, make([]byte, size))
		}
		took := time.Since(began)
		var dropped uint64
		eventually(t, "everything arrived or was dropped", func() error {
			if dropped = d.status().Drops["meter"]; mode == "required" {
				st := d.kernel()
				dropped = st.packets("drop-meter")
			}
			if uint64(arrived.Load())/size+dropped != n {
				return fmt.Errorf("%d bytes arrived, %d packets were dropped", arrived.Load(), dropped)
			}
			return nil
		})
		if limit := int64((took + time.Second).Seconds() * rate); arrived.Load() > limit || dropped == 0 {
			t.Errorf("kernel %s: %d bytes arrived in %v, want at most %d", mode, arrived.Load(), took, limit)
		}
		if arrived.Load() < rate/5 {
			t.Errorf("kernel %s: %d bytes arrived, want at least the burst", mode, arrived.Load())
		}
		d.stop()
		_ = peer.Close()
		<-drained
	}
}

// TestKernelFollowsTheNextHop changes the MAC address of the peer's interface in the middle of a call, and takes its link
// down and up again: the kernel goes on as soon as the neighbour is known.
func TestKernelFollowsTheNextHop(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	d.offloaded(3)
	c.talk(100, func(int) int { return 100 })
	mac, err := net.ParseMAC("00:00:5e:00:53:07")
	if err != nil {
		t.Fatal(err)
	}
	l.peer.do(func() error {
		nic, err := netlink.LinkByName("far0")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetHardwareAddr(nic, mac); err != nil {
			return err
		}
		// As a host does that gets another address: it says so to everybody (RFC 5227 section 2.3).
		return announce(nic, mac, netip.MustParseAddr(labPeer4))
	})
	d.wantKernelAgain(c, "the kernel relays to the new address")
	l.relay.do(func() error {
		nic, err := netlink.LinkByName("relay1")
		if err != nil {
			return err
		}
		return errors.Join(netlink.LinkSetDown(nic), netlink.LinkSetUp(nic))
	})
	d.wantKernelAgain(c, "the kernel relays after the link was down")
	d.wantSound()
}

// wantKernelAgain waits until the kernel relays what c says, there and back.
func (d *daemon) wantKernelAgain(c *talker, what string) {
	d.t.Helper()
	eventually(d.t, what, func() error {
		before, from := d.kernel(), c.heardBack()
		c.say(100)
		select {
		case <-c.arrived:
		case <-time.After(100 * time.Millisecond):
		}
		if after := d.kernel(); c.heardBack() == from || after.packets("to-peer") == before.packets("to-peer") || after.packets("to-client") == before.packets("to-client") {
			return errors.New("not by the kernel")
		}
		return nil
	})
}

// announce sends a gratuitous ARP.
func announce(nic netlink.Link, mac net.HardwareAddr, ip netip.Addr) error {
	const arp = 0x0806
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	b := append([]byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, mac...)
	b = append(b, arp>>8, arp&0xff, 0, 1, 8, 0, 6, 4, 0, 2) // Ethernet, IPv4, reply
	for range 2 {
		b = append(append(b, mac...), ip.AsSlice()...)
	}
	return unix.Sendto(fd, b, 0, &unix.SockaddrLinklayer{Ifindex: nic.Attrs().Index, Halen: 6})
}

// TestKernelLearnsThePathMTU has a router on the way say that a packet was too large: from then on larger ones
// are for userspace, which may fragment them.
func TestKernelLearnsThePathMTU(t *testing.T) {
	l := newLab(t)
	d := l.start()
	peer := l.peer.listen(addr(labPeer4 + ":6001"))
	go reflect(peer)
	c := &talker{client: newClient(t, l.clients, labClient4+":5001", labServer4+":3478"), channel: 0x4001, back: map[uint64]bool{}, arrived: make(chan struct{}, 1<<16)}
	c.onData(c.heard)
	relayed := c.allocate()
	c.bind(0x4001, addr(labPeer4+":6001"))
	d.offloaded(3)
	c.talk(10, func(int) int { return 1300 })
	if got := d.kernel().packets("to-peer"); got != 10 {
		t.Fatalf("the kernel relayed %d packets, want 10", got)
	}
	l.peer.do(func() error { return tooBig(relayed, addr(labPeer4+":6001"), 1280) })
	eventually(t, "large packets are passed up", func() error {
		before := d.kernel()
		c.talk(1, func(int) int { return 1300 })
		if d.kernel().packets("mtu") == before.packets("mtu") {
			return errors.New("not yet")
		}
		return nil
	})
	before := d.kernel()
	c.talk(10, func(int) int { return 1200 })
	if got := d.kernel().packets("to-peer") - before.packets("to-peer"); got != 10 {
		t.Errorf("the kernel relayed %d small packets, want 10", got)
	}
	d.wantSound()
}

// tooBig sends what a router says of a datagram from source to destination (RFC 792, RFC 1191).
func tooBig(source, destination netip.AddrPort, mtu uint16) error {
	ip := &layers.IPv4{
		Version: 4, IHL: 5, TTL: 60, Length: 1328, Protocol: layers.IPProtocolUDP, Flags: layers.IPv4DontFragment,
		SrcIP: source.Addr().AsSlice(), DstIP: destination.Addr().AsSlice(),
	}
	udp := &layers.UDP{SrcPort: layers.UDPPort(source.Port()), DstPort: layers.UDPPort(destination.Port()), Length: 1308, Checksum: 1}
	icmp := &layers.ICMPv4{TypeCode: layers.CreateICMPv4TypeCode(layers.ICMPv4TypeDestinationUnreachable, layers.ICMPv4CodeFragmentationNeeded), Seq: mtu}
	inner := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(inner, gopacket.SerializeOptions{ComputeChecksums: false}, ip, udp); err != nil {
		return err
	}
	b := gopacket.NewSerializeBuffer()
	if err := gopacket.SerializeLayers(b, gopacket.SerializeOptions{ComputeChecksums: true}, icmp, gopacket.Payload(inner.Bytes())); err != nil {
		return err
	}
	c, err := net.Dial("ip4:icmp", source.Addr().String())
	if err != nil {
		return err
	}
	_, err = c.Write(b.Bytes())
	return errors.Join(err, c.Close())
}
