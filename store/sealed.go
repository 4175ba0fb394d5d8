package store

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"

	"turnstone/turn"
)

// An event of an encrypted segment is stored as the CBOR array [kind, sealed]. Sealed is a byte string: the
// number of the segment whose key it is under (uvarint), a nonce that was drawn, and the body that the event would have in
// a plain segment, in XAES-256-GCM (C2SP) with that nonce and twelve zeros behind it. So each event has a
// key of its own, that shows nobody any other. The associated data is its sequence and its kind.
//
// Kinds in the open are about the log itself: what has to be known of one whose keys are gone.

const (
	nonceSize = 12
	tagSize   = 16
)

var zeroNonce [12]byte

// open are the kinds that are stored in the clear in an encrypted segment too. None is about a client.
var inTheOpen = map[turn.Kind]bool{
	turn.KindEpochBegan: true, turn.KindServerStarted: true, turn.KindServerStopped: true, turn.KindConfigChanged: true,
	turn.KindClockWentBack: true, turn.KindSegmentSealed: true, turn.KindSegmentRetired: true, turn.KindSnapshotTaken: true,
	turn.KindSegmentForgotten: true, turn.KindSegmentClosed: true, turn.KindRollbackFound: true,
}

// mother is a key that those of messages are derived of.
type mother struct {
	block cipher.Block
	k1    [aes.BlockSize]byte // of CMAC
}

func newMother(secret []byte) mother {
	block, err := aes.NewCipher(secret)
	if err != nil {
		panic(err) // of 32 bytes
	}
	m := mother{block: block}
	block.Encrypt(m.k1[:], m.k1[:])
	over := m.k1[0] >> 7
	for i := range m.k1 {
		m.k1[i] <<= 1
		if i+1 < len(m.k1) {
			m.k1[i] |= m.k1[i+1] >> 7
		}
	}
	m.k1[len(m.k1)-1] ^= over * 0b10000111
	return m
}

// key is that of the message with a nonce.
func (m *mother) key(nonce []byte) (key [keySize]byte) {
	for half := range 2 {
		b := key[half*aes.BlockSize:][:aes.BlockSize]
		b[1], b[2] = byte(half+1), 'X'
		copy(b[4:], nonce)
		for i := range b {
			b[i] ^= m.k1[i]
		}
		m.block.Encrypt(b, b)
	}
	return key
}

// aead seals or opens the message with a nonce, under zeroNonce.
func (m *mother) aead(nonce []byte) cipher.AEAD {
	key := m.key(nonce)
	return messageAEAD(key[:])
}

func messageAEAD(key []byte) cipher.AEAD {
	block, err := aes.NewCipher(key)
	if err == nil {
		var a cipher.AEAD
		if a, err = cipher.NewGCM(block); err == nil {
			return a
		}
	}
	panic(err) // of 32 bytes, with the standard sizes
}

// sealing has the nonces of a record drawn at once.
type sealing struct {
	key    *segmentKey // nil: nothing is sealed
	nonces []byte
}

func newSealing(key *segmentKey, events int) sealing {
	s := sealing{key: key}
	if key != nil {
		s.nonces = make([]byte, nonceSize*events)
		rand.Read(s.nonces)
	}
	return s
}

// event appends the form in which the event plain, at seq, is stored.
func (s *sealing) event(dst, plain []byte, seq turn.Seq) []byte {
	c := cursor{b: plain}
	c.head(majorArray)
	kind := c.head(majorUint)
	if s.key == nil || inTheOpen[turn.Kind(kind)] {
		return append(dst, plain...)
	}
	nonce := s.nonces[:nonceSize]
	s.nonces = s.nonces[nonceSize:]
	var number [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(number[:], s.key.segment)
	dst = append(dst, plain[:len(plain)-len(c.b)]...)
	dst = appendHead(dst, majorBytes, uint64(n+nonceSize+len(c.b)+tagSize))
	dst = append(append(dst, number[:n]...), nonce...)
	return s.key.events.aead(nonce).Seal(dst, zeroNonce[:], c.b, associated(seq, kind))
}

func associated(seq turn.Seq, kind uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, uint64(seq)), kind)
}

// form says how the body of a stored event is kept.
type form uint8

const (
	formOpen   form = 1 << iota // it is of a kind that always is in the clear
	formPlain                   // it is in the clear
	formSealed                  // it is sealed
)

// formOf looks at a stored event. What is none is said to be in the open.
func formOf(event []byte) form {
	c := cursor{b: event}
	c.head(majorArray)
	kind := c.head(majorUint)
	switch {
	case c.err != nil || len(c.b) == 0:
		return formOpen
	case c.b[0]>>5 == majorBytes:
		return formSealed
	case inTheOpen[turn.Kind(kind)]:
		return formOpen
	}
	return formPlain
}

// see adds the forms of the events of a record, until it is clear what its segment is.
func (f *form) see(record []byte) error {
	if *f&(formPlain|formSealed) != 0 {
		return nil
	}
	v, err := parseEnvelope(record)
	for _, e := range v.events {
		*f |= formOf(e)
	}
	return err
}

// How events about clients are kept in a segment.
const (
	Plain     = "plain"
	Encrypted = "encrypted"
	Unread    = "no key" // encrypted, and the key is not to be had: the segment was forgotten, or its key is elsewhere
)

// privacy is how the events of a segment are kept, and whether there is a key for it.
func (f form) privacy(key bool) string {
	switch {
	case f&formPlain != 0, f&formSealed == 0 && !key:
		return Plain
	case !key:
		return Unread
	}
	return Encrypted
}

// unsealed is the body of an event of a kind at seq as it is in a plain segment; body is how it is stored.
func (k *Keyring) unsealed(seq turn.Seq, kind uint64, body []byte) ([]byte, error) {
	if len(body) == 0 || body[0]>>5 != majorBytes {
		return body, nil
	}
	segment, nonce, ciphertext, err := parseSealed(body)
	if err != nil {
		return nil, &CorruptError{Seq: seq, Err: err}
	}
	key, err := k.of(segment)
	var missing *KeyError
	if errors.As(err, &missing) {
		missing.Seq = seq
	}
	if err != nil {
		return nil, err
	}
	return openWith(key.events.aead(nonce), seq, kind, ciphertext)
}

func openWith(a cipher.AEAD, seq turn.Seq, kind uint64, ciphertext []byte) ([]byte, error) {
	plain, err := a.Open(nil, zeroNonce[:], ciphertext, associated(seq, kind))
	if err != nil {
		return nil, &CorruptError{Seq: seq, Err: errors.New("the event does not open: it was changed, or it is another's")}
	}
	return plain, nil
}

// errSealed says that a sealed body is none.
var errSealed = errors.New("a sealed event without number, nonce or tag")

func parseSealed(body []byte) (segment uint64, nonce, ciphertext []byte, err error) {
	c := cursor{b: body}
	b := c.bytes(majorBytes)
	segment, rest, ok := numbered(b)
	if c.err != nil || len(c.b) != 0 || !ok {
		return 0, nil, nil, errSealed
	}
	return segment, rest[:nonceSize], rest[nonceSize:], nil
}

// EventKey is the key of one stored event alone, nil where it is not sealed. With it [DecodeDisclosed] reads that event, and
// no other: so a proof about one can be read without the key of its segment.
func (k *Keyring) EventKey(event []byte) ([]byte, error) {
	if formOf(event) != formSealed {
		return nil, nil
	}
	c := cursor{b: event}
	c.head(majorArray)
	c.head(majorUint)
	segment, nonce, _, err := parseSealed(c.b)
	if err != nil {
		return nil, &CorruptError{Err: err}
	}
	key, err := k.of(segment)
	if err != nil {
		return nil, err
	}
	own := key.events.key(nonce)
	return bytes.Clone(own[:]), nil
}

// DecodeDisclosed decodes the stored event at seq with the key of it alone, nil where it is not sealed.
func DecodeDisclosed(event []byte, seq turn.Seq, own []byte) (turn.Event, error) {
	if formOf(event) != formSealed {
		return DecodeEvent(event)
	}
	c := cursor{b: event}
	c.head(majorArray)
	kind := c.head(majorUint)
	segment, _, ciphertext, err := parseSealed(c.b)
	if err == nil && len(own) == 0 {
		return nil, &KeyError{Segment: segment, Seq: seq}
	}
	if err == nil && len(own) != keySize {
		err = fmt.Errorf("the key of an event has %d bytes, want %d", len(own), keySize)
	}
	if err != nil {
		return nil, &CorruptError{Seq: seq, Err: err}
	}
	body, err := openWith(messageAEAD(own), seq, kind, ciphertext)
	if err != nil {
		return nil, err
	}
	return decodeBody(kind, body, nil)
}
