package store

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"turnstone/turn"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

// CheckpointsName is the file in a log's directory that its checkpoints are appended to, each a signed note
// with an empty line behind it.
const CheckpointsName = "checkpoints"

// checkpointKey is the file, among the keys, of the key that signs checkpoints.
const checkpointKey = "checkpoint"

// Checkpoint says what a log is, up to an event. Signed, as a C2SP tlog-checkpoint, it commits whoever has the key to every
// event before: no other history has the same root.
type Checkpoint struct {
	Log   turn.LogID
	Size  turn.Seq // the last event
	Root  Hash     // RFC 6962 head over the events 1 to Size
	Epoch uint64
	Chain Hash // of the record that ends at Size
}

// origin is the name of a log, and of the key that signs for it.
func origin(id turn.LogID) string { return "turnstone/" + id.String() }

// text is the body of the note: origin, size and root, and a line of ours.
func (c *Checkpoint) text() string {
	return fmt.Sprintf("%s\n%d\n%s\nepoch %d chain %s\n", origin(c.Log), c.Size, tlog.Hash(c.Root), c.Epoch, c.Chain)
}

// parseCheckpoint is the opposite of text.
func parseCheckpoint(text string) (c Checkpoint, err error) {
	lines := strings.Split(text, "\n")
	if len(lines) != 5 {
		return c, errors.New("it is no checkpoint")
	}
	id, ours := strings.CutPrefix(lines[0], "turnstone/")
	size, err1 := strconv.ParseUint(lines[1], 10, 63)
	root, err2 := tlog.ParseHash(lines[2])
	var chain string
	_, err3 := fmt.Sscanf(lines[3], "epoch %d chain %s", &c.Epoch, &chain)
	err4 := errors.Join(unhex(c.Log[:], id), unhex(c.Chain[:], chain))
	c.Size, c.Root = turn.Seq(size), Hash(root)
	if !ours || errors.Join(err1, err2, err3, err4) != nil || c.text() != text {
		return c, errors.New("it is no checkpoint of turnstone's")
	}
	return c, nil
}

// ParseCheckpoint is the checkpoint in a note, whoever signed it.
func ParseCheckpoint(signed []byte) (Checkpoint, error) {
	text, _, _ := bytes.Cut(signed, []byte("\n\n"))
	return parseCheckpoint(string(text) + "\n")
}

// unhex fills dst with what s is in hexadecimal.
func unhex(dst []byte, s string) error {
	b, err := hex.DecodeString(s)
	if err == nil && len(b) != len(dst) {
		err = fmt.Errorf("%d bytes", len(b))
	}
	copy(dst, b)
	return err
}

// CheckKey says what is wrong with a verifier key, NAME+HASH+KEY.
func CheckKey(key string) error {
	if _, err := note.NewVerifier(key); err != nil {
		return fmt.Errorf("%q is no key of the form that turnstone log key prints: %w", key, err)
	}
	return nil
}

// OpenCheckpoint is the checkpoint in a signed note, if one of keys, verifier keys of the form NAME+HASH+KEY, has
// signed it for its own log.
func OpenCheckpoint(signed []byte, keys ...string) (Checkpoint, error) {
	var verifiers []note.Verifier
	for _, k := range keys {
		v, err := note.NewVerifier(k)
		if err != nil {
			return Checkpoint{}, fmt.Errorf("key %q: %w", k, err)
		}
		verifiers = append(verifiers, v)
	}
	n, err := note.Open(signed, note.VerifierList(verifiers...))
	var unverified *note.UnverifiedNoteError
	if errors.As(err, &unverified) {
		by := unverified.Note.UnverifiedSigs[0]
		return Checkpoint{}, fmt.Errorf("the key of %s with the hash %08x signed the checkpoint, and that is not the one that is trusted", by.Name, by.Hash)
	}
	if err != nil {
		return Checkpoint{}, fmt.Errorf("open checkpoint: %w", err)
	}
	c, err := parseCheckpoint(n.Text)
	if err == nil && origin(c.Log) != n.Sigs[0].Name {
		err = fmt.Errorf("the key of %s signed for %s", n.Sigs[0].Name, origin(c.Log))
	}
	return c, err
}

// Key signs the checkpoints of one log.
type Key struct {
	signer note.Signer
	public string
}

// Public is the key that others verify with, in the form NAME+HASH+KEY of golang.org/x/mod/sumdb/note.
func (k *Key) Public() string { return k.public }

// Sign is the note that says c.
func (k *Key) Sign(c Checkpoint) ([]byte, error) {
	if origin(c.Log) != k.signer.Name() {
		return nil, fmt.Errorf("sign a checkpoint of log %v: the key is that of %s", c.Log, k.signer.Name())
	}
	return note.Sign(&note.Note{Text: c.text()}, k.signer)
}

// parseKey reads a signer key, PRIVATE+KEY+NAME+HASH+KEY.
func parseKey(text string) (*Key, error) {
	signer, err := note.NewSigner(text)
	if err != nil {
		return nil, err
	}
	parts := strings.SplitN(text, "+", 5)
	seed, err := base64.StdEncoding.DecodeString(parts[4]) // behind a byte for the algorithm; the signer took it
	if err != nil {
		return nil, err
	}
	pair := ed25519.NewKeyFromSeed(seed[1:])
	public, err := note.NewEd25519VerifierKey(signer.Name(), pair.Public().(ed25519.PublicKey))
	return &Key{signer: signer, public: public}, err
}

// ReadCheckpointKey is the key in a log's directory. The error is os.ErrNotExist where there is none.
func ReadCheckpointKey(dir string) (*Key, error) {
	file := filepath.Join(dir, keysName, checkpointKey)
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the key of checkpoints: %w", err)
	}
	k, err := parseKey(strings.TrimSpace(string(b)))
	if err != nil {
		return nil, fmt.Errorf("read the key of checkpoints: %s: %w", file, err)
	}
	return k, nil
}

// LoadCheckpointKey is the key that signs for the log id in dir, made when it is first asked for: fresh says so. That
// of another log which was in dir is put aside under the other's name, and so are its checkpoints.
func LoadCheckpointKey(dir string, id turn.LogID) (k *Key, fresh bool, err error) {
	if k, err = ReadCheckpointKey(dir); err == nil && k.signer.Name() == origin(id) {
		return k, false, nil
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, false, err
	}
	keys := filepath.Join(dir, keysName)
	if err == nil {
		other := "." + strings.TrimPrefix(k.signer.Name(), "turnstone/")
		for _, name := range []string{filepath.Join(dir, CheckpointsName), filepath.Join(keys, checkpointKey)} {
			if err := os.Rename(name, name+other); err != nil && !errors.Is(err, os.ErrNotExist) {
				return nil, false, fmt.Errorf("put the key of another log aside: %w", err)
			}
		}
	}
	if err := makeDir(keys); err != nil {
		return nil, false, fmt.Errorf("make the key of checkpoints: %w", err)
	}
	text, _, err := note.GenerateKey(rand.Reader, origin(id))
	if err == nil {
		k, err = parseKey(text)
	}
	if err == nil {
		err = writeKey(filepath.Join(keys, checkpointKey), []byte(text))
	}
	return k, true, err
}

// SignedNote is a checkpoint as it lies in a file of checkpoints.
type SignedNote struct {
	Number int   // from 1
	Offset int64 // in the file
	Note   []byte
}

// SplitNotes cuts a file of checkpoints into its notes. Rest is what follows the last of them: one that was not wholly written.
func SplitNotes(b []byte) (notes []SignedNote, rest []byte) {
	gap := []byte("\n\n")
	for at := 0; at < len(b); {
		text := bytes.Index(b[at:], gap)
		if text < 0 || at+text+2 == len(b) {
			return notes, b[at:]
		}
		end := bytes.Index(b[at+text+2:], gap)
		if end < 0 && b[len(b)-1] != '\n' {
			return notes, b[at:]
		}
		size := len(b) - at
		if end >= 0 {
			size = text + 2 + end + 1
		}
		notes = append(notes, SignedNote{len(notes) + 1, int64(at), b[at : at+size]})
		if at += size + 1; end < 0 {
			break
		}
	}
	return notes, nil
}
