package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/bits"
	"path/filepath"
	"slices"
	"strings"

	"turnstone/bpf"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/features"
	"github.com/cilium/ebpf/link"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"
)

// Feature is what the program, its maps or its loader need of the kernel.
type Feature struct {
	Group string // program, map, helper or flag
	Name  string
	Err   error // nil: it is there. ebpf.ErrNotSupported: it is not. Else nobody can tell, and this is why
}

// Features asks the kernel for what is needed, as the compiled program itself says. Without CAP_BPF the kernel
// does not answer.
func Features() ([]Feature, error) {
	spec, err := bpf.LoadTurnstone()
	if err != nil {
		return nil, fmt.Errorf("read the program: %w", err)
	}
	_ = rlimit.RemoveMemlock() // needed before Linux 5.11 only
	out := []Feature{{Group: "program", Name: "XDP", Err: features.HaveProgramType(ebpf.XDP)}}
	kinds := map[ebpf.MapType]bool{ebpf.ArrayOfMaps: true} // of the grace period
	for _, m := range spec.Maps {
		kinds[m.Type] = true
	}
	for _, kind := range slices.Sorted(maps.Keys(kinds)) {
		out = append(out, Feature{Group: "map", Name: kind.String(), Err: features.HaveMapType(kind)})
	}
	helpers := map[asm.BuiltinFunc]bool{}
	for _, p := range spec.Programs {
		for _, i := range p.Instructions {
			if i.IsBuiltinCall() {
				helpers[asm.BuiltinFunc(i.Constant)] = true
			}
		}
	}
	for _, h := range slices.Sorted(maps.Keys(helpers)) {
		out = append(out, Feature{Group: "helper", Name: helperName(h), Err: features.HaveProgramHelper(ebpf.XDP, h)})
	}
	return append(out,
		Feature{Group: "flag", Name: "mmapable arrays", Err: features.HaveMapFlag(features.BPF_F_MMAPABLE)},
		Feature{Group: "flag", Name: "XDP in several buffers", Err: haveFrags(spec.Programs[bpf.TurnstoneProgTurnstone].Flags)},
	), nil
}

// helperName is what the kernel calls a helper.
func helperName(h asm.BuiltinFunc) string {
	var b strings.Builder
	b.WriteString("bpf")
	for _, r := range strings.TrimPrefix(h.String(), "Fn") {
		if r >= 'A' && r <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(r)
	}
	return strings.ToLower(b.String())
}

// haveFrags says whether the kernel takes programs with the flags of ours.
func haveFrags(flags uint32) error {
	p, err := ebpf.NewProgramWithOptions(&ebpf.ProgramSpec{
		Type: ebpf.XDP, Flags: flags, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	}, ebpf.ProgramOptions{LogDisabled: true})
	switch {
	case err == nil:
		return p.Close()
	case errors.Is(err, unix.EINVAL):
		return ebpf.ErrNotSupported
	}
	return err
}

// Loaded is what came of a trial.
type Loaded struct {
	Instructions uint32 // that the verifier went through, 0 where the kernel does not say
	Compiled     bool   // the program runs as machine code; false also where the kernel does not say
	Clock        error  // why programs and this process do not read one boot-time clock, nil if they do
}

// Try loads the program as for c, with maps of the smallest size, and lets it go. Nothing is pinned or attached.
func Try(c Config) (l Loaded, err error) {
	_ = rlimit.RemoveMemlock()
	spec, err := blueprint(Sizes{Channels: 1, Allocations: 1, Listeners: 1}, (&Datapath{config: c}).settings())
	if err != nil {
		return l, err
	}
	var o bpf.TurnstoneObjects
	if err := spec.LoadAndAssign(&o, nil); err != nil {
		return l, fmt.Errorf("load the program: %w", err)
	}
	if info, err := o.Turnstone.Info(); err == nil {
		l.Instructions, _ = info.VerifiedInstructions()
		_, err := info.JitedSize()
		l.Compiled = err == nil
	}
	l.Clock = calibrate(o.BootClock)
	return l, o.Close()
}

// MapBytes is about how much memory the kernel sets aside for maps of sizes.
func MapBytes(s Sizes) (sum uint64, err error) {
	spec, err := blueprint(s, Settings{})
	if err != nil {
		return 0, err
	}
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return 0, fmt.Errorf("count the CPUs: %w", err)
	}
	for _, m := range spec.Maps {
		n, value := uint64(m.MaxEntries), uint64(m.ValueSize+7)&^7
		switch m.Type {
		case ebpf.Hash: // elements with their header, one for each CPU to spare, and buckets of 16 bytes
			sum += (n+uint64(cpus))*(hashHeader+uint64(m.KeySize+7)&^7+value) + 16<<bits.Len64(n-1)
		case ebpf.PerCPUArray:
			sum += n * value * uint64(cpus)
		default:
			sum += n * value
		}
	}
	return sum, nil
}

// hashHeader is the size of the kernel's struct htab_elem without its key, in bytes.
const hashHeader = 48

// Candidate is an interface the configuration asks the program to be on.
type Candidate struct {
	Link     Link
	Driver   string    // empty where the kernel does not say
	Modes    []XDPMode // to try in order; none where Link is unfit
	Attached []Attached
	VLANs    []uint16 // tags that frames of ours have on it
}

// Attached is a program that is on an interface.
type Attached struct {
	Mode    XDPMode
	Program uint32 // id
	Name    string // empty where the kernel does not say: ids need CAP_SYS_ADMIN
	Owner   Owner
}

// Owner is who a program belongs to.
type Owner string

// Owners of programs.
const (
	OwnerThis    Owner = "this instance"
	OwnerOther   Owner = "another"
	OwnerUnknown Owner = "unknown" // the pins cannot be read
)

// Candidates are the interfaces that a daemon with c would ask to take the program, by ifindex. Names that
// no interface has are missing. It attaches nothing and needs no capability.
func Candidates(c Config) (out []Candidate, err error) {
	r, err := NewRouter()
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, r.Close()) }()
	d := &Datapath{config: c, router: r}
	own, readable := pinnedPrograms(cmp.Or(c.Root, DefaultRoot), c.Instance)
	for _, l := range d.links() {
		one := Candidate{Link: l, VLANs: d.tags(l.Index)}
		if l.Unfit == "" {
			one.Modes = (&attachments{wish: c.Mode}).modes(&attachment{link: l})
		}
		one.Driver, _ = r.Driver(l.Index) // some have none
		on, err := r.XDP(l.Index)
		if err != nil {
			return nil, err
		}
		for _, x := range on {
			a := Attached{Mode: x.Mode, Program: x.Program, Name: programName(x.Program), Owner: OwnerOther}
			switch {
			case own[l.Index] == x.Program:
				a.Owner = OwnerThis
			case !readable:
				a.Owner = OwnerUnknown
			}
			one.Attached = append(one.Attached, a)
		}
		out = append(out, one)
	}
	slices.SortFunc(out, func(a, b Candidate) int { return cmp.Compare(a.Link.Index, b.Link.Index) })
	return out, nil
}

// tags are those of the VLAN devices over an interface that hold addresses of the configuration.
func (d *Datapath) tags(index int) (tags []uint16) {
	add := func(l Link, ok bool) {
		if ok && l.Kind == LinkVLAN && l.Parent == index && !slices.Contains(tags, l.VLAN) {
			tags = append(tags, l.VLAN)
		}
	}
	for _, name := range d.config.Interfaces {
		add(d.router.LinkByName(name))
	}
	for _, l := range d.config.Listeners {
		add(d.router.LinkByAddress(l.Addr()))
	}
	for _, a := range d.config.Relays {
		add(d.router.LinkByAddress(a))
	}
	return tags
}

// pinnedPrograms are the programs behind the links an instance has pinned, by ifindex.
func pinnedPrograms(root, instance string) (programs map[int]uint32, readable bool) {
	p := &pins{dir: filepath.Join(root, instance)}
	indexes, err := p.links()
	if err != nil {
		return nil, errors.Is(err, fs.ErrNotExist)
	}
	programs, readable = map[int]uint32{}, true
	for _, i := range indexes {
		l, err := link.LoadPinnedLink(p.link(i), nil)
		if err != nil {
			readable = false
			continue
		}
		if info, err := l.Info(); err == nil {
			programs[i] = uint32(info.Program)
		}
		_ = l.Close()
	}
	return programs, readable
}

func programName(id uint32) string {
	p, err := ebpf.NewProgramFromID(ebpf.ProgramID(id))
	if err != nil {
		return ""
	}
	defer p.Close()
	info, err := p.Info()
	if err != nil {
		return ""
	}
	return info.Name
}
