package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"

	"turnstone/cmd/turnstone/internal/users"
	"turnstone/turn"
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

// CountUsers counts the users of all realms.
func (r *Resolved) CountUsers() int {
	n := len(r.Gate.Users)
	for _, one := range r.Gate.Realms {
		n += len(one.Users)
	}
	return n
}

// readUsers puts the users of the file beside those of the configuration, each into its realm.
func (r *Resolved) readUsers(read func(path string) ([]users.User, error)) error {
	if r.UsersFile == "" {
		return nil
	}
	identity := users.Identify(r.UsersFile) // before it is read: what changes then is read once more
	list, err := read(r.UsersFile)
	if err != nil {
		return err
	}
	all, realms, digest := slices.Clone(r.static), slices.Clone(r.staticRealms), sha256.New()
	of := map[string]*[]turn.User{r.Gate.Realm: &all}
	for i := range realms {
		realms[i].Users = slices.Clone(realms[i].Users)
		of[realms[i].Name] = &realms[i].Users
	}
	taken := map[[2]string]bool{}
	for realm, given := range of {
		for _, u := range *given {
			taken[[2]string{realm, u.Name}] = true
		}
	}
	digest.Write(r.digest[:])
	elsewhere := 0
	for _, u := range list {
		into := of[u.Realm]
		if into == nil {
			elsewhere++
			continue
		}
		if taken[[2]string{u.Realm, u.Name}] {
			return fmt.Errorf("%s: %q is a user of the configuration too", r.UsersFile, u.Name)
		}
		*into = append(*into, u.Credential())
		fmt.Fprintf(digest, "user %q of %q\n", u.Name, u.Realm)
	}
	r.Gate.Users, r.Gate.Realms, r.UsersElsewhere = all, realms, elsewhere
	r.Digest, r.UsersIdentity = [32]byte(digest.Sum(nil)), identity
	return nil
}
