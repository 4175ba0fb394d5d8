package relay

import (
	"errors"
	"testing"
	"time"

	"turnstone/turn"
)

// TestIntake reads as much as there is room for, so many bytes of it whole frames, and looks at the room there is then.
func TestIntake(t *testing.T) {
	const full = -1
	start := time.Now()
	for _, row := range []struct {
		name  string
		holds bool
		reads []int           // bytes that come, full for as many as fit
		taken []int           // bytes that are taken from what is there, full for all
		after []time.Duration // since start
		want  []int
		err   error
	}{
		{"LittleAtATime", true, []int{100, 2000, 100}, []int{full, full, full}, []time.Duration{0, 0, 0}, []int{2048, 2048, 2048}, nil},
		{"MuchAtATime", true, []int{full, full, full, full, full, full}, []int{full, full, full, 8000, full, full}, make([]time.Duration, 6), []int{4096, 8192, 16384, 32768, 32768, 32768}, nil},
		{"MuchWithoutAllocation", false, []int{full, full}, []int{full, full}, make([]time.Duration, 2), []int{2048, 2048}, nil},
		{"LongFrame", true, []int{full, full, full, full, full, full, full}, make([]int, 7), make([]time.Duration, 7), []int{4096, 8192, 16384, 32768, 65536, turn.MaxStreamFrame, turn.MaxStreamFrame}, nil},
		{"LongFrameWithoutAllocation", false, []int{full, full, full}, make([]int, 3), make([]time.Duration, 3), []int{4096, 8192, 8192}, errLongFrame},
		{"ThenLittle", true, []int{full, full, 100, 100, 100}, []int{full, full, full, full, full}, []time.Duration{0, 0, 0, intakeIdle - 1, intakeIdle}, []int{4096, 8192, 8192, 8192, 2048}, nil},
		{"ThenLittleOfAFrame", true, []int{full, full, 5000, 10}, []int{full, full, 0, full}, []time.Duration{0, 0, intakeIdle, 3 * intakeIdle}, []int{4096, 8192, 8192, 8192}, nil},
		{"ThenNothing", true, []int{full, 0}, []int{full, 0}, []time.Duration{0, intakeIdle}, []int{4096, 2048}, nil},
		{"NeededNowAndThen", true, []int{full, full, 3000, 100, 100}, []int{full, full, full, full, full}, []time.Duration{0, 0, intakeIdle / 2, intakeIdle, 2 * intakeIdle}, []int{4096, 8192, 8192, 8192, 2048}, nil},
	} {
		t.Run(row.name, func(t *testing.T) {
			in := newIntake(nil, false)
			var err error
			for i, n := range row.reads {
				if n == full {
					n = len(in.buf) - in.n
				}
				for j := range n {
					in.buf[in.n+j] = byte(in.n + j)
				}
				in.n += n
				got, taken := in.n, row.taken[i]
				if taken == full {
					taken = got
				}
				in.skip(taken)
				at := start.Add(row.after[i])
				if i == 0 {
					in.needed = start
				}
				if err = in.fit(got, row.holds, at); err != nil {
					break
				}
				if len(in.buf) != row.want[i] {
					t.Fatalf("read %d: got room for %d bytes, want %d", i, len(in.buf), row.want[i])
				}
				for j, b := range in.buf[:in.n] {
					if b != byte(taken+j) {
						t.Fatalf("read %d: byte %d is %d, want %d", i, j, b, byte(taken+j))
					}
				}
			}
			if !errors.Is(err, row.err) {
				t.Errorf("got %v, want %v", err, row.err)
			}
		})
	}
}

// TestIntakeWaits holds until when a read waits: no longer than until there is room to give back.
func TestIntakeWaits(t *testing.T) {
	now := time.Now()
	end := now.Add(time.Hour)
	for _, row := range []struct {
		name string
		in   intake
		want time.Time
	}{
		{"Small", intake{buf: make([]byte, firstBuffer)}, end},
		{"Large", intake{buf: make([]byte, fastBuffer), needed: now}, now.Add(intakeIdle)},
		{"LargeAndInUse", intake{buf: make([]byte, fastBuffer), n: firstBuffer + 1, needed: now}, end},
		{"Messages", intake{buf: make([]byte, dtlsBuffer), constant: true}, end},
	} {
		if got := row.in.until(end); !got.Equal(row.want) {
			t.Errorf("%s: got %v, want %v", row.name, got, row.want)
		}
	}
}
