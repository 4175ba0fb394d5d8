package test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

const reasonFull = "the kernel's maps are full"

// TestKernelIsFull has more channels than the maps have room for. The one beyond is relayed in userspace, and said to be,
// until another ends. None gives way to it.
func TestKernelIsFull(t *testing.T) {
	l := newLab(t)
	d := l.start("--kernel-max-channels", "1")
	first := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4)
	d.offloaded(4) // both directions, and guards of the relayed address and the listener
	others := d.kernel().Capacity - 4 - 1
	for range others { // each has a guard: room for one is left
		newClient(t, l.clients, labClient4+":0", labServer4+":3478").allocate()
	}
	d.offloaded(4 + others)
	second := l.dial(labClient4+":5002", labServer4+":3478", labPeer4+":6002", 0x4002, familyIPv4)
	firstID, secondID := d.allocations()[first.addr()].ID, d.allocations()[second.addr()].ID
	eventually(t, "the kernel knows that it is full", func() error {
		if n := d.kernel().Absent[reasonFull]; n != 2 {
			return fmt.Errorf("%d flows are absent, want 2", n)
		}
		return nil
	})
	held := d.flowsOf(firstID)
	if len(held) != 3 {
		t.Fatalf("got flows %v of the first channel, want 3", held)
	}

	const n = 500
	before, user := d.kernel(), d.status()
	second.talk(n, func(i int) int { return 8 + i%1200 })
	first.talk(n, func(i int) int { return 8 + i%1200 })
	after, userAfter := d.kernel(), d.status()
	if got := userAfter.ToPeer.Packets - user.ToPeer.Packets; got != n {
		t.Errorf("userspace relayed %d packets to the peer, want %d of the second channel", got, n)
	}
	if got := userAfter.ToClient.Packets - user.ToClient.Packets; got != n {
		t.Errorf("userspace relayed %d packets to the client, want %d of the second channel", got, n)
	}
	for _, v := range []string{"to-peer", "to-client"} {
		if got := after.packets(v) - before.packets(v); got != n {
			t.Errorf("the kernel relayed %d packets %s, want %d of the first channel", got, v, n)
		}
	}
	d.wantUsage(first, n)
	for _, c := range d.carried(secondID) {
		if c.Kernel || c.Reason != reasonFull || c.Packets != 0 {
			t.Errorf("got %+v of the second channel, want it in userspace because %s", c, reasonFull)
		}
	}
	for what, table := range map[string]string{
		"allocation show": d.ask("allocation", "show", fmt.Sprint(secondID), "-o", "table"), "kernel status": d.ask("kernel", "status", "-o", "table"),
	} {
		if !strings.Contains(table, reasonFull) {
			t.Errorf("%s does not say that the maps are full:\n%s", what, table)
		}
	}
	missing := 0
	for line := range strings.Lines(d.ask("kernel", "diff", "-o", "jsonl")) {
		if !strings.Contains(line, `"what":"missing"`) || !strings.Contains(line, fmt.Sprintf(`"allocation":%d`, secondID)) {
			t.Errorf("kernel and log differ: %s", line)
		}
		missing++
	}
	if missing != 2 {
		t.Errorf("got %d flows missing in the kernel, want both directions of the second channel", missing)
	}
	// Several rounds of trying again have passed by.
	eventually(t, "three seconds have passed", until(3*time.Second))
	if now := d.flowsOf(firstID); !slices.Equal(now, held) {
		t.Errorf("the first channel has flows %v, want %v as before", now, held)
	}

	first.must(first.request(stun.MethodRefresh, lifetime(0)))
	eventually(t, "the second channel takes the room", func() error {
		for _, c := range d.carried(secondID) {
			if !c.Kernel {
				return fmt.Errorf("%+v", c)
			}
		}
		if n := len(d.kernel().Absent); n != 0 {
			return fmt.Errorf("flows are absent for %d reasons", n)
		}
		return nil
	})
	d.wantByKernel("the second channel", map[string]uint64{"to-peer": n, "to-client": n}, func() {
		second.talk(n, func(i int) int { return 8 + i%1200 })
	})
	d.wantUsage(second, n)
}

// flowsOf are the flows of an allocation in the kernel's maps, by slot and generation.
func (d *daemon) flowsOf(id uint64) (out []string) {
	d.t.Helper()
	type row struct {
		Slot, Generation uint32
		Allocation       uint64
		Kind, Remote     string
	}
	for _, r := range decode[[]row](d.t, d.ask("kernel", "dump", "-o", "json")) {
		if r.Allocation == id {
			out = append(out, fmt.Sprintf("%+v", r))
		}
	}
	return out
}

// until is a condition that comes true after a while.
func until(after time.Duration) func() error {
	end := time.Now().Add(after)
	return func() error {
		if time.Now().Before(end) {
			return errors.New("not yet")
		}
		return nil
	}
}
