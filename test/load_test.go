package test

import (
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	loadClients  = 25
	loadChannels = 4 // of each client
	loadEvery    = 25 * time.Millisecond

	payloadSize = 12 // client, channel, tick
)

// load is steady traffic in both directions on all channels of a number of clients. Nobody asks
// the server for anything once it flows.
type load struct {
	t       testing.TB
	clients []*client
	relayed []netip.AddrPort // by client
	peers   []*net.UDPConn   // by channel

	tick     atomic.Uint64
	toPeer   [loadClients][loadChannels]atomic.Uint64 // the last tick that arrived
	toClient [loadClients][loadChannels]atomic.Uint64
	strays   atomic.Uint64 // datagrams that came from or to where they should not
}

// newLoad allocates and binds, and has the traffic flow until the test ends.
func newLoad(t testing.TB, s *space) *load {
	t.Helper()
	l := &load{t: t}
	for i := range loadChannels {
		l.peers = append(l.peers, s.listen(addr(fmt.Sprintf("127.0.1.%d:0", i+1))))
	}
	for i := range loadClients {
		c := newClient(t, s, "127.0.0.1:0", server4)
		l.clients, l.relayed = append(l.clients, c), append(l.relayed, c.allocate())
		for j := range loadChannels {
			c.bind(loadChannel(j), l.peer(j))
		}
		c.onData(func(channel uint16, payload []byte) {
			l.arrived(&l.toClient, payload, i, int(channel)-int(loadChannel(0)))
		})
	}
	stop, running := make(chan struct{}), sync.WaitGroup{}
	for j, p := range l.peers {
		running.Go(func() { l.receive(p, j) })
	}
	running.Go(func() { l.send(stop) })
	t.Cleanup(func() {
		close(stop)
		for _, p := range l.peers {
			_ = p.Close()
		}
		running.Wait()
	})
	return l
}

func loadChannel(j int) uint16 { return uint16(0x4000 + j) }

func (l *load) peer(j int) netip.AddrPort { return l.peers[j].LocalAddr().(*net.UDPAddr).AddrPort() }

// send sends one datagram each way on every channel, tick by tick.
func (l *load) send(stop <-chan struct{}) {
	ticker := time.NewTicker(loadEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-stop:
			return
		}
		tick := l.tick.Add(1)
		for i, c := range l.clients {
			for j, p := range l.peers {
				payload := []byte{0, byte(i), 0, byte(j)}
				payload = binary.BigEndian.AppendUint64(payload, tick)
				c.sendChannel(loadChannel(j), payload)
				_, _ = p.WriteToUDPAddrPort(payload, l.relayed[i]) // a relay that is away loses it
			}
		}
	}
}

// receive is peer j.
func (l *load) receive(p *net.UDPConn, j int) {
	b := make([]byte, 2048)
	for {
		n, from, err := p.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		i := 0
		for i < len(l.relayed) && l.relayed[i] != from {
			i++
		}
		l.arrived(&l.toPeer, b[:n], i, j)
	}
}

// arrived notes what came for client i on channel j.
func (l *load) arrived(last *[loadClients][loadChannels]atomic.Uint64, payload []byte, i, j int) {
	if len(payload) != payloadSize || int(payload[1]) != i || int(payload[3]) != j {
		l.strays.Add(1)
		return
	}
	tick := binary.BigEndian.Uint64(payload[4:])
	for seen := &last[i][j]; ; {
		old := seen.Load()
		if old >= tick || seen.CompareAndSwap(old, tick) {
			return
		}
	}
}

// flows waits until every channel has carried something both ways that was sent after now.
func (l *load) flows() {
	l.t.Helper()
	now := l.tick.Load()
	eventually(l.t, "traffic flows on all channels both ways", func() error {
		for i := range loadClients {
			for j := range loadChannels {
				if l.toPeer[i][j].Load() <= now {
					return fmt.Errorf("client %d, channel %#x: nothing to the peer", i, loadChannel(j))
				}
				if l.toClient[i][j].Load() <= now {
					return fmt.Errorf("client %d, channel %#x: nothing to the client", i, loadChannel(j))
				}
			}
		}
		return nil
	})
	if n := l.strays.Load(); n > 0 {
		l.t.Errorf("%d datagrams went astray", n)
	}
}

// ledgers is what the server answered the clients of l.
func (l *load) ledgers() []*ledger {
	var all []*ledger
	for i, c := range l.clients {
		g := &ledger{client: c, answered: newGrants()}
		g.answered.relayed = l.relayed[i].String()
		for j := range l.peers {
			g.answered.bind(loadChannel(j), l.peer(j))
		}
		all = append(all, g)
	}
	return all
}
