package kernel

import (
	"errors"
	"strings"
	"testing"

	"turnstone/bpf"
	"turnstone/internal/testenv"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

// testSettings are those of the tests' program.
var testSettings = Settings{ListenerPorts: []uint16{3478, 5349}, RelayFirst: 49152, RelayLast: 65535}

// load loads the program with maps of its own, not attached.
func load(t testing.TB, sizes Sizes, settings Settings) *bpf.TurnstoneObjects {
	t.Helper()
	return loadWith(t, sizes, settings, func(*ebpf.CollectionSpec) {})
}

// loadWith is load of what edit makes of the program.
func loadWith(t testing.TB, sizes Sizes, settings Settings, edit func(*ebpf.CollectionSpec)) *bpf.TurnstoneObjects {
	t.Helper()
	spec, err := blueprint(sizes, settings)
	if err != nil {
		t.Fatal(err)
	}
	edit(spec)
	var o bpf.TurnstoneObjects
	options := ebpf.CollectionOptions{Programs: ebpf.ProgramOptions{LogLevel: ebpf.LogLevelStats}}
	err = spec.LoadAndAssign(&o, &options)
	if refused := new(ebpf.VerifierError); errors.As(err, &refused) { // say at which instruction
		options.Programs.LogLevel |= ebpf.LogLevelBranch
		err = spec.LoadAndAssign(&o, &options)
	}
	if errors.Is(err, unix.EPERM) {
		testenv.Skip(t, "it needs CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON, to load the program")
	}
	if refused := new(ebpf.VerifierError); errors.As(err, &refused) {
		t.Fatalf("%v:\n%s", err, strings.Join(refused.Log[max(0, len(refused.Log)-100):], "\n"))
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := o.Close(); err != nil {
			t.Error(err)
		}
	})
	return &o
}

func TestProgramLoads(t *testing.T) {
	o := load(t, Sizes{Channels: 16, Allocations: 16, Listeners: 4}, testSettings)
	t.Log(o.Turnstone.VerifierLog)
	info, err := o.Turnstone.Info()
	if err != nil {
		t.Fatal(err)
	}
	n, ok := info.VerifiedInstructions()
	if !ok {
		t.Fatal("the kernel does not say how much it verified")
	}
	t.Logf("%d instructions verified", n)
	if n > 100_000 {
		t.Errorf("%d instructions verified, want at most 100000", n)
	}
}

func TestPortsTheProgramLooksAt(t *testing.T) {
	for _, c := range []struct {
		port     uint16
		listener bool
		want     bool
	}{
		{3478, true, true},
		{5349, true, true},
		{3479, true, false},
		{50000, true, false},
		{49152, false, true},
		{65535, false, true},
		{49151, false, false},
		{3478, false, false},
	} {
		if got := testSettings.looks(c.port, c.listener); got != c.want {
			t.Errorf("port %d, listener %t: got %t, want %t", c.port, c.listener, got, c.want)
		}
	}
	within := Settings{ListenerPorts: []uint16{50000}, RelayFirst: 49152, RelayLast: 65535}
	if within.looks(50000, false) || !within.looks(50000, true) {
		t.Error("a listener's port in the range of relayed ports is a listener's alone")
	}
	if none := (Settings{}); none.looks(50000, false) {
		t.Error("got a relayed port without a range")
	}
}
