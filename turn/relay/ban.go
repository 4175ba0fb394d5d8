package relay

import (
	"context"
	"errors"

	"turnstone/turn"
)

// ErrNotBanned says that there is no ban to lift.
var ErrNotBanned = errors.New("the user is not banned")

// UserMeant is [turn.Gate.Means] of the gate in force.
func (s *Server) UserMeant(realm, name string) (inRealm, username string, known bool) {
	return s.gate.Load().Means(realm, name)
}

// Ban bans a user, and ends what the user has. It returns when nothing is relayed for any of it any more, with how many
// allocations that were: nothing is granted from the first record on, the ends may take several.
func (s *Server) Ban(ctx context.Context, e turn.UserBanned) (turn.Ban, int, error) {
	var made turn.Ban
	ended, events := 0, []turn.Event{e}
	for more := true; more; {
		err := s.do(ctx, func(w *writer) error {
			w.apply(events...)
			if len(events) > 0 {
				made = w.state.Ban(e.Realm, e.Username)
			}
			events = turn.Evict(w.state, &w.rules, w.begin(), expireLimit)
			w.apply(events...)
			return nil
		})
		if err != nil {
			return turn.Ban{}, 0, err
		}
		for _, e := range events {
			if e.Kind() == turn.KindAllocationDeleted {
				ended++
			}
		}
		events, more = nil, len(events) == expireLimit
	}
	return made, ended, nil
}

// Unban lifts the bans of a user.
func (s *Server) Unban(ctx context.Context, e turn.UserUnbanned) error {
	return s.do(ctx, func(w *writer) error {
		events := turn.Unban(w.state, &w.rules, e.Realm, e.Username)
		if len(events) == 0 {
			return ErrNotBanned
		}
		w.apply(events...)
		return nil
	})
}
