package test

import (
	"os/exec"
	"strings"
	"testing"

	"turnstone/internal/testenv"
)

// TestDiscovery has coturn's clients find out how their NAT behaves, which there is none of (RFC 5780).
func TestDiscovery(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	startDaemon(t, s, append(onLoopback,
		"--listen", "udp://127.0.0.1:3479", "--listen", "udp://127.0.0.2:3478", "--listen", "udp://127.0.0.2:3479")...)
	for _, row := range []struct {
		name, tool, args string
		want             []string
	}{
		{"MappingAndFiltering", "turnutils_natdiscovery", "-m -f -L 127.0.0.9 127.0.0.1", []string{
			"NAT with Endpoint Independent Mapping!", "NAT with Endpoint Independent Filtering!", "Other addr: : 127.0.0.2:3479",
			"Response origin: : 127.0.0.2:3479",
		}},
		{"Padding", "turnutils_natdiscovery", "-m -f -P -L 127.0.0.9 127.0.0.1", []string{"NAT with Endpoint Independent Filtering!"}},
		{"Lifetime", "turnutils_natdiscovery", "-t -T 1 127.0.0.1", []string{"RFC 5780 response 2"}},
		{"FromTheOtherSide", "turnutils_stunclient", "-f -p 3479 127.0.0.2", []string{"Other addr: : 127.0.0.1:3478", "RFC 5780 response 3"}},
	} {
		out, err := s.output(exec.Command(testenv.Tool(t, row.tool), strings.Fields(row.args)...))
		if err != nil {
			t.Errorf("%s: %v", row.name, err)
		}
		for _, want := range row.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q is not in what %s %s says:\n%s", row.name, want, row.tool, row.args, out)
			}
		}
	}
}

// TestNoDiscovery has them learn that one address is not enough.
func TestNoDiscovery(t *testing.T) {
	t.Parallel()
	s := newSpace(t)
	startDaemon(t, s, append(onLoopback, "--listen", "udp://127.0.0.1:3479")...)
	out, err := s.output(exec.Command(testenv.Tool(t, "turnutils_natdiscovery"), "-m", "-f", "127.0.0.1"))
	if strings.Contains(out, "Other addr") || strings.Contains(out, "Filtering!") {
		t.Errorf("got %v and\n%s", err, out)
	}
}
