package store

import (
	"encoding/binary"
	"errors"
	"math"
	"net/netip"
	"unicode/utf8"
)

// CBOR major types (RFC 8949 section 3.1).
const (
	majorUint     = 0
	majorNegative = 1
	majorBytes    = 2
	majorText     = 3
	majorArray    = 4
	majorMap      = 5
)

// null is what the library writes for a nil slice.
const null = 0xf6

// appendHead appends the head of a CBOR item in its shortest form.
func appendHead(dst []byte, major byte, n uint64) []byte {
	major <<= 5
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n < 1<<8:
		return append(dst, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, major|27), n)
}

func appendBytes(dst, b []byte) []byte {
	return append(appendHead(dst, majorBytes, uint64(len(b))), b...)
}

func appendText(dst []byte, s string) []byte {
	return append(appendHead(dst, majorText, uint64(len(s))), s...)
}

// appendAddr appends a as netip's binary form, which is what the library makes of it.
func appendAddr(dst []byte, a netip.Addr) []byte {
	if a.Is4() {
		b := a.As4()
		return appendBytes(dst, b[:])
	}
	if !a.IsValid() {
		return appendBytes(dst, nil)
	}
	b := a.As16()
	return appendBytes(dst, b[:])
}

// appendAddrPort appends a as netip's binary form: the address and a little-endian port.
func appendAddrPort(dst []byte, a netip.AddrPort) []byte {
	n := a.Addr().BitLen() / 8
	dst = appendHead(dst, majorBytes, uint64(n+2))
	switch n {
	case 4:
		b := a.Addr().As4()
		dst = append(dst, b[:]...)
	case 16:
		b := a.Addr().As16()
		dst = append(dst, b[:]...)
	}
	return binary.LittleEndian.AppendUint16(dst, a.Port())
}

// errCBOR is any departure from the deterministic encoding the hot decoder
// knows: the library then says what is wrong, if anything is.
var errCBOR = errors.New("not in the form of the hot decoder")

// cursor reads CBOR in deterministic encoding. The first error sticks.
type cursor struct {
	b     []byte
	err   error
	names *names // may be nil
}

// names keeps strings that come again and again, so that each is there once: a log has few
// users and realms and many allocations. It is for one goroutine.
type names struct{ known map[string]string }

// maxNames bounds what is kept. Whoever has more users has them twice.
const maxNames = 4096

func (n *names) of(b []byte) string {
	if n == nil {
		return string(b)
	}
	if s, ok := n.known[string(b)]; ok {
		return s
	}
	if n.known == nil || len(n.known) >= maxNames {
		n.known = map[string]string{}
	}
	s := string(b)
	n.known[s] = s
	return s
}

// head reads the head of an item of type major and yields its argument.
func (c *cursor) head(major byte) uint64 {
	if c.err != nil || len(c.b) == 0 || c.b[0]>>5 != major {
		return c.fail()
	}
	info, rest := c.b[0]&31, c.b[1:]
	if info < 24 {
		c.b = rest
		return uint64(info)
	}
	if info > 27 {
		return c.fail()
	}
	size := 1 << (info - 24)
	if len(rest) < size {
		return c.fail()
	}
	var n uint64
	for _, x := range rest[:size] {
		n = n<<8 | uint64(x)
	}
	if shortest := [...]uint64{24, 1 << 8, 1 << 16, 1 << 32}[info-24]; n < shortest {
		return c.fail()
	}
	c.b = rest[size:]
	return n
}

func (c *cursor) fail() uint64 {
	c.err = errCBOR
	return 0
}

// key reads the map key n.
func (c *cursor) key(n uint64) {
	if c.head(majorUint) != n {
		c.fail()
	}
}

// field reads the map key n and the unsigned integer of at most limit that follows.
func (c *cursor) field(n, limit uint64) uint64 {
	c.key(n)
	v := c.head(majorUint)
	if v > limit {
		return c.fail()
	}
	return v
}

// fields begins a map of n pairs.
func (c *cursor) fields(n uint64) {
	if c.head(majorMap) != n {
		c.fail()
	}
}

// int reads the map key n and the integer that follows.
func (c *cursor) int(n uint64) int64 {
	c.key(n)
	if len(c.b) > 0 && c.b[0]>>5 == majorNegative {
		v := c.head(majorNegative)
		if v > math.MaxInt64 {
			c.fail()
		}
		return -1 - int64(v)
	}
	v := c.head(majorUint)
	if v > math.MaxInt64 {
		c.fail()
	}
	return int64(v)
}

// bytes reads a byte string, which aliases the input.
func (c *cursor) bytes(major byte) []byte {
	n := c.head(major)
	if c.err != nil || n > uint64(len(c.b)) {
		c.fail()
		return nil
	}
	b := c.b[:n]
	c.b = c.b[n:]
	return b
}

func (c *cursor) text() string {
	b := c.bytes(majorText)
	if !utf8.Valid(b) {
		c.fail()
		return ""
	}
	return c.names.of(b)
}

func (c *cursor) fixed(dst []byte) {
	if b := c.bytes(majorBytes); len(b) == len(dst) {
		copy(dst, b)
	} else {
		c.fail()
	}
}

func (c *cursor) addr() netip.Addr {
	a := c.optionalAddr()
	if !a.IsValid() {
		c.fail()
	}
	return a
}

// optionalAddr may be the zero one.
func (c *cursor) optionalAddr() netip.Addr {
	b := c.bytes(majorBytes)
	switch len(b) {
	case 0:
		return netip.Addr{}
	case 4:
		return netip.AddrFrom4([4]byte(b))
	case 16:
		return netip.AddrFrom16([16]byte(b))
	}
	c.fail()
	return netip.Addr{}
}

func (c *cursor) addrPort() netip.AddrPort {
	a := c.optionalAddrPort()
	if !a.IsValid() {
		c.fail()
	}
	return a
}

// optionalAddrPort may be the zero one, without an address.
func (c *cursor) optionalAddrPort() netip.AddrPort {
	b := c.bytes(majorBytes)
	switch len(b) {
	case 2:
		return netip.AddrPortFrom(netip.Addr{}, binary.LittleEndian.Uint16(b))
	case 6:
		return netip.AddrPortFrom(netip.AddrFrom4([4]byte(b)), binary.LittleEndian.Uint16(b[4:]))
	case 18:
		return netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), binary.LittleEndian.Uint16(b[16:]))
	}
	c.fail()
	return netip.AddrPort{}
}
