package relay

import (
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
