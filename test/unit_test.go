package test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"turnstone/internal/testenv"
)

// TestUnitIsHardened holds the unit to what systemd thinks of it: 2.0 or better, and nothing it does not know.
func TestUnitIsHardened(t *testing.T) {
	t.Parallel()
	testenv.Tool(t, "systemd-analyze")
	const unit = "../deploy/systemd/turnstone.service"
	out, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold=20", unit).CombinedOutput()
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, out)
	}
	t.Log(lines[len(lines)-1])
	text, err := os.ReadFile(unit)
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{"AmbientCapabilities=CAP_BPF CAP_NET_ADMIN CAP_PERFMON", "CapabilityBoundingSet=CAP_BPF CAP_NET_ADMIN CAP_PERFMON", "User=turnstone"} {
		if !strings.Contains(string(text), "\n"+line+"\n") {
			t.Errorf("the unit lacks the line %s", line)
		}
	}
	dir := t.TempDir()
	for name, b := range map[string]string{"turnstone.service": string(text), "turnstone.socket": readUnit(t, "turnstone.socket")} {
		b = strings.ReplaceAll(b, "/usr/bin/turnstone", turnstoneBinary)
		b = strings.ReplaceAll(b, "Documentation=man:turnstone(1) man:turnstone-serve(1)\n", "") // they are not installed here
		if err := os.WriteFile(filepath.Join(dir, name), []byte(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	verify := exec.Command("systemd-analyze", "verify", "--man=no", filepath.Join(dir, "turnstone.service"), filepath.Join(dir, "turnstone.socket"))
	if out, err := verify.CombinedOutput(); err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func readUnit(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join("../deploy/systemd", name))
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
