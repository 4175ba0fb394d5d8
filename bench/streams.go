package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

var tlsAddress = netip.AddrPortFrom(listenHost.Addr(), 5349)

// measureStreams is measureRelay with clients that have a connection each: over TCP; over TLS 1.2 with the same cipher
// suite for all servers; and over TLS 1.3, without coturn where that does not speak it.
func measureStreams(ctx context.Context, l *lab, k kind, r recorder) error {
	k = onStreams(k)
	certificate, err := l.certificate()
	if err != nil {
		return err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(certificate)
	tls13 := &tls.Config{RootCAs: roots, ServerName: serverName, MinVersion: tls.VersionTLS13, DynamicRecordSizingDisabled: true}
	tls12 := tls13.Clone()
	tls12.MinVersion, tls12.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	tls12.CipherSuites = []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256}
	for _, over := range []struct {
		name   string
		to     netip.AddrPort
		config *tls.Config
	}{
		{"tcp", listenAddress, nil},
		{"tls 1.2", tlsAddress, tls12},
		{"tls 1.3", tlsAddress, tls13},
	} {
		connected := func(n *network) (*clients, error) {
			w, err := newConnections(n.client, flowCount, over.to, over.config)
			if err != nil {
				return nil, err
			}
			return newClientsOn(w), nil
		}
		err := l.withClients(ctx, k, connected, func(s *server, c *clients) error {
			g := &generator{lab: l, server: s, client: c.transport, over: over.name + " ", lostAfter: stalledAfter, quiet: stalledAfter}
			return g.measure(ctx, c, r)
		})
		switch {
		case err != nil && errors.Is(err, errHandshake) && k.name == coturnName && over.config == tls13:
			fmt.Fprintf(os.Stderr, "streams: %s is not measured over %s: %v\n", k.name, over.name, err)
		case err != nil:
			return fmt.Errorf("%s: %w", over.name, err)
		}
	}
	return nil
}

// onStreams is k with listeners for TCP and TLS beside that for UDP, and the lab's certificate.
func onStreams(k kind) kind {
	plain := k.command
	k.command = func(l *lab, dir string) *exec.Cmd {
		c := plain(l, dir)
		file := l.certificateFile()
		switch k.name {
		case turnstoneName:
			c.Args = append(c.Args, "--listen", "tcp://"+listenAddress.String(), "--listen", "tls://"+tlsAddress.String(), "--cert", file)
		case coturnName:
			c.Args = slices.DeleteFunc(c.Args, func(a string) bool { return a == "--no-tcp" || a == "--no-tls" })
			c.Args = append(c.Args, "--tls-listening-port", strconv.Itoa(int(tlsAddress.Port())), "--cert", file, "--pkey", file)
		case pionName:
			c.Args = append(c.Args, file)
		}
		return c
	}
	return k
}

// stalledAfter is long beside what the scheduler of a loaded machine keeps a stream waiting: on one, packets that
// are late are not lost.
const stalledAfter = 250 * time.Millisecond

// serverName is the name on the certificate of the servers.
const serverName = "turn.example.org"

func (l *lab) certificateFile() string { return filepath.Join(l.dir, "turn.pem") }

// certificate is that of the servers. It makes it the first time, with its key in the same file.
func (l *lab) certificate() ([]byte, error) {
	if b, err := os.ReadFile(l.certificateFile()); err == nil {
		return b, nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{serverName}, NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("make a certificate: %w", err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("make a key: %w", err)
	}
	b := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	return b, os.WriteFile(l.certificateFile(), b, 0o600)
}
