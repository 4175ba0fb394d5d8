package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/crash"
	"turnstone/cmd/turnstone/internal/metrics"
	"turnstone/kernel"
	"turnstone/turn/relay"
)

func (d *served) sources() metrics.Sources {
	return metrics.Sources{
		Counters: d.relay.Counters, Ready: d.relay.Ready, Draining: d.drained.Load, Room: d.store.Room, Allocations: d.relay.Allocations,
		FreeBytes: d.store.FreeBytes, CertificateExpiry: d.certificates.Expires, Kernel: d.measureKernel, Version: version(),
		Users: func() int { return d.now.Load().resolved.CountUsers() }, UsersBroken: d.users.broken.Load,
		Lookups: d.lookupCounters, Checkpoints: d.checkpoints.counters,
	}
}

// lookupCounters is false where there is no hook.
func (d *served) lookupCounters() (relay.LookupCounters, bool) {
	if d.lookups == nil {
		return relay.LookupCounters{}, false
	}
	return d.lookups.Counters(), true
}

// scrapePatience is how long a scrape waits for the kernel's side to say how it is.
const scrapePatience = time.Second

func (d *served) measureKernel() (kernel.Status, bool) {
	if d.kernel == nil {
		return kernel.Status{}, false
	}
	ctx, cancel := context.WithTimeout(context.Background(), scrapePatience)
	defer cancel()
	st, err := d.kernel.Status(ctx)
	return st, err == nil
}

// listenMetrics opens the address of the metrics; nil for none. Only an address somebody
// asked for has to be had.
func (d *served) listenMetrics(r config.Resolved) (net.Listener, error) {
	if r.Metrics == "" {
		return nil, nil
	}
	l, err := net.Listen("tcp", r.Metrics)
	if err != nil && r.MetricsSet {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	if err != nil {
		d.log.Warn().Err(err).Msg("no metrics: their default address is taken; choose another with --metrics, or --metrics off")
		return nil, nil
	}
	return l, nil
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
