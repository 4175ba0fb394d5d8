package doctor

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"turnstone/kernel"

	"github.com/cilium/ebpf"
)

// bad is how serious it is that the kernel cannot relay: userspace can, unless the kernel is required.
func (w *Wanted) bad() Result {
	if w.Mode == "required" {
		return Fail
	}
	return Warn
}

func (w *Wanted) off() bool { return w.Mode == "off" }

// checkBPF judges whether the kernel takes the program.
func checkBPF(f *Facts) []Row {
	if f.off() {
		return []Row{{Check: "kernel-mode", Result: Skip, Seen: "kernel.mode is off: userspace relays everything"}}
	}
	rows := []Row{checkRelease(f)}
	rows = append(rows, checkFeatures(f)...)
	return append(rows, checkLoad(f), checkBootClock(f), checkBTF(f), checkJIT(f), checkCapabilities(f), checkBPFFS(f), checkMemory(f))
}

// Kernels: the first that has all that the program needs, and the first it is tested on.
var firstAble, firstTested = [2]int{5, 18}, [2]int{6, 1}

const newerKernel = "run Linux 6.1 or later"

func checkRelease(f *Facts) Row {
	const check = "kernel"
	if f.Kernel.Release.Err != nil {
		return skip(check, f.Kernel.Release.Err)
	}
	r := ok(check, "Linux %s", f.Kernel.Release.Value)
	var v [2]int
	if _, err := fmt.Sscanf(f.Kernel.Release.Value, "%d.%d", &v[0], &v[1]); err != nil {
		return skip(check, fmt.Errorf("%q is no version", f.Kernel.Release.Value))
	}
	switch {
	case slices.Compare(v[:], firstAble[:]) < 0:
		return r.as(f.bad(), newerKernel)
	case slices.Compare(v[:], firstTested[:]) < 0:
		return r.as(Warn, newerKernel+": older ones are not tested")
	}
	return r
}

// checkFeatures has a row for each group of features.
func checkFeatures(f *Facts) (rows []Row) {
	if f.Kernel.Features.Err != nil {
		return []Row{skip("bpf-features", f.Kernel.Features.Err)}
	}
	groups := map[string][]kernel.Feature{}
	var order []string
	for _, one := range f.Kernel.Features.Value {
		if groups[one.Group] == nil {
			order = append(order, one.Group)
		}
		groups[one.Group] = append(groups[one.Group], one)
	}
	for _, group := range order {
		rows = append(rows, checkGroup(f, "bpf-"+group, groups[group]))
	}
	return rows
}

func checkGroup(f *Facts, check string, group []kernel.Feature) Row {
	var there, missing []string
	var unknown error
	for _, one := range group {
		switch {
		case one.Err == nil:
			there = append(there, one.Name)
		case errors.Is(one.Err, ebpf.ErrNotSupported):
			missing = append(missing, one.Name)
		default:
			unknown = one.Err
		}
	}
	switch {
	case len(missing) > 0:
		return ok(check, "the kernel lacks %s", strings.Join(missing, ", ")).as(f.bad(), newerKernel)
	case unknown != nil:
		return skip(check, unknown, "CAP_BPF", "CAP_NET_ADMIN")
	}
	if len(there) > mostNamed {
		return ok(check, "all %d that are needed", len(there))
	}
	return ok(check, "%s", strings.Join(there, ", "))
}

func checkLoad(f *Facts) Row {
	const check = "bpf-load"
	l := f.Kernel.Loaded
	switch {
	case l.Err == nil && l.Value.Instructions == 0:
		return ok(check, "the kernel takes the program")
	case l.Err == nil:
		return ok(check, "the kernel takes the program: %d instructions verified", l.Value.Instructions)
	case errors.Is(l.Err, fs.ErrPermission):
		return skip(check, l.Err, "CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON")
	}
	return ok(check, "the kernel refuses the program: %v", l.Err).as(f.bad(), newerKernel+", and report this with the kernel's version")
}

func checkBootClock(f *Facts) Row {
	const check, remedy = "boot-clock", "start the daemon outside the time namespace (unshare --time, a container's --time-offset): deadlines are shared with the kernel"
	switch {
	case f.Process.BootOffset.Err == nil && f.Process.BootOffset.Value != 0:
		return ok(check, "a time namespace with the boot-time clock %v off", f.Process.BootOffset.Value).as(f.bad(), remedy)
	case f.Kernel.Loaded.Err == nil && f.Kernel.Loaded.Value.Clock != nil:
		return ok(check, "%v", f.Kernel.Loaded.Value.Clock).as(f.bad(), remedy)
	case f.Process.BootOffset.Err != nil && f.Kernel.Loaded.Err != nil:
		return skip(check, f.Process.BootOffset.Err)
	}
	return ok(check, "the kernel's")
}

func checkBTF(f *Facts) Row {
	const check = "btf"
	switch {
	case f.Kernel.BTF.Err != nil:
		return skip(check, f.Kernel.BTF.Err)
	case !f.Kernel.BTF.Value:
		return ok(check, "no /sys/kernel/btf/vmlinux").as(Warn, "relaying works without it; to see kernel types in bpftool, run a kernel with CONFIG_DEBUG_INFO_BTF")
	}
	return ok(check, "present")
}

func checkJIT(f *Facts) Row {
	const check = "bpf-jit"
	switch {
	case f.Kernel.Loaded.Err == nil && f.Kernel.Loaded.Value.Compiled:
		return ok(check, "the program is compiled")
	case f.Kernel.JIT.Err != nil:
		return skip(check, f.Kernel.JIT.Err)
	case f.Kernel.JIT.Value == 0:
		return ok(check, "off: programs are interpreted").as(Warn, "sysctl -w net.core.bpf_jit_enable=1")
	}
	return ok(check, "on")
}

// Capabilities by number (capability.h).
const (
	capNetBindService = 10
	capNetAdmin       = 12
	capSysAdmin       = 21
	capSysResource    = 24
	capPerfmon        = 38
	capBPF            = 39
)

func (p *Process) has(capability int) bool {
	return p.Capabilities.Err == nil && p.Capabilities.Value>>capability&1 != 0
}

// who is the process that a row is about.
func (p *Process) who() string {
	switch p.PID {
	case 0:
		return "this command"
	case unseen:
		return "the daemon"
	}
	return fmt.Sprintf("the daemon (pid %d)", p.PID)
}

func checkCapabilities(f *Facts) Row {
	const check = "capabilities"
	if f.Process.Capabilities.Err != nil {
		return skip(check, f.Process.Capabilities.Err)
	}
	var missing []string
	for _, c := range []struct {
		name   string
		number int
	}{{"CAP_BPF", capBPF}, {"CAP_NET_ADMIN", capNetAdmin}, {"CAP_PERFMON", capPerfmon}} {
		older := f.Process.has(capSysAdmin) && c.number != capNetAdmin // it stands for those split off from it
		if !f.Process.has(c.number) && !older {
			missing = append(missing, c.name)
		}
	}
	if len(missing) == 0 {
		return ok(check, "%s has CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON", f.Process.who())
	}
	return ok(check, "%s lacks %s", f.Process.who(), strings.Join(missing, ", ")).
		as(f.bad(), "AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON in the unit, or setcap cap_bpf,cap_net_admin,cap_perfmon+ep on the binary")
}

func checkBPFFS(f *Facts) Row {
	const check, mount = "bpffs", "mount -t bpf bpf /sys/fs/bpf"
	b, private := f.Kernel.BPFFS, f.Process.PrivateMount.Err == nil && f.Process.PrivateMount.Value
	switch {
	case b.Err != nil:
		return skip(check, b.Err)
	case !b.Value.Mounted && private:
		return ok(check, "not mounted here, in a mount namespace of its own: pins would end with the daemon").
			as(f.bad(), "enter the network namespace alone, nsenter --net=/run/netns/NAME instead of ip netns exec; in a container mount the host's /sys/fs/bpf")
	case !b.Value.Mounted && f.Process.has(capSysAdmin):
		return ok(check, "not mounted: the daemon mounts it")
	case !b.Value.Mounted:
		return ok(check, "not mounted, and %s may not mount it", f.Process.who()).as(f.bad(), mount)
	case errors.Is(b.Value.Writes, fs.ErrPermission):
		return ok(check, "mounted, and nothing can be pinned in it by this user").
			as(f.bad(), "install -d -o USER -m 0700 /sys/fs/bpf/turnstone/%s, with the daemon's user", f.Instance)
	case b.Value.Writes != nil:
		return ok(check, "mounted, and nothing can be pinned in it: %v", b.Value.Writes).as(f.bad(), "mount -o remount,rw /sys/fs/bpf")
	}
	return ok(check, "mounted and writeable")
}

// checkMemory holds the maps against the control group that is charged for them.
func checkMemory(f *Facts) Row {
	const check = "memory"
	m, limit := f.Kernel.MapBytes, f.Process.Memory
	switch {
	case m.Err != nil:
		return skip(check, m.Err)
	case errors.Is(limit.Err, errNothing):
		return ok(check, "the maps take %s; no control group limits %s", size(m.Value), f.Process.who())
	case limit.Err != nil:
		return skip(check, limit.Err)
	case m.Value > limit.Value/2:
		return ok(check, "the maps take %s of the %s that the control group of %s may use", size(m.Value), size(limit.Value), f.Process.who()).
			as(Warn, "raise MemoryMax of the unit, or lower kernel.max-channels")
	}
	return ok(check, "the maps take %s of %s", size(m.Value), size(limit.Value))
}

// size is a number of bytes for people.
func size[N int64 | uint64](n N) string {
	switch {
	case n >= 10<<30:
		return fmt.Sprintf("%d GiB", n>>30)
	case n >= 10<<20:
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%d KiB", n>>10)
}
