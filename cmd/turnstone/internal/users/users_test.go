package users

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"pgregory.net/rapid"
)

func keep(list []User) func([]User) ([]User, error) {
	return func([]User) ([]User, error) { return list, nil }
}

func writeFile(t *testing.T, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "users")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestKeys holds the keys to those of RFC 8489: MD5 as in its section 9.2.2, of a user that coturn's documentation has.
func TestKeys(t *testing.T) {
	u := New("ninefingers", "north.gov", "youhavetoberealistic")
	if got, want := hex.EncodeToString(u.MD5), "bc807ee29df3c9ffa736523fb2c4e8ee"; got != want {
		t.Errorf("MD5 key: got %s, want %s", got, want)
	}
	if len(u.SHA256) != 32 {
		t.Errorf("SHA-256 key: got %d bytes, want 32", len(u.SHA256))
	}
}

func TestEditIsReadBack(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		dir, err := os.MkdirTemp("", "users")
		if err != nil {
			rt.Fatal(err)
		}
		defer os.RemoveAll(dir)
		path := filepath.Join(dir, "users")
		var want []User
		name := rapid.StringMatching(`[a-c"'\\ é]{1,3}`)
		for range rapid.IntRange(1, 6).Draw(rt, "edits") {
			n, realm := name.Draw(rt, "name"), name.Draw(rt, "realm")
			add := rapid.Bool().Draw(rt, "add")
			err := Edit(context.Background(), path, func(list []User) ([]User, error) {
				if !reflect.DeepEqual(list, want) && len(list)+len(want) > 0 {
					rt.Errorf("got %v, want %v", list, want)
				}
				if add {
					want, _ = Put(want, New(n, realm, "secret"))
				} else {
					want, _ = Without(want, n, realm)
				}
				return want, nil
			})
			if err != nil {
				rt.Fatal(err)
			}
			got, err := Read(path)
			if err != nil {
				rt.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) && len(got)+len(want) > 0 {
				rt.Errorf("got %v, want %v", got, want)
			}
		}
		text, err := os.ReadFile(path)
		if err != nil {
			rt.Fatal(err)
		}
		if strings.Contains(string(text), "secret") {
			rt.Errorf("the file holds the password:\n%s", text)
		}
	})
}

func TestPutReplacesTheOneOfTheRealm(t *testing.T) {
	list, there := Put(nil, New("alice", "a", "1"))
	list, _ = Put(list, New("alice", "b", "1"))
	if there || len(list) != 2 {
		t.Fatalf("got %v", list)
	}
	changed, there := Put(list, New("alice", "b", "2"))
	if !there || len(changed) != 2 || slices.Equal(changed[1].MD5, list[1].MD5) || !slices.Equal(changed[0].MD5, list[0].MD5) {
		t.Errorf("got %v, want only the second one changed", changed)
	}
	if left, there := Without(changed, "alice", "c"); there || len(left) != 2 {
		t.Errorf("without one who is not there: got %v, %v", left, there)
	}
}

func TestReadRefuses(t *testing.T) {
	const md5 = "00112233445566778899aabbccddeeff"
	const sha256 = md5 + md5
	good := fmt.Sprintf("[[user]]\nname = 'a'\nrealm = 'r'\nmd5 = '%s'\nsha256 = '%s'\n", md5, sha256)
	for _, row := range []struct {
		name, text string
		mode       os.FileMode
		want       string // empty for none
	}{
		{"Good", good, 0o600, ""},
		{"ReadOnly", good, 0o400, ""},
		{"NobodyInIt", "# none\n", 0o600, ""},
		{"Group", good, 0o640, "has mode 0640, and keys in it: want 0600"},
		{"World", good, 0o604, "has mode 0604"},
		{"CutToNothing", "", 0o600, "it is empty"},
		{"CutShort", good[:len(good)-2], 0o600, "line 5: "},
		{"CutInTheMiddle", strings.Split(good, "sha256")[0], 0o600, `user 1 ("a"): its field sha256 has not 64 hexadecimal digits`},
		{"UnknownField", good + "password = 'c4n4ry'\n", 0o600, `line 6: there is no field "user.password"`},
		{"UnknownTable", good + "[limits]\n", 0o600, `there is no field "limits"`},
		{"NoName", strings.Replace(good, "'a'", "''", 1), 0o600, "its name has not 1 to 508 bytes"},
		{"LongName", strings.Replace(good, "'a'", "'"+strings.Repeat("a", 509)+"'", 1), 0o600, "its name has not 1 to 508 bytes"},
		{"NameAsNobodySendsIt", strings.Replace(good, "'a'", "'e\u0301'", 1), 0o600, "its name or realm is not as requests have it"},
		{"ControlInName", strings.Replace(good, "'a'", `"a\t"`, 1), 0o600, "its name or realm is not as requests have it"},
		{"NoRealm", strings.Replace(good, "'r'", "''", 1), 0o600, "it has no realm"},
		{"ShortKey", strings.Replace(good, "md5 = '00", "md5 = '", 1), 0o600, "its field md5 has not 32 hexadecimal digits"},
		{"NoHex", strings.Replace(good, "md5 = '00", "md5 = 'zz", 1), 0o600, "its field md5 has not 32 hexadecimal digits"},
		{"WrongType", strings.Replace(good, "'a'", "5", 1), 0o600, "line 2: "},
		{"Twice", good + good, 0o600, `"a" of the realm "r" is there twice`},
	} {
		t.Run(row.name, func(t *testing.T) {
			list, err := Read(writeFile(t, row.text, row.mode))
			if row.want == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("got %v, want %q", err, row.want)
			}
			if err != nil && (strings.Contains(err.Error(), md5) || strings.Contains(err.Error(), "c4n4ry")) {
				t.Errorf("the error shows a secret: %v", err)
			}
			if list != nil {
				t.Errorf("got users beside the error")
			}
		})
	}
}

// TestWritersAtOnce holds that no edit is lost, and that whoever reads meanwhile sees a whole file.
func TestWritersAtOnce(t *testing.T) {
	const writers, each = 4, 10
	path := filepath.Join(t.TempDir(), "users")
	if err := Edit(t.Context(), path, keep(nil)); err != nil {
		t.Fatal(err)
	}
	stop := make(chan struct{})
	var wait, reader sync.WaitGroup
	reader.Go(func() {
		for before := 0; ; {
			list, err := Read(path)
			if err != nil || len(list) < before {
				t.Errorf("a reader saw %d users after %d: %v", len(list), before, err)
			}
			before = len(list)
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for w := range writers {
		wait.Go(func() {
			for i := range each {
				err := Edit(t.Context(), path, func(list []User) ([]User, error) {
					list, _ = Put(list, New(fmt.Sprintf("%d-%d", w, i), "r", "secret"))
					return list, nil
				})
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	wait.Wait()
	close(stop)
	reader.Wait()
	list, err := Read(path)
	if err != nil || len(list) != writers*each {
		t.Errorf("got %d users, %v, want %d", len(list), err, writers*each)
	}
}

func TestEditWaitsForTheLock(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	unlock, err := lock(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := Edit(ctx, path, keep(nil)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("while another has it: got %v, want %v", err, context.DeadlineExceeded)
	}
	unlock()
	if err := Edit(t.Context(), path, keep(nil)); err != nil {
		t.Errorf("after that: %v", err)
	}
}

// TestEditThatFails holds that the file stays as it was, and that nothing is left beside it.
func TestEditThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "users")
	if err := Edit(t.Context(), path, keep([]User{New("a", "r", "p")})); err != nil {
		t.Fatal(err)
	}
	before := Identify(path)
	wrong := errors.New("no")
	if err := Edit(t.Context(), path, func([]User) ([]User, error) { return nil, wrong }); !errors.Is(err, wrong) {
		t.Errorf("got %v, want %v", err, wrong)
	}
	if got := Identify(path); got != before {
		t.Errorf("the file is another one")
	}
	if err := os.WriteFile(path, []byte("broken"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Edit(t.Context(), path, keep(nil)); err == nil {
		t.Error("a broken file was replaced")
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) != 2 { // and the lock
		t.Errorf("got %v, %v, want the file and its lock", files, err)
	}
}

func TestIdentityChanges(t *testing.T) {
	path := writeFile(t, "# 1\n", 0o600)
	seen := map[Identity]string{{}: "none"}
	look := func(what string) {
		t.Helper()
		id := Identify(path)
		if other, old := seen[id]; old {
			t.Errorf("%s: the identity is that of %q", what, other)
		}
		seen[id] = what
	}
	look("first")
	if err := os.WriteFile(path, []byte("# 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	look("size")
	if err := os.Chtimes(path, time.Now(), time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	look("time")
	if err := Edit(t.Context(), path, keep(nil)); err != nil {
		t.Fatal(err)
	}
	look("replaced")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if got := Identify(path); got != (Identity{}) {
		t.Errorf("a file that is gone: got %v, want the zero identity", got)
	}
}

func FuzzParse(f *testing.F) {
	text, err := format([]User{New("alice", "r", "p"), New("bob", "r", "p")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(string(text))
	f.Add("[[user]]\nname = 'a'")
	f.Fuzz(func(t *testing.T, text string) {
		list, err := parse([]byte(text))
		if err != nil {
			return
		}
		again, err := format(list)
		if err != nil {
			t.Fatal(err)
		}
		back, err := parse(again)
		if err != nil || !reflect.DeepEqual(back, list) {
			t.Errorf("%q: got %v, %v, want %v", text, back, err, list)
		}
	})
}
