package turn

import (
	"fmt"

	"github.com/pion/stun/v3"
)

// Presence is what is known of a user in a directory.
type Presence uint8

// The presences.
const (
	Unasked Presence = iota // the directory has not been asked, or not lately
	Absent                  // it has no such user
	Present                 // its keys are known
	Dated                   // as Present, and a proof that does not hold is a reason to ask once more
)

// Lookup tells what is known of a user that [GateConfig] does not name: with Present and Dated the
// keys. It does not wait. It is called from any goroutine. With [GateConfig.HashNames] usernames are pseudonyms.
type Lookup func(realm, username string) (User, Presence)

// UnaskedError says that a request waits for a directory: it is to be admitted again
// once that has been asked for the user. Its source has returned a nonce.
type UnaskedError struct {
	Realm, Username string
	As              string // the username that [Lookup] knows the user by
}

func (e *UnaskedError) Error() string {
	return fmt.Sprintf("the directory has to be asked for %q", e.As)
}

// codeUnasked is what authenticate yields where there is an [UnaskedError].
const codeUnasked = -1

// Keyed is u with its keys in a realm and without its password.
func (u User) Keyed(realm string) User {
	k := keysOf(u, realm)
	return User{Name: u.Name, Key: k.md5, KeySHA256: k.sha256}
}

// find yields the keys of a user of r. Whoever has a time-limited username is not looked up
// where there are secrets: they prove it. Nor is the id of a key of access tokens.
func (g *Gate) find(r *realm, username string) (keys, Presence) {
	if k, static := r.users[username]; static {
		return k, Present
	}
	if !g.looksUp(username) {
		return keys{}, Absent
	}
	u, presence := g.Lookup(r.name, g.lookedUp(username))
	return keys{u.Key, u.KeySHA256}, presence
}

func (g *Gate) looksUp(username string) bool {
	if g.Lookup == nil || username == "" || len(username) > MaxUsername || g.tokens.keys[username] != nil {
		return false
	}
	_, _, limited := timeLimited(username)
	return !limited || len(g.Secrets) == 0
}

// Unavailable is the answer to a request that was to wait for a directory, and
// cannot be: nil where frame deserves none.
func (g *Gate) Unavailable(t FiveTuple, frame []byte) *Reply {
	msg := messages.Get().(*stun.Message)
	defer messages.Put(msg)
	if !decodeRequest(msg, frame) {
		return nil
	}
	r := g.begin(t, msg).reply(CodeServerError)
	r.Unauthenticated = true
	return r
}
