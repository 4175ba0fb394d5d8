package relay

import (
	"context"
	"sync/atomic"
)

// Prepared are settings that can be put in force: what they need is open.
type Prepared struct {
	server   *Server
	settings Settings
	more     []*listener
	undo     func()
	taken    atomic.Bool // by the writer, or by whoever gave up waiting for it
}

// Prepare opens the listeners that t names and that there are not yet. Nothing is heard on them before Apply; where one
// cannot be had nothing has changed.
func (s *Server) Prepare(t Settings) (*Prepared, error) {
	more, undo, err := s.openMore(t.Listeners)
	if err != nil {
		return nil, err
	}
	return &Prepared{server: s, settings: t, more: more, undo: undo}, nil
}

// Drop closes what Prepare opened.
func (p *Prepared) Drop() {
	if !p.taken.Swap(true) {
		p.undo()
	}
}

// Apply puts the settings in force and revokes what they forbid. It returns when that is durable
// and relayed no more. Listeners that are gone serve the allocations they have until they end.
func (p *Prepared) Apply(ctx context.Context) error {
	s, t := p.server, p.settings
	err := s.do(ctx, func(w *writer) error {
		if p.taken.Swap(true) {
			return context.Canceled
		}
		if err := s.install(p.more, t.Listeners); err != nil {
			p.undo()
			return err
		}
		t.Rules.Draining = w.rules.Draining
		w.rules = t.Rules
		s.use(t)
		w.configured(t)
		return nil
	})
	if err != nil {
		p.Drop()
	}
	return err
}
