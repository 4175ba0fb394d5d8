package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/crash"
	"turnstone/cmd/turnstone/internal/metrics"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"
)

func (d *served) sources() metrics.Sources {
	return metrics.Sources{
		Counters: d.relay.Counters, Ready: d.relay.Ready, Draining: d.draining.is, Alive: d.alive, Room: d.store.Room, Allocations: d.relay.Allocations, Grants: d.grants, Position: d.position, Start: d.startTimes,
		FreeBytes: d.store.FreeBytes, Kept: d.store.Kept, CertificateExpiry: d.certificates.Expires, Kernel: d.measureKernel, Version: version(),
		Users: func() int { return d.now.Load().resolved.CountUsers() }, UsersBroken: d.users.broken.Load,
		Lookups: d.lookupCounters, Checkpoints: d.checkpoints.counters,
	}
}

// lookupCounters is false where there is no hook.
func (d *served) lookupCounters() (relay.LookupCounters, bool) {
	if d.now.Load().resolved.Hook.URL == "" {
		return relay.LookupCounters{}, false
	}
	return d.lookups.Counters(), true
}

// grants counts what allocations hold.
func (d *served) grants() (g turn.Grants, ok bool) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	err := d.relay.View(ctx, func(s *turn.State) { g = s.Grants() })
	return g, err == nil
}

// position is the end of the log, and the size of its file in bytes.
func (d *served) position() (last turn.Seq, size int64) {
	last, _ = d.store.Head()
	if info, err := os.Stat(filepath.Join(d.store.Dir(), store.FileName)); err == nil {
		size = info.Size()
	}
	return last, size
}

func (d *served) startTimes() metrics.Start {
	return metrics.Start{Replay: d.replayed, Ready: time.Duration(d.readyAfter.Load())}
}

// scrapePatience is how long a scrape waits for the kernel's side to say how it is.
const scrapePatience = time.Second

func (d *served) measureKernel() (kernel.Status, bool) {
	k := d.kernel()
	if k == nil {
		return kernel.Status{}, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	st, err := k.Status(ctx)
	return st, err == nil
}

// web is the listener of the metrics.
type web struct {
	listener *net.TCPListener // nil for none
	close    context.CancelFunc
}

// addr is where it is, nil for nowhere.
func (w *web) addr() net.Addr {
	if w.listener == nil {
		return nil
	}
	return w.listener.Addr()
}

// listenMetrics opens the address of the metrics, or goes on with the socket of another process there; nil for none. Only
// an address somebody asked for has to be had.
func (d *served) listenMetrics(r config.Resolved) (*net.TCPListener, error) {
	if l := inheritWeb(d.inherited.Metrics, r.Metrics); l != nil || r.Metrics == "" {
		return l, nil
	}
	l, err := net.Listen("tcp", r.Metrics)
	if err != nil && r.MetricsSet {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	if err != nil {
		d.log.Warn().Err(err).Msg("no metrics: their default address is taken; choose another with --metrics, or --metrics off")
		return nil, nil
	}
	return l.(*net.TCPListener), nil
}

// inheritWeb is the listener of fd, nil where it is at another address.
func inheritWeb(fd int, address string) *net.TCPListener {
	if fd < 0 {
		return nil
	}
	file := os.NewFile(uintptr(fd), "metrics")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		return nil
	}
	if l.Addr().String() != address {
		l.Close()
		return nil
	}
	return l.(*net.TCPListener)
}

// serveWeb serves the metrics on l, which may be nil, in place of where they were before.
func (d *served) serveWeb(l *net.TCPListener) {
	if d.web.close != nil {
		d.web.close()
	}
	d.web = web{}
	if l == nil {
		return
	}
	ctx, cancel := context.WithCancel(d.aside)
	d.web = web{l, cancel}
	d.group.Go(func() error {
		defer cancel()
		return serveMetrics(ctx, l, d.sources())
	})
}

func serveMetrics(ctx context.Context, l net.Listener, s metrics.Sources) error {
	server := http.Server{Handler: crash.Handler(metrics.Handler(s)), ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}
