package audit

import (
	"cmp"
	"runtime"
	"sync"

	"turnstone/turn"
)

// Most allocations that are open behind the last block are neither touched by what follows nor asked for. A Builder keeps their
// rows in the stored form until they are: they are asleep.

// lay has an allocation sleep, whose row raw is the stored form of.
func (b *Builder) lay(raw []byte) error {
	r := reader{b: raw}
	r.byte()
	r.uint()
	r.int()
	id := turn.AllocationID(r.uint())
	if r.bad {
		return errRow
	}
	b.asleep[id] = raw
	return nil
}

// held is the row of an open allocation, nil where there is none.
func (b *Builder) held(id turn.AllocationID) *Row {
	if raw, there := b.asleep[id]; there {
		r, err := b.decoder.row(raw)
		b.awake(id, &r, err)
	}
	return b.open[id]
}

// awake has r stand for what is asleep. Where that did not decode, b is of no more use.
func (b *Builder) awake(id turn.AllocationID, r *Row, err error) {
	b.err = cmp.Or(b.err, err)
	b.open[id] = r
	delete(b.asleep, id)
}

// wake wakes the rows that are wanted, on all CPUs.
func (b *Builder) wake(wanted func(raw []byte) bool) error {
	var ids []turn.AllocationID
	for id, raw := range b.asleep {
		if wanted(raw) {
			ids = append(ids, id)
		}
	}
	rows, failed := make([]Row, len(ids)), make([]error, len(ids))
	workers := min(runtime.GOMAXPROCS(0), 4, 1+len(ids)/256)
	var wait sync.WaitGroup
	for w := range workers {
		wait.Go(func() {
			var d decoder
			for i := w; i < len(ids); i += workers {
				rows[i], failed[i] = d.row(b.asleep[ids[i]])
			}
		})
	}
	wait.Wait()
	for i, id := range ids {
		b.awake(id, &rows[i], failed[i])
	}
	return b.err
}

// wakeAll wakes all there are.
func (b *Builder) wakeAll() error { return b.wake(func([]byte) bool { return true }) }
