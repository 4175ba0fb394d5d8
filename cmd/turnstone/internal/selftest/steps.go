package selftest

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"

	"turnstone/turn"
)

// Rounds is how many payloads are sent to and fro.
const Rounds = 10

// Names of the steps of a trial.
const (
	stepReach    = "reach"
	stepAllocate = "allocate"
	stepPermit   = "permit"
	stepSend     = "send"
	stepBind     = "bind"
	stepEcho     = "echo"
	stepPeer     = "peer"
)

// steps are those of a trial. The first that fails ends it.
var steps = []struct {
	name string
	run  func(t *trial, ctx context.Context) error
}{
	{stepReach, (*trial).reach},
	{stepAllocate, (*trial).allocate},
	{stepPermit, (*trial).permit},
	{stepSend, (*trial).indicate},
	{stepBind, (*trial).bind},
	{stepEcho, (*trial).echo},
	{stepPeer, (*trial).hearPeer},
}

// Channels of the clients.
const (
	channelAB   turn.ChannelNumber = turn.ChannelFirst // of a, to b
	channelBA                      = channelAB + 1     // of b, to a
	channelPeer                    = channelAB + 2     // of a, to the socket that is a peer
)

// attempts is how often a datagram that got lost is sent.
const attempts = 4

const (
	voice      = 160  // bytes of a payload of speech
	webRTC     = 1200 // bytes of the largest payload that WebRTC sends
	ethernet   = 1500 // MTU that is counted on where another is not known, and the largest that is tried
	udpHeader  = 8
	dtlsRecord = 40 // what DTLS adds at most, with the cipher suites that clients have
)

// trial is a test that is under way.
type trial struct {
	target Target
	who    Credential
	path   Path
	roots  rootsOf

	a, b  *client
	mark  [8]byte // begins all payloads of this trial
	drawn uint32
	wait  time.Duration // for a datagram

	findings []finding
	out      Trial
}

func (t *trial) draw() { _, _ = rand.Read(t.mark[:]) } // it cannot fail

// payload is one of n bytes like no other.
func (t *trial) payload(n int) []byte {
	t.drawn++
	b := binary.BigEndian.AppendUint32(append(make([]byte, 0, n), t.mark[:]...), t.drawn)
	return b[:n]
}

// reach opens the links and learns how to authenticate.
func (t *trial) reach(ctx context.Context) error {
	for _, c := range []**client{&t.a, &t.b} {
		l, err := dial(ctx, t.target)
		if err != nil {
			return err
		}
		*c = &client{link: l, who: t.who}
		err = (*c).challenge(ctx)
		if errors.Is(err, errSilence) && l.stream {
			return errMute
		}
		if err != nil {
			return err
		}
	}
	t.out.LatencyMS, t.wait = milliseconds(t.a.latency), 200*time.Millisecond+4*max(t.a.latency, t.b.latency)
	t.judgeCertificate(time.Now())
	return nil
}

func (t *trial) allocate(ctx context.Context) error {
	for _, c := range []*client{t.a, t.b} {
		if err := c.allocate(ctx, t.target.Address.Addr().Is4()); err != nil {
			return err
		}
	}
	t.out.Mapped, t.out.Relayed = t.a.mapped.String(), t.a.relayed.String()
	t.judgeAddresses()
	return nil
}

func (t *trial) permit(ctx context.Context) error {
	return errors.Join(t.a.permit(ctx, t.b.relayed.Addr()), t.b.permit(ctx, t.a.relayed.Addr()))
}

// indicate sends by Send indications, in both directions.
func (t *trial) indicate(ctx context.Context) error {
	for _, way := range [][2]*client{{t.a, t.b}, {t.b, t.a}} {
		p := t.payload(voice)
		if err := t.pass(ctx, func() error { return way[0].sendTo(way[1].relayed, p) }, way[1], 0, p); err != nil {
			return err
		}
	}
	return nil
}

func (t *trial) bind(ctx context.Context) error {
	return errors.Join(t.a.bind(ctx, channelAB, t.b.relayed), t.b.bind(ctx, channelBA, t.a.relayed))
}

// echo sends by channels, to the other client and back, and then by size.
func (t *trial) echo(ctx context.Context) error {
	var took []time.Duration
	var last error
	for range Rounds {
		start := time.Now()
		if last = t.round(ctx, voice, 1); last == nil {
			took = append(took, time.Since(start))
		} else if !errors.Is(last, errSilence) {
			return last
		}
	}
	t.out.Returned = len(took)
	if len(took) == 0 {
		return last
	}
	slices.Sort(took)
	t.out.EchoMS = milliseconds(took[len(took)/2])
	if err := t.measure(ctx); err != nil {
		return err
	}
	if t.path != nil {
		t.out.Path = t.path(ctx, t.a.mapped)
	}
	t.judgeEcho()
	return nil
}

// round sends n bytes by the channel of a, and back by that of b.
func (t *trial) round(ctx context.Context, n, tries int) error {
	p := t.payload(n)
	err := t.passIn(ctx, tries, func() error { return t.a.sendBy(channelAB, p) }, t.b, channelBA, p)
	if err != nil {
		return err
	}
	return t.passIn(ctx, tries, func() error { return t.b.sendBy(channelBA, p) }, t.a, channelAB, p)
}

// measure finds the largest payload that goes both ways, of a few sizes.
func (t *trial) measure(ctx context.Context) error {
	for _, n := range t.sizes() {
		err := t.round(ctx, n, 2)
		if err == nil {
			t.out.Largest = n
			return nil
		}
		if !tooLarge(err) {
			return err
		}
	}
	return nil
}

// sizes are payloads to try, from the largest down: one that fills the packets of the way, and some that tunnels leave room for.
func (t *trial) sizes() (out []int) {
	ip := map[bool]int{true: 20, false: 40}
	most := ethernet - ip[t.a.relayed.Addr().Is4()] - udpHeader
	if t.a.link.mtu > 0 {
		most = min(most, min(t.a.link.mtu, ethernet)-ip[t.target.Address.Addr().Is4()]-udpHeader-turn.ChannelHeader)
	}
	if t.target.Protocol == turn.DTLS {
		most -= dtlsRecord
	}
	for _, n := range []int{most &^ 3, 1400, 1300, webRTC, 1000, 500} {
		if n <= most {
			out = append(out, n)
		}
	}
	return out
}

// pass is passIn with as many attempts as a network that works needs.
func (t *trial) pass(ctx context.Context, send func() error, to *client, n turn.ChannelNumber, p []byte) error {
	return t.passIn(ctx, attempts, send, to, n, p)
}

// passIn sends until p has come to a client by channel n, 0 for an indication.
func (t *trial) passIn(ctx context.Context, tries int, send func() error, to *client, n turn.ChannelNumber, p []byte) error {
	for range tries {
		if err := send(); err != nil {
			return err
		}
		_, err := t.await(ctx, to, n, p)
		if !errors.Is(err, errSilence) {
			return err
		}
	}
	return errSilence
}

// await waits for p to come to c by channel n, 0 for an indication, and yields the peer that an indication is of.
func (t *trial) await(ctx context.Context, c *client, n turn.ChannelNumber, p []byte) (netip.AddrPort, error) {
	for deadline := time.Now().Add(t.wait); ; {
		d, err := c.next(ctx, deadline)
		if err != nil {
			return netip.AddrPort{}, err
		}
		if d.channel == n && bytes.Equal(d.payload, p) {
			return d.peer, nil
		}
	}
}

// hearPeer sends to the relayed address from a socket of this host, as a peer elsewhere does, and has an answer relayed to
// it. It takes another host than the server's: of its own addresses a server relays to allocations alone.
func (t *trial) hearPeer(ctx context.Context) error {
	at := t.a.mapped.Addr()
	if t.target.Here || at.Is4() != t.a.relayed.Addr().Is4() || at == t.a.relayed.Addr() || at == t.target.Address.Addr() {
		return nil
	}
	err := t.a.permit(ctx, at)
	if refused(err, turn.CodeForbidden, noCode) {
		t.found(t.unheard(at))
		return nil
	}
	if err != nil {
		return err
	}
	peer, err := net.ListenUDP("udp", nil)
	if err != nil {
		return err
	}
	defer peer.Close()
	from, err := t.reachRelayed(ctx, peer)
	if err != nil {
		return err
	}
	if err := t.a.bind(ctx, channelPeer, from); err != nil {
		return err
	}
	return t.answerPeer(peer)
}

// reachRelayed sends from peer to the relayed address, and yields how the server sees it.
func (t *trial) reachRelayed(ctx context.Context, peer *net.UDPConn) (from netip.AddrPort, err error) {
	p := t.payload(voice)
	for range attempts {
		if _, err := peer.WriteToUDPAddrPort(p, t.a.relayed); err != nil {
			return from, err
		}
		from, err = t.await(ctx, t.a, 0, p)
		if !errors.Is(err, errSilence) {
			return from, err
		}
	}
	return from, errSilence
}

// answerPeer sends to peer by its channel.
func (t *trial) answerPeer(peer *net.UDPConn) error {
	p, buf := t.payload(voice), make([]byte, ethernet)
	for range attempts {
		if err := t.a.sendBy(channelPeer, p); err != nil {
			return err
		}
		if err := peer.SetReadDeadline(time.Now().Add(t.wait)); err != nil {
			return err
		}
		for {
			n, _, err := peer.ReadFromUDPAddrPort(buf)
			if err != nil {
				break
			}
			if bytes.Equal(buf[:n], p) {
				t.found(t.heard())
				return nil
			}
		}
	}
	t.found(t.unanswered())
	return nil
}

// release ends the allocations, also where ctx has ended.
func (t *trial) release(ctx context.Context) {
	ctx = context.WithoutCancel(ctx)
	for _, c := range []*client{t.a, t.b} {
		if c == nil {
			continue
		}
		if err := c.release(ctx); err != nil {
			t.found(t.unreleased(err))
		}
	}
}

func (t *trial) close() {
	for _, c := range []*client{t.a, t.b} {
		if c != nil {
			c.link.close()
		}
	}
}
