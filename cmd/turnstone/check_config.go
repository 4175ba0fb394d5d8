package main

import (
	"fmt"
	"slices"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// hideAllBut hides flags from the help, those named excepted.
func hideAllBut(names ...string) func(*pflag.Flag) {
	return func(f *pflag.Flag) { f.Hidden = !slices.Contains(names, f.Name) }
}

type settingRow struct {
	Setting string         `json:"setting"`
	Origin  string         `json:"origin"`
	Value   config.Setting `json:"value"`
}

func checkConfigCommand(o *options) *cobra.Command {
	var print bool
	cmd := &cobra.Command{
		Use: "check-config", Short: "Check the configuration and show where it comes from", Args: cobra.NoArgs,
		Long: "Checks what serve would run with: the file, over it the environment (TURNSTONE_*), over it flags. It names\nevery setting that is wrong and exits 2, or says that the configuration is good, with advice where there is any.\nWith --print it shows every setting, where it comes from, and its value; secrets are hidden.",
		Example: `  turnstone check-config --config /etc/turnstone/turnstone.toml
  turnstone check-config --config turnstone.toml --print -o table
  TURNSTONE_REALM=example.org turnstone check-config --print -o jsonl | jq 'select(.origin != "default")'`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, origins, err := config.Load(cmd.Flags())
			if err != nil {
				return usageError("%w", err)
			}
			if print {
				if err := printSettings(cmd, o.format, &c, origins); err != nil {
					return err
				}
			}
			r, err := c.Resolve()
			if err != nil {
				return usageError("%w", err)
			}
			for _, a := range advise(r) {
				cmd.PrintErrf("%s: %s\n", a.level, a.text)
			}
			if !print {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "the configuration is good")
			}
			return err
		},
	}
	config.Flags(cmd.Flags())
	cmd.Flags().BoolVar(&print, "print", false, "Print every setting, where it comes from, and its value.")
	o.outputFlag(cmd)
	return cmd
}

func printSettings(cmd *cobra.Command, f output.Format, c *config.Config, origins config.Origins) error {
	var rows []settingRow
	for _, s := range config.Settings(c) {
		rows = append(rows, settingRow{Setting: s.Key, Origin: origins[s.Key], Value: s})
	}
	return output.Rows(cmd.OutOrStdout(), f, rows)
}
