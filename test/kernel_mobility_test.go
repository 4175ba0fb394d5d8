package test

import (
	"errors"
	"fmt"
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
	n.at(at, server)
	n.took(n.must(n.request(stun.MethodAllocate, transport(), stun.RawAttribute{Type: attrMobilityTicket})))
	n.bind(n.channel, addr(labPeer4+":6001"))
	return n
}

// at has the client speak from another address from now on, and yields the one before.
func (n *nomad) at(at, server string) *client {
	n.l.t.Helper()
	before := n.client
	n.client = newClient(n.l.t, n.l.clients, at, server)
	n.onData(n.heard)
	return before
}

// moves moves the allocation to another address, and yields the client there was. Nothing is said from the new one yet.
func (n *nomad) moves(at, server string) *client {
	n.t.Helper()
	before := n.at(at, server)
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

	home := c.moves("192.0.2.3:5002", labServer4+":3478")
	c.from(home, func() { c.talksByKernel(d, n) })
	d.wantKernelAgain(c.talker, "the kernel relays where the client is")
	c.talksByKernel(d, n)
	d.wantSilent(home)

	home = c.moves("["+labClient6+"]:5003", "["+labServer6+"]:3478")
	c.from(home, func() { c.talksByKernel(d, n) })
	d.wantKernelAgain(c.talker, "the kernel relays where the client is")
	c.talksByKernel(d, n)
	d.wantSilent(home)
	c.wantNoLoss()

	d.kill()
	c.talk(n, func(int) int { return 100 })
	d.start()
	c.talksByKernel(d, n)

	home = c.moves(labClient4+":5004", labServer4+":3478")
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
		c.moves(at, labServer4+":3478")
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
