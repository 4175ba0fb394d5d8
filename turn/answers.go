package turn

import (
	"hash/maphash"
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
	list  []remembered           // in the order they were given, behind those that are forgotten
	head  int                    // list[:head] is forgotten
	first uint32                 // number of list[0]; numbers wrap around, there are never so many
	of    map[uint64]uint32      // number of each in list[head:], by hash
	clash map[transaction]uint32 // of those whose hash another has
	hash  func(transaction) uint64
}

// remembered is a transaction and what it was told.
type remembered struct {
	hash uint64
	transaction
	answer
}

func newAnswers() answers {
	seed := maphash.MakeSeed()
	return answers{
		of: map[uint64]uint32{}, clash: map[transaction]uint32{},
		hash: func(t transaction) uint64 { return maphash.Comparable(seed, t) },
	}
}

func transactionOf(t FiveTuple, k Kind, tx TransactionID) transaction {
	return transaction{client: pack(t.Client), server: pack(t.Server), protocol: t.Protocol, kind: k, tx: tx}
}

// remember keeps a for 40 seconds from m. Events of one request share a transaction.
func (w *answers) remember(t transaction, a answer, m Moment) {
	a.until = m.After(AnswerLifetime)
	w.put(t, a)
	if len(w.live()) > maxAnswers {
		w.forget()
	}
}

// put has t told a.
func (w *answers) put(t transaction, a answer) {
	h := w.hash(t)
	if given := w.find(t, h); given != nil {
		*given = a
		return
	}
	n := w.first + uint32(len(w.list))
	if _, taken := w.of[h]; taken {
		w.clash[t] = n
	} else {
		w.of[h] = n
	}
	w.list = append(w.list, remembered{h, t, a})
}

// get is what t was told, for changing it; nil where that is not known. It holds until the next put.
func (w *answers) get(t transaction) *answer { return w.find(t, w.hash(t)) }

// find is get of a transaction whose hash is known.
func (w *answers) find(t transaction, hash uint64) *answer {
	if n, known := w.of[hash]; known && w.list[n-w.first].transaction == t {
		return &w.list[n-w.first].answer
	}
	if n, known := w.clash[t]; known {
		return &w.list[n-w.first].answer
	}
	return nil
}

// amend changes what is remembered of t, if anything is.
func (w *answers) amend(t transaction, change func(*answer)) {
	if given := w.get(t); given != nil {
		change(given)
	}
}

// recall is what t was told, false where that is over at m or never was.
func (w *answers) recall(t transaction, m Moment) (answer, bool) {
	given := w.get(t)
	if given == nil || given.until.Passed(m) {
		return answer{}, false
	}
	return *given, true
}

// prune forgets what is over at m.
func (w *answers) prune(m Moment) {
	for w.head < len(w.list) && w.list[w.head].until.Passed(m) {
		w.forget()
	}
	if w.head > 1024 && w.head > len(w.list)/2 {
		w.drop()
	}
}

// drop gives up the place of what is forgotten, and the memory of a flood.
func (w *answers) drop() {
	to, live := w.list[:0], w.live()
	if cap(w.list) > 8*len(live) {
		to = make([]remembered, 0, 2*len(live))
	}
	w.first += uint32(w.head)
	w.list, w.head = append(to, live...), 0
}

// forget forgets the oldest.
func (w *answers) forget() {
	oldest := &w.list[w.head]
	if n, known := w.of[oldest.hash]; known && n == w.first+uint32(w.head) {
		delete(w.of, oldest.hash)
	} else {
		delete(w.clash, oldest.transaction)
	}
	w.head++
}

// live is the list without what is forgotten.
func (w *answers) live() []remembered { return w.list[w.head:] }
