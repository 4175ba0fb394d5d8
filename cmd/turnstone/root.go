package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/store"

	"github.com/spf13/cobra"
)

// Exit codes.
const (
	exitGood        = 0
	exitFailure     = 1
	exitUsage       = 2
	exitMismatch    = 3
	exitUnreachable = 4
)

// environment is what a run of the command may touch of the process.
type environment struct {
	args           []string
	stdout, stderr io.Writer
	context        func() (ctx context.Context, cause func() string, cancel context.CancelFunc)
}

// errUsage marks errors of whoever typed the command.
var errUsage = errors.New("usage")

// errMismatch marks what a verification found.
var errMismatch = errors.New("mismatch")

type exitError struct {
	kind error
	err  error
}

func (e exitError) Error() string   { return e.err.Error() }
func (e exitError) Unwrap() []error { return []error{e.kind, e.err} }

func usageError(format string, args ...any) error {
	return exitError{errUsage, fmt.Errorf(format, args...)}
}

// run runs one command and yields its exit code.
func run(e environment) int {
	ctx, cause, cancel := e.context()
	defer cancel()
	root := newRoot(cause)
	root.SetArgs(e.args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return exitGood
	}
	fmt.Fprintf(e.stderr, "turnstone: %v\n", err)
	var damage *store.CorruptError
	switch {
	case errors.Is(err, errUsage):
		return exitUsage
	case errors.Is(err, errMismatch), errors.As(err, &damage):
		return exitMismatch
	case errors.Is(err, admin.ErrUnreachable):
		return exitUnreachable
	}
	return exitFailure
}

// options are the flags that several commands share.
type options struct {
	format string
	data   string
	socket string
	db     string
	cause  func() string
}

func newRoot(cause func() string) *cobra.Command {
	o := &options{cause: cause}
	root := &cobra.Command{
		Use:           "turnstone",
		Short:         "A TURN relay whose state is an event log",
		Long:          "Turnstone relays for clients that cannot reach each other (TURN, RFC 8656). All it\ngrants is in an event log, so it survives its own death and can say afterwards who\nrelayed to whom.",
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("unknown command %q: see turnstone --help", args[0])
			}
			return cmd.Help()
		},
		Args: cobra.ArbitraryArgs,
	}
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w: see %s --help", err, cmd.CommandPath())
	})
	root.AddCommand(
		serveCommand(o), statusCommand(o), allocationCommand(o), replayCommand(o), logCommand(o), migrateCommand(o),
		credentialsCommand(), checkConfigCommand(), reloadCommand(o), drainCommand(o), versionCommand(), manCommand(),
	)
	usageOnBadArguments(root)
	return root
}

// usageOnBadArguments makes the complaints of cobra about arguments usage errors.
func usageOnBadArguments(cmd *cobra.Command) {
	if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error {
			if err := check(cmd, args); err != nil {
				return usageError("%w: see %s --help", err, cmd.CommandPath())
			}
			return nil
		}
	}
	for _, sub := range cmd.Commands() {
		usageOnBadArguments(sub)
	}
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use: use, Short: short, Args: cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError("unknown command %q: see %s --help", args[0], cmd.CommandPath())
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(subs...)
	return cmd
}

func (o *options) outputFlag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "", "output format: table, json, jsonl or csv (default: table on a terminal, else jsonl)")
}

// daemonFlags say where the daemon is.
func (o *options) daemonFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.data, "data", "", "data directory of the daemon")
	cmd.Flags().StringVar(&o.socket, "admin-socket", "", "admin socket of the daemon (default: admin.sock in the data directory)")
}

// logFlags say where the log is.
func (o *options) logFlags(cmd *cobra.Command) {
	o.daemonFlags(cmd)
	cmd.Flags().StringVar(&o.db, "db", "", "read this copy of a log's file instead of asking the daemon")
}

// located is where flags, environment and defaults put data and socket.
func (o *options) located() (config.Config, error) {
	c := config.Default()
	if err := config.Environment(&c); err != nil {
		return c, err
	}
	if o.data != "" {
		c.Data = o.data
	}
	if o.socket != "" {
		c.AdminSocket = o.socket
	}
	return c, nil
}

func (o *options) client() (*admin.Client, error) {
	c, err := o.located()
	return admin.NewClient(c.Socket()), err
}

// logFile is the file to read where no daemon answers.
func (o *options) logFile() (string, error) {
	if o.db != "" {
		return o.db, nil
	}
	c, err := o.located()
	return filepath.Join(c.DataDir(), store.FileName), err
}
