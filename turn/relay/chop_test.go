package relay

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"turnstone/turn"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

// choppedConn is a stream that comes in pieces.
type choppedConn struct {
	net.Conn
	pieces [][]byte
}

func (c *choppedConn) Read(b []byte) (int, error) {
	if len(c.pieces) == 0 {
		return 0, io.EOF
	}
	n := copy(b, c.pieces[0])
	if c.pieces[0] = c.pieces[0][n:]; len(c.pieces[0]) == 0 {
		c.pieces = c.pieces[1:]
	}
	return n, nil
}

func (c *choppedConn) SetReadDeadline(time.Time) error { return nil }

// heard is what a stream made of what came: what was answered and dropped, and why it ended.
type heard struct {
	Answers []int // the first two bytes and the length of each
	Drops   map[string]uint64
	Why     string
}

// hear has a server read pieces as the stream of a client without an allocation.
func (g *rig) hear(pieces ...[]byte) heard {
	before := g.Counters().Drops
	l := g.listeners()[1]
	c := newStream(g.Server, l, &choppedConn{pieces: pieces}, netip.MustParseAddrPort("127.0.0.1:9"))
	early, err := c.readAll(nil)
	for errors.Is(err, errBinds) { // nothing is bound
		early, err = c.readAll(early)
	}
	h := heard{Drops: map[string]uint64{}, Why: err.Error()}
	for out := c.out; len(out) > 0; {
		n, err := turn.StreamFrame(out)
		if err != nil || n == 0 || n > len(out) {
			h.Why += ", and what it wrote are no frames"
			break
		}
		h.Answers = append(h.Answers, int(out[0])<<8|int(out[1]), n)
		out = out[n:]
	}
	for why, n := range g.Counters().Drops {
		if n > before[why] {
			h.Drops[why] = n - before[why]
		}
	}
	return h
}

// FuzzStreamInPieces holds that it makes no difference how what a client sends is cut on its way.
func FuzzStreamInPieces(f *testing.F) {
	g := newRig(f, withStreams(f))
	binding := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodBinding, stun.ClassRequest)).Raw
	allocate := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodAllocate, stun.ClassRequest), udpTransport, stun.Fingerprint).Raw
	connect := stun.MustBuild(stun.TransactionID, stun.NewType(stun.MethodConnectionBind, stun.ClassRequest)).Raw
	data := turn.AppendChannelData(nil, 0x4000, []byte("data"))
	var all []byte
	for _, frame := range [][]byte{binding, data, allocate, data, connect, data, binding, turn.AppendChannelData(nil, 0x4001, make([]byte, 3000)), allocate} {
		all = append(all, frame...)
	}
	f.Add(all, []byte{1, 2, 3, 5, 7})
	f.Add(append(all, 0xff), []byte{1})
	f.Add(append(all, allocate[:10]...), []byte{30, 0, 0, 200})
	f.Add(turn.AppendChannelData(all, 0x4000, make([]byte, 10000)), []byte{255, 1})
	f.Fuzz(func(t *testing.T, stream, cuts []byte) {
		if len(stream) > 1<<14 || len(cuts) == 0 {
			return
		}
		var pieces [][]byte
		for i, rest := 0, stream; len(rest) > 0; i++ {
			n := min(1+int(cuts[i%len(cuts)]), len(rest))
			pieces = append(pieces, rest[:n])
			rest = rest[n:]
		}
		want, got := g.hear(stream), g.hear(pieces...)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%d bytes in %d pieces (-at once +in pieces):\n%s", len(stream), len(pieces), diff)
		}
	})
}
