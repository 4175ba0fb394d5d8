package kernel

import (
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"turnstone/bpf"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// DefaultRoot is where instances have their pins.
const DefaultRoot = "/sys/fs/bpf/turnstone"

// pins are the names under which the kernel keeps maps, programs and links of an instance:
//
//	ROOT/INSTANCE/v<layout>/<map>, program
//	ROOT/INSTANCE/link-<ifindex>
//
// Whoever holds the lock on the instance's directory may change them.
type pins struct {
	dir  string
	lock *os.File
}

// InUseError says that another process has the instance.
type InUseError struct{ Dir string }

func (e *InUseError) Error() string {
	return fmt.Sprintf("%s is held by another turnstone: give this one another kernel.instance", e.Dir)
}

// openPins makes the directory of an instance, if it is not there, and locks it.
func openPins(root, instance string) (*pins, error) {
	if instance == "" || strings.ContainsAny(instance, "/.") {
		return nil, fmt.Errorf("kernel instance %q: a name without dots and slashes is wanted", instance)
	}
	dir := filepath.Join(root, instance)
	if !onBPF(root) { // a service manager may have put it where its parent is something else
		if err := mountBPF(filepath.Dir(root)); err != nil {
			return nil, err
		}
	}
	// Instances of several users may stand side by side: the way to them is open, they are not.
	err := os.MkdirAll(root, 0o711)
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return nil, fmt.Errorf("make the directory of pins: %w", err)
	}
	lock, err := lockDirectory(dir)
	if err != nil {
		return nil, err
	}
	return &pins{dir: dir, lock: lock}, nil
}

func lockDirectory(dir string) (*os.File, error) {
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("open the directory of pins: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(&InUseError{dir}, lock.Close())
	}
	return lock, nil
}

// relock takes the lock anew where somebody removed the directory that was locked.
func (p *pins) relock() error {
	held, err := p.lock.Stat()
	if err != nil {
		return fmt.Errorf("look at the directory of pins: %w", err)
	}
	if now, err := os.Stat(p.dir); err == nil && os.SameFile(held, now) {
		return nil
	}
	if err := os.MkdirAll(p.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory of pins: %w", err)
	}
	lock, err := lockDirectory(p.dir)
	if err != nil {
		return err
	}
	err = p.lock.Close()
	p.lock = lock
	return err
}

// onBPF says whether dir is there and in a BPF file system.
func onBPF(dir string) bool {
	var fs unix.Statfs_t
	return unix.Statfs(dir, &fs) == nil && fs.Type == unix.BPF_FS_MAGIC
}

// mountBPF mounts a BPF file system at dir unless one is there.
func mountBPF(dir string) error {
	if onBPF(dir) {
		return nil
	}
	if err := unix.Mount("bpf", dir, "bpf", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0711"); err != nil {
		return fmt.Errorf("%s is no BPF file system, and to mount one fails (%w): mount -t bpf bpf %s", dir, err, dir)
	}
	return nil
}

func (p *pins) close() error { return p.lock.Close() }

// remove removes all that is pinned, and the directory where it is this user's to remove: a service manager makes
// it in one that is root's.
func (p *pins) remove() error {
	list, err := os.ReadDir(p.dir)
	if err != nil {
		return fmt.Errorf("list pins: %w", err)
	}
	var errs []error
	for _, e := range list {
		errs = append(errs, os.RemoveAll(filepath.Join(p.dir, e.Name())))
	}
	if err := os.Remove(p.dir); err != nil && !errors.Is(err, os.ErrPermission) {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// version is the directory of a layout.
func (p *pins) version(layout [32]byte) string {
	return filepath.Join(p.dir, "v"+hex.EncodeToString(layout[:8]))
}

// others are the directories of other layouts than this.
func (p *pins) others(layout [32]byte) ([]string, error) {
	list, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var out []string
	for _, e := range list {
		dir := filepath.Join(p.dir, e.Name())
		if e.IsDir() && strings.HasPrefix(e.Name(), "v") && dir != p.version(layout) {
			out = append(out, dir)
		}
	}
	return out, nil
}

// link is the name of the link on an interface.
func (p *pins) link(ifindex int) string {
	return filepath.Join(p.dir, "link-"+strconv.Itoa(ifindex))
}

// links are the interfaces links are pinned for.
func (p *pins) links() ([]int, error) {
	list, err := os.ReadDir(p.dir)
	if err != nil {
		return nil, fmt.Errorf("list pins: %w", err)
	}
	var out []int
	for _, e := range list {
		if n, ok := strings.CutPrefix(e.Name(), "link-"); ok {
			if i, err := strconv.Atoi(n); err == nil {
				out = append(out, i)
			}
		}
	}
	return out, nil
}

// removeVersion unpins a layout. What it pinned lives on while a link or a process has it.
func removeVersion(dir string) error {
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("unpin %s: %w", dir, err)
	}
	return nil
}

// programPin is the name of the program beside its maps.
const programPin = "program"

// open loads the program with the maps pinned for its layout, which it makes where they are not there. fresh
// says that they were not.
func (p *pins) open(spec *ebpf.CollectionSpec, layout [32]byte) (o *bpf.TurnstoneObjects, fresh bool, err error) {
	dir := p.version(layout)
	_, err = os.Stat(filepath.Join(dir, bpf.TurnstoneMapMeta))
	fresh = errors.Is(err, os.ErrNotExist)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fresh, fmt.Errorf("make the directory of maps: %w", err)
	}
	for name, m := range spec.Maps {
		if name[0] != '.' {
			m.Pinning = ebpf.PinByName
		}
	}
	o = new(bpf.TurnstoneObjects)
	options := &ebpf.CollectionOptions{Maps: ebpf.MapOptions{PinPath: dir}}
	err = spec.LoadAndAssign(o, options)
	if errors.Is(err, ebpf.ErrMapIncompatible) { // somebody pinned something else there
		if err := removeVersion(dir); err != nil {
			return nil, fresh, err
		}
		return p.open(spec, layout)
	}
	if err != nil {
		return nil, fresh, loadFailure(err)
	}
	return o, fresh, p.pinProgram(o.Turnstone, layout)
}

// loadFailure says what to do about a kernel that does not take the program.
func loadFailure(err error) error {
	switch {
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("load the program: the kernel has no BPF, or what this runs in hides it: %w", unix.ENOSYS)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("load the program: %w: it takes CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, in a place that does not forbid bpf(2)", unix.EPERM)
	}
	return fmt.Errorf("load the program: %w", err)
}

// pinProgram puts the program beside its maps, in place of the one before.
func (p *pins) pinProgram(prog *ebpf.Program, layout [32]byte) error {
	at := filepath.Join(p.version(layout), programPin)
	if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("unpin the program before: %w", err)
	}
	if err := prog.Pin(at); err != nil {
		return fmt.Errorf("pin the program: %w", err)
	}
	return nil
}

// repin pins again what somebody unpinned, and says how many names that were.
func (p *pins) repin(o *bpf.TurnstoneObjects, layout [32]byte) (n uint64, err error) {
	if err := p.relock(); err != nil {
		return 0, err
	}
	dir := p.version(layout)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return 0, fmt.Errorf("make the directory of maps: %w", err)
	}
	var errs []error
	for name, m := range mapsOf(o) {
		at := filepath.Join(dir, name)
		if _, err := os.Stat(at); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		n++
		clone, err := m.Clone() // a map object remembers where it was pinned
		if err == nil {
			err = errors.Join(clone.Pin(at), clone.Close())
		}
		errs = append(errs, err)
	}
	if _, err := os.Stat(filepath.Join(dir, programPin)); errors.Is(err, os.ErrNotExist) {
		n++
		errs = append(errs, p.pinProgram(o.Turnstone, layout))
	}
	return n, errors.Join(errs...)
}

// mapsOf names the maps of o.
func mapsOf(o *bpf.TurnstoneObjects) map[string]*ebpf.Map {
	return map[string]*ebpf.Map{
		bpf.TurnstoneMapIndex4: o.Index4, bpf.TurnstoneMapIndex6: o.Index6, bpf.TurnstoneMapFlows: o.Flows,
		bpf.TurnstoneMapOwners: o.Owners, bpf.TurnstoneMapUsage: o.Usage, bpf.TurnstoneMapMeters: o.Meters,
		bpf.TurnstoneMapGateways: o.Gateways, bpf.TurnstoneMapNextHops: o.NextHops, bpf.TurnstoneMapEgress: o.Egress,
		bpf.TurnstoneMapInterfaces: o.Interfaces, bpf.TurnstoneMapCpus: o.Cpus, bpf.TurnstoneMapMeta: o.Meta,
	}
}
