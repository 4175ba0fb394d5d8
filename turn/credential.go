package turn

import (
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // TURN REST: the password is an HMAC-SHA1
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/text/secure/precis"
)

// User is a static long-term credential: a password, or the keys that stand for
// it. Name and Password are prepared, see [OpaqueString].
type User struct {
	Name      string
	Password  string // not looked at where a key is given
	Key       []byte // MD5(name:realm:password), 16 bytes
	KeySHA256 []byte // SHA-256(name:realm:password), 32 bytes
}

// keys are those of a user, nil for one that is not known.
type keys struct{ md5, sha256 []byte }

func (k keys) of(a algorithm) []byte {
	if a == algorithmSHA256 {
		return k.sha256
	}
	return k.md5
}

// keysOf are the keys of u in a realm.
func keysOf(u User, realm string) keys {
	if u.Key != nil || u.KeySHA256 != nil {
		return keys{u.Key, u.KeySHA256}
	}
	return keys{algorithmMD5.key(u.Name, realm, u.Password), algorithmSHA256.key(u.Name, realm, u.Password)}
}

// OpaqueString prepares a username, a realm or a password as RFC 8489 wants them
// (the OpaqueString profile of RFC 8265). It fails for an empty string, for what is no
// UTF-8, and for characters that may not be in one, control characters among them.
func OpaqueString(s string) (string, error) {
	if !utf8.ValidString(s) {
		return "", errNoUTF8
	}
	return precis.OpaqueString.String(s)
}

var errNoUTF8 = errors.New("it is no UTF-8")

// userHash is what USERHASH says for a username (RFC 8489 section 14.4).
func userHash(username, realm string) [sha256.Size]byte {
	return sha256.Sum256([]byte(username + ":" + realm))
}

// bareName is a USERNAME without the quotes around it and the zeros behind it
// that some clients send (RFC 8489 section 9.2.2).
func bareName(name []byte) []byte {
	for len(name) > 0 && name[len(name)-1] == 0 {
		name = name[:len(name)-1]
	}
	if n := len(name); n >= 2 && name[0] == '"' && name[n-1] == '"' {
		name = name[1 : n-1]
	}
	return name
}

// Owner is whom the allocations of a username count for: the user of a
// time-limited credential ("expiry:user"), else the name itself.
func Owner(username string) string {
	if _, user, ok := timeLimited(username); ok && user != "" {
		return user
	}
	return username
}

// timeLimited splits the username of a TURN REST credential
// (draft-uberti-behave-turn-rest): "expiry" or "expiry:user", expiry in Unix seconds.
func timeLimited(username string) (expiry time.Time, user string, ok bool) {
	if username == "" || username[0] < '0' || username[0] > '9' {
		return time.Time{}, "", false // as nearly all are: no error is made for them
	}
	digits, user, _ := strings.Cut(username, ":")
	seconds, err := strconv.ParseUint(digits, 10, 40)
	if err != nil {
		return time.Time{}, "", false
	}
	return time.Unix(int64(seconds), 0), user, true
}

// TimeLimitedUsername is the username of a TURN REST credential; user may be empty.
func TimeLimitedUsername(user string, expiry time.Time) string {
	name := strconv.FormatInt(expiry.Unix(), 10)
	if user != "" {
		name += ":" + user
	}
	return name
}

// TimeLimitedPassword is the password of a TURN REST credential:
// base64(HMAC-SHA1(secret, username)).
func TimeLimitedPassword(secret []byte, username string) string {
	mac := hmac.New(sha1.New, secret)
	mac.Write([]byte(username))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}
