package audit

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"turnstone/turn"
)

// Rows are stored without gaps: numbers as varints, strings and addresses behind their length. Sequences and times are
// relative to the beginning of the row.

// errRow says that a row does not decode: index.db is damaged, or of another version.
var errRow = errors.New("a row does not decode")

type writer struct {
	b    []byte
	base Mark
}

func (w *writer) uint(n uint64)  { w.b = binary.AppendUvarint(w.b, n) }
func (w *writer) int(n int64)    { w.b = binary.AppendVarint(w.b, n) }
func (w *writer) text(s string)  { w.uint(uint64(len(s))); w.b = append(w.b, s...) }
func (w *writer) wall(n int64)   { w.int(n - w.base.Wall) }
func (w *writer) count(n int)    { w.uint(uint64(n)) }
func (w *writer) flag(set bool)  { w.b = append(w.b, map[bool]byte{true: 1}[set]) }
func (w *writer) bytes(b []byte) { w.count(len(b)); w.b = append(w.b, b...) }

func (w *writer) addr(a netip.Addr) { w.bytes(a.AsSlice()) }

func (w *writer) addrPort(a netip.AddrPort) {
	w.addr(a.Addr())
	w.uint(uint64(a.Port()))
}

func (w *writer) mark(m Mark) {
	if m.Seq == 0 {
		w.uint(0)
	} else {
		d := int64(m.Seq - w.base.Seq)
		w.uint(uint64(d<<1^d>>63) + 1)
	}
	w.wall(m.Wall)
}

func (w *writer) span(s *Span) {
	w.mark(s.From)
	w.uint(uint64(s.Why))
	switch {
	case s.Why != WhyOpen:
		w.mark(s.To)
	case s.until == (turn.Deadline{}):
		w.flag(false)
	default:
		w.flag(true)
		w.int(int64(s.until.Uptime))
		w.wall(s.until.Wall)
	}
}

// encodeRow is the stored form of r.
func encodeRow(r *Row) []byte {
	w := writer{b: append(make([]byte, 0, 384), byte(r.Kind)), base: r.From}
	w.uint(uint64(w.base.Seq))
	w.int(w.base.Wall)
	w.uint(uint64(r.Allocation))
	w.uint(r.Epoch)
	w.span(&r.Span)
	w.text(r.Username)
	w.text(r.Realm)
	w.b = append(w.b, r.Transport)
	w.flag(r.Token)
	w.int(r.gone)
	w.count(len(r.Places))
	for i := range r.Places {
		p := &r.Places[i]
		w.addrPort(p.Client)
		w.addrPort(p.Server)
		w.b = append(w.b, byte(p.Protocol))
		w.span(&p.Span)
	}
	w.count(len(r.Relayed))
	for i := range r.Relayed {
		w.addrPort(r.Relayed[i].Address)
		w.span(&r.Relayed[i].Span)
	}
	w.count(len(r.Bindings))
	for i := range r.Bindings {
		w.binding(&r.Bindings[i])
	}
	w.flag(r.Refused != nil)
	if r.Refused != nil {
		w.refused(r.Refused)
	}
	return w.b
}

func (w *writer) binding(b *Binding) {
	w.b = append(w.b, byte(b.Sort))
	w.uint(uint64(b.Channel))
	w.addrPort(b.Peer)
	w.count(len(b.Spans))
	for i := range b.Spans {
		w.span(&b.Spans[i])
	}
	w.count(len(b.Connections))
	for _, c := range b.Connections {
		w.uint(uint64(c.ID))
		w.addrPort(c.Client)
		w.mark(c.Bound)
	}
	w.count(len(b.Uses))
	for _, u := range b.Uses {
		w.b = append(w.b, byte(u.Path))
		for _, c := range []turn.Count{u.ToPeer, u.ToClient} {
			w.uint(c.Packets)
			w.uint(c.Bytes)
		}
		w.mark(u.At)
	}
}

func (w *writer) refused(f *Refused) {
	w.addrPort(f.Client)
	w.uint(uint64(f.Method))
	w.uint(uint64(f.Code))
	w.uint(f.Count)
	w.addr(f.Peer)
	w.flag(f.Others)
	w.count(len(f.Servers))
	for _, s := range f.Servers {
		w.addrPort(s)
	}
}

// reader reads what a writer wrote. The first error sticks.
type reader struct {
	b    []byte
	base Mark
	bad  bool
}

func (r *reader) uint() uint64 {
	n, size := binary.Uvarint(r.b)
	if size <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) int() int64 {
	n, size := binary.Varint(r.b)
	if size <= 0 {
		r.fail()
		return 0
	}
	r.b = r.b[size:]
	return n
}

func (r *reader) fail() { r.bad, r.b = true, nil }

func (r *reader) byte() byte {
	b := r.fixed(1)
	if len(b) == 0 {
		return 0
	}
	return b[0]
}

// fixed are the next n bytes.
func (r *reader) fixed(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail()
		return nil
	}
	b := r.b[:n]
	r.b = r.b[n:]
	return b
}

func (r *reader) flag() bool  { return r.byte() == 1 }
func (r *reader) wall() int64 { return r.base.Wall + r.int() }

// count is the length of a list, each element of which takes size bytes at least.
func (r *reader) count(size int) int {
	n := r.uint()
	if n > uint64(len(r.b)/size) {
		r.fail()
		return 0
	}
	return int(n)
}

func (r *reader) addr() netip.Addr {
	b := r.fixed(r.uint())
	if len(b) == 0 {
		return netip.Addr{}
	}
	a, ok := netip.AddrFromSlice(b)
	if !ok {
		r.fail()
	}
	return a
}

func (r *reader) addrPort() netip.AddrPort { return netip.AddrPortFrom(r.addr(), uint16(r.uint())) }

func (r *reader) mark() (m Mark) {
	if n := r.uint(); n > 0 {
		n--
		m.Seq = r.base.Seq + turn.Seq(n>>1^-(n&1))
	}
	m.Wall = r.wall()
	return m
}

func (r *reader) span() (s Span) {
	s.From = r.mark()
	if s.Why = Why(r.uint()); s.Why != WhyOpen {
		s.To = r.mark()
	} else if r.flag() {
		s.until = turn.Deadline{Uptime: time.Duration(r.int()), Wall: r.wall()}
	}
	return s
}

// decoder decodes rows. What they hold it cuts from larger pieces, and strings that come again and again are there once. It is
// for one goroutine.
type decoder struct {
	places      arena[Place]
	relayed     arena[Relayed]
	bindings    arena[Binding]
	spans       arena[Span]
	connections arena[Connected]
	uses        arena[Use]
	names       map[string]string
}

// arena hands out slices of one piece after the other. None can grow into the next.
type arena[T any] struct{ left []T }

const arenaSize = 256

func (a *arena[T]) take(n int) []T {
	if n > len(a.left) {
		a.left = make([]T, max(n, arenaSize))
	}
	out := a.left[:n:n]
	a.left = a.left[n:]
	return out
}

// list reads a list, each element of which takes size bytes at least.
func list[T any](r *reader, a *arena[T], size int, one func() T) []T {
	n := r.count(size)
	if n == 0 {
		return nil
	}
	out := a.take(n)
	for i := range out {
		out[i] = one()
	}
	return out
}

func (d *decoder) text(r *reader) string {
	b := r.fixed(r.uint())
	if s, ok := d.names[string(b)]; ok {
		return s
	}
	if d.names == nil || len(d.names) >= maxNames {
		d.names = map[string]string{}
	}
	s := string(b)
	d.names[s] = s
	return s
}

// maxNames bounds the strings that are remembered.
const maxNames = 4096

// row is the opposite of encodeRow. It keeps nothing of b.
func (d *decoder) row(b []byte) (row Row, err error) {
	r := reader{b: b}
	row.Kind = Kind(r.byte())
	r.base = Mark{turn.Seq(r.uint()), r.int()}
	row.Allocation, row.Epoch = turn.AllocationID(r.uint()), r.uint()
	row.Span = r.span()
	row.Username, row.Realm = d.text(&r), d.text(&r)
	row.Transport, row.Token, row.gone = r.byte(), r.flag(), r.int()
	row.Places = list(&r, &d.places, 8, func() Place {
		return Place{turn.FiveTuple{Client: r.addrPort(), Server: r.addrPort(), Protocol: turn.Protocol(r.byte())}, r.span()}
	})
	row.Relayed = list(&r, &d.relayed, 5, func() Relayed { return Relayed{r.addrPort(), r.span()} })
	row.Bindings = list(&r, &d.bindings, 7, func() Binding { return d.binding(&r) })
	if r.flag() {
		row.Refused = r.refused()
	}
	if r.bad || len(r.b) > 0 {
		return Row{}, errRow
	}
	row.spans(func(s *Span) {
		if s.Why != WhyOpen {
			row.closed++
		}
	})
	return row, nil
}

func (d *decoder) binding(r *reader) (b Binding) {
	b.Sort, b.Channel, b.Peer = Sort(r.byte()), turn.ChannelNumber(r.uint()), r.addrPort()
	b.Spans = list(r, &d.spans, 3, r.span)
	b.Connections = list(r, &d.connections, 5, func() Connected {
		return Connected{turn.ConnectionID(r.uint()), r.addrPort(), r.mark()}
	})
	if len(b.Connections) > 0 && len(b.Connections) != len(b.Spans) {
		r.fail()
	}
	b.Uses = list(r, &d.uses, 7, func() Use {
		return Use{
			Path: turn.Path(r.byte()), ToPeer: turn.Count{Packets: r.uint(), Bytes: r.uint()},
			ToClient: turn.Count{Packets: r.uint(), Bytes: r.uint()}, At: r.mark(),
		}
	})
	return b
}

func (r *reader) refused() *Refused {
	f := &Refused{Client: r.addrPort(), Method: uint16(r.uint()), Code: uint16(r.uint()), Count: r.uint(), Peer: r.addr(), Others: r.flag()}
	f.Servers = list(r, new(arena[netip.AddrPort]), 2, r.addrPort)
	return f
}
