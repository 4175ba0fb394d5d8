package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/logging"
	"github.com/pion/transport/v3/stdnet"
	"github.com/pion/turn/v4"
)

// perSecond is how many packets a call sends, and frame how long they are: two streams of voice.
const (
	perSecond = 100
	frame     = 160
)

// call is a client that talks to a peer through the relay, and hears what it said. The client is pion's.
type call struct {
	client, peer, relayed net.Addr
	turn                  *turn.Client
	conn                  net.PacketConn // the relayed address
	far                   *net.UDPConn
	sent, back            atomic.Uint64
	first                 atomic.Uint64 // what is before that number does not count: the channel was not bound yet
	stop                  chan struct{}
	ends                  sync.WaitGroup
}

// counts are of a call so far.
type counts struct{ sent, back uint64 }

// lost is what is missing of what had the time to come back.
func (c counts) lost() uint64 { return c.sent - min(c.back, c.sent) }

func newCall(s *stage) (_ *call, err error) {
	c := &call{stop: make(chan struct{})}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	if c.far, err = listen(s.peer, s.peerAt); err != nil {
		return nil, err
	}
	near, err := listen(s.client, s.clientAt)
	if err != nil {
		return nil, err
	}
	c.client, c.peer = near.LocalAddr(), c.far.LocalAddr()
	c.turn, err = turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: s.server.String(), Username: username, Password: password, Realm: realm, Conn: near, Net: new(stdnet.Net),
		LoggerFactory: &logging.DefaultLoggerFactory{DefaultLogLevel: logging.LogLevelDisabled},
	})
	if err != nil {
		return nil, errors.Join(err, near.Close())
	}
	if err = c.turn.Listen(); err != nil {
		return nil, err
	}
	if c.conn, err = c.turn.Allocate(); err != nil {
		return nil, fmt.Errorf("allocate: %w", err)
	}
	c.relayed = c.conn.LocalAddr()
	if err = c.turn.CreatePermission(c.peer); err != nil {
		return nil, fmt.Errorf("permit %v: %w", c.peer, err)
	}
	c.ends.Go(c.talk)
	c.ends.Go(c.listen)
	go c.echo()
	return c, nil
}

// talk sends until the call is over.
func (c *call) talk() {
	tick := time.NewTicker(time.Second / perSecond)
	defer tick.Stop()
	b := make([]byte, frame)
	for n := uint64(1); ; n++ {
		select {
		case <-tick.C:
		case <-c.stop:
			return
		}
		binary.BigEndian.PutUint64(b, n)
		if _, err := c.conn.WriteTo(b, c.peer); err != nil {
			return
		}
		c.sent.Store(n)
	}
}

// listen counts what comes back, once each.
func (c *call) listen() {
	b := make([]byte, frame)
	seen := map[uint64]bool{}
	for {
		n, _, err := c.conn.ReadFrom(b)
		if err != nil {
			return
		}
		if number := binary.BigEndian.Uint64(b); n == frame && !seen[number] && number >= c.first.Load() {
			seen[number] = true
			c.back.Add(1)
		}
	}
}

// echo is the peer.
func (c *call) echo() {
	b := make([]byte, frame)
	for {
		n, from, err := c.far.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, _ = c.far.WriteToUDPAddrPort(b[:n], from)
		}
	}
}

// settled has the count begin now.
func (c *call) settled() {
	c.first.Store(c.sent.Load() + 1)
	c.back.Store(0)
}

// counts are without the packet that is on its way.
func (c *call) counts() counts {
	back := c.back.Load()
	sent := c.sent.Load()
	if first := c.first.Load(); first > 0 {
		sent -= first - 1
	}
	if sent == back+1 {
		sent = back
	}
	return counts{sent, back}
}

// hangUp ends the talking, waits for what is on its way, and yields the total.
func (c *call) hangUp() counts {
	close(c.stop)
	for range 100 {
		if now := c.counts(); now.lost() == 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	return c.counts()
}

func (c *call) close() {
	select {
	case <-c.stop:
	default:
		close(c.stop)
	}
	if c.conn != nil {
		_ = c.conn.Close()
	}
	if c.turn != nil {
		c.turn.Close()
	}
	if c.far != nil {
		_ = c.far.Close()
	}
	c.ends.Wait()
}
