package test

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"turnstone/internal/testenv"

	"github.com/pion/turn/v4"
)

// TestFreshCloneRuns does what the README promises: a clone, make run, and the credential that is printed works.
func TestFreshCloneRuns(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	clone := filepath.Join(t.TempDir(), "turnstone")
	git := func(args ...string) string {
		t.Helper()
		out, err := exec.Command(testenv.Tool(t, "git"), args...).CombinedOutput()
		if err != nil {
			t.Fatalf("git %s: %v\n%s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out))
	}
	git("clone", "--quiet", git("rev-parse", "--show-toplevel"), clone)

	run := exec.Command(testenv.Tool(t, "make"), "run")
	run.Dir = clone
	out := startLines(t, s, run)
	within(t, 5*time.Minute, "make run is ready", func() error { // it builds first
		if !strings.Contains(out.String(), "turnstone ready on udp://127.0.0.1:3478") {
			return fmt.Errorf("it said %q", out)
		}
		return nil
	})
	var ice struct {
		ICEServers []struct {
			URLs                 []string
			Username, Credential string
		}
	}
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "{") {
			if err := json.Unmarshal([]byte(line), &ice); err != nil {
				t.Fatal(err)
			}
		}
	}
	if len(ice.ICEServers) != 1 || len(ice.ICEServers[0].URLs) == 0 {
		t.Fatalf("got %+v, want one ICE server with URLs; make run said:\n%s", ice, out)
	}
	given := ice.ICEServers[0]
	url, ok := strings.CutPrefix(given.URLs[0], "turn:")
	url, udp := strings.CutSuffix(url, "?transport=udp")
	if !ok || !udp {
		t.Fatalf("got URL %q, want turn:...?transport=udp", given.URLs[0])
	}
	// Loopback peers are forbidden by default; the relay's own allocations are not.
	one, first := pionAs(t, s, url, given.Username, given.Credential, "turnstone")
	two, second := pionAs(t, s, url, given.Username, given.Credential, "turnstone")
	for c, peer := range map[*turn.Client]net.Addr{one: second.LocalAddr(), two: first.LocalAddr()} {
		if err := c.CreatePermission(peer); err != nil {
			t.Fatal(err)
		}
	}
	echo(t, first, second, []byte("from one allocation to the other"))

	version, err := exec.Command(filepath.Join(clone, "bin", "turnstone"), "version").Output()
	if err != nil {
		t.Fatal(err)
	}
	if head := git("-C", clone, "rev-parse", "HEAD"); !strings.HasPrefix(string(version), "turnstone 0.0.0-"+head[:12]+" ") {
		t.Errorf("version: got %q, want commit %s and nothing dirty", version, head)
	}
	if err := syscall.Kill(-run.Process.Pid, syscall.SIGINT); err != nil { // as Ctrl-C does
		t.Fatal(err)
	}
	_ = run.Wait() // make reports the interrupt
	log, err := exec.Command(filepath.Join(clone, "bin", "turnstone"), "log", "dump", "--data", filepath.Join(clone, "turnstone-data")).Output()
	if err != nil || !strings.Contains(string(log), `"ServerStopped"`) {
		t.Errorf("the log after Ctrl-C: got %v and %s, want that the server stopped", err, tail(string(log)))
	}
}

// lines are what a process wrote so far.
type lines struct {
	mu   sync.Mutex // guards text
	text strings.Builder
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// startLines starts cmd in s and gathers what it writes.
func startLines(t *testing.T, s *space, cmd *exec.Cmd) *lines {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = cmd.Stdout
	l := &lines{}
	s.start(cmd)
	go func() {
		for scan := bufio.NewScanner(out); scan.Scan(); {
			l.mu.Lock()
			fmt.Fprintln(&l.text, scan.Text())
			l.mu.Unlock()
		}
	}()
	return l
}
