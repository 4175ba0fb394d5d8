package store

import (
	"fmt"
	"math"
	"net/netip"
	"time"

	"turnstone/turn"

	"github.com/fxamacker/cbor/v2"
)

// A snapshot of ten thousand calls has some 200,000 fields that the library goes through by reflection. The elements of its long
// lists are written and read by hand, in the same bytes. One with a field that few have is left to the library, which is
// also the oracle in the tests.

// imageForm is a [turn.Image] whose long lists are in their stored form.
type imageForm struct {
	turn.Image
	Allocations cbor.RawMessage `cbor:"8,keyasint"`
	Answers     cbor.RawMessage `cbor:"9,keyasint"`
}

// EncodeState is the one encoding of s: equal states, equal bytes.
func EncodeState(s *turn.State) ([]byte, error) {
	form := imageForm{Image: s.Image()}
	var err error
	if form.Allocations, err = encodeImages(form.Image.Allocations, encodeAllocation); err != nil {
		return nil, err
	}
	if form.Answers, err = encodeImages(form.Image.Answers, encodeAnswer); err != nil {
		return nil, err
	}
	return encoding.Marshal(&form)
}

// DecodeState is the opposite of EncodeState.
func DecodeState(b []byte) (*turn.State, error) {
	var form imageForm
	err := decoding.Unmarshal(b, &form)
	if err != nil {
		return nil, err
	}
	known := &names{}
	if form.Image.Allocations, err = decodeImages(form.Allocations, known, (*cursor).allocationImage); err != nil {
		return nil, err
	}
	if form.Image.Answers, err = decodeImages(form.Answers, known, (*cursor).answerImage); err != nil {
		return nil, err
	}
	return turn.FromImage(form.Image)
}

// encodeImages encodes a list. Hot appends an element, or says that it is one for the library.
func encodeImages[T any](list []T, hot func([]byte, *T) ([]byte, bool)) ([]byte, error) {
	dst := appendHead(make([]byte, 0, 256*len(list)), majorArray, uint64(len(list)))
	for i := range list {
		if b, ok := hot(dst, &list[i]); ok {
			dst = b
			continue
		}
		b, err := encoding.Marshal(&list[i])
		if err != nil {
			return nil, err
		}
		dst = append(dst, b...)
	}
	return dst, nil
}

// decodeImages is the opposite of encodeImages. What hot fails on is the library's.
func decodeImages[T any](b []byte, known *names, hot func(*cursor, *T)) (list []T, err error) {
	c := cursor{b: b, names: known}
	n := c.head(majorArray)
	if c.err != nil || n > uint64(len(c.b)) {
		return list, decoding.Unmarshal(b, &list)
	}
	list = make([]T, n)
	for i := range list {
		rest := c.b
		if hot(&c, &list[i]); c.err == nil {
			continue
		}
		list[i] = *new(T)
		if rest, err = decoding.UnmarshalFirst(rest, &list[i]); err != nil {
			return nil, err
		}
		c = cursor{b: rest, names: known}
	}
	if len(c.b) > 0 {
		return nil, fmt.Errorf("%d bytes follow the list of an image", len(c.b))
	}
	return list, nil
}

// How many fields an element has that has none of those that few have, and no mobility ticket, which is the last.
const (
	allocationFields = 11
	allocationTicket = 15
	answerFields     = 7
	answerTicket     = 11
)

func encodeAllocation(dst []byte, a *turn.AllocationImage) ([]byte, bool) {
	if a.Until != nil || a.Token != nil || a.Connections != nil || a.Next != (turn.FiveTuple{}) || a.Adrift || a.Spare {
		return dst, false
	}
	w := imageWriter{b: dst}
	w.ticketed(allocationFields, a.Ticket)
	w.field(1, uint64(a.ID))
	w.key(2)
	w.fiveTuple(a.FiveTuple)
	w.key(3)
	list(&w, a.Relayed, (*imageWriter).addrPort)
	w.field(4, uint64(a.Transport))
	w.text(5, a.Username)
	w.text(6, a.Realm)
	w.key(7)
	w.moment(a.Created)
	w.key(8)
	w.deadline(a.Deadline)
	w.key(9)
	list(&w, a.Permissions, (*imageWriter).permission)
	w.key(10)
	list(&w, a.Channels, (*imageWriter).channel)
	w.key(11)
	list(&w, a.Usage, (*imageWriter).usage)
	w.ticket(allocationTicket, a.Ticket)
	return w.b, !w.zoned
}

func encodeAnswer(dst []byte, a *turn.AnswerImage) ([]byte, bool) {
	if a.Token != (turn.ReservationToken{}) || a.Family != 0 || a.Code != 0 {
		return dst, false
	}
	w := imageWriter{b: dst}
	w.ticketed(answerFields, a.Ticket)
	w.key(1)
	w.fiveTuple(a.FiveTuple)
	w.field(2, uint64(a.Kind))
	w.key(3)
	w.b = appendBytes(w.b, a.Tx[:])
	w.key(4)
	w.deadline(a.Until)
	w.field(5, uint64(a.Allocation))
	w.field(6, uint64(a.Lifetime))
	w.key(7)
	list(&w, a.Relayed, (*imageWriter).addrPort)
	w.ticket(answerTicket, a.Ticket)
	return w.b, !w.zoned
}

// imageWriter appends parts of an image.
type imageWriter struct {
	b     []byte
	zoned bool // an address has a zone, which no canonical one has: what was written is wrong
}

func (w *imageWriter) head(major byte, n uint64) { w.b = appendHead(w.b, major, n) }

func (w *imageWriter) key(n byte) { w.b = append(w.b, n) }

func (w *imageWriter) field(key byte, n uint64) { w.b = appendHead(append(w.b, key), majorUint, n) }

// ticketed begins a map of n fields and the number of a ticket, which is left out where it is 0.
func (w *imageWriter) ticketed(n uint64, ticket uint32) {
	if ticket != 0 {
		n++
	}
	w.head(majorMap, n)
}

// ticket is the last field of such a map.
func (w *imageWriter) ticket(key byte, n uint32) {
	if n != 0 {
		w.field(key, uint64(n))
	}
}

func (w *imageWriter) int(key byte, n int64) {
	if w.key(key); n < 0 {
		w.head(majorNegative, uint64(-1-n))
		return
	}
	w.head(majorUint, uint64(n))
}

func (w *imageWriter) text(key byte, s string) { w.b = appendText(append(w.b, key), s) }

func (w *imageWriter) addrPort(a *netip.AddrPort) {
	w.zoned = w.zoned || a.Addr().Zone() != ""
	w.b = appendAddrPort(w.b, *a)
}

func (w *imageWriter) fiveTuple(t turn.FiveTuple) {
	w.head(majorMap, 3)
	w.key(1)
	w.addrPort(&t.Client)
	w.key(2)
	w.addrPort(&t.Server)
	w.field(3, uint64(t.Protocol))
}

func (w *imageWriter) moment(m turn.Moment) {
	w.head(majorMap, 3)
	w.key(1)
	w.b = appendBytes(w.b, m.Boot[:])
	w.int(2, int64(m.Uptime))
	w.int(3, m.Wall)
}

func (w *imageWriter) deadline(d turn.Deadline) {
	w.head(majorMap, 2)
	w.int(1, int64(d.Uptime))
	w.int(2, d.Wall)
}

func (w *imageWriter) permission(p *turn.Permission) {
	w.zoned = w.zoned || p.Peer.Zone() != ""
	w.head(majorMap, 2)
	w.key(1)
	w.b = appendAddr(w.b, p.Peer)
	w.key(2)
	w.deadline(p.Deadline)
}

func (w *imageWriter) channel(c *turn.Channel) {
	w.head(majorMap, 3)
	w.field(1, uint64(c.Number))
	w.key(2)
	w.addrPort(&c.Peer)
	w.key(3)
	w.deadline(c.Deadline)
}

func (w *imageWriter) usage(u *turn.Usage) {
	w.head(majorMap, 5)
	w.field(1, uint64(u.Channel))
	w.key(2)
	w.addrPort(&u.Peer)
	w.field(3, uint64(u.Path))
	w.key(4)
	w.count(u.ToPeer)
	w.key(5)
	w.count(u.ToClient)
}

func (w *imageWriter) count(n turn.Count) {
	w.head(majorMap, 2)
	w.field(1, n.Packets)
	w.field(2, n.Bytes)
}

// list appends a slice, nil as the library writes it.
func list[T any](w *imageWriter, of []T, one func(*imageWriter, *T)) {
	if of == nil {
		w.b = append(w.b, null)
		return
	}
	w.head(majorArray, uint64(len(of)))
	for i := range of {
		one(w, &of[i])
	}
}

func (c *cursor) allocationImage(a *turn.AllocationImage) {
	ticketed := c.ticketed(allocationFields)
	a.ID = turn.AllocationID(c.field(1, math.MaxUint64))
	c.key(2)
	a.FiveTuple = c.fiveTuple()
	c.key(3)
	a.Relayed = listOf(c, (*cursor).relayed)
	a.Transport = uint8(c.field(4, math.MaxUint8))
	c.key(5)
	a.Username = c.text()
	c.key(6)
	a.Realm = c.text()
	c.key(7)
	c.fields(3)
	c.key(1)
	c.fixed(a.Created.Boot[:])
	a.Created.Uptime, a.Created.Wall = time.Duration(c.int(2)), c.int(3)
	c.key(8)
	a.Deadline = c.deadline()
	c.key(9)
	a.Permissions = listOf(c, func(c *cursor, p *turn.Permission) {
		c.fields(2)
		c.key(1)
		p.Peer = c.optionalAddr()
		c.key(2)
		p.Deadline = c.deadline()
	})
	c.key(10)
	a.Channels = listOf(c, func(c *cursor, b *turn.Channel) {
		c.fields(3)
		b.Number = turn.ChannelNumber(c.field(1, math.MaxUint16))
		c.key(2)
		b.Peer = c.optionalAddrPort()
		c.key(3)
		b.Deadline = c.deadline()
	})
	c.key(11)
	a.Usage = listOf(c, func(c *cursor, u *turn.Usage) {
		c.fields(5)
		u.Channel = turn.ChannelNumber(c.field(1, math.MaxUint16))
		c.key(2)
		u.Peer = c.optionalAddrPort()
		u.Path = turn.Path(c.field(3, math.MaxUint8))
		u.ToPeer, u.ToClient = c.count(4), c.count(5)
	})
	if ticketed {
		a.Ticket = c.ticket(allocationTicket)
	}
}

func (c *cursor) relayed(a *netip.AddrPort) { *a = c.optionalAddrPort() }

func (c *cursor) answerImage(a *turn.AnswerImage) {
	ticketed := c.ticketed(answerFields)
	c.key(1)
	a.FiveTuple = c.fiveTuple()
	a.Kind = turn.Kind(c.field(2, math.MaxUint16))
	c.key(3)
	c.fixed(a.Tx[:])
	c.key(4)
	a.Until = c.deadline()
	a.Allocation = turn.AllocationID(c.field(5, math.MaxUint64))
	a.Lifetime = uint32(c.field(6, math.MaxUint32))
	c.key(7)
	a.Relayed = listOf(c, (*cursor).relayed)
	if ticketed {
		a.Ticket = c.ticket(answerTicket)
	}
}

// ticketed begins a map of n fields and perhaps the number of a ticket.
func (c *cursor) ticketed(n uint64) bool {
	got := c.head(majorMap)
	if got != n && got != n+1 {
		c.fail()
	}
	return got == n+1
}

// ticket is the last field of such a map.
func (c *cursor) ticket(key uint64) uint32 { return uint32(c.field(key, math.MaxUint32)) }

func (c *cursor) deadline() (d turn.Deadline) {
	c.fields(2)
	d.Uptime, d.Wall = time.Duration(c.int(1)), c.int(2)
	return d
}

// listOf reads a slice of elements that take a byte at least.
func listOf[T any](c *cursor, one func(*cursor, *T)) []T {
	if len(c.b) > 0 && c.b[0] == null {
		c.b = c.b[1:]
		return nil
	}
	n := c.head(majorArray)
	if n > uint64(len(c.b)) {
		c.fail()
	}
	if c.err != nil {
		return nil
	}
	of := make([]T, n)
	for i := range of {
		one(c, &of[i])
	}
	return of
}
