package store

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"turnstone/turn"
)

// segmentKeys is the directory in keys with a file for each encrypted segment, named by its number.
const segmentKeys = "segments"

// keySize is the size of the key of a segment in bytes.
const keySize = 32

// KeyError says that something is encrypted and that its key is not to be had: it was erased
// ([Log.Forget]), or it is elsewhere.
type KeyError struct {
	Segment uint64   // whose key it is
	Seq     turn.Seq // of the event, 0 where it is not about one
	Keys    string   // where the key was looked for, empty where there was nowhere to look
}

func (e *KeyError) Error() string {
	what := "encrypted"
	if e.Seq != 0 {
		what = fmt.Sprintf("event %d is encrypted", e.Seq)
	}
	if e.Keys == "" {
		return fmt.Sprintf("%s with the key of segment %d, and no keys are given", what, e.Segment)
	}
	return fmt.Sprintf("%s with the key of segment %d, which is not in %s: it was erased, or it is elsewhere", what, e.Segment, e.Keys)
}

// Keyring has the keys of encrypted segments. It loads one when it is asked for, and keeps it. It is safe for
// concurrent use; a nil one has no keys.
type Keyring struct {
	where string // what errors say
	dir   string // that new keys are made in, empty for none
	load  func(segment uint64) ([]byte, error)

	mu   sync.RWMutex // guards keys
	keys map[uint64]*segmentKey

	drawing sync.Mutex // held while a key is made
}

// NewKeyring is the keys in a directory, that of the keys of a log ([Keys]).
func NewKeyring(dir string) *Keyring {
	dir = filepath.Join(dir, segmentKeys)
	k := LoadingKeyring(dir, func(segment uint64) ([]byte, error) {
		b, err := os.ReadFile(filepath.Join(dir, strconv.FormatUint(segment, 10)))
		if errors.Is(err, os.ErrNotExist) {
			return nil, nil
		}
		return b, err
	})
	k.dir = dir
	return k
}

// Keys is the directory of the keys of the log in dir.
func Keys(dir string) string { return filepath.Join(dir, keysName) }

// LoadingKeyring has its keys of load, which yields nil for one that it has not. Where is for people.
func LoadingKeyring(where string, load func(segment uint64) ([]byte, error)) *Keyring {
	return &Keyring{where: where, load: load, keys: map[uint64]*segmentKey{}}
}

// Has says whether there is a key of a segment.
func (k *Keyring) Has(segment uint64) (bool, error) {
	_, err := k.of(segment)
	var missing *KeyError
	if errors.As(err, &missing) {
		return false, nil
	}
	return err == nil, err
}

// Export is the key of a segment, nil where there is none.
func (k *Keyring) Export(segment uint64) ([]byte, error) {
	if k == nil {
		return nil, nil
	}
	if ok, err := k.Has(segment); !ok || err != nil { // what was forgotten meanwhile is not in memory any more
		return nil, err
	}
	return k.load(segment)
}

// of is the key of a segment. The error is a *KeyError where there is none.
func (k *Keyring) of(segment uint64) (*segmentKey, error) {
	if k == nil {
		return nil, &KeyError{Segment: segment}
	}
	k.mu.RLock()
	key := k.keys[segment]
	k.mu.RUnlock()
	if key != nil {
		return key, nil
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	secret, err := k.load(segment)
	switch {
	case err != nil:
		return nil, fmt.Errorf("load key of segment %d: %w", segment, err)
	case secret == nil:
		return nil, &KeyError{Segment: segment, Keys: k.where}
	case len(secret) != keySize:
		return nil, fmt.Errorf("load key of segment %d: %d bytes in %s, want %d", segment, len(secret), k.where, keySize)
	}
	if key, err = newSegmentKey(segment, secret); err == nil {
		k.keys[segment] = key
	}
	return key, err
}

// draw is the key of a segment, which is made where there is none. It is durable when draw returns.
func (k *Keyring) draw(segment uint64) (*segmentKey, error) {
	k.drawing.Lock()
	defer k.drawing.Unlock()
	key, err := k.of(segment)
	var missing *KeyError
	if !errors.As(err, &missing) {
		return key, err
	}
	if err := makeDir(k.dir); err != nil {
		return nil, fmt.Errorf("make key of segment %d: %w", segment, err)
	}
	secret := make([]byte, keySize)
	rand.Read(secret)
	if err := writeKey(filepath.Join(k.dir, strconv.FormatUint(segment, 10)), secret); err != nil {
		return nil, err
	}
	return k.of(segment)
}

// drop forgets what was loaded of a segment.
func (k *Keyring) drop(segment uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.keys, segment)
}

// Token is what value is known by in a projection of an encrypted segment: without the segment's key nobody can
// tell of what it is. Fields have tokens of their own.
func (k *Keyring) Token(segment uint64, field string, value []byte) (t [sha256.Size]byte, err error) {
	key, err := k.of(segment)
	if err != nil {
		return t, err
	}
	mac := hmac.New(sha256.New, key.tokens)
	mac.Write(binary.BigEndian.AppendUint64(nil, uint64(len(field))))
	mac.Write([]byte(field))
	mac.Write(value)
	mac.Sum(t[:0])
	return t, nil
}

// Seal encrypts plain under the key of a segment, for [Keyring.Open] with the same context. What is sealed says
// of itself which key it needs.
func (k *Keyring) Seal(segment uint64, context string, plain []byte) ([]byte, error) {
	key, err := k.of(segment)
	if err != nil {
		return nil, err
	}
	return key.seal(context, plain), nil
}

// Open is the opposite of Seal. What was changed, or sealed in another context, is a *CorruptError.
func (k *Keyring) Open(context string, sealed []byte) ([]byte, error) {
	segment, rest, ok := sealedBy(sealed)
	if !ok {
		return nil, &CorruptError{Err: fmt.Errorf("open %s: it is not sealed", context)}
	}
	key, err := k.of(segment)
	if err != nil {
		return nil, err
	}
	nonce, body := rest[:nonceSize], rest[nonceSize:]
	plain, err := key.blobs.Open(nil, nonce, body, []byte(context))
	if err != nil {
		return nil, &CorruptError{Err: fmt.Errorf("open %s: it is not what was sealed", context)}
	}
	return plain, nil
}

// SealedBy is the segment whose key b was sealed with, false where b was not sealed: what is in CBOR never
// looks as if it were, unless it is the integer 1.
func SealedBy(b []byte) (segment uint64, ok bool) {
	segment, _, ok = sealedBy(b)
	return segment, ok
}

// sealedMark is the first byte of what Seal makes; the number of the segment follows as uvarint, then nonce and ciphertext.
const sealedMark = 1

func sealedBy(b []byte) (segment uint64, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != sealedMark {
		return 0, nil, false
	}
	segment, rest, ok = numbered(b[1:], nonceSize+tagSize)
	return segment, rest, ok
}

// numbered reads the number of a key, behind which there are to be least bytes.
func numbered(b []byte, least int) (segment uint64, rest []byte, ok bool) {
	segment, n := binary.Uvarint(b)
	if n <= 0 || n > 1 && b[n-1] == 0 || len(b)-n < least {
		return 0, nil, false
	}
	return segment, b[n:], true
}

// segmentKey is the key of one segment, or what is derived of it for each use.
type segmentKey struct {
	segment       uint64
	events, blobs cipher.AEAD
	salts         cipher.Block
	tokens        []byte
}

func newSegmentKey(segment uint64, secret []byte) (*segmentKey, error) {
	key := &segmentKey{segment: segment}
	derive := func(use string) ([]byte, error) {
		return hkdf.Expand(sha256.New, secret, fmt.Sprintf("turnstone %s %d", use, segment), keySize)
	}
	events, err1 := derive("events")
	blobs, err2 := derive("blobs")
	tokens, err3 := derive("tokens")
	salts, err4 := derive("salts")
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return nil, fmt.Errorf("derive of the key of segment %d: %w", segment, err)
	}
	key.tokens = tokens
	return key, errors.Join(gcm(&key.events, events), gcm(&key.blobs, blobs), cipherOf(&key.salts, salts))
}

func cipherOf(b *cipher.Block, secret []byte) (err error) {
	*b, err = aes.NewCipher(secret)
	return err
}

func gcm(a *cipher.AEAD, secret []byte) error {
	var b cipher.Block
	err := cipherOf(&b, secret)
	if err == nil {
		*a, err = cipher.NewGCM(b)
	}
	return err
}

func (k *segmentKey) seal(context string, plain []byte) []byte {
	var nonce [nonceSize]byte
	rand.Read(nonce[:])
	out := make([]byte, 0, 1+binary.MaxVarintLen64+nonceSize+len(plain)+tagSize)
	out = append(binary.AppendUvarint(append(out, sealedMark), k.segment), nonce[:]...)
	return k.blobs.Seal(out, nonce[:], plain, []byte(context))
}
