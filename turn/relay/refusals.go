package relay

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"unicode/utf8"

	"turnstone/turn"

	"github.com/pion/stun/v3"
)

// Bounds of one summary of refusals. A flood of one sort is one row of it; a flood that comes in many sorts, of names or
// peers that a client makes up, fills no more than its own part, so that it hides nothing of others.
const (
	maxProven     = 192 // sorts told apart of requests whose sender had proved who it is
	maxUnproven   = 64  // and of all others
	maxOfClient   = 16  // of either, that differ in username and peer alone
	maxClaimed    = 64  // bytes of a username that is kept
	claimedCutOff = "…"
)

// refusals sums up refusals after a valid nonce, for the log.
type refusals struct {
	mu     sync.Mutex // guards the fields below
	since  int64      // wall time of the last take
	sorts  [2]map[refusal]uint64
	spread map[spread]int
	others uint64
}

// refusal is one sort of them.
type refusal struct {
	spread
	username string
	peer     netip.Addr
}

// spread is what refusals that differ in username and peer have in common.
type spread struct {
	client   netip.Addr
	realm    string
	method   stun.Method
	code     int
	unproven bool
}

// add counts r, which was the answer to a request from client.
func (r *refusals) add(reply *turn.Reply, client netip.Addr) {
	r.mu.Lock()
	defer r.mu.Unlock()
	k := refusal{
		spread:   spread{client: client, realm: reply.Realm, method: reply.Method, code: reply.Code, unproven: reply.Unauthenticated},
		username: reply.Username, peer: reply.Peer,
	}
	which, most := 0, maxProven
	if k.unproven {
		which, most, k.username = 1, maxUnproven, claimed(k.username)
	}
	if r.sorts[which] == nil {
		r.sorts[which] = map[refusal]uint64{}
	}
	if r.spread == nil {
		r.spread = map[spread]int{}
	}
	counts := r.sorts[which]
	if _, known := counts[k]; !known && r.spread[k.spread] >= maxOfClient {
		k.username, k.peer = "", netip.Addr{}
	}
	if _, known := counts[k]; !known {
		if len(counts) >= most {
			r.others++
			return
		}
		r.spread[k.spread]++
	}
	counts[k]++
}

// claimed is as much of a username as is kept where nobody has proved to have it.
func claimed(name string) string {
	if len(name) <= maxClaimed {
		return name
	}
	cut := maxClaimed - len(claimedCutOff)
	for cut > 0 && !utf8.RuneStart(name[cut]) {
		cut--
	}
	return name[:cut] + claimedCutOff
}

// take yields the summary since the last, false where there is nothing to tell. It is at m.
func (r *refusals) take(m turn.Moment) (turn.AttemptsRefused, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	e := turn.AttemptsRefused{Since: r.since, Others: r.others}
	if e.Since == 0 || e.Since > m.Wall {
		e.Since = m.Wall - int64(refusalsEvery)
	}
	r.since = m.Wall
	for _, counts := range r.sorts {
		for k, n := range counts {
			e.Attempts = append(e.Attempts, turn.Attempt{
				Client: k.client, Username: k.username, Realm: k.realm, Method: uint16(k.method), Code: uint16(k.code), Peer: k.peer, Count: n,
			})
		}
	}
	r.sorts, r.spread, r.others = [2]map[refusal]uint64{}, nil, 0
	slices.SortFunc(e.Attempts, func(a, b turn.Attempt) int {
		return cmp.Or(cmp.Compare(b.Count, a.Count), a.Client.Compare(b.Client), strings.Compare(a.Username, b.Username), a.Peer.Compare(b.Peer))
	})
	return e, len(e.Attempts) > 0 || e.Others > 0
}
