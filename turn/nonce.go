package turn

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"hash"
	"net/netip"
	"time"
)

const (
	nonceTime  = 6  // bytes of milliseconds since the Unix epoch
	nonceMAC   = 17 // bytes of HMAC-SHA256: all of them are a multiple of three, so base64 leaves no bit unused
	nonceBytes = 1 + nonceTime + nonceMAC
)

// nonceFor makes the nonce of a client in r: the nonce cookie, and behind it what is
// offered to the client, when the nonce was made, and a MAC over all of it and
// the client's address, so that the server keeps nothing and a restart
// changes nothing. It is valid on the wall clock.
func (g *Gate) nonceFor(r *realm, client netip.AddrPort, m Moment) string {
	var b [nonceBytes]byte
	binary.BigEndian.PutUint64(b[:], uint64(m.Wall/int64(time.Millisecond)))
	copy(b[1:], b[2:8]) // the milliseconds, without their two first bytes
	b[0] = byte(r.offer)
	g.nonceMAC(b[1+nonceTime:], r.cookie, b[:1+nonceTime], client)
	text := make([]byte, 0, 64)
	text = append(text, r.cookie...)
	return string(base64.RawURLEncoding.AppendEncode(text, b[:]))
}

// nonceValid says whether nonce was made for client within the nonce lifetime.
// One from the future is as stale as one from the past.
func (g *Gate) nonceValid(nonce []byte, client netip.AddrPort, m Moment) bool {
	b, ok := parseNonce(nonce)
	if !ok {
		return false
	}
	var want [nonceMAC]byte
	g.nonceMAC(want[:], string(nonce[:cookieLength]), b[:1+nonceTime], client)
	if !hmac.Equal(b[1+nonceTime:], want[:]) {
		return false
	}
	var ms [8]byte
	copy(ms[2:], b[1:1+nonceTime])
	age := m.Wall/int64(time.Millisecond) - int64(binary.BigEndian.Uint64(ms[:]))
	return max(age, -age) <= g.NonceLifetime.Milliseconds()
}

// parseNonce decodes what follows the nonce cookie, false for a nonce that has not the form of ours.
func parseNonce(nonce []byte) (b [nonceBytes]byte, ok bool) {
	if len(nonce) != cookieLength+base64.RawURLEncoding.EncodedLen(nonceBytes) {
		return b, false
	}
	_, err := base64.RawURLEncoding.Decode(b[:], nonce[cookieLength:])
	return b, err == nil && int(b[0]) < len(offers)
}

// offered is the list that went out with nonce; with one that is not ours, the list of today.
func (r *realm) offered(nonce []byte) offer {
	if b, ok := parseNonce(nonce); ok {
		return offer(b[0])
	}
	return r.offer
}

// nonceMAC fills dst with the front of the MAC.
func (g *Gate) nonceMAC(dst []byte, cookie string, what []byte, client netip.AddrPort) {
	packed := pack(netip.AddrPortFrom(client.Addr(), 0)) // whatever the port: a data connection has another (RFC 6062 section 4.2)
	var text [cookieLength + 1 + nonceTime + len(packed)]byte
	n := copy(text[:], cookie)
	n += copy(text[n:], what)
	copy(text[n:], packed[:])
	mac := g.macs.Get().(*nonceHash)
	mac.Reset()
	mac.Write(text[:])
	copy(dst, mac.Sum(mac.sum[:0]))
	g.macs.Put(mac)
}

// nonceHash is an HMAC with the nonce key, and room for what it yields. One that
// is used again has digested its key already.
type nonceHash struct {
	hash.Hash
	sum [sha256.Size]byte
}
