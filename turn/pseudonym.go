package turn

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base32"
	"hash"
	"strings"
	"sync"
)

// Pseudonyms names users so that only who has the key can tell of whom it is. A user has
// the same pseudonym always. It is safe for concurrent use.
type Pseudonyms struct{ macs sync.Pool }

// NewPseudonyms makes the Pseudonyms of a key.
func NewPseudonyms(key [32]byte) *Pseudonyms {
	p := &Pseudonyms{}
	p.macs.New = func() any { return hmac.New(sha256.New, key[:]) }
	return p
}

const (
	pseudonymMark  = "~"
	pseudonymBytes = 20 // of the HMAC-SHA-256
)

var pseudonymText = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// Of is the pseudonym of a name.
func (p *Pseudonyms) Of(name string) string {
	mac := p.macs.Get().(hash.Hash)
	defer p.macs.Put(mac)
	mac.Reset()
	mac.Write([]byte(name))
	var sum [sha256.Size]byte
	return pseudonymMark + pseudonymText.EncodeToString(mac.Sum(sum[:0])[:pseudonymBytes])
}

// OfLimited is how the username of a time-limited credential is written: with the pseudonym of its user, where it has one, behind
// its expiry. False is any other username.
func (p *Pseudonyms) OfLimited(username string) (string, bool) {
	_, user, limited := timeLimited(username)
	if !limited || user == "" {
		return username, limited
	}
	return username[:len(username)-len(user)] + p.Of(user), true
}

// pseudonymous says whether a username has been written by [Pseudonyms].
func pseudonymous(username string) bool { return strings.HasPrefix(Owner(username), pseudonymMark) }

// stands says whether pseudonym is how username is written.
func (p *Pseudonyms) stands(pseudonym, username string) bool {
	if p == nil || !pseudonymous(pseudonym) || pseudonymous(username) {
		return false
	}
	if limited, ok := p.OfLimited(username); ok && limited == pseudonym {
		return true
	}
	return p.Of(username) == pseudonym
}

// called is how the one who gave username is called from here on. Known is a user who is named somewhere, proved one
// who has proved a time-limited username: the rest may be anything that somebody typed.
func (g *Gate) called(username string, known, proved bool) string {
	if !g.HashNames || username == "" {
		return username
	}
	limited, ok := g.Pseudonyms.OfLimited(username)
	if !known && ok && len(g.Secrets) > 0 && (proved || limited != username) {
		return limited
	}
	return g.Pseudonyms.Of(username)
}

// named says whether the configuration names username: a user, or a key of access tokens.
func (g *Gate) named(r *realm, username string) bool {
	_, static := r.users[username]
	return static || g.tokens.keys[username] != nil
}

// lookedUp is what a directory's answers about a user are kept under.
func (g *Gate) lookedUp(username string) string {
	if g.HashNames && !pseudonymous(username) {
		return g.Pseudonyms.Of(username)
	}
	return username
}

// holds says whether the user that held stands for is known, as far as can be said without waiting.
func (g *Gate) holds(r *realm, held string) Presence {
	if _, static := r.users[held]; static || r.pseudonyms[held] || g.tokens.keys[held] != nil || g.tokens.pseudonyms[held] {
		return Present
	}
	if !g.looksUp(held) {
		return Absent
	}
	_, presence := g.Lookup(r.name, g.lookedUp(held))
	return presence
}
