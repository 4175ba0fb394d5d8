package main

import (
	"errors"
	"slices"
	"strings"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/doctor"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func doctorCommand(o *options) *cobra.Command {
	var test bool
	var tester selfTester
	cmd := &cobra.Command{
		Use: "doctor", Short: "Find what on this host keeps the relay from working well", Args: cobra.NoArgs,
		Long: "Holds what serve would run with against the host, with a daemon running or without: kernel, capabilities, pins,\ninterfaces and their offloads, ports, addresses, firewall rules that XDP bypasses, limits, clock, certificates, disk,\npermissions. Each check is ok, warn, fail or skip, where it cannot be told; what is not ok comes with its remedy. It\nchanges nothing.\n\nIt exits 3 if a check fails: something does not work as configured. With kernel.mode auto, userspace relays where the\nkernel cannot, which is a warning; with required it is a failure.\n\nWith --self-test it uses every listener of the configuration as clients do, instead: two allocations call each other\nthrough it. With --server it does so with another server, which needs no configuration and no root, and there a socket\nof this host is a peer too. It asks nobody but that server, and the resolver for its name. The credential is of the\nfirst auth secret, else of a user of the configuration, else of --username, with the password from stdin.",
		Example: `  turnstone doctor --config /etc/turnstone/turnstone.toml
  turnstone doctor --listen udp://192.0.2.1:3478 -o table
  turnstone doctor -o jsonl | jq -r 'select(.result == "fail" or .result == "warn") | .remedy'
  nsenter --net=/run/netns/relay turnstone doctor --kernel required
  turnstone doctor --self-test --config /etc/turnstone/turnstone.toml
  turnstone doctor --self-test --server turn:turn.example.org:3478 --server turns:turn.example.org:5349 --username alice`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, origins, err := config.Load(cmd.Flags())
			if err != nil {
				return usageError("%w", err)
			}
			if test {
				return tester.run(cmd, o.format, &c)
			}
			if len(tester.servers) > 0 || tester.username != "" {
				return usageError("--server and --username go with --self-test")
			}
			r, err := c.Resolve()
			if err != nil {
				return usageError("%w", err)
			}
			facts := doctor.Gather(cmd.Context(), wanted(r), lookedAt(r, &c, origins))
			return showDiagnosis(cmd, o.format, doctor.Diagnose(facts))
		},
	}
	config.Flags(cmd.Flags())
	cmd.Flags().VisitAll(hideAllBut("config", "listen", "relay-ip", "relay-ports", "data", "admin-socket", "kernel", "interface", "xdp", "max-allocations", "external-ip", "auth-secret", "cert"))
	cmd.Flags().BoolVar(&test, "self-test", false, "Use the listeners as clients do, instead.")
	cmd.Flags().StringArrayVar(&tester.servers, "server", nil, "Test the server of this `URI` in place of the configuration's listeners, as in turn:HOST:PORT?transport=tcp.")
	cmd.Flags().StringVar(&tester.username, "username", "", "`NAME` to test with. Its password is asked for, or the first line of stdin.")
	o.outputFlag(cmd)
	return cmd
}

// wanted is what a configuration asks of the host.
func wanted(r config.Resolved) doctor.Wanted {
	d := (&served{}).kernelConfig(r, nil)
	w := doctor.Wanted{
		Mode: r.Kernel.Mode, Wish: d.Mode, Instance: r.Kernel.Instance, Listeners: d.Listeners, Relays: d.Relays,
		First: d.RelayFirst, Last: d.RelayLast, Allocations: r.Rules.MaxAllocations, Secrets: len(r.Gate.Secrets) > 0, Data: r.Data,
		Addresses: r.Rules.Relays, Retain: r.Retention.Size,
	}
	for _, l := range r.Listeners {
		w.Serves = append(w.Serves, l.Address)
		if l.Protocol == turn.TCP || l.Protocol == turn.TLS {
			w.Streams = r.Streams.Max
		}
	}
	return w
}

// lookedAt is where doctor looks.
func lookedAt(r config.Resolved, c *config.Config, origins config.Origins) doctor.Host {
	h := doctor.Host{
		Socket: r.AdminSocket, Datapath: (&served{}).kernelConfig(r, nil), Interfaces: r.Kernel.Interfaces, Certificates: r.Certificates,
		MemoryLimit: func(cgroup string) (int64, bool) { return groupLimit(cgroup, "/sys/fs/cgroup") },
	}
	for _, s := range config.Settings(c) {
		if file := origins[s.Key]; s.Secret && file != "default" && !strings.HasPrefix(file, "$") && !strings.HasPrefix(file, "--") && !slices.Contains(h.Private, file) {
			h.Private = append(h.Private, file)
		}
	}
	for _, f := range r.Certificates {
		h.Private = append(h.Private, f.Key)
	}
	return h
}

type remedyRow struct {
	Check     string        `json:"check"`
	Interface string        `json:"interface"`
	Result    doctor.Result `json:"result"`
	Remedy    string        `json:"what to do"`
}

// showDiagnosis lists rows, in a table with the remedies below it.
func showDiagnosis(cmd *cobra.Command, f output.Format, rows []doctor.Row) error {
	out := cmd.OutOrStdout()
	if err := output.Rows(out, f, rows); err != nil {
		return err
	}
	var remedies []remedyRow
	for _, result := range []doctor.Result{doctor.Fail, doctor.Warn, doctor.Skip} {
		for _, r := range rows {
			if r.Result == result && r.Remedy != "" {
				remedies = append(remedies, remedyRow{r.Check, r.Interface, r.Result, r.Remedy})
			}
		}
	}
	if err := output.Section(out, f, "remedies", remedies); err != nil {
		return err
	}
	if doctor.Failed(rows) {
		return exitError{errMismatch, errors.New("this does not work as configured: see what failed")}
	}
	return nil
}
