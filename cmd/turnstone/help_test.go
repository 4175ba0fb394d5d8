package main

import (
	"bytes"
	"context"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// commands yields every command there is to run.
func commands(t *testing.T) []*cobra.Command {
	t.Helper()
	var out []*cobra.Command
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if !cmd.HasSubCommands() {
			out = append(out, cmd)
		}
		for _, sub := range cmd.Commands() {
			walk(sub)
		}
	}
	walk(newRoot(func() string { return "" }))
	if len(out) < 15 {
		t.Fatalf("%d commands: the walk misses some", len(out))
	}
	return out
}

func TestEveryCommandHasExamples(t *testing.T) {
	for _, cmd := range commands(t) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") {
			t.Errorf("%s: short help %q", cmd.CommandPath(), cmd.Short)
		}
		if !strings.Contains(cmd.Example, cmd.CommandPath()) {
			t.Errorf("%s: the examples do not show it: %q", cmd.CommandPath(), cmd.Example)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Name != "help" && !strings.HasSuffix(f.Usage, ".") {
				t.Errorf("%s --%s: help %q is no sentence", cmd.CommandPath(), f.Name, f.Usage)
			}
		})
	}
}

func TestHelpFits(t *testing.T) {
	for _, cmd := range commands(t) {
		var out bytes.Buffer
		code := run(environment{
			args: append(strings.Fields(cmd.CommandPath())[1:], "--help"), stdout: &out, stderr: &out,
			context: func() (context.Context, func() string, context.CancelFunc) {
				ctx, cancel := context.WithCancel(t.Context())
				return ctx, func() string { return "" }, cancel
			},
		})
		if code != exitGood {
			t.Errorf("%s --help: exit code %d", cmd.CommandPath(), code)
		}
		for line := range strings.Lines(out.String()) {
			if len(line) > helpWidth+12 && !strings.HasPrefix(line, "  turnstone") {
				t.Errorf("%s --help: a line of %d bytes: %s", cmd.CommandPath(), len(line), line)
			}
		}
	}
}

// TestOutputEverywhere holds that what prints data takes -o.
func TestOutputEverywhere(t *testing.T) {
	without := map[string]bool{"turnstone serve": true, "turnstone man": true}
	for _, cmd := range commands(t) {
		if cmd.Flags().Lookup("output") == nil && !without[cmd.CommandPath()] {
			t.Errorf("%s has no --output", cmd.CommandPath())
		}
	}
}
