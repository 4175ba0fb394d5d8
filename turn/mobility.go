package turn

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"iter"
)

// Tickets seals and opens the tickets of mobile clients (RFC 8016 section 3.3): which allocation one is for, and
// which of its tickets it is. A ticket says nothing to who has not the key, and is good for one log alone.
type Tickets struct {
	seals  cipher.AEAD
	nonces []byte // key of what nonces are drawn by: no two tickets are alike, so no two nonces are
}

const (
	ticketPlain = 8 + 4 // allocation, number
	ticketNonce = 12
	ticketSize  = ticketNonce + ticketPlain + 16
)

// NewTickets makes Tickets of a key.
func NewTickets(key [32]byte) *Tickets {
	derived := func(label string) []byte {
		mac := hmac.New(sha256.New, key[:])
		mac.Write([]byte(label))
		return mac.Sum(nil)
	}
	block, err := aes.NewCipher(derived("mobility ticket"))
	must(err) // 32 bytes are a key
	seals, err := cipher.NewGCM(block)
	must(err) // of a block cipher of 16 bytes
	return &Tickets{seals: seals, nonces: derived("mobility ticket nonce")}
}

// seal is ticket number n of the allocation id in a log.
func (t *Tickets) seal(log LogID, id AllocationID, n uint32) []byte {
	var plain [ticketPlain]byte
	binary.BigEndian.PutUint64(plain[:], uint64(id))
	binary.BigEndian.PutUint32(plain[8:], n)
	mac := hmac.New(sha256.New, t.nonces)
	mac.Write(log[:])
	mac.Write(plain[:])
	nonce := mac.Sum(nil)[:ticketNonce]
	return t.seals.Seal(nonce, nonce, plain[:], log[:])
}

// open is the opposite of seal, false for what is no ticket of this key and log.
func (t *Tickets) open(log LogID, ticket []byte) (id AllocationID, n uint32, ok bool) {
	if len(ticket) != ticketSize {
		return 0, 0, false
	}
	plain, err := t.seals.Open(nil, ticket[:ticketNonce], ticket[ticketNonce:], log[:])
	if err != nil {
		return 0, 0, false
	}
	return AllocationID(binary.BigEndian.Uint64(plain)), binary.BigEndian.Uint32(plain[8:]), true
}

// asksMobility says with what code the MOBILITY-TICKET of an Allocate is refused, 0 for none (RFC 8016 section 3.1.2).
// Connections of peers do not move.
func (q *Request) asksMobility(r *Rules) int {
	switch {
	case !q.hasTicket:
		return 0
	case len(q.ticket) > 0:
		return CodeBadRequest
	case r.Tickets == nil, q.transport == transportTCP:
		return CodeMobilityForbidden
	}
	return 0
}

// move is a Refresh with the ticket of an allocation that is to be had at another five-tuple from now on, where
// here is what is live there already (RFC 8016 section 3.2.2).
func move(s *State, r *Rules, q *Request, here *Allocation, m Moment) Decision {
	if r.Tickets == nil {
		return q.refuse(CodeMobilityForbidden)
	}
	id, n, ok := r.Tickets.open(s.log, q.ticket)
	if !ok {
		return q.refuse(CodeBadRequest)
	}
	a, over := s.live(s.allocations[id], m)
	switch {
	case a == nil:
		return q.refuse(CodeAllocationMismatch)
	case !a.admits(n, q.FiveTuple):
		return q.refuse(CodeBadRequest)
	case !r.same(q, a.Realm, a.Username):
		return q.refuse(CodeWrongCredentials)
	case here != nil && here.ID != id:
		return q.refuse(CodeAllocationMismatch)
	}
	d := refresh(r, q, a)
	if d.Reply.Code != 0 {
		return d
	}
	e := AllocationMoved{Allocation: id, Tx: q.Tx, FiveTuple: q.FiveTuple}
	if d.Events[0].Kind() != KindAllocationDeleted {
		e.Ticket = n + 1
		d.Reply.ticketed(s, r, id, e.Ticket)
	}
	if at := s.byFiveTuple[q.FiveTuple]; at != nil && at.ID == id {
		over = nil // they are those of here, which come first anyway
	}
	d.Events = append(append(over, e), d.Events...)
	return d
}

// ticketed adds ticket number n of an allocation, if it is one and tickets are not forbidden by now.
func (r *Reply) ticketed(s *State, rules *Rules, id AllocationID, n uint32) {
	if n != 0 && rules.Tickets != nil {
		r.ticket = rules.Tickets.seal(s.log, id, n)
	}
}

// admits says whether ticket number n lets the client of a come to t. The ticket before the last one does too
// until data has come from where that led to: the client may not have the last one.
func (a *Allocation) admits(n uint32, t FiveTuple) bool {
	switch {
	case t == a.FiveTuple && !a.Adrift:
		return false
	case n == a.Ticket:
		return t != a.Next
	}
	return n+1 == a.Ticket && a.Spare
}

// moving says whether the client of a has come to another five-tuple, and has not sent data from there.
func (a *Allocation) moving() bool { return a.Next != FiveTuple{} }

// FiveTuples are those that requests for a come from: none while it is adrift, two while it moves.
func (a *Allocation) FiveTuples() iter.Seq[FiveTuple] {
	return func(yield func(FiveTuple) bool) {
		if (a.Adrift || yield(a.FiveTuple)) && a.moving() {
			yield(a.Next)
		}
	}
}

// mobile says whether what a says of its tickets and five-tuples can be.
func (a *Allocation) mobile() bool {
	if a.Ticket == 0 {
		return !a.Adrift && !a.moving() && !a.Spare
	}
	return a.Next != a.FiveTuple && (!a.Adrift || !a.moving())
}

// Arrive yields what follows when the client of an allocation that moves has sent data from t, where it is
// moving to: the five-tuple it had is no longer its own (RFC 8016 section 3.2.2). Otherwise nothing follows.
func Arrive(s *State, t FiveTuple) []Event {
	a := s.byFiveTuple[t]
	if a == nil || a.Next != t {
		return nil
	}
	return []Event{FiveTupleLeft{Allocation: a.ID, FiveTuple: a.FiveTuple, Reason: ReasonMoved}}
}

// Leave yields what becomes of the allocation of t when nobody can send from there any more: that of a mobile
// client lives on, and waits for it elsewhere.
func Leave(s *State, t FiveTuple, why Reason) []Event {
	switch a := s.byFiveTuple[t]; {
	case a == nil:
		return nil
	case a.Ticket == 0:
		return []Event{AllocationDeleted{Allocation: a.ID, Reason: why}}
	default:
		return []Event{FiveTupleLeft{Allocation: a.ID, FiveTuple: t, Reason: why}}
	}
}

// ticketed applies a TicketIssued.
func (s *State) ticketed(a *Allocation, e TicketIssued) error {
	if a.Ticket != 0 {
		return fmt.Errorf("allocation %d has tickets already", a.ID)
	}
	a.Ticket = 1
	s.answers.amend(transactionOf(a.FiveTuple, KindAllocationCreated, e.Tx), func(given *answer) { given.ticket = 1 })
	return nil
}

func (s *State) moved(a *Allocation, e AllocationMoved) error {
	switch other := s.byFiveTuple[e.FiveTuple]; {
	case a.Ticket == 0, e.Ticket != 0 && e.Ticket != a.Ticket+1 && (!a.Spare || e.Ticket != a.Ticket):
		return fmt.Errorf("allocation %d has ticket %d, and moves with %d", a.ID, a.Ticket, e.Ticket)
	case !e.FiveTuple.Client.IsValid(), other != nil && (other != a || e.FiveTuple != a.Next):
		return fmt.Errorf("allocation %d cannot move to %v", a.ID, e.FiveTuple)
	}
	if a.moving() {
		delete(s.byFiveTuple, a.Next)
	}
	s.byFiveTuple[e.FiveTuple] = a
	if a.Adrift {
		a.FiveTuple, a.Adrift = e.FiveTuple, false
	} else {
		a.Next = e.FiveTuple
	}
	if e.Ticket != 0 {
		a.Ticket, a.Spare = e.Ticket, true
	}
	// What the refresh grants follows, in the same record.
	s.answers.remember(transactionOf(e.FiveTuple, KindAllocationRefreshed, e.Tx), answer{allocation: a.ID, ticket: e.Ticket}, s.moment)
	return nil
}

func (s *State) left(a *Allocation, e FiveTupleLeft) error {
	switch {
	case a.moving() && e.FiveTuple == a.Next:
		a.Next = FiveTuple{}
	case a.Ticket == 0, a.Adrift, e.FiveTuple != a.FiveTuple:
		return fmt.Errorf("allocation %d is not to be had at %v, or nowhere else", a.ID, e.FiveTuple)
	case a.moving():
		a.FiveTuple, a.Next = a.Next, FiveTuple{}
	default:
		a.Adrift = true
	}
	delete(s.byFiveTuple, e.FiveTuple)
	a.Spare = a.Spare && e.Reason != ReasonMoved
	return nil
}
