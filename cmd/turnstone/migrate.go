package main

import (
	"errors"
	"fmt"
	"os"

	"turnstone/cmd/turnstone/internal/admin"
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
		Example: `  turnstone migrate status
  turnstone migrate status --db copy-of-log.db`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			version, err := o.schema(cmd)
			if err != nil {
				return err
			}
			if _, err := migrations.Pending(version); err != nil {
				return err
			}
			var rows []stepRow
			for _, s := range migrations.Steps {
				state := "done"
				if s.Version > version {
					state = "pending"
				}
				rows = append(rows, stepRow{s.Version, s.Name, state})
			}
			return output.Rows(cmd.OutOrStdout(), o.format, rows)
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// schema asks the daemon, which has brought its log to the present, or the file.
func (o *options) schema(cmd *cobra.Command) (uint64, error) {
	if o.db == "" {
		client, err := o.client()
		if err != nil {
			return 0, err
		}
		st, err := client.LogStat(cmd.Context())
		if err == nil || !errors.Is(err, admin.ErrUnreachable) {
			return st.Schema, err
		}
	}
	file, err := o.logFile()
	if err != nil {
		return 0, err
	}
	version, err := store.Schema(file)
	return version, aboutFile(file, err)
}

type migratedRow struct {
	File   string `json:"file"`
	Steps  int    `json:"steps"`
	Schema uint64 `json:"schema"`
	Backup string `json:"backup,omitempty"`
}

func migrateUp(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "up", Short: "Bring a log to the present schema", Args: cobra.NoArgs,
		Long: "Takes the steps a log lacks. The daemon does so itself when it starts; this is for doing it beforehand, or to a\ncopy. There is no way back: the file as it was is kept beside it, as FILE.schema-N.bak, until you remove it.",
		Example: `  turnstone migrate up --data /var/lib/turnstone
  turnstone migrate up --db copy-of-log.db`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			file, err := o.logFile()
			if err != nil {
				return err
			}
			m, err := store.Migrate(file)
			if err != nil {
				return aboutFile(file, err)
			}
			return output.Object(cmd.OutOrStdout(), o.format, migratedRow{file, m.Steps, migrations.Current, m.Backup})
		},
	}
	o.logFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// aboutFile says what to do about a log file that cannot be opened.
func aboutFile(file string, err error) error {
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no log at %s: say with --data, --config or --db where it is", file)
	case errors.Is(err, store.ErrInUse):
		return fmt.Errorf("%s is open in another process: stop the daemon that has it, or name a copy with --db", file)
	}
	return err
}
