package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"path/filepath"
	"time"

	"turnstone/store"
	"turnstone/turn"
)

// childLog is the first argument of this program where it is to time a log: it is
// followed by verify or replay, and the file.
const childLog = "child-log"

// logTiming is what the child writes.
type logTiming struct {
	Events  uint64
	Seconds float64
}

// timeLog verifies or replays a file, in a process that has done nothing else.
func timeLog(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("%q: want verify or replay, and a file", args)
	}
	reader, err := store.OpenReader(args[1])
	if err != nil {
		return err
	}
	began := time.Now()
	var events uint64
	if args[0] == "verify" {
		report, err := reader.Verify()
		if err != nil {
			return err
		}
		events = report.Events
	} else {
		s, err := store.StateAt(reader.Records(1), func(turn.Record) bool { return true })
		if err != nil {
			return err
		}
		events = uint64(s.Seq())
	}
	took := time.Since(began)
	b, err := json.Marshal(logTiming{Events: events, Seconds: took.Seconds()})
	if err == nil {
		fmt.Println(string(b))
	}
	return err
}

// generatedLog is a log made for measuring.
type generatedLog struct {
	file   string
	events uint64
}

// measureLog times verification and replay of a generated log, both in a process of their own through the
// store, and what an operator types for it.
func measureLog(ctx context.Context, l *lab, _ kind, r recorder) error {
	if l.log == nil {
		g, err := generateLog(ctx, filepath.Join(l.dir, "log"), pick(l, 1_000_000, 250_000))
		if err != nil {
			return fmt.Errorf("generate a log: %w", err)
		}
		l.log = &g
	}
	for what, g := range map[string]*goal{"verify": atLeast(1e6, "1,000,000"), "replay": atLeast(5e5, "500,000")} {
		out, err := command(ctx, self(childLog, what, l.log.file))
		if err != nil {
			return err
		}
		var t logTiming
		if err := json.Unmarshal(out, &t); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		if t.Events != l.log.events {
			return fmt.Errorf("%s went through %d events of %d", what, t.Events, l.log.events)
		}
		r.add(what+", in process", "events/s", float64(t.Events)/t.Seconds, g)
	}
	began := time.Now()
	if _, err := command(ctx, exec.Command(l.binary, "log", "verify", "--db", l.log.file)); err != nil {
		return err
	}
	r.add("turnstone log verify (both, and start)", "events/s", float64(l.log.events)/time.Since(began).Seconds(), nil)
	return nil
}

// command runs c and yields its output.
func command(ctx context.Context, c *exec.Cmd) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() {
		if c.Process != nil {
			_ = c.Process.Kill()
		}
	})
	defer stop()
	out, err := c.Output()
	if err != nil {
		return nil, fmt.Errorf("%s: %w", c, err)
	}
	return out, nil
}

const (
	logCalls      = 2000 // allocations at any time
	logRecord     = 32   // events of a record
	logEventEvery = 10 * time.Millisecond
)

// generateLog writes a log as of a busy relay: two thousand calls of four minutes each that
// come and go, with permissions, channels, refreshes and usage.
func generateLog(ctx context.Context, dir string, events int) (generatedLog, error) {
	l, err := store.Open(dir, store.Options{NoSnapshots: true})
	if err != nil {
		return generatedLog{}, err
	}
	defer l.Close() // what was appended is safe
	var boot turn.BootID
	copy(boot[:], "bench")
	w := &logWriter{moment: turn.Moment{Boot: boot, Uptime: time.Hour, Wall: 1_700_000_000e9}, calls: make([]logCall, logCalls)}
	pending := []turn.Event{turn.EpochBegan{Log: turn.LogID(boot), Epoch: 1}, turn.ServerStarted{Version: "bench", PID: 1}}
	next := turn.Seq(1)
	for n := 0; n < events; n += len(pending) {
		if n > 0 {
			pending = nil
		}
		for len(pending) < min(logRecord, events-n) {
			pending = append(pending, w.next())
		}
		if err := l.Append(turn.Record{First: next, Moment: w.moment, Events: pending}); err != nil {
			return generatedLog{}, err
		}
		next += turn.Seq(len(pending))
		w.moment.Uptime += time.Duration(len(pending)) * logEventEvery
		w.moment.Wall += int64(time.Duration(len(pending)) * logEventEvery)
		if ctx.Err() != nil {
			return generatedLog{}, ctx.Err()
		}
	}
	return generatedLog{filepath.Join(dir, store.FileName), uint64(next - 1)}, nil
}

// logWriter makes the events of calls that take turns.
type logWriter struct {
	moment turn.Moment
	calls  []logCall
	turn   int
	last   turn.AllocationID
	tx     uint64
}

// logCall is one allocation's life, and how far it has come.
type logCall struct {
	id   turn.AllocationID
	step int
	used turn.Count
}

func (w *logWriter) transaction() (t turn.TransactionID) {
	w.tx++
	for i := range 8 {
		t[4+i] = byte(w.tx * 0x9e3779b97f4a7c15 >> (8 * i))
	}
	return t
}

// next is the next event of the call whose turn it is.
func (w *logWriter) next() turn.Event {
	c := &w.calls[w.turn]
	n := w.turn
	w.turn = (w.turn + 1) % len(w.calls)
	peer := netip.AddrPortFrom(nth(peerAddresses, n), peerPort)
	c.step++
	switch c.step {
	case 1:
		w.last++
		c.id = w.last
		return turn.AllocationCreated{
			Allocation: c.id, Tx: w.transaction(), Transport: 17, Username: fmt.Sprintf("1800000000:user%d", n), Realm: realm, Lifetime: 600,
			FiveTuple: turn.FiveTuple{
				Client: netip.AddrPortFrom(nth(clientAddresses, n), uint16(1024+c.id%50000)), Server: listenAddress, Protocol: turn.UDP,
			},
			Relayed: []netip.AddrPort{netip.AddrPortFrom(relayHost.Addr(), uint16(firstRelayPort+n))},
		}
	case 2:
		return turn.PermissionInstalled{Allocation: c.id, Tx: w.transaction(), Peer: peer.Addr()}
	case 3:
		return turn.PermissionInstalled{Allocation: c.id, Tx: w.transaction(), Peer: nth(peerAddresses, n+logCalls)}
	case 4, 8, 11:
		return turn.ChannelBound{Allocation: c.id, Tx: w.transaction(), Channel: firstChannel, Peer: peer}
	case 5, 9:
		return turn.PermissionInstalled{Allocation: c.id, Tx: w.transaction(), Peer: peer.Addr()}
	case 6, 10:
		return turn.AllocationRefreshed{Allocation: c.id, Tx: w.transaction(), Lifetime: 600}
	case 7, 12:
		c.used.Packets += 15000
		c.used.Bytes += 2400000
		return turn.UsageRecorded{Allocation: c.id, Channel: firstChannel, Peer: peer, Path: turn.PathUserspace, ToPeer: c.used, ToClient: c.used}
	}
	deleted := turn.AllocationDeleted{Allocation: c.id, Tx: w.transaction(), Reason: turn.ReasonClient}
	*c = logCall{}
	return deleted
}
