package main

import (
	"context"
	"errors"
	"net/netip"
)

// width is how many clients have a request on its way at any time.
const width = 256

// with starts a server, has f measure it with clients, and ends both.
func (l *lab) with(ctx context.Context, k kind, f func(s *server, c *clients) error) error {
	return l.withClients(ctx, k, newClients, f)
}

// withClients is with for clients of another make.
func (l *lab) withClients(ctx context.Context, k kind, clientsOf func(*network) (*clients, error), f func(s *server, c *clients) error) (err error) {
	s, err := l.start(ctx, k)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.stop()) }()
	c, err := clientsOf(l.net)
	if err != nil {
		return err
	}
	defer c.close()
	if err := f(s, c); err != nil {
		return errors.Join(err, said(s))
	}
	return nil
}

// said is what a server that was measured in vain has to say, nil for nothing.
func said(s *server) error {
	if words := s.lastWords(); words != "" {
		return errors.New("stderr: " + words)
	}
	return nil
}

// record adds the rate and the latencies of an outcome.
func (o outcome) record(r recorder, g *goal) {
	r.add("answered at 256 clients", "1/s", float64(len(o.latencies))/o.took.Seconds(), g)
	r.add("p50", "ms", quantile(o.latencies, 0.5), nil)
	r.add("p99", "ms", quantile(o.latencies, 0.99), atMost(50, "under 50 ms"))
	r.add("repeated requests", "", float64(o.repetitions), nil)
}

// measureAllocate has 256 clients at a time make an allocation each, until there are many.
// The nonces are there and the requests made before the clock starts.
func measureAllocate(ctx context.Context, l *lab, k kind, r recorder) error {
	return l.with(ctx, k, func(_ *server, c *clients) error {
		n := pick(l, 12000, 6000)
		if err := c.authenticate(0, n); err != nil {
			return err
		}
		list, err := c.each(0, n, c.allocate)
		if err != nil {
			return err
		}
		o, err := c.succeed(list, width)
		if err != nil {
			return err
		}
		o.record(r, noFewer())
		return nil
	})
}

// measureChannelBind has 256 clients bind one channel after the other, each to a peer of
// its own.
func measureChannelBind(ctx context.Context, l *lab, k kind, r recorder) error {
	return l.with(ctx, k, func(_ *server, c *clients) error {
		if _, err := c.allocateAll(0, width); err != nil {
			return err
		}
		channels := pick(l, 240, 100)
		list := make([]call, 0, width*channels)
		for n := range channels {
			for i := range width {
				one, err := c.bind(i, firstChannel+n, netip.AddrPortFrom(nth(peerAddresses, n), uint16(peerPort+i)))
				if err != nil {
					return err
				}
				list = append(list, one)
			}
		}
		o, err := c.succeed(list, width)
		if err != nil {
			return err
		}
		o.record(r, noFewer())
		return nil
	})
}

// measureUnloaded has one client after the other allocate, with nothing else to do for the
// server, and holds that against the disk before and after.
func measureUnloaded(ctx context.Context, l *lab, k kind, r recorder) error {
	return l.with(ctx, k, func(_ *server, c *clients) error {
		n := pick(l, 400, 150)
		if err := c.authenticate(0, n); err != nil {
			return err
		}
		before, err := l.disk.twoSyncs(n / 2)
		if err != nil {
			return err
		}
		list, err := c.each(0, n, c.allocate)
		if err != nil {
			return err
		}
		o, err := c.succeed(list, 1)
		if err != nil {
			return err
		}
		after, err := l.disk.twoSyncs(n / 2)
		if err != nil {
			return err
		}
		alone := median(o.latencies) * 1000
		r.add("one Allocate, p50", "us", alone, nil)
		r.add("one Allocate, p99", "us", quantile(o.latencies, 0.99)*1000, nil)
		if k.name == turnstoneName {
			syncs := median(append(before, after...))
			r.add("two fdatasyncs at that time", "us", syncs, nil)
			r.add("Allocate by two fdatasyncs", "", alone/syncs, atMost(1.5, "within 1.5"))
		}
		return nil
	})
}
