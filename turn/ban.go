package turn

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Ban keeps a user of a realm from getting anything of the relay.
type Ban struct {
	Realm    string   `cbor:"1,keyasint"`
	Username string   `cbor:"2,keyasint"` // as in UserBanned
	Since    Moment   `cbor:"3,keyasint"`
	Deadline Deadline `cbor:"4,keyasint,omitzero"` // zero where it is Endless
}

// Endless says whether b holds until it is lifted.
func (b *Ban) Endless() bool { return b.Deadline == Deadline{} }

// Over says whether b holds no more at m, whatever the log says.
func (b *Ban) Over(m Moment) bool { return !b.Endless() && b.Deadline.Passed(m) }

// left is what remains of b at m, as UserBanned has it.
func (b *Ban) left(m Moment) uint32 {
	if b.Endless() {
		return 0
	}
	return uint32((b.Deadline.Uptime - m.Uptime + time.Second - 1) / time.Second)
}

func compareBan(a, b Ban) int {
	return cmp.Or(strings.Compare(a.Username, b.Username), strings.Compare(a.Realm, b.Realm))
}

// bans are those of a State.
type bans struct {
	list []Ban         // by user, then by realm
	next time.Duration // when the first of those that have an end is over
	some bool          // have one
}

// set has the bans be those of list.
func (w *bans) set(list []Ban) {
	*w = bans{list: list}
	for i := range list {
		if b := &list[i]; !b.Endless() && (!w.some || b.Deadline.Uptime < w.next) {
			w.next, w.some = b.Deadline.Uptime, true
		}
	}
}

// rebase carries the deadlines over to another boot.
func (w *bans) rebase(move func(*Deadline)) {
	for i := range w.list {
		if b := &w.list[i]; !b.Endless() {
			move(&b.Deadline)
		}
	}
	w.set(w.list)
}

// over are the events that end what is over at m, the earliest first.
func (w *bans) over(m Moment) (events []Event) {
	if !w.some || w.next > m.Uptime {
		return nil
	}
	var list []Ban
	for _, b := range w.list {
		if b.Over(m) {
			list = append(list, b)
		}
	}
	slices.SortStableFunc(list, func(a, b Ban) int { return cmp.Compare(a.Deadline.Uptime, b.Deadline.Uptime) })
	for _, b := range list {
		events = append(events, UserUnbanned{Realm: b.Realm, Username: b.Username})
	}
	return events
}

// hidden are the events by which bans from before users were called by pseudonyms go on at m.
func (w *bans) hidden(g *Gate, m Moment) (events []Event) {
	if !g.HashNames {
		return nil
	}
	for _, b := range w.list {
		if pseudonymous(b.Username) {
			continue
		}
		events = append(events, UserUnbanned{Realm: b.Realm, Username: b.Username})
		if !b.Over(m) {
			events = append(events, UserBanned{Realm: b.Realm, Username: g.Pseudonyms.Of(b.Username), Seconds: b.left(m)})
		}
	}
	return events
}

// Bans are the bans, by user, then by realm.
func (s *State) Bans() []Ban { return s.bans.list }

// Ban is the ban of a user, zero where there is none.
func (s *State) Ban(realm, username string) Ban {
	b := Ban{Realm: realm, Username: username}
	if i, there := slices.BinarySearchFunc(s.bans.list, b, compareBan); there {
		return s.bans.list[i]
	}
	return Ban{}
}

// bansOf are the bans of the user that username in realm is: by that name, by that of a time-limited one
// without its expiry, and by the pseudonyms of both.
func (s *State) bansOf(r *Rules, realm, username string) (found []Ban) {
	if len(s.bans.list) == 0 {
		return nil
	}
	names := []string{username}
	if owner := Owner(username); owner != username {
		names = append(names, owner)
	}
	if r.Pseudonyms != nil && !pseudonymous(username) {
		for _, name := range names {
			names = append(names, r.Pseudonyms.Of(name))
		}
	}
	for _, name := range names {
		i, _ := slices.BinarySearchFunc(s.bans.list, Ban{Username: name}, compareBan)
		for ; i < len(s.bans.list) && s.bans.list[i].Username == name; i++ {
			if b := s.bans.list[i]; b.Realm == realm || r.realm(b.Realm) == r.realm(realm) {
				found = append(found, b)
			}
		}
	}
	return found
}

// banned says whether the user that username in realm is may have nothing at m.
func (s *State) banned(r *Rules, realm, username string, m Moment) bool {
	return slices.ContainsFunc(s.bansOf(r, realm, username), func(b Ban) bool { return !b.Over(m) })
}

// Evict yields the end of at most limit of what users have who are banned at m.
func Evict(s *State, r *Rules, m Moment, limit int) (events []Event) {
	for a := range s.Allocations() {
		if len(events) < limit && s.banned(r, a.Realm, a.Username, m) {
			events = append(events, AllocationDeleted{Allocation: a.ID, Reason: ReasonBanned})
		}
	}
	for _, held := range s.reservations.list {
		if len(events) < limit && s.banned(r, held.Realm, held.Username, m) {
			events = append(events, ReservationRevoked{Relayed: held.Relayed, Reason: ReasonBanned})
		}
	}
	return events
}

// Unban yields the end of the bans of the user that username in realm is, nothing where there are none.
func Unban(s *State, r *Rules, realm, username string) (events []Event) {
	for _, b := range s.bansOf(r, realm, username) {
		events = append(events, UserUnbanned{Realm: b.Realm, Username: b.Username})
	}
	return events
}

// credentialsSince is before the expiry of any time-limited credential, in Unix seconds: 2001.
const credentialsSince = 1_000_000_000

// Means is the user whom an operator calls name, and the realm, the main one where it is empty, as a ban has them: without
// what can only be an expiry, and by a pseudonym where users are. Known says whether there is such a realm.
func (g *Gate) Means(realm, name string) (inRealm, username string, known bool) {
	if realm == "" {
		realm = g.Realm
	}
	_, known = g.realms.byName[realm]
	if expiry, user, ok := timeLimited(name); ok && user != "" && expiry.Unix() >= credentialsSince {
		name = user
	}
	if g.HashNames && !pseudonymous(name) {
		name = g.Pseudonyms.Of(name)
	}
	return realm, name, known || realm == g.Realm
}

// ban applies a UserBanned.
func (s *State) ban(e UserBanned) error {
	if e.Username == "" {
		return fmt.Errorf("a user of the realm %q without a name is banned", e.Realm)
	}
	b := Ban{Realm: e.Realm, Username: e.Username, Since: s.moment}
	if e.Seconds != 0 {
		b.Deadline = s.moment.After(time.Duration(e.Seconds) * time.Second)
	}
	i, there := slices.BinarySearchFunc(s.bans.list, b, compareBan)
	if there {
		s.bans.list[i] = b
	} else {
		s.bans.list = slices.Insert(s.bans.list, i, b)
	}
	s.bans.set(s.bans.list)
	return nil
}

// unban applies a UserUnbanned.
func (s *State) unban(e UserUnbanned) error {
	i, there := slices.BinarySearchFunc(s.bans.list, Ban{Realm: e.Realm, Username: e.Username}, compareBan)
	if !there {
		return fmt.Errorf("%q of the realm %q is not banned", e.Username, e.Realm)
	}
	s.bans.set(slices.Delete(s.bans.list, i, i+1))
	return nil
}
