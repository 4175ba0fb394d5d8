package main

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
)

// transport has the datagrams of all addresses of a host: a socket, or a connection of each of them. See socket
// for what the methods do.
type transport interface {
	next() []byte
	queue(from netip.Addr, to netip.AddrPort, n int) error
	join(n int) error
	flush() error
	receive(wait time.Duration) (int, error)
	datagram(i int) datagram
	close()
}

// clients are the clients of the client host: one for each address in the /16, all
// behind one transport. A client is named by its number.
type clients struct {
	transport transport
	key       stun.MessageIntegrity
	nonces    map[int]stun.Nonce
	realm     stun.Realm
	drawn     uint64 // transaction ids
}

func newClients(n *network) (*clients, error) {
	s, err := newSocket(n.client, clientPort)
	if err != nil {
		return nil, err
	}
	return newClientsOn(s), nil
}

// newClientsOn yields clients that own t.
func newClientsOn(t transport) *clients {
	return &clients{
		transport: t, key: stun.NewLongTermIntegrity(username, realm, password), nonces: map[int]stun.Nonce{}, realm: stun.Realm(realm),
		drawn: uint64(time.Now().UnixNano()), // other than those of the clients before: their answers are remembered
	}
}

func (c *clients) close() { c.transport.close() }

// call is a request of a client, and what came of it.
type call struct {
	client int
	frame  []byte
	sent   time.Time // first
	last   time.Time // sent last
	took   time.Duration
	answer []byte
}

func attribute(t stun.AttrType, value ...byte) stun.Setter {
	return stun.RawAttribute{Type: t, Value: value}
}

// xorPeer is XOR-PEER-ADDRESS.
type xorPeer netip.AddrPort

func (x xorPeer) AddTo(m *stun.Message) error {
	a := netip.AddrPort(x)
	return stun.XORMappedAddress{IP: net.IP(a.Addr().AsSlice()), Port: int(a.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
}

// request makes a request that is authenticated once the client has a nonce.
func (c *clients) request(client int, method stun.Method, attributes ...stun.Setter) (call, error) {
	c.drawn++
	var id [stun.TransactionIDSize]byte
	binary.BigEndian.PutUint64(id[4:], c.drawn)
	setters := append([]stun.Setter{stun.NewTransactionIDSetter(id), stun.NewType(method, stun.ClassRequest)}, attributes...)
	if nonce, ok := c.nonces[client]; ok {
		setters = append(setters, stun.NewUsername(username), c.realm, nonce, c.key)
	}
	m, err := stun.Build(setters...)
	if err != nil {
		return call{}, fmt.Errorf("make a %v request: %w", method, err)
	}
	return call{client: client, frame: m.Raw}, nil
}

func (c *clients) allocate(client int) (call, error) {
	return c.request(client, stun.MethodAllocate, attribute(stun.AttrRequestedTransport, 17, 0, 0, 0))
}

func (c *clients) bind(client, channel int, peer netip.AddrPort) (call, error) {
	return c.request(client, stun.MethodChannelBind, attribute(stun.AttrChannelNumber, byte(channel>>8), byte(channel), 0, 0), xorPeer(peer))
}

func (c *clients) refresh(client int) (call, error) {
	return c.request(client, stun.MethodRefresh, attribute(stun.AttrLifetime, 0, 0, 2, 88)) // 600 s
}

// each makes a call for each of n clients from first on. Likewise below.
func (c *clients) each(first, n int, f func(client int) (call, error)) ([]call, error) {
	list := make([]call, 0, n)
	for i := range n {
		one, err := f(first + i)
		if err != nil {
			return nil, err
		}
		list = append(list, one)
	}
	return list, nil
}

// authenticate gets a nonce for each of n clients.
func (c *clients) authenticate(first, n int) error {
	list, err := c.each(first, n, c.allocate)
	if err != nil {
		return err
	}
	if _, err := c.exchange(list, 64); err != nil {
		return fmt.Errorf("get nonces: %w", err)
	}
	for _, one := range list {
		m := &stun.Message{Raw: one.answer}
		var nonce stun.Nonce
		if err := errors.Join(m.Decode(), nonce.GetFrom(m), c.realm.GetFrom(m)); err != nil {
			return fmt.Errorf("get a nonce: %w", err)
		}
		c.nonces[one.client] = nonce
	}
	return nil
}

// allocateAll has n clients allocate, and yields the relayed transport addresses.
func (c *clients) allocateAll(first, n int) ([]netip.AddrPort, error) {
	if err := c.authenticate(first, n); err != nil {
		return nil, err
	}
	list, err := c.each(first, n, c.allocate)
	if err != nil {
		return nil, err
	}
	if _, err := c.succeed(list, 64); err != nil {
		return nil, fmt.Errorf("allocate: %w", err)
	}
	relayed := make([]netip.AddrPort, 0, n)
	for _, one := range list {
		m := &stun.Message{Raw: one.answer}
		var x stun.XORMappedAddress
		if err := errors.Join(m.Decode(), x.GetFromAs(m, stun.AttrXORRelayedAddress)); err != nil {
			return nil, fmt.Errorf("allocate: %w", err)
		}
		a, _ := netip.AddrFromSlice(x.IP)
		relayed = append(relayed, netip.AddrPortFrom(a.Unmap(), uint16(x.Port)))
	}
	return relayed, nil
}

// bindAll binds the first channel of n clients to the peer with their number.
func (c *clients) bindAll(first, n int) error {
	list, err := c.each(first, n, func(i int) (call, error) { return c.bind(i, firstChannel, peerOf(i)) })
	if err != nil {
		return err
	}
	if _, err := c.succeed(list, 64); err != nil {
		return fmt.Errorf("bind channels: %w", err)
	}
	return nil
}

const firstChannel = 0x4000

func peerOf(i int) netip.AddrPort { return netip.AddrPortFrom(nth(peerAddresses, i), peerPort) }

// outcome is what a list of calls came to.
type outcome struct {
	took        time.Duration // first request to last answer
	repetitions int
	latencies   []float64 // milliseconds
}

// succeed is exchange, and an error where an answer is one.
func (c *clients) succeed(list []call, width int) (outcome, error) {
	o, err := c.exchange(list, width)
	if err != nil {
		return o, err
	}
	for _, one := range list {
		if !success(one.answer) {
			return o, refusal(one.answer)
		}
	}
	return o, nil
}

func success(answer []byte) bool { return len(answer) >= 20 && answer[0]&1 == 1 && answer[1]&0x10 == 0 }

// refusal is the error that answer carries.
func refusal(answer []byte) error {
	m := &stun.Message{Raw: answer}
	var code stun.ErrorCodeAttribute
	if err := errors.Join(m.Decode(), code.GetFrom(m)); err != nil {
		return err
	}
	return fmt.Errorf("refused: %v", code)
}

const (
	repeatAfter = 500 * time.Millisecond
	giveUpAfter = 10 * time.Second
)

// exchange has list answered, with width requests on their way at any time; a client
// has only one of them. Unanswered ones are repeated.
func (c *clients) exchange(list []call, width int) (outcome, error) {
	x := &exchange{clients: c, list: list, queues: make([][]int, width), current: make([]int, width)}
	for i := range list {
		slot := list[i].client % width
		x.queues[slot] = append(x.queues[slot], i)
	}
	began := time.Now()
	for slot := range x.queues {
		if err := x.proceed(slot, began); err != nil {
			return outcome{}, err
		}
	}
	if err := x.run(); err != nil {
		return outcome{}, err
	}
	o := outcome{took: time.Since(began), repetitions: x.repetitions}
	for i := range list {
		o.latencies = append(o.latencies, list[i].took.Seconds()*1000)
	}
	return o, nil
}

// exchange is one that is going on.
type exchange struct {
	clients     *clients
	list        []call
	queues      [][]int // of each slot, what is still to be sent
	current     []int   // of each slot, what is on its way; -1 for nothing
	answered    int
	repetitions int
}

// proceed sends the next call of a slot.
func (x *exchange) proceed(slot int, now time.Time) error {
	x.current[slot] = -1
	if len(x.queues[slot]) == 0 {
		return nil
	}
	x.current[slot], x.queues[slot] = x.queues[slot][0], x.queues[slot][1:]
	one := &x.list[x.current[slot]]
	one.sent = now
	return x.send(one, now)
}

func (x *exchange) send(one *call, now time.Time) error {
	one.last = now
	k := x.clients.transport
	return k.queue(nth(clientAddresses, one.client), listenAddress, copy(k.next(), one.frame))
}

func (x *exchange) run() error {
	looked, heard := time.Now(), time.Now()
	for x.answered < len(x.list) {
		if err := x.clients.transport.flush(); err != nil {
			return err
		}
		n, err := x.clients.transport.receive(50 * time.Millisecond)
		if err != nil {
			return err
		}
		now := time.Now()
		for i := range n {
			if err := x.take(x.clients.transport.datagram(i), now); err != nil {
				return err
			}
		}
		if n > 0 {
			heard = now
		}
		if now.Sub(heard) > giveUpAfter {
			return fmt.Errorf("%d of %d requests are not answered", len(x.list)-x.answered, len(x.list))
		}
		if now.Sub(looked) > repeatAfter/4 {
			looked = now
			if err := x.repeat(now); err != nil {
				return err
			}
		}
	}
	return nil
}

// take takes an answer.
func (x *exchange) take(d datagram, now time.Time) error {
	a := d.at.As4()
	slot := (int(a[2])<<8 | int(a[3])) % len(x.current)
	i := x.current[slot]
	if i < 0 || len(d.data) < 20 {
		return nil
	}
	one := &x.list[i]
	if d.at != nth(clientAddresses, one.client) || [12]byte(d.data[8:20]) != [12]byte(one.frame[8:20]) {
		return nil
	}
	one.took = now.Sub(one.sent)
	one.answer = append([]byte(nil), d.data...)
	x.answered++
	return x.proceed(slot, now)
}

// repeat sends again what has waited long.
func (x *exchange) repeat(now time.Time) error {
	for _, i := range x.current {
		if i >= 0 && now.Sub(x.list[i].last) > repeatAfter {
			x.repetitions++
			if err := x.send(&x.list[i], now); err != nil {
				return err
			}
		}
	}
	return nil
}

// binding asks the server for a Binding and says whether it answered in time.
func (c *clients) binding(wait time.Duration) (bool, error) {
	const client = 0xfffe
	one, err := c.request(client, stun.MethodBinding)
	if err != nil {
		return false, err
	}
	if err := c.transport.queue(nth(clientAddresses, client), listenAddress, copy(c.transport.next(), one.frame)); err != nil {
		return false, err
	}
	if err := c.transport.flush(); err != nil {
		return false, err
	}
	n, err := c.transport.receive(wait)
	for i := range n {
		if success(c.transport.datagram(i).data) {
			return true, nil
		}
	}
	return false, err
}
