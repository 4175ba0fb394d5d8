package relay

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"reflect"
	"sync"
	"time"
	"unsafe"

	"turnstone/turn"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	"github.com/pion/transport/v3/packetio"
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

const (
	cookieTime  = 4  // bytes of seconds of uptime
	cookieBytes = 20 // with the MAC: as long as those of the library, whose length is fixed
	cookieLife  = 60 // seconds

	dtlsBacklog = 256 << 10 // bytes that a client has sent and nobody has read
)

// dtlsAccepter takes in the clients of a DTLS listener. A client is nothing to it before it has returned the cookie: the
// answer to the first ClientHello is made of the ClientHello and a key.
type dtlsAccepter struct {
	server   *Server
	listener *listener
	conn     *net.UDPConn
	key      [32]byte // of cookies
	options  []dtls.ServerOption

	mu     sync.Mutex // guards assocs
	assocs map[netip.AddrPort]*association
}

func (s *Server) listenDTLS(l *listener) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(l.Address))
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	_ = conn.SetReadBuffer(ListenerBuffer) // as large as it may be
	a := &dtlsAccepter{server: s, listener: l, conn: conn, assocs: map[netip.AddrPort]*association{}}
	if _, err := io.ReadFull(s.config.Entropy, a.key[:]); err != nil {
		return errors.Join(fmt.Errorf("draw entropy: %w", err), conn.Close())
	}
	certificate := s.config.Streams.TLS.GetCertificate
	a.options = []dtls.ServerOption{
		dtls.WithGetCertificate(func(h *dtls.ClientHelloInfo) (*tls.Certificate, error) {
			return certificate(&tls.ClientHelloInfo{ServerName: h.ServerName})
		}),
		dtls.WithLoggerFactory(&logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}),
	}
	if p := s.config.Streams.TLS.NextProtos; len(p) > 0 {
		a.options = append(a.options, dtls.WithSupportedProtocols(p...))
	}
	l.accepts = append(l.accepts, a)
	return nil
}

func (a *dtlsAccepter) close() error { return a.conn.Close() }

func (a *dtlsAccepter) accept() {
	b := make([]byte, 1<<16)
	for {
		n, from, err := a.conn.ReadFromUDPAddrPort(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil { // else it is about something sent before
			a.receive(turn.Canonical(from), b[:n])
		}
	}
}

// receive hands a datagram to its association, makes one, or asks for the cookie.
func (a *dtlsAccepter) receive(client netip.AddrPort, b []byte) {
	a.mu.Lock()
	known := a.assocs[client]
	a.mu.Unlock()
	cookie, hello := parseHello(b)
	if known != nil && (!hello || string(cookie) == known.cookie) {
		_, _ = known.in.Write(b) // what finds no room is lost, as on the network
		return
	}
	if !hello {
		a.server.stats.drop(DropMalformed)
		return
	}
	old := binary.BigEndian.Uint16(b[dtlsRecord+dtlsHandshake:]) > dtlsVersion // they count down
	if old || !a.proves(client, b, cookie) {
		a.answer(client, b, old)
		return
	}
	a.associate(client, b, string(cookie), known)
}

// answer asks a client for the cookie, or tells it that its version is too old. Either is shorter than its hello.
func (a *dtlsAccepter) answer(client netip.AddrPort, hello []byte, old bool) {
	if !a.server.limiter.Load().allow(client.Addr(), uptime()) {
		a.server.stats.drop(DropRateLimited)
		return
	}
	answer := protocolAlert(hello)
	if !old {
		answer = helloVerify(hello, a.cookie(client, hello, uint32(uptime()/int64(time.Second))))
	}
	_, _ = a.conn.WriteToUDPAddrPort(answer, client) // as lossy as the network
}

// parseHello says whether b is a ClientHello in one piece, and with what cookie.
func parseHello(b []byte) (cookie []byte, ok bool) {
	if len(b) < dtlsHello+2 || b[0] != dtlsTypeHandshake || b[dtlsRecord] != dtlsTypeClientHello || binary.BigEndian.Uint16(b[3:]) != 0 {
		return nil, false
	}
	record := int(binary.BigEndian.Uint16(b[dtlsRecord-2:]))
	length := int(b[dtlsRecord+1])<<16 | int(binary.BigEndian.Uint16(b[dtlsRecord+2:]))
	fragment := b[dtlsSequence+2 : dtlsRecord+dtlsHandshake]
	if record != len(b)-dtlsRecord || length != record-dtlsHandshake || [3]byte(fragment) != [3]byte{} || [3]byte(fragment[3:]) != [3]byte(b[dtlsRecord+1:]) {
		return nil, false
	}
	rest := b[dtlsHello:]
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

// cookie is what a client that sent hello at a second of uptime has to return (RFC 6347 section 4.2.1).
func (a *dtlsAccepter) cookie(client netip.AddrPort, hello []byte, second uint32) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, cookieBytes), second)
	mac := hmac.New(sha256.New, a.key[:])
	mac.Write(out)
	mac.Write([]byte(client.String()))
	mac.Write(hello[dtlsHello-32 : dtlsHello]) // its random, which is the same with the cookie
	return append(out, mac.Sum(nil)[:cookieBytes-cookieTime]...)
}

// proves says whether cookie is one that client was given for hello.
func (a *dtlsAccepter) proves(client netip.AddrPort, hello, cookie []byte) bool {
	if len(cookie) != cookieBytes {
		return false
	}
	second := binary.BigEndian.Uint32(cookie)
	age := uint32(uptime()/int64(time.Second)) - second
	return age <= cookieLife && hmac.Equal(cookie, a.cookie(client, hello, second))
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

// association is the DTLS connection of a client. It is the packet connection below that of the library, which
// knows only how to ask for a cookie of its own: it is shown the ClientHello as if it were the first, its
// question goes nowhere, and then the cookie it waits for is set to the one the client has returned.
type association struct {
	accepter *dtlsAccepter
	client   netip.AddrPort
	in       *packetio.Buffer
	cookie   string
	hello    []byte // the ClientHello with the cookie, until the library has asked
	conn     *dtls.Conn
	done     chan struct{} // closed when it has ended
	instead  *association  // that it takes the place of, nil for none
}

func (a *dtlsAccepter) associate(client netip.AddrPort, hello []byte, cookie string, instead *association) {
	n := &association{
		accepter: a, client: client, in: packetio.NewBuffer(), cookie: cookie, hello: append([]byte(nil), hello...),
		done: make(chan struct{}), instead: instead,
	}
	n.in.SetLimitSize(dtlsBacklog)
	conn, err := dtls.ServerWithOptions(n, net.UDPAddrFromAddrPort(client), a.options...)
	if err != nil {
		a.server.refuseStream(client, err)
		return
	}
	n.conn = conn
	_, _ = n.in.Write(withoutCookie(hello)) // an empty buffer has room
	a.mu.Lock()
	a.assocs[client] = n
	a.mu.Unlock()
	a.server.welcome(conn, func() {
		defer n.end()
		if instead != nil {
			_ = instead.conn.Close()
			<-instead.done
		}
		a.server.serveStream(a.listener, client, func() (net.Conn, error) { return conn, a.server.shake(conn) })
	}, n.end)
}

// end forgets n.
func (n *association) end() {
	a := n.accepter
	a.mu.Lock()
	if a.assocs[n.client] == n {
		delete(a.assocs, n.client)
	}
	a.mu.Unlock()
	_ = n.in.Close()
	close(n.done)
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

// ReadFrom is what the client sent next.
func (n *association) ReadFrom(b []byte) (int, net.Addr, error) {
	k, err := n.in.Read(b)
	return k, net.UDPAddrFromAddrPort(n.client), err
}

// WriteTo sends to the client, but for the question after a cookie: the library asks it once, before all else, in the
// goroutine that will look at the answer.
func (n *association) WriteTo(b []byte, _ net.Addr) (int, error) {
	if n.hello == nil {
		return n.accepter.conn.WriteToUDPAddrPort(b, n.client)
	}
	if len(b) <= dtlsRecord || b[0] != dtlsTypeHandshake || b[dtlsRecord] != dtlsTypeVerify {
		return n.accepter.conn.WriteToUDPAddrPort(b, n.client) // an alert
	}
	hello := n.hello
	n.hello = nil
	setCookie(n.conn, n.cookie)
	if _, err := n.in.Write(hello); err != nil {
		return 0, err
	}
	return len(b), nil
}

// setCookie has c wait for cookie. The library has no way to say so: a server that keeps nothing before
// the cookie needs it. TestDTLS tells if a field of it has another name one day.
func setCookie(c *dtls.Conn, cookie string) {
	field := reflect.ValueOf(c).Elem().FieldByName("state").FieldByName("cookie")
	*(*[]byte)(unsafe.Pointer(field.UnsafeAddr())) = []byte(cookie)
}

// Close ends reading.
func (n *association) Close() error { return n.in.Close() }

// LocalAddr is the listener's address.
func (n *association) LocalAddr() net.Addr { return n.accepter.conn.LocalAddr() }

// SetDeadline is SetReadDeadline: writing waits for nobody.
func (n *association) SetDeadline(t time.Time) error { return n.SetReadDeadline(t) }

// SetReadDeadline bounds ReadFrom.
func (n *association) SetReadDeadline(t time.Time) error { return n.in.SetReadDeadline(t) }

// SetWriteDeadline does nothing: writing waits for nobody.
func (n *association) SetWriteDeadline(time.Time) error { return nil }
