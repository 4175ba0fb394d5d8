package turn

import (
	"bytes"
	"crypto/sha256"
	"net/netip"

	"github.com/pion/stun/v3"
)

// RealmConfig is a realm besides the one of [GateConfig], with users of its own.
// It is for clients that come from one of its origins or by one of its listeners;
// a listener of a realm is for that realm alone.
type RealmConfig struct {
	Name      string // prepared, see [OpaqueString]
	Users     []User
	Origins   []string // values of ORIGIN, in lower case
	Listeners []Listen
}

// Listen is an address that is listened on.
type Listen struct {
	Protocol Protocol
	Address  netip.AddrPort
}

// realm is the part of a gate that is of one realm.
type realm struct {
	name  string
	users map[string]keys
	names map[[sha256.Size]byte]string // by USERHASH

	pseudonyms map[string]bool // of users

	dummy  keys // of nobody
	offer  offer
	cookie string
}

// newRealm makes a realm.
//
// SHA-256 is offered where everybody can use it: a client takes the first
// algorithm that it knows before anybody knows who it is. Anonymity is offered where the
// users are all known, for then clients must use it, and a time-limited username, one of a
// directory or the id of a key is in no table.
func newRealm(c *GateConfig, name string, users []User) *realm {
	r := &realm{name: name, users: map[string]keys{}, names: map[[sha256.Size]byte]string{}, pseudonyms: map[string]bool{}}
	for _, u := range users {
		k := keysOf(u, name)
		if k.sha256 == nil {
			r.offer = offerMD5
		}
		r.users[u.Name] = k
		r.names[userHash(u.Name, name)] = u.Name
		if c.Pseudonyms != nil {
			r.pseudonyms[c.Pseudonyms.Of(u.Name)] = true
		}
	}
	r.dummy = keysOf(User{Password: string(c.NonceKey[:])}, name)
	if c.Lookup != nil && !c.LookupSHA256 {
		r.offer = offerMD5
	}
	features := byte(featureAlgorithms)
	if len(c.Secrets) == 0 && len(c.TokenKeys) == 0 && c.Lookup == nil {
		features |= featureAnonymity
	}
	r.cookie = cookie(features)
	return r
}

// realms are those of a gate.
type realms struct {
	main       *realm
	byName     map[string]*realm // nil where there is but one
	byOrigin   map[string]*realm
	byListener map[Listen]*realm
}

func newRealms(c *GateConfig) realms {
	all := realms{main: newRealm(c, c.Realm, c.Users)}
	if len(c.Realms) == 0 {
		return all
	}
	all.byName, all.byOrigin, all.byListener = map[string]*realm{c.Realm: all.main}, map[string]*realm{}, map[Listen]*realm{}
	for _, one := range c.Realms {
		r := newRealm(c, one.Name, one.Users)
		all.byName[r.name] = r
		for _, o := range one.Origins {
			all.byOrigin[o] = r
		}
		for _, l := range one.Listeners {
			all.byListener[l] = r
		}
	}
	return all
}

// of is the realm of a request along t whose attributes are list: that of the
// listener, else the one that the client names, else that of where it says it comes from. A name
// that is none of ours is as good as none.
func (all *realms) of(t FiveTuple, list stun.Attributes) *realm {
	if all.byName == nil {
		return all.main
	}
	if r := all.byListener[Listen{t.Protocol, t.Server}]; r != nil {
		return r
	}
	if name, ok := list.Get(stun.AttrRealm); ok {
		if r := all.byName[string(name.Value)]; r != nil {
			return r
		}
	}
	for i := range list {
		if list[i].Type == stun.AttrOrigin && len(list[i].Value) <= maxOrigin {
			if r := all.byOrigin[string(bytes.ToLower(list[i].Value))]; r != nil {
				return r
			}
		}
	}
	return all.main
}

// maxOrigin bounds ORIGIN in bytes (draft-ietf-tram-stun-origin).
const maxOrigin = 267

// named is the realm of that name, the main one where there is none: so a realm
// that is called anew keeps its allocations.
func (all *realms) named(name string) *realm {
	if r := all.byName[name]; r != nil {
		return r
	}
	return all.main
}
