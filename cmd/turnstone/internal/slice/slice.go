// Package slice copies the history of one allocation out of a log, into one of its own that folds to the same
// allocation and says of each event where it stood.
package slice

import (
	"fmt"
	"iter"
	"net/netip"
	"time"

	"turnstone/turn"
)

// Part is what a slice has of one record.
type Part struct {
	Moment turn.Moment
	Pieces []Piece
}

// Piece is one event of the source. Where Event is nil only its moment matters.
type Piece struct {
	Seq   turn.Seq
	Event turn.Event
}

// late is for how long, by the clock of records, usage is looked for after the end of an allocation.
const late = 10 * time.Minute

// Collect picks what makes the allocation id out of records, which begin at or before its first event: its own
// events, those of the server while it lived, and the moments at which one boot gave way to another.
func Collect(records iter.Seq2[turn.Record, error], id turn.AllocationID) ([]Part, error) {
	c := collector{id: id, reserved: map[netip.AddrPort]bool{}}
	for r, err := range records {
		if err != nil {
			return nil, err
		}
		if !c.take(r) {
			break
		}
	}
	if len(c.parts) == 0 {
		return nil, fmt.Errorf("there is nothing of allocation %d", id)
	}
	return c.parts, nil
}

type collector struct {
	id       turn.AllocationID
	parts    []Part
	reserved map[netip.AddrPort]bool // by the allocation
	last     turn.Record             // before
	begun    bool
	ended    turn.Moment // zero while it lives
}

// take picks from r, and says whether there may be more.
func (c *collector) take(r turn.Record) bool {
	var p Part
	lives := c.begun && c.ended == (turn.Moment{})
	for i, e := range r.Events {
		if !c.concerns(e) {
			continue
		}
		p.Pieces = append(p.Pieces, Piece{r.First + turn.Seq(i), e})
		switch e.(type) {
		case turn.AllocationDeleted, turn.AllocationExpired:
			c.ended = r.Moment
		}
	}
	if rebooted := c.last.First != 0 && r.Moment.Boot != c.last.Moment.Boot; lives && rebooted {
		c.moment(c.last)
		if len(p.Pieces) == 0 {
			p.Pieces = append(p.Pieces, Piece{Seq: r.First})
		}
	}
	c.last = r
	if p.Moment = r.Moment; len(p.Pieces) > 0 {
		c.parts = append(c.parts, p)
	}
	if c.ended == (turn.Moment{}) {
		return true
	}
	return r.Moment.Boot == c.ended.Boot && r.Moment.Uptime-c.ended.Uptime < late
}

// moment keeps the moment of r, the last of its boot: what remains of a deadline is counted from there.
func (c *collector) moment(r turn.Record) {
	if last := &c.parts[len(c.parts)-1]; last.Moment != r.Moment {
		c.parts = append(c.parts, Part{r.Moment, []Piece{{Seq: r.Last()}}})
	}
}

// concerns says whether e belongs to the history of the allocation.
func (c *collector) concerns(e turn.Event) bool {
	switch e := e.(type) {
	case turn.SliceTaken, turn.OriginNoted: // of a slice of a slice, which has its own
		return false
	case turn.AllocationCreated:
		for _, r := range e.Relayed {
			delete(c.reserved, r)
		}
		c.begun = c.begun || e.Allocation == c.id
		return e.Allocation == c.id
	case turn.ReservationMade:
		if e.Allocation == c.id {
			c.reserved[e.Relayed] = true
		}
		return e.Allocation == c.id
	case turn.ReservationExpired:
		return c.unreserve(e.Relayed)
	case turn.ReservationRevoked:
		return c.unreserve(e.Relayed)
	case turn.ServerStarted, turn.ServerStopped, turn.ClockWentBack, turn.LogRecovered:
		return c.begun && c.ended == (turn.Moment{})
	}
	return turn.AllocationOf(e) == c.id
}

func (c *collector) unreserve(a netip.AddrPort) bool {
	made := c.reserved[a]
	delete(c.reserved, a)
	return made
}
