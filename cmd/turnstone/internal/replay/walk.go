package replay

import (
	"fmt"
	"strings"
	"time"

	"turnstone/turn"
)

// Step is one event and what became of the state by it.
type Step struct {
	Seq     turn.Seq
	Moment  turn.Moment
	Event   turn.Event
	Changes []Change // of what the filter takes
}

// namedChanges is how many changes of one event are told in a line.
const namedChanges = 6

// String is what has changed, for people who know the day, without what follows from the rest.
func (s Step) String() string {
	var parts []string
	for _, c := range s.Changes {
		if !c.Follows() {
			parts = append(parts, c.String())
		}
	}
	if more := len(parts) - namedChanges; more > 1 {
		parts = append(parts[:namedChanges], fmt.Sprintf("and %d more", more))
	}
	return strings.Join(parts, "; ")
}

// Walk goes through a log event by event.
type Walk struct {
	state  *turn.State
	filter Filter
}

// NewWalk begins at s, which is the walk's from then on.
func NewWalk(s *turn.State, f Filter) *Walk { return &Walk{state: s, filter: f} }

// State is the state after the last step. It is for reading only.
func (w *Walk) State() *turn.State { return w.state }

// Record walks through r, and calls f with each step that is of interest: with a filter those that change something it
// takes, without one all. It ends early where f says so. A record of another boot than the one before carries all
// deadlines over, which is among the changes of its first event.
func (w *Walk) Record(r turn.Record, f func(Step) (more bool, err error)) (more bool, err error) {
	if r.First != w.state.Seq()+1 {
		return false, fmt.Errorf("walk through record %d: the state is at %d", r.First, w.state.Seq())
	}
	carried := w.begin(r)
	for i, e := range r.Events {
		changes, err := w.apply(e)
		if err != nil {
			return false, err
		}
		if i == 0 {
			changes = append(carried, changes...)
		}
		if !w.filter.Empty() && len(changes) == 0 {
			continue
		}
		more, err := f(Step{Seq: r.First + turn.Seq(i), Moment: r.Moment, Event: e, Changes: changes})
		if err != nil || !more {
			return false, err
		}
	}
	return true, nil
}

// begin begins r, and yields what that changes.
func (w *Walk) begin(r turn.Record) []Change {
	if w.state.Seq() == 0 || r.Moment.Boot == w.state.Moment().Boot {
		w.state.Begin(r.Moment)
		return nil
	}
	before := w.state.Clone()
	w.state.Begin(r.Moment)
	return Compare(before, w.state, w.filter)
}

// apply applies e, and yields what that changes.
func (w *Walk) apply(e turn.Event) ([]Change, error) {
	id := turn.AllocationOf(e)
	if w.filter.Allocation != 0 && id != w.filter.Allocation {
		return nil, w.state.Apply(e)
	}
	was := w.state.Allocation(id)
	takes := was != nil && w.filter.takesOwner(was)
	var before []item
	if takes || w.filter.Client.set() { // its client may come from where it is looked for
		before = itemsOf(was)
	}
	of := ownerOf(was)
	held := reservations(w.state)
	if err := w.state.Apply(e); err != nil {
		return nil, err
	}
	var changes []Change
	is := w.state.Allocation(id)
	if is != nil {
		of, takes = ownerOf(is), takes || w.filter.takesOwner(is)
	}
	if takes {
		changes = compare(before, itemsOf(is), of, w.filter)
	}
	changes = append(changes, compareReservations(held, reservations(w.state), w.filter)...)
	if u, ok := e.(turn.UsageRecorded); ok && was == nil {
		changes = append(changes, w.late(u)...)
	}
	return changes, nil
}

// late is the usage of an allocation that is gone, which the state does not hold.
func (w *Walk) late(u turn.UsageRecorded) []Change {
	if w.filter.Client.set() || w.filter.User != "" {
		return nil // nobody knows any more whose it was
	}
	one := item{key: key{thing: Usage, allocation: u.Allocation, peer: u.Peer, channel: u.Channel, path: u.Path}, facts: facts{toPeer: u.ToPeer, toClient: u.ToClient}}
	if !w.filter.takes(one.key) {
		return nil
	}
	c := changeOf(nil, &one, owner{})
	c.What, c.after = late, nil
	return []Change{c}
}

// late is the What of usage that was recorded when its allocation was gone.
const late = "late"

// lateUsage is for how long, by the clock of records, usage is looked for after the end of an allocation.
const lateUsage = 10 * time.Minute

// Lifetime knows when all is said of an allocation. That of ID 0 never ends.
type Lifetime struct {
	ID    turn.AllocationID
	lived bool
	ended turn.Moment
}

// Over says whether nothing more is to come, where the state is s after a record at m.
func (l *Lifetime) Over(s *turn.State, m turn.Moment) bool {
	switch {
	case l.ID == 0:
		return false
	case s.Allocation(l.ID) != nil:
		l.lived, l.ended = true, m
		return false
	case !l.lived:
		return false
	}
	return m.Boot != l.ended.Boot || m.Uptime-l.ended.Uptime > lateUsage
}
