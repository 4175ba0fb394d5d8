package doctor

import (
	"fmt"
	"time"
)

// spareFiles is how many files a daemon has open besides allocations: listeners on every CPU, log, maps.
const spareFiles = 256

// checkFiles holds the limit of open files against the allocations, each of which takes a socket for every
// relayed address.
func checkFiles(f *Facts) []Row {
	const check, remedy = "open-files", "LimitNOFILE=1048576 in the unit, or ulimit -Hn %d"
	if f.Process.Files.Err != nil {
		return []Row{skip(check, f.Process.Files.Err)}
	}
	limit := f.Process.Files.Value.Hard // the daemon raises its own as far as it may
	switch {
	case f.Process.PID != 0:
		limit = f.Process.Files.Value.Soft
	case f.Process.has(capSysResource):
		limit = max(limit, 1<<20)
	}
	want := uint64(f.Last-f.First) + 1
	promised := f.Allocations > 0
	if promised {
		want = min(want, uint64(f.Allocations))
	}
	want *= uint64(max(len(f.Relays), 1))
	r := ok(check, "%d for %s, up to %d sockets of allocations", limit, f.Process.who(), want)
	if f.Streams > 0 {
		r.Seen += fmt.Sprintf(" and %d connections of clients", f.Streams)
	}
	want += uint64(f.Streams)
	switch {
	case limit >= want+spareFiles:
		return []Row{r}
	case promised:
		r.Seen = fmt.Sprintf("%d for %s: limits.max-allocations = %d and limits.max-streams = %d take up to %d", limit, f.Process.who(), f.Allocations, f.Streams, want)
		return []Row{r.as(Fail, remedy, want+spareFiles)}
	}
	return []Row{r.as(Warn, remedy+", or limits.max-allocations", want+spareFiles)}
}

// backwards is how much earlier than the log a clock may be: file systems and clocks are not that exact.
const backwards = time.Minute

// checkClock is about the wall clock, on which time-limited credentials end.
func checkClock(f *Facts) []Row {
	const check, remedy = "clock", "timedatectl set-ntp true, or run chrony"
	if f.Clock.Err != nil {
		return []Row{skip(check, f.Clock.Err)}
	}
	c := f.Clock.Value
	switch behind := c.Written.Sub(f.Now); {
	case behind > backwards:
		return []Row{ok(check, "it is %v, and the log was written %v later than that", f.Now.UTC().Format(time.RFC3339), behind.Round(time.Second)).as(Warn, remedy)}
	case c.Unsynced && f.Secrets:
		return []Row{ok(check, "the wall clock is not synchronised, and time-limited credentials end on it").as(Warn, remedy)}
	case c.Unsynced:
		return []Row{ok(check, "the wall clock is not synchronised: times in the log may be wrong, deadlines are not").as(Warn, remedy)}
	}
	return []Row{ok(check, "synchronised, within %v", c.Error.Round(time.Millisecond))}
}
