package main

import (
	"context"
	"sync/atomic"
	"time"

	"turnstone/cmd/turnstone/internal/users"
)

// usersPoll is how often the file of users is looked at.
const usersPoll = time.Second

// usersState says how the file of users is.
type usersState struct {
	broken atomic.Bool // it has changed and cannot be read: the users before are in force
}

// watchUsers has the users of the file in force soon after it changes. A file that was
// different a second ago may still be being written, and is left alone until the next look.
func (d *served) watchUsers(ctx context.Context) error {
	tick := time.NewTicker(usersPoll)
	defer tick.Stop()
	var look usersLook
	for {
		select {
		case <-tick.C:
			look.once(ctx, d)
		case <-ctx.Done():
			return nil
		}
	}
}

// usersLook is what the last look at the file of users found.
type usersLook struct {
	seen    users.Identity
	problem string
}

func (l *usersLook) once(ctx context.Context, d *served) {
	r := d.now.Load().resolved
	if r.UsersFile == "" {
		return
	}
	seen := users.Identify(r.UsersFile)
	settled := seen == l.seen
	l.seen = seen
	if seen == r.UsersIdentity {
		d.users.broken.Store(false)
		l.problem = ""
		return
	}
	if !settled {
		return
	}
	err := d.reloadUsers(ctx)
	d.users.broken.Store(err != nil)
	switch {
	case err == nil:
		l.problem = ""
	case ctx.Err() == nil && err.Error() != l.problem:
		l.problem = err.Error()
		d.log.Error().Err(err).Str("file", r.UsersFile).Msg("the file of users is wrong: the users before are in force")
	}
}

// reloadUsers reads the file of users again, and revokes what those who are gone hold.
func (d *served) reloadUsers(ctx context.Context) error {
	d.reload.Lock()
	defer d.reload.Unlock()
	now := d.now.Load()
	r := now.resolved
	if err := r.ReadUsers(); err != nil {
		return err
	}
	settings, _, err := d.settings(r)
	if err != nil {
		return err
	}
	if err := d.relay.Reload(ctx, settings); err != nil {
		return err
	}
	d.now.Store(&running{config: now.config, resolved: r})
	d.log.Info().Int("users", r.CountUsers()).Str("file", r.UsersFile).Msg("users read again")
	return nil
}
