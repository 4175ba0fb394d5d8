// Package users keeps users in a file: the keys that stand for their passwords, never the passwords. The file is
// rewritten whole under a lock, so that whoever reads it sees the old or the new one.
package users

import (
	"cmp"
	"crypto/md5" //nolint:gosec // RFC 8489 section 9.2.2: the key of a long-term credential
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"

	"turnstone/turn"

	"github.com/pelletier/go-toml/v2"
)

// User is a user of one realm.
type User struct {
	Name   string
	Realm  string
	MD5    []byte // MD5(name:realm:password), 16 bytes
	SHA256 []byte // SHA-256(name:realm:password), 32 bytes
}

// New is a user with the keys that stand for a password. All three are prepared, see [turn.OpaqueString].
func New(name, realm, password string) User {
	text := []byte(name + ":" + realm + ":" + password)
	short, long := md5.Sum(text), sha256.Sum256(text) //nolint:gosec // see the import
	return User{Name: name, Realm: realm, MD5: short[:], SHA256: long[:]}
}

// Credential is u for a gate.
func (u User) Credential() turn.User { return turn.User{Name: u.Name, Key: u.MD5, KeySHA256: u.SHA256} }

// Put is list with u in it, instead of the one of its name and realm. It says whether there was one.
func Put(list []User, u User) ([]User, bool) {
	i, found := slices.BinarySearchFunc(list, u, order)
	if found {
		list = slices.Clone(list)
		list[i] = u
		return list, true
	}
	return slices.Insert(slices.Clone(list), i, u), false
}

// Without is list without the user of a name and realm. It says whether there was one.
func Without(list []User, name, realm string) ([]User, bool) {
	i, found := slices.BinarySearchFunc(list, User{Name: name, Realm: realm}, order)
	if !found {
		return list, false
	}
	return slices.Delete(slices.Clone(list), i, i+1), true
}

func order(a, b User) int {
	return cmp.Or(strings.Compare(a.Realm, b.Realm), strings.Compare(a.Name, b.Name))
}

// file is the form of the file.
type file struct {
	Users []entry `toml:"user"`
}

type entry struct {
	Name   string `toml:"name"`
	Realm  string `toml:"realm"`
	MD5    string `toml:"md5"`
	SHA256 string `toml:"sha256"`
}

const head = "# Users of turnstone: turnstone user add and remove change this file, and a running daemon reads it then.\n"

// errEmpty is what a file says that was cut short: one without users has a comment in it still.
var errEmpty = errors.New("it is empty: nobody wrote a list of users, not even of none")

// parse reads text. Its errors show no key.
func parse(text []byte) ([]User, error) {
	if len(text) == 0 {
		return nil, errEmpty
	}
	var f file
	if err := toml.NewDecoder(strings.NewReader(string(text))).DisallowUnknownFields().Decode(&f); err != nil {
		return nil, problem(err)
	}
	list := make([]User, 0, len(f.Users))
	for i, e := range f.Users {
		u, err := e.user()
		if err != nil {
			return nil, fmt.Errorf("user %d (%q): %w", i+1, e.Name, err)
		}
		list = append(list, u)
	}
	slices.SortFunc(list, order)
	for i := range max(len(list)-1, 0) {
		if order(list[i], list[i+1]) == 0 {
			return nil, fmt.Errorf("%q of the realm %q is there twice", list[i].Name, list[i].Realm)
		}
	}
	return list, nil
}

// problem says what is wrong with the text, and in what line.
func problem(err error) error {
	var strict *toml.StrictMissingError
	var decode *toml.DecodeError
	switch {
	case errors.As(err, &strict) && len(strict.Errors) > 0:
		e := &strict.Errors[0]
		row, _ := e.Position()
		return fmt.Errorf("line %d: there is no field %q", row, strings.Join(e.Key(), "."))
	case errors.As(err, &decode):
		row, _ := decode.Position()
		return fmt.Errorf("line %d: %s", row, strings.TrimPrefix(decode.Error(), "toml: "))
	}
	return errors.New("it is no TOML")
}

func (e entry) user() (User, error) {
	short, err1 := hex.DecodeString(e.MD5)
	long, err2 := hex.DecodeString(e.SHA256)
	name, err3 := turn.OpaqueString(e.Name)
	realm, err4 := turn.OpaqueString(e.Realm)
	switch {
	case e.Name == "" || len(e.Name) > turn.MaxUsername:
		return User{}, fmt.Errorf("its name has not 1 to %d bytes", turn.MaxUsername)
	case e.Realm == "":
		return User{}, errors.New("it has no realm")
	case err3 != nil || err4 != nil || name != e.Name || realm != e.Realm:
		return User{}, errors.New("its name or realm is not as requests have it (RFC 8265, OpaqueString): let turnstone user add write it")
	case err1 != nil || len(short) != md5.Size:
		return User{}, fmt.Errorf("its field md5 has not %d hexadecimal digits", 2*md5.Size)
	case err2 != nil || len(long) != sha256.Size:
		return User{}, fmt.Errorf("its field sha256 has not %d hexadecimal digits", 2*sha256.Size)
	}
	return User{Name: e.Name, Realm: e.Realm, MD5: short, SHA256: long}, nil
}

// format writes list, in an order of its own.
func format(list []User) ([]byte, error) {
	list = slices.Clone(list)
	slices.SortFunc(list, order)
	f := file{Users: make([]entry, len(list))}
	for i, u := range list {
		f.Users[i] = entry{u.Name, u.Realm, hex.EncodeToString(u.MD5), hex.EncodeToString(u.SHA256)}
	}
	b, err := toml.Marshal(f)
	if err != nil {
		return nil, fmt.Errorf("write users: %w", err)
	}
	if len(list) == 0 {
		b = nil
	}
	return append([]byte(head), b...), nil
}
