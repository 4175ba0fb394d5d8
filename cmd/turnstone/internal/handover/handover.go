// Package handover passes a running daemon's sockets to another process of it, over the admin socket.
//
// The one that takes over asks, is told what there is (the offer), opens what it still lacks and says go. The one that
// runs then stops serving, closes its log, and sends its sockets. It ends only when the other says that it is ready; if
// it hears nothing more of it before, it goes on from its log and its sockets, which it has kept. What comes meanwhile
// waits in the sockets. Each message is a line of JSON, and is answered by one.
package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"turnstone/turn/relay"

	"golang.org/x/sys/unix"
)

const (
	// Path is where the admin interface takes whoever wants to take over.
	Path = "/v1/takeover"
	// Protocol is what the connection becomes.
	Protocol = "turnstone-takeover/1"

	batch   = 128             // descriptors of a message; the kernel takes 253
	maxLine = 1 << 16         // bytes of a message
	prepare = 2 * time.Minute // that the other may take to say go
)

// Offer says what the running daemon has.
type Offer struct {
	Version  string         `json:"version"`
	PID      int            `json:"pid"`
	Log      string         `json:"log"`
	Draining bool           `json:"draining"`
	Sockets  []relay.Socket `json:"sockets"`
}

// Sockets are what is handed over.
type Sockets struct {
	Relay   []relay.Socket
	Admin   int // -1 for none; likewise Metrics
	Metrics int
}

// None are no sockets.
func None() Sockets { return Sockets{Admin: -1, Metrics: -1} }

// Close closes them all.
func (s *Sockets) Close() {
	for _, k := range s.Relay {
		_ = unix.Close(k.FD)
	}
	for _, fd := range []int{s.Admin, s.Metrics} {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	*s = None()
}

// line is a message.
type line struct {
	Offer   *Offer  `json:"offer,omitempty"`
	Go      bool    `json:"go,omitempty"`
	Sockets []entry `json:"sockets,omitempty"` // as many descriptors come along
	Last    bool    `json:"last,omitempty"`
	Taken   bool    `json:"taken,omitempty"`
	Ready   bool    `json:"ready,omitempty"`
}

// entry is what a descriptor is.
type entry struct {
	What   string       `json:"what"` // relay, admin or metrics
	Socket relay.Socket `json:"socket"`
}

// wire is a connection over which lines and descriptors go, in turns: nothing is read beyond a line.
type wire struct {
	conn *net.UnixConn
	buf  []byte
	fds  []int // that have come
}

func (w *wire) write(l line, fds ...int) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	b = append(b, '\n')
	n, _, err := w.conn.WriteMsgUnix(b, rights, nil)
	if err == nil && n < len(b) {
		_, err = w.conn.Write(b[n:])
	}
	return err
}

func (w *wire) read() (l line, err error) {
	oob := make([]byte, unix.CmsgSpace(batch*4))
	b := make([]byte, maxLine)
	for {
		if i := strings.IndexByte(string(w.buf), '\n'); i >= 0 {
			err := json.Unmarshal(w.buf[:i], &l)
			w.buf = w.buf[i+1:]
			return l, err
		}
		if len(w.buf) > maxLine {
			return l, errors.New("a message is too long")
		}
		n, oobn, _, _, err := w.conn.ReadMsgUnix(b, oob)
		if oobn > 0 {
			fds, err := rightsIn(oob[:oobn])
			w.fds = append(w.fds, fds...)
			if err != nil {
				return l, err
			}
		}
		if err != nil {
			return l, err
		}
		if n == 0 {
			return l, errGone
		}
		w.buf = append(w.buf, b[:n]...)
	}
}

func rightsIn(oob []byte) (fds []int, err error) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	for _, m := range list {
		some, err := unix.ParseUnixRights(&m)
		if err != nil {
			return fds, err
		}
		for _, fd := range some {
			unix.CloseOnExec(fd)
		}
		fds = append(fds, some...)
	}
	return fds, nil
}

// take yields the descriptors that came with n entries.
func (w *wire) take(n int) ([]int, error) {
	if len(w.fds) < n {
		return nil, fmt.Errorf("%d descriptors came, want %d", len(w.fds), n)
	}
	fds := w.fds[:n]
	w.fds = w.fds[n:]
	return fds, nil
}

var errGone = errors.New("the other process is gone")

// Giver is the daemon that runs.
type Giver struct{ w wire }

// Serve makes the connection of a request one to a process that wants to take over, and makes it an offer. It returns
// when that says go: from then on the daemon is to stop serving. An error says that it thought better of it.
func Serve(rw http.ResponseWriter, r *http.Request, o Offer) (*Giver, error) {
	if r.Header.Get("Upgrade") != Protocol {
		return nil, fmt.Errorf("the protocol of a takeover is %s here, and %q was asked for", Protocol, r.Header.Get("Upgrade"))
	}
	conn, _, err := http.NewResponseController(rw).Hijack()
	if err != nil {
		return nil, err
	}
	c, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, errors.Join(errors.New("a takeover goes over a Unix socket"), conn.Close())
	}
	g := &Giver{wire{conn: c}}
	if err := g.offer(o); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return g, nil
}

func (g *Giver) offer(o Offer) error {
	_ = g.w.conn.SetDeadline(time.Now().Add(prepare))
	defer func() { _ = g.w.conn.SetDeadline(time.Time{}) }()
	if _, err := fmt.Fprintf(g.w.conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Protocol); err != nil {
		return err
	}
	if err := g.w.write(line{Offer: &o}); err != nil {
		return err
	}
	l, err := g.w.read()
	if err == nil && !l.Go {
		err = errors.New("it did not say go")
	}
	return err
}

// Give sends s, which stay the caller's, and waits until the other process is ready. After an error it is not, and
// never will be: it is gone.
func (g *Giver) Give(ctx context.Context, s Sockets) error {
	stop := context.AfterFunc(ctx, func() { _ = g.w.conn.Close() })
	defer stop()
	defer g.w.conn.Close()
	list, fds := s.entries()
	for {
		n := min(batch, len(list))
		if err := g.w.write(line{Sockets: list[:n], Last: n == len(list)}, fds[:n]...); err != nil {
			return err
		}
		l, err := g.w.read()
		if err == nil && !l.Taken {
			err = errors.New("it did not take the sockets")
		}
		if err != nil {
			return err
		}
		if list, fds = list[n:], fds[n:]; len(list) == 0 {
			break
		}
	}
	l, err := g.w.read()
	if err == nil && !l.Ready {
		err = errors.New("it is not ready")
	}
	return err
}

func (s *Sockets) entries() (list []entry, fds []int) {
	add := func(what string, k relay.Socket) {
		if k.FD >= 0 {
			list, fds = append(list, entry{what, k}), append(fds, k.FD)
		}
	}
	add("admin", relay.Socket{FD: s.Admin})
	add("metrics", relay.Socket{FD: s.Metrics})
	for _, k := range s.Relay {
		add("relay", k)
	}
	return list, fds
}

// Taker is the process that takes over.
type Taker struct {
	Offer Offer
	w     wire
}

// Ask asks the daemon at an admin socket for an offer. Nothing has changed until [Taker.Take].
func Ask(ctx context.Context, socket string) (*Taker, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, err
	}
	t := &Taker{w: wire{conn: conn.(*net.UnixConn)}}
	if err := t.ask(); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return t, nil
}

func (t *Taker) ask() error {
	_ = t.w.conn.SetDeadline(time.Now().Add(prepare))
	defer func() { _ = t.w.conn.SetDeadline(time.Time{}) }()
	if _, err := fmt.Fprintf(t.w.conn, "POST %s HTTP/1.1\r\nHost: turnstone\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n", Path, Protocol); err != nil {
		return err
	}
	r := bufio.NewReader(t.w.conn) // no descriptors come before they are asked for
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusSwitchingProtocols {
		defer resp.Body.Close()
		var problem struct{ Error string }
		if json.NewDecoder(resp.Body).Decode(&problem) != nil || problem.Error == "" {
			problem.Error = resp.Status
		}
		return errors.New(problem.Error)
	}
	first, err := r.ReadBytes('\n')
	if err != nil {
		return err
	}
	var l line
	if err := json.Unmarshal(first, &l); err != nil || l.Offer == nil {
		return errors.Join(errors.New("it made no offer"), err)
	}
	t.Offer = *l.Offer
	return nil
}

// Take says go and takes the sockets. When it returns, the other daemon has closed its log.
func (t *Taker) Take() (s Sockets, err error) {
	s = None()
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	if err := t.w.write(line{Go: true}); err != nil {
		return s, err
	}
	for {
		l, err := t.w.read()
		if err != nil {
			return s, err
		}
		fds, err := t.w.take(len(l.Sockets))
		if err != nil {
			return s, err
		}
		for i, e := range l.Sockets {
			e.Socket.FD = fds[i]
			switch e.What {
			case "admin":
				s.Admin = fds[i]
			case "metrics":
				s.Metrics = fds[i]
			case "relay":
				s.Relay = append(s.Relay, e.Socket)
			default: // of a later version
				_ = unix.Close(fds[i])
			}
		}
		if err := t.w.write(line{Taken: true}); err != nil || l.Last {
			return s, err
		}
	}
}

// Ready says that this process serves: the other one ends.
func (t *Taker) Ready() error { return errors.Join(t.w.write(line{Ready: true}), t.w.conn.Close()) }

// Close has the other process go on.
func (t *Taker) Close() { _ = t.w.conn.Close() }
