package selftest

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"time"

	"turnstone/turn"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
	"github.com/pion/logging"
	"golang.org/x/sys/unix"
)

// patience is how long an answer may take.
const patience = 3500 * time.Millisecond

var (
	// errSilence says that nothing came in time.
	errSilence = errors.New("no answer")
	// errForeign says that what came is not TURN.
	errForeign = errors.New("what answers does not speak TURN")
	// errMute says that there is a connection, and no answer on it.
	errMute = errors.New("it takes the connection and does not answer")
)

// link carries frames to a server and back.
type link struct {
	conn  net.Conn
	local netip.AddrPort
	mtu   int // of the way to the server, 0: it cannot be told
	chain []*x509.Certificate

	stream bool
	buf    []byte
	rest   []byte // of a stream, what has come of the next frames
}

// dial opens a link to t. A certificate is kept and not looked at.
func dial(ctx context.Context, t Target) (l *link, err error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	network := "udp"
	if t.Protocol == turn.TCP || t.Protocol == turn.TLS {
		network = "tcp"
	}
	conn, err := new(net.Dialer).DialContext(ctx, network, t.Address.String())
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.Close()
		}
	}()
	l = &link{conn: conn, stream: network == "tcp", buf: make([]byte, 1<<16)}
	if l.local, err = netip.ParseAddrPort(conn.LocalAddr().String()); err != nil {
		return nil, err
	}
	if udp, ok := conn.(*net.UDPConn); ok {
		if l.mtu, err = wholePackets(udp, t.Address.Addr().Is4()); err != nil {
			return nil, err
		}
	}
	switch t.Protocol {
	case turn.TLS:
		err = l.secure(ctx, t.Name)
	case turn.DTLS:
		err = l.secureDatagrams(ctx, t.Name)
	}
	return l, err
}

// wholePackets has what is sent on c not be fragmented, and yields what is known of the MTU of its way.
func wholePackets(c *net.UDPConn, v4 bool) (mtu int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	level, discover, get, do := unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_MTU, unix.IPV6_PMTUDISC_DO
	if v4 {
		level, discover, get, do = unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_MTU, unix.IP_PMTUDISC_DO
	}
	var failed error
	err = raw.Control(func(fd uintptr) {
		if failed = unix.SetsockoptInt(int(fd), level, discover, do); failed == nil {
			mtu, failed = unix.GetsockoptInt(int(fd), level, get)
		}
	})
	return mtu, errors.Join(err, failed)
}

// serverName is what a client asks for a certificate by: an address is no name.
func serverName(host string) string {
	if _, err := netip.ParseAddr(host); err == nil {
		return ""
	}
	return host
}

func (l *link) secure(ctx context.Context, host string) error {
	c := tls.Client(l.conn, &tls.Config{ServerName: serverName(host), InsecureSkipVerify: true}) //nolint:gosec // see judgeCertificate
	if err := c.HandshakeContext(ctx); err != nil {
		return fmt.Errorf("TLS: %w", err)
	}
	l.conn, l.chain = c, c.ConnectionState().PeerCertificates
	return nil
}

func (l *link) secureDatagrams(ctx context.Context, host string) error {
	options := []dtls.ClientOption{
		dtls.WithInsecureSkipVerify(true), // see judgeCertificate
		dtls.WithLoggerFactory(&logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}),
	}
	if name := serverName(host); name != "" {
		options = append(options, dtls.WithServerName(name))
	}
	c, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(l.conn), l.conn.RemoteAddr(), options...)
	if err != nil {
		return fmt.Errorf("DTLS: %w", err)
	}
	if err := c.HandshakeContext(ctx); err != nil {
		return errors.Join(fmt.Errorf("DTLS: %w", err), c.Close())
	}
	l.conn = c
	state, _ := c.ConnectionState() // there is one after a handshake
	for _, der := range state.PeerCertificates {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			return fmt.Errorf("DTLS: the server's certificate: %w", err)
		}
		l.chain = append(l.chain, one)
	}
	return nil
}

func (l *link) send(frame []byte) error {
	_, err := l.conn.Write(frame)
	return err
}

// receive yields the next frame, which is good until the next call.
func (l *link) receive(deadline time.Time) ([]byte, error) {
	if err := l.conn.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	for {
		if frame, err := l.cut(); frame != nil || err != nil {
			return frame, err
		}
		n, err := l.conn.Read(l.buf)
		var timeout net.Error
		switch {
		case errors.Is(err, unix.EMSGSIZE): // about what was sent before
		case errors.As(err, &timeout) && timeout.Timeout():
			return nil, errSilence
		case err != nil:
			return nil, err
		case !l.stream:
			return l.buf[:n], nil
		default:
			l.rest = append(l.rest, l.buf[:n]...)
		}
	}
}

// cut takes a frame off what came along a stream, nil where it is not there yet.
func (l *link) cut() ([]byte, error) {
	n, err := turn.StreamFrame(l.rest)
	if err != nil {
		return nil, errForeign
	}
	if n == 0 || n > len(l.rest) {
		return nil, nil
	}
	frame := l.rest[:n:n]
	l.rest = l.rest[n:]
	return frame, nil
}

func (l *link) close() { _ = l.conn.Close() }
