package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// story is what is shown, in its order.
type story struct {
	screen *screen
	stage  *stage
	relay  *daemon
	talk   time.Duration
	call   *call
}

func (s *story) tell(ctx context.Context) (err error) {
	defer func() { err = errors.Join(err, s.relay.end()) }()
	s.screen.say("# %s", s.stage.description)
	s.screen.say("$ turnstone serve %s", s.stage.shown)
	ready, err := s.relay.start(ctx)
	if err != nil {
		return err
	}
	s.screen.say("%s", ready)
	if s.call, err = newCall(s.stage); err != nil {
		return err
	}
	defer s.call.close()
	s.screen.say("# %s calls %s, by %s: %d packets a second, each comes back", s.call.client, s.call.peer, s.call.relayed, perSecond)
	if s.stage.kernel {
		if err := s.offload(ctx); err != nil {
			return err
		}
	}
	if err := s.watch(ctx, "alive"); err != nil {
		return err
	}
	killed, err := s.kill(ctx)
	if err != nil {
		return err
	}
	if err := s.watch(ctx, "alive"); err != nil {
		return err
	}
	total := s.call.hangUp()
	s.verdict(total)
	if err := s.remember(ctx, killed); err != nil {
		return err
	}
	if s.stage.kernel && total.lost() > 0 {
		return fmt.Errorf("%d packets of an established channel were lost", total.lost())
	}
	return nil
}

// offload waits until the kernel has the channel.
func (s *story) offload(ctx context.Context) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		k, err := s.relay.kernel(ctx)
		if err != nil {
			return err
		}
		if k.carried() > 0 {
			s.call.settled()
			s.screen.say("# the kernel has the channel")
			return nil
		}
		if time.Now().After(deadline) {
			return errors.New("the kernel does not take the channel: turnstone doctor says why")
		}
		if err := wait(ctx, 50*time.Millisecond); err != nil {
			return err
		}
	}
}

// kill ends the daemon as kill -9 does, and starts it again later. It yields when it died.
func (s *story) kill(ctx context.Context) (time.Time, error) {
	s.screen.say("$ kill -9 %d", s.relay.pid())
	if err := s.relay.kill(); err != nil {
		return time.Time{}, err
	}
	died := time.Now()
	if s.stage.kernel { // else nobody relays: it is kept short
		if err := s.watch(ctx, "dead"); err != nil {
			return died, err
		}
	}
	s.screen.say("$ turnstone serve %s", s.stage.shown)
	ready, err := s.relay.start(ctx)
	if err != nil {
		return died, err
	}
	s.screen.say("%s", ready)
	return died, nil
}

// watch shows the call for a while.
func (s *story) watch(ctx context.Context, relay string) error {
	for end := time.Now().Add(s.talk); time.Now().Before(end); {
		if err := wait(ctx, time.Second); err != nil {
			return err
		}
		c := s.call.counts()
		line := fmt.Sprintf("daemon %-6s sent %5d   back %5d   lost %d", relay, c.sent, c.back, c.lost())
		if s.stage.kernel {
			k, err := s.relay.kernel(ctx)
			if err != nil {
				return err
			}
			line += fmt.Sprintf("   relayed by the kernel %6d", k.carried())
		}
		s.screen.say("%s", line)
	}
	return nil
}

func (s *story) verdict(c counts) {
	s.screen.say("# the call is over: %d packets sent, %d came back, %d lost", c.sent, c.back, c.lost())
}

// remember shows what the log knows.
func (s *story) remember(ctx context.Context, killed time.Time) error {
	for _, args := range [][]string{
		{"replay", "--at", killed.UTC().Format(time.RFC3339Nano), "-o", "table"},
		{"log", "dump", "-o", "table"},
		{"log", "verify", "-o", "table"},
	} {
		if err := s.show(ctx, args...); err != nil {
			return err
		}
	}
	return nil
}

// show runs a command of turnstone and shows what it writes.
func (s *story) show(ctx context.Context, args ...string) error {
	s.screen.command(args)
	out, err := s.relay.ask(ctx, args...)
	if err != nil {
		return err
	}
	s.screen.lines(out)
	return nil
}

func wait(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
