package main

import (
	"context"
	"fmt"
	"strings"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/hook"
	"turnstone/cmd/turnstone/internal/systemd"
	"turnstone/turn"

	"github.com/rs/zerolog"
)

// needRestart says of a setting that it is bound to files and the process: a restart, which costs no call, puts it in force.
func needRestart(key string) bool {
	section, _, _ := strings.Cut(key, ".")
	return key == "data" || key == "admin-socket" || section == "log" && key != "log.level"
}

// useHook has users asked for at h from now on, empty for nowhere.
func (d *served) useHook(h config.Hook) {
	before := d.hook
	d.hook = nil
	if h.URL != "" {
		d.hook = hook.New(h.URL, h.Token)
		h.Lookup.Directory = d.hook
	}
	d.lookups.Use(h.Lookup)
	if before != nil {
		before.Close()
	}
}

// Reload reads the configuration again, and puts all of it in force that does not need a restart. What can fail comes
// first: after an error nothing has changed.
func (d *served) Reload(context.Context) (admin.Reloaded, error) {
	d.reload.Lock()
	defer d.reload.Unlock()
	if d.takeover.over() {
		return admin.Reloaded{}, errTwice
	}
	_ = systemd.Notify(systemd.Reloading())
	done, err := d.reloadAll(d.aside) // whoever asked for it may leave
	_ = systemd.Notify(systemd.Ready)
	if err != nil {
		return done, fmt.Errorf("reload configuration: %w", err)
	}
	for _, c := range done.Changed {
		d.log.Info().Str("setting", c.Setting).Str("before", c.Before).Str("after", c.After).Msg("setting changed")
	}
	if len(done.Restart) > 0 {
		d.log.Warn().Strs("settings", done.Restart).Msg("these settings have changed and wait for a restart")
	}
	d.log.Info().Int("changed", len(done.Changed)).Msg("configuration reloaded")
	return done, nil
}

func (d *served) reloadAll(ctx context.Context) (done admin.Reloaded, err error) {
	next, _, err := d.load()
	if err != nil {
		return done, err
	}
	old := d.now.Load()
	done.Restart = next.Keep(&old.config, needRestart)
	r, err := next.Resolve() // as it will be in force
	if err != nil {
		return done, err
	}
	done.Changed = config.Diff(&old.config, &next)
	if r.HashNames {
		done.Changed = config.Unnamed(done.Changed)
	}
	settings, _, err := d.settings(r)
	if err != nil {
		return done, err
	}
	for _, c := range done.Changed {
		before, after := c.Recorded()
		settings.Changed = append(settings.Changed, turn.SettingChange{Setting: c.Setting, Before: before, After: after})
	}
	var undo []func()
	defer func() {
		for i := len(undo); err != nil && i > 0; i-- {
			undo[i-1]()
		}
	}()
	certificates, err := d.certificates.Prepare(r.Certificates)
	if err != nil {
		return done, err
	}
	prepared, err := d.relay.Prepare(settings)
	if err != nil {
		return done, err
	}
	undo = append(undo, prepared.Drop)
	moved := r.Metrics != old.resolved.Metrics
	page := d.web.listener
	if moved {
		if page, err = d.listenMetrics(r); err != nil {
			return done, err
		}
		if page != nil {
			undo = append(undo, func() { _ = page.Close() })
		}
	}
	dashboard, err := listenElsewhere(old.resolved.Dashboard, r.Dashboard)
	if err != nil {
		return done, err
	}
	if dashboard != nil {
		undo = append(undo, func() { _ = dashboard.Close() })
	}
	again := d.kernel() == nil && r.Kernel.Mode != "off" // what was in its way may be gone
	if again || !d.sameKernel(old.resolved, r) {
		if err = d.changeKernel(ctx, old.resolved, r); err != nil {
			return done, err
		}
		undo = append(undo, func() {
			if err := d.changeKernel(ctx, r, old.resolved); err != nil {
				d.log.Error().Err(err).Msg("the kernel's side is not what it was before the reload")
			}
		})
	}
	undo = append(undo, certificates())
	if r.Hook != old.resolved.Hook {
		d.useHook(r.Hook)
		undo = append(undo, func() { d.useHook(old.resolved.Hook) })
	}
	if err = prepared.Apply(ctx); err != nil {
		return done, err
	}
	zerolog.SetGlobalLevel(r.Level)
	d.store.SetRetention(r.Retention)
	if moved {
		d.serveWeb(page)
	}
	if r.Dashboard != old.resolved.Dashboard {
		d.serveDashboard(r.Dashboard, dashboard)
	}
	d.now.Store(&running{config: next, resolved: r})
	return done, nil
}
