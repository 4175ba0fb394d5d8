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
	Setting string `json:"setting"`
	Value   string `json:"value"`
	Origin  string `json:"origin"`
}

func checkConfigCommand() *cobra.Command {
	var print bool
	var format string
	cmd := &cobra.Command{
		Use: "check-config", Short: "Check the configuration and show where it comes from", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, origins, err := config.Load(cmd.Flags())
			if err != nil {
				return err
			}
			if print {
				w, err := output.New(cmd.OutOrStdout(), format)
				if err != nil {
					return usageError("%w", err)
				}
				for _, s := range config.Settings(&c) {
					if err := w.Row(settingRow{s.Key, s.String(), origins[s.Key]}); err != nil {
						return err
					}
				}
				if err := w.Close(); err != nil {
					return err
				}
			}
			if _, err := c.Resolve(); err != nil {
				return err
			}
			if !print {
				_, err = fmt.Fprintln(cmd.OutOrStdout(), "the configuration is good")
			}
			return err
		},
	}
	config.Flags(cmd.Flags())
	cmd.Flags().BoolVar(&print, "print", false, "print every setting, its value and where it comes from")
	cmd.Flags().StringVarP(&format, "output", "o", "", "output format: table, json, jsonl or csv (default: table on a terminal, else jsonl)")
	return cmd
}
