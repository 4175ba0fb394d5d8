package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"
)

const (
	deathRate   = 20_000 // frames a second, each way
	deathAtOnce = 16
)

// stream is a way on which frames flow until it is stopped.
type stream struct {
	maker *maker
	sink  *sink
	stop  atomic.Bool
	done  chan error
	sent  int
}

func (l *lab) newStream(w way, t *traffic) (*stream, error) {
	m, err := l.net.newMaker(w, t.relayed, 160, false)
	if err != nil {
		return nil, err
	}
	k, err := newSink(w.to, "relay", w.takenPorts, 0, false)
	if err != nil {
		return nil, errors.Join(err, m.close())
	}
	s := &stream{maker: m, sink: k, done: make(chan error, 1)}
	go func() {
		var err error
		s.sent, _, err = m.pace(deathRate, deathAtOnce, time.Minute, &s.stop)
		s.done <- err
	}()
	return s, nil
}

// end stops the stream and says how many frames came through.
func (s *stream) end() (received int, err error) {
	s.stop.Store(true)
	err = <-s.done
	received, e := s.sink.takes(s.sent)
	return received, errors.Join(err, e, s.sink.close(), s.maker.close())
}

// measureDeath kills the daemon while frames flow both ways, leaves it dead for a while, and starts it again. The sinks take them
// before the stack: what a socket would send counts too, but there is nobody to send it.
func measureDeath(ctx context.Context, l *lab, k kind, r recorder) (err error) {
	if err := l.net.receiveOffload(true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.net.receiveOffload(false)) }()
	return l.with(ctx, k, func(s *server, c *clients) error {
		t, err := l.channels(ctx, s, c)
		if err != nil {
			return err
		}
		var streams []*stream
		ways := l.net.ways()
		for _, w := range ways {
			one, err := l.newStream(w, t)
			if err != nil {
				for _, s := range streams {
					_, e := s.end()
					err = errors.Join(err, e)
				}
				return err
			}
			streams = append(streams, one)
		}
		killed, err := l.dieAndRise(s)
		for i, one := range streams {
			received, e := one.end()
			err = errors.Join(err, e)
			r.add(fmt.Sprintf("%v: sent meanwhile", ways[i]), "", float64(one.sent), nil)
			r.add(fmt.Sprintf("%v: lost", ways[i]), "", float64(one.sent-received), atMost(0, "none"))
		}
		r.add("kill to ready, dead time included", "ms", killed.Seconds()*1000, nil)
		return err
	})
}

// dieAndRise kills the daemon, waits, and starts it again. It yields how long it did not answer.
func (l *lab) dieAndRise(s *server) (time.Duration, error) {
	time.Sleep(settle / 2)
	began := time.Now()
	if err := s.kill(); err != nil {
		return 0, err
	}
	time.Sleep(pick(l, 2*settle, settle))
	if err := s.launch(l); err != nil {
		return 0, err
	}
	select { // the sink takes all that would tell the clients
	case ready := <-s.ready:
		time.Sleep(settle / 2)
		return ready.Sub(began), nil
	case <-s.exited:
		return 0, fmt.Errorf("the daemon ended: %s", s.lastWords())
	case <-time.After(giveUpAfter):
		return 0, errors.New("the daemon does not say that it is ready")
	}
}
