package test

import (
	"errors"
	"strings"
	"testing"

	"github.com/pion/stun/v3"
)

// TestABanTakesACallOutOfTheKernel bans a user whose call the kernel relays: nothing comes through once the command has returned.
func TestABanTakesACallOutOfTheKernel(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	d.offloaded(3)
	c.talk(50, func(int) int { return 100 })
	if out := d.ask("user", "ban", username); !strings.Contains(out, `"allocations":1`) {
		t.Errorf("ban: got %q, want the end of one allocation", out)
	}
	before := d.kernel().packets("to-peer")
	for range 50 {
		c.say(100)
	}
	if _, err := c.call(c.request(stun.MethodRefresh)); !errors.Is(err, refusal(403)) { // behind what was said
		t.Errorf("a Refresh: got %v, want %v", err, refusal(403))
	}
	if got := d.kernel().packets("to-peer") - before; got != 0 || c.heardBack() != 50 {
		t.Errorf("after the ban the kernel relayed %d packets, and %d came back in all, want 0 and 50", got, c.heardBack())
	}
	d.ask("user", "unban", username)
	again := l.dial(labClient4+":5002", labServer4+":3478", labPeer4+":6002", 0x4001, 1)
	d.offloaded(3)
	again.talk(50, func(int) int { return 100 })
	d.wantSound()
	d.stop()
}
