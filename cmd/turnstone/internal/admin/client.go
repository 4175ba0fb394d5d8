package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net"
	"net/http"
	"strings"
	"syscall"
	"time"

	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"
)

// ErrUnreachable says that no daemon answers at the socket.
var ErrUnreachable = errors.New("the daemon cannot be reached")

// Client asks a daemon.
type Client struct {
	socket string
	http   http.Client // for what takes as long as it takes
	quick  http.Client // for questions
}

// answerWithin is how long a daemon may take to begin to answer a question. The socket may be open with nobody behind it: a
// service manager keeps it while the daemon is restarted.
const answerWithin = 20 * time.Second

// NewClient makes a Client for the socket at path. It does not connect yet.
func NewClient(path string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", path)
	}
	return &Client{
		socket: path, http: http.Client{Transport: &http.Transport{DialContext: dial}},
		quick: http.Client{Transport: &http.Transport{DialContext: dial, ResponseHeaderTimeout: answerWithin}},
	}
}

func (c *Client) do(ctx context.Context, method, path string) (*http.Response, error) {
	return c.send(ctx, method, path, nil)
}

// send asks with a body.
func (c *Client) send(ctx context.Context, method, path string, body io.Reader) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, "http://turnstone"+path, body)
	if err != nil {
		return nil, err
	}
	ask := c.http.Do
	if method == http.MethodGet {
		ask = c.quick.Do
	}
	resp, err := ask(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		return nil, c.unreachable(err)
	}
	if resp.StatusCode == http.StatusOK {
		return resp, nil
	}
	defer resp.Body.Close()
	var problem struct{ Error string }
	if json.NewDecoder(resp.Body).Decode(&problem) != nil || problem.Error == "" {
		problem.Error = resp.Status
	}
	if resp.StatusCode == http.StatusNotFound {
		return nil, relay.ErrNoAllocation
	}
	return nil, errors.New(strings.TrimSpace(problem.Error))
}

// unreachable says why there is no answer and what may help.
func (c *Client) unreachable(err error) error {
	var cause syscall.Errno
	switch {
	case !errors.As(err, &cause):
		return fmt.Errorf("%w at %s: %w", ErrUnreachable, c.socket, err)
	case cause == syscall.EACCES || cause == syscall.EPERM:
		return fmt.Errorf("%w at %s: %w: the socket is open to the daemon's own user and to root", ErrUnreachable, c.socket, cause)
	}
	return fmt.Errorf("%w at %s: %w: start it, or say with --data, --admin-socket or --config where it is", ErrUnreachable, c.socket, cause)
}

func call[T any](ctx context.Context, c *Client, method, path string) (out T, err error) {
	resp, err := c.do(ctx, method, path)
	if err != nil {
		return out, err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return out, fmt.Errorf("read the daemon's answer: %w", err)
	}
	return out, nil
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	return call[Status](ctx, c, http.MethodGet, "/v1/status")
}

// Allocations lists all allocations.
func (c *Client) Allocations(ctx context.Context) ([]Allocation, error) {
	return call[[]Allocation](ctx, c, http.MethodGet, "/v1/allocations")
}

// Allocation shows one.
func (c *Client) Allocation(ctx context.Context, id turn.AllocationID) (Allocation, error) {
	return call[Allocation](ctx, c, http.MethodGet, fmt.Sprintf("/v1/allocations/%d", id))
}

// CloseAllocation ends one.
func (c *Client) CloseAllocation(ctx context.Context, id turn.AllocationID) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, fmt.Sprintf("/v1/allocations/%d/close", id))
	return err
}

// Reload has the daemon read its configuration again.
func (c *Client) Reload(ctx context.Context) (Reloaded, error) {
	return call[Reloaded](ctx, c, http.MethodPost, "/v1/reload")
}

// Drain stops or resumes new allocations.
func (c *Client) Drain(ctx context.Context, on bool) error {
	_, err := call[struct{}](ctx, c, http.MethodPost, fmt.Sprintf("/v1/drain?on=%t", on))
	return err
}

// DrainOut stops new allocations and has the daemon end when there are none left, or after a time. It yields how that
// goes, to the end. Who stops listening does not stop it.
func (c *Client) DrainOut(ctx context.Context, timeout time.Duration) iter.Seq2[Drain, error] {
	return func(yield func(Drain, error) bool) {
		resp, err := c.do(ctx, http.MethodPost, "/v1/drain?on=true&timeout="+timeout.String())
		if err != nil {
			yield(Drain{}, err)
			return
		}
		defer resp.Body.Close()
		for lines := json.NewDecoder(resp.Body); ; {
			var p Drain
			if err := lines.Decode(&p); err != nil {
				yield(p, fmt.Errorf("the daemon ended, and not because it was drained: %w", err))
				return
			}
			if !yield(p, nil) || p.State != Draining {
				return
			}
		}
	}
}

// LogStat describes the log's file.
func (c *Client) LogStat(ctx context.Context) (store.Stat, error) {
	return call[store.Stat](ctx, c, http.MethodGet, "/v1/log/stat")
}

// Raw streams the records of the log in their stored form; with follow it does not end by itself.
func (c *Client) Raw(ctx context.Context, from turn.Seq, follow bool) iter.Seq2[[]byte, error] {
	return func(yield func([]byte, error) bool) {
		resp, err := c.do(ctx, http.MethodGet, fmt.Sprintf("/v1/log/records?from=%d&follow=%t", from, follow))
		if err != nil {
			yield(nil, err)
			return
		}
		defer resp.Body.Close()
		readStream(resp.Body)(yield)
	}
}
