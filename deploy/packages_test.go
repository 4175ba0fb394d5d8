package deploy

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"turnstone/internal/testenv"

	"golang.org/x/sys/unix"
)

// host is a copy of this machine's root file system that nothing of which is written to: an overlay that
// goes with the test.
type host struct {
	t    *testing.T
	root string
}

// newHost makes one with a directory at /packages.
func newHost(t *testing.T, packages string) *host {
	t.Helper()
	h := &host{t: t, root: filepath.Join(t.TempDir(), "root")}
	upper := t.TempDir()
	if err := unix.Mount("tmpfs", upper, "tmpfs", 0, ""); err != nil { // an overlay's upper layer is no overlay itself
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(upper, unix.MNT_DETACH) })
	for _, dir := range []string{h.root, filepath.Join(upper, "up"), filepath.Join(upper, "work")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	options := "lowerdir=/,upperdir=" + filepath.Join(upper, "up") + ",workdir=" + filepath.Join(upper, "work")
	if err := unix.Mount("overlay", h.root, "overlay", 0, options); err != nil {
		t.Fatalf("mount: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(h.root, unix.MNT_DETACH) })
	if err := os.CopyFS(filepath.Join(h.root, "packages"), os.DirFS(packages)); err != nil {
		t.Fatal(err)
	}
	return h
}

// run runs a shell command there, in namespaces of its own.
func (h *host) run(command string) (string, error) {
	h.t.Helper()
	cmd := exec.Command("/bin/sh", "-ec", command)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: h.root, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (h *host) mustRun(command string) string {
	h.t.Helper()
	out, err := h.run(command)
	if err != nil {
		h.t.Fatalf("%s: %v\n%s", command, err, out)
	}
	return out
}

// has says whether a file is there.
func (h *host) has(name string) bool {
	_, err := os.Lstat(filepath.Join(h.root, name))
	return err == nil
}

// installed are files of the package, of each sort one.
var installed = []string{
	"usr/bin/turnstone", "etc/turnstone/turnstone.toml", "usr/lib/systemd/system/turnstone.service", "usr/lib/systemd/system/turnstone.socket",
	"usr/lib/sysusers.d/turnstone.conf", "usr/share/man/man1/turnstone.1.gz", "usr/share/man/man1/turnstone-log-verify.1.gz",
	"usr/share/bash-completion/completions/turnstone", "usr/share/zsh/vendor-completions/_turnstone",
	"usr/share/fish/vendor_completions.d/turnstone.fish", "usr/share/doc/turnstone/copyright",
}

// TestPackages builds the packages, installs each, uses what it brought, and removes it. What the operator wrote stays.
func TestPackages(t *testing.T) {
	testenv.Root(t)
	testenv.Tool(t, "dpkg")
	testenv.Tool(t, "rpm")
	testenv.Tool(t, "systemd-sysusers")
	dir := t.TempDir()
	run(t, "../scripts/packages", dir)
	for _, row := range []struct{ name, pattern, install, remove, purge string }{
		{"Deb", "*.deb", "dpkg -i", "dpkg -r turnstone", "dpkg -P turnstone"},
		{"RPM", "*.rpm", "rpm -i --nodeps", "rpm -e turnstone", ""},
	} {
		t.Run(row.name, func(t *testing.T) {
			found, err := filepath.Glob(filepath.Join(dir, row.pattern))
			if err != nil || len(found) != 1 {
				t.Fatalf("packages: got %v, %v, want one", found, err)
			}
			h := newHost(t, dir)
			for _, name := range installed {
				if h.has(name) {
					t.Fatalf("%s is there before", name)
				}
			}
			h.mustRun(row.install + " /packages/" + filepath.Base(found[0]))
			for _, name := range installed {
				if !h.has(name) {
					t.Errorf("the package brings no %s", name)
				}
			}
			if out := h.mustRun("turnstone version"); !strings.HasPrefix(out, "turnstone ") {
				t.Errorf("turnstone version: got %q", out)
			}
			if out := h.mustRun("stat -c '%G %a' /etc/turnstone/turnstone.toml"); out != "turnstone 640\n" {
				t.Errorf("the configuration belongs to %q, want the group turnstone and mode 640", out)
			}
			if out, err := h.run("turnstone status"); err == nil || !strings.Contains(out, "/var/lib/turnstone/admin.sock") {
				t.Errorf("turnstone status without a daemon: %v, got %q, want it to look for that of the service", err, out)
			}
			h.mustRun("turnstone check-config --config /etc/turnstone/turnstone.toml --listen udp://192.0.2.1 --relay-ip 192.0.2.1")
			h.mustRun("echo 'realm = \"example.org\"' >>/etc/turnstone/turnstone.toml && mkdir -p /var/lib/turnstone && touch /var/lib/turnstone/log.db")
			h.mustRun(row.remove)
			for _, name := range installed {
				if name != "etc/turnstone/turnstone.toml" && h.has(name) {
					t.Errorf("%s stays behind", name)
				}
			}
			if out := h.mustRun("cat /etc/turnstone/turnstone.toml*"); !strings.Contains(out, "example.org") {
				t.Error("what the operator wrote into the configuration is gone")
			}
			if !h.has("var/lib/turnstone/log.db") {
				t.Error("the log is gone")
			}
			if row.purge != "" {
				h.mustRun(row.purge)
				if h.has("etc/turnstone/turnstone.toml") {
					t.Error("the configuration stays behind when it is to go")
				}
			}
		})
	}
}
