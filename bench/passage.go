package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"turnstone/bpf"
	"turnstone/internal/netlab"
)

const (
	passageRate = 5000 // the kernel frees what a run took after a while only
	passageSize = 160
)

// measurePassage has frames sent one at a time by a host beside the relay, and looks how long each takes to the host on
// its other side: from before it enters the first cable until it leaves the second, both of which end in the driver. For the
// kernel that is compared with the same frames where they arrive at the relay, and with those that a bare bounce sends back from there.
func measurePassage(ctx context.Context, l *lab, k kind, r recorder) (err error) {
	r.server = k.column()
	if err := l.net.receiveOffload(true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.net.receiveOffload(false)) }()
	total := map[bool]passage{}
	var relayed []netip.AddrPort
	err = l.with(ctx, k, func(s *server, c *clients) error {
		t, err := l.channels(ctx, s, c)
		if err != nil {
			return err
		}
		relayed = t.relayed
		for _, w := range l.net.ways() {
			p, err := l.pass(w, relayed, w.to, "relay", w.takenPorts, w.taken, !t.byKernel)
			if err != nil {
				return fmt.Errorf("%v: %w", w, err)
			}
			r.add(w.String()+": host to host, p50", "us", p.p50, nil)
			r.add(w.String()+": host to host, p99", "us", p.p99, nil)
			total[w.up] = p
		}
		return nil
	})
	if err != nil || k.name != kernelName {
		return err
	}
	for _, w := range l.net.ways() {
		p, err := l.pass(w, relayed, l.net.relay, w.arrival, 0, w.payload, false)
		if err != nil {
			return fmt.Errorf("%v: %w", w, err)
		}
		r.add(w.String()+": as far as the relay, p50", "us", p.p50, nil)
		r.add(w.String()+": as far as the relay, p99", "us", p.p99, nil)
		b, err := l.bounce(w, relayed)
		if err != nil {
			return fmt.Errorf("%v: %w", w, err)
		}
		r.add(w.String()+": host to host by a bounce, p50", "us", b.p50, nil)
		r.add(w.String()+": host to host by a bounce, p99", "us", b.p99, nil)
		r.add(w.String()+": through the relay's interface, p50", "us", total[w.up].p50-p.p50, atMost(1, "under 1 us"))
		r.add(w.String()+": through the relay's interface, p99", "us", total[w.up].p99-p.p99, atMost(3, "under 3 us"))
	}
	return nil
}

// bounce is pass with the reference program in place of a relay.
func (l *lab) bounce(w way, relayed []netip.AddrPort) (p passage, err error) {
	var o bpf.ReferenceObjects
	if err := loadReference(&o, nil); err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, o.Close()) }()
	on, err := attach(l.net.relay, w.arrival, o.Bounce)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, on.Close()) }()
	port := uint16(peerPort)
	if w.up {
		port = clientPort
	}
	return l.pass(w, relayed, w.from, "relay", port, w.payload, false)
}

// passage is how long frames take, in microseconds.
type passage struct{ p50, p99 float64 }

// pass sends stamped frames one at a time, and takes them at an interface.
func (l *lab) pass(w way, relayed []netip.AddrPort, at *netlab.Space, name string, port uint16, payload int, packets bool) (p passage, err error) {
	m, err := l.net.newMaker(w, relayed, passageSize, true)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, m.close()) }()
	k, err := newSink(at, name, port, payload, packets)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	sent, _, err := m.pace(passageRate, 1, pick(l, 2*time.Second, 700*time.Millisecond), nil)
	if err != nil {
		return p, err
	}
	if got, err := k.takes(sent); err != nil || got < sent-sent/100 {
		return p, errors.Join(err, fmt.Errorf("%d frames of %d came through", got, sent))
	}
	if p.p50, err = k.latency(0.5); err != nil {
		return p, err
	}
	p.p99, err = k.latency(0.99)
	return p, err
}
