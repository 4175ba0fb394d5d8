package doctor

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ethFeatures is ETH_SS_FEATURES, the set of names of offloads; each takes nameSize bytes.
const (
	ethFeatures = 4
	nameSize    = 32
)

// ethtool asks the driver of an interface. The answer stands in b, whose first word is the command.
func ethtool(name string, b []byte) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request := struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		_    [16]byte
	}{data: unsafe.Pointer(&b[0])}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	runtime.KeepAlive(b)
	if errno != 0 {
		return errno
	}
	return nil
}

// words makes a request of 32-bit words, and room for more bytes behind them.
func words(room int, all ...uint32) []byte {
	b := make([]byte, 0, 4*len(all)+room)
	for _, w := range all {
		b = binary.NativeEndian.AppendUint32(b, w)
	}
	return b[:cap(b)]
}

func word(b []byte, i int) uint32 { return binary.NativeEndian.Uint32(b[4*i:]) }

// queues asks how many pairs of queues an interface has.
func queues(name string) (Queues, error) {
	b := words(0, unix.ETHTOOL_GCHANNELS, 0, 0, 0, 0, 0, 0, 0, 0)
	err := ethtool(name, b)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return Queues{}, errNothing
	}
	if err != nil {
		return Queues{}, fmt.Errorf("ask for the queues of %s: %w", name, err)
	}
	maxRx, maxCombined, rx, combined := word(b, 1), word(b, 4), word(b, 5), word(b, 8)
	return Queues{Now: int(rx + combined), Most: int(max(maxRx, maxCombined))}, nil
}

// offloads asks for the features of an interface.
func offloads(name string) (map[string]Offload, error) {
	names, err := featureNames(name)
	if err != nil {
		return nil, fmt.Errorf("ask for the names of the offloads of %s: %w", name, err)
	}
	blocks := (len(names) + 31) / 32
	b := words(16*blocks, unix.ETHTOOL_GFEATURES, uint32(blocks))
	if err := ethtool(name, b); err != nil {
		return nil, fmt.Errorf("ask for the offloads of %s: %w", name, err)
	}
	return parseFeatures(names, b[8:]), nil
}

// parseFeatures reads blocks of four words: what can be changed, what is wanted, what is on, what never changes.
func parseFeatures(names []string, blocks []byte) map[string]Offload {
	out := map[string]Offload{}
	for i, n := range names {
		bit := func(w int) bool { return word(blocks, i/32*4+w)>>(i%32)&1 != 0 }
		if n != "" {
			out[n] = Offload{On: bit(2), Fixed: !bit(0) || bit(3)}
		}
	}
	return out
}

func featureNames(name string) ([]string, error) {
	b := words(4, unix.ETHTOOL_GSSET_INFO, 0, 0, 0) // its mask, a 64-bit word, follows two words
	binary.NativeEndian.PutUint64(b[8:], 1<<ethFeatures)
	if err := ethtool(name, b); err != nil {
		return nil, err
	}
	count := int(word(b, 4))
	b = words(nameSize*count, unix.ETHTOOL_GSTRINGS, ethFeatures, uint32(count))
	if err := ethtool(name, b); err != nil {
		return nil, err
	}
	names := make([]string, count)
	for i := range names {
		text, _, _ := bytes.Cut(b[12+nameSize*i:][:nameSize], []byte{0})
		names[i] = string(text)
	}
	return names, nil
}
