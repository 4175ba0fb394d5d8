package doctor

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/kernel"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Host is where to look.
type Host struct {
	Socket     string        // of the daemon's admin interface
	Datapath   kernel.Config // as the daemon would have it
	Interfaces []string      // by name, as configured
	Private    []string      // files that hold secrets, besides those in the data directory

	Certificates []certs.Files

	// MemoryLimit is the limit that a file like /proc/self/cgroup leads to, in bytes, false for none.
	MemoryLimit func(cgroup string) (int64, bool)
}

// Gather looks at the host for what w wants of it. What it may not see is a fact that is not known. It changes
// nothing, and attaches no program.
func Gather(ctx context.Context, w Wanted, h Host) *Facts {
	f := &Facts{Wanted: w, Now: time.Now(), Cloud: cloud(dmi)}
	f.Daemon = daemon(ctx, h.Socket)
	if f.Daemon.Err == nil {
		f.Process = processAt(h.Socket, h.MemoryLimit)
	} else {
		f.Process = process(0, h.MemoryLimit)
	}
	if !w.off() {
		f.Kernel = kernelFacts(h.Datapath)
		f.Chains, f.Legacy = known(chains()), known(legacyTables())
	}
	f.Links = known(links(h.Datapath))
	f.Missing = missing(h.Interfaces)
	f.Taken = taken(&f.Daemon, w)
	f.Local, f.Reserved = sysctl("net/ipv4/ip_local_port_range"), sysctl("net/ipv4/ip_local_reserved_ports")
	f.Receive = sysctlNumber("net/core/rmem_max")
	f.Reverse = reverse(f.Links)
	f.Own = known(ownAddresses())
	f.Certificates = certificates(h.Certificates, f.Now)
	f.Clock = known(clock(w.Data))
	f.Disk = known(disk(existing(w.Data)))
	f.DataOwner = access(w.Data, f.Process.PID)
	f.Open = readable(w.Data, h.Private)
	return f
}

// daemon asks the daemon, if one answers.
func daemon(ctx context.Context, socket string) Known[Daemon] {
	client := admin.NewClient(socket)
	st, err := client.Status(ctx)
	if errors.Is(err, admin.ErrUnreachable) && !errors.Is(err, fs.ErrPermission) {
		return Known[Daemon]{Err: errNothing}
	}
	if err != nil {
		return Known[Daemon]{Err: err}
	}
	return Known[Daemon]{Value: Daemon{Status: st, Kernel: known(client.KernelStatus(ctx))}}
}

func kernelFacts(c kernel.Config) (k Kernel) {
	k.Release = release()
	k.Features = known(kernel.Features())
	k.Loaded = known(kernel.Try(c))
	k.MapBytes = known(kernel.MapBytes(c.Sizes))
	k.BTF = present("/sys/kernel/btf/vmlinux")
	k.JIT = sysctlNumber("net/core/bpf_jit_enable")
	k.BPFFS = bpffs(filepath.Join(kernel.DefaultRoot, c.Instance))
	return k
}

func release() Known[string] {
	var u unix.Utsname
	err := unix.Uname(&u)
	return known(text(u.Release[:]), err)
}

func present(file string) Known[bool] {
	_, err := os.Stat(file)
	if errors.Is(err, fs.ErrNotExist) {
		return Known[bool]{}
	}
	return known(err == nil, err)
}

// bpffs looks at the file system of dir, which need not be there.
func bpffs(dir string) Known[BPFFS] {
	root := filepath.Dir(kernel.DefaultRoot)
	var s unix.Statfs_t
	if err := unix.Statfs(root, &s); errors.Is(err, fs.ErrNotExist) {
		return Known[BPFFS]{}
	} else if err != nil {
		return Known[BPFFS]{Err: err}
	}
	if s.Type != unix.BPF_FS_MAGIC {
		return Known[BPFFS]{}
	}
	return Known[BPFFS]{Value: BPFFS{Mounted: true, Writes: unix.Access(existing(dir), unix.W_OK|unix.X_OK)}}
}

// existing is dir, or the directory above it that is there.
func existing(dir string) string {
	dir = filepath.Clean(dir)
	for {
		if _, err := os.Stat(dir); !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir
		}
		dir = filepath.Dir(dir)
	}
}

// links asks for the interfaces of the relay, and their drivers for what they can.
func links(c kernel.Config) (out []Link, err error) {
	list, err := kernel.Candidates(c)
	if err != nil {
		return nil, err
	}
	for _, l := range list {
		name := l.Link.Name
		out = append(out, Link{
			Candidate: l, Abilities: known(abilities(l.Link.Index)), Queues: known(queues(name)), Offloads: known(offloads(name)), CPUs: runtime.NumCPU(),
		})
	}
	return out, nil
}

// missing are the names that no interface has.
func missing(names []string) (out []string) {
	for _, name := range names {
		var none netlink.LinkNotFoundError
		if _, err := netlink.LinkByName(name); errors.As(err, &none) {
			out = append(out, name)
		}
	}
	return out
}

// sysctl reads a setting of this process's network namespace.
func sysctl(name string) Known[string] {
	b, err := os.ReadFile(filepath.Join("/proc/sys", name))
	if errors.Is(err, fs.ErrNotExist) {
		err = fmt.Errorf("%s: %w in this network namespace", strings.ReplaceAll(name, "/", "."), errNothing)
	}
	return known(strings.TrimSpace(string(b)), err)
}

func sysctlNumber(name string) Known[int] {
	s := sysctl(name)
	if s.Err != nil {
		return Known[int]{Err: s.Err}
	}
	return known(strconv.Atoi(s.Value))
}

// reverse is rp_filter of each interface, as it is in force: the larger of its own and that of all.
func reverse(links Known[[]Link]) Known[map[string]int] {
	all := sysctlNumber("net/ipv4/conf/all/rp_filter")
	if err := errors.Join(links.Err, all.Err); err != nil {
		return Known[map[string]int]{Err: err}
	}
	out := map[string]int{}
	for _, l := range links.Value {
		if l.Link.Unfit != kernel.ReasonLoopback {
			out[l.Link.Name] = max(all.Value, sysctlNumber("net/ipv4/conf/"+l.Link.Name+"/rp_filter").Value)
		}
	}
	return Known[map[string]int]{Value: out}
}
