package kernel

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sort"

	"turnstone/bpf"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// meaning is bumped by hand when a map keeps its shape and means something else.
const meaning = 1

// maxListenerPorts is LISTENER_PORTS of the program.
const maxListenerPorts = 8

// Sizes are those of the maps that follow the configuration, in entries.
type Sizes struct {
	Channels    uint32 // that the kernel can carry at once
	Allocations uint32
	Listeners   uint32
}

// slots is the number of records: two a channel, a guard for each allocation and each listener, and
// slot 0, which nothing has.
func (s Sizes) slots() uint32 { return 2*s.Channels + s.Allocations + s.Listeners + 1 }

// meterCount is the number of meters: one each direction for an allocation and its user, for all of them, and 0, which is
// none.
func (s Sizes) meterCount() uint32 { return 2 * (2*s.Allocations + 2) }

// Settings are constants of one load of the program.
type Settings struct {
	ListenerPorts         []uint16 // at most 8 different ones
	RelayFirst, RelayLast uint16
}

// looks says whether the program looks at packets to a port, as to a listener or to a relayed address.
func (s *Settings) looks(port uint16, listener bool) bool {
	if listener || slices.Contains(s.ListenerPorts, port) {
		return listener && slices.Contains(s.ListenerPorts, port)
	}
	return s.RelayFirst != 0 && port >= s.RelayFirst && port <= s.RelayLast
}

// blueprint is the program and its maps as they are to be made.
func blueprint(sizes Sizes, settings Settings) (*ebpf.CollectionSpec, error) {
	spec, err := bpf.LoadTurnstone()
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return nil, fmt.Errorf("count the CPUs: %w", err)
	}
	for name, n := range map[string]uint32{
		bpf.TurnstoneMapIndex4: sizes.slots(), bpf.TurnstoneMapIndex6: sizes.slots(), bpf.TurnstoneMapFlows: sizes.slots(),
		bpf.TurnstoneMapOwners: sizes.slots(), bpf.TurnstoneMapUsage: sizes.slots() * uint32(cpus), bpf.TurnstoneMapMeters: sizes.meterCount(),
	} {
		spec.Maps[name].MaxEntries = n
	}
	if len(settings.ListenerPorts) > maxListenerPorts {
		return nil, fmt.Errorf("listeners have %d different ports, and the program knows at most %d", len(settings.ListenerPorts), maxListenerPorts)
	}
	var ports [maxListenerPorts]uint16
	for i, p := range settings.ListenerPorts {
		b := wire(p)
		ports[i] = binary.NativeEndian.Uint16(b[:])
	}
	err = errors.Join(
		spec.Variables[bpf.TurnstoneVarListenerPorts].Set(ports),
		spec.Variables[bpf.TurnstoneVarRelayFirst].Set(settings.RelayFirst),
		spec.Variables[bpf.TurnstoneVarRelayLast].Set(settings.RelayLast),
		spec.Variables[bpf.TurnstoneVarCpuCount].Set(uint32(cpus)),
	)
	if err != nil {
		return nil, fmt.Errorf("set up the program: %w", err)
	}
	return spec, nil
}

// layout identifies what the maps of spec are like: type, sizes, flags, and the
// types of keys and values. Programs of one layout share maps.
func layout(spec *ebpf.CollectionSpec) ([32]byte, error) {
	h := sha256.New()
	fmt.Fprintf(h, "meaning %d\n", meaning)
	names := make([]string, 0, len(spec.Maps))
	for name := range spec.Maps {
		if name[0] != '.' { // settings, not a map of ours
			names = append(names, name)
		}
	}
	sort.Strings(names)
	for _, name := range names {
		m := spec.Maps[name]
		fmt.Fprintf(h, "%s %v %d %d %d %d\n", name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
		for _, t := range []btf.Type{m.Key, m.Value} {
			text, err := (&btf.GoFormatter{}).TypeDeclaration("T", t)
			if err != nil {
				return [32]byte{}, fmt.Errorf("describe map %s: %w", name, err)
			}
			fmt.Fprintln(h, text)
		}
	}
	return [32]byte(h.Sum(nil)), nil
}
