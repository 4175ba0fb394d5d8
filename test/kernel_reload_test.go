package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// configured has d read its settings from a file that a test can write anew.
func (d *daemon) configured(lines ...string) (rewrite func(lines ...string)) {
	d.t.Helper()
	file := filepath.Join(filepath.Dir(d.dir), "turnstone.toml")
	rewrite = func(lines ...string) {
		if err := os.WriteFile(file, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			d.t.Fatal(err)
		}
	}
	rewrite(lines...)
	d.flags = append(d.flags, "--config", file)
	return rewrite
}

// without is flags but for one and its value.
func without(flags []string, name string) []string {
	i := slices.Index(flags, name)
	if i < 0 {
		return flags
	}
	return slices.Concat(flags[:i], flags[i+2:])
}

// TestReloadTakesTheKernelOffAndOn reloads what the kernel's side is made of while a call goes on.
func TestReloadTakesTheKernelOffAndOn(t *testing.T) {
	l := newLab(t)
	d := newDaemon(t, l.relay, without(without(l.flags(), "--kernel"), "--kernel-max-channels")...)
	rewrite := d.configured(`kernel.mode = "required"`)
	d.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	d.offloaded(3)
	stop := c.steady(2 * time.Millisecond)
	c.talkOn(100)

	rewrite(`kernel.mode = "off"`)
	if out := d.ask("reload", "-o", "table"); !strings.Contains(out, `kernel.mode: "required" → "off"`) {
		t.Errorf("reload: got %q", out)
	}
	if got := d.status().Kernel; got != "userspace: kernel.mode is off" {
		t.Errorf("who relays: got %q", got)
	}
	before := d.status().ToPeer.Packets
	c.talkOn(100)
	if got := d.status().ToPeer.Packets; got < before+90 {
		t.Errorf("userspace relayed %d packets, want those of the call", got-before)
	}

	for _, setting := range []string{"", "kernel.max-channels = 500", `relay-ports = "30000-40000"`, "limits.max-bandwidth = 1000000"} {
		rewrite(`kernel.mode = "required"`, setting)
		d.ask("reload")
		d.offloaded(3)
		before := d.status().ToPeer.Packets
		c.talkOn(200)
		if got := d.status().ToPeer.Packets; got != before {
			t.Errorf("with %q userspace relayed %d packets, want none", setting, got-before)
		}
	}

	// What cannot be had changes nothing: neither is the interface there, nor is the limit in force.
	rewrite("kernel.mode = \"required\"\nkernel.interfaces = [\"absent0\"]\nlimits.max-allocations = 1")
	code, _, errs := d.command("reload", "--data", d.dir)
	if code != 1 || !strings.Contains(errs, "kernel.mode is required") {
		t.Errorf("an interface that is not there: exit code %d and %q, want 1 and the reason", code, errs)
	}
	d.offloaded(3)
	second := l.dial(labClient4+":5002", labServer4+":3478", labPeer4+":6002", 0x4001, 1)
	second.talk(10, func(int) int { return 100 })
	stop()
	c.wantNoLoss()
	t.Logf("%d packets each way over 5 reloads and one that failed, none lost", c.sent)
	eventually(t, "revocations come to the kernel", func() error {
		code, out, errs := d.command("allocation", "close", "2", "--data", d.dir)
		if code != 0 {
			return errors.New(out + errs)
		}
		return nil
	})
	d.wantSound()
	d.stop()
}

// TestReloadMovesListeners adds a listener and takes another away under a call that the kernel relays by it.
func TestReloadMovesListeners(t *testing.T) {
	l := newLab(t)
	flags := l.flags()
	for slices.Contains(flags, "--listen") {
		flags = without(flags, "--listen")
	}
	d := newDaemon(t, l.relay, flags...)
	rewrite := d.configured(fmt.Sprintf("listen = [\"udp://%s:3478\"]", labServer4))
	d.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	d.offloaded(3)
	stop := c.steady(2 * time.Millisecond)
	rewrite(fmt.Sprintf("listen = [\"udp://%s:3479\"]", labServer4))
	d.ask("reload")
	other := l.dial(labClient4+":5002", labServer4+":3479", labPeer4+":6002", 0x4001, 1)
	d.offloaded(6)
	before := d.status().ToPeer.Packets
	other.talk(100, func(int) int { return 100 })
	c.talkOn(200)
	if got := d.status().ToPeer.Packets; got != before {
		t.Errorf("userspace relayed %d packets, want none: both listeners are the kernel's", got-before)
	}
	stop()
	c.wantNoLoss()
	d.ask("allocation", "close", "1")
	eventually(t, "the listener is closed", func() error {
		if out := d.ask("status", "-o", "json"); !strings.Contains(out, `"ending": []`) {
			return errors.New(out)
		}
		return nil
	})
	other.talk(100, func(int) int { return 100 })
	d.wantSound()
	d.stop()
}
