package turn

import (
	"net/netip"
	"time"
)

// AnswerLifetime is how long a retransmitted request gets the answer of the first
// (RFC 8489 section 6.3.1: 40 seconds over UDP).
const AnswerLifetime = 40 * time.Second

// packedAddr is an AddrPort without a pointer: maps of millions of them cost the
// garbage collector nothing. The last byte is the family: 0 none, 4 or 6.
type packedAddr [19]byte

func pack(a netip.AddrPort) (p packedAddr) {
	if !a.IsValid() {
		return p
	}
	ip := a.Addr().As16()
	copy(p[:], ip[:])
	p[16], p[17] = byte(a.Port()>>8), byte(a.Port())
	p[18] = 6
	if a.Addr().Is4() {
		p[18] = 4
	}
	return p
}

func (p packedAddr) unpack() netip.AddrPort {
	if p[18] == 0 {
		return netip.AddrPort{}
	}
	ip := netip.AddrFrom16([16]byte(p[:16]))
	if p[18] == 4 {
		ip = ip.Unmap()
	}
	return netip.AddrPortFrom(ip, uint16(p[16])<<8|uint16(p[17]))
}

// transaction identifies a request: who sent it, to where, and its id.
type transaction struct {
	client, server packedAddr
	protocol       Protocol
	kind           Kind // of the event that answered it: a method of its own each
	tx             TransactionID
}

// answer is what a transaction was told, and until when it is remembered.
type answer struct {
	until      Deadline
	allocation AllocationID
	lifetime   uint32
	addresses  [2]packedAddr    // Allocate only, likewise below: relayed, or those of other servers
	token      ReservationToken // zero for none
	lacks      lack
	ticket     uint32 // number of the mobility ticket, 0 for none; of a Refresh too
}

// list is the addresses that were given.
func (a *answer) list() []netip.AddrPort {
	var out []netip.AddrPort
	for _, p := range a.addresses {
		if one := p.unpack(); one.IsValid() {
			out = append(out, one)
		}
	}
	return out
}

// maxAnswers bounds what a flood of requests can have remembered. It is more than a
// server answers in 40 seconds; beyond it the oldest is forgotten.
const maxAnswers = 1 << 21

// answers remembers the successes of the last 40 seconds of record time. They
// outlive their allocation.
type answers struct {
	of    map[transaction]answer
	queue []transaction // in the order they were answered
	head  int           // queue[:head] is forgotten
}

func newAnswers() answers { return answers{of: map[transaction]answer{}} }

func transactionOf(t FiveTuple, k Kind, tx TransactionID) transaction {
	return transaction{client: pack(t.Client), server: pack(t.Server), protocol: t.Protocol, kind: k, tx: tx}
}

// remember keeps a for 40 seconds from m. Events of one request share a transaction.
func (w *answers) remember(t transaction, a answer, m Moment) {
	a.until = m.After(AnswerLifetime)
	if _, known := w.of[t]; !known {
		w.queue = append(w.queue, t)
		if len(w.live()) > maxAnswers {
			w.forget()
		}
	}
	w.of[t] = a
}

// amend changes what is remembered of t, if anything is.
func (w *answers) amend(t transaction, change func(*answer)) {
	if a, known := w.of[t]; known {
		change(&a)
		w.of[t] = a
	}
}

// recall is what t was told, false where that is over at m or never was.
func (w *answers) recall(t transaction, m Moment) (answer, bool) {
	a, ok := w.of[t]
	return a, ok && !a.until.Passed(m)
}

// prune forgets what is over at m.
func (w *answers) prune(m Moment) {
	for w.head < len(w.queue) && w.of[w.queue[w.head]].until.Passed(m) {
		w.forget()
	}
	if w.head > 1024 && w.head > len(w.queue)/2 {
		w.queue = append([]transaction(nil), w.queue[w.head:]...)
		w.head = 0
	}
}

// forget forgets the oldest.
func (w *answers) forget() {
	delete(w.of, w.queue[w.head])
	w.head++
}

// live is the queue without what is forgotten.
func (w *answers) live() []transaction { return w.queue[w.head:] }
