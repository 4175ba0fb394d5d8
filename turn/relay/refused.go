package relay

import (
	"net/netip"
	"sync"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// refused remembers refusals for as long as a request may be repeated, so that
// a retransmission gets the first answer even if a second decision would be
// another. Refusals make no events, so a restart forgets them.
type refused struct {
	answers map[transaction][]byte
	queue   []refusedAt
}

type transaction struct {
	fiveTuple turn.FiveTuple
	method    stun.Method
	tx        turn.TransactionID
}

type refusedAt struct {
	transaction
	until turn.Deadline
}

// maxRefused bounds the memory; beyond it the oldest are forgotten.
const maxRefused = 1 << 15

func (r *refused) remember(q request, answer []byte, m turn.Moment) {
	if r.answers == nil {
		r.answers = map[transaction][]byte{}
	}
	t := q.transaction()
	r.answers[t] = append([]byte(nil), answer...)
	r.queue = append(r.queue, refusedAt{t, m.After(turn.AnswerLifetime)})
	if len(r.queue) > maxRefused {
		r.forget(1)
	}
}

func (r *refused) forget(n int) {
	for _, old := range r.queue[:n] {
		delete(r.answers, old.transaction)
	}
	r.queue = r.queue[n:]
}

// again puts the first answer to q into b, if there was one.
func (r *refused) again(b *batch, q request, m turn.Moment) bool {
	over := 0
	for over < len(r.queue) && r.queue[over].until.Passed(m) {
		over++
	}
	r.forget(over)
	answer, ok := r.answers[q.transaction()]
	if !ok {
		return false
	}
	from := len(b.bytes)
	b.bytes = append(b.bytes, answer...)
	b.replies = append(b.replies, q.outgoing(from, len(b.bytes)))
	return true
}

// refusals sums up refusals after a valid nonce, for the log.
type refusals struct {
	mu     sync.Mutex // guards the fields below
	counts map[refusal]uint64
	others uint64
}

type refusal struct {
	client   netip.Addr
	username string
	method   stun.Method
	code     int
}

// maxRefusals bounds the kinds told apart in one summary.
const maxRefusals = 256

func (r *refusals) add(reply *turn.Reply, client netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := refusal{client, reply.Username, reply.Method, reply.Code}
	if _, known := r.counts[k]; !known && len(r.counts) >= maxRefusals {
		r.others++
		return
	}
	if r.counts == nil {
		r.counts = map[refusal]uint64{}
	}
	r.counts[k]++
}

// take yields the summary since the last, false where there is nothing to tell.
func (r *refusals) take() (turn.RefusalsCounted, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.counts) == 0 && r.others == 0 {
		return turn.RefusalsCounted{}, false
	}
	e := turn.RefusalsCounted{Others: r.others}
	for k, n := range r.counts {
		e.Refusals = append(e.Refusals, turn.Refusal{
			Client: k.client, Username: k.username, Method: uint16(k.method), Code: uint16(k.code), Count: n,
		})
	}
	r.counts, r.others = nil, 0
	return e, true
}
