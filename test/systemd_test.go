//go:build systemd

package test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstone/internal/testenv"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// What scripts/systemd hands over: the root file system of a host with systemd, and a directory with the package.
const (
	systemdRoot     = "TURNSTONE_SYSTEMD"
	systemdPackages = "TURNSTONE_PACKAGES"
)

// machine is a host of its own with systemd as process 1, in a container. What is written to its root file system goes
// with it.
type machine struct {
	t     *testing.T
	init  int // its process 1, as this machine counts
	space *space
}

// boot makes a machine with nothing but lo, and a BPF file system that is root's alone, as systemd mounts it on a host.
func boot(t *testing.T) *machine {
	t.Helper()
	testenv.Root(t)
	pins := t.TempDir()
	if err := unix.Mount("bpf", pins, "bpf", 0, "mode=0700"); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(pins, unix.MNT_DETACH) })
	console, err := os.Create(filepath.Join(t.TempDir(), "console"))
	if err != nil {
		t.Fatal(err)
	}
	defer console.Close()
	cmd := exec.Command(testenv.Tool(t, "systemd-nspawn"), "--directory="+os.Getenv(systemdRoot), "--volatile=overlay", "--boot",
		"--private-network", "--register=no", "--keep-unit", "--link-journal=no", "--console=read-only", "--capability=all",
		"--system-call-filter=bpf perf_event_open", "--bind="+pins+":/sys/fs/bpf", "--bind-ro="+os.Getenv(systemdPackages)+":/packages")
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { defer close(ended); _ = cmd.Wait() }()
	m := &machine{t: t}
	t.Cleanup(func() {
		if out, _ := os.ReadFile(console.Name()); t.Failed() {
			t.Logf("the console:\n%s", out)
		}
		_ = cmd.Process.Signal(syscall.SIGTERM) // it has systemd end
		select {
		case <-ended:
		case <-time.After(patience):
			_ = cmd.Process.Kill()
			<-ended
		}
	})
	eventually(t, "the machine is up", func() error {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid))
		if err != nil {
			return err
		}
		if m.init, err = strconv.Atoi(strings.TrimSpace(string(b))); err != nil {
			return err
		}
		out, _ := m.run("systemctl is-system-running")
		if state := strings.TrimSpace(out); state != "running" && state != "degraded" {
			return errors.New(out)
		}
		return nil
	})
	m.space = &space{t: t, mounts: -1}
	if m.space.net, err = netns.GetFromPid(m.init); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.space.net.Close() })
	return m
}

// run runs a shell command as root of the machine.
func (m *machine) run(command string) (string, error) {
	cmd := exec.Command("nsenter", "--target", strconv.Itoa(m.init), "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup", "/bin/sh", "-ec", command)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "DEBIAN_FRONTEND=noninteractive", "HOME=/root"}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (m *machine) mustRun(command string) string {
	m.t.Helper()
	out, err := m.run(command)
	if err != nil {
		log, _ := m.run("systemctl status --no-pager --lines=30 turnstone")
		m.t.Fatalf("%s: %v\n%s\n%s", command, err, out, log)
	}
	return out
}

// want checks what a command writes.
func (m *machine) want(command, want string) {
	m.t.Helper()
	if got := strings.TrimSpace(m.mustRun(command)); got != want {
		m.t.Errorf("%s: got %q, want %q", command, got, want)
	}
}

// write writes a file of the machine, with a directory for it.
func (m *machine) write(name, text string) {
	m.t.Helper()
	m.mustRun(fmt.Sprintf("mkdir -p %s && cat >%s <<'END'\n%s\nEND", filepath.Dir(name), name, text))
}

// pid is of the daemon, as the machine counts, 0 for none.
func (m *machine) pid() string {
	m.t.Helper()
	return strings.TrimSpace(m.mustRun("systemctl show --property MainPID --value turnstone"))
}

func (m *machine) status() status {
	m.t.Helper()
	return decode[status](m.t, m.mustRun("turnstone status -o json"))
}

// carries waits until the kernel has so many flows.
func (m *machine) carries(flows int) {
	m.t.Helper()
	eventually(m.t, fmt.Sprintf("the kernel carries %d flows", flows), func() error {
		st := decode[kernelStatus](m.t, m.mustRun("turnstone kernel status -o json"))
		if st.Lag != 0 || st.Flows < flows || st.Unresolved != 0 {
			return fmt.Errorf("%+v", st)
		}
		return nil
	})
}

// comesBack waits until another process than before is the daemon, and ready.
func (m *machine) comesBack(before string) {
	m.t.Helper()
	eventually(m.t, "the daemon is started again", func() error {
		out, err := m.run("turnstone status -o json")
		if now := m.pid(); err != nil || now == before || now == "0" {
			return fmt.Errorf("%s: %s", now, out)
		}
		return nil
	})
}

// configuration is what the operator writes.
const configuration = `
listen = ["udp://` + labServer4 + `", "udp://127.0.0.1"]
relay-ip = ["` + labRelay4 + `"]
realm = "` + realm + `"
[auth]
users-file = "/var/lib/turnstone/users.toml"
[peers]
allow = ["198.51.100.0/24", "` + labRelay4 + `/32"]
[kernel]
interfaces = ["relay0", "relay1"]
xdp = "native"
`

// TestSystemd installs the package on a host with systemd and operates the service as an operator does, with a call by
// the kernel and one by userspace going on.
func TestSystemd(t *testing.T) {
	m := boot(t)
	t.Log(strings.SplitN(m.mustRun("systemctl --version"), "\n", 2)[0])
	l := &lab{t: t, clients: newSpace(t), relay: m.space, peer: newSpace(t)}
	l.join(l.clients, []string{labClient4 + "/24"}, "relay0", []string{labServer4 + "/24"})
	l.join(l.peer, []string{labPeer4 + "/24"}, "relay1", []string{labRelay4 + "/24"})

	m.install()
	m.start()
	byKernel := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, 1)
	byUserspace := loopback(t, m.space).dial("127.0.0.1:0", server4, labRelay4+":0", 0x4002, 1)
	m.carries(3)
	for c, want := range map[*talker]uint64{byKernel: 0, byUserspace: 100} {
		before := m.status().ToPeer.Packets
		c.talk(100, func(int) int { return 160 })
		if got := m.status().ToPeer.Packets - before; got != want {
			t.Errorf("channel %#x: userspace relayed %d of 100 packets, want %d", c.channel, got, want)
		}
	}
	m.restarts(byKernel, byUserspace)
	m.isUpgraded(byKernel, byUserspace)
	m.reloads(byKernel, byUserspace)
	m.isWatched(byKernel)
	m.crashes(byKernel)
	m.opensPrivilegedPorts(l)
	m.runsWithoutKernel()
	m.removes()
}

// during has calls go on while f runs, and checks that nothing is lost of them.
func (m *machine) during(what string, f func(), calls ...*talker) {
	m.t.Helper()
	var stops []func()
	var said []uint64
	for _, c := range calls {
		said = append(said, c.sent)
		stops = append(stops, c.steady(5*time.Millisecond))
	}
	f()
	for i, stop := range stops {
		stop()
		calls[i].wantNoLoss()
		m.t.Logf("%s: channel %#x: %d packets there and back, none lost", what, calls[i].channel, calls[i].sent-said[i])
	}
}

func (m *machine) install() {
	m.t.Helper()
	m.mustRun("apt-get install --yes /packages/*.deb")
	m.want("systemctl is-enabled turnstone || true", "disabled")
	m.want("systemctl is-active turnstone || true", "inactive")
	m.want("man --where turnstone-serve", "/usr/share/man/man1/turnstone-serve.1.gz")
}

func (m *machine) start() {
	m.t.Helper()
	m.write("/etc/turnstone/turnstone.toml", configuration)
	m.mustRun("echo '" + password + "' | turnstone user add " + username + " --config /etc/turnstone/turnstone.toml")
	m.want("stat --format '%U %a' /var/lib/turnstone/* | sort --unique", "turnstone 600")
	m.mustRun("turnstone check-config --config /etc/turnstone/turnstone.toml")
	m.mustRun("systemctl enable --now turnstone")
	m.want("systemctl is-active turnstone", "active")
	m.want("systemctl show --property StatusText --value turnstone", "0 allocations, relayed by kernel, userspace for what it passes up")
	process := "/proc/" + m.pid()
	m.want("stat --format %U "+process, "turnstone")
	m.want("grep CapEff: "+process+"/status", "CapEff:\t000000c000001000") // CAP_NET_ADMIN, CAP_PERFMON, CAP_BPF
	m.want("stat --format '%U %a' /var/lib/turnstone /sys/fs/bpf/turnstone/default | sort --unique", "turnstone 700")
	m.want("ls "+process+"/root/sys/fs/bpf", "turnstone")
	out := m.mustRun("systemd-analyze security --no-pager --threshold=20 turnstone")
	lines := strings.Split(strings.TrimSpace(out), "\n")
	m.t.Log(lines[len(lines)-1])
	if st := m.status(); st.Kernel != "kernel, userspace for what it passes up" {
		m.t.Errorf("turnstone status: the kernel is %q", st.Kernel)
	}
	m.want("turnstone doctor --config /etc/turnstone/turnstone.toml -o jsonl >/run/doctor; grep namespaces /run/doctor || true", "")
}

func (m *machine) restarts(calls ...*talker) {
	m.t.Helper()
	m.during("three restarts", func() {
		for range 3 {
			before := m.pid()
			m.mustRun("systemctl restart turnstone")
			m.comesBack(before)
		}
	}, calls...)
	if got := m.status().Allocations; got != len(calls) {
		m.t.Errorf("got %d allocations after the restarts, want %d", got, len(calls))
	}
}

// isUpgraded has the package installed again, as a newer one would be.
func (m *machine) isUpgraded(calls ...*talker) {
	m.t.Helper()
	m.during("an upgrade", func() {
		before := m.pid()
		m.mustRun("apt-get install --yes --reinstall /packages/*.deb")
		m.comesBack(before)
	}, calls...)
	m.want("systemctl is-enabled turnstone", "enabled")
}

func (m *machine) reloads(calls ...*talker) {
	m.t.Helper()
	const file = "/etc/turnstone/turnstone.toml"
	m.during("two reloads", func() {
		before := m.pid()
		m.write(file, configuration+"[limits]\nmax-allocations-per-user = 50")
		m.mustRun("systemctl reload turnstone")
		m.write(file, configuration+"[limits]\nmax-allocations-per-user = -1")
		if out, err := m.run("systemctl reload turnstone"); err == nil {
			m.t.Errorf("a configuration that is wrong is reloaded: %s", out)
		}
		m.want("systemctl is-active turnstone", "active")
		m.write(file, configuration)
		m.mustRun("systemctl reload turnstone")
		if now := m.pid(); now != before {
			m.t.Errorf("after the reloads the daemon is process %s, want %s", now, before)
		}
	}, calls...)
}

// isWatched stops the daemon without ending it: systemd ends it, and starts another. What the kernel relays goes on.
func (m *machine) isWatched(call *talker) {
	m.t.Helper()
	m.write("/run/systemd/system/turnstone.service.d/watchdog.conf", "[Service]\nWatchdogSec=2s")
	m.mustRun("systemctl daemon-reload && systemctl restart turnstone")
	m.during("a daemon that hangs", func() {
		before := m.pid()
		m.mustRun("kill -STOP " + before)
		m.comesBack(before)
	}, call)
	if out := m.mustRun("journalctl --unit turnstone --no-pager"); !strings.Contains(out, "Watchdog timeout") {
		m.t.Error("the journal does not say that the daemon hung")
	}
	m.mustRun("rm /run/systemd/system/turnstone.service.d/watchdog.conf && systemctl daemon-reload && systemctl restart turnstone")
}

func (m *machine) crashes(call *talker) {
	m.t.Helper()
	m.during("kill -9", func() {
		before := m.pid()
		m.mustRun("kill -KILL " + before)
		m.comesBack(before)
	}, call)
	if warnings := m.mustRun("journalctl --unit turnstone --no-pager --priority warning --output cat _COMM=turnstone"); strings.Contains(warnings, `"level":"info"`) {
		m.t.Errorf("the journal takes all for warnings:\n%s", warnings)
	}
}

// opensPrivilegedPorts has the socket unit open a port that the daemon may not, and start it.
func (m *machine) opensPrivilegedPorts(l *lab) {
	m.t.Helper()
	const port = labServer4 + ":443"
	m.write("/etc/turnstone/turnstone.toml", strings.Replace(configuration, "listen = [", `listen = ["udp://`+port+`", "tcp://`+port+`", `, 1))
	m.write("/etc/systemd/system/turnstone.socket.d/addresses.conf",
		"[Socket]\nListenDatagram=\nListenStream=\nListenDatagram="+port+"\nListenStream="+port)
	m.mustRun("systemctl daemon-reload && systemctl stop turnstone && systemctl enable --now turnstone.socket")
	m.want("systemctl is-active turnstone || true", "inactive")
	c := newClient(m.t, l.clients, labClient4+":0", port) // its first request starts the service
	c.allocate()
	m.want("systemctl is-active turnstone", "active")
	m.mustRun("systemctl disable --now turnstone.socket")
	m.mustRun("rm -r /etc/systemd/system/turnstone.socket.d")
}

func (m *machine) runsWithoutKernel() {
	m.t.Helper()
	m.write("/etc/turnstone/turnstone.toml", configuration+`mode = "off"`)
	m.mustRun("systemctl restart turnstone")
	m.want("systemctl show --property StatusText --value turnstone | grep -o 'relayed by.*'", "relayed by userspace: kernel.mode is off")
	m.want("ls /sys/fs/bpf/turnstone/default", "")
	m.write("/etc/turnstone/turnstone.toml", configuration)
	m.mustRun("systemctl restart turnstone")
	m.want("systemctl show --property StatusText --value turnstone | grep -o 'relayed by.*'", "relayed by kernel, userspace for what it passes up")
}

// removes removes the package. What the operator wrote and what the daemon recorded stay.
func (m *machine) removes() {
	m.t.Helper()
	m.mustRun("apt-get remove --yes turnstone")
	m.want("systemctl is-active turnstone || true", "inactive")
	m.want("ls -d /sys/fs/bpf/turnstone || true", "ls: cannot access '/sys/fs/bpf/turnstone': No such file or directory")
	m.want("ip -brief link show type veth | grep --count xdp || true", "0")
	m.want("ls /etc/turnstone /var/lib/turnstone/log.db", "/var/lib/turnstone/log.db\n\n/etc/turnstone:\nturnstone.toml")
	m.mustRun("apt-get purge --yes turnstone")
	m.want("ls /etc/turnstone /var/lib/turnstone/log.db || true", "ls: cannot access '/etc/turnstone': No such file or directory\n/var/lib/turnstone/log.db")
	m.want("systemctl list-unit-files --no-legend 'turnstone*' || true", "")
}
