package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strconv"
	"strings"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"
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

// errLogged marks what is in the log already.
var errLogged = errors.New("logged")

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

// message is err for a terminal: several problems stand in lines of their own.
func message(err error) string {
	text := err.Error()
	var number *strconv.NumError
	if errors.As(err, &number) {
		text = strings.Replace(text, number.Error(), "it is no number", 1)
	}
	if strings.Contains(text, "\n") {
		text = "\n  " + strings.ReplaceAll(text, "\n", "\n  ")
	}
	return text
}

// run runs one command and yields its exit code.
func run(e environment) int {
	ctx, cause, cancel := e.context()
	defer cancel()
	root := newRoot(cause)
	root.SetArgs(e.args)
	root.SetOut(e.stdout)
	root.SetErr(e.stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitGood
	}
	if !errors.Is(err, errLogged) {
		fmt.Fprintf(e.stderr, "%s: %s\n", cmd.CommandPath(), message(err))
	}
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
	format  output.Format
	config  string
	data    string
	socket  string
	db      string
	archive string
	keys    string
	kernel  string
	cause   func() string
}

// helpWidth is how wide the help is.
const helpWidth = 110

func newRoot(cause func() string) *cobra.Command {
	o := &options{cause: cause}
	root := group("turnstone", "A TURN relay whose state is an event log",
		serveCommand(o), statusCommand(o), topCommand(o), allocationCommand(o), auditCommand(o), replayCommand(o), logCommand(o), kernelCommand(o), migrateCommand(o),
		credentialsCommand(o), checkConfigCommand(o), configCommand(o), userCommand(o), doctorCommand(o), reloadCommand(o), drainCommand(o), debugCommand(o), logLevelCommand(o), versionCommand(o), manCommand(),
	)
	root.Long = "Turnstone relays for clients that cannot reach each other (TURN, RFC 8656). All it grants is in an event\nlog, so it survives its own death and can say afterwards who relayed to whom.\n\nExit codes: 0 good, 1 failure, 2 a wrong command line or configuration, 3 a verification found a mismatch,\n4 the daemon cannot be reached."
	root.Example = "  turnstone serve\n  turnstone serve --config /etc/turnstone/turnstone.toml\n  turnstone status\n  turnstone log tail"
	root.SilenceErrors, root.SilenceUsage = true, true
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return usageError("%w: see %s --help", err, cmd.CommandPath())
	})
	wrapped := fmt.Sprintf("Flags.FlagUsagesWrapped %d", helpWidth)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages", wrapped))
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
	cmd.Flags().VarP(&o.format, "output", "o", "Output: "+strings.Join(output.Formats, ", ")+"; default: table on a terminal, else jsonl.")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(output.Formats, cobra.ShellCompDirectiveNoFileComp)) // the flag is there
}

// daemonFlags say where the daemon is.
func (o *options) daemonFlags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.config, "config", "", "The daemon's configuration `FILE`, for where it is; default: "+config.Packaged+", if it is there and no turnstone-data is here.")
	cmd.Flags().StringVar(&o.data, "data", "", "Data `DIR` of the daemon.")
	cmd.Flags().StringVar(&o.socket, "admin-socket", "", "Admin socket `PATH` of the daemon; default: admin.sock in the data directory.")
}

// kernelFlags say where the daemon is and under what name it has its pins.
func (o *options) kernelFlags(cmd *cobra.Command) {
	o.daemonFlags(cmd)
	cmd.Flags().StringVar(&o.kernel, "kernel-instance", "", "`NAME` of the pins, where no daemon answers; default: as configured.")
	_ = cmd.RegisterFlagCompletionFunc("kernel-instance", completeInstance) // the flag is there
}

// logFlags say where the log is.
func (o *options) logFlags(cmd *cobra.Command) {
	o.daemonFlags(cmd)
	o.dbFlag(cmd)
	cmd.Flags().StringVar(&o.archive, "archive", "", "`DIR` with the archives of what the log has no more; default: archive beside the file, or the daemon's own.")
	cmd.Flags().StringVar(&o.keys, "keys", "", "`DIR` of the keys of encrypted segments, where a file is read; default: keys beside the file.")
}

// dbFlag names a file in place of a daemon's log.
func (o *options) dbFlag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.db, "db", "", "Read this `FILE`, a copy of a log's, and ask no daemon.")
}

// located is where flags, environment, file and defaults put data and socket.
func (o *options) located() (config.Config, error) {
	file := o.config
	if file == "" && o.data == "" && o.socket == "" {
		file = config.Installed()
	}
	c, _, err := config.Base(file)
	if err != nil {
		return c, usageError("%w", err)
	}
	if o.data != "" {
		c.Data = o.data
	}
	if o.socket != "" {
		c.AdminSocket = o.socket
	}
	if o.kernel != "" {
		c.Kernel.Instance = o.kernel
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
