package relay

import (
	"sync"

	"turnstone/turn"
)

// posted are events on their way to the writer from those that must not wait for it.
type posted struct {
	mu     sync.Mutex // guards events
	events []turn.Event
	wake   chan struct{}
}

func (p *posted) add(events ...turn.Event) {
	if len(events) == 0 {
		return
	}
	p.mu.Lock()
	p.events = append(p.events, events...)
	p.mu.Unlock()
	p.signal()
}

func (p *posted) signal() {
	select {
	case p.wake <- struct{}{}:
	default:
	}
}

// take yields at most limit events. What is left signals again.
func (p *posted) take(limit int) []turn.Event {
	p.mu.Lock()
	defer p.mu.Unlock()
	limit = min(limit, len(p.events))
	events := p.events[:limit:limit]
	p.events = p.events[limit:]
	if len(p.events) > 0 {
		p.signal()
	}
	return events
}
