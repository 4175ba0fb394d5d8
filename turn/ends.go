package turn

import (
	"container/heap"
	"time"
)

// ends orders the allocations by the first deadline in each. It is built when
// it is first asked for, so that a replay does not pay for it.
//
// What stands in the heap is never later than the truth. Where it may be
// earlier, because the grant that ended first was refreshed or is gone, the allocation
// is stale, and is looked at again only when it comes up: so a request that
// refreshes a thousand grants costs one look, not a thousand.
type ends struct {
	heap  endHeap
	built bool
}

// build makes the heap of all, unless it stands.
func (e *ends) build(all map[AllocationID]*Allocation) {
	if e.built {
		return
	}
	e.heap = make(endHeap, 0, len(all))
	for _, a := range all {
		a.end, a.stale, a.index = a.earliest(), false, len(e.heap)
		e.heap = append(e.heap, a)
	}
	heap.Init(&e.heap)
	e.built = true
}

// forget drops the heap: many deadlines moved at once.
func (e *ends) forget() { *e = ends{} }

// add puts a new allocation in.
func (e *ends) add(a *Allocation) {
	if e.built {
		a.end, a.stale = a.earliest(), false
		heap.Push(&e.heap, a)
	}
}

// granted says that a deadline in a moved from old (zero for a new grant) to end.
func (e *ends) granted(a *Allocation, old, end time.Duration) {
	switch {
	case !e.built:
	case end < a.end:
		a.end, a.stale = end, false
		heap.Fix(&e.heap, a.index)
	case old == a.end:
		a.stale = true
	}
}

// ended says that a grant of a, which would have ended at old, is gone.
func (e *ends) ended(a *Allocation, old time.Duration) {
	if e.built && old == a.end {
		a.stale = true
	}
}

// remove takes a out.
func (e *ends) remove(a *Allocation) {
	if e.built {
		heap.Remove(&e.heap, a.index)
	}
}

// look puts a stale allocation where it belongs.
func (e *ends) look(a *Allocation) {
	a.end, a.stale = a.earliest(), false
	heap.Fix(&e.heap, a.index)
}

// first is the allocation in which something ends first, nil where there is none.
func (e *ends) first() *Allocation {
	for len(e.heap) > 0 {
		if a := e.heap[0]; !a.stale {
			return a
		}
		e.look(e.heap[0])
	}
	return nil
}

// within are the allocations in which something ends by then, in no order.
func (e *ends) within(then time.Duration) []*Allocation {
	for {
		var out, stale []*Allocation
		for walk := []int{0}; len(walk) > 0; {
			i := walk[len(walk)-1]
			walk = walk[:len(walk)-1]
			if i >= len(e.heap) || e.heap[i].end > then {
				continue
			}
			out = append(out, e.heap[i])
			if e.heap[i].stale {
				stale = append(stale, e.heap[i])
			}
			walk = append(walk, 2*i+1, 2*i+2)
		}
		if len(stale) == 0 {
			return out
		}
		for _, a := range stale {
			e.look(a)
		}
	}
}

type endHeap []*Allocation

func (h endHeap) Len() int { return len(h) }

func (h endHeap) Less(i, j int) bool {
	if h[i].end != h[j].end {
		return h[i].end < h[j].end
	}
	return h[i].ID < h[j].ID
}

func (h endHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *endHeap) Push(x any) {
	a := x.(*Allocation)
	a.index = len(*h)
	*h = append(*h, a)
}

func (h *endHeap) Pop() any {
	old := *h
	a := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	return a
}
