package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/cmd/turnstone/internal/config"
	"turnstone/cmd/turnstone/internal/output"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"

	"github.com/spf13/cobra"
)

func kernelCommand(o *options) *cobra.Command {
	cmd := group("kernel", "Look after the kernel's side of the relay", kernelStatus(o), kernelDump(o), kernelDiff(o), kernelRepair(o), kernelDetach(o))
	cmd.Long = "Looks after the XDP program and its maps, which relay established channels without the daemon."
	return cmd
}

// pinned reads the kernel's maps from their pins, as for a daemon that is not there.
func (o *options) pinned() (*kernel.Pinned, error) {
	c, err := o.located()
	if err != nil {
		return nil, err
	}
	p, err := kernel.Inspect(kernel.DefaultRoot, c.Kernel.Instance)
	if errors.Is(err, kernel.ErrNothingPinned) {
		return nil, fmt.Errorf("%w: the kernel relays nothing for this instance", err)
	}
	return p, err
}

func kernelStatus(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "status", Short: "Show how the kernel's side is", Args: cobra.NoArgs,
		Long:    "Shows on which interfaces the XDP program is and in which mode, or why not; how full the maps are; what the kernel\ndoes not carry and why; how often the program left by which verdict; and what was repaired. Where no daemon answers, it\nshows what the pins tell, which takes root: the interfaces, the flows and the verdicts.",
		Example: "  turnstone kernel status -o table\n  turnstone kernel status -o json | jq .lag",
		RunE: func(cmd *cobra.Command, _ []string) error {
			st, err := o.kernelStatus(cmd)
			if err != nil {
				return err
			}
			return showKernel(cmd, o.format, st)
		},
	}
	o.kernelFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// kernelStatus asks the daemon, or where it is away the pins.
func (o *options) kernelStatus(cmd *cobra.Command) (kernel.Status, error) {
	client, err := o.client()
	if err != nil {
		return kernel.Status{}, err
	}
	st, unreachable := client.KernelStatus(cmd.Context())
	if !errors.Is(unreachable, admin.ErrUnreachable) {
		return st, unreachable
	}
	p, err := o.pinned()
	if errors.Is(err, kernel.ErrNothingPinned) {
		return st, unreachable
	}
	if err != nil {
		return st, err
	}
	cmd.PrintErrln("no daemon answers: this is what the kernel goes on doing")
	return p.Status()
}

type reasonRow struct {
	Reason kernel.Reason `json:"not_carried_because"`
	Flows  int           `json:"flows"`
}

func showKernel(cmd *cobra.Command, f output.Format, st kernel.Status) error {
	out := cmd.OutOrStdout()
	if err := output.Object(out, f, st); err != nil {
		return err
	}
	if err := output.Section(out, f, "interfaces", st.Interfaces); err != nil {
		return err
	}
	var absent []reasonRow
	for why, n := range st.Absent {
		absent = append(absent, reasonRow{why, n})
	}
	slices.SortFunc(absent, func(a, b reasonRow) int { return strings.Compare(string(a.Reason), string(b.Reason)) })
	if err := output.Section(out, f, "not carried", absent); err != nil {
		return err
	}
	seen := slices.DeleteFunc(slices.Clone(st.Verdicts), func(v kernel.VerdictCounts) bool { return v.Packets == 0 })
	return output.Section(out, f, "verdicts", seen)
}

func kernelDump(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "dump", Short: "List the flows in the kernel's maps", Args: cobra.NoArgs,
		Long:    "Lists the flows in the kernel's maps: from the daemon, or where it is away from the pins, which takes root. A guard\nsays that a local address lives: what arrives there while the daemon is away is dropped, not answered with an error.",
		Example: "  turnstone kernel dump -o table",
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows, err := o.kernelRows(cmd.Context())
			if err != nil {
				return err
			}
			w := output.New(cmd.OutOrStdout(), o.format)
			for _, r := range rows {
				if err := w.Row(r); err != nil {
					return err
				}
			}
			return w.Close()
		},
	}
	o.kernelFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

func (o *options) kernelRows(ctx context.Context) ([]kernel.Row, error) {
	client, err := o.client()
	if err != nil {
		return nil, err
	}
	rows, err := client.KernelRows(ctx)
	if !errors.Is(err, admin.ErrUnreachable) {
		return rows, err
	}
	p, err := o.pinned()
	if err != nil {
		return nil, err
	}
	return p.Rows, nil
}

func kernelDiff(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "diff", Short: "Hold the kernel's maps against the log", Args: cobra.NoArgs,
		Long:    "Holds what the kernel's maps hold against what the log grants. A flow that is missing is relayed in userspace, which\nis no error; one that is extra, or says other than the log, is, and exits 3.",
		Example: "  turnstone kernel diff -o table",
		RunE: func(cmd *cobra.Command, _ []string) error {
			list, err := o.kernelDiff(cmd.Context())
			if err != nil {
				return err
			}
			return showDifferences(cmd, o.format, list)
		},
	}
	o.kernelFlags(cmd)
	cmd.Flags().StringVar(&o.db, "db", "", "Compare with this `FILE`, a copy of a log's, and ask no daemon.")
	o.outputFlag(cmd)
	return cmd
}

// kernelDiff asks the daemon, or compares the pins with the log's file.
func (o *options) kernelDiff(ctx context.Context) ([]kernel.Difference, error) {
	if o.db == "" {
		client, err := o.client()
		if err != nil {
			return nil, err
		}
		list, err := client.KernelDiff(ctx)
		if !errors.Is(err, admin.ErrUnreachable) {
			return list, err
		}
	}
	source, err := o.openLog(ctx)
	if err != nil {
		return nil, err
	}
	s, _, err := source.stateWithin(ctx, store.Everything(), func(error) {})
	if err != nil {
		return nil, err
	}
	return o.comparePinned(s)
}

// comparePinned holds the pins against a state of the log.
func (o *options) comparePinned(s *turn.State) ([]kernel.Difference, error) {
	p, err := o.pinned()
	if err != nil {
		return nil, err
	}
	if p.Log != s.Log() {
		return nil, fmt.Errorf("the kernel's maps are made of log %v, this is %v", p.Log, s.Log())
	}
	return p.Compare(s), nil
}

// showDifferences lists differences. Those in which the kernel would relay what the log does not grant are a mismatch.
func showDifferences(cmd *cobra.Command, f output.Format, list []kernel.Difference) error {
	w := output.New(cmd.OutOrStdout(), f)
	wrong := 0
	for _, d := range list {
		if d.What != kernel.Missing {
			wrong++
		}
		if err := w.Row(d); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if wrong > 0 {
		return exitError{errMismatch, fmt.Errorf("%d flows of the kernel are not what the log says: turnstone kernel repair", wrong)}
	}
	return nil
}

func kernelRepair(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "repair", Short: "Compare the kernel's side with the log at once, and put it right", Args: cobra.NoArgs,
		Long:    "Has the daemon compare maps, links and pins with the log and the routes at once. It does so by itself: records and links\neach second, the index every five, everything every thirty.",
		Example: "  turnstone kernel repair -o json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := o.client()
			if err != nil {
				return err
			}
			fixed, err := client.KernelRepair(cmd.Context())
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, fixed)
		},
	}
	o.kernelFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

type detachedRow struct {
	Instance   string `json:"instance"`
	Interfaces int    `json:"interfaces"`
}

func kernelDetach(o *options) *cobra.Command {
	cmd := &cobra.Command{
		Use: "detach", Short: "Take the XDP program off, and unpin everything", Args: cobra.NoArgs,
		Long:    "Takes the program of a daemon that does not run off its interfaces and removes its maps: nothing is relayed by the\nkernel any more. A daemon that runs would put them back, so it has to be stopped first.",
		Example: "  turnstone kernel detach --kernel-instance default",
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := o.located()
			if err != nil {
				return err
			}
			n, err := kernel.Detach(kernel.DefaultRoot, c.Kernel.Instance)
			if err != nil {
				return err
			}
			return output.Object(cmd.OutOrStdout(), o.format, detachedRow{c.Kernel.Instance, n})
		},
	}
	o.kernelFlags(cmd)
	o.outputFlag(cmd)
	return cmd
}

// KernelStatus is for the admin interface; likewise below.
func (d *served) KernelStatus(ctx context.Context) (kernel.Status, error) {
	if d.kernel() == nil {
		return kernel.Status{}, d.noKernel()
	}
	return d.kernel().Status(ctx)
}

func (d *served) noKernel() error { return errors.New("relaying in userspace: " + d.userspace()) }

// KernelRows reads the maps as they are.
func (d *served) KernelRows() ([]kernel.Row, error) {
	p, err := d.inspect()
	if err != nil {
		return nil, err
	}
	return p.Rows, nil
}

func (d *served) inspect() (*kernel.Pinned, error) {
	if d.kernel() == nil {
		return nil, d.noKernel()
	}
	return kernel.Inspect(kernel.DefaultRoot, d.resolved().Kernel.Instance)
}

func (d *served) resolved() config.Resolved { return d.now.Load().resolved }

// KernelDiff compares the maps with the state once the kernel has come up to it.
func (d *served) KernelDiff(ctx context.Context) (list []kernel.Difference, err error) {
	if d.kernel() == nil {
		return nil, d.noKernel()
	}
	var s *turn.State
	if err := d.relay.View(ctx, func(now *turn.State) { s = now.Clone() }); err != nil {
		return nil, err
	}
	if err := d.kernel().Withdraw(ctx, s.Seq()); err != nil {
		return nil, err
	}
	p, err := d.inspect()
	if err != nil {
		return nil, err
	}
	return p.Compare(s), nil
}

// KernelRepair compares everything at once.
func (d *served) KernelRepair(ctx context.Context) (kernel.Drift, error) {
	if d.kernel() == nil {
		return kernel.Drift{}, d.noKernel()
	}
	return d.kernel().Repair(ctx)
}

// Carries says who relays the channels of an allocation.
func (d *served) Carries(ctx context.Context, id turn.AllocationID) ([]kernel.Carried, error) {
	if d.kernel() != nil {
		return d.kernel().Carries(ctx, id)
	}
	out := []kernel.Carried{}
	err := d.relay.View(ctx, func(s *turn.State) {
		a := s.Allocation(id)
		if a == nil {
			return
		}
		for _, c := range a.Channels {
			for _, way := range []kernel.Kind{kernel.ToPeer, kernel.ToClient} {
				out = append(out, kernel.Carried{Channel: c.Number, Direction: way, Reason: kernel.Reason(d.userspace())})
			}
		}
	})
	return out, err
}
