package store

import (
	"crypto/sha256"
	"errors"

	"turnstone/migrations"
	"turnstone/turn"

	"go.etcd.io/bbolt"
)

// Head is the last sequence that is durable and the hash of the record that ends there. It waits for
// an append that is under way.
func (l *Log) Head() (turn.Seq, [sha256.Size]byte) {
	l.write.Lock()
	defer l.write.Unlock()
	return l.chain.next() - 1, l.chain.last
}

// ChainAt is the hash of the record that ends at seq, false where no record does, or it is in the log no more.
func (l *Log) ChainAt(seq turn.Seq) (hash [sha256.Size]byte, ok bool, err error) {
	if last, chain := l.Head(); seq == last {
		return chain, true, nil
	}
	return chainAt(l, seq)
}

// chainAt is the hash of the record that ends at seq, by the record after it.
func chainAt(s source, seq turn.Seq) (hash [sha256.Size]byte, ok bool, err error) {
	retired := false
	err = s.view(func(tx *bbolt.Tx) error {
		segments := tx.Bucket(migrations.Segments)
		p := position{seq: seq + 1}
		err := p.find(segments)
		if retired = errors.Is(err, ErrRetired); retired || (err == nil && p.segment == nil) {
			return nil
		}
		if err != nil {
			return inFile(s.name(), err)
		}
		raw := segments.Bucket(p.segment).Get(key(uint64(seq + 1)))
		if raw == nil {
			return nil
		}
		next, err := parseEnvelope(raw)
		if err != nil {
			return inFile(s.name(), err)
		}
		hash, ok = next.chain, true
		return nil
	})
	if err != nil || !retired || pastOf(s) == nil {
		return hash, ok, err
	}
	for raw, err := range Raw(s, seq+1) { // of an archive
		if errors.Is(err, ErrRetired) {
			break
		}
		var next envelope
		if err == nil {
			next, err = parseEnvelope(raw)
		}
		if err != nil {
			return hash, false, inFile(s.name(), err)
		}
		return next.chain, next.first == seq+1, nil
	}
	return hash, false, nil
}
