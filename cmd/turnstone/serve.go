package main

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/metrics"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

func serveCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Run the daemon",
		Long:  "Runs the relay until SIGTERM. What it granted stays in its log, and comes back when it is started\nagain. SIGHUP reads the configuration again. Settings come from a file, over it the environment\n(TURNSTONE_*), over it flags; with none of them it relays with a credential it makes itself.",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			load := func() (config.Resolved, error) {
				c, _, err := config.Load(cmd.Flags())
				if err != nil {
					return config.Resolved{}, usageError("%w", err)
				}
				r, err := c.Resolve()
				if err != nil {
					return r, usageError("%w", err)
				}
				return r, nil
			}
			return serve(cmd.Context(), load, o.cause, cmd.OutOrStdout(), cmd.ErrOrStderr())
		},
	}
	config.Flags(cmd.Flags())
	return cmd
}

// served is a daemon as it runs.
type served struct {
	load    func() (config.Resolved, error)
	config  config.Resolved
	key     [32]byte // of nonces
	store   *store.Log
	relay   *relay.Server
	log     zerolog.Logger
	clock   func() turn.Moment
	started time.Time
	drained bool
}

func serve(ctx context.Context, load func() (config.Resolved, error), cause func() string, stdout, stderr io.Writer) (err error) {
	r, err := load()
	if err != nil {
		return err
	}
	d := &served{load: load, config: r, log: newLogger(stderr, r), started: time.Now()}
	raiseFileLimit(d.log)
	if err := d.kernelMode(); err != nil {
		return err
	}
	if d.clock, err = relay.HostClock(); err != nil {
		return err
	}
	if d.store, err = store.Open(r.Data, store.Options{}); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.store.Close()) }()
	key, err := store.LoadKey(r.Data, "nonce", len(d.key))
	if err != nil {
		return err
	}
	d.key = [32]byte(key)
	settings, demo, err := d.settings(r)
	if err != nil {
		return err
	}
	state := d.store.State()
	sealed := state.LastSealed()
	d.relay, err = relay.New(relay.Config{
		Listeners: r.Listeners, Settings: settings, Log: d.store, State: state,
		Logger: d.log, Clock: d.clock, Version: version(), PID: os.Getpid(),
	})
	if err != nil {
		return err
	}
	return d.run(ctx, cause, sealed, demo, stdout)
}

// run runs the parts of the daemon until ctx ends or one of them fails.
func (d *served) run(ctx context.Context, cause func() string, sealed uint64, demo string, stdout io.Writer) error {
	socket, err := admin.Listen(d.config.AdminSocket)
	if err != nil {
		return err
	}
	web, err := d.listenMetrics()
	if err != nil {
		return errors.Join(err, socket.Close())
	}
	group, inner := errgroup.WithContext(ctx)
	aside, stopAside := context.WithCancel(context.WithoutCancel(ctx))
	defer stopAside()
	group.Go(func() error {
		defer stopAside()
		return d.relay.Run(inner, cause)
	})
	group.Go(func() error { return admin.NewServer(d, d.store, d.clock).Serve(aside, socket) })
	group.Go(func() error { return ignoreEnd(d.store.Background(aside, sealed, d.relay.Record)) })
	group.Go(func() error { return d.watchSignals(aside) })
	if web != nil {
		group.Go(func() error { return serveMetrics(aside, web, d.sources()) })
	}
	if err := d.relay.View(inner, func(*turn.State) {}); err == nil {
		d.announce(demo, stdout)
	}
	group.Go(func() error { return watchdog(aside) })
	err = group.Wait()
	_, _ = daemon.SdNotify(false, daemon.SdNotifyStopping)
	d.log.Info().Str("cause", cause()).Err(err).Msg("stopped")
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
func (d *served) announce(demo string, stdout io.Writer) {
	if demo != "" {
		fmt.Fprintln(stdout, demo)
	}
	var urls []string
	for _, l := range d.config.Listeners {
		urls = append(urls, fmt.Sprintf("%v://%v", l.Protocol, l.Address))
	}
	fmt.Fprintf(stdout, "turnstone ready on %s\n", strings.Join(urls, " "))
	d.log.Info().Strs("listen", urls).Str("data", d.config.Data).Int("allocations", d.relay.Allocations()).
		Dur("took", time.Since(d.started)).Msg("ready")
	_, _ = daemon.SdNotify(false, daemon.SdNotifyReady)
}

// kernelMode says what becomes of the wish for the kernel.
func (d *served) kernelMode() error {
	switch d.config.KernelMode {
	case "required":
		return errors.New("kernel.mode is required, and this version relays in userspace only")
	case "auto":
		d.log.Info().Str("reason", "this version has no XDP program").Msg("relaying in userspace")
	}
	return nil
}

// settings are what the relay runs by, and the ICE servers to print for a demo.
func (d *served) settings(r config.Resolved) (relay.Settings, string, error) {
	g, demo := r.Gate, ""
	g.NonceKey = d.key
	if r.Demo {
		secret, err := store.LoadKey(r.Data, "demo", 15)
		if err != nil {
			return relay.Settings{}, "", err
		}
		u := turn.User{Name: "demo", Password: base64.RawURLEncoding.EncodeToString(secret)}
		g.Users = []turn.User{u}
		demo = iceServers(turnURLs(r), u.Name, u.Password)
	}
	return relay.Settings{
		Gate: turn.NewGate(g), Rules: r.Rules, UnauthRate: r.UnauthRate, UnauthBurst: r.UnauthBurst, Digest: r.Digest,
	}, demo, nil
}

// turnURLs are the listeners as clients name them (RFC 7065).
func turnURLs(r config.Resolved) (urls []string) {
	for _, l := range r.Listeners {
		shown := l.Address
		for _, e := range r.Rules.Relays {
			if e.IP == shown.Addr() && e.External.IsValid() {
				shown = r.Rules.Shown(shown)
			}
		}
		urls = append(urls, "turn:"+shown.String()+"?transport=udp")
	}
	return urls
}

// iceServers is the configuration of an RTCPeerConnection as JSON.
func iceServers(urls []string, username, password string) string {
	type server struct {
		URLs       []string `json:"urls"`
		Username   string   `json:"username"`
		Credential string   `json:"credential"`
	}
	b, _ := json.Marshal(map[string][]server{"iceServers": {{urls, username, password}}}) // strings always marshal
	return string(b)
}

// Status is for the admin interface.
func (d *served) Status(ctx context.Context) (admin.Status, error) {
	c := d.relay.Counters()
	st := admin.Status{
		Version: version(), PID: os.Getpid(), Started: d.started.UTC(), Ready: d.relay.Ready(), Draining: d.drained, Realm: d.config.Gate.Realm,
		Kernel: "userspace: this version has no XDP program", Room: d.store.Room().String(),
		ToPeer:   turn.Count{Packets: c.ToPeerPackets, Bytes: c.ToPeerBytes},
		ToClient: turn.Count{Packets: c.ToClientPackets, Bytes: c.ToClientBytes}, Drops: c.Drops,
	}
	for _, l := range d.config.Listeners {
		st.Listeners = append(st.Listeners, fmt.Sprintf("%v://%v", l.Protocol, l.Address))
	}
	for _, r := range d.config.Rules.Relays {
		st.Relay = append(st.Relay, r.External.String())
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	err := d.relay.View(ctx, func(s *turn.State) {
		st.Log, st.Epoch, st.Seq, st.Allocations = s.Log().String(), s.Epoch(), s.Seq(), s.Len()
		for a := range s.Allocations() {
			st.Permissions += len(a.Permissions)
			st.Channels += len(a.Channels)
		}
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
	d.drained = on
	return d.relay.Drain(ctx, on)
}

// Reload reads the configuration again. What is bound to sockets and files needs a restart, which costs no call.
func (d *served) Reload(ctx context.Context) error {
	r, err := d.load()
	if err != nil {
		return err
	}
	settings, _, err := d.settings(r)
	if err != nil {
		return err
	}
	if fmt.Sprint(r.Listeners, r.Data, r.AdminSocket, r.Metrics, r.KernelMode) !=
		fmt.Sprint(d.config.Listeners, d.config.Data, d.config.AdminSocket, d.config.Metrics, d.config.KernelMode) {
		d.log.Warn().Msg("listeners, data, admin socket, metrics and kernel mode change with a restart only")
	}
	if err := d.relay.Reload(ctx, settings); err != nil {
		return err
	}
	d.log.Info().Msg("configuration reloaded")
	return nil
}

func (d *served) watchSignals(ctx context.Context) error {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
			if err := d.Reload(ctx); err != nil {
				d.log.Error().Err(err).Msg("the configuration was not reloaded")
			}
		case <-ctx.Done():
			return nil
		}
	}
}

func (d *served) sources() metrics.Sources {
	return metrics.Sources{
		Counters: d.relay.Counters, Ready: d.relay.Ready, Room: d.store.Room, Allocations: d.relay.Allocations,
		FreeBytes: d.store.FreeBytes, Version: version(),
	}
}

// listenMetrics opens the address of the metrics; nil for none.
func (d *served) listenMetrics() (net.Listener, error) {
	if d.config.Metrics == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", d.config.Metrics)
	if err != nil && d.config.MetricsSet {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	if err != nil {
		d.log.Warn().Err(err).Msg("no metrics: their default address is taken")
		return nil, nil
	}
	return l, nil
}

func serveMetrics(ctx context.Context, l net.Listener, s metrics.Sources) error {
	server := http.Server{Handler: metrics.Handler(s), ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
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

func newLogger(w io.Writer, r config.Resolved) zerolog.Logger {
	f, isFile := w.(*os.File)
	console := r.LogFormat == "console" || (r.LogFormat == "auto" && isFile && term.IsTerminal(int(f.Fd())))
	if console {
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly}
	}
	zerolog.TimeFieldFormat = time.RFC3339Nano
	return zerolog.New(w).Level(r.Level).With().Timestamp().Logger()
}

// raiseFileLimit makes room for a socket for every allocation, as far as the
// process may.
func raiseFileLimit(log zerolog.Logger) {
	const want = 1 << 20
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil || l.Cur >= want {
		return
	}
	raised := unix.Rlimit{Cur: want, Max: max(want, l.Max)}
	if unix.Setrlimit(unix.RLIMIT_NOFILE, &raised) == nil {
		return
	}
	l.Cur = l.Max
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Max < 1<<16 {
		log.Warn().Uint64("files", l.Cur).Msg("few files may be open: that bounds the allocations")
	}
}
