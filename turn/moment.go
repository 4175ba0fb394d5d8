package turn

import (
	"encoding/hex"
	"fmt"
	"time"
)

// BootID names one boot of a host, as /proc/sys/kernel/random/boot_id does.
type BootID [16]byte

func (b BootID) String() string { return hex.EncodeToString(b[:]) }

// Moment is one reading of the clocks. Every record carries one, and all that
// a record decides happens at its moment.
//
// Uptime is the boot-time clock (CLOCK_BOOTTIME), on which deadlines run;
// it means nothing outside its Boot. Wall is for people, and for bridging one
// boot to the next.
type Moment struct {
	Boot   BootID        `cbor:"1,keyasint"`
	Uptime time.Duration `cbor:"2,keyasint"`
	Wall   int64         `cbor:"3,keyasint"` // nanoseconds since the Unix epoch, UTC
}

// WallTime is m.Wall in UTC.
func (m Moment) WallTime() time.Time { return time.Unix(0, m.Wall).UTC() }

// AsOf is the moment of the wall time t, on the clock of m's boot.
func (m Moment) AsOf(t time.Time) Moment {
	d := time.Duration(t.UnixNano() - m.Wall)
	return Moment{Boot: m.Boot, Uptime: m.Uptime + d, Wall: m.Wall + int64(d)}
}

func (m Moment) String() string {
	return fmt.Sprintf("%s (up %s)", m.WallTime().Format(time.RFC3339Nano), m.Uptime)
}

// After is the deadline d from m.
func (m Moment) After(d time.Duration) Deadline {
	return Deadline{Uptime: m.Uptime + d, Wall: m.Wall + int64(d)}
}

// Deadline is an instant in the future of the boot it was granted in.
// Wall is what the grant promised on the wall clock; only a rebase reads it.
type Deadline struct {
	Uptime time.Duration `cbor:"1,keyasint"`
	Wall   int64         `cbor:"2,keyasint"`
}

// Passed says whether d is over at m. A deadline is over at its own instant.
func (d Deadline) Passed(m Moment) bool { return d.Uptime <= m.Uptime }

// Rebase carries d over a reboot: last is the last moment the log knows of
// the old boot, next the first of the new one. What remains is the smaller of
// what remained at last and what the wall clock leaves; where the wall clock
// went back the time between them counts as zero.
func (d Deadline) Rebase(last, next Moment) Deadline {
	remaining := d.Uptime - last.Uptime
	if next.Wall >= last.Wall {
		remaining = min(remaining, time.Duration(d.Wall-next.Wall))
	}
	return next.After(remaining)
}
