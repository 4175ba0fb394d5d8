package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"
)

// traffic is what is sent through a server.
type traffic struct {
	lab      *lab
	server   *server
	byKernel bool
	relayed  []netip.AddrPort
}

// How many frames are sent at once, the flows in turn: less often than one of each flow only where that would be the most
// of what is spent.
const (
	framesAtOnce = flowCount
	kernelAtOnce = 8 * flowCount
)

// lossAtMost is the share of frames that a server may lose at a rate it is said to sustain.
const lossAtMost = 0.01

// spent is the CPU time of a trial: of the tasks that take part, and of the whole machine. Both have the soft interrupts in them.
type spent struct{ tasks, machine time.Duration }

func (s spent) sub(o spent) spent { return spent{s.tasks - o.tasks, s.machine - o.machine} }

// carried is one trial.
type carried struct {
	way            way
	size           int
	rate, atOnce   int
	sent, received int
	took           time.Duration // to send
	spent          spent
}

// measureCarry has packets relayed at the highest rate without loss, and counts those of a CPU-second. What is spent on
// frames that are dropped where they arrive at the relay is taken off: it is the sender's.
func measureCarry(ctx context.Context, l *lab, k kind, r recorder) (err error) {
	r.server = k.column()
	if err := l.net.receiveOffload(true); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.net.receiveOffload(false)) }()
	var trials []carried
	var relayed []netip.AddrPort
	err = l.with(ctx, k, func(s *server, c *clients) error {
		t, err := l.channels(ctx, s, c)
		if err != nil {
			return err
		}
		relayed = t.relayed
		for _, w := range l.net.ways() {
			for _, size := range []int{20, 160, 1200} {
				one, err := t.sustain(ctx, w, size)
				if err != nil {
					return fmt.Errorf("%v, %d B: %w", w, size, err)
				}
				trials = append(trials, one)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, one := range trials {
		base, err := l.unrelayed(one, relayed)
		if err != nil {
			return err
		}
		one.record(r, base)
	}
	return nil
}

// record adds the figures of a trial, of which base is the sender's part.
func (c carried) record(r recorder, base carried) {
	name := fmt.Sprintf("%v, %d B", c.way, c.size)
	each := float64(c.sent) / float64(base.sent)
	own := spent{
		c.spent.tasks - time.Duration(each*float64(base.spent.tasks)), c.spent.machine - time.Duration(each*float64(base.spent.machine)),
	}
	per := func(d time.Duration) float64 { return float64(c.received) / max(d.Seconds(), 1e-9) / 1000 }
	r.add(name+": relayed a CPU-second", "k", per(own.tasks), timesCoturn(30))
	if c.alone() && base.alone() {
		r.add(name+": by the whole machine", "k", per(own.machine), nil)
	}
	r.add(name+": CPU of a packet", "ns", float64(own.tasks.Nanoseconds())/float64(c.received), nil)
	r.add(name+": at a rate of", "k/s", float64(c.sent)/c.took.Seconds()/1000, nil)
	r.add(name+": lost", "%", 100*float64(max(c.sent-c.received, 0))/float64(c.sent), nil) // late ones of the trial before may be more
}

// alone says that others have not spent too much meanwhile.
func (c carried) alone() bool {
	return (c.spent.machine - c.spent.tasks).Seconds() < quietShare*c.took.Seconds()
}

// sustain finds the highest rate of a size that is relayed without loss, and measures a little below.
func (t *traffic) sustain(ctx context.Context, w way, size int) (carried, error) {
	m, err := t.lab.net.newMaker(w, t.relayed, size, false)
	if err != nil {
		return carried{}, err
	}
	defer m.close()
	first, atOnce := 200_000, framesAtOnce
	if t.byKernel {
		first, atOnce = 1_000_000, kernelAtOnce
	}
	for rate := first; ctx.Err() == nil; rate = rate * 3 / 4 {
		if rate < 2000 {
			return carried{}, errors.New("no rate is relayed without loss")
		}
		short, err := t.carry(ctx, m, w, rate, atOnce, 200*time.Millisecond)
		if err != nil {
			return carried{}, err
		}
		if short.lossy() {
			continue
		}
		long, err := t.carry(ctx, m, w, rate*9/10, atOnce, pick(t.lab, 2*time.Second, 700*time.Millisecond))
		if err != nil || !long.lossy() {
			long.size = size
			return long, err
		}
	}
	return carried{}, ctx.Err()
}

func (c carried) lossy() bool { return float64(c.sent-c.received) > lossAtMost*float64(c.sent) }

// carry sends at a rate for d. Where the kernel is to relay, its counters prove that it did.
func (t *traffic) carry(ctx context.Context, m *maker, w way, rate, atOnce int, d time.Duration) (c carried, err error) {
	k, err := newSink(w.to, "relay", w.takenPorts, 0, !t.byKernel)
	if err != nil {
		return carried{}, err
	}
	defer func() { err = errors.Join(err, k.close()) }()
	var before, after kernelStatus
	if t.byKernel {
		if before, err = t.server.kernelStatus(ctx, t.lab); err != nil {
			return carried{}, err
		}
	}
	c, err = trial(m, k, t.server, rate, atOnce, d)
	c.way = w
	if err != nil || !t.byKernel {
		return c, err
	}
	if after, err = t.server.kernelStatus(ctx, t.lab); err != nil {
		return c, err
	}
	verdict := map[bool]string{true: "to-peer", false: "to-client"}[w.up]
	if n := after.packets(verdict) - before.packets(verdict); n < c.received {
		return c, fmt.Errorf("the kernel relayed %d packets of %d", n, c.received)
	}
	return c, nil
}

// unrelayed is the trial c without a relay: frames are dropped where they arrive at it.
func (l *lab) unrelayed(c carried, relayed []netip.AddrPort) (base carried, err error) {
	m, err := l.net.newMaker(c.way, relayed, c.size, false)
	if err != nil {
		return carried{}, err
	}
	k, err := newSink(l.net.relay, c.way.arrival, 0, 0, false)
	if err != nil {
		return carried{}, errors.Join(err, m.close())
	}
	for range 10 { // on a busy machine a queue may be full
		base, err = trial(m, k, nil, c.rate, c.atOnce, pick(l, time.Second, 500*time.Millisecond))
		if err != nil || !base.lossy() {
			break
		}
	}
	if err == nil && base.lossy() {
		err = fmt.Errorf("%d frames of %d arrived at the relay", base.received, base.sent)
	}
	return base, errors.Join(err, k.close(), m.close())
}

// trial sends at a rate for d, to a sink, and measures what that takes. s is nil where no server takes part.
func trial(m *maker, k *sink, s *server, rate, atOnce int, d time.Duration) (carried, error) {
	before, err := spentSoFar(s)
	if err != nil {
		return carried{}, err
	}
	had, err := k.taken()
	if err != nil {
		return carried{}, err
	}
	began := time.Now()
	sent, cpu, err := m.pace(rate, atOnce, d, nil)
	took := time.Since(began)
	if err != nil {
		return carried{}, err
	}
	got, err := k.takes(had + sent)
	if err != nil {
		return carried{}, err
	}
	if sent == 0 || got == had {
		return carried{}, fmt.Errorf("of %d frames none came through", sent)
	}
	after, err := spentSoFar(s)
	used := after.sub(before)
	used.tasks += cpu
	return carried{rate: rate, atOnce: atOnce, sent: sent, received: got - had, took: took, spent: used}, err
}

// spentSoFar is what a server and the threads for soft interrupts have used, and the machine.
func spentSoFar(s *server) (now spent, err error) {
	if s != nil {
		if now.tasks, err = s.cpu(); err != nil {
			return now, err
		}
	}
	for _, name := range softirqThreads() {
		b, err := os.ReadFile(name)
		if err != nil {
			return now, err
		}
		ns, err := strconv.ParseInt(strings.Fields(string(b))[0], 10, 64)
		if err != nil {
			return now, fmt.Errorf("%s: %w", name, err)
		}
		now.tasks += time.Duration(ns)
	}
	now.machine, err = machineTime()
	return now, err
}

// softirqThreads are the files that tell the CPU time of the threads ksoftirqd.
var softirqThreads = sync.OnceValue(func() (files []string) {
	names, _ := filepath.Glob("/proc/[0-9]*/comm") // the pattern is good
	for _, name := range names {
		if b, err := os.ReadFile(name); err == nil && strings.HasPrefix(string(b), "ksoftirqd/") {
			files = append(files, filepath.Join(filepath.Dir(name), "schedstat"))
		}
	}
	return files
})

// machineTime is the time of all CPUs in which they were not idle, which the kernel tells to 10 ms.
func machineTime() (time.Duration, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	fields := strings.Fields(line)
	if len(fields) < 6 {
		return 0, fmt.Errorf("/proc/stat begins with %q", line)
	}
	idle := time.Duration(0)
	for _, f := range fields[4:6] { // idle, and idle for a disk
		ticks, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, err
		}
		idle += time.Duration(ticks) * 10 * time.Millisecond
	}
	return time.Since(processStart)*time.Duration(runtime.NumCPU()) - idle, nil
}

var processStart = time.Now()
