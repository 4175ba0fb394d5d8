package test

import (
	"errors"
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

const attrMobilityTicket stun.AttrType = 0x8030

// nomad is a call of a client that moves (RFC 8016): of each of its sockets, one after the other, what comes back counts.
type nomad struct {
	*talker
	l      *lab
	ticket []byte
}

// nomad makes an allocation of a mobile client, with a channel to a peer that echoes.
func (l *lab) nomad(at, server string) *nomad {
	l.t.Helper()
	peer := l.peer.listen(addr(labPeer4 + ":6001"))
	go reflect(peer)
	n := &nomad{l: l, talker: &talker{channel: 0x4001, back: map[uint64]bool{}, arrived: make(chan struct{}, 1<<16)}}
	n.at(newClient(l.t, l.clients, at, server))
	n.took(n.must(n.request(stun.MethodAllocate, transport(), stun.RawAttribute{Type: attrMobilityTicket})))
	n.bind(n.channel, addr(labPeer4+":6001"))
	return n
}

// at has the client speak from another socket from now on, and yields the one before.
func (n *nomad) at(c *client) *client {
	before := n.client
	n.client = c
	c.onData(n.heard)
	return before
}

// moves moves the allocation to another socket, and yields the one there was. Nothing is said from the new one yet.
func (n *nomad) moves(c *client) *client {
	n.t.Helper()
	before := n.at(c)
	n.took(n.must(n.request(stun.MethodRefresh, stun.RawAttribute{Type: attrMobilityTicket, Value: n.ticket})))
	return before
}

// took keeps the ticket in an answer.
func (n *nomad) took(answer *stun.Message) {
	n.t.Helper()
	v, err := answer.Get(attrMobilityTicket)
	if err != nil || len(v) == 0 {
		n.t.Fatalf("got ticket %x, %v", v, err)
	}
	n.ticket = append([]byte(nil), v...)
}

// from has somebody else's socket speak for a while.
func (n *nomad) from(c *client, f func()) {
	here := n.client
	n.client = c
	f()
	n.client = here
}

// talksByKernel has n payloads go there and back, and wants the kernel alone to relay them.
func (n *nomad) talksByKernel(d *daemon, payloads int) {
	n.t.Helper()
	want := map[string]uint64{"to-peer": uint64(payloads), "to-client": uint64(payloads)}
	d.wantByKernel("at "+n.addr(), want, func() { n.talk(payloads, func(i int) int { return 8 + i%1000 }) })
}

// TestKernelFollowsAMobileClient has a client move three times while the kernel relays its channel: to another address, to the
// other family, and back while the daemon is restarted. Until it has sent data from where it came, what it had is relayed; then
// the kernel relays there. Nothing that is said is lost.
func TestKernelFollowsAMobileClient(t *testing.T) {
	l := newLab(t)
	l.clients.do(func() error { return addAddresses("far0", []string{"192.0.2.3/24"}) })
	d := l.start()
	const flows, n = 4, 200
	c := l.nomad(labClient4+":5001", labServer4+":3478")
	d.offloaded(flows)
	c.talksByKernel(d, n)

	home := c.moves(newClient(t, l.clients, "192.0.2.3:5002", labServer4+":3478"))
	c.from(home, func() { c.talksByKernel(d, n) })
	d.wantKernelAgain(c.talker, "the kernel relays where the client is")
	c.talksByKernel(d, n)
	d.wantSilent(home)

	home = c.moves(newClient(t, l.clients, "["+labClient6+"]:5003", "["+labServer6+"]:3478"))
	c.from(home, func() { c.talksByKernel(d, n) })
	d.wantKernelAgain(c.talker, "the kernel relays where the client is")
	c.talksByKernel(d, n)
	d.wantSilent(home)
	c.wantNoLoss()

	d.kill()
	c.talk(n, func(int) int { return 100 })
	d.start()
	c.talksByKernel(d, n)

	home = c.moves(newClient(t, l.clients, labClient4+":5004", labServer4+":3478"))
	d.kill()
	c.from(home, func() { c.talk(n, func(int) int { return 100 }) })
	d.start()
	c.from(home, func() { c.talksByKernel(d, n) })
	c.wantNoLoss()
	d.wantKernelAgain(c.talker, "the kernel relays where the client is")
	d.kill()
	c.talk(n, func(int) int { return 100 })
	d.start()
	c.talksByKernel(d, n)
	d.wantSilent(home)
	d.wantSound()
	if left := d.left(); fmt.Sprint(left) != "[moved moved moved]" {
		t.Errorf("five-tuples were left for %v, want three moves", left)
	}
}

// TestKernelFollowsAClientBetweenTransports has one move from UDP to TCP, where userspace relays, and back.
func TestKernelFollowsAClientBetweenTransports(t *testing.T) {
	l := newLab(t)
	d := l.start("--listen", "tcp://"+labServer4+":3478")
	const n = 200
	c := l.nomad(labClient4+":5001", labServer4+":3478")
	d.offloaded(4)
	c.talksByKernel(d, n)
	var conn net.Conn
	l.clients.do(func() (err error) {
		conn, err = net.Dial("tcp", labServer4+":3478")
		return err
	})
	home := c.moves(newStreamClient(t, conn, labServer4+":3478"))
	c.from(home, func() { c.talksByKernel(d, n) })
	c.talk(1, func(int) int { return 100 })
	eventually(t, "the kernel relays for the client no more", func() error {
		if st := d.kernel(); st.Lag != 0 || st.Absent["the client's transport is a stream"] != 2 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	d.wantByKernel("on a stream", map[string]uint64{"to-peer": 0, "to-client": 0}, func() {})
	user := d.status()
	c.talk(n, func(int) int { return 100 })
	if got := d.status().ToPeer.Packets - user.ToPeer.Packets; got != n {
		t.Errorf("userspace relayed %d packets of a client on a stream, want %d", got, n)
	}
	d.wantSilent(home)
	stream := c.moves(newClient(t, l.clients, labClient4+":5002", labServer4+":3478"))
	c.from(stream, func() { c.talk(n, func(int) int { return 100 }) })
	_ = stream.conn.Close()
	eventually(t, "the kernel carries the channel, without a word from where the client is", func() error {
		if st := d.kernel(); st.Lag != 0 || st.Flows < 4 || len(st.Absent) != 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
	c.talksByKernel(d, n)
	c.wantNoLoss()
	if left := d.left(); fmt.Sprint(left) != "[moved stream-closed]" {
		t.Errorf("five-tuples were left for %v, want a move and the end of the stream", left)
	}
}

// left are the reasons for which five-tuples were left.
func (d *daemon) left() (why []any) {
	d.t.Helper()
	for _, e := range d.events() {
		if e.Kind == "FiveTupleLeft" {
			why = append(why, e.Event["reason"])
		}
	}
	return why
}

// wantSilent has somebody say what is relayed no more: neither by the kernel nor by userspace.
func (d *daemon) wantSilent(c *client) {
	d.t.Helper()
	before, user := d.kernel(), d.status()
	const n = 20
	for range n {
		c.sendChannel(0x4001, make([]byte, 100))
	}
	eventually(d.t, "what comes from where the client was is dropped", func() error {
		if got := d.status().Drops["no-allocation"] - user.Drops["no-allocation"]; got != n {
			return fmt.Errorf("%d datagrams are dropped, want %d", got, n)
		}
		return nil
	})
	if got := d.kernel(); got.packets("to-peer") != before.packets("to-peer") {
		d.t.Error("the kernel relays for where the client was")
	}
}

// TestKernelLosesNothingOfAClientThatMoves has it say something every two milliseconds, from the old address until it is told that
// it has moved, then from the new one.
func TestKernelLosesNothingOfAClientThatMoves(t *testing.T) {
	l := newLab(t)
	l.clients.do(func() error { return addAddresses("far0", []string{"192.0.2.3/24"}) })
	d := l.start()
	c := l.nomad(labClient4+":5001", labServer4+":3478")
	d.offloaded(4)
	for i := range 6 {
		at := []string{"192.0.2.3:0", labClient4 + ":0"}[i%2]
		stop := c.speak(c.client, 2*time.Millisecond)
		c.moves(newClient(t, l.clients, at, labServer4+":3478"))
		stop()
		before := d.kernel().packets("to-peer")
		stop = c.speak(c.client, 2*time.Millisecond)
		eventually(t, "the kernel relays where the client is", func() error {
			if d.kernel().packets("to-peer") < before+100 {
				return errors.New("not yet")
			}
			return nil
		})
		stop()
		c.wantNoLoss()
	}
	if left := d.left(); len(left) != 6 {
		t.Errorf("five-tuples were left for %v, want six moves", left)
	}
	d.wantSound()
}

// speak says the next payloads from one of the client's sockets, until it is stopped.
func (n *nomad) speak(from *client, every time.Duration) (stop func()) {
	speaker := &talker{client: from, channel: n.channel, sent: n.sent}
	stopSpeaking := speaker.steady(every)
	return func() {
		stopSpeaking()
		n.sent = speaker.sent
	}
}
