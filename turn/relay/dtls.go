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
	"syscall"
	"time"
	"unsafe"

	"turnstone/turn"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"
	"github.com/pion/transport/v3/packetio"
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

	partials partialHellos

	mu     sync.Mutex // guards assocs
	assocs map[netip.AddrPort]*association
}

func (s *Server) listenDTLS(l *listener) error {
	conn, err := s.inheritDTLS(l.Address)
	if err == nil && conn == nil {
		conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(l.Address))
	}
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	_ = conn.SetReadBuffer(ListenerBuffer) // as large as it may be
	a := &dtlsAccepter{
		server: s, listener: l, conn: conn, assocs: map[netip.AddrPort]*association{},
		partials: partialHellos{crowd: &s.crowd, limit: func() int { return s.streams.Load().MaxIdle }, life: s.streams.Load().Handshake},
	}
	if _, err := io.ReadFull(s.config.Entropy, a.key[:]); err != nil {
		return errors.Join(fmt.Errorf("draw entropy: %w", err), conn.Close())
	}
	certificate := s.streams.Load().TLS.GetCertificate
	a.options = []dtls.ServerOption{
		dtls.WithGetCertificate(func(h *dtls.ClientHelloInfo) (*tls.Certificate, error) {
			return certificate(&tls.ClientHelloInfo{ServerName: h.ServerName})
		}),
		dtls.WithLoggerFactory(&logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}),
	}
	if p := s.streams.Load().TLS.NextProtos; len(p) > 0 {
		a.options = append(a.options, dtls.WithSupportedProtocols(p...))
	}
	l.accepts = append(l.accepts, a)
	return nil
}

func (a *dtlsAccepter) close() error { return a.conn.Close() }

func (a *dtlsAccepter) socket() syscall.Conn { return a.conn }

func (a *dtlsAccepter) accept() {
	defer a.partials.clear()
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
	var cookie []byte
	p, rest, first := parsePart(b)
	part := first
	if first {
		cookie, first = p.cookie()
	}
	switch {
	case known == nil && a.listener.retired.Load():
		a.server.stats.drop(DropNoAllocation)
	case first && (known == nil || string(cookie) != known.cookie):
		a.greet(client, p, rest, cookie)
	case part && a.gather(client, p, rest):
	case known != nil && part && !p.whole(): // the library had the message in one piece, and repeats its answer by itself
	case known != nil:
		_, _ = known.in.Write(b) // what finds no room is lost, as on the network
	default:
		a.server.stats.drop(DropMalformed)
	}
}

// greet takes in a client by the first part of its ClientHello, which is all of it as a rule.
func (a *dtlsAccepter) greet(client netip.AddrPort, p helloPart, rest, cookie []byte) {
	switch {
	case p.old() || !a.proves(client, p, cookie):
		a.answer(client, p)
	case p.whole():
		a.partials.forget(client)
		a.associate(client, p.record, string(cookie))
	case p.length > maxHello:
		a.server.stats.drop(DropMalformed)
	case a.partials.begin(client, p, string(cookie)):
		a.gather(client, p, rest)
	default:
		a.server.refuseStream(client, errIdleStreams)
	}
}

// gather adds parts of a ClientHello to those that came before. False: they are of none that has begun.
func (a *dtlsAccepter) gather(client netip.AddrPort, p helloPart, rest []byte) bool {
	h, ok := a.partials.add(client, p, rest)
	if h != nil {
		a.associate(client, h.record, h.cookie)
	}
	return ok
}

// answer asks a client for the cookie, or tells it that its version is too old. Either is shorter than its hello.
func (a *dtlsAccepter) answer(client netip.AddrPort, p helloPart) {
	if !a.server.limiter.Load().allow(client.Addr(), uptime()) {
		a.server.stats.drop(DropRateLimited)
		return
	}
	answer := protocolAlert(p.record)
	if !p.old() {
		answer = helloVerify(p.record, a.cookie(client, p, uint32(uptime()/int64(time.Second))))
	}
	_, _ = a.conn.WriteToUDPAddrPort(answer, client) // as lossy as the network
}

// cookie is what a client whose hello began with p at a second of uptime has to return (RFC 6347 section 4.2.1).
func (a *dtlsAccepter) cookie(client netip.AddrPort, p helloPart, second uint32) []byte {
	out := binary.BigEndian.AppendUint32(make([]byte, 0, cookieBytes), second)
	mac := hmac.New(sha256.New, a.key[:])
	mac.Write(out)
	mac.Write([]byte(client.String()))
	mac.Write(p.random())
	return append(out, mac.Sum(nil)[:cookieBytes-cookieTime]...)
}

// proves says whether cookie is one that client was given for the hello that begins with p.
func (a *dtlsAccepter) proves(client netip.AddrPort, p helloPart, cookie []byte) bool {
	if len(cookie) != cookieBytes {
		return false
	}
	second := binary.BigEndian.Uint32(cookie)
	age := uint32(uptime()/int64(time.Second)) - second
	return age <= cookieLife && hmac.Equal(cookie, a.cookie(client, p, second))
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

// certificateFor is the certificate of the client that sent hello. The library asks for one before it has looked at a hello, to
// choose cipher suites by, and is told the same one then.
func (a *dtlsAccepter) certificateFor(hello []byte) func(*dtls.ClientHelloInfo) (*tls.Certificate, error) {
	certificate, err := a.server.config.Streams.TLS.GetCertificate(wishes(hello))
	return func(*dtls.ClientHelloInfo) (*tls.Certificate, error) { return certificate, err }
}

// associate makes an association of a client whose ClientHello, one record, has the cookie.
func (a *dtlsAccepter) associate(client netip.AddrPort, hello []byte, cookie string) {
	a.mu.Lock()
	instead := a.assocs[client]
	a.mu.Unlock()
	n := &association{
		accepter: a, client: client, in: packetio.NewBuffer(), cookie: cookie, hello: append([]byte(nil), hello...),
		done: make(chan struct{}), instead: instead,
	}
	n.in.SetLimitSize(dtlsBacklog)
	options := append(a.options[:len(a.options):len(a.options)], dtls.WithGetCertificate(a.certificateFor(hello)))
	conn, err := dtls.ServerWithOptions(n, net.UDPAddrFromAddrPort(client), options...)
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
		alert := append([]byte(nil), b...)
		copy(alert[5:], n.hello[5:11]) // the library counts from zero, which our own question had
		return n.accepter.conn.WriteToUDPAddrPort(alert, n.client)
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
