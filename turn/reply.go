package turn

import (
	"encoding/binary"
	"net"
	"net/netip"
	"sync"

	"github.com/pion/stun/v3"
)

// Reply is the answer to a request.
type Reply struct {
	Method          stun.Method
	Tx              TransactionID
	Code            int  // STUN error code, 0 for success
	Unauthenticated bool // whoever asked has proved nothing: the answer is to be rate-limited
	NonceReturned   bool // whoever asked has returned a nonce of ours, so the address is really theirs
	Username        string
	Realm           string         // that Username is of
	Peer            netip.Addr     // that was refused, invalid where the refusal is not about one
	Origin          netip.AddrPort // the listener it is to be sent from, where that is for the request to say
	Port            uint16         // of the client it is to be sent to, see [Reply.To]

	Connection ConnectionID // that a Connect made, zero for none
	Bound      ConnectionID // that a ConnectionBind bound, zero for none

	mapped      netip.AddrPort
	relayed     []netip.AddrPort
	token       ReservationToken // zero for none
	lacks       lack
	ticket      []byte // MOBILITY-TICKET, nil for none
	lifetime    uint32
	hasLifetime bool
	alternates  []netip.AddrPort // with 300
	domain      string           // of the certificate of alternates, empty for none
	other       netip.AddrPort   // with Origin: OTHER-ADDRESS
	padding     int              // bytes of PADDING, where padded
	padded      bool
	challenge   string // REALM, with nonce, on 401 and 438
	nonce       string
	algorithms  []byte // with nonce
	thirdParty  string // name of this server for an authorization server, on 401
	unknown     []stun.AttrType
	software    string
	key         []byte // nil: no MESSAGE-INTEGRITY of either kind
	sha256      bool   // with key: MESSAGE-INTEGRITY-SHA256
	fingerprint bool
}

// reply starts the answer to q, with code 0 for success.
func (q *Request) reply(code int) *Reply {
	return &Reply{
		Method: q.Method, Tx: q.Tx, Code: code, NonceReturned: q.nonceReturned, Username: q.Username, Realm: q.Realm,
		software: q.software, key: q.key, sha256: q.sha256, fingerprint: q.fingerprint,
	}
}

var messages = sync.Pool{New: func() any { return stun.New() }}

// Append appends the encoded answer to dst.
func (r *Reply) Append(dst []byte) []byte {
	m := messages.Get().(*stun.Message)
	defer messages.Put(m)
	m.Reset()
	m.TransactionID = r.Tx
	class := stun.ClassSuccessResponse
	if r.Code != 0 {
		class = stun.ClassErrorResponse
	}
	m.Type = stun.NewType(r.Method, class)
	m.WriteHeader()
	r.addAttributes(m)
	if r.software != "" {
		m.Add(stun.AttrSoftware, []byte(r.software))
	}
	switch {
	case r.key == nil:
	case r.sha256:
		addIntegritySHA256(m, r.key)
	default:
		must(stun.MessageIntegrity(r.key).AddTo(m))
	}
	if r.fingerprint {
		must(stun.Fingerprint.AddTo(m))
	}
	return append(dst, m.Raw...)
}

func (r *Reply) addAttributes(m *stun.Message) {
	if r.Code != 0 {
		must(stun.ErrorCodeAttribute{Code: stun.ErrorCode(r.Code), Reason: []byte(reasonPhrases[r.Code])}.AddTo(m))
	}
	if len(r.unknown) > 0 {
		must(stun.UnknownAttributes(r.unknown).AddTo(m))
	}
	if r.nonce != "" {
		m.Add(stun.AttrRealm, []byte(r.challenge))
		m.Add(stun.AttrNonce, []byte(r.nonce))
		m.Add(stun.AttrPasswordAlgorithms, r.algorithms)
	}
	if r.thirdParty != "" {
		m.Add(attrThirdPartyAuthorization, []byte(r.thirdParty))
	}
	for _, a := range r.alternates {
		addAddress(m, stun.AttrAlternateServer, a)
	}
	if r.domain != "" {
		m.Add(stun.AttrAlternateDomain, []byte(r.domain))
	}
	for _, a := range r.relayed {
		addXOR(m, stun.AttrXORRelayedAddress, a)
	}
	if r.lacks != (lack{}) {
		m.Add(attrAddressErrorCode, r.lacks.value())
	}
	if r.hasLifetime {
		m.Add(stun.AttrLifetime, []byte{byte(r.lifetime >> 24), byte(r.lifetime >> 16), byte(r.lifetime >> 8), byte(r.lifetime)})
	}
	if r.Connection != 0 {
		m.Add(stun.AttrConnectionID, binary.BigEndian.AppendUint32(nil, uint32(r.Connection)))
	}
	if r.token != (ReservationToken{}) {
		m.Add(stun.AttrReservationToken, r.token[:])
	}
	if r.ticket != nil {
		m.Add(attrMobilityTicket, r.ticket)
	}
	if r.mapped.IsValid() {
		addXOR(m, stun.AttrXORMappedAddress, r.mapped)
	}
	r.addDiscovery(m)
}

func addXOR(m *stun.Message, kind stun.AttrType, a netip.AddrPort) {
	must(stun.XORMappedAddress{IP: net.IP(a.Addr().AsSlice()), Port: int(a.Port())}.AddToAs(m, kind))
}

// must panics where a setter of the STUN codec refuses what this package made: a bug.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
