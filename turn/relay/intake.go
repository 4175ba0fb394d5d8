package relay

import (
	"errors"
	"time"

	"turnstone/turn"
)

// Sizes of what a stream is read into, in bytes.
const (
	firstBuffer = 2 << 10
	helloBuffer = 8 << 10  // at most, while there is no allocation
	fastBuffer  = 32 << 10 // at most, unless a frame is longer
	dtlsBuffer  = 16 << 10 // a record of DTLS has no more (RFC 6347 section 4.1)
)

// intakeIdle is how long a stream may do with firstBuffer before it has no more.
const intakeIdle = 5 * time.Second

var errLongFrame = errors.New("a frame that is too long for a client without an allocation")

// intake is what a stream is read into: small while little comes, so that many streams are cheap, and larger while much does, so that
// a read takes much of it.
type intake struct {
	buf      []byte
	n        int       // bytes in it
	needed   time.Time // when firstBuffer last was too small
	constant bool      // its size: each read is a message
}

func newIntake(early []byte, datagrams bool) *intake {
	size := max(firstBuffer, len(early))
	if datagrams {
		size = dtlsBuffer
	}
	in := &intake{buf: make([]byte, size), needed: time.Now(), constant: datagrams}
	in.n = copy(in.buf, early)
	return in
}

// skip drops the first bytes.
func (in *intake) skip(n int) {
	in.n = copy(in.buf, in.buf[n:in.n])
}

// fit makes the buffer as large as it should be for the next read, after one with which it had got bytes in it. holds
// says whether the client has an allocation.
func (in *intake) fit(got int, holds bool, now time.Time) error {
	size := len(in.buf)
	if got > firstBuffer || got == size {
		in.needed = now
	}
	switch {
	case in.constant:
		return nil
	case in.n == size: // all of it is the beginning of one frame
		if size = min(2*size, turn.MaxStreamFrame); size > helloBuffer && !holds {
			return errLongFrame
		}
	case got == size && holds && size < fastBuffer:
		size = min(2*size, fastBuffer)
	case size > firstBuffer && in.n <= firstBuffer && now.Sub(in.needed) >= intakeIdle:
		size = firstBuffer
	}
	if size != len(in.buf) {
		buf := make([]byte, size)
		copy(buf, in.buf[:in.n])
		in.buf = buf
	}
	return nil
}

// until is when to stop waiting for data: at end, or to give room back.
func (in *intake) until(end time.Time) time.Time {
	if in.constant || len(in.buf) == firstBuffer || in.n > firstBuffer {
		return end
	}
	if back := in.needed.Add(intakeIdle); back.Before(end) {
		return back
	}
	return end
}
