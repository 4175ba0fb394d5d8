package test

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/pion/stun/v3"
	"github.com/pion/turn/v4"
)

const (
	attrChannelNumber      stun.AttrType = 0x000C
	attrLifetime           stun.AttrType = 0x000D
	attrPeer               stun.AttrType = 0x0012
	attrRelayed            stun.AttrType = 0x0016
	attrRequestedFamily    stun.AttrType = 0x0017
	attrRequestedTransport stun.AttrType = 0x0019
)

// errSilence says that no answer came.
var errSilence = errors.New("no answer")

// client speaks STUN and TURN on one socket. It repeats nothing by itself, so that a test sees
// every retransmission.
type client struct {
	t      testing.TB
	conn   packets
	server netip.AddrPort
	nonce  stun.Nonce
	user   string
	key    stun.MessageIntegrity

	mu      sync.Mutex // guards the fields below
	waiting map[[stun.TransactionIDSize]byte]chan *stun.Message
	data    func(channel uint16, payload []byte)
	other   func(*stun.Message) // that no request waits for; nil for nobody
}

// packets is a socket that is sent on and received from, or a stream with its frames.
type packets interface {
	ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error)
	WriteToUDPAddrPort(b []byte, to netip.AddrPort) (int, error)
	LocalAddr() net.Addr
	Close() error
}

// frames are those of a stream.
type frames struct{ *turn.STUNConn }

func (f frames) ReadFromUDPAddrPort(b []byte) (int, netip.AddrPort, error) {
	n, _, err := f.ReadFrom(b)
	if err != nil {
		err = net.ErrClosed // there is no frame after it
	}
	return n, netip.AddrPort{}, err
}

func (f frames) WriteToUDPAddrPort(b []byte, _ netip.AddrPort) (int, error) { return f.WriteTo(b, nil) }

// newStreamClient is newClient on a connection.
func newStreamClient(t testing.TB, conn net.Conn, server string) *client {
	t.Helper()
	return clientThatReads(t, frames{turn.NewSTUNConn(conn)}, server)
}

// newClient opens a client at an address of lo and learns a nonce.
func newClient(t testing.TB, s *space, at, server string) *client {
	t.Helper()
	return clientThatReads(t, s.listen(addr(at)), server)
}

func clientThatReads(t testing.TB, conn packets, server string) *client {
	t.Helper()
	c := clientOn(t, conn, server)
	read := make(chan struct{})
	go func() { defer close(read); c.read() }()
	t.Cleanup(func() { _ = c.conn.Close(); <-read })
	c.challenge()
	return c
}

// clientOn makes a client on a socket that somebody reads, who hands it what comes from its server.
func clientOn(t testing.TB, conn packets, server string) *client {
	return &client{
		t: t, conn: conn, server: addr(server), waiting: map[[stun.TransactionIDSize]byte]chan *stun.Message{},
		user: username, key: stun.NewLongTermIntegrity(username, realm, password),
	}
}

// as makes c a client of another user.
func (c *client) as(user, password string) *client {
	c.user, c.key = user, stun.NewLongTermIntegrity(user, realm, password)
	return c
}

// challenge learns a nonce.
func (c *client) challenge() {
	c.t.Helper()
	eventually(c.t, "the server challenges", func() error {
		answer, err := c.exchange(build(stun.MethodAllocate, transport()), time.Second)
		if err != nil {
			return err
		}
		return c.nonce.GetFrom(answer)
	})
}

// addr is the client's own address.
func (c *client) addr() string { return c.conn.LocalAddr().String() }

// read hands on what comes until the socket is closed.
func (c *client) read() {
	b := make([]byte, 1<<16)
	for {
		n, _, err := c.conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error while the server is away
		}
		c.take(b[:n])
	}
}

// take hands on a datagram.
func (c *client) take(b []byte) {
	if len(b) >= 4 && b[0]>>6 == 1 {
		c.mu.Lock()
		data := c.data
		c.mu.Unlock()
		if length := int(binary.BigEndian.Uint16(b[2:])); data != nil && length <= len(b)-4 {
			data(binary.BigEndian.Uint16(b), b[4:4+length])
		}
		return
	}
	m := &stun.Message{Raw: append([]byte(nil), b...)}
	if m.Decode() != nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if w, ok := c.waiting[m.TransactionID]; ok {
		select {
		case w <- m:
		default:
		}
	} else if c.other != nil && m.Type.Class == stun.ClassIndication {
		c.other(m)
	}
}

// onData has f called with what comes in ChannelData. f must not keep the payload.
func (c *client) onData(f func(channel uint16, payload []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.data = f
}

// onIndication has f called with each indication that comes. f must not wait.
func (c *client) onIndication(f func(*stun.Message)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.other = f
}

// exchange sends m once and waits for its answer, errSilence where none comes.
func (c *client) exchange(m *stun.Message, wait time.Duration) (*stun.Message, error) {
	w := make(chan *stun.Message, 1)
	c.mu.Lock()
	c.waiting[m.TransactionID] = w
	c.mu.Unlock()
	defer func() {
		c.mu.Lock()
		delete(c.waiting, m.TransactionID)
		c.mu.Unlock()
	}()
	c.send(m.Raw)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case answer := <-w:
		return answer, nil
	case <-timer.C:
		return nil, errSilence
	}
}

// send sends one datagram. What the network makes of it is no matter.
func (c *client) send(b []byte) { _, _ = c.conn.WriteToUDPAddrPort(b, c.server) }

// sendChannel sends one ChannelData message.
func (c *client) sendChannel(channel uint16, payload []byte) {
	b := binary.BigEndian.AppendUint16(nil, channel)
	b = binary.BigEndian.AppendUint16(b, uint16(len(payload)))
	c.send(append(b, payload...))
}

// request makes an authenticated request.
func (c *client) request(method stun.Method, setters ...stun.Setter) *stun.Message {
	all := append(setters, stun.NewUsername(c.user), stun.NewRealm(realm), c.nonce, c.key)
	return build(method, all...)
}

// call is exchange with retransmissions, for tests that are about something else.
func (c *client) call(m *stun.Message) (*stun.Message, error) {
	for range 20 {
		answer, err := c.exchange(m, 500*time.Millisecond)
		if err == nil {
			return answer, refusalOf(answer)
		}
	}
	return nil, errSilence
}

// must is call for a request that has to succeed.
func (c *client) must(m *stun.Message) *stun.Message {
	c.t.Helper()
	answer, err := c.call(m)
	if err != nil {
		c.t.Fatalf("%v: %v", m.Type, err)
	}
	return answer
}

// allocate makes an allocation and yields its relayed transport address.
func (c *client) allocate() netip.AddrPort {
	c.t.Helper()
	return relayedIn(c.must(c.request(stun.MethodAllocate, transport())))
}

// bind binds a channel to a peer.
func (c *client) bind(channel uint16, peer netip.AddrPort) {
	c.t.Helper()
	c.must(c.request(stun.MethodChannelBind, number(channel), xor(peer)))
}

// refusal is an error response.
type refusal int

func (r refusal) Error() string { return fmt.Sprintf("refused with %d", int(r)) }

// refusalOf is the refusal in an answer, nil for a success.
func refusalOf(m *stun.Message) error {
	if m.Type.Class == stun.ClassSuccessResponse {
		return nil
	}
	var code stun.ErrorCodeAttribute
	if err := code.GetFrom(m); err != nil {
		return err
	}
	return refusal(code.Code)
}

// relayedIn is the relayed transport address in an answer.
func relayedIn(m *stun.Message) netip.AddrPort {
	var x stun.XORMappedAddress
	if err := x.GetFromAs(m, attrRelayed); err != nil {
		return netip.AddrPort{}
	}
	ip, _ := netip.AddrFromSlice(x.IP)
	return netip.AddrPortFrom(ip.Unmap(), uint16(x.Port))
}

// transactionMark begins the ids of all our transactions, so that they are found in pages of the log.
const transactionMark = "\x00tst"

// build makes a request with a fresh transaction id.
func build(method stun.Method, setters ...stun.Setter) *stun.Message {
	m := stun.New()
	copy(m.TransactionID[copy(m.TransactionID[:], transactionMark):], rand.Text())
	m.SetType(stun.NewType(method, stun.ClassRequest))
	m.WriteHeader()
	for _, s := range setters {
		if err := s.AddTo(m); err != nil {
			panic(err)
		}
	}
	return m
}

func transport() stun.Setter {
	return stun.RawAttribute{Type: attrRequestedTransport, Value: []byte{17, 0, 0, 0}}
}

func lifetime(seconds uint32) stun.Setter {
	return stun.RawAttribute{Type: attrLifetime, Value: binary.BigEndian.AppendUint32(nil, seconds)}
}

func number(channel uint16) stun.Setter {
	return stun.RawAttribute{Type: attrChannelNumber, Value: []byte{byte(channel >> 8), byte(channel), 0, 0}}
}

// xor is the XOR-PEER-ADDRESS of a peer.
type xor netip.AddrPort

func (x xor) AddTo(m *stun.Message) error {
	a := netip.AddrPort(x)
	return stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}.AddToAs(m, attrPeer)
}
