package kernel

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// clockUnit is what boot_clock counts in.
const clockUnit = 1 << 20

// calibrate makes sure that programs and this process read one boot-time clock: deadlines cross from
// one to the other. In a time namespace with an offset they do not.
func calibrate(clock *ebpf.Program) error {
	var before, after unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &before); err != nil {
		return fmt.Errorf("read the boot-time clock: %w", err)
	}
	got, err := clock.Run(&ebpf.RunOptions{Data: make([]byte, 64)})
	if err != nil {
		return fmt.Errorf("ask a program for its clock: %w", err)
	}
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &after); err != nil {
		return fmt.Errorf("read the boot-time clock: %w", err)
	}
	first, last := uint32(before.Nano()/clockUnit), uint32(after.Nano()/clockUnit)
	if got-first <= last-first {
		return nil
	}
	return errors.New("the boot-time clock of this process differs from the kernel's: it runs in a time namespace with an offset, where deadlines cannot be shared with the kernel")
}
