package audit

import (
	"encoding/binary"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"

	"turnstone/store"
	"turnstone/turn"
)

// carried is how far an index has come, and what is open there: a Builder that has just been cut.
type carried struct {
	last    turn.Seq
	chain   [32]byte // of the record that ends there
	segment uint64   // that last is in
	builder *Builder
}

const carriedFormat = 1

// carriedKey is the key of the head.
var carriedKey = []byte("head")

// chunkRows is how many bytes of rows stand behind one CRC-32C.
const chunkRows = 16 << 10

// encode makes the values of c: a head, and chunks of rows, those that have ended before those that have not.
func (c *carried) encode(k *cipher) (head []byte, chunks [][]byte, err error) {
	b := c.builder
	if b.err != nil {
		return nil, nil, b.err
	}
	w := writer{b: []byte{carriedFormat}}
	w.uint(uint64(c.last))
	w.b = append(w.b, c.chain[:]...)
	w.uint(c.segment)
	w.flag(k.sealed())
	w.b = append(w.b, b.log[:]...)
	w.uint(b.epoch)
	w.b = append(w.b, b.moment.Boot[:]...)
	w.int(int64(b.moment.Uptime))
	w.int(b.moment.Wall)
	w.count(len(b.mappings))
	for i := range b.mappings {
		w.addr(b.mappings[i].IP)
		w.addr(b.mappings[i].External)
		w.span(&b.mappings[i].Span)
	}
	w.count(len(b.ended))
	w.count(len(b.open) + len(b.asleep))
	var chunk writer
	flush := func() error {
		if len(chunk.b) == 0 {
			return nil
		}
		one, err := k.seal(c.context(len(chunks)), chunk.b)
		chunks, chunk.b = append(chunks, closed(0, chunkKey(len(chunks)), slices.Clip(one))), nil
		return err
	}
	add := func(row []byte) error {
		chunk.bytes(row)
		if len(chunk.b) < chunkRows {
			return nil
		}
		return flush()
	}
	for _, r := range b.ended {
		if err := add(encodeRow(r)); err != nil {
			return nil, nil, err
		}
	}
	ids := slices.AppendSeq(slices.Collect(maps.Keys(b.open)), maps.Keys(b.asleep))
	slices.Sort(ids)
	for _, id := range ids {
		row, asleep := b.asleep[id]
		if !asleep {
			row = encodeRow(b.open[id])
		}
		if err := add(row); err != nil {
			return nil, nil, err
		}
	}
	if err := flush(); err != nil {
		return nil, nil, err
	}
	w.count(len(chunks))
	return closed(0, carriedKey, w.b), chunks, nil
}

// parseCarried is the opposite of encode: it is complete once its rows are decoded, whose chunks are to be filled in.
func parseCarried(head []byte) (c *carried, rows carriedRows, err error) {
	b, err := opened(0, carriedKey, head)
	if err != nil || len(b) < 1 || b[0] != carriedFormat {
		return nil, rows, errBlock
	}
	r := reader{b: b[1:]}
	c = &carried{last: turn.Seq(r.uint()), builder: NewBuilder()}
	copy(c.chain[:], r.fixed(32))
	c.segment = r.uint()
	rows.sealed = r.flag()
	copy(c.builder.log[:], r.fixed(16))
	c.builder.epoch = r.uint()
	copy(c.builder.moment.Boot[:], r.fixed(16))
	c.builder.moment.Uptime, c.builder.moment.Wall = time.Duration(r.int()), r.int()
	c.builder.last = c.last
	c.builder.mappings = list(&r, new(arena[Mapping]), 6, func() Mapping { return Mapping{r.addr(), r.addr(), r.span()} })
	rows.ended, rows.open = int(r.uint()), int(r.uint())
	if chunks := r.uint(); chunks <= maxChunks {
		rows.chunks = make([][]byte, chunks)
	} else {
		r.fail()
	}
	if r.bad || len(r.b) > 0 {
		return nil, rows, errBlock
	}
	return c, rows, nil
}

// maxChunks is more than there ever are.
const maxChunks = 1 << 24

// carriedRows are the rows of a carried that are not decoded yet.
type carriedRows struct {
	sealed      bool
	ended, open int
	chunks      [][]byte
}

// decode puts the rows into c: those that have ended, and the others asleep.
func (rows *carriedRows) decode(c *carried, keys *store.Keyring) error {
	k, err := cipherOf(keys, c.segment, rows.sealed)
	if err != nil {
		return err
	}
	b := c.builder
	b.asleep = make(map[turn.AllocationID][]byte, min(rows.open, 1<<20))
	for i, chunk := range rows.chunks {
		plain, err := opened(0, chunkKey(i), chunk)
		if err == nil {
			plain, err = k.open(c.context(i), plain)
		}
		if err != nil {
			return err
		}
		for in := (reader{b: plain}); len(in.b) > 0; {
			raw := in.fixed(in.uint())
			if in.bad {
				return errBlock
			}
			if len(b.ended) < rows.ended {
				r, err := b.decoder.row(raw)
				if err != nil {
					return err
				}
				b.ended = append(b.ended, &r)
				b.over[r.Allocation] = &r
			} else if err := b.lay(raw); err != nil {
				return err
			}
		}
	}
	if len(b.ended) != rows.ended || len(b.asleep) != rows.open {
		return errBlock
	}
	return nil
}

// context is what chunk i is encrypted for.
func (c *carried) context(i int) string { return fmt.Sprintf("audit open %d chunk %d", c.last, i) }

// chunkKey is the key of chunk i.
func chunkKey(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }

// external is the address that clients and peers knew a by while s lasted, a itself where no NAT was in front.
func external(mappings []Mapping, a netip.Addr, s *Span) netip.Addr {
	lo, hi := s.bounds()
	for i := range mappings {
		from, to := mappings[i].bounds()
		if m := &mappings[i]; m.IP == a && from <= hi && to >= lo {
			return m.External
		}
	}
	return a
}
