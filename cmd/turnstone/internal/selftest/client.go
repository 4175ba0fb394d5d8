package selftest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// Credential is what the test authenticates by.
type Credential struct {
	Username string
	Password string // not looked at where there is a key
	Key      []byte // MD5(username:realm:password)
}

// refusal is an error response.
type refusal struct {
	code      int
	reason    string
	alternate netip.AddrPort // of a 300
}

// noCode stands for that of an error response without one, as pion's servers send to CreatePermission.
const noCode = 0

func (r *refusal) Error() string {
	text := fmt.Sprintf("refused with %d %s", r.code, r.reason)
	if r.alternate.IsValid() {
		text += fmt.Sprintf(": use %v", r.alternate)
	}
	return text
}

// refused says whether err is a refusal with one of codes.
func refused(err error, codes ...int) bool {
	var r *refusal
	return errors.As(err, &r) && slices.Contains(codes, r.code)
}

// client is a TURN client, for one goroutine. What comes while it waits for something else is thrown away.
type client struct {
	link *link
	who  Credential

	realm stun.Realm
	nonce stun.Nonce // empty: none is known
	key   stun.MessageIntegrity

	latency time.Duration  // of the answer to the first request
	mapped  netip.AddrPort // where the server sees the client
	relayed netip.AddrPort // invalid: there is no allocation
}

// attribute is a Setter of any attribute.
func attribute(kind stun.AttrType, value ...byte) stun.Setter {
	return stun.RawAttribute{Type: kind, Value: value}
}

// peerAddress is XOR-PEER-ADDRESS.
type peerAddress netip.AddrPort

// AddTo adds it to m.
func (x peerAddress) AddTo(m *stun.Message) error {
	a := netip.AddrPort(x)
	return stun.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}.AddToAs(m, stun.AttrXORPeerAddress)
}

// addressIn is an address in m, invalid where there is none.
func addressIn(m *stun.Message, kind stun.AttrType) netip.AddrPort {
	var x stun.XORMappedAddress
	if x.GetFromAs(m, kind) != nil {
		return netip.AddrPort{}
	}
	ip, _ := netip.AddrFromSlice(x.IP)
	return netip.AddrPortFrom(ip.Unmap(), uint16(x.Port))
}

// challenge makes a request without a credential, which a server answers with what one takes.
func (c *client) challenge(ctx context.Context) error {
	m, err := c.build(stun.MethodAllocate, transport)
	if err != nil {
		return err
	}
	answer, err := c.exchange(ctx, m)
	if err != nil {
		return err
	}
	if r := refusalIn(answer); r == nil || r.code != turn.CodeUnauthenticated {
		if r == nil {
			return errors.New("it gives an allocation to a client without a credential")
		}
		return r
	}
	return c.take(answer)
}

// take keeps what a 401 or 438 says of how to authenticate.
func (c *client) take(answer *stun.Message) error {
	if err := errors.Join(c.realm.GetFrom(answer), c.nonce.GetFrom(answer)); err != nil {
		return fmt.Errorf("a challenge without realm or nonce: %w", err)
	}
	c.key = stun.NewLongTermIntegrity(c.who.Username, c.realm.String(), c.who.Password)
	if c.who.Key != nil {
		c.key = c.who.Key
	}
	return nil
}

// transport is REQUESTED-TRANSPORT: UDP.
var transport = attribute(stun.AttrRequestedTransport, 17, 0, 0, 0)

// call makes an authenticated request, and yields its success response. A refusal is a [refusal].
func (c *client) call(ctx context.Context, method stun.Method, setters ...stun.Setter) (*stun.Message, error) {
	for again := true; ; again = false {
		m, err := c.build(method, append(setters[:len(setters):len(setters)], stun.NewUsername(c.who.Username), c.realm, c.nonce, c.key)...)
		if err != nil {
			return nil, err
		}
		answer, err := c.exchange(ctx, m)
		if err != nil {
			return nil, err
		}
		r := refusalIn(answer)
		switch {
		case r == nil && c.key.Check(answer) != nil:
			return nil, errors.New("the answer is not of a server that knows the password")
		case r == nil:
			return answer, nil
		case r.code == turn.CodeStaleNonce && again:
			if err := c.take(answer); err != nil {
				return nil, err
			}
		default:
			return nil, r
		}
	}
}

func (c *client) build(method stun.Method, setters ...stun.Setter) (*stun.Message, error) {
	m, err := stun.Build(append([]stun.Setter{stun.TransactionID, stun.NewType(method, stun.ClassRequest)}, setters...)...)
	if err != nil {
		return nil, fmt.Errorf("make a %v request: %w", method, err)
	}
	return m, nil
}

// exchange sends m, over UDP again and again, and yields the answer.
func (c *client) exchange(ctx context.Context, m *stun.Message) (*stun.Message, error) {
	waits := []time.Duration{patience}
	if !c.link.stream {
		waits = []time.Duration{patience / 7, 2 * patience / 7, 4 * patience / 7} // RFC 8489 section 6.2.1
	}
	for _, wait := range waits {
		sent := time.Now()
		if err := c.link.send(m.Raw); err != nil {
			return nil, err
		}
		answer, err := c.answer(ctx, m.TransactionID, sent.Add(wait))
		if errors.Is(err, errSilence) {
			continue
		}
		if c.latency == 0 {
			c.latency = time.Since(sent)
		}
		return answer, err
	}
	return nil, errSilence
}

// answer waits for the answer to a request.
func (c *client) answer(ctx context.Context, id [stun.TransactionIDSize]byte, deadline time.Time) (*stun.Message, error) {
	for {
		frame, err := c.receive(ctx, deadline)
		if err != nil {
			return nil, err
		}
		m := &stun.Message{Raw: bytes.Clone(frame)}
		if turn.Classify(frame) != turn.FrameSTUN || m.Decode() != nil || m.TransactionID != id {
			continue
		}
		if class := m.Type.Class; class == stun.ClassSuccessResponse || class == stun.ClassErrorResponse {
			return m, nil
		}
	}
}

func (c *client) receive(ctx context.Context, deadline time.Time) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return c.link.receive(deadline)
}

// datum is what a peer sent, by a channel, or in an indication.
type datum struct {
	channel turn.ChannelNumber // 0: in an indication
	peer    netip.AddrPort     // of an indication
	payload []byte             // good until the next call
}

// next is the next datum that comes.
func (c *client) next(ctx context.Context, deadline time.Time) (d datum, err error) {
	for {
		frame, err := c.receive(ctx, deadline)
		if err != nil {
			return d, err
		}
		switch turn.Classify(frame) {
		case turn.FrameChannelData:
			if d.channel, d.payload, err = turn.ParseChannelData(frame); err == nil {
				return d, nil
			}
		case turn.FrameSTUN:
			m := &stun.Message{Raw: frame}
			if m.Decode() == nil && m.Type == stun.NewType(stun.MethodData, stun.ClassIndication) && m.Contains(stun.AttrData) {
				d.payload, err = m.Get(stun.AttrData)
				d.peer = addressIn(m, stun.AttrXORPeerAddress)
				return d, err
			}
		}
	}
}

// allocate makes an allocation of the family of v4, or of the other one where the server has none of that.
func (c *client) allocate(ctx context.Context, v4 bool) error {
	ask := func(v4 bool) (*stun.Message, error) {
		if v4 { // which servers that know no other family take for granted
			return c.call(ctx, stun.MethodAllocate, transport)
		}
		return c.call(ctx, stun.MethodAllocate, transport, attribute(stun.AttrRequestedAddressFamily, 2, 0, 0, 0))
	}
	answer, err := ask(v4)
	if refused(err, turn.CodeFamilyNotSupported) {
		answer, err = ask(!v4)
	}
	if err != nil {
		return err
	}
	c.mapped, c.relayed = addressIn(answer, stun.AttrXORMappedAddress), addressIn(answer, stun.AttrXORRelayedAddress)
	if !c.mapped.IsValid() || !c.relayed.IsValid() {
		return errors.New("the answer lacks the mapped or the relayed address")
	}
	return nil
}

func (c *client) permit(ctx context.Context, peer netip.Addr) error {
	_, err := c.call(ctx, stun.MethodCreatePermission, peerAddress(netip.AddrPortFrom(peer, 9)))
	return err
}

func (c *client) bind(ctx context.Context, n turn.ChannelNumber, peer netip.AddrPort) error {
	_, err := c.call(ctx, stun.MethodChannelBind, attribute(stun.AttrChannelNumber, byte(n>>8), byte(n), 0, 0), peerAddress(peer))
	return err
}

// release ends the allocation, if there is one.
func (c *client) release(ctx context.Context) error {
	if !c.relayed.IsValid() {
		return nil
	}
	c.relayed = netip.AddrPort{}
	_, err := c.call(ctx, stun.MethodRefresh, attribute(stun.AttrLifetime, 0, 0, 0, 0))
	return err
}

// sendTo sends data in a Send indication.
func (c *client) sendTo(peer netip.AddrPort, data []byte) error {
	m, err := stun.Build(stun.TransactionID, stun.NewType(stun.MethodSend, stun.ClassIndication), peerAddress(peer), attribute(stun.AttrData, data...))
	if err != nil {
		return fmt.Errorf("make a Send indication: %w", err)
	}
	return c.link.send(m.Raw)
}

// sendBy sends data by a channel.
func (c *client) sendBy(n turn.ChannelNumber, data []byte) error {
	return c.link.send(turn.AppendChannelData(nil, n, data))
}

// refusalIn is the refusal that m is, nil for a success.
func refusalIn(m *stun.Message) *refusal {
	if m.Type.Class == stun.ClassSuccessResponse {
		return nil
	}
	var code stun.ErrorCodeAttribute
	if err := code.GetFrom(m); err != nil {
		return &refusal{code: noCode, reason: "and no reason"}
	}
	r := &refusal{code: int(code.Code), reason: printable(string(code.Reason))}
	var a stun.MappedAddress
	if r.code == turn.CodeTryAlternate && a.GetFromAs(m, stun.AttrAlternateServer) == nil {
		ip, _ := netip.AddrFromSlice(a.IP)
		r.alternate = netip.AddrPortFrom(ip.Unmap(), uint16(a.Port))
	}
	return r
}

// mostText is how long a text of the server may be, in bytes.
const mostText = 160

// printable is a text of the server for a terminal.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return -1
	}, s)
	return strings.ToValidUTF8(s[:min(len(s), mostText)], "")
}
