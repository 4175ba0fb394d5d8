package test

import (
	"encoding/hex"
	"fmt"
	"net"
	"testing"

	"github.com/pion/stun/v3"
)

const attrICMP stun.AttrType = 0x8004

// TestICMPErrors has a client told of a closed peer port.
func TestICMPErrors(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	startDaemon(t, s, append(onLoopback, "--icmp-errors", "all")...)
	c := newClient(t, s, "127.0.0.1:20000", server4)
	told := make(chan *stun.Message, 16)
	c.onIndication(func(m *stun.Message) { told <- m })
	c.allocate()
	closed := addr("127.0.0.5:4000")
	c.must(c.request(stun.MethodCreatePermission, xor(closed)))
	c.indicate(closed, []byte("x"))
	var m *stun.Message
	eventually(t, "the client is told", func() error {
		select {
		case m = <-told:
			return nil
		default:
			return fmt.Errorf("nothing yet")
		}
	})
	v, err := m.Get(attrICMP)
	if got, want := hex.EncodeToString(v), "0000060300000000"; err != nil || got != want { // type 3 in 7 bits, code 3 in 9
		t.Errorf("got ICMP %s, %v, want %s", got, err, want)
	}
	if m.Contains(attrData) {
		t.Error("the indication has DATA")
	}
}

// TestPionClientOutlivesICMPErrors has one that takes an indication without DATA for the end of its connection.
func TestPionClientOutlivesICMPErrors(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	startDaemon(t, s, onLoopback...)
	peer := s.listen(addr("127.0.0.1:0"))
	c, relayed := pionAllocate(t, s, "127.0.0.1:0", server4)
	closed := net.UDPAddrFromAddrPort(addr("127.0.0.5:4000"))
	if err := c.CreatePermission(peer.LocalAddr(), closed); err != nil {
		t.Fatal(err)
	}
	for i := range 20 {
		if _, err := relayed.WriteTo([]byte("x"), closed); err != nil {
			t.Fatal(err)
		}
		echo(t, relayed, peer, fmt.Appendf(nil, "datagram %d", i))
	}
}
