package certs

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// write makes a certificate for names in a directory, with its key in a file of its own.
func write(t *testing.T, dir, file string, key crypto.Signer, ends time.Time, names ...string) Files {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: names[0]}, DNSNames: names,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: ends,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{filepath.Join(dir, file+".crt"), filepath.Join(dir, file+".key")}
	put(t, f.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	put(t, f.Key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8}))
	return f
}

// put replaces a file at once, as ACME clients do.
func put(t *testing.T, file string, b []byte) {
	t.Helper()
	if err := os.WriteFile(file+".new", b, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func ecKey(t *testing.T) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// shake does a handshake with s as a client that asks for name, and yields the certificate it was shown.
func shake(t *testing.T, s *Store, c *tls.Config) (*x509.Certificate, error) {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	server := tls.Server(a, s.Config())
	go func() { _ = server.Handshake() }()
	c.InsecureSkipVerify = true //nolint:gosec // the test made the certificate
	client := tls.Client(b, c)
	if err := client.Handshake(); err != nil {
		return nil, err
	}
	return client.ConnectionState().PeerCertificates[0], nil
}

func TestNamesChooseTheCertificate(t *testing.T) {
	dir, ends := t.TempDir(), time.Now().Add(90*24*time.Hour)
	rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	s := NewStore(zerolog.Nop())
	if err := s.Use([]Files{
		write(t, dir, "first", ecKey(t), ends, "turn.example.org"),
		write(t, dir, "ec", ecKey(t), ends, "both.example.net"),
		write(t, dir, "rsa", rsaKey, ends, "both.example.net", "*.wild.example.net"),
	}); err != nil {
		t.Fatal(err)
	}
	onlyRSA := []uint16{tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256}
	for _, c := range []struct {
		name   string
		suites []uint16
		want   string
		rsa    bool
	}{
		{"turn.example.org", nil, "turn.example.org", false},
		{"both.example.net", nil, "both.example.net", false},
		{"both.example.net", onlyRSA, "both.example.net", true},
		{"a.wild.example.net", nil, "both.example.net", true},
		{"elsewhere.example.com", nil, "turn.example.org", false},
		{"", nil, "turn.example.org", false},
		{"", onlyRSA, "both.example.net", true},
	} {
		config := &tls.Config{ServerName: c.name, CipherSuites: c.suites}
		if c.suites != nil {
			config.MaxVersion = tls.VersionTLS12
		}
		got, err := shake(t, s, config)
		if err != nil {
			t.Errorf("%q: %v", c.name, err)
			continue
		}
		if _, isRSA := got.PublicKey.(*rsa.PublicKey); got.Subject.CommonName != c.want || isRSA != c.rsa {
			t.Errorf("%q: got %s (RSA %v), want %s (RSA %v)", c.name, got.Subject, isRSA, c.want, c.rsa)
		}
	}
	if _, err := shake(t, s, &tls.Config{MaxVersion: tls.VersionTLS11, MinVersion: tls.VersionTLS10}); err == nil { //nolint:gosec // it is refused
		t.Error("TLS 1.1 was accepted")
	}
	if _, err := shake(t, s, &tls.Config{NextProtos: []string{"h2"}}); err == nil {
		t.Error("a client that speaks another protocol was accepted")
	}
	if _, err := shake(t, s, &tls.Config{NextProtos: []string{"h2", "stun.turn"}}); err != nil {
		t.Errorf("a client that speaks TURN: %v", err)
	}
}

func TestChangedFilesAreRead(t *testing.T) {
	dir, ends := t.TempDir(), time.Now().Add(90*24*time.Hour)
	var log lines
	s := NewStore(zerolog.New(&log))
	files := []Files{write(t, dir, "a", ecKey(t), ends, "one.example.org")}
	if err := s.Use(files); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Watch(ctx, time.Millisecond) }()
	name := func() string {
		c, err := shake(t, s, &tls.Config{})
		if err != nil {
			return err.Error()
		}
		return c.Subject.CommonName
	}
	eventually := func(what string, holds func() bool) {
		t.Helper()
		for end := time.Now().Add(10 * time.Second); !holds(); time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("it does not come to pass that %s; log: %s", what, log.String())
			}
		}
	}
	write(t, dir, "a", ecKey(t), ends, "two.example.org")
	eventually("the new certificate is shown", func() bool { return name() == "two.example.org" })
	put(t, files[0].Cert, []byte("garbage"))
	eventually("the damage is told", func() bool { return strings.Contains(log.String(), "cannot be used") })
	if got := name(); got != "two.example.org" {
		t.Errorf("got %s while the file is damaged, want the one before", got)
	}
	write(t, dir, "a", ecKey(t), time.Now().Add(time.Hour), "three.example.org")
	eventually("the third certificate is shown", func() bool { return name() == "three.example.org" })
	if !strings.Contains(log.String(), "ends soon") {
		t.Errorf("got no warning of a certificate that ends in an hour: %s", log.String())
	}
	if got := time.Until(s.Expires()); got > time.Hour || got < 50*time.Minute {
		t.Errorf("the first ends in %v, want an hour", got)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestUnusableFilesAreRefused(t *testing.T) {
	dir, ends := t.TempDir(), time.Now().Add(90*24*time.Hour)
	s := NewStore(zerolog.Nop())
	good := write(t, dir, "a", ecKey(t), ends, "a.example.org")
	if err := s.Use([]Files{good}); err != nil {
		t.Fatal(err)
	}
	other := write(t, dir, "b", ecKey(t), ends, "b.example.org")
	for name, f := range map[string]Files{
		"missing":       {filepath.Join(dir, "none"), good.Key},
		"another's key": {good.Cert, other.Key},
	} {
		if err := s.Use([]Files{good, f}); err == nil || !strings.Contains(err.Error(), f.Cert) {
			t.Errorf("%s: got %v, want an error that names %s", name, err, f.Cert)
		}
	}
	if c, err := s.Get(&tls.ClientHelloInfo{}); err != nil || c.Leaf.Subject.CommonName != "a.example.org" {
		t.Errorf("got %v, want the certificate before", err)
	}
	if _, err := NewStore(zerolog.Nop()).Get(&tls.ClientHelloInfo{}); !errors.Is(err, errNone) {
		t.Errorf("an empty store: got %v, want %v", err, errNone)
	}
}

// lines is a log.
type lines struct {
	mu sync.Mutex // guards b
	b  strings.Builder
}

func (l *lines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
