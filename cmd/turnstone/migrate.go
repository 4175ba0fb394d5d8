package main

import (
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/migrations"
	"turnstone/store"

	"github.com/spf13/cobra"
)

func migrateCommand(o *options) *cobra.Command {
	return group("migrate", "Bring a log to the present schema", migrateStatus(o), migrateUp(o))
}

type stepRow struct {
	Schema uint64 `json:"schema"`
	Name   string `json:"name"`
	State  string `json:"state"`
}

func migrateStatus(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show the schema of a log, and the steps it lacks", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			version, err := o.schema(cmd)
			if err != nil {
				return err
			}
			if _, err := migrations.Pending(version); err != nil {
				return err
			}
			w, err := output.New(cmd.OutOrStdout(), o.format)
			if err != nil {
				return usageError("%w", err)
			}
			for _, s := range migrations.Steps {
				state := "done"
				if s.Version > version {
					state = "pending"
				}
				if err := w.Row(stepRow{s.Version, s.Name, state}); err != nil {
					return err
				}
			}
			return w.Close()
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// schema asks the daemon, which has brought its log to the present, or the file.
func (o *options) schema(cmd *cobra.Command) (uint64, error) {
	if o.db == "" {
		if client, err := o.client(); err == nil {
			if st, err := client.LogStat(cmd.Context()); err == nil {
				return st.Schema, nil
			}
		}
	}
	file, err := o.logFile()
	if err != nil {
		return 0, err
	}
	return store.Schema(file)
}

func migrateUp(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "up", Short: "Bring a log to the present schema", Args: cobra.NoArgs,
		Long: "Takes the steps a log lacks. The daemon does so itself when it starts; this is for doing it beforehand, or to a copy.",
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := o.logFile()
			if err != nil {
				return err
			}
			n, err := store.Migrate(file)
			if err != nil {
				return err
			}
			cmd.Printf("%d steps taken, the schema is %d\n", n, migrations.Current)
			return nil
		},
	}
	o.logFlags(cmd)
	return cmd
}
