package doctor

import (
	"bytes"
	"crypto/rsa"
	"crypto/x509"
	"fmt"
	"time"

	"turnstone/cmd/turnstone/internal/certs"
)

// leastRSA is how many bits clients want of an RSA key.
const leastRSA = 2048

// certificates looks at each of files as clients do at now.
func certificates(files []certs.Files, now time.Time) (out []Certificate) {
	for _, f := range files {
		c := Certificate{File: f.Cert}
		loaded, err := certs.Load([]certs.Files{f})
		if err != nil {
			c.Err = err
		} else {
			c.read(loaded[0].Leaf, loaded[0].Certificate[1:], now)
		}
		out = append(out, c)
	}
	return out
}

// read fills in what leaf is, with the rest of its chain.
func (c *Certificate) read(leaf *x509.Certificate, rest [][]byte, now time.Time) {
	c.Begin, c.End, c.Names = leaf.NotBefore, leaf.NotAfter, leaf.DNSNames
	for _, ip := range leaf.IPAddresses {
		c.Names = append(c.Names, ip.String())
	}
	c.SelfSigned = bytes.Equal(leaf.RawIssuer, leaf.RawSubject)
	if k, isRSA := leaf.PublicKey.(*rsa.PublicKey); isRSA && k.N.BitLen() < leastRSA {
		c.Weak = fmt.Sprintf("an RSA key of %d bits", k.N.BitLen())
	}
	if s := leaf.SignatureAlgorithm; s == x509.SHA1WithRSA || s == x509.ECDSAWithSHA1 || s == x509.MD5WithRSA {
		c.Weak = "a signature of " + s.String()
	}
	others := x509.NewCertPool()
	for _, der := range rest {
		if one, err := x509.ParseCertificate(der); err == nil {
			others.AddCert(one)
		}
	}
	_, c.Verified = leaf.Verify(x509.VerifyOptions{Intermediates: others, CurrentTime: now})
}
