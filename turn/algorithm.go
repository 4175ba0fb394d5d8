package turn

import (
	"crypto/md5" //nolint:gosec // RFC 8489 section 9.2.2: the key of a long-term credential
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
)

// algorithm is how the key of a long-term credential is made of its password
// (RFC 8489 section 18.5).
type algorithm uint16

const (
	algorithmMD5    algorithm = 1
	algorithmSHA256 algorithm = 2
)

// key is the key of a long-term credential. Realm and password are prepared, see [OpaqueString].
func (a algorithm) key(username, realm, password string) []byte {
	text := []byte(username + ":" + realm + ":" + password)
	if a == algorithmSHA256 {
		sum := sha256.Sum256(text)
		return sum[:]
	}
	sum := md5.Sum(text) //nolint:gosec // see the import
	return sum[:]
}

// parseAlgorithm reads PASSWORD-ALGORITHM (RFC 8489 section 14.12), false for one
// that is malformed or not known. None that is known has parameters.
func parseAlgorithm(value []byte) (algorithm, bool) {
	if len(value) != 4 || value[2] != 0 || value[3] != 0 {
		return 0, false
	}
	a := algorithm(binary.BigEndian.Uint16(value))
	return a, a == algorithmMD5 || a == algorithmSHA256
}

// offer is a list of algorithms that goes with a nonce. Nonces carry its number,
// so that a reload that changes the list leaves those out there good.
type offer uint8

const (
	offerSHA256 offer = iota // and MD5, for those who do not know SHA-256
	offerMD5                 // alone: of some user nothing but the MD5 key is known
)

// offers are the values of PASSWORD-ALGORITHMS, the preferred algorithm first.
var offers = [...][]byte{
	offerSHA256: {0, byte(algorithmSHA256), 0, 0, 0, byte(algorithmMD5), 0, 0},
	offerMD5:    {0, byte(algorithmMD5), 0, 0},
}

// has says whether a is on the list.
func (o offer) has(a algorithm) bool { return a == algorithmMD5 || o == offerSHA256 }

// STUN Security Features (RFC 8489 section 18.1, with erratum 6290: bit 0 is the rightmost).
const (
	featureAlgorithms = 1 << 0 // PASSWORD-ALGORITHMS comes with the nonce
	featureAnonymity  = 1 << 1 // USERHASH is to be used
)

const (
	cookieText   = "obMatJos2"
	cookieLength = len(cookieText) + 4
)

// cookie is the nonce cookie for a set of features (RFC 8489 section 9.2).
func cookie(features byte) string {
	return cookieText + base64.StdEncoding.EncodeToString([]byte{0, 0, features})
}

// parseCookie reads the features from the front of a nonce, false where it has no nonce cookie.
func parseCookie(nonce []byte) (features uint32, ok bool) {
	if len(nonce) < cookieLength || string(nonce[:len(cookieText)]) != cookieText {
		return 0, false
	}
	var b [4]byte
	n, err := base64.StdEncoding.Decode(b[1:], nonce[len(cookieText):cookieLength])
	if err != nil || n != 3 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b[:]), true
}
