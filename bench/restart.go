package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// measureRestart kills a server that holds many allocations with a channel each,
// starts it again at once, and asks for a Refresh each millisecond until one is answered. All
// allocations must be there then.
func measureRestart(ctx context.Context, l *lab, k kind, r recorder) error {
	return l.with(ctx, k, func(s *server, c *clients) error {
		n := pick(l, 10000, 3000)
		if _, err := c.allocateAll(0, n); err != nil {
			return err
		}
		if err := c.bindAll(0, n); err != nil {
			return err
		}
		refreshes, err := c.each(0, n, c.refresh)
		if err != nil {
			return err
		}
		began := time.Now()
		if err := s.kill(); err != nil {
			return err
		}
		gone := time.Since(began)
		if err := s.launch(l); err != nil {
			return err
		}
		answered, err := c.untilAnswered(s, refreshes, began)
		if err != nil {
			return err
		}
		var ready time.Time
		select {
		case ready = <-s.ready:
		case <-time.After(giveUpAfter):
			return errors.New("the server answers but does not say that it is ready")
		}
		millis := func(d time.Duration) float64 { return d.Seconds() * 1000 }
		r.add(fmt.Sprintf("kill to gone, %d allocations", n), "ms", millis(gone), nil)
		r.add("kill to ready", "ms", millis(ready.Sub(began)), nil)
		r.add("kill to the first answered Refresh", "ms", millis(answered), atMost(300, "under 300 ms"))
		if again, err := c.each(0, n, c.refresh); err != nil {
			return err
		} else if _, err := c.succeed(again, 64); err != nil {
			return fmt.Errorf("refresh all allocations after the restart: %w", err)
		}
		return nil
	})
}

// untilAnswered sends one of list each millisecond until one is granted, and says how long after began that is.
func (c *clients) untilAnswered(s *server, list []call, began time.Time) (time.Duration, error) {
	for i := 0; time.Since(began) < giveUpAfter; i++ {
		select {
		case <-s.exited:
			return 0, fmt.Errorf("the server ended: %s", s.lastWords())
		default:
		}
		one := &list[(i*7919)%len(list)]
		if err := c.transport.queue(nth(clientAddresses, one.client), listenAddress, copy(c.transport.next(), one.frame)); err != nil {
			return 0, err
		}
		if err := c.transport.flush(); err != nil {
			return 0, err
		}
		n, err := c.transport.receive(time.Millisecond)
		if err != nil {
			return 0, err
		}
		for d := range n {
			if answer := c.transport.datagram(d).data; success(answer) && answer[1] == 0x04 { // a Refresh
				return time.Since(began), nil
			}
		}
	}
	return 0, errors.New("no Refresh is answered")
}
