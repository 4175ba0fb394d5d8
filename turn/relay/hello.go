package relay

import (
	"container/list"
	"crypto/tls"
	"encoding/binary"
	"net/netip"
	"sync"
	"time"
)

// Parts of a DTLS record that begins a handshake (RFC 6347 sections 4.1 and 4.2.2), in bytes.
const (
	dtlsRecord    = 13 // type, version, epoch, sequence, length
	dtlsHandshake = 12 // type, length, sequence, offset and length of the fragment
	dtlsHello     = dtlsRecord + dtlsHandshake + 2 + 32
	dtlsSequence  = dtlsRecord + 4 // of the handshake message

	dtlsVersion         = 0xfefd // 1.2
	dtlsTypeAlert       = 21
	dtlsTypeHandshake   = 22
	dtlsTypeClientHello = 1
	dtlsTypeVerify      = 3
)

// Bounds of a ClientHello that comes in parts.
const (
	maxHello   = 8<<10 - dtlsRecord - dtlsHandshake // bytes: as a record it is one that the library reads
	maxPartial = 256                                // of a listener that lack something
)

// helloPart is a fragment of a ClientHello (RFC 6347 section 4.2.3), all of it or less, in a record of its own.
type helloPart struct {
	record   []byte // with its header
	sequence uint16 // of the message
	length   int    // of the message
	offset   int    // at which body begins in it
	body     []byte
}

// parsePart is the part of a ClientHello that b begins with, and what is behind its record. False: it begins with none.
func parsePart(b []byte) (p helloPart, rest []byte, ok bool) {
	if len(b) < dtlsRecord+dtlsHandshake || b[0] != dtlsTypeHandshake || b[dtlsRecord] != dtlsTypeClientHello || binary.BigEndian.Uint16(b[3:]) != 0 {
		return p, nil, false
	}
	end := dtlsRecord + int(binary.BigEndian.Uint16(b[dtlsRecord-2:]))
	if end < dtlsRecord+dtlsHandshake || end > len(b) {
		return p, nil, false
	}
	p = helloPart{
		record: b[:end], sequence: binary.BigEndian.Uint16(b[dtlsSequence:]),
		length: uint24(b[dtlsRecord+1:]), offset: uint24(b[dtlsSequence+2:]), body: b[dtlsRecord+dtlsHandshake : end],
	}
	size := uint24(b[dtlsSequence+5:])
	return p, b[end:], size == len(p.body) && p.offset+size <= p.length && (size > 0 || p.length == 0)
}

func uint24(b []byte) int { return int(b[0])<<16 | int(binary.BigEndian.Uint16(b[1:])) }

// whole says whether p is all of its message.
func (p helloPart) whole() bool { return len(p.body) == p.length }

// old says whether its client knows no version that is spoken here. The message has begun with p.
func (p helloPart) old() bool { return binary.BigEndian.Uint16(p.body) > dtlsVersion } // they count down

// random is that of the client, which is the same with the cookie. The message has begun with p.
func (p helloPart) random() []byte { return p.body[2:34] }

// cookie is the cookie in p. False: the message does not begin with p, or the cookie is not all in it.
func (p helloPart) cookie() (cookie []byte, ok bool) {
	if p.offset != 0 || len(p.body) < 2+32+2 {
		return nil, false
	}
	rest := p.body[2+32:]
	id := int(rest[0])
	if len(rest) < 1+id+1 {
		return nil, false
	}
	rest = rest[1+id:]
	if n := int(rest[0]); len(rest) > n {
		return rest[1 : 1+n], true
	}
	return nil, false
}

// Extensions of a ClientHello that say which certificates its client takes.
const (
	extServerName = 0
	extGroups     = 10
	extPoints     = 11
	extSignatures = 13
)

// vector cuts a vector off b, whose length is in its first bytes, so many of them. False: b is too short.
func vector(b *[]byte, prefix int) (v []byte, ok bool) {
	n := 0
	for i := range prefix {
		if i >= len(*b) {
			return nil, false
		}
		n = n<<8 | int((*b)[i])
	}
	if len(*b) < prefix+n {
		return nil, false
	}
	v = (*b)[prefix : prefix+n]
	*b = (*b)[prefix+n:]
	return v, true
}

// uint16s are the numbers in b.
func uint16s[T ~uint16](b []byte) (out []T) {
	for ; len(b) >= 2; b = b[2:] {
		out = append(out, T(binary.BigEndian.Uint16(b)))
	}
	return out
}

// wishes are what the client of a ClientHello in one record says of certificates. What is malformed is left out.
func wishes(hello []byte) *tls.ClientHelloInfo {
	w := &tls.ClientHelloInfo{SupportedVersions: []uint16{tls.VersionTLS12}} // as a certificate is concerned it is that
	rest := hello[dtlsHello:]
	if _, ok := vector(&rest, 1); !ok { // session
		return w
	}
	if _, ok := vector(&rest, 1); !ok { // cookie
		return w
	}
	suites, ok := vector(&rest, 2)
	if !ok {
		return w
	}
	w.CipherSuites = uint16s[uint16](suites)
	if _, ok := vector(&rest, 1); !ok { // compression
		return w
	}
	extensions, _ := vector(&rest, 2)
	for len(extensions) >= 4 {
		kind := binary.BigEndian.Uint16(extensions)
		extensions = extensions[2:]
		value, ok := vector(&extensions, 2)
		if !ok {
			break
		}
		wish(w, kind, value)
	}
	return w
}

// wish takes an extension.
func wish(w *tls.ClientHelloInfo, kind uint16, value []byte) {
	if kind == extPoints {
		w.SupportedPoints, _ = vector(&value, 1)
		return
	}
	list, ok := vector(&value, 2)
	if !ok {
		return
	}
	switch kind {
	case extServerName:
		if len(list) > 0 && list[0] == 0 { // a host
			list = list[1:]
			name, _ := vector(&list, 2)
			w.ServerName = string(name)
		}
	case extGroups:
		w.SupportedCurves = uint16s[tls.CurveID](list)
	case extSignatures:
		w.SignatureSchemes = uint16s[tls.SignatureScheme](list)
	}
}

// helloMessage is a ClientHello that is being put together of its parts. Of what comes twice the first counts.
type helloMessage struct {
	sequence uint16
	record   []byte // all of it as one record, in the version and with the number of the last that came
	has      []bool // by byte of the message
	lacks    int    // bytes
}

// newHelloMessage is one that p is the first part of. Its length is within maxHello.
func newHelloMessage(p helloPart) *helloMessage {
	m := &helloMessage{sequence: p.sequence, has: make([]bool, p.length), lacks: p.length}
	m.record = append(make([]byte, 0, dtlsRecord+dtlsHandshake+p.length), p.record[:dtlsRecord+dtlsHandshake]...)
	m.record = m.record[:cap(m.record)]
	binary.BigEndian.PutUint16(m.record[dtlsRecord-2:], uint16(dtlsHandshake+p.length)) //nolint:gosec // it is within maxHello
	copy(m.record[dtlsSequence+2:], []byte{0, 0, 0})
	copy(m.record[dtlsSequence+5:], m.record[dtlsRecord+1:dtlsRecord+4])
	m.add(p)
	return m
}

// add adds a part. False: it is of another message.
func (m *helloMessage) add(p helloPart) bool {
	if p.sequence != m.sequence || p.length != len(m.has) {
		return false
	}
	copy(m.record[5:11], p.record[5:11])
	body := m.record[dtlsRecord+dtlsHandshake:]
	for i, b := range p.body {
		if at := p.offset + i; !m.has[at] {
			m.has[at], body[at] = true, b
			m.lacks--
		}
	}
	return true
}

// partialHello is a ClientHello of which something is still to come, from a client that has returned its cookie.
type partialHello struct {
	*helloMessage
	client netip.AddrPort
	cookie string
	over   *time.Timer
}

// partialHellos are those of a listener. Each counts as a stream without an allocation, and has the time of a handshake. Where there
// are too many the oldest makes room: its client sends it again.
type partialHellos struct {
	crowd *crowd
	limit func() int // of a source
	life  time.Duration

	mu       sync.Mutex // guards the fields below
	byClient map[netip.AddrPort]*list.Element
	order    list.List // the oldest first
}

// begin has the parts of a message gathered whose first part is p. False: the client's source has too many.
func (l *partialHellos) begin(client netip.AddrPort, p helloPart, cookie string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byClient[client]; e != nil {
		if h := e.Value.(*partialHello); h.cookie == cookie && p.sequence == h.sequence && p.length == len(h.has) {
			return true
		}
		l.remove(e)
	}
	if !l.crowd.waits(sourceOf(client.Addr()), l.limit()) {
		return false
	}
	if l.order.Len() >= maxPartial {
		l.remove(l.order.Front())
	}
	h := &partialHello{helloMessage: newHelloMessage(p), client: client, cookie: cookie}
	e := l.order.PushBack(h)
	if l.byClient == nil {
		l.byClient = map[netip.AddrPort]*list.Element{}
	}
	l.byClient[client] = e
	h.over = time.AfterFunc(l.life, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		if l.byClient[client] == e {
			l.remove(e)
		}
	})
	return true
}

// remove forgets e, with mu held.
func (l *partialHellos) remove(e *list.Element) {
	h := l.order.Remove(e).(*partialHello)
	h.over.Stop()
	delete(l.byClient, h.client)
	l.crowd.counts(sourceOf(h.client.Addr()), -1)
}

// forget forgets what has come of a client's, if anything.
func (l *partialHellos) forget(client netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if e := l.byClient[client]; e != nil {
		l.remove(e)
	}
}

// clear forgets all.
func (l *partialHellos) clear() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for l.order.Len() > 0 {
		l.remove(l.order.Front())
	}
}

// add adds p and those that rest is made of. Where nothing is lacking any more it yields the message,
// and forgets it. False: p is no part of what is gathered of client.
func (l *partialHellos) add(client netip.AddrPort, p helloPart, rest []byte) (done *partialHello, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	e := l.byClient[client]
	if e == nil {
		return nil, false
	}
	h := e.Value.(*partialHello)
	if !h.add(p) {
		return nil, false
	}
	for more := true; more && len(rest) > 0; {
		if p, rest, more = parsePart(rest); more {
			h.add(p)
		}
	}
	if h.lacks > 0 {
		return nil, true
	}
	l.remove(e)
	return h, true
}

// withoutCookie is hello as it was before the client had a cookie.
func withoutCookie(hello []byte) []byte {
	at := dtlsHello + 1 + int(hello[dtlsHello]) // of the cookie's length
	out := append(append([]byte(nil), hello[:at]...), 0)
	out = append(out, hello[at+1+int(hello[at]):]...)
	binary.BigEndian.PutUint16(out[dtlsRecord-2:], uint16(len(out)-dtlsRecord))
	size := uint16(len(out) - dtlsRecord - dtlsHandshake)
	out[dtlsRecord+1], out[dtlsRecord+9] = 0, 0
	binary.BigEndian.PutUint16(out[dtlsRecord+2:], size)
	binary.BigEndian.PutUint16(out[dtlsRecord+10:], size)
	clear(out[dtlsSequence : dtlsSequence+2])
	clear(out[5:11])                             // the record before
	if binary.BigEndian.Uint32(hello[7:]) == 0 { // unless the client counts from zero again
		out[10] = 1
	}
	return out
}

// helloVerify is the HelloVerifyRequest that answers hello. It is shorter than that.
func helloVerify(hello, cookie []byte) []byte {
	body := append([]byte{0xfe, 0xff, byte(len(cookie))}, cookie...)
	out := append([]byte{dtlsTypeHandshake, 0xfe, 0xff, 0, 0}, hello[5:11]...) // the sequence of the record is the client's
	out = binary.BigEndian.AppendUint16(out, uint16(dtlsHandshake+len(body)))
	n := byte(len(body))
	out = append(out, dtlsTypeVerify, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, n)
	return append(out, body...)
}

// protocolAlert is the alert that ends the handshake of hello: protocol_version, fatal (RFC 5246 section 7.2).
func protocolAlert(hello []byte) []byte {
	out := append([]byte{dtlsTypeAlert}, hello[1:11]...) // in the version and with the sequence of the client's
	return append(out, 0, 2, 2, 70)
}
