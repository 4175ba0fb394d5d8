package turn

import (
	"container/heap"
	"time"
)

// ends orders the allocations by the first deadline in each. It is built when
// it is first asked for, so that a replay does not pay for it.
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
		a.end, a.index = a.earliest(), len(e.heap)
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
		a.end = a.earliest()
		heap.Push(&e.heap, a)
	}
}

// granted says that a deadline in a moved from old (zero for a new grant) to end.
// Only where it was the first is all of a looked at again.
func (e *ends) granted(a *Allocation, old, end time.Duration) {
	switch {
	case !e.built:
		return
	case end < a.end:
		a.end = end
	case old == a.end:
		a.end = a.earliest()
	default:
		return
	}
	heap.Fix(&e.heap, a.index)
}

// ended says that a grant of a, which would have ended at old, is gone.
func (e *ends) ended(a *Allocation, old time.Duration) {
	if e.built && old == a.end {
		a.end = a.earliest()
		heap.Fix(&e.heap, a.index)
	}
}

// remove takes a out.
func (e *ends) remove(a *Allocation) {
	if e.built {
		heap.Remove(&e.heap, a.index)
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
