package audit

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"turnstone/store"
)

// cipher is how the rows of one segment are stored, and what their terms are: as they are, or under the key of the segment, as its
// events are. It is for one goroutine.
type cipher struct {
	keys    *store.Keyring // nil: as they are
	segment uint64
	known   map[value]term
}

// cipherOf is the cipher of a segment, sealed or not. The error is a *store.KeyError where its key is not to be had.
func cipherOf(keys *store.Keyring, segment uint64, sealed bool) (*cipher, error) {
	c := &cipher{known: map[value]term{}}
	if !sealed {
		return c, nil
	}
	c.keys, c.segment = keys, segment
	_, err := c.term(value{})
	return c, err
}

func (c *cipher) sealed() bool { return c.keys != nil }

// seal encrypts b, for open with the same context.
func (c *cipher) seal(context string, b []byte) ([]byte, error) {
	if c.keys == nil {
		return b, nil
	}
	return c.keys.Seal(c.segment, context, b)
}

func (c *cipher) open(context string, b []byte) ([]byte, error) {
	if c.keys == nil {
		return b, nil
	}
	plain, err := c.keys.Open(context, b)
	var damage *store.CorruptError
	if errors.As(err, &damage) {
		return nil, errBlock
	}
	return plain, err
}

// term is the term of v: 8 bytes of SHA-256 over field and value, or of a token that nobody can make without the key. Most
// values come again and again.
func (c *cipher) term(v value) (t term, err error) {
	if t, ok := c.known[v]; ok {
		return t, nil
	}
	var sum [sha256.Size]byte
	if c.keys == nil {
		sum = sha256.Sum256(append([]byte{v.field}, v.value...))
	} else if sum, err = c.keys.Token(c.segment, fmt.Sprintf("audit %d", v.field), []byte(v.value)); err != nil {
		return 0, err
	}
	t = term(binary.BigEndian.Uint64(sum[:]))
	if len(c.known) >= maxKnown {
		clear(c.known)
	}
	c.known[v] = t
	return t, nil
}

// maxKnown bounds the terms that are remembered.
const maxKnown = 1 << 16
