package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/doctor"
	"turnstone/internal/testenv"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// vethSpace is a network namespace with a veth "relay" that has 192.0.2.1. It has no name: it ends with the last
// process in it.
func vethSpace(t *testing.T) netns.NsHandle {
	t.Helper()
	testenv.Root(t)
	var ns netns.NsHandle
	aside(t, func() (err error) {
		if ns, err = netns.New(); err != nil {
			return err
		}
		if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "relay"}, PeerName: "end"}); err != nil {
			return err
		}
		for _, name := range []string{"lo", "relay", "end"} {
			l, err := netlink.LinkByName(name)
			if err == nil {
				err = netlink.LinkSetUp(l)
			}
			if err == nil && name == "relay" {
				err = netlink.AddrAdd(l, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{192, 0, 2, 1})})
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	t.Cleanup(func() { _ = ns.Close() })
	return ns
}

// aside runs f on a thread that ends with it.
func aside(t *testing.T, f func() error) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		done <- f()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// public is a copy of the command that every user can run.
func public(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "doctor")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	path, err := exec.LookPath("turnstone")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(filepath.Join(dir, "turnstone"), b, 0o755)); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "turnstone")
}

// diagnose runs doctor in ns as a user, and yields its exit code and rows by check and interface.
func diagnose(t *testing.T, ns netns.NsHandle, uid uint32, args ...string) (int, map[string]doctor.Row) {
	t.Helper()
	var out, problems bytes.Buffer
	command := "turnstone"
	if uid != 0 {
		command = public(t)
	}
	cmd := exec.Command(command, append([]string{"doctor", "-o", "jsonl"}, args...)...)
	cmd.Stdout, cmd.Stderr, cmd.Dir = &out, &problems, "/"
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	aside(t, func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return cmd.Start()
	})
	err := cmd.Wait()
	if exit := new(exec.ExitError); err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	rows := map[string]doctor.Row{}
	for line := range strings.Lines(out.String()) {
		var r doctor.Row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("read %q: %v", line, err)
		}
		rows[strings.TrimSpace(r.Check+" "+r.Interface)] = r
	}
	if len(rows) == 0 || strings.Contains(problems.String(), "panic") {
		t.Fatalf("doctor %v: got %d rows, %s", args, len(rows), problems.String())
	}
	return cmd.ProcessState.ExitCode(), rows
}

// shows wants a row to have a result, and to have been made of what holds seen.
func shows(t *testing.T, rows map[string]doctor.Row, check string, result doctor.Result, seen string) {
	t.Helper()
	if r, ok := rows[check]; !ok || r.Result != result || !strings.Contains(r.Seen, seen) {
		t.Errorf("%s: got %+v, want %s with %q", check, r, result, seen)
	}
}

// besideKernel are the arguments of a daemon in a vethSpace whose kernel relays.
func besideKernel(data, instance string) []string {
	return []string{
		"--listen", "udp://192.0.2.1:3478", "--data", data, "--metrics", "off", "--kernel", "required", "--kernel-instance", instance,
		"--kernel-max-channels", "100",
	}
}

// startBesideKernel starts such a daemon in ns, and yields what it logs. It ends with the test, and its pins do.
func startBesideKernel(t *testing.T, ns netns.NsHandle, data, instance string) *bytes.Buffer {
	t.Helper()
	log := new(bytes.Buffer)
	daemon := exec.Command("turnstone", append([]string{"serve"}, besideKernel(data, instance)...)...)
	daemon.Stderr = log
	aside(t, func() error {
		if err := netns.Set(ns); err != nil {
			return err
		}
		return daemon.Start()
	})
	t.Cleanup(func() {
		_ = daemon.Process.Kill()
		_ = daemon.Wait()
		if out, err := exec.Command("turnstone", "kernel", "detach", "--kernel-instance", instance, "--data", data).CombinedOutput(); err != nil {
			t.Errorf("detach: %v: %s", err, out)
		}
	})
	return log
}

func TestDoctorBesideTheKernel(t *testing.T) {
	ns := vethSpace(t)
	data, instance := t.TempDir(), fmt.Sprintf("doctor-%d", os.Getpid())
	args := besideKernel(data, instance)
	code, rows := diagnose(t, ns, 0, args...)
	if code != exitGood {
		t.Errorf("before the daemon: exit code %d, want %d: %+v", code, exitGood, rows)
	}
	shows(t, rows, "daemon", doctor.OK, "not running")
	shows(t, rows, "xdp relay", doctor.OK, "generic: a veth")

	log := startBesideKernel(t, ns, data, instance)
	client := admin.NewClient(filepath.Join(data, "admin.sock"))
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		if st, err := client.Status(t.Context()); err == nil && st.Ready {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("no daemon within %v: %s", patience, log.String())
		}
	}
	code, rows = diagnose(t, ns, 0, args...)
	if code != exitGood {
		t.Errorf("with the daemon: exit code %d, want %d: %+v", code, exitGood, rows)
	}
	shows(t, rows, "daemon", doctor.OK, "relayed by kernel")
	shows(t, rows, "xdp relay", doctor.OK, "generic, by the daemon that runs")
	shows(t, rows, "passed-up", doctor.OK, "0 relayed")
	shows(t, rows, "capabilities", doctor.OK, "the daemon (pid")
	if _, there := rows["namespaces"]; there {
		t.Errorf("in the daemon's namespaces: got %+v", rows["namespaces"])
	}

	_, rows = diagnose(t, ns, 0, "--listen", "udp://192.0.2.1:3479", "--data", filepath.Join(data, "second"), "--kernel-instance", instance+"-second")
	shows(t, rows, "xdp relay", doctor.Warn, `another's program "turnstone"`)

	here, err := netns.Get()
	if err != nil {
		t.Fatal(err)
	}
	defer here.Close()
	_, rows = diagnose(t, here, 0, "--listen", "udp://127.0.0.1:3478", "--data", data)
	shows(t, rows, "namespaces", doctor.Warn, "net")
}

func TestDoctorOfNobody(t *testing.T) {
	const nobody = 65534
	ns := vethSpace(t)
	code, rows := diagnose(t, ns, nobody, "--listen", "udp://192.0.2.1:3478", "--data", t.TempDir())
	for check, seen := range map[string]string{
		"bpf-program": "CAP_BPF", "bpf-map": "CAP_BPF", "bpf-helper": "CAP_BPF", "bpf-flag": "CAP_BPF", "bpf-load": "CAP_PERFMON",
		"firewall": "CAP_NET_ADMIN", "daemon": "may not",
	} {
		shows(t, rows, check, doctor.Skip, seen)
		if rows[check].Remedy != "run turnstone doctor as root" {
			t.Errorf("%s: got the remedy %q", check, rows[check].Remedy)
		}
	}
	shows(t, rows, "capabilities", doctor.Warn, "lacks CAP_BPF, CAP_NET_ADMIN, CAP_PERFMON")
	shows(t, rows, "interface relay", doctor.OK, "veth")
	shows(t, rows, "kernel", doctor.OK, "Linux")
	if code == exitFailure || code == exitUsage {
		t.Errorf("exit code %d, want 0 or %d", code, exitMismatch)
	}
}
