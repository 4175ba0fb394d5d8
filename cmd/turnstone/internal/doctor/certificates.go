package doctor

import (
	"crypto/x509"
	"errors"
	"strings"
	"time"
)

// renewal is how long before its end a certificate should have been renewed: an ACME client does that a month before.
const renewal = 30 * 24 * time.Hour

// checkCertificates is about what clients over TLS and DTLS are shown.
func checkCertificates(f *Facts) (rows []Row) {
	for i := range f.Certificates {
		rows = append(rows, f.certificate(&f.Certificates[i]))
	}
	return rows
}

func (f *Facts) certificate(c *Certificate) Row {
	const check = "certificate"
	const again = ": the daemon reads the files again when they change"
	if c.Err != nil {
		return skip(check, c.Err)
	}
	day := func(t time.Time) string { return t.UTC().Format(time.DateOnly) }
	names := strings.Join(c.Names, ", ")
	var authority x509.UnknownAuthorityError
	switch left := c.End.Sub(f.Now); {
	case left <= 0:
		return ok(check, "%s ended on %s: clients do not take it", c.File, day(c.End)).as(Fail, "renew it"+again)
	case f.Now.Before(c.Begin):
		return ok(check, "%s is not good before %s", c.File, day(c.Begin)).as(Fail, "set the clock, or have it made anew"+again)
	case c.Weak != "":
		return ok(check, "%s has %s: clients do not take it", c.File, c.Weak).as(Fail, "have one made with an ECDSA key, or an RSA key of 2048 bits and SHA-256"+again)
	case names == "":
		return ok(check, "%s is for no name: clients do not take it", c.File).as(Fail, "have one made with the name of this server as its subjectAltName"+again)
	case left < renewal:
		return ok(check, "%s ends on %s, in %s", c.File, day(c.End), count(int(left/(24*time.Hour)), "day")).
			as(Warn, "renew it, and see why nothing has renewed it yet"+again)
	case c.SelfSigned:
		return ok(check, "%s for %s is signed by itself: clients that do not know it do not take it", c.File, names).
			as(Warn, "have it made by an authority that clients trust, such as Let's Encrypt"+again)
	case errors.As(c.Verified, &authority):
		return ok(check, "%s for %s does not lead to an authority that this host trusts", c.File, names).
			as(Warn, "put the whole chain into tls.cert, which ACME clients call fullchain.pem"+again)
	case c.Verified != nil:
		return ok(check, "%s for %s: %v", c.File, names, c.Verified).as(Warn, "have it made anew"+again)
	default:
		return ok(check, "%s for %s, until %s", c.File, names, day(c.End))
	}
}
