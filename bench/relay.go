package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

const (
	flowCount  = 64                     // allocations with a channel each
	window     = 128                    // packets on their way when a server is kept busy
	burst      = 16                     // packets of one flow in a row, where they come in bursts
	lostAfter  = 20 * time.Millisecond  // when a server is kept busy
	quiet      = 100 * time.Millisecond // after which nothing more comes
	lateAtMost = 2 * time.Millisecond   // what a steady sender makes up for
)

// measureRelay has packets relayed through channels, either way, in two sizes: one by
// one at a steady rate; as many as go through, of all flows in turn; and as many as go
// through, in bursts of one flow.
func measureRelay(ctx context.Context, l *lab, k kind, r recorder) error {
	return l.with(ctx, k, func(s *server, c *clients) error {
		g := &generator{lab: l, server: s, client: c.transport, lostAfter: lostAfter, quiet: quiet, goals: true}
		return g.measure(ctx, c, r)
	})
}

// generator sends packets into a server and takes them at the other end. All
// of it is one thread: the server has the rest of the machine.
type generator struct {
	lab       *lab
	server    *server
	client    transport
	peer      *socket
	over      string        // what clients are on, before a blank; empty for UDP
	lostAfter time.Duration // when a server is kept busy
	quiet     time.Duration // after which nothing more comes
	goals     bool          // there are any for this
	relayed   []netip.AddrPort
	up        bool // from clients to peers
	size      int  // of the payload

	round          uint32 // tells the packets of one trial from those of others
	flow           int
	sent, received int
	latencies      []float64 // microseconds
}

func (g *generator) name() string {
	if g.up {
		return fmt.Sprintf("%sto peer, %d B", g.over, g.size)
	}
	return fmt.Sprintf("%sto client, %d B", g.over, g.size)
}

// measure has c allocate and bind, and makes all trials, either way and in two sizes.
func (g *generator) measure(ctx context.Context, c *clients, r recorder) (err error) {
	if g.relayed, err = c.allocateAll(0, flowCount); err != nil {
		return err
	}
	if err = c.bindAll(0, flowCount); err != nil {
		return err
	}
	if g.peer, err = newSocket(g.lab.net.peer, peerPort); err != nil {
		return err
	}
	defer g.peer.close()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("ask for exact timers: %w", err)
	}
	for _, up := range []bool{true, false} {
		for _, size := range []int{160, 1200} {
			g.up, g.size = up, size
			if err := g.all(ctx, r); err != nil {
				return fmt.Errorf("%s: %w", g.name(), err)
			}
		}
	}
	return nil
}

// all makes all trials of one way and size.
func (g *generator) all(ctx context.Context, r recorder) error {
	trials := []struct {
		name string
		run  func(time.Duration) error
	}{
		{"steady", g.steady},
		{"busy", func(d time.Duration) error { return g.busy(d, 1) }},
		{"busy in bursts", func(d time.Duration) error { return g.busy(d, burst) }},
	}
	for _, t := range trials {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if err := g.trial(func() error { return t.run(200 * time.Millisecond) }, func(time.Duration, time.Duration) {}); err != nil {
			return err
		}
		stop, err := g.profile(t.name)
		if err != nil {
			return err
		}
		err = g.trial(func() error { return t.run(pick(g.lab, 2*time.Second, 700*time.Millisecond)) }, func(cpu, took time.Duration) {
			name := g.name() + ", " + t.name
			steady := t.name == "steady"
			per := micros(cpu) / float64(g.received)
			if steady {
				r.add(name+": CPU per packet", "us", per, nil)
				if len(g.latencies) > 0 {
					r.add(name+": latency p50", "us", quantile(g.latencies, 0.5), nil)
					r.add(name+": latency p99", "us", quantile(g.latencies, 0.99), g.goal(1, "no worse than coturn"))
				}
			} else {
				r.add(name+": CPU per packet", "us", per, g.goal(0.5, "under half of coturn"))
				r.add(name+": relayed", "k/s", float64(g.received)/took.Seconds()/1000, nil)
			}
			r.add(name+": lost", "%", 100*float64(g.sent-g.received)/float64(g.sent), nil)
		})
		stop()
		if err != nil {
			return fmt.Errorf("%s: %w", t.name, err)
		}
	}
	return nil
}

// goal is ofCoturn where there are goals.
func (g *generator) goal(share float64, text string) *goal {
	if !g.goals {
		return nil
	}
	return ofCoturn(share, text)
}

// trial runs f and reports what the server spent on it, and how long it took.
func (g *generator) trial(f func() error, report func(cpu, took time.Duration)) error {
	g.round++
	g.sent, g.received, g.latencies = 0, 0, g.latencies[:0]
	before, err := g.server.cpu()
	if err != nil {
		return err
	}
	began := time.Now()
	if err := f(); err != nil {
		return err
	}
	took := time.Since(began)
	if err := g.takeAll(g.quiet); err != nil {
		return err
	}
	after, err := g.server.cpu()
	if err != nil {
		return err
	}
	if g.received == 0 || g.received > g.sent {
		return fmt.Errorf("of %d packets %d came through", g.sent, g.received)
	}
	report(after-before, took)
	return nil
}

// push queues a packet of a flow, in the train of the one before it or alone.
func (g *generator) push(flow int, train bool) error {
	g.sent++
	out, header := transport(g.peer), 0
	if g.up {
		out, header = g.client, 4
	}
	f := out.next()
	if g.up {
		binary.BigEndian.PutUint16(f, firstChannel)
		binary.BigEndian.PutUint16(f[2:], uint16(g.size))
	}
	binary.BigEndian.PutUint64(f[header:], uint64(time.Now().UnixNano()))
	binary.BigEndian.PutUint32(f[header+8:], g.round)
	binary.BigEndian.PutUint16(f[header+12:], uint16(flow))
	if train {
		return out.join(header + g.size)
	}
	if g.up {
		return out.queue(nth(clientAddresses, flow), listenAddress, header+g.size)
	}
	return out.queue(nth(peerAddresses, flow), g.relayed[flow], g.size)
}

func (g *generator) flush() error {
	if g.up {
		return g.client.flush()
	}
	return g.peer.flush()
}

// take takes what has come through, waiting for at most wait, and says how many datagrams were there.
func (g *generator) take(wait time.Duration) (int, error) {
	in, header, hosts := g.client, 4, clientAddresses
	if g.up {
		in, header, hosts = transport(g.peer), 0, peerAddresses
	}
	n, err := in.receive(wait)
	for i := range n {
		d := in.datagram(i)
		if len(d.data) != header+g.size || binary.BigEndian.Uint32(d.data[header+8:]) != g.round {
			continue
		}
		if flow := binary.BigEndian.Uint16(d.data[header+12:]); d.at != nth(hosts, int(flow)) {
			return n, fmt.Errorf("a packet of flow %d came to %v", flow, d.at)
		}
		g.received++
		if d.stamp == 0 {
			continue
		}
		g.latencies = append(g.latencies, float64(d.stamp-int64(binary.BigEndian.Uint64(d.data[header:])))/1000)
	}
	return n, err
}

// takeAll takes until nothing has come for a while.
func (g *generator) takeAll(wait time.Duration) error {
	for {
		if n, err := g.take(wait); n == 0 || err != nil {
			return err
		}
	}
}

// steady sends a packet of one flow after the other at the rate asked for.
func (g *generator) steady(d time.Duration) error {
	every := time.Second / time.Duration(g.lab.options.rate)
	now := time.Now()
	end, next := now.Add(d), now
	for ; now.Before(end); now = time.Now() {
		if next.After(now) {
			pause(next.Sub(now))
			continue
		}
		if now.Sub(next) > lateAtMost {
			next = now
		}
		next = next.Add(every)
		g.flow = (g.flow + 1) % flowCount
		if err := errors.Join(g.push(g.flow, false), g.flush()); err != nil {
			return err
		}
		if g.sent%batch == 0 {
			if err := g.takeAll(0); err != nil {
				return err
			}
		}
	}
	return nil
}

// busy keeps a window of packets on their way, with run packets of a flow in a row.
func (g *generator) busy(d time.Duration, run int) error {
	lost, heard := 0, time.Now()
	for end := heard.Add(d); time.Now().Before(end); {
		for g.sent-g.received-lost <= window-run {
			g.flow = (g.flow + 1) % flowCount
			for i := range run {
				if err := g.push(g.flow, i > 0 && g.lab.options.trains); err != nil {
					return err
				}
			}
		}
		if err := g.flush(); err != nil {
			return err
		}
		n, err := g.take(0)
		switch {
		case err != nil:
			return err
		case n > 0:
			heard = time.Now()
		case time.Since(heard) > g.lostAfter:
			lost, heard = g.sent-g.received, time.Now()
		default:
			pause(20 * time.Microsecond)
		}
	}
	return nil
}

// pause sleeps to the microsecond, which time.Sleep does not.
func pause(d time.Duration) {
	ts := unix.NsecToTimespec(int64(d))
	_ = unix.Nanosleep(&ts, nil) // woken early is woken
}

// profile records the server with perf until stop, where that was asked for.
func (g *generator) profile(trial string) (stop func(), err error) {
	dir := g.lab.options.profile
	if dir == "" {
		return func() {}, nil
	}
	file := filepath.Join(dir, fmt.Sprintf("%s, %s, %s.perf", g.server.kind.name, g.name(), trial))
	c := exec.Command("perf", "record", "-q", "-F", "2999", "-g", "-o", file, "-p", strconv.Itoa(g.server.cmd.Process.Pid))
	if err := c.Start(); err != nil {
		return nil, fmt.Errorf("record a profile: %w", err)
	}
	return func() {
		_ = c.Process.Signal(unix.SIGINT)
		_ = c.Wait() // perf says itself what it could not do
	}, nil
}
