package store

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"math/bits"

	"turnstone/turn"
)

// Hash is a SHA-256: of a record in the chain, or of a node in the tree.
type Hash [sha256.Size]byte

func (h Hash) String() string { return hex.EncodeToString(h[:]) }

// MarshalText is h in hexadecimal.
func (h Hash) MarshalText() ([]byte, error) { return []byte(h.String()), nil }

// UnmarshalText is the opposite of MarshalText.
func (h *Hash) UnmarshalText(b []byte) error { return unhex(h[:], string(b)) }

// leafHash is the RFC 6962 hash of the leaf of event seq: which event of the
// log it is and when it happened, then its stored form.
func (h *hasher) leafHash(seq turn.Seq, m turn.Moment, event []byte) Hash {
	b := append(h.buf[:0], 0)
	b = binary.BigEndian.AppendUint64(b, uint64(seq))
	b = append(b, m.Boot[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(m.Uptime))
	b = binary.BigEndian.AppendUint64(b, uint64(m.Wall))
	b = append(b, event...)
	h.buf = b
	return sha256.Sum256(b)
}

// hasher keeps the buffer leaves are put together in.
type hasher struct{ buf []byte }

func nodeHash(left, right Hash) Hash {
	var b [1 + 2*sha256.Size]byte
	b[0] = 1
	copy(b[1:], left[:])
	copy(b[1+sha256.Size:], right[:])
	return sha256.Sum256(b[:])
}

// tree is the compact range of an RFC 6962 Merkle tree: the roots of the perfect
// subtrees its leaves make, the largest first.
type tree struct {
	size  uint64
	peaks []Hash
	block Hash // root of the last subtree of treeBlock leaves that was completed by add
}

// add appends a leaf.
func (t *tree) add(leaf Hash) {
	n := bits.TrailingZeros64(^t.size)
	for level := 1; level <= n; level++ {
		last := len(t.peaks) - 1
		leaf = nodeHash(t.peaks[last], leaf)
		t.peaks = t.peaks[:last]
		if level == treeLevel {
			t.block = leaf
		}
	}
	t.peaks = append(t.peaks, leaf)
	t.size++
}

// root is the head of the tree (RFC 6962 section 2.1).
func (t *tree) root() Hash {
	if len(t.peaks) == 0 {
		return sha256.Sum256(nil)
	}
	h := t.peaks[len(t.peaks)-1]
	for i := len(t.peaks) - 2; i >= 0; i-- {
		h = nodeHash(t.peaks[i], h)
	}
	return h
}

func (t *tree) clone() tree { return tree{size: t.size, peaks: append([]Hash(nil), t.peaks...)} }

// subtree is the n-th perfect subtree of 1<<level leaves.
type subtree struct {
	level int
	n     int64
	root  Hash
}

// subtrees are those whose roots are the peaks of t.
func (t *tree) subtrees() []subtree {
	out := make([]subtree, 0, len(t.peaks))
	at := uint64(0)
	for rest := t.size; rest > 0; {
		level := bits.Len64(rest) - 1
		out = append(out, subtree{level, int64(at >> level), t.peaks[len(out)]})
		at += 1 << level
		rest &^= 1 << level
	}
	return out
}
