package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/crash"
	"turnstone/cmd/turnstone/internal/handover"
	"turnstone/cmd/turnstone/internal/systemd"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
)

func serveCommand(o *options) *cobra.Command {
	var takesOver bool
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long:  "Runs the relay until SIGTERM. What it granted stays in its log, and comes back when it is started again; kill -9\ncosts no more. SIGHUP reads the configuration again. Settings come from a file, over it the environment\n(TURNSTONE_*), over it flags; with none of them it relays with a credential it makes itself and prints.",
		Example: `  turnstone serve
  turnstone serve --config /etc/turnstone/turnstone.toml
  turnstone serve --listen udp://192.0.2.1:3478 --realm example.org --user alice:secret
  TURNSTONE_AUTH_SECRETS=secret turnstone serve --external-ip 198.51.100.1
  turnstone-new serve --config /etc/turnstone/turnstone.toml --takeover`,
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
			return serve(cmd.Context(), load, takesOver, o.cause, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	config.Flags(cmd.Flags())
	cmd.Flags().BoolVar(&takesOver, "takeover", false, "Take over from the daemon that runs with this configuration, as for an upgrade: its sockets, without a packet lost. It goes on if this one cannot.")
	return cmd
}

// certificatesEvery is how often the files of certificates are looked at.
const certificatesEvery = 5 * time.Second

// serve runs a daemon. What goes wrong once it has a logger is logged. One that another process took over from ends when that
// is ready, and lives on where that is gone before.
func serve(ctx context.Context, load loader, takesOver bool, cause func() string, stdout, stderr io.Writer) error {
	c, r, err := load()
	if err != nil {
		return err
	}
	log := newLogger(stderr, r)
	if err := serveLives(ctx, lives{load: load, config: c, resolved: r, log: log, cause: cause, stdout: stdout}, takesOver); err != nil {
		log.WithLevel(zerolog.FatalLevel).Err(err).Msg("the daemon ends")
		return exitError{errLogged, err}
	}
	return nil
}

// lives is what the lives of a daemon in one process have in common.
type lives struct {
	load     loader
	config   config.Config
	resolved config.Resolved
	log      zerolog.Logger
	cause    func() string
	stdout   io.Writer
}

func serveLives(ctx context.Context, l lives, takesOver bool) error {
	from := systemd.Inherit()
	for _, err := range from.Others {
		l.log.Warn().Err(err).Msg("not used")
	}
	keeper, stopKeeping := startKeeper(from, l.log)
	defer stopKeeping()
	sockets := handover.Sockets{Relay: from.Sockets, Admin: from.Admin, Metrics: -1}
	taker, err := l.takeFrom(ctx, takesOver, &sockets)
	if err != nil {
		return err
	}
	for patience := time.Duration(0); ; patience = lockPatience {
		d := &served{load: l.load, log: l.log, started: time.Now(), keeper: keeper, inherited: sockets, patience: patience}
		d.now.Store(&running{config: l.config, resolved: l.resolved})
		err := d.serve(ctx, l.cause, l.stdout, taker)
		if taker != nil {
			taker.Close()
			taker = nil
		}
		if err != nil || d.takeover.to == nil {
			return err
		}
		if err = d.takeover.to.Give(ctx, d.takeover.left); err == nil {
			l.log.Info().Msg("another process has taken over")
			return nil
		}
		if ctx.Err() != nil {
			return nil
		}
		l.log.Error().Err(err).Msg("whoever wanted to take over is gone: this daemon goes on")
		sockets, l.config, l.resolved = d.takeover.left, d.now.Load().config, d.now.Load().resolved
	}
}

// takeFrom puts the sockets of the daemon that runs into s, where that is asked for and one does.
func (l *lives) takeFrom(ctx context.Context, takesOver bool, s *handover.Sockets) (*handover.Taker, error) {
	if !takesOver {
		return nil, nil
	}
	t, err := takeOver(ctx, l.resolved, l.log)
	if err != nil || t == nil {
		return nil, err
	}
	s.Close()
	if *s, err = t.Take(); err != nil {
		t.Close()
		return nil, fmt.Errorf("take over: %w", err)
	}
	return t, nil
}

// startKeeper has sockets put into the store of the service manager, if it has one.
func startKeeper(from systemd.Inherited, log zerolog.Logger) (k *systemd.Store, stop func()) {
	k = systemd.NewStore(from, log)
	if k == nil {
		return nil, func() {}
	}
	done := make(chan error, 1)
	go func() { done <- k.Run() }()
	return k, func() {
		k.Close()
		if err := <-done; err != nil {
			log.Warn().Err(err).Msg("sockets are not stored")
		}
	}
}

// openLog opens the log. Where another process is about to end that is waited for.
func (d *served) openLog(r config.Resolved) (err error) {
	var locked *store.LockedError
	began := time.Now()
	for end := began.Add(d.patience); ; time.Sleep(20 * time.Millisecond) {
		began = time.Now()
		if d.store, err = store.Open(r.Data, d.logOptions(r)); !errors.As(err, &locked) || time.Now().After(end) {
			break
		}
	}
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	d.replayed = time.Since(began)
	if m := d.store.Migration(); m.Steps > 0 && m.Backup != "" {
		d.log.Warn().Uint64("from", m.From).Uint64("to", m.To).Str("backup", m.Backup).
			Msg("the log was brought to a new schema: the file as it was is kept until you remove it")
	}
	return nil
}

// serve starts the parts of the daemon, in the order that a restart needs, and runs them.
func (d *served) serve(ctx context.Context, cause func() string, stdout io.Writer, taker *handover.Taker) (err error) {
	r := d.now.Load().resolved
	tuneProcess(d.log)
	if d.clock, err = relay.HostClock(); err != nil {
		return err
	}
	if err := d.openLog(r); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.store.Close()) }()
	d.watchCrashes(r.Data)
	for _, a := range advise(r) {
		d.log.WithLevel(a.level).Msg(a.text)
	}
	if err := d.loadKeys(r.Data); err != nil {
		return err
	}
	if err := d.openPseudonyms(r); err != nil {
		return err
	}
	d.lookups = relay.NewLookups(relay.LookupConfig{})
	d.useHook(r.Hook)
	defer d.useHook(config.Hook{})
	d.certificates = certs.NewStore(d.log)
	if err := d.certificates.Use(r.Certificates); err != nil {
		return err
	}
	settings, demo, err := d.settings(r)
	if err != nil {
		return err
	}
	state := d.store.State()
	sealed := state.LastSealed()
	c := relay.Config{
		Settings: settings, Log: d.store, State: state, Lookups: d.lookups, Inherited: d.inherited.Relay,
		Logger: d.log, Clock: d.clock, Version: version(), PID: os.Getpid(),
	}
	if d.keeper != nil {
		c.Keeper = d.keeper
	}
	if d.relay, err = relay.New(c); err != nil {
		return err
	}
	if err := d.openKernel(r, state.Clone()); err != nil {
		return err
	}
	if k := d.kernel(); k != nil {
		d.relay.Carry(k)
	}
	d.newSinks(r.Publication)
	return d.run(ctx, cause, sealed, demo, stdout, taker)
}

// logOptions is how the log is kept.
func (d *served) logOptions(r config.Resolved) store.Options {
	return store.Options{
		Encrypt: r.Encrypt, ForgetAge: r.ForgetAge, Retention: r.Retention, Version: version(),
		Trouble: func(err error) { d.log.Error().Err(err).Msg("the log is not tended: trying again") },
	}
}

// loadKeys reads the keys of nonces and tickets, which are made where they are not there.
func (d *served) loadKeys(data string) error {
	key, err := store.LoadKey(data, "nonce", len(d.key))
	if err != nil {
		return err
	}
	d.key = [32]byte(key)
	ticketKey, err := store.LoadKey(data, "ticket", 32)
	if err != nil {
		return err
	}
	d.tickets = turn.NewTickets([32]byte(ticketKey))
	return nil
}

// endable is ctx, but the daemon itself can end it too, for a cause.
func (d *served) endable(ctx context.Context, cause func() string) (context.Context, func() string) {
	inner, cancel := context.WithCancel(ctx)
	var own atomic.Pointer[string]
	d.end = func(cause string) {
		own.CompareAndSwap(nil, &cause)
		cancel()
	}
	return inner, func() string {
		if own := own.Load(); own != nil && ctx.Err() == nil {
			return *own
		}
		return cause()
	}
}

// listenAdmin opens the admin socket, or goes on with that of another process.
func (d *served) listenAdmin(path string) (l *net.UnixListener, err error) {
	if d.inherited.Admin >= 0 {
		l = admin.Inherit(d.inherited.Admin, path)
		_ = syscall.Close(d.inherited.Admin)
	}
	if l == nil {
		if l, err = admin.Listen(path); err != nil {
			return nil, err
		}
	}
	l.SetUnlinkOnClose(d.keeper == nil)
	if fd := duplicate(l); d.keeper != nil && fd >= 0 {
		d.keeper.KeepAdmin(fd)
		_ = syscall.Close(fd)
	}
	return l, nil
}

// run runs the parts of the daemon until ctx ends or one of them fails.
func (d *served) run(ctx context.Context, cause func() string, sealed uint64, demo string, stdout io.Writer, taker *handover.Taker) error {
	r := d.now.Load().resolved
	socket, err := d.listenAdmin(r.AdminSocket)
	if err != nil {
		return err
	}
	page, err := d.listenMetrics(r)
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	ctx, cause = d.endable(ctx, cause)
	group, inner := errgroup.WithContext(ctx)
	aside, stopAside := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAside()
	d.group, d.aside = group, aside
	serving, stopServing := context.WithCancel(context.WithoutCancel(ctx))
	defer stopServing()
	group.Go(func() error {
		<-inner.Done()
		_ = systemd.Notify(systemd.Stopping)
		d.flushKernel()
		d.leave(socket)
		stopServing()
		return nil
	})
	group.Go(func() error {
		defer stopAside()
		return d.relay.Run(serving, cause)
	})
	d.runKernel()
	d.serveWeb(page)
	d.serveDashboard(r.Dashboard, nil)
	group.Go(func() error { return admin.NewServer(d, d.store, d.clock).Serve(aside, socket) })
	group.Go(func() error { return ignoreEnd(d.store.Background(aside, sealed, d.relay.Record)) })
	group.Go(func() error { d.keepCheckpoints(aside); return nil })
	group.Go(func() error { d.keepIndex(aside); return nil })
	group.Go(func() error { return d.watchSignals(aside) })
	group.Go(func() error { return d.watchUsers(aside) })
	group.Go(func() error { return d.watchDrain(aside) })
	group.Go(func() error { return d.certificates.Watch(aside, certificatesEvery) })
	if err := d.relay.View(inner, func(*turn.State) {}); err == nil {
		d.announce(demo, stdout, taker)
	}
	group.Go(func() error { return d.watchdog(aside) })
	err = group.Wait()
	if d.takeover.left.Relay = d.relay.Sockets(); d.takeover.to != nil {
		return err
	}
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

// announce says that the daemon is ready: one line on stdout, behind the ICE servers of a demo. It is said to the
// daemon that this one takes over from too, if there is one, and goes on refusing allocations where that did.
func (d *served) announce(demo string, stdout io.Writer, taker *handover.Taker) {
	r := d.now.Load().resolved
	if taker != nil {
		if taker.Offer.Draining {
			d.drainAsBefore()
		}
		if err := taker.Ready(); err != nil {
			d.log.Warn().Err(err).Msg("the daemon before is gone already")
		}
		_ = systemd.Notify(systemd.MainPID())
	}
	if demo != "" {
		fmt.Fprintln(stdout, demo)
	}
	urls := listenURLs(r)
	fmt.Fprintf(stdout, "turnstone ready on %s\n", strings.Join(urls, " "))
	e := d.log.Info().Strs("listen", urls).Str("data", r.Data).Str("admin", r.AdminSocket)
	if at := d.web.addr(); at != nil {
		e = e.Stringer("metrics", at)
	}
	d.readyAfter.Store(int64(time.Since(d.started)))
	e.Int("allocations", d.relay.Allocations()).Dur("took", time.Since(d.started)).Msg("ready")
	_ = systemd.Notify(systemd.Ready + "\n" + systemd.Status("%d allocations, relayed by %s", d.relay.Allocations(), d.datapath()))
}

func (d *served) drainAsBefore() {
	ctx, cancel := context.WithTimeout(d.aside, lockPatience)
	defer cancel()
	if err := d.Drain(ctx, true); err != nil {
		d.log.Warn().Err(err).Msg("the daemon before was draining, this one is not")
	}
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
