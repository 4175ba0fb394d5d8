package test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

// TestTerminated stops the daemon in good order: what it granted stays in the log and comes back.
func TestTerminated(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	l := newLoad(t, s)
	l.flows()
	before := d.allocations()
	d.stop()
	events := d.events() // from the file
	last := events[len(events)-1]
	if last.Kind != "ServerStopped" || last.Event["signal"] != "terminated" {
		t.Errorf("the last event: got %+v, want ServerStopped by terminated", last)
	}
	used := map[any]bool{}
	for _, e := range events {
		if e.Kind == "UsageRecorded" {
			used[fmt.Sprint(e.Event["allocation"], e.Event["channel"])] = true
		}
	}
	if len(used) != loadClients*loadChannels {
		t.Errorf("got usage of %d channels, want %d", len(used), loadClients*loadChannels)
	}
	d.verify()
	check := func(after map[string]allocation) {
		t.Helper()
		if len(after) != len(before) {
			t.Errorf("got %d allocations, want %d", len(after), len(before))
		}
		for client, a := range before {
			if want, got := grantsOf(a), grantsOf(after[client]); !want.holds(got) {
				t.Errorf("client %s: before (-) and after (+):\n%s", client, want.diff(got))
			}
		}
	}
	check(d.allocations()) // of the file
	d.start()
	l.flows()
	check(d.allocations())
	d.stop()
}

// TestPortTakenMeanwhile gives the relayed port of an allocation to somebody else while the daemon is away.
func TestPortTakenMeanwhile(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	l := newLoad(t, s)
	unlucky := newClient(t, s, "127.0.0.1:0", server4)
	relayed := unlucky.allocate()
	id := d.allocations()[unlucky.addr()].ID
	d.kill()
	taken := s.listen(relayed)
	d.start()
	l.flows()
	if got := d.allocations(); len(got) != loadClients || len(got[unlucky.addr()].Relayed) != 0 {
		t.Errorf("got %d allocations and %+v for the client whose port is taken, want %d and none", len(got), got[unlucky.addr()], loadClients)
	}
	var ended []event
	for _, e := range d.events() {
		if e.Kind == "AllocationDeleted" || e.Kind == "AllocationExpired" {
			ended = append(ended, e)
		}
	}
	if len(ended) != 1 || fmt.Sprint(ended[0].Event["allocation"]) != fmt.Sprint(id) || ended[0].Event["reason"] != "port-taken" {
		t.Errorf("got ends %+v, want one, of allocation %d because its port is taken", ended, id)
	}
	if want := fmt.Sprintf(`"allocation":%d,`, id); strings.Count(d.log(), want) != 1 {
		t.Errorf("got %d lines with %s in the log, want 1", strings.Count(d.log(), want), want)
	}
	if _, err := unlucky.call(unlucky.request(stun.MethodRefresh)); !errors.Is(err, refusal(437)) {
		t.Errorf("refresh of the allocation that ended: got %v, want 437", err)
	}
	if again := unlucky.allocate(); again == relayed {
		t.Errorf("got %v again, which somebody else has", again)
	}
	_ = taken.Close()
	d.stop()
	d.verify()
}

// TestTwoDaemonsOnOneLog starts a second daemon on the data of the first.
func TestTwoDaemonsOnOneLog(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	started := time.Now()
	code, out, errs := d.command("serve", "--data", d.dir, "--listen", "udp://127.0.0.1:3479", "--relay-ip", "127.0.0.1", "--metrics", "off")
	took := time.Since(started)
	if code != 1 || took > time.Second || strings.Contains(out, "ready") {
		t.Errorf("got exit code %d after %v and %q, want 1 within a second", code, took, out)
	}
	last := lastLine(errs)
	if !strings.Contains(last, fmt.Sprint(d.pid())) || !strings.Contains(last, d.dir) {
		t.Errorf("got %q, want a message with the pid %d of the other daemon and the directory", last, d.pid())
	}
	newClient(t, s, "127.0.0.1:0", server4).allocate()
	d.stop()
	d.verify()
}

// TestDamagedLog has the daemon refuse logs that are not what it wrote.
func TestDamagedLog(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	d := startDaemon(t, s, onLoopback...)
	for range 20 {
		newClient(t, s, "127.0.0.1:0", server4).allocate()
	}
	d.kill()
	file := filepath.Join(d.dir, "log.db")
	good, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name   string
		damage func(b []byte) []byte
	}{
		{"Event", func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(transactionMark), []byte("\x00TST")) }},
		{"MetaPages", func(b []byte) []byte { copy(b, make([]byte, 8192)); return b }},
		{"Truncated", func(b []byte) []byte { return b[:20480] }},
		{"Empty", func([]byte) []byte { return nil }},
		{"Foreign", func([]byte) []byte { return bytes.Repeat([]byte("no log\n"), 10000) }},
		{"Pages", func(b []byte) []byte { copy(b[8192:], make([]byte, 65536)); return b }},
	} {
		t.Run(row.name, func(t *testing.T) {
			if err := os.WriteFile(file, row.damage(bytes.Clone(good)), 0o600); err != nil {
				t.Fatal(err)
			}
			code, out, errs := d.command(append([]string{"serve", "--data", d.dir}, d.flags...)...)
			if code != 3 || strings.Contains(out, "ready") {
				t.Errorf("serve: got exit code %d, %q and %q, want 3", code, out, errs)
			}
			if last := lastLine(errs); !strings.Contains(last, "damaged") || !strings.Contains(last, file) || strings.Contains(errs, "goroutine ") {
				t.Errorf("serve: got %q, want a diagnosis of %s and no trace of goroutines", errs, file)
			}
			if code, _, errs := d.command("log", "verify", "--data", d.dir); code != 3 {
				t.Errorf("log verify: got exit code %d and %q, want 3", code, errs)
			}
		})
	}
	if err := os.WriteFile(file, good, 0o600); err != nil {
		t.Fatal(err)
	}
	d.start()
	if got := len(d.allocations()); got != 20 {
		t.Errorf("got %d allocations from the good copy, want 20", got)
	}
	d.stop()
}

// TestWithoutDaemon has the commands say that nobody answers.
func TestWithoutDaemon(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, newSpace(t))
	if code, _, errs := d.command("status", "--data", d.dir); code != 4 || !strings.Contains(errs, "cannot be reached") {
		t.Errorf("status: got exit code %d and %q, want 4 and a reason", code, errs)
	}
	if code, _, errs := d.command("serve", "--no-such-flag"); code != 2 {
		t.Errorf("a wrong flag: got exit code %d and %q, want 2", code, errs)
	}
}

// TestListenerTaken has the daemon say that its port belongs to somebody else.
func TestListenerTaken(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	s.listen(addr(server4))
	d := newDaemon(t, s, onLoopback...)
	code, out, errs := d.command(append([]string{"serve", "--data", d.dir}, d.flags...)...)
	if code != 1 || strings.Contains(out, "ready") || !strings.Contains(lastLine(errs), server4) {
		t.Errorf("got exit code %d, %q and %q, want 1 and the address that is taken", code, out, errs)
	}
}

// log is what all processes of d wrote to stderr.
func (d *daemon) log() string {
	d.t.Helper()
	b, err := os.ReadFile(d.stderr())
	if err != nil {
		d.t.Fatal(err)
	}
	return string(b)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
