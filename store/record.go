package store

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"time"

	"turnstone/turn"
)

// A record is stored under its first sequence, in big-endian and without gaps between
// the fields:
//
//	format   1 byte, recordFormat
//	crc      4 bytes, CRC-32C of all that follows
//	first    8 bytes, sequence of the first event
//	count    4 bytes, number of events, at least 1
//	boot     16 bytes
//	uptime   8 bytes, nanoseconds
//	wall     8 bytes, nanoseconds since the Unix epoch
//	chain    32 bytes, SHA-256 of the whole record before, zeros for the first
//	root     32 bytes, RFC 6962 head over the events 1..first+count-1
//	events   count times: length as uvarint, stored form of the event
const (
	recordFormat = 1
	recordHeader = 1 + 4 + 8 + 4 + 16 + 8 + 8 + 32 + 32

	maxEvent = 1 << 20
	minEvent = 1 + 3 // with its length: array, kind, body
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Errors of decoding. A damaged record is a [CorruptError].
var (
	ErrUnknownKind   = errors.New("unknown kind: a newer turnstone wrote it")
	ErrUnknownFormat = errors.New("unknown record format: a newer turnstone wrote it")
)

// CorruptError says that the file does not hold what was written to it.
type CorruptError struct {
	File string   // empty where only a record is known
	Seq  turn.Seq // of the record, 0 where it is not about one
	Err  error
}

func (e *CorruptError) Error() string {
	where := "log"
	if e.File != "" {
		where = e.File
	}
	if e.Seq != 0 {
		return fmt.Sprintf("%s is damaged at event %d: %v", where, e.Seq, e.Err)
	}
	return fmt.Sprintf("%s is damaged: %v", where, e.Err)
}

func (e *CorruptError) Unwrap() error { return e.Err }

// envelope is a record as it is stored, its events not yet decoded.
type envelope struct {
	first  turn.Seq
	moment turn.Moment
	chain  Hash // of the record before
	root   Hash
	events [][]byte // alias the record
}

func (v *envelope) last() turn.Seq { return v.first + turn.Seq(len(v.events)) - 1 }

// parseEnvelope checks the form and the CRC of b.
func parseEnvelope(b []byte) (envelope, error) {
	if len(b) < 1 || b[0] != recordFormat {
		return envelope{}, ErrUnknownFormat
	}
	if len(b) < recordHeader {
		return envelope{}, &CorruptError{Err: fmt.Errorf("a record of %d bytes", len(b))}
	}
	first := turn.Seq(binary.BigEndian.Uint64(b[5:]))
	if crc32.Checksum(b[5:], castagnoli) != binary.BigEndian.Uint32(b[1:]) {
		return envelope{}, &CorruptError{Seq: first, Err: errors.New("CRC-32C does not match")}
	}
	v := envelope{first: first}
	count := binary.BigEndian.Uint32(b[13:])
	copy(v.moment.Boot[:], b[17:])
	v.moment.Uptime = time.Duration(binary.BigEndian.Uint64(b[33:]))
	v.moment.Wall = int64(binary.BigEndian.Uint64(b[41:]))
	copy(v.chain[:], b[49:])
	copy(v.root[:], b[81:])
	rest := b[recordHeader:]
	if count == 0 || uint64(count)*minEvent > uint64(len(rest)) {
		return envelope{}, &CorruptError{Seq: first, Err: fmt.Errorf("%d events in %d bytes", count, len(rest))}
	}
	v.events = make([][]byte, count)
	for i := range v.events {
		n, size := binary.Uvarint(rest)
		if size <= 0 || size > 1 && rest[size-1] == 0 || n > uint64(len(rest)-size) {
			return envelope{}, &CorruptError{Seq: first, Err: fmt.Errorf("event %d runs over the record", i)}
		}
		v.events[i], rest = rest[size:size+int(n)], rest[size+int(n):]
	}
	if len(rest) != 0 {
		return envelope{}, &CorruptError{Seq: first, Err: fmt.Errorf("%d bytes follow the last event", len(rest))}
	}
	return v, nil
}

// record decodes the events of v.
func (v *envelope) record(names *names, keys *Keyring) (turn.Record, error) {
	r := turn.Record{First: v.first, Moment: v.moment, Events: make([]turn.Event, len(v.events))}
	for i, b := range v.events {
		e, err := decodeEvent(b, v.first+turn.Seq(i), names, keys)
		if err != nil {
			return turn.Record{}, fmt.Errorf("event %d: %w", v.first+turn.Seq(i), err)
		}
		r.Events[i] = e
	}
	return r, nil
}

// Decode decodes a stored record. What of it is sealed takes keys, which may be nil; the error is a *KeyError where
// one is missing.
func Decode(b []byte, keys *Keyring) (turn.Record, error) { return decodeRecord(b, nil, keys) }

func decodeRecord(b []byte, names *names, keys *Keyring) (turn.Record, error) {
	v, err := parseEnvelope(b)
	if err != nil {
		return turn.Record{}, err
	}
	return v.record(names, keys)
}

// chain is where a log stands: the hash of its last record and the tree over
// its events. The next record is made of it, and checked against it.
type chain struct {
	last Hash
	tree tree
	hasher
}

func (c *chain) next() turn.Seq { return turn.Seq(c.tree.size) + 1 }

func (c *chain) clone() chain { return chain{last: c.last, tree: c.tree.clone()} }

// encode makes the stored form of r, which is c's next record, and advances c. Its events are sealed with key, if there is one.
func (c *chain) encode(r turn.Record, key *segmentKey) ([]byte, error) {
	if len(r.Events) == 0 || r.First != c.next() {
		return nil, fmt.Errorf("append a record of %d events at %d: the log is at %d", len(r.Events), r.First, c.next()-1)
	}
	b := make([]byte, recordHeader, recordHeader+128*len(r.Events))
	var one, plain []byte
	sealing := newSealing(key, len(r.Events))
	for i, e := range r.Events {
		var err error
		if plain, err = EncodeEvent(plain[:0], e); err != nil {
			return nil, err
		}
		one = sealing.event(one[:0], plain, r.First+turn.Seq(i))
		if len(one) > maxEvent {
			return nil, fmt.Errorf("append event %d (%T): %d bytes, at most %d", r.First+turn.Seq(i), e, len(one), maxEvent)
		}
		b = binary.AppendUvarint(b, uint64(len(one)))
		b = append(b, one...)
		c.tree.add(c.leafHash(r.First+turn.Seq(i), r.Moment, one))
	}
	b[0] = recordFormat
	binary.BigEndian.PutUint64(b[5:], uint64(r.First))
	binary.BigEndian.PutUint32(b[13:], uint32(len(r.Events)))
	copy(b[17:], r.Moment.Boot[:])
	binary.BigEndian.PutUint64(b[33:], uint64(r.Moment.Uptime))
	binary.BigEndian.PutUint64(b[41:], uint64(r.Moment.Wall))
	copy(b[49:], c.last[:])
	root := c.tree.root()
	copy(b[81:], root[:])
	binary.BigEndian.PutUint32(b[1:], crc32.Checksum(b[5:], castagnoli))
	c.last = sha256.Sum256(b)
	return b, nil
}

// link checks that raw, whose envelope is v, follows c, and advances c's chain but not its tree.
func (c *chain) link(v *envelope, raw []byte, next turn.Seq) error {
	if v.first != next {
		return &CorruptError{Seq: next, Err: fmt.Errorf("the next record begins at %d", v.first)}
	}
	if v.chain != c.last {
		return &CorruptError{Seq: v.first, Err: errors.New("the record does not follow the one before it")}
	}
	c.last = sha256.Sum256(raw)
	return nil
}

// grow adds the events of v to c's tree and checks the head.
func (c *chain) grow(v *envelope) error {
	for i, e := range v.events {
		c.tree.add(c.leafHash(v.first+turn.Seq(i), v.moment, e))
	}
	if c.tree.root() != v.root {
		return &CorruptError{Seq: v.first, Err: errors.New("the tree head does not match the events")}
	}
	return nil
}
