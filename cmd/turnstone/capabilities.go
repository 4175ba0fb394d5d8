package main

import (
	"syscall"
	"unsafe"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// relayCapabilities are what the kernel's side takes, in the two words of capset(2).
var relayCapabilities = [2]uint32{1 << unix.CAP_NET_ADMIN, 1<<(unix.CAP_PERFMON-32) | 1<<(unix.CAP_BPF-32)}

// raiseCapabilities makes effective what of them the process is permitted. A binary may carry them as permitted only
// (setcap ...+p), so that it still starts where a container's bounding set has them not: with +ep exec(2) fails there.
func raiseCapabilities(log zerolog.Logger) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if unix.Capget(&header, &data[0]) != nil {
		return
	}
	raised := false
	for i, want := range relayCapabilities {
		more := data[i].Permitted & want &^ data[i].Effective
		data[i].Effective |= more
		raised = raised || more != 0
	}
	if !raised {
		return
	}
	// Each thread has its own.
	if _, _, errno := syscall.AllThreadsSyscall(unix.SYS_CAPSET, uintptr(unsafe.Pointer(&header)), uintptr(unsafe.Pointer(&data[0])), 0); errno != 0 {
		log.Warn().Err(errno).Msg("capabilities that are permitted cannot be made effective: the kernel may not relay")
	}
}
