package turn

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/pion/stun/v3"
)

// ConnectionLifetime is how long a connection with a peer waits for the client to bind it (RFC 6062
// sections 5.2 and 5.3).
const ConnectionLifetime = 30 * time.Second

// ConnectionID names a connection with a peer among all of a server (RFC 6062 section 6.2.1). Zero is none.
type ConnectionID uint32

func (c ConnectionID) String() string { return fmt.Sprintf("0x%08x", uint32(c)) }

// MarshalText is String.
func (c ConnectionID) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// Connection is one with a peer of a TCP allocation (RFC 6062 section 3.1).
type Connection struct {
	ID       ConnectionID   `cbor:"1,keyasint"`
	Peer     netip.AddrPort `cbor:"2,keyasint"`
	Client   FiveTuple      `cbor:"3,keyasint"` // of the client's data connection, zero until that is bound
	Deadline Deadline       `cbor:"4,keyasint"` // by which it has to be
}

// bound says whether the client has bound c.
func (c *Connection) bound() bool { return c.Client.Client.IsValid() }

// unbound says whether c waits, and may until after m.
func (c *Connection) waits(m Moment) bool { return !c.bound() && !c.Deadline.Passed(m) }

func compareConnection(c Connection, id ConnectionID) int { return cmp.Compare(c.ID, id) }

// Connection is the connection id of a, nil where there is none.
func (a *Allocation) Connection(id ConnectionID) *Connection {
	if i, ok := slices.BinarySearchFunc(a.Connections, id, compareConnection); ok {
		return &a.Connections[i]
	}
	return nil
}

// connectedTo says whether a has a connection with peer, bound or waiting.
func (a *Allocation) connectedTo(peer netip.AddrPort) bool {
	return slices.ContainsFunc(a.Connections, func(c Connection) bool { return c.Peer == peer })
}

// TCP says whether a relays connections, not datagrams.
func (a *Allocation) TCP() bool { return a.Transport == transportTCP }

// Dial is a connection that a Connect asks for.
type Dial struct {
	Allocation AllocationID
	From, To   netip.AddrPort // a relayed transport address, and the peer
}

// Dialled is what became of a Dial.
type Dialled uint8

// Outcomes of a Dial.
const (
	DialConnected Dialled = iota
	DialFailed
	DialTwice // another to the same peer is going on
	DialBusy  // too many are
)

// asksTCP says with what code an Allocate for TCP is refused, 0 for none (RFC 6062 section 5.1).
func (q *Request) asksTCP() int {
	if q.transport == transportTCP && (q.FiveTuple.Protocol != TCP && q.FiveTuple.Protocol != TLS || q.dontFragment || q.evenPort || q.hasToken) {
		return CodeBadRequest
	}
	return 0
}

// connect is RFC 6062 section 5.2, up to the connection.
func connect(s *State, r *Rules, q *Request, a *Allocation, m Moment) Decision {
	switch {
	case a == nil:
		return q.refuse(CodeAllocationMismatch)
	case !a.TCP():
		return q.refuse(CodeForbidden)
	case q.malformed, len(q.peers) == 0, q.peers[0].Port() == 0:
		return q.refuse(CodeBadRequest)
	}
	peer := r.Private(q.peers[0])
	if code := peerCode(r, a, peer.Addr()); code != 0 {
		return q.refusePeer(code, peer.Addr())
	}
	switch {
	case r.Guarded(peer.Addr()) && !s.relays(peer, transportTCP, m):
		return q.refusePeer(CodeForbidden, peer.Addr())
	case a.connectedTo(peer):
		return q.refuse(CodeConnectionExists)
	case len(a.Connections) >= r.MaxChannels:
		return q.refuse(CodeInsufficientCapacity)
	case r.Storage == RoomNone:
		return q.refuse(CodeServerError)
	}
	from, _ := a.RelayedFor(peer.Addr())
	return Decision{Dial: &Dial{Allocation: a.ID, From: from, To: peer}}
}

// DecideDialled ends what Decide began for a Connect. Where it was refused there are no events, and the
// connection, if there is one, is to be closed.
func DecideDialled(s *State, r *Rules, q *Request, d Dial, outcome Dialled, m Moment) Decision {
	a, _ := s.live(s.allocations[d.Allocation], m)
	switch {
	case a == nil:
		return q.refuse(CodeAllocationMismatch)
	case outcome == DialTwice, a.connectedTo(d.To):
		return q.refuse(CodeConnectionExists)
	case outcome == DialBusy:
		return q.refuse(CodeInsufficientCapacity)
	case outcome == DialFailed:
		return q.refusePeer(CodeConnectionFailed, d.To.Addr())
	case !r.permits(d.To.Addr()): // a reload forbids it by now
		return q.refusePeer(CodeForbidden, d.To.Addr())
	case r.Storage == RoomNone:
		return q.refuse(CodeServerError)
	}
	reply := q.reply(0)
	reply.Connection = s.newConnection(q.Entropy)
	return Decision{
		Events: []Event{PeerConnected{Allocation: a.ID, Tx: q.Tx, Connection: reply.Connection, Peer: d.To}},
		Reply:  reply,
	}
}

// AcceptPeer decides what becomes of a connection that a peer has made to a relayed transport address of the
// allocation id (RFC 6062 section 5.3). False: it is to be closed.
func AcceptPeer(s *State, r *Rules, id AllocationID, peer netip.AddrPort, entropy [32]byte, m Moment) (PeerConnected, bool) {
	a, _ := s.live(s.allocations[id], m)
	switch {
	case a == nil, !a.TCP(), a.Permission(peer.Addr()) == nil, a.connectedTo(peer), len(a.Connections) >= r.MaxChannels,
		r.Storage == RoomNone, r.Guarded(peer.Addr()) && !s.relays(peer, transportTCP, m):
		return PeerConnected{}, false
	}
	return PeerConnected{Allocation: id, Connection: s.newConnection(entropy), Peer: peer}, true
}

// AppendConnectionAttempt appends the ConnectionAttempt indication that tells a client of a peer's connection.
func AppendConnectionAttempt(dst []byte, tx TransactionID, id ConnectionID, peer netip.AddrPort) []byte {
	m := messages.Get().(*stun.Message)
	defer messages.Put(m)
	m.Reset()
	m.TransactionID = tx
	m.Type = stun.NewType(stun.MethodConnectionAttempt, stun.ClassIndication)
	m.WriteHeader()
	m.Add(stun.AttrConnectionID, binary.BigEndian.AppendUint32(nil, uint32(id)))
	addXOR(m, stun.AttrXORPeerAddress, peer)
	return append(dst, m.Raw...)
}

// IsConnectionBind says whether the STUN frame b is a ConnectionBind request: what follows it on the stream may be
// no frame any more.
func IsConnectionBind(b []byte) bool { return binary.BigEndian.Uint16(b) == typeConnectionBind }

// connectionBind is RFC 6062 section 5.4. It comes along a stream of its own.
func connectionBind(s *State, r *Rules, q *Request, control *Allocation, m Moment) Decision {
	if control != nil || q.malformed || q.connection == 0 || q.FiveTuple.Protocol != TCP && q.FiveTuple.Protocol != TLS {
		return q.refuse(CodeBadRequest)
	}
	a, _ := s.live(s.byConnection[q.connection], m)
	if a == nil {
		return q.refuse(CodeBadRequest)
	}
	switch c := a.Connection(q.connection); {
	case !r.same(q, a.Realm, a.Username):
		return q.refuse(CodeWrongCredentials)
	case c == nil, !c.waits(m):
		return q.refuse(CodeBadRequest)
	case r.Storage == RoomNone:
		return q.refuse(CodeServerError)
	}
	reply := q.reply(0)
	reply.Bound = q.connection
	return Decision{
		Events: []Event{ConnectionBound{Allocation: a.ID, Tx: q.Tx, Connection: q.connection, Client: q.FiveTuple}},
		Reply:  reply,
	}
}

// Disconnect is the end of a connection for a reason, nothing where it has ended already.
func Disconnect(s *State, id AllocationID, c ConnectionID, why Reason) []Event {
	if a := s.allocations[id]; a == nil || a.Connection(c) == nil {
		return nil
	}
	return []Event{PeerDisconnected{Allocation: id, Connection: c, Reason: why}}
}

// newConnection draws an id that no connection has from entropy.
func (s *State) newConnection(entropy [32]byte) ConnectionID {
	source := rand.New(rand.NewChaCha8(entropy)) //nolint:gosec // a CSPRNG seeded with crypto entropy
	for {
		if id := ConnectionID(source.Uint32()); id != 0 && s.byConnection[id] == nil {
			return id
		}
	}
}

func (s *State) connected(a *Allocation, e PeerConnected) error {
	switch {
	case !a.TCP():
		return fmt.Errorf("allocation %d does not relay connections", a.ID)
	case e.Connection == 0, s.byConnection[e.Connection] != nil:
		return fmt.Errorf("connection %v is none, or another's", e.Connection)
	}
	c := Connection{ID: e.Connection, Peer: e.Peer, Deadline: s.moment.After(ConnectionLifetime)}
	i, _ := slices.BinarySearchFunc(a.Connections, e.Connection, compareConnection)
	a.Connections = slices.Insert(a.Connections, i, c)
	s.byConnection[c.ID] = a
	s.ends.granted(a, 0, c.Deadline.Uptime)
	return nil
}

func (s *State) connectionBound(a *Allocation, e ConnectionBound) error {
	c := a.Connection(e.Connection)
	if c == nil || c.bound() || !e.Client.Client.IsValid() {
		return fmt.Errorf("allocation %d has no connection %v that waits for a client", a.ID, e.Connection)
	}
	c.Client = e.Client
	s.ends.ended(a, c.Deadline.Uptime)
	return nil
}

func (s *State) disconnected(a *Allocation, id ConnectionID) error {
	i, known := slices.BinarySearchFunc(a.Connections, id, compareConnection)
	if !known {
		return fmt.Errorf("allocation %d has no connection %v", a.ID, id)
	}
	if c := a.Connections[i]; !c.bound() {
		s.ends.ended(a, c.Deadline.Uptime)
	}
	a.Connections = slices.Delete(a.Connections, i, i+1)
	delete(s.byConnection, id)
	return nil
}
