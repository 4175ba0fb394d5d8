package main

import (
	"context"
	"time"

	"turnstone/cmd/turnstone/internal/systemd"
)

// alivePatience is how long the parts of the relay may take to show that they live.
const alivePatience = 2 * time.Second

// alive says which part of the relay is stuck, if one is.
func (d *served) alive() error { return d.relay.Alive(alivePatience) }

// watchdog tells the service manager that the daemon lives, as often as that asks for, while the writer takes work and the
// loops over sockets go round.
func (d *served) watchdog(ctx context.Context) error {
	every := systemd.Watchdog()
	if every == 0 {
		return nil
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		if err := d.relay.Alive(every / 4); err != nil {
			d.log.Error().Err(err).Msg("the watchdog is not told that the daemon lives")
		} else {
			_ = systemd.Notify(systemd.Alive)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
