package kernel

import (
	"encoding/binary"
	"net/netip"
)

// One's complement sums (RFC 1071) over 16-bit words as they lie in memory, as the
// program reckons them: byte order cancels out as long as every term is in the same.

// fold brings a sum to 16 bits.
func fold(sum uint64) uint16 {
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	return uint16(sum)
}

// word is a wire-order field as a term.
func word(b [2]byte) uint64 { return uint64(binary.NativeEndian.Uint16(b[:])) }

// sumAddresses is the sum over the words of two addresses.
func sumAddresses(a, b netip.Addr) (sum uint64) {
	for _, ip := range [][16]byte{address(a), address(b)} {
		for i := 0; i < len(ip); i += 2 {
			sum += word([2]byte(ip[i:]))
		}
	}
	return sum
}
