package store

import (
	"bytes"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"turnstone/turn"
)

// An event of an encrypted segment is stored as the CBOR array [kind, sealed]. Sealed is a byte string: the
// number of the segment whose key it is under (uvarint), a nonce that was drawn (12), a commitment (20), and the body
// that the event would have in a plain segment in AES-256-GCM, with its sequence, its kind and the commitment as associated data.
//
// The commitment is the beginning of the SHA-256 of a salt, the sequence, the kind and the body. The salt is the nonce in AES
// under another key of the segment. Who is told salt and body can tell that they are what was
// stored, and learns nothing of any other event: so one event is proved without the key of its segment.
//
// Kinds in the open are about the log itself: what has to be known of one whose keys are gone.

const (
	nonceSize  = 12
	tagSize    = 16
	commitSize = 20
	saltSize   = aes.BlockSize
)

// open are the kinds that are stored in the clear in an encrypted segment too. None is about a client.
var inTheOpen = map[turn.Kind]bool{
	turn.KindEpochBegan: true, turn.KindServerStarted: true, turn.KindServerStopped: true, turn.KindConfigChanged: true,
	turn.KindClockWentBack: true, turn.KindSegmentSealed: true, turn.KindSegmentRetired: true, turn.KindSnapshotTaken: true,
	turn.KindSegmentForgotten: true, turn.KindSegmentClosed: true, turn.KindRollbackFound: true,
}

// commitment is what an event at seq commits itself to.
func commitment(salt []byte, seq turn.Seq, kind uint64, body []byte) (c [commitSize]byte) {
	var room [256]byte
	b := append(room[:0], salt...)
	b = binary.BigEndian.AppendUint64(b, uint64(seq))
	b = binary.BigEndian.AppendUint64(b, kind)
	sum := sha256.Sum256(append(b, body...))
	copy(c[:], sum[:])
	return c
}

// salt is that of the event with a nonce.
func (k *segmentKey) salt(nonce []byte) []byte {
	b := make([]byte, saltSize)
	copy(b, nonce)
	k.salts.Encrypt(b, b)
	return b
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
	dst = appendHead(dst, majorBytes, uint64(n+nonceSize+commitSize+len(c.b)+tagSize))
	dst = append(append(dst, number[:n]...), nonce...)
	commit := commitment(s.key.salt(nonce), seq, kind, c.b)
	dst = append(dst, commit[:]...)
	return s.key.events.Seal(dst, nonce, c.b, associated(seq, kind, commit[:]))
}

func associated(seq turn.Seq, kind uint64, commit []byte) []byte {
	b := binary.BigEndian.AppendUint64(make([]byte, 0, 16+commitSize), uint64(seq))
	return append(binary.BigEndian.AppendUint64(b, kind), commit...)
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
	p, err := parseSealed(body)
	if err != nil {
		return nil, &CorruptError{Seq: seq, Err: err}
	}
	key, err := k.of(p.segment)
	var missing *KeyError
	if errors.As(err, &missing) {
		missing.Seq = seq
	}
	if err != nil {
		return nil, err
	}
	plain, err := key.events.Open(nil, p.nonce, p.ciphertext, associated(seq, kind, p.commit))
	if err != nil {
		return nil, &CorruptError{Seq: seq, Err: errors.New("the event does not open: it was changed, or it is another's")}
	}
	return plain, nil
}

// errSealed says that a sealed body is none.
var errSealed = errors.New("a sealed event without number, nonce, commitment or tag")

// sealedParts are what a sealed body is made of. They alias it.
type sealedParts struct {
	segment       uint64
	nonce, commit []byte
	ciphertext    []byte
}

func parseSealed(body []byte) (p sealedParts, err error) {
	c := cursor{b: body}
	b := c.bytes(majorBytes)
	segment, rest, ok := numbered(b, nonceSize+commitSize+tagSize)
	if c.err != nil || len(c.b) != 0 || !ok {
		return p, errSealed
	}
	rest, ciphertext := rest[:nonceSize+commitSize], rest[nonceSize+commitSize:]
	return sealedParts{segment, rest[:nonceSize], rest[nonceSize:], ciphertext}, nil
}

// split is the kind of a stored event, and its body as it is stored.
func split(event []byte) (kind uint64, body []byte) {
	c := cursor{b: event}
	c.head(majorArray)
	kind = c.head(majorUint)
	return kind, c.b
}

// Disclosure is what shows the stored event at seq to who has no keys, nil where it is not sealed: with it
// [DecodeDisclosed] reads that event and no other, and knows that it is what was stored.
func (k *Keyring) Disclosure(event []byte, seq turn.Seq) ([]byte, error) {
	if formOf(event) != formSealed {
		return nil, nil
	}
	kind, stored := split(event)
	body, err := k.unsealed(seq, kind, stored)
	if err != nil {
		return nil, err
	}
	p, err := parseSealed(stored)
	if err != nil {
		return nil, &CorruptError{Seq: seq, Err: err}
	}
	key, err := k.of(p.segment)
	if err != nil {
		return nil, err
	}
	shown := append(key.salt(p.nonce), body...)
	_, err = disclosed(event, seq, shown)
	return shown, err
}

// disclosed is the body of a sealed event, with what discloses it.
func disclosed(event []byte, seq turn.Seq, shown []byte) ([]byte, error) {
	kind, stored := split(event)
	p, err := parseSealed(stored)
	switch {
	case err != nil:
		return nil, &CorruptError{Seq: seq, Err: err}
	case len(shown) == 0:
		return nil, &KeyError{Segment: p.segment, Seq: seq}
	case len(shown) < saltSize:
		return nil, &CorruptError{Seq: seq, Err: fmt.Errorf("a disclosure of %d bytes", len(shown))}
	}
	salt, body := shown[:saltSize], shown[saltSize:]
	if c := commitment(salt, seq, kind, body); !bytes.Equal(c[:], p.commit) {
		return nil, &CorruptError{Seq: seq, Err: errors.New("what is disclosed is not the event that was stored")}
	}
	return body, nil
}

// DecodeDisclosed decodes the stored event at seq with its [Keyring.Disclosure]. One that is sealed and not disclosed is a
// *KeyError.
func DecodeDisclosed(event []byte, seq turn.Seq, shown []byte) (turn.Event, error) {
	if formOf(event) != formSealed {
		return DecodeEvent(event)
	}
	body, err := disclosed(event, seq, shown)
	if err != nil {
		return nil, err
	}
	kind, _ := split(event)
	return decodeBody(kind, body, nil)
}
