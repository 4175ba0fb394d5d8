package config

import (
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"turnstone/cmd/turnstone/internal/users"
	"turnstone/turn"
)

// withUsers is a configuration with two realms and a file of users.
func withUsers(t *testing.T, list ...users.User) (Config, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	keepUsers(t, path, list...)
	c := loopback()
	c.Realm, c.Auth.Users, c.Auth.UsersFile = "example.org", []string{"alice:secret"}, path
	c.Auth.Realms, c.Auth.RealmUsers = []string{"north.example.org=https://north.example.org"}, []string{"north.example.org/nanuq:ice"}
	return c, path
}

func keepUsers(t *testing.T, path string, list ...users.User) {
	t.Helper()
	if err := users.Edit(t.Context(), path, func([]users.User) ([]users.User, error) { return list, nil }); err != nil {
		t.Fatal(err)
	}
}

func names(list []turn.User) (out []string) {
	for _, u := range list {
		out = append(out, u.Name)
	}
	return out
}

func TestUsersOfTheFile(t *testing.T) {
	dora := users.New("dora", "example.org", "secret")
	c, path := withUsers(t, dora, users.New("alice", "north.example.org", "x"), users.New("eve", "elsewhere.example.org", "x"))
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if got, want := names(r.Gate.Users), []string{"alice", "dora"}; !slices.Equal(got, want) {
		t.Errorf("got users %v, want %v", got, want)
	}
	if got, want := names(r.Gate.Realms[0].Users), []string{"nanuq", "alice"}; !slices.Equal(got, want) {
		t.Errorf("got users %v of the other realm, want %v", got, want)
	}
	if want := (turn.User{Name: "dora", Key: dora.MD5, KeySHA256: dora.SHA256}); !reflect.DeepEqual(r.Gate.Users[1], want) {
		t.Errorf("got %+v, want %+v", r.Gate.Users[1], want)
	}
	if r.CountUsers() != 4 || r.UsersElsewhere != 1 {
		t.Errorf("got %d users and %d elsewhere, want 4 and 1", r.CountUsers(), r.UsersElsewhere)
	}

	before := r
	keepUsers(t, path, users.New("dora", "example.org", "other"), users.New("alice", "north.example.org", "x"))
	if err := r.ReadUsers(); err != nil {
		t.Fatal(err)
	}
	if r.Digest != before.Digest || reflect.DeepEqual(r.Gate.Users[1].Key, dora.MD5) || r.UsersIdentity == before.UsersIdentity {
		t.Errorf("another password: the digest changed: %v, the key: %v, the identity: %v; want no, yes, yes",
			r.Digest != before.Digest, !reflect.DeepEqual(r.Gate.Users[1].Key, dora.MD5), r.UsersIdentity != before.UsersIdentity)
	}
	keepUsers(t, path)
	if err := r.ReadUsers(); err != nil {
		t.Fatal(err)
	}
	if got := names(r.Gate.Users); !slices.Equal(got, []string{"alice"}) || r.Digest == before.Digest || r.CountUsers() != 2 {
		t.Errorf("without users: got %v and digest changed %v", got, r.Digest != before.Digest)
	}
	if got := names(before.Gate.Users); !slices.Equal(got, []string{"alice", "dora"}) {
		t.Errorf("the users in force before became %v", got)
	}
}

// TestWrongUsersChangeNothing holds that a file that is wrong leaves what was resolved as it was.
func TestWrongUsersChangeNothing(t *testing.T) {
	c, path := withUsers(t, users.New("dora", "example.org", "secret"))
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range []users.User{users.New("alice", "example.org", "x"), users.New("nanuq", "north.example.org", "x")} {
		keepUsers(t, path, u)
		before := r
		if err := r.ReadUsers(); err == nil || !strings.Contains(err.Error(), "is a user of the configuration too") {
			t.Errorf("%s twice: got %v", u.Name, err)
		}
		if !reflect.DeepEqual(r, before) {
			t.Errorf("%s twice: what was resolved changed", u.Name)
		}
		if _, err := c.Resolve(); err == nil || !strings.HasPrefix(err.Error(), "auth.users-file: ") {
			t.Errorf("%s twice: resolve: got %v", u.Name, err)
		}
	}
}

func TestUsersFileIsNoDemo(t *testing.T) {
	c, _ := withUsers(t)
	c.Auth.Users, c.Auth.Realms, c.Auth.RealmUsers = nil, nil, nil
	if r, err := c.Resolve(); err != nil || r.Demo {
		t.Errorf("an empty file: got demo %v, %v, want none", r.Demo, err)
	}
	c.Auth.UsersFile, c.Auth.HTTPURL = "", "http://127.0.0.1:1/"
	if r, err := c.Resolve(); err != nil || r.Demo {
		t.Errorf("a hook: got demo %v, %v, want none", r.Demo, err)
	}
}
