package turn

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"net/netip"
	"time"
)

const (
	nonceTime = 6  // bytes of milliseconds since the Unix epoch
	nonceMAC  = 15 // bytes of HMAC-SHA256
)

// nonceFor makes the nonce of a client: when it was made and a MAC that binds it
// to the client's address, so that the server keeps nothing and a restart
// changes nothing. It is valid on the wall clock.
func (g *Gate) nonceFor(client netip.AddrPort, m Moment) string {
	var b [nonceTime + nonceMAC]byte
	var ms [8]byte
	binary.BigEndian.PutUint64(ms[:], uint64(m.Wall/int64(time.Millisecond)))
	copy(b[:], ms[2:])
	copy(b[nonceTime:], g.nonceMAC(b[:nonceTime], client))
	return base64.RawURLEncoding.EncodeToString(b[:])
}

// nonceValid says whether nonce was made for client within the nonce lifetime.
// One from the future is as stale as one from the past.
func (g *Gate) nonceValid(nonce []byte, client netip.AddrPort, m Moment) bool {
	var b [nonceTime + nonceMAC]byte
	if len(nonce) != base64.RawURLEncoding.EncodedLen(len(b)) {
		return false
	}
	if _, err := base64.RawURLEncoding.Decode(b[:], nonce); err != nil {
		return false
	}
	if !hmac.Equal(b[nonceTime:], g.nonceMAC(b[:nonceTime], client)) {
		return false
	}
	var ms [8]byte
	copy(ms[2:], b[:nonceTime])
	age := m.Wall/int64(time.Millisecond) - int64(binary.BigEndian.Uint64(ms[:]))
	return max(age, -age) <= g.NonceLifetime.Milliseconds()
}

func (g *Gate) nonceMAC(when []byte, client netip.AddrPort) []byte {
	mac := hmac.New(sha256.New, g.NonceKey[:])
	packed := pack(client)
	mac.Write(when)
	mac.Write(packed[:])
	return mac.Sum(nil)[:nonceMAC]
}
