package kernel

import (
	"turnstone/bpf"
	"turnstone/turn"
)

// held is a flow that the maps have.
type held struct {
	Flow
	ref
	via    Gateway
	raw    bpf.TurnstoneFlow // its record as it was written
	wanted uint64            // the round in which it was found to be wanted
	place  int               // in the list of its allocation
}

// unknown is the gateway of a flow that an earlier run left: only its number is known.
var unknown = Gateway{Link: -1}

// retired is a slot on its way from a flow to the free list: nobody finds it any more, but a program may
// still be running that found it before.
type retired struct {
	slot       uint32
	allocation turn.AllocationID
	kind       Kind
	binding    binding
	gateway    uint32 // to let go of, 0 for none
	meter      uint32
}

// slots are the records: which are free, and which will be after a grace period.
type slots struct {
	free       []uint32
	next       uint32 // from here on no slot was ever used
	end        uint32
	generation uint32 // the last one given
	retiring   []retired
}

// newSlots are the slots of maps with n records. Slot 0 is nobody's.
func newSlots(n int) *slots { return &slots{next: 1, end: uint32(n)} }

// take yields a free slot and a generation no record ever had.
func (s *slots) take() (ref, bool) {
	s.generation++
	if s.generation == 0 {
		s.generation++
	}
	if n := len(s.free); n > 0 {
		slot := s.free[n-1]
		s.free = s.free[:n-1]
		return ref{slot, s.generation}, true
	}
	if s.next < s.end {
		s.next++
		return ref{s.next - 1, s.generation}, true
	}
	return ref{}, false
}

// used is how many slots are not free.
func (s *slots) used() int { return int(s.next) - 1 - len(s.free) }
