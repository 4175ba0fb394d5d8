package main

import (
	"bytes"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"turnstone/internal/shape"
	"turnstone/internal/shape/calls"
	"turnstone/store"
)

// nobody is the user of whom nothing is.
const nobody = 65534

// TestCopiedLogIsReadByAnybody reads a log that can be neither written nor locked for writing, as a user who has no
// rights, in a network namespace without a network.
func TestCopiedLogIsReadByAnybody(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "copied")
	state, err := shape.Write(t.Context(), dir, 5000, shape.Options{
		Options: calls.Options{Seed: 1, Allocations: 50, RestartEvery: 2000}, Store: store.Options{SegmentSize: 128 << 10},
	})
	if err != nil {
		t.Fatal(err)
	}
	digest, err := stateDigest(state)
	if err != nil {
		t.Fatal(err)
	}
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	file := shape.File(dir)
	if err := os.Chmod(file, 0o444); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(filepath.Join(dir, "lock"), 0o400); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o555); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Chmod(dir, 0o755) })
	binary := copiedBinary(t)
	for _, c := range []struct{ args, want string }{
		{"replay --db FILE -o jsonl", `"digest":"` + digest + `"`},
		{"replay --db FILE --to 2500 -o jsonl", `"count":`},
		{"replay --db FILE --at 2026-01-02T15:01:00Z -o jsonl", `"count":`},
		{"replay --db FILE --step --allocation 7 -o table", "allocation 7 for "},
		{"replay --db FILE --from 100 --to 200 -o csv", "what,thing,allocation"},
		{"log verify --db FILE -o jsonl", `"state":"` + digest + `"`},
		{"log dump --db FILE --allocation 7 -o table", "AllocationCreated"},
		{"allocation list --db FILE -o csv", "id,client"},
	} {
		args := strings.Fields(strings.ReplaceAll(c.args, "FILE", file))
		cmd := exec.Command(binary, args...)
		cmd.Env = []string{}
		cmd.Dir = "/"
		if os.Geteuid() == 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: nobody, Gid: nobody}, Cloneflags: syscall.CLONE_NEWNET}
		}
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil || !strings.Contains(string(out), c.want) {
			t.Errorf("%s: %v, %s\ngot %.300q, want %q in it", c.args, err, stderr.String(), out, c.want)
		}
		if said := stderr.String(); said != "" && !strings.HasPrefix(said, "events 100 to") && !strings.HasPrefix(said, "remark: ") {
			t.Errorf("%s: stderr %q", c.args, stderr.String())
		}
	}
}

// copiedBinary is this program where anybody can run it.
func copiedBinary(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	from, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer from.Close()
	dir := t.TempDir()
	for path := dir; path != os.TempDir() && path != "/"; path = filepath.Dir(path) {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	to, err := os.OpenFile(filepath.Join(dir, "turnstone"), os.O_CREATE|os.O_WRONLY, 0o755)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(to, from); err != nil {
		t.Fatal(err)
	}
	if err := to.Close(); err != nil {
		t.Fatal(err)
	}
	return to.Name()
}
