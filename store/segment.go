package store

import (
	"slices"

	"turnstone/turn"
)

// segment is the last one, to which records are appended, with the pages that bbolt
// gives it: FillPercent is 1 and one record comes at a time.
type segment struct {
	number uint64
	first  turn.Seq
	page   int         // bytes of one
	wall   int64       // of the first record
	key    *segmentKey // that its events are sealed with, nil for none
	sealed bool        // some are
	closed int         // bytes of pages that are full, and of what they take in the branches above
	open   []int       // bytes of the items in the last leaf
}

const (
	// itemCost is what bbolt adds to a record: its place in the page and its key.
	itemCost = leafItem + 8
	// branchCost is what a leaf takes in the branches above, which have branches above themselves.
	branchCost = branchItem + 8 + 8
	// leafItems is how many items, of whatever size, a leaf holds before it is split: leafMin at least
	// go into the first part, leafRest into the other.
	leafItems, leafMin, leafRest = 4, 2, 3
)

// with is the segment that a record of n bytes at first goes into: s with that record, or the
// next one where s would grow over limit. Where it is the next one its header takes head bytes.
func (s segment) with(n, limit, head int, first turn.Seq) segment {
	into := s
	into.open = slices.Clone(s.open)
	into.grow(n)
	if s.number == 0 || into.size() > limit {
		return s.next(n, head, first)
	}
	return into
}

// next is the segment after s, with nothing but a record of n bytes at first.
func (s segment) next(n, head int, first turn.Seq) segment {
	into := segment{number: s.number + 1, first: first, page: s.page, open: []int{head + itemCost}}
	into.grow(n)
	return into
}

// size is how many bytes of pages s takes.
func (s *segment) size() int { return s.closed + s.pages(s.open) }

// pages is how many bytes the page of a leaf with items takes, with its place in the branches.
func (s *segment) pages(items []int) int {
	n := pageHead
	for _, i := range items {
		n += i
	}
	return (n+s.page-1)/s.page*s.page + branchCost
}

// grow adds a record of n bytes, and splits the leaf as bbolt does.
func (s *segment) grow(n int) {
	s.open = append(s.open, n+itemCost)
	for len(s.open) > leafItems {
		size := pageHead
		at := 0
		for at < len(s.open) && (at < leafMin || size+s.open[at] <= s.page) {
			size += s.open[at]
			at++
		}
		if at == len(s.open) && size < s.page {
			return
		}
		at = min(at, len(s.open)-leafRest)
		s.closed += s.pages(s.open[:at])
		s.open = slices.Delete(s.open, 0, at)
	}
}
