package turn

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"

	"github.com/pion/stun/v3"
)

const (
	sha1Size        = 20
	attributeHeader = 4
)

// proof is the attribute that proves who sent a message: MESSAGE-INTEGRITY-SHA256
// where there is one, else MESSAGE-INTEGRITY (RFC 8489 section 9.2.4). Its zero value is none.
type proof struct {
	kind stun.AttrType
	at   int // among the attributes of the message
}

// proven splits the attributes of m: those that count, and the proof. What
// follows MESSAGE-INTEGRITY is ignored but for MESSAGE-INTEGRITY-SHA256 and FINGERPRINT, what
// follows MESSAGE-INTEGRITY-SHA256 but for FINGERPRINT (RFC 8489 sections 14.5 to 14.7).
func proven(m *stun.Message) (stun.Attributes, proof) {
	for i := range m.Attributes {
		switch m.Attributes[i].Type {
		case stun.AttrMessageIntegritySHA256:
			return m.Attributes[:i+1], proof{stun.AttrMessageIntegritySHA256, i}
		case stun.AttrMessageIntegrity:
			for j := i + 1; j < len(m.Attributes); j++ {
				if m.Attributes[j].Type == stun.AttrMessageIntegritySHA256 {
					return m.Attributes[:i+1], proof{stun.AttrMessageIntegritySHA256, j}
				}
			}
			return m.Attributes[:i+1], proof{stun.AttrMessageIntegrity, i}
		}
	}
	return m.Attributes, proof{}
}

// wellFormed says whether the proof has its full length. TURN allows no
// truncation of MESSAGE-INTEGRITY-SHA256 (RFC 8489 section 14.6).
func (p proof) wellFormed(m *stun.Message) bool {
	want := sha1Size
	if p.kind == stun.AttrMessageIntegritySHA256 {
		want = sha256.Size
	}
	return len(m.Attributes[p.at].Value) == want
}

// holds says whether key made the proof of m.
func (p proof) holds(m *stun.Message, key []byte) bool {
	if p.kind == stun.AttrMessageIntegrity {
		return stun.MessageIntegrity(key).Check(m) == nil
	}
	end := stunHeader
	for i := range m.Attributes[:p.at] {
		end += attributeHeader + (int(m.Attributes[i].Length)+3)&^3
	}
	sum := integritySHA256(m.Raw[:end], key)
	return hmac.Equal(sum[:], m.Attributes[p.at].Value)
}

// addIntegritySHA256 adds MESSAGE-INTEGRITY-SHA256 to m.
func addIntegritySHA256(m *stun.Message, key []byte) {
	end := len(m.Raw)
	var sum [sha256.Size]byte
	m.Add(stun.AttrMessageIntegritySHA256, sum[:])
	sum = integritySHA256(m.Raw[:end], key)
	copy(m.Raw[end+attributeHeader:], sum[:])
}

// integritySHA256 is the HMAC-SHA256 over a message that goes on with
// MESSAGE-INTEGRITY-SHA256: its length field is taken to end there (RFC 8489 section 14.6).
func integritySHA256(before, key []byte) (sum [sha256.Size]byte) {
	head := [4]byte{before[0], before[1]}
	binary.BigEndian.PutUint16(head[2:], uint16(len(before)-stunHeader+attributeHeader+sha256.Size))
	mac := hmac.New(sha256.New, key)
	mac.Write(head[:])
	mac.Write(before[4:])
	mac.Sum(sum[:0])
	return sum
}
