package admin

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"

	"turnstone/store"
	"turnstone/turn"
)

// A stream of records is each of them behind its length in four bytes, big-endian. It
// ends with streamEnd, or with streamFailed and a streamError in JSON behind its own length.
const (
	streamEnd    = 0
	streamFailed = 1<<32 - 1

	maxStreamed = 1 << 30 // bytes of a record
)

// streamError is why a stream ended early.
type streamError struct {
	Message string   `json:"message"`
	Damage  bool     `json:"damage"` // it is a *store.CorruptError
	Seq     turn.Seq `json:"seq"`
}

func writeFrame(w io.Writer, b []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...))
	return err
}

func writeEnd(w io.Writer) error {
	_, err := w.Write(binary.BigEndian.AppendUint32(nil, streamEnd))
	return err
}

func writeFailure(w io.Writer, err error) error {
	e := streamError{Message: err.Error()}
	var damage *store.CorruptError
	if errors.As(err, &damage) {
		e = streamError{Message: damage.Err.Error(), Damage: true, Seq: damage.Seq}
	}
	b, err := json.Marshal(e)
	if err != nil {
		return err
	}
	if _, err := w.Write(binary.BigEndian.AppendUint32(nil, streamFailed)); err != nil {
		return err
	}
	return writeFrame(w, b)
}

// readStream yields the records of a stream. The error it ends with is that of the other side.
func readStream(r io.Reader) iter.Seq2[[]byte, error] {
	body := bufio.NewReaderSize(r, 1<<16)
	return func(yield func([]byte, error) bool) {
		for {
			raw, err := readFrame(body)
			if err == io.EOF { //nolint:errorlint // readFrame's own, for the end
				return
			}
			if !yield(raw, err) || err != nil {
				return
			}
		}
	}
}

// readFrame reads a record; io.EOF is the end of the stream.
func readFrame(r io.Reader) ([]byte, error) {
	early := func(err error) error { return fmt.Errorf("the daemon ended the log early: %w", err) }
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, early(noEOF(err))
	}
	n := binary.BigEndian.Uint32(head[:])
	switch {
	case n == streamEnd:
		return nil, io.EOF
	case n == streamFailed:
		b, err := readFrame(r)
		if err != nil {
			return nil, early(noEOF(err))
		}
		return nil, failureOf(b)
	case n > maxStreamed:
		return nil, early(fmt.Errorf("a record of %d bytes", n))
	}
	raw := make([]byte, n)
	if _, err := io.ReadFull(r, raw); err != nil {
		return nil, early(noEOF(err))
	}
	return raw, nil
}

// noEOF is err, where the end was not to be expected.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

func failureOf(b []byte) error {
	var e streamError
	if err := json.Unmarshal(b, &e); err != nil {
		return fmt.Errorf("read why the daemon ended the log early: %w", err)
	}
	if e.Damage {
		return &store.CorruptError{Seq: e.Seq, Err: errors.New(e.Message)}
	}
	return errors.New(e.Message)
}
