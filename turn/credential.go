package turn

import (
	"crypto/hmac"
	"crypto/md5"  //nolint:gosec // RFC 8489 section 9.2.2: the key of a long-term credential
	"crypto/sha1" //nolint:gosec // TURN REST: the password is an HMAC-SHA1
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// User is a static long-term credential: a password, or the key that stands for it.
type User struct {
	Name     string
	Password string
	Key      []byte // MD5(name:realm:password), 16 bytes; wins over Password
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
	digits, user, _ := strings.Cut(username, ":")
	seconds, err := strconv.ParseUint(digits, 10, 40)
	if err != nil || digits == "" {
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

// longTermKey is the key of a long-term credential (RFC 8489 section 9.2.2).
func longTermKey(username, realm, password string) []byte {
	sum := md5.Sum([]byte(username + ":" + realm + ":" + password)) //nolint:gosec // see the import
	return sum[:]
}
