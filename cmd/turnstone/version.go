package main

import (
	"fmt"
	"runtime"
	"runtime/debug"

	"turnstone/cmd/turnstone/internal/output"
	"turnstone/migrations"

	"github.com/spf13/cobra"
)

// release is set by the linker for a release.
var release = ""

// version is the release, else what the build knows of its commit.
func version() string {
	if release != "" {
		return release
	}
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	revision, dirty := "unknown", ""
	for _, s := range info.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			dirty = "+dirty"
		}
	}
	return "0.0.0-" + revision + dirty
}

type versionRow struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	OS      string `json:"os"`
	Arch    string `json:"arch"`
	Schema  uint64 `json:"schema"` // of logs
}

func versionCommand(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "version", Short: "Print the version", Args: cobra.NoArgs,
		Long:    "Prints the version as one line, or with -o also the schema of the logs it reads and writes.",
		Example: "  turnstone version\n  turnstone version -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			row := versionRow{version(), runtime.Version(), runtime.GOOS, runtime.GOARCH, migrations.Current}
			if o.format != "" {
				return output.Object(cmd.OutOrStdout(), o.format, row)
			}
			_, err := fmt.Fprintf(cmd.OutOrStdout(), "turnstone %s %s %s/%s\n", row.Version, row.Go, row.OS, row.Arch)
			return err
		},
	}
	o.outputFlag(cmd)
	return cmd
}
