package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/handover"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// takeover is how another process takes over from this one.
type takeover struct {
	mu    sync.Mutex // guards the fields below
	asked bool
	to    *handover.Giver // nil while nobody does
	left  handover.Sockets
}

var errTwice = errors.New("another process is taking over already")

// begin says whether nobody takes over yet.
func (t *takeover) begin() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	before := t.asked
	t.asked = true
	return !before
}

// over says whether the daemon ends for another process.
func (t *takeover) over() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.to != nil
}

func (t *takeover) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked = false
}

// TakenOver serves a process that wants to take over. Until that says go nothing changes, and this daemon goes on if it does
// not. Then this one stops serving: see [serve].
func (d *served) TakenOver(w http.ResponseWriter, r *http.Request) error {
	if !d.takeover.begin() {
		return errTwice
	}
	offer := handover.Offer{Version: version(), PID: os.Getpid(), Log: d.store.State().Log().String(), Draining: d.draining.is()}
	for _, l := range d.now.Load().resolved.Listeners {
		offer.Sockets = append(offer.Sockets, relay.Socket{Stream: l.Protocol == turn.TCP || l.Protocol == turn.TLS, Address: l.Address})
	}
	d.log.Info().Msg("another process asks to take over")
	to, err := handover.Serve(w, r, offer)
	if err != nil {
		d.takeover.forget()
		d.log.Warn().Err(err).Msg("it did not come to a takeover: all is as it was")
		return nil // the connection is not HTTP's any more
	}
	d.reload.Lock() // one that is under way comes first
	d.takeover.mu.Lock()
	d.takeover.to = to
	d.takeover.mu.Unlock()
	d.reload.Unlock()
	d.relay.Leave()
	d.end("takeover")
	return nil
}

// leave keeps the sockets of the admin interface and of the metrics for whoever takes over.
func (d *served) leave(admin *net.UnixListener) {
	d.takeover.mu.Lock()
	defer d.takeover.mu.Unlock()
	d.takeover.left = handover.None()
	if d.takeover.to == nil {
		return
	}
	admin.SetUnlinkOnClose(false)
	d.takeover.left.Admin = duplicate(admin)
	if d.web.listener != nil {
		d.takeover.left.Metrics = duplicate(d.web.listener)
	}
}

// duplicate is another descriptor of a socket, -1 where there are too many.
func duplicate(c syscall.Conn) (fd int) {
	fd = -1
	raw, err := c.SyscallConn()
	if err != nil {
		return fd
	}
	_ = raw.Control(func(f uintptr) {
		if n, err := unix.FcntlInt(f, unix.F_DUPFD_CLOEXEC, 3); err == nil {
			fd = n
		}
	})
	return fd
}

// takeOver takes over from the daemon that runs with the same admin socket: it is nil where there is none. What can fail
// before that one stops serving has not failed when it returns.
func takeOver(ctx context.Context, r config.Resolved, log zerolog.Logger) (*handover.Taker, error) {
	t, err := handover.Ask(ctx, r.AdminSocket)
	switch {
	case errors.Is(err, syscall.ENOENT), errors.Is(err, syscall.ECONNREFUSED):
		log.Info().Str("admin", r.AdminSocket).Msg("there is no daemon to take over from")
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("take over from the daemon at %s: %w", r.AdminSocket, err)
	}
	for _, l := range r.Listeners {
		stream := l.Protocol == turn.TCP || l.Protocol == turn.TLS
		if slices.Contains(t.Offer.Sockets, relay.Socket{Stream: stream, Address: l.Address}) {
			continue
		}
		if err := relay.TryListen(l); err != nil {
			t.Close()
			return nil, fmt.Errorf("listen on %v/%v: %w: the daemon that runs goes on", l.Protocol, l.Address, err)
		}
	}
	log.Info().Str("from", t.Offer.Version).Int("pid", t.Offer.PID).Msg("taking over")
	return t, nil
}

// lockPatience is how long a process that is ending may hold the log and the kernel's side.
const lockPatience = 10 * time.Second
