package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/cmd/turnstone/internal/selftest"
	"turnstone/kernel"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

// selfTester is what doctor --self-test was asked for.
type selfTester struct {
	servers  []string
	username string
}

// trialLife is for how long the credential of a self-test is good.
const trialLife = 10 * time.Minute

// run tests the servers that were named, else the listeners of the configuration.
func (s *selfTester) run(cmd *cobra.Command, f output.Format, c *config.Config) error {
	targets, who, err := s.plan(cmd, c)
	if err != nil {
		return err
	}
	trials := selftest.Run(cmd.Context(), targets, who, pathsOf(admin.NewClient(c.Socket())))
	if err := showTrials(cmd, f, trials); err != nil {
		return err
	}
	if selftest.Failed(trials) {
		return exitError{errMismatch, errors.New("clients cannot use this server: see what failed")}
	}
	return nil
}

func (s *selfTester) plan(cmd *cobra.Command, c *config.Config) (targets []selftest.Target, who selftest.Credential, err error) {
	var r config.Resolved
	if len(s.servers) == 0 {
		if r, err = c.Resolve(); err != nil {
			return nil, who, usageError("%w", err)
		}
		targets = targetsHere(r)
	}
	for _, uri := range s.servers {
		list, err := selftest.Targets(cmd.Context(), uri)
		if errors.Is(err, selftest.ErrURI) {
			return nil, who, usageError("--server: %w", err)
		}
		if err != nil {
			return nil, who, err
		}
		targets = append(targets, list...)
	}
	if s.username != "" {
		if who.Username, err = turn.OpaqueString(s.username); err != nil {
			return nil, who, usageError("%q is no name of a user", s.username)
		}
		who.Password, err = askPassword(cmd.InOrStdin(), cmd.ErrOrStderr(), "Password: ")
		return targets, who, err
	}
	who, err = trialCredential(c, r)
	return targets, who, err
}

// targetsHere are the listeners of a configuration.
func targetsHere(r config.Resolved) (out []selftest.Target) {
	var external []netip.Addr
	for _, l := range r.Rules.Relays {
		external = append(external, l.External)
	}
	urls := turnURLs(r)
	for i, l := range r.Listeners {
		out = append(out, selftest.Target{URI: urls[i], Protocol: l.Protocol, Address: l.Address, Here: true, External: external})
	}
	return out
}

// trialCredential is one that a configuration has: of a secret, else of a user. A user is looked for in r alone, which is
// empty where another server is tested.
func trialCredential(c *config.Config, r config.Resolved) (selftest.Credential, error) {
	if len(c.Auth.Secrets) > 0 && c.Auth.Secrets[0] != "" {
		name := turn.TimeLimitedUsername("doctor", time.Now().Add(trialLife))
		return selftest.Credential{Username: name, Password: turn.TimeLimitedPassword([]byte(c.Auth.Secrets[0]), name)}, nil
	}
	users := r.Gate.Users
	if r.Demo {
		if _, err := os.Stat(filepath.Join(r.Data, "keys", demoKey)); err == nil { // a daemon has made it
			u, err := demoUser(r.Data)
			if err != nil {
				return selftest.Credential{}, err
			}
			users = []turn.User{u}
		}
	}
	i := slices.IndexFunc(users, func(u turn.User) bool { return u.Password != "" || u.Key != nil })
	if i < 0 {
		return selftest.Credential{}, usageError("a test takes a credential: give --username NAME, and the password on stdin, or --auth-secret, or a configuration that has auth.secrets or auth.users")
	}
	return selftest.Credential{Username: users[i].Name, Password: users[i].Password, Key: users[i].Key}, nil
}

// pathsOf asks a daemon, where one answers, who relays.
func pathsOf(client *admin.Client) selftest.Path {
	return func(ctx context.Context, at netip.AddrPort) string {
		list, err := client.Allocations(ctx)
		if err != nil {
			return ""
		}
		i := slices.IndexFunc(list, func(a admin.Allocation) bool { return a.Client == at.String() })
		if i < 0 {
			return ""
		}
		carried, err := client.Carries(ctx, list[i].ID)
		if err == nil && slices.ContainsFunc(carried, func(c kernel.Carried) bool { return c.Packets > 0 }) {
			return turn.PathKernel.String()
		}
		return turn.PathUserspace.String()
	}
}

type trialRemedy struct {
	Server  string `json:"server"`
	Address string `json:"address"`
	Result  string `json:"result"`
	Remedy  string `json:"what to do"`
}

// showTrials lists trials, in a table with the remedies below it.
func showTrials(cmd *cobra.Command, f output.Format, trials []selftest.Trial) error {
	out := cmd.OutOrStdout()
	if err := output.Rows(out, f, trials); err != nil {
		return err
	}
	var remedies []trialRemedy
	for _, t := range trials {
		if t.Remedy != "" {
			remedies = append(remedies, trialRemedy{t.Server, t.Address, string(t.Result), t.Remedy})
		}
	}
	return output.Section(out, f, "remedies", remedies)
}
