package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"turnstone/cmd/turnstone/internal/users"
)

// PreparedRealm is the realm as it goes into the keys of its users.
func (c *Config) PreparedRealm() (string, error) {
	var p problems
	only := Config{Realm: c.Realm, Auth: Auth{NonceLifetime: 1}}
	g := only.gate(&p)
	return g.Realm, errors.Join(p...)
}

// ReadUsers reads the file of users again, if there is one. After an error r is as it was.
func (r *Resolved) ReadUsers() error { return r.readUsers(users.Read) }

// readUsers puts the users of the file's realm beside those of the configuration.
func (r *Resolved) readUsers(read func(path string) ([]users.User, error)) error {
	if r.UsersFile == "" {
		return nil
	}
	identity := users.Identify(r.UsersFile) // before it is read: what changes then is read once more
	list, err := read(r.UsersFile)
	if err != nil {
		return err
	}
	static := map[string]bool{}
	for _, u := range r.static {
		static[u.Name] = true
	}
	all, digest := slices.Clone(r.static), sha256.New()
	digest.Write(r.digest[:])
	for _, u := range list {
		if u.Realm != r.Gate.Realm {
			continue
		}
		if static[u.Name] {
			return fmt.Errorf("%s: %q is one of auth.users too", r.UsersFile, u.Name)
		}
		all = append(all, u.Credential())
		fmt.Fprintf(digest, "user %q\n", u.Name)
	}
	r.Gate.Users, r.Digest, r.UsersIdentity = all, [32]byte(digest.Sum(nil)), identity
	return nil
}
