// Package selftest uses a TURN server as its clients do, and says of what does not work why that may be and what to do. It
// needs nothing of the server but a credential: two clients make an allocation each and are each other's peer, so no peer
// policy has to be opened. From another host a socket besides them is a peer too, which what peers send has to reach.
package selftest

import (
	"context"
	"crypto/x509"
	"net/netip"
	"slices"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/doctor"
)

// Trial is what came of a test of one [Target].
type Trial struct {
	Server    string        `json:"server"` // URI
	Address   string        `json:"address"`
	Result    doctor.Result `json:"result"`
	LatencyMS float64       `json:"latency_ms"`         // of the answer to the first request
	Mapped    string        `json:"mapped" table:"-"`   // where the server sees this client
	Relayed   string        `json:"relayed"`            // of the first of two allocations
	Returned  int           `json:"returned" table:"-"` // payloads that came back, of [Rounds]
	EchoMS    float64       `json:"echo_ms" table:"-"`  // median, to the other client and back
	Largest   int           `json:"largest"`            // payload in bytes that went both ways, 0: none
	Path      string        `json:"path"`               // kernel or userspace, empty: nobody says
	Seen      string        `json:"seen"`
	Remedy    string        `json:"remedy" table:"-"` // empty where there is nothing to do
}

// Path says who relays for the client that a server sees at an address: kernel or userspace, empty where nobody knows.
type Path func(ctx context.Context, client netip.AddrPort) string

// Run tests targets one after the other, which takes seconds for each that does not answer. It leaves no allocation behind.
func Run(ctx context.Context, targets []Target, who Credential, path Path) []Trial {
	var out []Trial
	for _, t := range targets {
		if ctx.Err() != nil {
			break
		}
		out = append(out, try(ctx, t, who, path))
	}
	return out
}

// Failed says whether a trial failed, or none got anywhere.
func Failed(trials []Trial) bool {
	skipped := func(t Trial) bool { return t.Result == doctor.Skip }
	return !slices.ContainsFunc(trials, func(t Trial) bool { return !skipped(t) }) ||
		slices.ContainsFunc(trials, func(t Trial) bool { return t.Result == doctor.Fail })
}

// try tests one target.
func try(ctx context.Context, target Target, who Credential, path Path) Trial {
	t := &trial{target: target, who: who, path: path, roots: systemRoots}
	t.draw()
	defer t.close()
	for _, s := range steps {
		if err := s.run(t, ctx); err != nil {
			t.found(t.explain(s.name, err))
			break
		}
	}
	t.release(ctx)
	return t.outcome()
}

// finding is something that a trial met with.
type finding struct {
	result       doctor.Result
	seen, remedy string
}

// seriousness orders results.
var seriousness = []doctor.Result{doctor.OK, doctor.Skip, doctor.Warn, doctor.Fail}

// outcome is the trial as it is shown: as bad as the worst that was found.
func (t *trial) outcome() Trial {
	out := t.out
	out.Server, out.Address, out.Result = t.target.URI, t.target.Address.String(), doctor.OK
	var seen, remedies []string
	for _, f := range t.findings {
		if slices.Index(seriousness, f.result) > slices.Index(seriousness, out.Result) {
			out.Result = f.result
		}
		seen = append(seen, f.seen)
		if f.remedy != "" {
			remedies = append(remedies, f.remedy)
		}
	}
	out.Seen, out.Remedy = strings.Join(seen, "; "), strings.Join(remedies, "; ")
	return out
}

func (t *trial) found(f finding) { t.findings = append(t.findings, f) }

func milliseconds(d time.Duration) float64 {
	return float64(d.Round(10*time.Microsecond)) / float64(time.Millisecond)
}

// systemRoots are the authorities that this host trusts.
func systemRoots() (*x509.CertPool, error) { return x509.SystemCertPool() }
