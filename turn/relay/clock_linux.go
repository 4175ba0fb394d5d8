package relay

import (
	"encoding/hex"
	"fmt"
	"os"
	"strings"
	"time"

	"turnstone/turn"
)

// HostClock reads the clocks of this host: its boot id, CLOCK_BOOTTIME and the wall clock.
func HostClock() (func() turn.Moment, error) {
	const file = "/proc/sys/kernel/random/boot_id"
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read boot id: %w", err)
	}
	var boot turn.BootID
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || copy(boot[:], raw) != len(boot) {
		return nil, fmt.Errorf("read boot id: %s holds %q", file, text)
	}
	return func() turn.Moment {
		return turn.Moment{Boot: boot, Uptime: time.Duration(uptime()), Wall: time.Now().UnixNano()}
	}, nil
}
