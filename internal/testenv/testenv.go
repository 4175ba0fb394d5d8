// Package testenv says what the tests may expect of the machine they run on.
package testenv

import (
	"os"
	"os/exec"
	"testing"
)

// RequireAll is the environment variable that, set to anything, turns a skip into a failure.
const RequireAll = "TURNSTONE_REQUIRE_ALL"

// Skip skips t for a reason, or fails it where nothing may be skipped.
func Skip(t testing.TB, reason string) {
	t.Helper()
	if os.Getenv(RequireAll) != "" {
		t.Fatalf("%s is set, and this test cannot run: %s", RequireAll, reason)
	}
	t.Skip(reason)
}

// Root skips t unless it runs as root.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		Skip(t, "it needs root, for namespaces of its own")
	}
}

// Tool is the path of a program that t needs. Without it, t is skipped.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		Skip(t, "it needs "+name+", which is not installed: run scripts/tools as root")
	}
	return path
}
