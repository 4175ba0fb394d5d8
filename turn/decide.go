package turn

import (
	"bytes"
	"net/netip"

	"github.com/pion/stun/v3"
)

// Decision is what a request leads to: events to apply and an answer to send once
// they, and all before them, are durable. Ports is set where an Allocate needs ports first:
// then [DecideBound] decides, by what could be bound of each plan, one for each address family. Dial is set
// where a Connect needs a connection first: then [DecideDialled] decides.
type Decision struct {
	Events []Event
	Reply  *Reply
	Ports  []PortPlan
	Dial   *Dial
}

// Decide decides q at m by the state and the rules, and changes neither. What is over
// at m does not count, whether the log says so yet or not; where q takes its
// place, the events that end it come first.
func Decide(s *State, r *Rules, q *Request, m Moment) Decision {
	if s.banned(r, q.Realm, q.Username, m) && !q.gives() {
		return q.refuse(CodeForbidden)
	}
	a, over := s.live(s.byFiveTuple[q.FiveTuple], m)
	if a != nil && !r.same(q, a.Realm, a.Username) {
		if q.Method == stun.MethodAllocate {
			return q.refuse(CodeAllocationMismatch)
		}
		return q.refuse(CodeWrongCredentials)
	}
	switch q.Method { // of a stream, on which nothing is repeated
	case stun.MethodConnect:
		return connect(s, r, q, a, m)
	case stun.MethodConnectionBind:
		return connectionBind(s, r, q, a, m)
	}
	if d, again := recall(s, r, q, m); again {
		return d
	}
	var d Decision
	switch q.Method {
	case stun.MethodAllocate:
		return allocate(s, r, q, a, m)
	case stun.MethodRefresh:
		if q.hasTicket {
			d = move(s, r, q, a, m)
		} else {
			d = refresh(r, q, a)
		}
	case stun.MethodCreatePermission:
		d = createPermission(r, q, a)
	case stun.MethodChannelBind:
		d = channelBind(s, r, q, a, m)
	default:
		return q.refuse(CodeBadRequest)
	}
	if len(over) > 0 && len(d.Events) > 0 {
		d.Events = append(over, d.Events...)
	}
	return d
}

// gives says whether q asks for no more than an end.
func (q *Request) gives() bool {
	return q.Method == stun.MethodRefresh && q.hasLifetime && q.lifetime == 0
}

func (q *Request) refuse(code int) Decision { return Decision{Reply: q.reply(code)} }

// refusePeer is refuse because of peer.
func (q *Request) refusePeer(code int, peer netip.Addr) Decision {
	d := q.refuse(code)
	d.Reply.Peer = peer
	return d
}

// answered is the kind of event that answers a method with success. A Refresh
// to zero is remembered as a refresh too.
func answered(method stun.Method) Kind {
	switch method {
	case stun.MethodAllocate:
		return KindAllocationCreated
	case stun.MethodRefresh:
		return KindAllocationRefreshed
	case stun.MethodCreatePermission:
		return KindPermissionInstalled
	}
	return KindChannelBound
}

// recall answers a retransmission as the first request was answered.
func recall(s *State, r *Rules, q *Request, m Moment) (Decision, bool) {
	given, ok := s.answers.recall(transactionOf(q.FiveTuple, answered(q.Method), q.Tx), m)
	if !ok && q.Method == stun.MethodAllocate {
		if given, ok = s.answers.recall(transactionOf(q.FiveTuple, KindClientRedirected, q.Tx), m); ok {
			return Decision{Reply: q.redirected(r, given.list())}, true
		}
	}
	if !ok {
		return Decision{}, false
	}
	reply := q.reply(0)
	switch q.Method {
	case stun.MethodAllocate:
		reply.grant(r, q, given.list(), given.lifetime)
		reply.token, reply.lacks = given.token, given.lacks
		reply.ticketed(s, r, given.allocation, given.ticket)
	case stun.MethodRefresh:
		reply.lifetime, reply.hasLifetime = given.lifetime, true
		reply.ticketed(s, r, given.allocation, given.ticket)
	}
	return Decision{Reply: reply}, true
}

// grant fills in what a successful Allocate is told (RFC 8656 section 7.2).
func (r *Reply) grant(rules *Rules, q *Request, relayed []netip.AddrPort, lifetime uint32) {
	for _, a := range relayed {
		r.relayed = append(r.relayed, rules.Shown(a))
	}
	r.mapped = q.FiveTuple.Client
	r.lifetime, r.hasLifetime = lifetime, true
}

// refresh is RFC 8656 section 8.2.
func refresh(r *Rules, q *Request, a *Allocation) Decision {
	switch {
	case a == nil:
		return q.refuse(CodeAllocationMismatch)
	case q.malformed:
		return q.refuse(CodeBadRequest)
	}
	if _, has := a.relayedOf(q.family); q.hasFamily && !has {
		return q.refuse(CodePeerFamilyMismatch)
	}
	reply := q.reply(0)
	reply.hasLifetime = true
	ends := q.hasLifetime && q.lifetime == 0
	if !ends && r.Storage == RoomNone {
		return q.refuse(CodeServerError)
	}
	if !ends {
		reply.lifetime = r.lifetime(q)
	}
	events := []Event{refreshes(q, a, reply.lifetime)}
	if !ends && q.access != nil && !bytes.Equal(q.access, a.Token) {
		events = append(events, TokenAccepted{Allocation: a.ID, Tx: q.Tx, Token: q.access})
	}
	return Decision{Events: events, Reply: reply}
}

// refreshes is the event that gives a, or the one of its two relayed addresses that q
// names the family of, a lifetime in seconds.
func refreshes(q *Request, a *Allocation, lifetime uint32) Event {
	one, _ := a.relayedOf(q.family)
	switch {
	case q.hasFamily && len(a.Relayed) == 2 && lifetime == 0:
		return RelayedDeleted{Allocation: a.ID, Tx: q.Tx, Relayed: one, Reason: ReasonClient}
	case q.hasFamily && len(a.Relayed) == 2:
		return RelayedRefreshed{Allocation: a.ID, Tx: q.Tx, Relayed: one, Lifetime: lifetime}
	case lifetime == 0:
		return AllocationDeleted{Allocation: a.ID, Tx: q.Tx, Reason: ReasonClient}
	}
	return AllocationRefreshed{Allocation: a.ID, Tx: q.Tx, Lifetime: lifetime}
}

// relayedOf is the relayed address of a family as STUN numbers them, false where a has none.
func (a *Allocation) relayedOf(family uint8) (netip.AddrPort, bool) {
	for _, r := range a.Relayed {
		if familyOf(r.Addr()) == family {
			return r, true
		}
	}
	return netip.AddrPort{}, false
}

// createPermission is RFC 8656 section 10.2: all of its peers, or none.
func createPermission(r *Rules, q *Request, a *Allocation) Decision {
	switch {
	case a == nil:
		return q.refuse(CodeAllocationMismatch)
	case q.malformed, len(q.peers) == 0:
		return q.refuse(CodeBadRequest)
	}
	var events []Event
	asked := make(map[netip.Addr]bool, min(len(q.peers), r.MaxPermissions))
	fresh := 0
	for _, p := range q.peers {
		peer := r.Private(p).Addr()
		if asked[peer] {
			continue
		}
		if code := peerCode(r, a, peer); code != 0 {
			return q.refusePeer(code, peer)
		}
		asked[peer] = true
		if a.Permission(peer) == nil {
			fresh++
		}
		if len(asked) > r.MaxPermissions || (fresh > 0 && len(a.Permissions)+fresh > r.MaxPermissions) {
			return q.refuse(CodeInsufficientCapacity)
		}
		events = append(events, PermissionInstalled{Allocation: a.ID, Tx: q.Tx, Peer: peer})
	}
	if r.Storage == RoomNone {
		return q.refuse(CodeServerError)
	}
	return Decision{Events: events, Reply: q.reply(0)}
}

// peerCode says with what code a peer of a is refused, 0 for none.
func peerCode(r *Rules, a *Allocation, peer netip.Addr) int {
	if _, ok := a.RelayedFor(peer); !ok {
		return CodePeerFamilyMismatch
	}
	if !r.permits(peer) {
		return CodeForbidden
	}
	return 0
}

// channelBind is RFC 8656 section 12.2.
func channelBind(s *State, r *Rules, q *Request, a *Allocation, m Moment) Decision {
	switch {
	case a == nil:
		return q.refuse(CodeAllocationMismatch)
	case a.TCP():
		return q.refuse(CodeForbidden)
	case q.malformed, !q.hasChannel, len(q.peers) == 0,
		q.channel < ChannelFirst, q.channel > r.LastChannel, q.peers[0].Port() == 0:
		return q.refuse(CodeBadRequest)
	}
	peer := r.Private(q.peers[0])
	bound, to := a.Channel(q.channel), a.ChannelTo(peer)
	if (bound != nil && bound.Peer != peer) || (to != nil && to.Number != q.channel) {
		return q.refuse(CodeBadRequest)
	}
	if code := peerCode(r, a, peer.Addr()); code != 0 {
		return q.refusePeer(code, peer.Addr())
	}
	switch {
	case r.Guarded(peer.Addr()) && !s.relays(peer, transportUDP, m):
		return q.refusePeer(CodeForbidden, peer.Addr())
	case bound == nil && len(a.Channels) >= r.MaxChannels,
		a.Permission(peer.Addr()) == nil && len(a.Permissions) >= r.MaxPermissions:
		return q.refuse(CodeInsufficientCapacity)
	case r.Storage == RoomNone:
		return q.refuse(CodeServerError)
	}
	return Decision{
		Events: []Event{ChannelBound{Allocation: a.ID, Tx: q.Tx, Channel: q.channel, Peer: peer}},
		Reply:  q.reply(0),
	}
}
