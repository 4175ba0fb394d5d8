package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"turnstone/turn"

	"golang.org/x/sys/unix"
)

// Operators are who the daemon is for.
type Operators interface {
	// Acted records what an operator is about to do. It returns when that is durable.
	Acted(ctx context.Context, e turn.OperatorActed) error
}

// peer is the process at the other end of the socket, as the kernel knew it when it connected.
type peer struct {
	uid, pid uint32
	known    bool
}

func (p peer) String() string {
	if !p.known {
		return "somebody"
	}
	return fmt.Sprintf("uid %d", p.uid)
}

// may says whether p may ask a daemon of the user own: root and that user may, whatever the mode of the socket.
func (p peer) may(own int) bool { return p.known && (p.uid == 0 || int(p.uid) == own) }

// peerKey is the key of the peer in a context.
type peerKey struct{}

// withPeer puts who is connected to the socket into a context.
func withPeer(ctx context.Context, c net.Conn) context.Context {
	var p peer
	if u, ok := c.(*net.UnixConn); ok {
		if raw, err := u.SyscallConn(); err == nil {
			_ = raw.Control(func(fd uintptr) {
				if cred, err := unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); err == nil {
					p = peer{uid: cred.Uid, pid: uint32(cred.Pid), known: true}
				}
			})
		}
	}
	return context.WithValue(ctx, peerKey{}, p)
}

func peerOf(ctx context.Context) peer {
	p, _ := ctx.Value(peerKey{}).(peer)
	return p
}

// admit refuses those who may not ask.
func admit(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if p := peerOf(r.Context()); !p.may(os.Geteuid()) {
			replyCode(w, http.StatusForbidden, fmt.Errorf("%v may not ask this daemon: only root and its own user may", p))
			return
		}
		h.ServeHTTP(w, r)
	})
}

// shortly is how long an act that must be possible while the log cannot be written waits for its record.
const shortly = 2 * time.Second

// act adds a route whose requests are recorded before they are done: where that fails they are not.
func (r routes) act(o Operators, pattern string, what func(*http.Request) string, h http.HandlerFunc) {
	r.HandleFunc(pattern, func(w http.ResponseWriter, q *http.Request) {
		if err := Act(q.Context(), o, acted(q, what)); err != nil {
			reply(w, nil, err)
			return
		}
		h(w, q)
	})
}

// Act records what an operator is about to do, which is not to be done after an error.
func Act(ctx context.Context, o Operators, e turn.OperatorActed) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	err := o.Acted(ctx, e)
	if errors.Is(err, context.DeadlineExceeded) {
		err = errors.New("the daemon's log is not open: its log lines say why")
	}
	if err != nil {
		return fmt.Errorf("not done, since it cannot be recorded: %w", err)
	}
	return nil
}

// Close is what an operator does who ends an allocation.
func Close(id turn.AllocationID) string { return "close allocation " + id.String() }

// look is act, but what a log that cannot be written does not stop.
func (r routes) look(o Operators, pattern string, what func(*http.Request) string, h http.HandlerFunc) {
	r.HandleFunc(pattern, func(w http.ResponseWriter, q *http.Request) {
		ctx, cancel := context.WithTimeout(q.Context(), shortly)
		_ = o.Acted(ctx, acted(q, what)) // the daemon logs it too
		cancel()
		h(w, q)
	})
}

func acted(r *http.Request, what func(*http.Request) string) turn.OperatorActed {
	p := peerOf(r.Context())
	return turn.OperatorActed{UID: p.uid, PID: p.pid, What: what(r)}
}

// always is an act that has no more to say.
func always(what string) func(*http.Request) string {
	return func(*http.Request) string { return what }
}
