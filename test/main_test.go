// Package test proves the whole of Turnstone: the real binary, in network
// namespaces of its own, with real clients.
package test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// turnstoneBinary is the daemon under test, built once for all tests.
var turnstoneBinary string

// soak asks for the long form of a test.
var soak = os.Getenv("TURNSTONE_SOAK") != ""

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	dir, err := os.MkdirTemp("", "turnstone-test-")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil { // one test runs the daemon as nobody
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	turnstoneBinary = filepath.Join(dir, "turnstone")
	build := exec.Command("go", "build", "-o", turnstoneBinary, "turnstone/cmd/turnstone")
	build.Stdout, build.Stderr = os.Stderr, os.Stderr
	if err := build.Run(); err != nil {
		fmt.Fprintf(os.Stderr, "build the daemon: %v\n", err)
		return 1
	}
	return m.Run()
}
