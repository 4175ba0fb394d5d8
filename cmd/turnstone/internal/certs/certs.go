// Package certs holds the certificates of TLS and DTLS listeners, and reads them again when their files change.
package certs

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// Files are where a certificate chain and its private key are, both PEM.
type Files struct{ Cert, Key string }

// soon is how long before it ends a certificate is worth a warning: an ACME client should have renewed it by then.
const soon = 14 * 24 * time.Hour

// Load reads certificates, and fails if one of them cannot be used.
func Load(files []Files) ([]*tls.Certificate, error) {
	var out []*tls.Certificate
	for _, f := range files {
		c, err := tls.LoadX509KeyPair(f.Cert, f.Key)
		if err != nil {
			return nil, fmt.Errorf("certificate %s with key %s: %w", f.Cert, f.Key, err)
		}
		out = append(out, &c)
	}
	return out, nil
}

// Store is the certificates in force.
type Store struct {
	log zerolog.Logger
	all atomic.Pointer[[]*tls.Certificate]

	mu    sync.Mutex // guards the fields below
	files []Files
	seen  []stamp // of the files, in the order certificate, key
}

// stamp tells one state of a file from another.
type stamp struct {
	modified time.Time
	size     int64
	inode    os.FileInfo
}

// NewStore is a store of nothing.
func NewStore(log zerolog.Logger) *Store {
	s := &Store{log: log}
	s.all.Store(&[]*tls.Certificate{})
	return s
}

// Use puts the certificates in files in force. After an error those before are.
func (s *Store) Use(files []Files) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.use(files)
}

// Prepare reads the certificates in files. What it yields puts them in force, and yields what takes that back.
func (s *Store) Prepare(files []Files) (apply func() (undo func()), err error) {
	p, err := read(files)
	if err != nil {
		return nil, err
	}
	return func() func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		before := loaded{s.files, s.seen, *s.all.Load()}
		s.set(p)
		return func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.set(before)
		}
	}, nil
}

// loaded are certificates and the state of the files they are from.
type loaded struct {
	files []Files
	seen  []stamp
	list  []*tls.Certificate
}

func read(files []Files) (p loaded, err error) {
	p.files, p.seen = slices.Clone(files), stamps(files) // before they are read: a change meanwhile is seen later
	p.list, err = Load(files)
	return p, err
}

func (s *Store) use(files []Files) error {
	p, err := read(files)
	if err == nil {
		s.set(p)
	}
	return err
}

func (s *Store) set(p loaded) {
	s.files, s.seen = p.files, p.seen
	s.all.Store(&p.list)
	for _, c := range p.list {
		if left := time.Until(c.Leaf.NotAfter); left < soon {
			s.log.Warn().Str("subject", c.Leaf.Subject.String()).Time("expires", c.Leaf.NotAfter).
				Msg("a certificate ends soon: clients that check it will not connect then")
		}
	}
}

func stamps(files []Files) []stamp {
	var out []stamp
	for _, f := range files {
		for _, name := range []string{f.Cert, f.Key} {
			info, err := os.Stat(name)
			if err != nil {
				out = append(out, stamp{})
				continue
			}
			out = append(out, stamp{info.ModTime(), info.Size(), info})
		}
	}
	return out
}

func (a stamp) same(b stamp) bool {
	return a.modified.Equal(b.modified) && a.size == b.size && os.SameFile(a.inode, b.inode)
}

// Watch reads the files again when they change, until ctx ends. What cannot be used is logged, and the
// certificates before stay in force until it can.
func (s *Store) Watch(ctx context.Context, every time.Duration) error {
	tick := time.NewTicker(every)
	defer tick.Stop()
	failed := ""
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		changed, err := s.refresh()
		switch {
		case err == nil:
			if changed {
				s.log.Info().Msg("certificates read again")
			}
			failed = ""
		case err.Error() != failed: // a file that is being written is read half once
			failed = err.Error()
			s.log.Error().Err(err).Msg("a certificate has changed and cannot be used: the one before stays in force")
		}
	}
}

// refresh reads the files again if they have changed.
func (s *Store) refresh() (changed bool, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.EqualFunc(stamps(s.files), s.seen, stamp.same) {
		return false, nil
	}
	return true, s.use(s.files)
}

// Expires is when the first of the certificates ends, zero where there are none.
func (s *Store) Expires() (first time.Time) {
	for _, c := range *s.all.Load() {
		if first.IsZero() || c.Leaf.NotAfter.Before(first) {
			first = c.Leaf.NotAfter
		}
	}
	return first
}

var errNone = errors.New("there is no certificate")

// Get is the certificate for a client: of those for the name it asks for the first it supports, else
// of all. A client that says nothing of what it supports gets what fits its name.
func (s *Store) Get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	all := *s.all.Load()
	if len(all) == 0 {
		return nil, errNone
	}
	named := func(c *tls.Certificate) bool {
		return hello.ServerName != "" && c.Leaf.VerifyHostname(hello.ServerName) == nil
	}
	supported := func(c *tls.Certificate) bool {
		return len(hello.SupportedVersions) == 0 || hello.SupportsCertificate(c) == nil
	}
	for _, fits := range []func(*tls.Certificate) bool{
		func(c *tls.Certificate) bool { return named(c) && supported(c) }, named, supported,
	} {
		if i := slices.IndexFunc(all, fits); i >= 0 {
			return all[i], nil
		}
	}
	return all[0], nil
}

// Config is the TLS configuration of a server with these certificates. It names the protocols of RFC 7443.
func (s *Store) Config() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS12, GetCertificate: s.Get, NextProtos: []string{"stun.turn", "stun.nat-discovery"},
	}
}
