// Package deploy tests what turnstone is shipped as: an image, a manifest, packages.
package deploy

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"turnstone/internal/testenv"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"go.yaml.in/yaml/v3"
	"golang.org/x/sys/unix"
)

// daemonSetSchema is the schema of a DaemonSet of Kubernetes 1.32, without its descriptions. It is strict: unknown
// fields are wrong.
func daemonSetSchema(t *testing.T) *jsonschema.Schema {
	t.Helper()
	f, err := os.Open("testdata/daemonset-apps-v1.json.gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(z)
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("daemonset.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("daemonset.json")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// manifest is the DaemonSet as JSON has it.
func manifest(t *testing.T) any {
	t.Helper()
	b, err := os.ReadFile("kubernetes.yaml")
	if err != nil {
		t.Fatal(err)
	}
	var y any
	if err := yaml.Unmarshal(b, &y); err != nil {
		t.Fatal(err)
	}
	j, err := json.Marshal(y)
	if err != nil {
		t.Fatal(err)
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(j))
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestKubernetesManifest(t *testing.T) {
	s := daemonSetSchema(t)
	m := manifest(t)
	if err := s.Validate(m); err != nil {
		t.Errorf("kubernetes.yaml: %v", err)
	}
	pod := m.(map[string]any)["spec"].(map[string]any)["template"].(map[string]any)["spec"].(map[string]any)
	pod["hostNetworks"] = true
	if s.Validate(m) == nil {
		t.Error("the schema takes a field that does not exist")
	}
	container := pod["containers"].([]any)[0].(map[string]any)
	caps := container["securityContext"].(map[string]any)["capabilities"].(map[string]any)
	if got := fmt.Sprint(caps["add"], caps["drop"]); got != "[BPF NET_ADMIN PERFMON] [ALL]" {
		t.Errorf("capabilities: got %s", got)
	}
	for _, probe := range []string{"startupProbe", "livenessProbe", "readinessProbe"} {
		get := container[probe].(map[string]any)["httpGet"].(map[string]any)
		if got := fmt.Sprintf("%v:%v", get["host"], get["port"]); got != "127.0.0.1:9478" {
			t.Errorf("%s asks %s, metrics are at 127.0.0.1:9478", probe, got)
		}
	}
}

// turnstone builds the program as it is shipped.
func turnstone(t *testing.T) string {
	t.Helper()
	to := filepath.Join(t.TempDir(), "turnstone")
	build := exec.Command("go", "build", "-o", to, "turnstone/cmd/turnstone")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	return to
}

// TestManifestCommands holds the commands of the manifest against the program.
func TestManifestCommands(t *testing.T) {
	program := turnstone(t)
	for _, args := range [][]string{{"serve", "--help"}, {"drain", "--timeout", "10m", "--help"}} {
		if out, err := exec.Command(program, args...).CombinedOutput(); err != nil {
			t.Errorf("turnstone %v: %v\n%s", args, err, out)
		}
	}
	if out, err := exec.Command(program, "check-config", "--config", "turnstone.toml").CombinedOutput(); err != nil {
		t.Errorf("turnstone.toml: %v\n%s", err, out)
	}
}

// run runs a program and yields what it writes.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	var diagnostics bytes.Buffer
	cmd.Stderr = &diagnostics
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, &diagnostics)
	}
	return strings.TrimSpace(string(out))
}

// TestImage builds the image and runs what is in it as a container runtime would: with its root, its user and its command,
// in a network namespace of its own. The three capabilities are effective although it is not root.
func TestImage(t *testing.T) {
	testenv.Root(t)
	testenv.Tool(t, "buildah")
	testenv.Tool(t, "setcap")
	name := fmt.Sprintf("turnstone-test-%d", os.Getpid())
	run(t, "../scripts/image", name)
	t.Cleanup(func() { _ = exec.Command("buildah", "rmi", "--force", name).Run() })
	container := run(t, "buildah", "from", name)
	t.Cleanup(func() { _ = exec.Command("buildah", "rm", container).Run() })
	root := run(t, "buildah", "mount", container)

	var config struct {
		OCIv1 struct {
			Config struct {
				User       string
				Entrypoint []string
				Cmd        []string
				Env        []string
			} `json:"config"`
		}
	}
	if err := json.Unmarshal([]byte(run(t, "buildah", "inspect", name)), &config); err != nil {
		t.Fatal(err)
	}
	c := config.OCIv1.Config
	if c.User != "65532:65532" || !slices.Equal(c.Cmd, []string{"serve"}) {
		t.Errorf("got %+v, want user 65532 and the command serve", c)
	}
	entries, err := os.ReadDir(filepath.Join(root, "usr/bin"))
	if err != nil || len(entries) != 1 {
		t.Errorf("programs: got %v, %v, want turnstone alone", entries, err)
	}

	proc := filepath.Join(root, "proc") // as every runtime mounts it
	if err := os.MkdirAll(proc, 0o555); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("proc", proc, "proc", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(proc, unix.MNT_DETACH) })
	cmd := exec.Command(c.Entrypoint[0], append(c.Cmd, "--listen", "udp://127.0.0.1:3478", "--user", "alice:secret", "--kernel", "off")...)
	cmd.Env = c.Env
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Chroot: root, Cloneflags: unix.CLONE_NEWNET, Credential: &syscall.Credential{Uid: 65532, Gid: 65532},
	}
	var diagnostics bytes.Buffer
	cmd.Stderr = &diagnostics
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	// A namespace of its own has a loopback that is down: its address is there as soon as it is set up.
	run(t, "nsenter", fmt.Sprintf("--net=/proc/%d/ns/net", cmd.Process.Pid), "ip", "link", "set", "lo", "up")
	ready := make(chan string, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		ready <- line
	}()
	select {
	case line := <-ready:
		if line != "turnstone ready on udp://127.0.0.1:3478\n" {
			t.Fatalf("it says %q\n%s", line, &diagnostics)
		}
	case <-time.After(20 * time.Second):
		t.Fatalf("it does not get ready\n%s", &diagnostics)
	}
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("CapEff:\t%016x", uint64(1)<<unix.CAP_NET_ADMIN|1<<unix.CAP_PERFMON|1<<unix.CAP_BPF)
	if !strings.Contains(string(status), want) {
		t.Errorf("capabilities of the process: want %q in\n%s", want, status)
	}
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("it ends with %v\n%s", err, &diagnostics)
	}
	if _, err := os.Stat(filepath.Join(root, "var/lib/turnstone/log.db")); err != nil {
		t.Errorf("its log: %v", err)
	}
}
