package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"turnstone/bpf"
	"turnstone/turn"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
)

// Pinned is what the kernel holds of an instance, read from its pins: with a daemon or without.
type Pinned struct {
	Directory string
	Log       turn.LogID
	Epoch     uint64
	Applied   turn.Seq
	Chain     [32]byte
	Rows      []Row
	Verdicts  []VerdictCounts

	flows map[Key]Flow
}

// ErrNothingPinned says that the kernel holds nothing of an instance.
var ErrNothingPinned = errors.New("nothing is pinned")

// Inspect reads the maps of an instance. The error is ErrNothingPinned where there are none.
func Inspect(root, instance string) (*Pinned, error) {
	dirs, err := filepath.Glob(filepath.Join(root, instance, "v*"))
	if err != nil {
		return nil, err
	}
	if len(dirs) == 0 {
		return nil, fmt.Errorf("%s: %w", filepath.Join(root, instance), ErrNothingPinned)
	}
	return inspect(dirs[len(dirs)-1])
}

func inspect(dir string) (p *Pinned, err error) {
	var o bpf.TurnstoneMaps
	defer func() { err = errors.Join(err, o.Close()) }()
	for name, m := range map[string]**ebpf.Map{
		bpf.TurnstoneMapIndex4: &o.Index4, bpf.TurnstoneMapIndex6: &o.Index6, bpf.TurnstoneMapFlows: &o.Flows,
		bpf.TurnstoneMapOwners: &o.Owners, bpf.TurnstoneMapUsage: &o.Usage, bpf.TurnstoneMapMeta: &o.Meta,
		bpf.TurnstoneMapCpus: &o.Cpus,
	} {
		if *m, err = ebpf.LoadPinnedMap(filepath.Join(dir, name), nil); err != nil {
			return nil, fmt.Errorf("open %s/%s: %w", dir, name, err)
		}
	}
	t := &tables{index: &kernelIndex{v4: o.Index4, v6: o.Index6}}
	defer func() { err = errors.Join(err, t.close()) }()
	var metas []bpf.TurnstoneProjection
	var counters []bpf.TurnstoneCounter
	err = errors.Join(share(t, &t.flows, o.Flows), share(t, &t.owners, o.Owners), share(t, &metas, o.Meta), share(t, &counters, o.Usage))
	if err != nil {
		return nil, err
	}
	t.usage = newSharedUsage(counters, len(t.flows))
	m := metas[0]
	p = &Pinned{Directory: dir, Log: m.Log, Epoch: m.Epoch, Applied: turn.Seq(m.Applied), Chain: m.Chain, flows: map[Key]Flow{}}
	if p.Verdicts, err = (&verdictCounters{cpus: o.Cpus}).read(); err != nil {
		return nil, err
	}
	return p, p.read(t)
}

// Status is what the pins tell of how the kernel's side is: what only a daemon knows is left out.
func (p *Pinned) Status() (Status, error) {
	s := Status{
		Directory: p.Directory, Layout: strings.TrimPrefix(filepath.Base(p.Directory), "v"), Applied: p.Applied, Flows: len(p.Rows), Verdicts: p.Verdicts,
	}
	indexes, err := (&pins{dir: filepath.Dir(p.Directory)}).links()
	if err != nil {
		return s, err
	}
	for _, i := range indexes {
		s.Interfaces = append(s.Interfaces, attachedTo(i))
	}
	return s, nil
}

// attachedTo is the interface of a pinned link, as far as this network namespace knows it.
func attachedTo(ifindex int) Interface {
	out := Interface{Index: ifindex}
	nic, err := netlink.LinkByIndex(ifindex)
	if err != nil {
		out.Reason = "not an interface of this network namespace"
		return out
	}
	out.Name = nic.Attrs().Name
	switch x := nic.Attrs().Xdp; {
	case x == nil || !x.Attached:
		out.Reason = "the program is not attached"
	case x.AttachMode == nl.XDP_ATTACHED_DRV:
		out.Mode = XDPNative
	default:
		out.Mode = XDPGeneric
	}
	return out
}

// read fills p from the index and the records it names.
func (p *Pinned) read(t *tables) error {
	all, err := t.index.all()
	if err != nil {
		return err
	}
	r := &reconciler{t: t}
	for k, at := range all {
		h, ok := r.recorded(k, at)
		if !ok {
			continue // stale: the program passes its packets up
		}
		p.flows[k] = h.Flow
		c := t.usage.read(at.slot)
		o := t.owners[at.slot]
		row := Row{
			Slot: at.slot, Generation: at.generation, Kind: h.Kind, Allocation: h.Allocation, Local: h.Local.String(),
			Channel: h.Channel, OutChannel: h.OutChannel, Deadline: h.Deadline,
			Packets: o.BasePackets + c.Packets, Bytes: o.BaseBytes + c.Bytes,
		}
		if h.Kind != Guard {
			row.Remote, row.From, row.To = h.Remote.String(), h.Source.String(), h.Destination.String()
		}
		p.Rows = append(p.Rows, row)
	}
	slices.SortFunc(p.Rows, func(a, b Row) int {
		return cmp.Or(cmp.Compare(a.Allocation, b.Allocation), cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Slot, b.Slot))
	})
	return nil
}

// What a Difference is.
const (
	Missing = "missing" // the log grants it and the kernel lacks it: userspace relays it
	Extra   = "extra"   // the kernel has it and the log does not grant it
	Changed = "changed" // the kernel's says other than the log
)

// Difference is a flow about which the kernel and the log are not of one mind.
type Difference struct {
	What       string            `json:"what"`
	Kind       Kind              `json:"kind"`
	Allocation turn.AllocationID `json:"allocation"`
	Key        string            `json:"key"`
	Detail     string            `json:"detail"`
}

// Compare holds what is pinned against a state. A flow the log does not grant is extra, one that says other
// than the log is changed. What the log grants and the kernel lacks is missing, which is no error by
// itself: routes and interfaces have a say in it, and userspace relays it.
func (p *Pinned) Compare(s *turn.State) []Difference {
	var out []Difference
	seen := map[Key]bool{}
	for a := range s.Allocations() {
		for _, w := range desired(a, anywhere{}) {
			if w.reason != "" {
				continue
			}
			seen[w.Key] = true
			if d, differs := p.differs(&w.Flow); differs {
				out = append(out, d)
			}
		}
	}
	for k, f := range p.flows {
		if !seen[k] && f.Allocation != 0 {
			out = append(out, difference(Extra, &f, "the log does not grant it"))
		}
	}
	slices.SortFunc(out, func(a, b Difference) int {
		return cmp.Or(cmp.Compare(a.Allocation, b.Allocation), cmp.Compare(a.Key, b.Key))
	})
	return out
}

func (p *Pinned) differs(want *Flow) (Difference, bool) {
	have, ok := p.flows[want.Key]
	switch {
	case !ok:
		return difference(Missing, want, "relayed in userspace"), true
	case have.Deadline != want.Deadline:
		return difference(Changed, want, fmt.Sprintf("deadline %v, the log says %v", have.Deadline, want.Deadline)), true
	case have.Kind != want.Kind, have.Allocation != want.Allocation, have.Source != want.Source,
		have.Destination != want.Destination, have.OutChannel != want.OutChannel:
		return difference(Changed, want, fmt.Sprintf("%v to %v for allocation %d", have.Source, have.Destination, have.Allocation)), true
	}
	return Difference{}, false
}

func difference(what string, f *Flow, detail string) Difference {
	key := f.Local.String()
	if f.Kind != Guard {
		key = fmt.Sprintf("%v->%v", f.Remote, f.Local)
	}
	if f.Channel != 0 {
		key += " " + f.Channel.String()
	}
	return Difference{What: what, Kind: f.Kind, Allocation: f.Allocation, Key: key, Detail: detail}
}

// anywhere are surroundings in which every flow finds its way.
type anywhere struct{}

func (anywhere) arrival(netip.AddrPort, bool) (uint16, Reason) { return 0, "" }
func (anywhere) route(netip.Addr, netip.Addr) (Route, Reason)  { return Route{}, "" }
func (anywhere) isRelay(netip.Addr) bool                       { return false }
func (anywhere) metered() bool                                 { return false }

// Detach takes the program off every interface of an instance and unpins all of it: nothing is relayed by the
// kernel any more. A daemon that runs would put it back. It asks nothing of bpf(2): a link that cannot be opened ends
// soon after its pin. The error is ErrNothingPinned where there is nothing to take off.
func Detach(root, instance string) (interfaces int, err error) {
	dir := filepath.Join(root, instance)
	if list, err := os.ReadDir(dir); errors.Is(err, fs.ErrNotExist) || err == nil && len(list) == 0 {
		return 0, fmt.Errorf("%s: %w", dir, ErrNothingPinned)
	}
	p, err := openPins(root, instance)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, p.close()) }()
	indexes, err := p.links()
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, i := range indexes {
		if l, err := link.LoadPinnedLink(p.link(i), nil); err == nil {
			errs = append(errs, l.Unpin(), l.Close())
		}
	}
	return len(indexes), errors.Join(append(errs, p.remove())...)
}
