package turn

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
)

// Attributes that package stun does not know (RFC 8656 section 18).
const (
	attrAdditionalAddressFamily stun.AttrType = 0x8000
	attrAddressErrorCode        stun.AttrType = 0x8001
	attrMobilityTicket          stun.AttrType = 0x8030 // RFC 8016
)

// Codes of refusals (RFC 8489 section 14.8, RFC 8656 section 19, RFC 6062 section 6.3).
const (
	CodeTryAlternate         = 300
	CodeBadRequest           = 400
	CodeUnauthenticated      = 401
	CodeForbidden            = 403
	CodeMobilityForbidden    = 405 // RFC 8016 section 3.4
	CodeUnknownAttribute     = 420
	CodeAllocationMismatch   = 437
	CodeStaleNonce           = 438
	CodeFamilyNotSupported   = 440
	CodeWrongCredentials     = 441
	CodeUnsupportedTransport = 442
	CodePeerFamilyMismatch   = 443
	CodeConnectionExists     = 446
	CodeConnectionFailed     = 447
	CodeQuotaReached         = 486
	CodeServerError          = 500
	CodeInsufficientCapacity = 508
)

var reasonPhrases = map[int]string{
	CodeTryAlternate:         "Try Alternate",
	CodeBadRequest:           "Bad Request",
	CodeUnauthenticated:      "Unauthenticated",
	CodeForbidden:            "Forbidden",
	CodeMobilityForbidden:    "Mobility Forbidden",
	CodeUnknownAttribute:     "Unknown Attribute",
	CodeAllocationMismatch:   "Allocation Mismatch",
	CodeStaleNonce:           "Stale Nonce",
	CodeFamilyNotSupported:   "Address Family not Supported",
	CodeWrongCredentials:     "Wrong Credentials",
	CodeUnsupportedTransport: "Unsupported Transport Protocol",
	CodePeerFamilyMismatch:   "Peer Address Family Mismatch",
	CodeConnectionExists:     "Connection Already Exists",
	CodeConnectionFailed:     "Connection Timeout or Failure",
	CodeQuotaReached:         "Allocation Quota Reached",
	CodeServerError:          "Server Error",
	CodeInsufficientCapacity: "Insufficient Capacity",
}

// knownAttribute says whether the server understands a comprehension-required attribute.
func knownAttribute(kind uint16) bool {
	switch stun.AttrType(kind) {
	case stun.AttrMappedAddress, stun.AttrUsername, stun.AttrMessageIntegrity, stun.AttrErrorCode,
		stun.AttrUnknownAttributes, stun.AttrRealm, stun.AttrNonce, stun.AttrXORMappedAddress,
		stun.AttrChannelNumber, stun.AttrLifetime, stun.AttrXORPeerAddress, stun.AttrData,
		stun.AttrXORRelayedAddress, stun.AttrEvenPort, stun.AttrRequestedTransport, stun.AttrRequestedAddressFamily,
		stun.AttrReservationToken, stun.AttrDontFragment, stun.AttrConnectionID, stun.AttrMessageIntegritySHA256, stun.AttrPasswordAlgorithm, stun.AttrUserhash,
		attrAccessToken:
		return true
	}
	return false
}

// iceAttribute says whether kind is one that ICE puts into Binding requests
// (RFC 8445). They mean nothing to a relay, but a full agent's check against it is no error.
func iceAttribute(kind stun.AttrType) bool {
	return kind == stun.AttrPriority || kind == stun.AttrUseCandidate
}

// Attributes of RFC 7635, which the STUN codec has no names for.
const (
	attrAccessToken             stun.AttrType = 0x001B
	attrThirdPartyAuthorization stun.AttrType = 0x802E
)

// maxUnknown bounds UNKNOWN-ATTRIBUTES: one request cannot ask for a long answer.
const maxUnknown = 64

// unknown are the comprehension-required attributes among list that the server
// does not understand, each once, the first 64 of them.
func unknown(list stun.Attributes, tokens bool) []stun.AttrType {
	for i, a := range list {
		if !understood(a.Type, tokens) {
			return distinctUnknown(list[i:], tokens)
		}
	}
	return nil
}

// understood says whether an attribute stands in nobody's way. ACCESS-TOKEN is known with tokens alone.
func understood(kind stun.AttrType, tokens bool) bool {
	return kind.Optional() || (knownAttribute(uint16(kind)) && (tokens || kind != attrAccessToken))
}

func distinctUnknown(list stun.Attributes, tokens bool) []stun.AttrType {
	var out []stun.AttrType
	var seen [0x8000 / 64]uint64 // a set: a request has up to 16,000 attributes
	for _, a := range list {
		word, bit := &seen[a.Type&0x7FFF/64], uint64(1)<<(a.Type%64)
		if understood(a.Type, tokens) || *word&bit != 0 {
			continue
		}
		*word |= bit
		if out = append(out, a.Type); len(out) == maxUnknown {
			break
		}
	}
	return out
}

// Request is an authenticated request of a client, its attributes decoded.
type Request struct {
	FiveTuple FiveTuple
	Tx        TransactionID
	Method    stun.Method
	Username  string
	Realm     string
	Entropy   [32]byte // for an Allocate or Connect, set by the caller: ports, tokens and ids are drawn from it

	given         string // the name that the client has given, for the gate alone
	named         bool   // the configuration or a directory has it
	nonceReturned bool
	malformed     bool // an attribute of the method does not decode
	key           []byte
	sha256        bool          // the answer gets MESSAGE-INTEGRITY-SHA256
	access        SealedToken   // that came with the request; nil: none
	tokenLeft     time.Duration // what the token that proves it still grants, in whole seconds; 0: no bound
	fingerprint   bool
	software      string

	transport     uint8
	hasTransport  bool
	lifetime      uint32
	hasLifetime   bool
	family        uint8 // REQUESTED-ADDRESS-FAMILY: 1 is IPv4, 2 is IPv6, 0 absent
	hasFamily     bool
	additional    uint8 // ADDITIONAL-ADDRESS-FAMILY, likewise
	hasAdditional bool
	evenPort      bool // EVEN-PORT
	reserve       bool // its R bit: the next port too
	token         ReservationToken
	hasToken      bool
	ticket        []byte // MOBILITY-TICKET
	hasTicket     bool
	dontFragment  bool
	connection    ConnectionID
	hasConnection bool
	channel       ChannelNumber
	hasChannel    bool
	peers         []netip.AddrPort
}

// decode reads the attributes of the method from list; the first of duplicates
// counts, but for XOR-PEER-ADDRESS in a CreatePermission. Attributes that mean
// nothing in the method are ignored (RFC 8489 section 14).
func (q *Request) decode(m *stun.Message, list stun.Attributes) {
	allocates, refreshes := q.Method == stun.MethodAllocate, q.Method == stun.MethodRefresh
	connects := q.Method == stun.MethodConnect
	permits, binds := q.Method == stun.MethodCreatePermission, q.Method == stun.MethodChannelBind
	for _, a := range list {
		switch {
		case a.Type == stun.AttrRequestedTransport && allocates:
			q.word(a, &q.hasTransport, func(v uint32) { q.transport = uint8(v >> 24) })
		case a.Type == stun.AttrLifetime && (allocates || refreshes):
			q.word(a, &q.hasLifetime, func(v uint32) { q.lifetime = v })
		case a.Type == stun.AttrRequestedAddressFamily && (allocates || refreshes):
			q.word(a, &q.hasFamily, func(v uint32) { q.family = uint8(v >> 24) })
		case a.Type == attrAdditionalAddressFamily && allocates:
			q.word(a, &q.hasAdditional, func(v uint32) { q.additional = uint8(v >> 24) })
		case a.Type == stun.AttrEvenPort && allocates && !q.evenPort:
			q.evenPort = true
			q.malformed = q.malformed || len(a.Value) != 1
			q.reserve = len(a.Value) == 1 && a.Value[0]&0x80 != 0
		case a.Type == stun.AttrReservationToken && allocates && !q.hasToken:
			q.hasToken = true
			q.malformed = q.malformed || copy(q.token[:], a.Value) != len(a.Value) || len(a.Value) != len(q.token)
		case a.Type == stun.AttrDontFragment && allocates:
			q.dontFragment = true
		case a.Type == stun.AttrConnectionID && q.Method == stun.MethodConnectionBind:
			q.word(a, &q.hasConnection, func(v uint32) { q.connection = ConnectionID(v) })
		case a.Type == attrMobilityTicket && (allocates || refreshes) && !q.hasTicket:
			q.ticket, q.hasTicket = bytes.Clone(a.Value), true
		case a.Type == stun.AttrChannelNumber && binds:
			q.word(a, &q.hasChannel, func(v uint32) { q.channel = ChannelNumber(v >> 16) })
		case a.Type == stun.AttrXORPeerAddress && (permits || ((binds || connects) && len(q.peers) == 0)):
			peer, err := parseXOR(a.Value, m.Raw[4:stunHeader])
			q.malformed = q.malformed || err != nil
			q.peers = append(q.peers, peer)
		}
	}
}

// word hands a value of four bytes to set, unless an earlier attribute of its type did.
func (q *Request) word(a stun.RawAttribute, has *bool, set func(uint32)) {
	switch {
	case *has:
		return
	case len(a.Value) != 4:
		q.malformed = true
	default:
		set(binary.BigEndian.Uint32(a.Value))
	}
	*has = true
}
