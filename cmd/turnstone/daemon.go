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
	"turnstone/cmd/turnstone/internal/handover"
	"turnstone/cmd/turnstone/internal/hook"
	"turnstone/cmd/turnstone/internal/systemd"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/rs/zerolog"
	"golang.org/x/sync/errgroup"
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
	pseudonyms   *turn.Pseudonyms // of users, nil where none ever were
	certificates *certs.Store
	store        *store.Log
	relay        *relay.Server
	carriage     carriage
	web          web
	log          zerolog.Logger
	clock        func() turn.Moment
	started      time.Time
	replayed     time.Duration // what opening the log took
	readyAfter   atomic.Int64  // nanoseconds since started; 0: not yet
	draining     draining
	users        usersState
	index        indexState
	lookups      *relay.Lookups // at the hook
	hook         *hook.Hook     // nil for none
	checkpoints  checkpoints
	reload       sync.Mutex // one reload at a time

	keeper    *systemd.Store   // of sockets, nil for none
	inherited handover.Sockets // of another process, or of an earlier life of this one
	patience  time.Duration    // that whoever has the log, or the kernel's side, may take to let go of it
	takeover  takeover

	closeDashboard context.CancelFunc // nil where there was none

	group *errgroup.Group // of the parts
	aside context.Context // of those that are not the relay: it ends after that
	end   func(cause string)
}

// settings are what the relay runs by, and the ICE servers to print for a demo.
func (d *served) settings(r config.Resolved) (relay.Settings, string, error) {
	g, demo := r.Gate, ""
	g.NonceKey = d.key
	g.Pseudonyms, g.HashNames, r.Rules.Pseudonyms = d.pseudonyms, r.HashNames, d.pseudonyms
	if r.Hook.URL != "" {
		g.Lookup = d.lookups.Look
	}
	if r.Demo {
		u, err := demoUser(r.Data)
		if err != nil {
			return relay.Settings{}, "", err
		}
		g.Users = []turn.User{u}
		demo = iceServers(turnURLs(r), u.Name, u.Password)
	}
	if r.Mobility {
		r.Rules.Tickets = d.tickets
	}
	r.Streams.TLS = d.certificates.Config()
	return relay.Settings{
		Listeners: r.Listeners, Streams: r.Streams, Caps: r.Caps,
		Gate: turn.NewGate(g), Rules: r.Rules, UnauthRate: r.UnauthRate, UnauthBurst: r.UnauthBurst, ICMP: r.ICMP, Digest: r.Digest,
	}, demo, nil
}

// demoKey is the name of the key that the demo credential is made of.
const demoKey = "demo"

// demoUser is who may use a relay for which nobody is configured.
func demoUser(data string) (turn.User, error) {
	secret, err := store.LoadKey(data, demoKey, 15)
	return turn.User{Name: "demo", Password: base64.RawURLEncoding.EncodeToString(secret)}, err
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
func listenURLs(r config.Resolved) []string {
	urls := []string{}
	for _, l := range r.Listeners {
		urls = append(urls, fmt.Sprintf("%v://%v", l.Protocol, l.Address))
	}
	return urls
}

// Status is for the admin interface.
func (d *served) Status(ctx context.Context) (admin.Status, error) {
	c, r := d.relay.Counters(), d.now.Load().resolved
	st := admin.Status{
		Version: version(), PID: os.Getpid(), Started: d.started.UTC(), Ready: d.relay.Ready(), Draining: d.draining.is(),
		Listeners: listenURLs(r), Realm: r.Gate.Realm, Data: r.Data,
		Kernel: d.datapath(), Room: d.store.Room().String(),
		ToPeer:   turn.Count{Packets: c.ToPeerPackets, Bytes: c.ToPeerBytes},
		ToClient: turn.Count{Packets: c.ToClientPackets, Bytes: c.ToClientBytes}, Drops: c.Drops,
	}
	st.Ending = listenURLs(config.Resolved{Listeners: d.relay.Retired()})
	for _, l := range r.Rules.Relays {
		st.Relay = append(st.Relay, l.External.String())
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := d.relay.View(ctx, func(s *turn.State) {
		st.Log, st.Epoch, st.Seq, st.Allocations = s.Log().String(), s.Epoch(), s.Seq(), s.Len()
		g := s.Grants()
		st.Permissions, st.Channels, st.Connections, st.Reserved = g.Permissions, g.Channels, g.Connections, g.Reservations
		st.Bans = g.Bans
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

// UserMeant is for the admin interface.
func (d *served) UserMeant(realm, name string) (inRealm, username string, known bool) {
	return d.relay.UserMeant(realm, name)
}

// Ban is for the admin interface.
func (d *served) Ban(ctx context.Context, e turn.UserBanned) (turn.Ban, int, error) {
	return d.relay.Ban(ctx, e)
}

// Unban is for the admin interface.
func (d *served) Unban(ctx context.Context, e turn.UserUnbanned) error { return d.relay.Unban(ctx, e) }

// Acted is for the admin interface.
func (d *served) Acted(ctx context.Context, e turn.OperatorActed) error {
	line := d.log.Info()
	if e.UID != turn.NoUID {
		line = line.Uint32("uid", e.UID).Uint32("pid", e.PID)
	}
	line.Str("what", e.What).Msg("an operator acts")
	err := d.relay.Record(ctx, e)
	if err != nil {
		d.log.Warn().Err(err).Str("what", e.What).Msg("what an operator does could not be recorded")
	}
	return err
}

// watchSignals reloads at SIGHUP.
func (d *served) watchSignals(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			if _, err := d.Reload(ctx); err != nil && ctx.Err() == nil {
				d.log.Error().Err(err).Msg("the configuration was not reloaded: all is as it was")
			}
		case <-ctx.Done():
			return nil
		}
	}
}
