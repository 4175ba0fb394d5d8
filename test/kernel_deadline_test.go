package test

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"golang.org/x/sys/unix"
)

// slack is a tick of the slowest kernel, and what a packet needs on its way.
const slack = 15 * time.Millisecond

// prepareLog writes the log of a daemon that granted a channel some time ago: it yields what of it is
// left, as if the RFC's timers were shorter.
func (l *lab) prepareLog(dir string, client, server, relayed, peer netip.AddrPort, channel turn.ChannelNumber, left time.Duration) (end turn.Moment) {
	l.t.Helper()
	clock, err := relay.HostClock()
	if err != nil {
		l.t.Fatal(err)
	}
	log, err := store.Open(dir, store.Options{})
	if err != nil {
		l.t.Fatal(err)
	}
	now := clock()
	back := func(m turn.Moment, d time.Duration) turn.Moment {
		m.Uptime -= d
		m.Wall -= int64(d)
		return m
	}
	granted := back(now, turn.PermissionLifetime-left)
	for _, r := range []turn.Record{
		{First: 1, Moment: back(granted, time.Second), Events: []turn.Event{turn.EpochBegan{Log: turn.LogID{1}, Epoch: 1}}},
		{First: 2, Moment: granted, Events: []turn.Event{
			turn.AllocationCreated{
				Allocation: 1, Tx: turn.TransactionID{1}, FiveTuple: turn.FiveTuple{Client: client, Server: server, Protocol: turn.UDP},
				Relayed: []netip.AddrPort{relayed}, Transport: 17, Username: username, Realm: realm, Lifetime: uint32(turn.PermissionLifetime / time.Second),
			},
			turn.ChannelBound{Allocation: 1, Tx: turn.TransactionID{2}, Channel: channel, Peer: peer},
		}},
	} {
		if err := log.Append(r); err != nil {
			l.t.Fatal(err)
		}
	}
	if err := log.Close(); err != nil {
		l.t.Fatal(err)
	}
	return back(now, -left)
}

// arrivals notes when the kernel received the last datagram on c, in Unix time.
func arrivals(t *testing.T, c *net.UDPConn, last *atomic.Int64) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b, control := make([]byte, 2048), make([]byte, 256)
		for {
			_, n, _, _, err := c.ReadMsgUDPAddrPort(b, control)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue
			}
			messages, err := syscall.ParseSocketControlMessage(control[:n])
			if err != nil || len(messages) == 0 {
				continue
			}
			sec, nsec := binary.NativeEndian.Uint64(messages[0].Data), binary.NativeEndian.Uint64(messages[0].Data[8:])
			last.Store(int64(sec)*int64(time.Second) + int64(nsec))
		}
	}()
	t.Cleanup(func() { _ = c.Close(); <-done })
}

// TestKernelStopsWhenTheGrantIsOver leaves the daemon dead: nothing is relayed past the granted lifetime.
func TestKernelStopsWhenTheGrantIsOver(t *testing.T) {
	l := newLab(t)
	server, relayed := addr(labServer4+":3478"), addr(labRelay4+":50000")
	client, peer := l.clients.listen(addr(labClient4+":5001")), l.peer.listen(addr(labPeer4+":6001"))
	dir := t.TempDir()
	end := l.prepareLog(dir, addr(labClient4+":5001"), server, relayed, addr(labPeer4+":6001"), 0x4001, 8*time.Second)

	var atPeer, atClient atomic.Int64
	arrivals(t, peer, &atPeer)
	arrivals(t, client, &atClient)
	d := newDaemon(t, l.relay, l.flags()...)
	d.dir = dir
	d.start()
	d.offloaded(3)
	d.kill()

	stop := make(chan struct{})
	talked := make(chan struct{})
	go func() {
		defer close(talked)
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		data := append([]byte{0x40, 0x01, 0, 4}, "ping"...)
		for {
			select {
			case <-tick.C:
				_, _ = client.WriteToUDPAddrPort(data, server)
				_, _ = peer.WriteToUDPAddrPort([]byte("pong"), relayed)
			case <-stop:
				return
			}
		}
	}()
	deadline := time.Unix(0, end.Wall)
	eventually(t, "the grant is over", func() error {
		if time.Now().Before(deadline.Add(2 * time.Second)) {
			return errors.New("not yet")
		}
		return nil
	})
	close(stop)
	<-talked
	for name, last := range map[string]*atomic.Int64{"peer": &atPeer, "client": &atClient} {
		late := time.Unix(0, last.Load()).Sub(deadline)
		if late > slack {
			t.Errorf("the last packet came to the %s %v after the grant was over", name, late)
		}
		if late < -time.Second {
			t.Errorf("the last packet came to the %s %v before the grant was over: the kernel did not relay", name, -late)
		}
	}
}

// TestKernelWithThreeCapabilities runs the daemon as nobody, with just what the kernel's side needs.
func TestKernelWithThreeCapabilities(t *testing.T) {
	const nobody = 65534
	l := newLab(t)
	d := newDaemon(t, l.relay, l.flags()...)
	pins := pinsRoot + "/" + l.instance
	if err := errors.Join(os.MkdirAll(pinsRoot, 0o711), os.Chmod(pinsRoot, 0o711)); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{pins, d.dir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(dir, nobody, nobody); err != nil {
			t.Fatal(err)
		}
	}
	for dir := d.dir; dir != "/tmp" && dir != "/"; dir = filepath.Dir(dir) { // the way to it
		if err := os.Chmod(dir, 0o711); err != nil {
			t.Fatal(err)
		}
	}
	d.attributes = syscall.SysProcAttr{
		Credential:  &syscall.Credential{Uid: nobody, Gid: nobody},
		AmbientCaps: []uintptr{unix.CAP_BPF, unix.CAP_NET_ADMIN, unix.CAP_PERFMON},
	}
	d.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	d.offloaded(3)
	c.talk(1000, func(int) int { return 100 })
	if got := d.kernel().packets("to-peer"); got != 1000 {
		t.Errorf("the kernel relayed %d packets, want 1000", got)
	}
	d.kill()
	d.start()
	d.offloaded(3)
	c.talk(100, func(int) int { return 100 })
	if st := d.status(); st.ToPeer.Packets != 0 {
		t.Errorf("userspace relayed %+v", st)
	}
	d.wantSound()
}
