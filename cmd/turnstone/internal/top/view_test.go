package top

import (
	"errors"
	"strings"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/kernel"
	"turnstone/turn"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/x/ansi"
)

// busy is a daemon with large numbers everywhere.
func busy() admin.Traffic {
	now := time.Date(2026, 1, 2, 15, 4, 5, 0, time.UTC)
	rate := admin.Rate{Packets: 1_234_567, Bytes: 987_654_321}
	t := admin.Traffic{
		Time: now, Seconds: 1, Version: "1.2.3", PID: 4194303, Started: now.Add(-1000 * time.Hour), Ready: true,
		Allocations: 100000, Permissions: 200000, Channels: 200000,
		Paths: []admin.PathRate{{Path: turn.PathUserspace, ToPeer: rate, ToClient: rate}, {Path: turn.PathKernel, ToPeer: rate, ToClient: rate}},
		Log: admin.LogRate{Events: 12345, Commits: 1234, Append: 0.0123, Commit: 0.123, LogHealth: admin.LogHealth{
			Last: 1234567890, Size: 123e9, Free: 12e9, Room: "fine", Segments: 1234, Snapshot: 1234560000, SnapshotTime: now.Add(-59 * time.Minute),
			Checkpoint: 1234567000, CheckpointTime: now.Add(-59 * time.Second),
		}},
		Kernel: admin.KernelRate{
			Datapath: "kernel", Interfaces: []kernel.Interface{{Name: "enp1s0f0np0", Mode: kernel.XDPGeneric}, {Name: "lo", Reason: "link is the loopback"}},
			Flows: 200000, Slots: 131072, Capacity: 1048576, Lag: 12, Drift: kernel.Drift{Added: 1, Changed: 2, Removed: 3}, Failures: 4, Unresolved: 5,
			Verdicts: map[string]float64{"miss": 99999, "drop-meter-total": 88888, "half-checksum": 77777, "ip-checksum": 66666},
		},
	}
	for i := range turn.AllocationID(100) {
		t.Busiest = append(t.Busiest, admin.BusyChannel{
			Allocation: 100000 + i, Username: "1767366245:somebody-with-a-long-name", Channel: 0x4fff, Peer: "203.0.113.200:65535", Path: turn.PathUserspace, ToPeer: rate, ToClient: rate,
		})
	}
	return t
}

func shown(width, height int, messages ...tea.Msg) []string {
	m := newModel(time.Second)
	m.Update(tea.WindowSizeMsg{Width: width, Height: height})
	for _, msg := range messages {
		m.Update(msg)
	}
	return strings.Split(ansi.Strip(m.View().Content), "\n")
}

func TestLargeNumbersFitIn80Columns(t *testing.T) {
	narrow, wide := shown(80, 30, busy()), shown(81, 30, busy())
	for i, want := range []string{
		"turnstone 1.2.3  pid 4194303  up 1000h0m0s  ready",
		"allocations 100000  permissions 200000  channels 200000",
		"",
		"PATH       DIRECTION  PACKETS/S    BYTES/S",
		"userspace  to peer         1.2M       988M  █",
		"userspace  to client       1.2M       988M  █",
		"kernel     to peer         1.2M       988M  █",
		"kernel     to client       1.2M       988M  █",
		"",
		"LOG     event 1234567890  +12.3k/s  commits 1.2k/s  append 12.3ms  commit 123ms",
		"        file 123GB  free 12.0GB  room fine  segments 1234  recoveries 0",
		"        snapshot 1234560000 (59m0s ago)  checkpoint 1234567000 (59s ago)",
		"",
		"KERNEL  enp1s0f0np0 generic, lo not attached: link is the loopback",
		"        flows 200000  slots 131072 of 1048576 (12%)  lag 12 events",
		"        drift repaired 6  write failures 4  without next hop 5",
		"        passed up: miss 100k/s  drop-meter-total 88.9k/s  half-checksum 77.8k/s",
		"",
		"    ID USER           CHAN   PEER                  PATH        TO PEER TO CLIENT",
		"100000 1767366245:so… 0x4fff 203.0.113.200:65535   userspace      988M      988M",
	} {
		if got := strings.TrimRight(narrow[i], " "); got != want {
			t.Errorf("line %d: got %q, want %q", i, got, want)
		}
		if got := strings.TrimRight(wide[i], " "); i < 17 && got != want {
			t.Errorf("line %d with a column more: got %q, want %q: it was cut off", i, got, want)
		}
	}
	if got, want := narrow[29], "q quit • p pause   every 1s"; got != want {
		t.Errorf("the last line: got %q, want %q", got, want)
	}
}

func TestEverySizeIsFilledAndNotExceeded(t *testing.T) {
	for _, state := range [][]tea.Msg{{}, {busy()}, {away{errors.New(strings.Repeat("gone ", 50))}}, {busy(), away{errors.New("gone")}}} {
		for width := 1; width < 200; width += 7 {
			for height := 1; height < 60; height += 3 {
				lines := shown(width, height, state...)
				if len(lines) != height {
					t.Fatalf("%d×%d: got %d lines", width, height, len(lines))
				}
				for _, l := range lines {
					if w := ansi.StringWidth(l); w > width {
						t.Fatalf("%d×%d: a line of %d columns: %q", width, height, w, l)
					}
				}
			}
		}
	}
}

func TestSparkline(t *testing.T) {
	for _, c := range []struct {
		values []float64
		width  int
		want   string
	}{
		{nil, 5, ""},
		{[]float64{0, 0}, 5, "▁▁"},
		{[]float64{0, 1, 4, 8}, 5, "▁▂▅█"},
		{[]float64{9, 0, 8}, 2, "▁█"},
		{[]float64{1}, 0, ""},
	} {
		if got := sparkline(c.values, c.width); got != c.want {
			t.Errorf("%v in %d: got %q, want %q", c.values, c.width, got, c.want)
		}
	}
}

func TestShortNumbers(t *testing.T) {
	for v, want := range map[float64]string{0: "0", 999: "999", 999.6: "1.0k", 12345: "12.3k", 99999: "100k", 1e6: "1.0M", 5e15: "5000T"} {
		if got := short(v); got != want {
			t.Errorf("%v: got %q, want %q", v, got, want)
		}
	}
}
