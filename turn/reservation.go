package turn

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"
)

// ReservationLifetime is how long a reserved port waits for the allocation that brings
// its token (RFC 8656 section 7.2).
const ReservationLifetime = 30 * time.Second

// Reservation keeps a relayed transport address for the allocation that brings its token, of the
// same user. It outlives the allocation that asked for it, and counts as one of its user's.
type Reservation struct {
	Relayed  netip.AddrPort   `cbor:"1,keyasint"`
	Token    ReservationToken `cbor:"2,keyasint"`
	Username string           `cbor:"3,keyasint"`
	Made     Moment           `cbor:"4,keyasint"`
	Deadline Deadline         `cbor:"5,keyasint"`
	Realm    string           `cbor:"6,keyasint"`
}

// reservations are those of a State.
type reservations struct {
	byToken   map[ReservationToken]*Reservation
	byRelayed map[netip.AddrPort]*Reservation
	list      []*Reservation // by end
}

func newReservations() reservations {
	return reservations{byToken: map[ReservationToken]*Reservation{}, byRelayed: map[netip.AddrPort]*Reservation{}}
}

func compareReservation(a, b *Reservation) int {
	return cmp.Or(cmp.Compare(a.Deadline.Uptime, b.Deadline.Uptime), a.Relayed.Compare(b.Relayed))
}

func (w *reservations) add(r *Reservation) {
	w.byToken[r.Token], w.byRelayed[r.Relayed] = r, r
	i, _ := slices.BinarySearchFunc(w.list, r, compareReservation)
	w.list = slices.Insert(w.list, i, r)
}

func (w *reservations) remove(r *Reservation) {
	delete(w.byToken, r.Token)
	delete(w.byRelayed, r.Relayed)
	if i, ok := slices.BinarySearchFunc(w.list, r, compareReservation); ok {
		w.list = slices.Delete(w.list, i, i+1)
	}
}

// rebase carries the deadlines over to another boot.
func (w *reservations) rebase(move func(*Deadline)) {
	for _, r := range w.list {
		move(&r.Deadline)
	}
	slices.SortFunc(w.list, compareReservation)
}

// over are those that are over at m, the earliest first.
func (w *reservations) over(m Moment) []*Reservation {
	n := 0
	for n < len(w.list) && w.list[n].Deadline.Passed(m) {
		n++
	}
	return w.list[:n]
}

// Reservations are the reservations, the one that ends first before the others.
func (s *State) Reservations() []*Reservation { return s.reservations.list }

// Reserved is the reservation of a relayed transport address, nil where there is none.
func (s *State) Reserved(a netip.AddrPort) *Reservation { return s.reservations.byRelayed[a] }

// reserve applies a ReservationMade, which follows the AllocationCreated it belongs to.
func (s *State) reserve(a *Allocation, e ReservationMade) error {
	switch {
	case e.Token == ReservationToken{}, s.reservations.byToken[e.Token] != nil:
		return fmt.Errorf("the token %v is none, or another's", e.Token)
	case s.byRelayed[e.Relayed] != nil, s.reservations.byRelayed[e.Relayed] != nil:
		return fmt.Errorf("%v is relayed or reserved already", e.Relayed)
	}
	s.hold(&Reservation{
		Relayed: e.Relayed, Token: e.Token, Username: a.Username, Realm: a.Realm, Made: s.moment,
		Deadline: s.moment.After(time.Duration(e.Lifetime) * time.Second),
	})
	s.answers.amend(transactionOf(a.FiveTuple, KindAllocationCreated, e.Tx), func(given *answer) { given.token = e.Token })
	return nil
}

// hold puts r into every index.
func (s *State) hold(r *Reservation) {
	s.reservations.add(r)
	s.usePort(r.Relayed)
	s.own(HolderOf(r.Realm, r.Username))
}

// release takes r out of every index.
func (s *State) release(r *Reservation) {
	s.reservations.remove(r)
	s.ports[r.Relayed.Addr()].remove(r.Relayed.Port())
	s.disown(HolderOf(r.Realm, r.Username))
}

// unreserve ends the reservation of an address.
func (s *State) unreserve(a netip.AddrPort) error {
	r := s.reservations.byRelayed[a]
	if r == nil {
		return fmt.Errorf("%v is not reserved", a)
	}
	s.release(r)
	return nil
}

// redeem is an Allocate that brings the token of a reservation (RFC 8656 section 7.2). Its
// five-tuple may be any; its user must be the one who has the token.
func redeem(s *State, r *Rules, q *Request, m Moment) Decision {
	held := s.reservations.byToken[q.token]
	if held == nil || held.Deadline.Passed(m) || !r.same(q, held.Realm, held.Username) {
		return q.refuse(CodeInsufficientCapacity)
	}
	if code := lacks(s, r, q, 0, m); code != 0 {
		return q.refuse(code)
	}
	return DecideBound(s, r, q, m, []netip.AddrPort{held.Relayed})
}

// newToken draws a token that no reservation has from entropy.
func (s *State) newToken(entropy [32]byte) ReservationToken {
	source := rand.NewChaCha8(stream(entropy, tokenStream)) // a CSPRNG seeded with crypto entropy
	for {
		var t ReservationToken
		binary.BigEndian.PutUint64(t[:], source.Uint64())
		if t != (ReservationToken{}) && s.reservations.byToken[t] == nil {
			return t
		}
	}
}

// Streams of one entropy that say nothing of each other. The first one's is the entropy itself.
const (
	tokenStream = 1
	otherStream = 2 // of the ports of the second family
)

func stream(entropy [32]byte, number byte) [32]byte {
	entropy[31] ^= number
	return entropy
}
