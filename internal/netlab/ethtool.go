package netlab

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Ethtool changes a setting of a link of the calling thread's namespace by a command of ethtool(8), such as
// unix.ETHTOOL_STXCSUM.
func Ethtool(name string, command, value uint32) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	data := struct{ command, value uint32 }{command, value}
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&data)}
	copy(request.name[:], name)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return fmt.Errorf("set %s by ethtool command %#x: %w", name, command, errno)
	}
	return nil
}

// WholeChecksums has a link calculate the checksums of what it sends, as ethtool -K NAME tx off does: what a veth leaves
// to hardware that it does not have is half a checksum, which the XDP program passes up.
func WholeChecksums(name string) error { return Ethtool(name, unix.ETHTOOL_STXCSUM, 0) }
