package test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"turnstone/internal/testenv"

	"github.com/pion/dtls/v3"
	"github.com/pion/transport/v3/stdnet"
	"github.com/pion/turn/v4"
)

const tlsServer4 = "127.0.0.1:5349"

// onStreams are flags of a daemon that listens on streams too, with a certificate for turn.example.org.
func onStreams(t testing.TB) []string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "turn.pem")
	writeCertificate(t, file, "turn.example.org")
	flags := []string{"--cert", file}
	for _, l := range []string{"tcp://" + server4, "tcp://" + server6, "tls://" + tlsServer4, "dtls://" + tlsServer4} {
		flags = append(flags, "--listen", l)
	}
	return flags
}

// writeCertificate puts a certificate with its key into file.
func writeCertificate(t testing.TB, file, name string) {
	t.Helper()
	writeCertificateUntil(t, file, name, time.Now().Add(365*24*time.Hour))
}

func writeCertificateUntil(t testing.TB, file, name string, end time.Time) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{name}, NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

// dial connects to the daemon over a protocol, and yields the name on its certificate.
func dial(t *testing.T, s *space, protocol string) (conn net.Conn, name string) {
	t.Helper()
	trusting := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // the test made the certificate
	s.do(func() (err error) {
		switch protocol {
		case "tls":
			c, err := tls.Dial("tcp", tlsServer4, trusting)
			if err != nil {
				return err
			}
			conn, name = c, c.ConnectionState().PeerCertificates[0].DNSNames[0]
		case "dtls":
			to, err := net.ResolveUDPAddr("udp", tlsServer4)
			if err != nil {
				return err
			}
			c, err := dtls.DialWithOptions("udp", to, dtls.WithInsecureSkipVerify(true))
			if err != nil {
				return err
			}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			if err := c.HandshakeContext(ctx); err != nil {
				return err
			}
			conn = c
		default:
			conn, err = net.Dial("tcp", server4)
		}
		return err
	})
	t.Cleanup(func() { _ = conn.Close() })
	return conn, name
}

// TestPionClientOnStreams relays both ways for pion's client over each stream, and kills the daemon under it: an
// allocation ends with its stream, and one of a UDP client goes on.
func TestPionClientOnStreams(t *testing.T) {
	for _, protocol := range []string{"tcp", "tls", "dtls"} {
		t.Run(protocol, func(t *testing.T) {
			t.Parallel()
			s := newSpace(t)
			d := startDaemon(t, s, append(onLoopback, onStreams(t)...)...)
			peer := s.listen(addr("127.0.0.1:0"))
			_, udp := pionAllocate(t, s, "127.0.0.1:0", server4)
			conn, _ := dial(t, s, protocol)
			server := server4
			if protocol != "tcp" {
				server = tlsServer4
			}
			c, relayed := pionOn(t, turn.NewSTUNConn(conn), server, username, password, realm)
			if err := c.CreatePermission(peer.LocalAddr()); err != nil {
				t.Fatal(err)
			}
			for i := range 50 {
				echo(t, relayed, peer, fmt.Appendf(nil, "datagram %d, of an odd length", i)[:20+i%7])
			}
			_, port, _ := net.SplitHostPort(conn.LocalAddr().String())
			if a, ok := d.allocations()["127.0.0.1:"+port]; !ok || len(a.Relayed) != 1 {
				t.Errorf("got %+v, want an allocation of port %s", d.allocations(), port)
			}
			d.kill()
			d.start()
			if n := d.status().Allocations; n != 1 {
				t.Errorf("got %d allocations after the restart, want that of the UDP client", n)
			}
			echo(t, udp, peer, []byte("goes on"))
			if !slices.ContainsFunc(d.events(), func(e event) bool { return e.Kind == "AllocationDeleted" && fmt.Sprint(e.Event["reason"]) == "restart" }) {
				t.Errorf("the log has no end for the restart: %+v", d.events())
			}
			_ = conn.Close()
			d.stop()
			d.verify()
		})
	}
}

// TestPionClientRelaysConnections relays connections of peers for pion's client, in both directions (RFC 6062).
func TestPionClientRelaysConnections(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, append(onLoopback, onStreams(t)...)...)
	control, _ := dial(t, s, "tcp")
	c, err := turn.NewClient(&turn.ClientConfig{
		TURNServerAddr: server4, Username: username, Password: password, Realm: realm, Conn: turn.NewSTUNConn(control), Net: bothFamilies{new(stdnet.Net)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	a, err := c.AllocateTCP()
	if err != nil {
		t.Fatal(err)
	}
	var peers *net.TCPListener
	s.do(func() (err error) {
		peers, err = net.ListenTCP("tcp4", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	})
	defer peers.Close()
	s.do(func() error { // the library dials by itself
		out, err := a.DialWithConn(dialed(t), "tcp", peers.Addr().String())
		if err != nil {
			return err
		}
		in, err := peers.Accept()
		if err != nil {
			return err
		}
		return talk(out, in)
	})
	if err := c.CreatePermission(peers.Addr()); err != nil {
		t.Fatal(err)
	}
	s.do(func() error {
		out, err := net.Dial("tcp", a.Addr().String())
		if err != nil {
			return err
		}
		in, err := a.AcceptTCPWithConn(dialed(t))
		if err != nil {
			return err
		}
		return talk(out, in)
	})
	if n := len(d.events()); n == 0 {
		t.Error("got no events")
	}
	kinds := map[string]int{}
	for _, e := range d.events() {
		kinds[e.Kind]++
	}
	if kinds["PeerConnected"] != 2 || kinds["ConnectionBound"] != 2 {
		t.Errorf("got events %v, want two connections, both bound", kinds)
	}
	_ = a.Close()
	d.stop()
	d.verify()
}

// dialed is a data connection to the daemon, of the namespace the test is in.
func dialed(t *testing.T) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", server4)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// talk sends a megabyte each way.
func talk(a, b net.Conn) error {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, c := range []net.Conn{a, b} {
		if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
	}
	done := make(chan error, 4)
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		go func() { _, err := way[0].Write(data); done <- err }()
		go func() {
			got := make([]byte, len(data))
			_, err := io.ReadFull(way[1], got)
			if err == nil && !bytes.Equal(got, data) {
				err = errors.New("the bytes that came are not those that were sent")
			}
			done <- err
		}()
	}
	var errs []error
	for range 4 {
		errs = append(errs, <-done)
	}
	return errors.Join(errs...)
}

// TestCertificateIsReadAgain replaces the file of a certificate under a running daemon.
func TestCertificateIsReadAgain(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	flags := onStreams(t)
	startDaemon(t, s, append(onLoopback, flags...)...)
	_, name := dial(t, s, "tls")
	if name != "turn.example.org" {
		t.Errorf("got a certificate for %s, want turn.example.org", name)
	}
	writeCertificate(t, flags[1], "next.example.org")
	eventually(t, "the new certificate is shown", func() error {
		conn, name := dial(t, s, "tls")
		_ = conn.Close()
		if name != "next.example.org" {
			return fmt.Errorf("it is for %s", name)
		}
		return nil
	})
}

// TestOpenSSLSendsItsHelloInParts has the ClientHello of another library come in as many datagrams as a small MTU, and a
// long list of protocols, make of it.
func TestOpenSSLSendsItsHelloInParts(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	startDaemon(t, s, append(onLoopback, onStreams(t)...)...)
	for name, args := range map[string][]string{
		"two":  {"-mtu", "256", "-alpn", "stun.turn"},
		"many": {"-mtu", "256", "-alpn", "stun.turn" + strings.Repeat(","+strings.Repeat("x", 250), 8)},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, testenv.Tool(t, "openssl"), append([]string{"s_client", "-dtls1_2", "-connect", tlsServer4}, args...)...)
		out, err := s.output(cmd)
		if err != nil || !strings.Contains(out, "ALPN protocol: stun.turn") {
			t.Errorf("%s: got %v, want a connection\n%s", name, err, tail(out))
		}
	}
}
