package kernel

import (
	"errors"
	"fmt"
	"sync/atomic"
	"unsafe"

	"turnstone/bpf"
	"turnstone/turn"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// ref is what an index holds of a key.
type ref struct{ slot, generation uint32 }

// index finds records by key: hash maps of the kernel, or of a test.
type index interface {
	// put sets keys in order, and says how many of them it set before an error.
	put(keys []Key, refs []ref) (int, error)
	// delete removes keys; one that is not there is no error.
	delete(keys []Key) error
	lookup(Key) (ref, bool, error)
	all() (map[Key]ref, error)
}

// errFull says that an index takes no more keys.
var errFull = errors.New("the index is full")

// tables are the maps as the reconciler writes them. What is mapped is shared with
// the program: see the rules in doc.go.
type tables struct {
	index    index
	flows    []bpf.TurnstoneFlow
	owners   []bpf.TurnstoneOwner
	meters   []bpf.TurnstoneMeter
	gateways []uint64
	hops     []bpf.TurnstoneNextHop
	meta     *bpf.TurnstoneProjection
	usage    usage
	grace    func() error // returns when no program runs any more that ran when it was called

	unmap []func() error
}

// usage counts what slots have relayed.
type usage interface {
	read(slot uint32) turn.Count
	clear(slots []uint32)
}

// openTables maps the maps of o, and makes the means to wait for a grace period.
func openTables(o *bpf.TurnstoneMaps) (t *tables, err error) {
	t = &tables{index: &kernelIndex{v4: o.Index4, v6: o.Index6}}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.close())
		}
	}()
	var metas []bpf.TurnstoneProjection
	var counters []bpf.TurnstoneCounter
	err = errors.Join(
		share(t, &t.flows, o.Flows), share(t, &t.owners, o.Owners), lend(&t.meters, o.Meters),
		share(t, &t.gateways, o.Gateways), share(t, &t.hops, o.NextHops), share(t, &metas, o.Meta),
		share(t, &counters, o.Usage),
	)
	if err != nil {
		return t, err
	}
	t.meta, t.usage = &metas[0], newSharedUsage(counters, len(t.flows))
	t.grace, err = newGrace(t)
	return t, err
}

func (t *tables) close() error {
	var errs []error
	for _, f := range t.unmap {
		errs = append(errs, f())
	}
	t.unmap = nil
	return errors.Join(errs...)
}

// share maps the values of m into into, for reading and writing.
func share[T any](t *tables, into *[]T, m *ebpf.Map) error {
	b, err := mapValues(into, m)
	if err == nil {
		t.unmap = append(t.unmap, func() error { return unix.Munmap(b) })
	}
	return err
}

// lend is share of what the server has pointers into: it stays mapped until the process ends.
func lend[T any](into *[]T, m *ebpf.Map) error {
	_, err := mapValues(into, m)
	return err
}

func mapValues[T any](into *[]T, m *ebpf.Map) ([]byte, error) {
	var one T
	if unsafe.Sizeof(one)%8 != 0 || uint32(unsafe.Sizeof(one)) != m.ValueSize() {
		return nil, fmt.Errorf("map %v: values of %d bytes, want %d", m, m.ValueSize(), unsafe.Sizeof(one))
	}
	n := int(m.MaxEntries())
	page := unix.Getpagesize()
	size := (n*int(m.ValueSize()) + page - 1) / page * page
	b, err := unix.Mmap(m.FD(), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map the memory of %v: %w", m, err)
	}
	*into = unsafe.Slice((*T)(unsafe.Pointer(unsafe.SliceData(b))), n)
	return b, nil
}

// newGrace makes a wait for a grace period: the kernel waits for all running programs
// when an inner map of an array of maps is replaced.
func newGrace(t *tables) (func() error, error) {
	inner := &ebpf.MapSpec{Name: "grace_inner", Type: ebpf.Array, KeySize: 4, ValueSize: 4, MaxEntries: 1}
	outer, err := ebpf.NewMap(&ebpf.MapSpec{Name: "grace", Type: ebpf.ArrayOfMaps, KeySize: 4, MaxEntries: 1, InnerMap: inner})
	if err != nil {
		return nil, fmt.Errorf("make the grace map: %w", err)
	}
	t.unmap = append(t.unmap, outer.Close)
	one, err := ebpf.NewMap(inner)
	if err != nil {
		return nil, fmt.Errorf("make the grace map: %w", err)
	}
	t.unmap = append(t.unmap, one.Close)
	return func() error {
		if err := outer.Put(uint32(0), one); err != nil {
			return fmt.Errorf("wait for a grace period: %w", err)
		}
		return nil
	}, nil
}

// publish makes the record in slot known by a generation, which no older one may be. A key may then name it.
func (t *tables) publish(slot uint32, r bpf.TurnstoneFlow, generation uint32) {
	r.Generation = 0
	t.flows[slot] = r
	atomic.StoreUint32(&t.flows[slot].Generation, generation)
}

// revoke ends the relaying by slot: whoever looks it up from now on finds nothing.
func (t *tables) revoke(slot uint32) { atomic.StoreUint32(&t.flows[slot].Generation, 0) }

// extend moves the deadline of slot.
func (t *tables) extend(slot uint32, deadline uint64) {
	atomic.StoreUint64(&t.flows[slot].Deadline, deadline)
}

func key4(k Key) bpf.TurnstoneFlowKey4 {
	r, l := address(k.Remote.Addr()), address(k.Local.Addr())
	return bpf.TurnstoneFlowKey4{
		Remote: [4]byte(r[:4]), Local: [4]byte(l[:4]),
		RemotePort: wire(k.Remote.Port()), LocalPort: wire(k.Local.Port()), Channel: wire(uint16(k.Channel)),
	}
}

func key6(k Key) bpf.TurnstoneFlowKey6 {
	return bpf.TurnstoneFlowKey6{
		Remote: address(k.Remote.Addr()), Local: address(k.Local.Addr()),
		RemotePort: wire(k.Remote.Port()), LocalPort: wire(k.Local.Port()), Channel: wire(uint16(k.Channel)),
	}
}

// keyOf is the key that index entry belongs to. A guard's remote is no address.
func keyOf(remote, local [16]byte, remotePort, localPort, channel [2]byte, family uint8) Key {
	k := Key{Remote: addrPort(remote, remotePort, family), Local: addrPort(local, localPort, family)}
	k.Channel = turn.ChannelNumber(channel[0])<<8 | turn.ChannelNumber(channel[1])
	if k.Remote.Addr().IsUnspecified() && k.Remote.Port() == 0 && k.Channel == 0 {
		k.Remote = noAddress
	}
	return k
}

// kernelIndex is the two index maps of the program.
type kernelIndex struct{ v4, v6 *ebpf.Map }

func (x *kernelIndex) put(keys []Key, refs []ref) (int, error) {
	done := 0
	for done < len(keys) {
		n := 1 // of one family, in one call
		for done+n < len(keys) && keys[done+n].Local.Addr().Is4() == keys[done].Local.Addr().Is4() {
			n++
		}
		set, err := x.putSome(keys[done:done+n], refs[done:done+n])
		if done += set; err != nil {
			return done, err
		}
	}
	return done, nil
}

func (x *kernelIndex) putSome(keys []Key, refs []ref) (n int, err error) {
	values := make([]bpf.TurnstoneSlotRef, len(refs))
	for i, r := range refs {
		values[i] = bpf.TurnstoneSlotRef{Slot: r.slot, Generation: r.generation}
	}
	switch {
	case keys[0].Local.Addr().Is4():
		n, err = putBatch(x.v4, keys, key4, values)
	default:
		n, err = putBatch(x.v6, keys, key6, values)
	}
	if errors.Is(err, unix.E2BIG) {
		return n, errFull
	}
	if err != nil {
		return n, fmt.Errorf("set %v: %w", keys[min(n, len(keys)-1)], err)
	}
	return n, nil
}

func putBatch[K any](m *ebpf.Map, keys []Key, form func(Key) K, values []bpf.TurnstoneSlotRef) (int, error) {
	if len(keys) == 1 {
		k := form(keys[0])
		if err := m.Put(&k, &values[0]); err != nil {
			return 0, err
		}
		return 1, nil
	}
	forms := make([]K, len(keys))
	for i, k := range keys {
		forms[i] = form(k)
	}
	return m.BatchUpdate(forms, values, nil)
}

func (x *kernelIndex) delete(keys []Key) error {
	var errs []error
	for _, k := range keys {
		if err := x.remove(k); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			errs = append(errs, fmt.Errorf("delete %v: %w", k, err))
		}
	}
	return errors.Join(errs...)
}

func (x *kernelIndex) remove(k Key) error {
	if k.Local.Addr().Is4() {
		raw := key4(k)
		return x.v4.Delete(&raw)
	}
	raw := key6(k)
	return x.v6.Delete(&raw)
}

func (x *kernelIndex) lookup(k Key) (r ref, ok bool, err error) {
	var v bpf.TurnstoneSlotRef
	if k.Local.Addr().Is4() {
		raw := key4(k)
		err = x.v4.Lookup(&raw, &v)
	} else {
		raw := key6(k)
		err = x.v6.Lookup(&raw, &v)
	}
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return ref{}, false, nil
	}
	if err != nil {
		return ref{}, false, fmt.Errorf("look up %v: %w", k, err)
	}
	return ref{v.Slot, v.Generation}, true, nil
}

func (x *kernelIndex) all() (map[Key]ref, error) {
	out := map[Key]ref{}
	err := eachBatch(x.v4, func(k bpf.TurnstoneFlowKey4, v bpf.TurnstoneSlotRef) {
		var r, l [16]byte
		copy(r[:], k.Remote[:])
		copy(l[:], k.Local[:])
		out[keyOf(r, l, k.RemotePort, k.LocalPort, k.Channel, 4)] = ref{v.Slot, v.Generation}
	})
	if err != nil {
		return nil, err
	}
	err = eachBatch(x.v6, func(k bpf.TurnstoneFlowKey6, v bpf.TurnstoneSlotRef) {
		out[keyOf(k.Remote, k.Local, k.RemotePort, k.LocalPort, k.Channel, 6)] = ref{v.Slot, v.Generation}
	})
	return out, err
}

// eachBatch walks a hash map, many entries a call.
func eachBatch[K any](m *ebpf.Map, f func(K, bpf.TurnstoneSlotRef)) error {
	var cursor ebpf.MapBatchCursor
	size := int(min(m.MaxEntries(), 4096))
	for {
		keys, values := make([]K, size), make([]bpf.TurnstoneSlotRef, size)
		n, err := m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			f(keys[i], values[i])
		}
		switch {
		case errors.Is(err, ebpf.ErrKeyNotExist):
			return nil
		case errors.Is(err, unix.ENOSPC) && size < int(m.MaxEntries()):
			size = min(2*size, int(m.MaxEntries())) // a bucket with more entries than the batch
		case err != nil:
			return fmt.Errorf("walk %v: %w", m, err)
		}
	}
}

// sharedUsage is the usage map: the counters of the CPUs for each slot, one slot after the other.
type sharedUsage struct {
	counters []bpf.TurnstoneCounter
	cpus     int
}

func newSharedUsage(counters []bpf.TurnstoneCounter, slots int) *sharedUsage {
	return &sharedUsage{counters, len(counters) / max(slots, 1)}
}

func (u *sharedUsage) of(slot uint32) []bpf.TurnstoneCounter {
	return u.counters[int(slot)*u.cpus:][:u.cpus]
}

func (u *sharedUsage) read(slot uint32) (sum turn.Count) {
	of := u.of(slot)
	for i := range of {
		sum.Packets += atomic.LoadUint64(&of[i].Packets)
		sum.Bytes += atomic.LoadUint64(&of[i].Bytes)
	}
	return sum
}

// clear zeroes the counters of slots that no program uses any more.
func (u *sharedUsage) clear(slots []uint32) {
	for _, s := range slots {
		clear(u.of(s))
	}
}
