package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/crash"
	"turnstone/cmd/turnstone/internal/hook"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func serveCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long:  "Runs the relay until SIGTERM. What it granted stays in its log, and comes back when it is started again; kill -9\ncosts no more. SIGHUP reads the configuration again. Settings come from a file, over it the environment\n(TURNSTONE_*), over it flags; with none of them it relays with a credential it makes itself and prints.",
		Example: `  turnstone serve
  turnstone serve --config /etc/turnstone/turnstone.toml
  turnstone serve --listen udp://192.0.2.1:3478 --realm example.org --user alice:secret
  TURNSTONE_AUTH_SECRETS=secret turnstone serve --external-ip 198.51.100.1`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (config.Config, config.Resolved, error) {
				c, _, err := config.Load(cmd.Flags())
				if err != nil {
					return c, config.Resolved{}, usageError("%w", err)
				}
				r, err := c.Resolve()
				if err != nil {
					return c, r, usageError("%w", err)
				}
				return c, r, nil
			}
			return serve(cmd.Context(), load, o.cause, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	config.Flags(cmd.Flags())
	return cmd
}

// certificatesEvery is how often the files of certificates are looked at.
const certificatesEvery = 5 * time.Second

// serve runs a daemon. What goes wrong once it has a logger is logged.
func serve(ctx context.Context, load loader, cause func() string, stdout, stderr io.Writer) error {
	c, r, err := load()
	if err != nil {
		return err
	}
	d := &served{load: load, log: newLogger(stderr, r), started: time.Now()}
	d.now.Store(&running{config: c, resolved: r})
	if err := d.serve(ctx, cause, stdout); err != nil {
		d.log.WithLevel(zerolog.FatalLevel).Err(err).Msg("the daemon ends")
		return exitError{errLogged, err}
	}
	return nil
}

// serve starts the parts of the daemon, in the order that a restart needs, and runs them.
func (d *served) serve(ctx context.Context, cause func() string, stdout io.Writer) (err error) {
	r := d.now.Load().resolved
	tuneProcess(d.log)
	if d.clock, err = relay.HostClock(); err != nil {
		return err
	}
	if d.store, err = store.Open(r.Data, store.Options{Encrypt: r.Encrypt, ForgetAge: r.ForgetAge}); err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	defer func() { err = errors.Join(err, d.store.Close()) }()
	d.watchCrashes(r.Data)
	for _, a := range advise(r) {
		d.log.WithLevel(a.level).Msg(a.text)
	}
	key, err := store.LoadKey(r.Data, "nonce", len(d.key))
	if err != nil {
		return err
	}
	d.key = [32]byte(key)
	ticketKey, err := store.LoadKey(r.Data, "ticket", 32)
	if err != nil {
		return err
	}
	d.tickets = turn.NewTickets([32]byte(ticketKey))
	if r.Hook.URL != "" {
		h := hook.New(r.Hook.URL, r.Hook.Token)
		defer h.Close()
		r.Hook.Lookup.Directory = h
		d.lookups = relay.NewLookups(r.Hook.Lookup)
	}
	settings, demo, err := d.settings(r)
	if err != nil {
		return err
	}
	state := d.store.State()
	sealed := state.LastSealed()
	d.certificates = certs.NewStore(d.log)
	if err := d.certificates.Use(r.Certificates); err != nil {
		return err
	}
	r.Streams.TLS = d.certificates.Config()
	d.relay, err = relay.New(relay.Config{
		Listeners: r.Listeners, Streams: r.Streams, Settings: settings, Log: d.store, State: state, Caps: r.Caps, Lookups: d.lookups,
		Logger: d.log, Clock: d.clock, Version: version(), PID: os.Getpid(),
	})
	if err != nil {
		return err
	}
	if err := d.openKernel(r, state.Clone()); err != nil {
		return err
	}
	if d.kernel != nil {
		d.relay.Carry(d.kernel)
	}
	d.newSinks(r.Publication)
	return d.run(ctx, cause, sealed, demo, stdout)
}

// run runs the parts of the daemon until ctx ends or one of them fails.
func (d *served) run(ctx context.Context, cause func() string, sealed uint64, demo string, stdout io.Writer) error {
	r := d.now.Load().resolved
	socket, err := admin.Listen(r.AdminSocket)
	if err != nil {
		return err
	}
	web, err := d.listenMetrics(r)
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	group, inner := errgroup.WithContext(ctx)
	aside, stopAside := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAside()
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	group.Go(func() error {
		<-inner.Done()
		d.flushKernel()
		stopServing()
		return nil
	})
	group.Go(func() error {
		defer stopAside()
		return d.relay.Run(serving, cause)
	})
	if d.kernel != nil {
		group.Go(func() error { return d.kernel.Run(aside, d.relay.Record) })
	}
	group.Go(func() error { return admin.NewServer(d, d.store, d.clock).Serve(aside, socket) })
	group.Go(func() error { return ignoreEnd(d.store.Background(aside, sealed, d.relay.Record)) })
	group.Go(func() error { d.keepCheckpoints(aside); return nil })
	group.Go(func() error { return d.watchSignals(aside) })
	group.Go(func() error { return d.watchUsers(aside) })
	group.Go(func() error { return d.certificates.Watch(aside, certificatesEvery) })
	if web != nil {
		group.Go(func() error { return serveMetrics(aside, web, d.sources()) })
	}
	if err := d.relay.View(inner, func(*turn.State) {}); err == nil {
		d.announce(demo, web, stdout)
	}
	group.Go(func() error { return watchdog(aside) })
	err = group.Wait()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	if err == nil {
		d.log.Info().Str("cause", cause()).Msg("stopped")
	}
	return err
}

// ignoreEnd drops the error of a context that ended because the daemon does.
func ignoreEnd(err error) error {
	if errors.Is(err, context.Canceled) || errors.Is(err, relay.ErrStopped) || errors.Is(err, os.ErrClosed) {
		return nil
	}
	return err
}

// announce says that the daemon is ready: one line on stdout, behind the ICE servers of a demo.
func (d *served) announce(demo string, web net.Listener, stdout io.Writer) {
	r := d.now.Load().resolved
	if demo != "" {
		fmt.Fprintln(stdout, demo)
	}
	urls := listenURLs(r)
	fmt.Fprintf(stdout, "turnstone ready on %s\n", strings.Join(urls, " "))
	e := d.log.Info().Strs("listen", urls).Str("data", r.Data).Str("admin", r.AdminSocket)
	if web != nil {
		e = e.Stringer("metrics", web.Addr())
	}
	e.Int("allocations", d.relay.Allocations()).Dur("took", time.Since(d.started)).Msg("ready")
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

// watchCrashes has the next run know what ended this one, and says what ended the last.
func (d *served) watchCrashes(data string) {
	last, err := crash.Watch(data)
	if err != nil {
		d.log.Warn().Err(err).Msg("a crash would be on stderr only")
	}
	if last != "" {
		d.log.Error().Str("crash", crash.Headline(last)).Str("file", crash.LastFile(data)).Msg("the run before this one crashed")
	}
}

// watchdog tells systemd that the daemon lives, where it asks for that.
func watchdog(ctx context.Context) error {
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil || every == 0 {
		return nil //nolint:nilerr // a malformed WATCHDOG_USEC is no reason not to relay
	}
	tick := time.NewTicker(every / 2)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_, _ = daemon.SdNotify(false, daemon.SdNotifyWatchdog)
		case <-ctx.Done():
			return nil
		}
	}
}
