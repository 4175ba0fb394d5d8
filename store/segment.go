package store

import (
	"turnstone/turn"
)

// segment is the last one, to which records are appended.
type segment struct {
	number uint64
	first  turn.Seq
	size   int // bytes of pages, from above
	fill   int // bytes of them that are free in the last page
}

const (
	// itemCost is what bbolt adds to a record: its key and its place in the page.
	itemCost = leafItem + 8
	// pageShare is what bbolt adds to a page: its head, and its place in the pages above, which have pages above themselves.
	pageShare = pageHead + 2*(branchItem+8)
	// segmentPage is the size of a page that sizes are counted in. Those of the file may be larger.
	segmentPage = 4096
)

// with is the segment that a record of n bytes at first goes into: s with that record, or the
// next one where s would grow over limit.
func (s segment) with(n, limit int, first turn.Seq) segment {
	into := s
	into.grow(n)
	if s.number == 0 || into.size > limit {
		into = segment{number: s.number + 1, first: first}
		into.grow(n)
	}
	return into
}

// grow adds a record of n bytes. Small ones share a page; a large one has pages of its own, and
// may be left alone in them.
func (s *segment) grow(n int) {
	n += itemCost
	if n <= s.fill {
		s.fill -= n
		return
	}
	pages := (n + pageShare + segmentPage - 1) / segmentPage
	s.size += pages * segmentPage
	s.fill = pages*segmentPage - pageShare - n
	if pages > 1 {
		s.size, s.fill = s.size+segmentPage, 0
	}
}
