package store

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"turnstone/turn"

	"github.com/klauspost/compress/zstd"
)

// A pack is records outside of a log's file: an archive of one segment, an export of many, or a backup. It is a CBOR
// sequence (RFC 8742), in zstd where it is a file. A record is a byte string with its stored form; everything else is
// an array [kind, body] in deterministic encoding:
//
//	1 segment   head of the records that follow: all that makes them readable and provable alone
//	2 snapshot  sequence, head and number of chunks, which follow as [3, chunk]
//	4 file      beside the log: a key, or the checkpoints
//	5 end       of an export or a backup, which was not cut off then
//	6 failure   why the sender gave up
//
// An archive has one segment and no end: its head says how many records there are.
const (
	packFormat = 1

	packSegment  = 1
	packSnapshot = 2
	packChunk    = 3
	packFile     = 4
	packEnd      = 5
	packFailure  = 6
)

// maxPacked bounds one item of a pack, so that a damaged one does not take all memory.
const maxPacked = 1 << 30

// PackHead describes the records of a segment, or of a part of one, that follow it.
type PackHead struct {
	Format  uint64     `cbor:"1,keyasint"`
	Log     turn.LogID `cbor:"2,keyasint"`
	Segment uint64     `cbor:"3,keyasint"`
	First   turn.Seq   `cbor:"4,keyasint"`
	Last    turn.Seq   `cbor:"5,keyasint"`
	Begin   []byte     `cbor:"6,keyasint"` // header of the segment: where chain and tree stood before First
	Chain   Hash       `cbor:"7,keyasint"` // of the last record
	Root    Hash       `cbor:"8,keyasint"` // RFC 6962 root over events 1 to Last
	Records uint64     `cbor:"9,keyasint"`
	Bytes   uint64     `cbor:"10,keyasint"` // of records
	Wall    int64      `cbor:"11,keyasint"` // of the last record, ns since the Unix epoch
}

// begin is where the log stood before the records of h.
func (h *PackHead) begin() (chain, error) {
	if h.Format != packFormat {
		return chain{}, fmt.Errorf("archive format %d, this program knows %d: %w", h.Format, packFormat, ErrUnknownFormat)
	}
	c, err := parseHeader(h.Begin)
	if err == nil && c.next() != h.First {
		err = fmt.Errorf("the header is of event %d and not of %d", c.next(), h.First)
	}
	return c, err
}

// PackSnapshot is a snapshot in its stored form, whose chunks follow.
type PackSnapshot struct {
	At     turn.Seq `cbor:"1,keyasint"`
	Head   []byte   `cbor:"2,keyasint"`
	Chunks uint64   `cbor:"3,keyasint"`
}

// PackFile is a file of the data directory.
type PackFile struct {
	Name string `cbor:"1,keyasint"` // relative to the directory, with slashes
	Mode uint32 `cbor:"2,keyasint"`
	Body []byte `cbor:"3,keyasint"`
}

// PackEnd ends what is complete.
type PackEnd struct {
	Last    turn.Seq `cbor:"1,keyasint"`
	Chain   Hash     `cbor:"2,keyasint"`
	Root    Hash     `cbor:"3,keyasint"`
	Records uint64   `cbor:"4,keyasint"`
}

// packFailed is why a sender gave up.
type packFailed struct {
	Message string   `cbor:"1,keyasint"`
	Damage  bool     `cbor:"2,keyasint"`
	Seq     turn.Seq `cbor:"3,keyasint"`
}

// packWriter writes items.
type packWriter struct {
	w   *bufio.Writer
	buf []byte
}

func newPackWriter(w io.Writer) *packWriter { return &packWriter{w: bufio.NewWriterSize(w, 1<<16)} }

func (p *packWriter) record(raw []byte) error {
	p.buf = appendHead(p.buf[:0], majorBytes, uint64(len(raw)))
	if _, err := p.w.Write(p.buf); err != nil {
		return err
	}
	_, err := p.w.Write(raw)
	return err
}

func (p *packWriter) item(kind uint64, body any) error {
	b, err := encoding.Marshal(body)
	if err != nil {
		return err
	}
	return p.raw(kind, b)
}

// raw writes an item whose body is encoded.
func (p *packWriter) raw(kind uint64, body []byte) error {
	p.buf = append(appendHead(append(p.buf[:0], majorArray<<5|2), majorUint, kind), body...)
	_, err := p.w.Write(p.buf)
	return err
}

// fail tells the reader why there is no more.
func (p *packWriter) fail(err error) error {
	f := packFailed{Message: err.Error()}
	var damage *CorruptError
	if errors.As(err, &damage) {
		f = packFailed{Message: damage.Err.Error(), Damage: true, Seq: damage.Seq}
	}
	return errors.Join(p.item(packFailure, f), p.w.Flush())
}

// packItem is one item: a record, or a kind with its body.
type packItem struct {
	record []byte
	kind   uint64
	body   []byte
}

// packReader reads items. io.EOF is the end between two of them.
type packReader struct{ r *bufio.Reader }

func newPackReader(r io.Reader) *packReader { return &packReader{bufio.NewReaderSize(r, 1<<16)} }

func (p *packReader) next() (packItem, error) {
	major, n, err := p.head()
	if err != nil {
		return packItem{}, err // io.EOF as it is
	}
	if major == majorBytes {
		b, err := p.bytes(n)
		return packItem{record: b}, err
	}
	if major != majorArray || n != 2 {
		return packItem{}, errors.New("an item that is neither a record nor of a known form")
	}
	major, kind, err := p.head()
	if err == nil && major != majorUint {
		err = errors.New("an item without a kind")
	}
	if err != nil {
		return packItem{}, noEOF(err)
	}
	body, err := p.any(4)
	if err != nil {
		return packItem{}, err
	}
	if kind == packFailure {
		var f packFailed
		if err := decoding.Unmarshal(body, &f); err != nil {
			return packItem{}, err
		}
		if f.Damage {
			return packItem{}, &CorruptError{Seq: f.Seq, Err: errors.New(f.Message)}
		}
		return packItem{}, errors.New(f.Message)
	}
	return packItem{kind: kind, body: body}, nil
}

// head reads the head of a CBOR item.
func (p *packReader) head() (major byte, n uint64, err error) {
	first, err := p.r.ReadByte()
	if err != nil {
		return 0, 0, err
	}
	major, low := first>>5, first&31
	if low < 24 {
		return major, uint64(low), nil
	}
	if low > 27 {
		return 0, 0, errors.New("an item of no deterministic encoding")
	}
	var b [8]byte
	size := 1 << (low - 24)
	if _, err := io.ReadFull(p.r, b[8-size:]); err != nil {
		return 0, 0, noEOF(err)
	}
	return major, binary.BigEndian.Uint64(b[:]), nil
}

func (p *packReader) bytes(n uint64) ([]byte, error) {
	if n > maxPacked {
		return nil, fmt.Errorf("an item of %d bytes", n)
	}
	b := make([]byte, 0, min(n, 1<<20)) // what is damaged may say anything
	for uint64(len(b)) < n {
		step := min(n-uint64(len(b)), 1<<20)
		at := len(b)
		b = append(b, make([]byte, step)...)
		if _, err := io.ReadFull(p.r, b[at:]); err != nil {
			return nil, noEOF(err)
		}
	}
	return b, nil
}

// any reads the bytes of one item: a byte string, or a map of integers to integers, byte strings, texts and booleans.
func (p *packReader) any(depth int) ([]byte, error) {
	if depth == 0 {
		return nil, errors.New("an item that lies too deep")
	}
	major, n, err := p.head()
	if err != nil {
		return nil, noEOF(err)
	}
	out := appendHead(nil, major, n)
	switch major {
	case majorUint, 1, 7: // of no length; a boolean is its head
		return out, nil
	case majorBytes, majorText:
		b, err := p.bytes(n)
		return append(out, b...), err
	case majorMap:
		if n > 64 {
			return nil, fmt.Errorf("a map of %d", n)
		}
		for range 2 * n {
			b, err := p.any(depth - 1)
			if err != nil {
				return nil, err
			}
			if out = append(out, b...); len(out) > maxPacked {
				return nil, fmt.Errorf("an item of more than %d bytes", maxPacked)
			}
		}
		return out, nil
	}
	return nil, fmt.Errorf("an item of major type %d", major)
}

// noEOF is err, where the end was not to be expected.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

// as decodes the body of an item.
func as[T any](i packItem) (out T, err error) {
	err = decoding.Unmarshal(i.body, &out)
	return out, err
}

// Compress is a writer of a pack to a file. Its memory is bounded, and the same pack makes the same bytes.
func Compress(w io.Writer) (io.WriteCloser, error) {
	return zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20), zstd.WithLowerEncoderMem(true))
}

// Decompress is the opposite of Compress.
func Decompress(r io.Reader) (io.ReadCloser, error) {
	d, err := zstd.NewReader(r, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxWindow(8<<20))
	if err != nil {
		return nil, err
	}
	return d.IOReadCloser(), nil
}
