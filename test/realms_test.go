package test

import (
	"fmt"
	"testing"

	"github.com/pion/stun/v3"
)

const (
	attrOrigin stun.AttrType = 0x802F
	origin                   = "https://north.example.org"
)

// TestRealms has clients of three realms: the first one, one that they name by their origin, and one of a listener.
func TestRealms(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	const staff = "127.0.0.1:3490"
	d := startDaemon(t, s, append(onLoopback, "--listen", "udp://"+staff,
		"--auth-realm", "north.example.org="+origin, "--auth-realm", "staff.example.org=udp://"+staff,
		"--realm-user", "north.example.org/alice:arctic", "--realm-user", "staff.example.org/dave:rota",
		"--max-allocations-per-user", "1")...)
	for i, row := range []struct {
		name, server, origin string
		realm, user, pass    string // of the challenge, and of who may in
	}{
		{"First", server4, "", realm, username, password},
		{"UnknownOrigin", server4, "https://elsewhere.example.org", realm, username, password},
		{"ByOrigin", server4, origin, "north.example.org", "alice", "arctic"},
		{"ByListener", staff, "", "staff.example.org", "dave", "rota"},
		{"ByListenerWhateverTheOrigin", staff, origin, "staff.example.org", "dave", "rota"},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newClient(t, s, fmt.Sprintf("127.0.0.1:%d", 20000+i), row.server)
			first := []stun.Setter{transport()}
			if row.origin != "" {
				first = append(first, stun.RawAttribute{Type: attrOrigin, Value: []byte(row.origin)})
			}
			challenge := c.wantRefusal(401, build(stun.MethodAllocate, first...))
			var told stun.Realm
			if err := told.GetFrom(challenge); err != nil || told.String() != row.realm {
				t.Fatalf("got REALM %q, %v, want %s", told, err, row.realm)
			}
			if err := c.nonce.GetFrom(challenge); err != nil {
				t.Fatal(err)
			}
			as := func(realm, user, pass string, method stun.Method, setters ...stun.Setter) *stun.Message {
				return build(method, append(setters, stun.NewUsername(user), stun.NewRealm(realm), c.nonce, stun.NewLongTermIntegrity(user, realm, pass))...)
			}
			c.wantRefusal(401, as(row.realm, "mallory", row.pass, stun.MethodAllocate, transport()))
			c.must(as(row.realm, row.user, row.pass, stun.MethodAllocate, transport()))
			if row.server == staff {
				c.wantRefusal(401, as(realm, username, password, stun.MethodRefresh))
			}
			other := newClient(t, s, fmt.Sprintf("127.0.0.1:%d", 21000+i), row.server)
			c.nonce, other.nonce = other.nonce, c.nonce
			other.wantRefusal(486, as(row.realm, row.user, row.pass, stun.MethodAllocate, transport())) // its quota is its own
			c.nonce = other.nonce
			c.must(as(row.realm, row.user, row.pass, stun.MethodRefresh, lifetime(0)))
		})
	}
	realms := map[string]int{}
	for _, e := range d.events() {
		if e.Kind == "AllocationCreated" {
			realms[fmt.Sprint(e.Event["realm"])]++
		}
	}
	if realms[realm] != 2 || realms["north.example.org"] != 1 || realms["staff.example.org"] != 2 {
		t.Errorf("got allocations by realm %v", realms)
	}
	d.stop()
	d.verify()
}
