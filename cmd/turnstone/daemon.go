package main

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/rs/zerolog"
)

// loader reads the configuration.
type loader func() (config.Config, config.Resolved, error)

// running is the configuration in force. What needs a restart is as it was at the start.
type running struct {
	config   config.Config
	resolved config.Resolved
}

// served is a daemon as it runs.
type served struct {
	load         loader
	now          atomic.Pointer[running]
	key          [32]byte // of nonces
	tickets      *turn.Tickets
	certificates *certs.Store
	store        *store.Log
	relay        *relay.Server
	kernel       *kernel.Datapath // nil: userspace relays everything
	userspace    string           // why it does
	log          zerolog.Logger
	clock        func() turn.Moment
	started      time.Time
	drained      atomic.Bool
	users        usersState
	lookups      *relay.Lookups // at the hook, nil for none
	checkpoints  checkpoints
	reload       sync.Mutex // one reload at a time
}

// settings are what the relay runs by, and the ICE servers to print for a demo.
func (d *served) settings(r config.Resolved) (relay.Settings, string, error) {
	g, demo := r.Gate, ""
	g.NonceKey = d.key
	if d.lookups != nil {
		g.Lookup = d.lookups.Look
	}
	if r.Demo {
		secret, err := store.LoadKey(r.Data, "demo", 15)
		if err != nil {
			return relay.Settings{}, "", err
		}
		u := turn.User{Name: "demo", Password: base64.RawURLEncoding.EncodeToString(secret)}
		g.Users = []turn.User{u}
		demo = iceServers(turnURLs(r), u.Name, u.Password)
	}
	if r.Mobility {
		r.Rules.Tickets = d.tickets
	}
	return relay.Settings{
		Gate: turn.NewGate(g), Rules: r.Rules, UnauthRate: r.UnauthRate, UnauthBurst: r.UnauthBurst, ICMP: r.ICMP, Digest: r.Digest,
	}, demo, nil
}

// turnURLs are the listeners as clients name them (RFC 7065).
func turnURLs(r config.Resolved) (urls []string) {
	form := map[turn.Protocol]string{
		turn.UDP: "turn:%v?transport=udp", turn.TCP: "turn:%v?transport=tcp", turn.TLS: "turns:%v?transport=tcp", turn.DTLS: "turns:%v?transport=udp",
	}
	for _, l := range r.Listeners {
		urls = append(urls, fmt.Sprintf(form[l.Protocol], r.Rules.Shown(l.Address)))
	}
	return urls
}

// listenURLs are the listeners as the configuration names them.
func listenURLs(r config.Resolved) (urls []string) {
	for _, l := range r.Listeners {
		urls = append(urls, fmt.Sprintf("%v://%v", l.Protocol, l.Address))
	}
	return urls
}

// Status is for the admin interface.
func (d *served) Status(ctx context.Context) (admin.Status, error) {
	c, r := d.relay.Counters(), d.now.Load().resolved
	st := admin.Status{
		Version: version(), PID: os.Getpid(), Started: d.started.UTC(), Ready: d.relay.Ready(), Draining: d.drained.Load(),
		Listeners: listenURLs(r), Realm: r.Gate.Realm, Data: r.Data,
		Kernel: d.datapath(), Room: d.store.Room().String(),
		ToPeer:   turn.Count{Packets: c.ToPeerPackets, Bytes: c.ToPeerBytes},
		ToClient: turn.Count{Packets: c.ToClientPackets, Bytes: c.ToClientBytes}, Drops: c.Drops,
	}
	for _, l := range r.Rules.Relays {
		st.Relay = append(st.Relay, l.External.String())
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := d.relay.View(ctx, func(s *turn.State) {
		st.Log, st.Epoch, st.Seq, st.Allocations = s.Log().String(), s.Epoch(), s.Seq(), s.Len()
		for a := range s.Allocations() {
			st.Permissions += len(a.Permissions)
			st.Channels += len(a.Channels)
			st.Connections += len(a.Connections)
		}
		st.Reserved = len(s.Reservations())
	})
	if errors.Is(err, context.DeadlineExceeded) {
		return st, nil // the log is being opened again: Ready says so
	}
	return st, err
}

// View is for the admin interface.
func (d *served) View(ctx context.Context, f func(*turn.State)) error { return d.relay.View(ctx, f) }

// CloseAllocation is for the admin interface.
func (d *served) CloseAllocation(ctx context.Context, id turn.AllocationID) error {
	return d.relay.CloseAllocation(ctx, id)
}

// Drain is for the admin interface.
func (d *served) Drain(ctx context.Context, on bool) error {
	if err := d.relay.Drain(ctx, on); err != nil {
		return err
	}
	d.drained.Store(on)
	d.log.Info().Bool("on", on).Msg("draining")
	return nil
}

// needRestart are the settings that are bound to sockets, files and the process. A restart costs no call.
var needRestart = map[string]bool{
	"listen": true, "data": true, "admin-socket": true, "metrics": true, "log.format": true,
	"log.privacy": true, "log.forget-age": true, "log.usernames": true,
	"limits.max-bandwidth": true, "limits.max-bandwidth-per-user": true, "limits.max-bandwidth-total": true,
	"kernel.mode": true, "kernel.interfaces": true, "kernel.xdp": true, "kernel.instance": true, "kernel.max-channels": true,
	"proxy-protocol-from": true, "limits.max-streams": true, "limits.max-idle-streams": true,
	"auth.http-url": true, "auth.http-token": true, "auth.http-timeout": true, "auth.http-cache": true, "auth.http-fresh": true,
	"auth.http-rate": true, "auth.http-keys": true,
	"log.checkpoint-file": true, "log.checkpoint-url": true,
}

// Reload reads the configuration again. It yields the settings that have changed and need a
// restart; after an error nothing has changed.
func (d *served) Reload(ctx context.Context) (restart []string, err error) {
	d.reload.Lock()
	defer d.reload.Unlock()
	c, r, err := d.load()
	if err != nil {
		return nil, fmt.Errorf("reload configuration: %w", err)
	}
	r.Hook, r.Gate.LookupSHA256 = d.now.Load().resolved.Hook, d.now.Load().resolved.Gate.LookupSHA256
	r.Demo = r.Demo && r.Hook.URL == ""
	settings, _, err := d.settings(r)
	if err != nil {
		return nil, fmt.Errorf("reload configuration: %w", err)
	}
	if err := d.certificates.Use(r.Certificates); err != nil {
		return nil, fmt.Errorf("reload configuration: %w", err)
	}
	old := d.now.Load()
	restart = []string{}
	before := config.Settings(&old.config)
	for i, s := range config.Settings(&c) {
		if needRestart[s.Key] && !s.Equal(before[i]) {
			restart = append(restart, s.Key)
		}
	}
	if err := d.relay.Reload(ctx, settings); err != nil {
		return nil, fmt.Errorf("reload configuration: %w", err)
	}
	zerolog.SetGlobalLevel(r.Level)
	r.Streams = old.resolved.Streams
	r.Listeners, r.Data, r.AdminSocket, r.Metrics, r.Kernel, r.Caps = old.resolved.Listeners, old.resolved.Data,
		old.resolved.AdminSocket, old.resolved.Metrics, old.resolved.Kernel, old.resolved.Caps
	d.now.Store(&running{config: old.config, resolved: r})
	if len(restart) > 0 {
		d.log.Warn().Strs("settings", restart).Msg("these settings have changed and wait for a restart")
	}
	d.log.Info().Msg("configuration reloaded")
	return restart, nil
}

// watchSignals reloads at SIGHUP.
func (d *served) watchSignals(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			if _, err := d.Reload(ctx); err != nil {
				d.log.Error().Err(err).Msg("the configuration was not reloaded: all is as it was")
			}
		case <-ctx.Done():
			return nil
		}
	}
}
