//go:build !race

package relay

import (
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"golang.org/x/sys/unix"
)

// TestRelayingMakesNoGarbage relays in every way and counts what Go's heap was asked for.
func TestRelayingMakesNoGarbage(t *testing.T) {
	g := serveTest(t, func(c *Config) { c.Shards = 1 })
	c, peer := g.client("alice").allocate(), listenRaw(t)
	bound := addressOf(t, peer)
	unbound := listenRaw(t)
	c.bind(0x4000, bound)
	send := newOutbox(nil)
	toServer, toRelayed := sockaddrOf(c.server), sockaddrOf(c.relayed)
	client := descriptorOf(t, c.endpointUDP)
	in := newInbox()
	frame := channelData(0x4000, make([]byte, 160))
	indication := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication),
		peerAddress(addressOf(t, unbound)), attribute{stun.AttrData, make([]byte, 160)}).Raw
	relayed := func() uint64 { return g.stats.toPeerPackets.Load() + g.stats.toClientPackets.Load() }
	round := func() {
		want := relayed() + 16
		for range 4 {
			send.push(client, &toServer, nil, frame, hop{ttl: 64}, false)
			send.push(client, &toServer, nil, indication, hop{ttl: 64}, false)
		}
		send.flush()
		for range 4 {
			send.push(peer, &toRelayed, nil, frame, hop{ttl: 64}, false)
		}
		send.flush()
		for range 4 {
			send.push(unbound, &toRelayed, nil, frame, hop{ttl: 64}, false)
		}
		send.flush()
		for end := uptime() + int64(5*time.Second); relayed() < want && uptime() < end; {
			unix.Nanosleep(&unix.Timespec{Nsec: 20000}, nil)
		}
		for _, fd := range [...]int{client, peer, unbound} {
			for n := 1; n > 0; {
				n, _ = in.receive(fd, 0)
			}
		}
	}
	before := relayed()
	perRound := testing.AllocsPerRun(500, round)
	if got := relayed() - before; got < 500*16 {
		t.Fatalf("got %d datagrams relayed, want %d", got, 500*16)
	}
	if perRound > 0 {
		t.Errorf("got %v allocations for 16 datagrams, want none", perRound)
	}
}

// descriptorOf is the descriptor of e, which e keeps.
func descriptorOf(t *testing.T, e *endpointUDP) (fd int) {
	t.Helper()
	raw, err := e.conn.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(d uintptr) { fd = int(d) }); err != nil {
		t.Fatal(err)
	}
	return fd
}
