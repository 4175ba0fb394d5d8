package main

import (
	"context"
	"fmt"
	"time"
)

// settle is how long a server is given to be done with what was asked of it.
const settle = time.Second

// measureMemory is by how much a server grows for allocations with a channel
// each. The first ones are not counted, so that what a server needs once is there before.
func measureMemory(ctx context.Context, l *lab, k kind, r recorder) error {
	return l.with(ctx, k, func(s *server, c *clients) error {
		const first = 100
		n := pick(l, 5000, 2000)
		if err := c.grow(0, first); err != nil {
			return err
		}
		time.Sleep(settle)
		resident, anonymous, err := s.memory()
		if err != nil {
			return err
		}
		if err := c.grow(first, n); err != nil {
			return err
		}
		time.Sleep(settle)
		residentThen, anonymousThen, err := s.memory()
		if err != nil {
			return err
		}
		per := func(from, to float64) float64 { return (to - from) / float64(n) / 1024 }
		r.add(fmt.Sprintf("resident per allocation, of %d", n), "KiB", per(resident, residentThen), atMost(12, "under 12 KiB"))
		r.add("of that anonymous", "KiB", per(anonymous, anonymousThen), nil)
		r.add("resident before", "MiB", resident/(1<<20), nil)
		return nil
	})
}

// grow has n clients from first on allocate and bind a channel.
func (c *clients) grow(first, n int) error {
	if _, err := c.allocateAll(first, n); err != nil {
		return err
	}
	return c.bindAll(first, n)
}
