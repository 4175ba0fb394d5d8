package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"turnstone/cmd/turnstone/internal/coturn"
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
)

func configCommand(o *options) *cobra.Command {
	return group("config", "Make a configuration", configImport(o))
}

func configImport(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Translate the configuration of a coturn server", Args: cobra.ExactArgs(1),
		Long: "Translates turnserver.conf to a configuration of turnstone, which it writes to stdout. Every line of the file is\neither a setting in it, or in a comment that says why it is not; what changes is said on stderr too. With -o it\nwrites what became of each line instead. FILE is - for stdin. Values that are wrong are named with their line.",
		Example: `  turnstone config import /etc/turnserver.conf > turnstone.toml
  turnstone config import /etc/turnserver.conf -o table
  turnstone config import /etc/turnserver.conf -o jsonl | jq 'select(.fate == "dropped")'`,
		RunE: func(cmd *cobra.Command, args []string) error {
			text, dir, err := readConf(cmd.InOrStdin(), args[0])
			if err != nil {
				return err
			}
			r, err := coturn.Import(args[0], dir, text)
			if err != nil {
				return usageError("%w", err)
			}
			if o.format != "" {
				err = output.Rows(cmd.OutOrStdout(), o.format, r.Lines)
			} else {
				_, err = io.WriteString(cmd.OutOrStdout(), r.TOML())
			}
			cmd.PrintErr(importSummary(r.Lines))
			return err
		},
	}
	o.outputFlag(cmd)
	return cmd
}

// readConf reads a file, and yields the directory that paths in it are from.
func readConf(stdin io.Reader, file string) (text, dir string, err error) {
	var b []byte
	if file == "-" {
		dir = "."
		b, err = io.ReadAll(stdin)
	} else {
		dir = filepath.Dir(file)
		b, err = os.ReadFile(file)
	}
	if err != nil {
		return "", "", fmt.Errorf("read the configuration of coturn: %w", err)
	}
	dir, err = filepath.Abs(dir)
	return string(b), dir, err
}

// importSummary says what changes, and counts the rest.
func importSummary(lines []coturn.Line) string {
	var b strings.Builder
	count := map[coturn.Fate]int{}
	for _, l := range lines {
		count[l.Fate]++
		switch {
		case l.Fate == coturn.Absent:
			fmt.Fprintf(&b, "%s is not in the file: %s\n", l.Key, l.Reason)
		case l.Fate == coturn.Unknown, l.Fate == coturn.Dropped, l.Fate == coturn.Mapped && l.Reason != "":
			fmt.Fprintf(&b, "line %d: %q is %s: %s\n", l.Line, l.Key, l.Fate, l.Reason)
		}
	}
	fmt.Fprintf(&b, "%d lines are settings, %d ask for what turnstone does anyway, %d have no counterpart, %d are unknown, %d are overruled\n",
		count[coturn.Mapped], count[coturn.Anyway], count[coturn.Dropped], count[coturn.Unknown], count[coturn.Overruled])
	return b.String()
}
