package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/kernel"
	"turnstone/turn"
)

// openKernel opens the kernel's side of the relay, from state on. Where it cannot be had, userspace relays everything,
// unless it is required.
func (d *served) openKernel(r config.Resolved, state *turn.State) error {
	if r.Kernel.Mode == "off" {
		d.userspace = "kernel.mode is off"
		return d.detachKernel(r)
	}
	k, err := kernel.Open(d.kernelConfig(r, state))
	if err == nil {
		d.kernel = k
		return nil
	}
	d.userspace = err.Error()
	if r.Kernel.Mode == "required" {
		return fmt.Errorf("kernel.mode is required, and the kernel cannot relay: %w", err)
	}
	var used *kernel.InUseError
	if !errors.As(err, &used) {
		err := d.detachKernel(r)
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		if err != nil {
			d.log.Warn().Err(err).Msg("if it is not somebody else's, it relays on as long as it was granted")
		}
	}
	d.log.Warn().Str("reason", d.userspace).Msg("relaying in userspace")
	return nil
}

// detachKernel takes off what an earlier run left: nobody would keep it equal to the log.
func (d *served) detachKernel(r config.Resolved) error {
	n, err := kernel.Detach(kernel.DefaultRoot, r.Kernel.Instance)
	if errors.Is(err, kernel.ErrNothingPinned) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the XDP program of an earlier run cannot be taken off: %w", err)
	}
	d.log.Info().Int("interfaces", n).Msg("the XDP program of an earlier run is taken off")
	return nil
}

func (d *served) kernelConfig(r config.Resolved, state *turn.State) kernel.Config {
	c := kernel.Config{
		Instance: r.Kernel.Instance, Log: d.store, State: state, Interfaces: r.Kernel.Interfaces, Logger: d.log,
		RelayFirst: r.Rules.FirstPort, RelayLast: r.Rules.LastPort, Relays: relayAddresses(r), Caps: r.Caps,
		Sizes: kernel.Sizes{Channels: uint32(r.Kernel.MaxChannels), Allocations: uint32(r.Kernel.MaxChannels), Listeners: uint32(len(r.Listeners))},
	}
	if r.Kernel.XDP != "auto" {
		c.Mode = kernel.XDPMode(r.Kernel.XDP)
	}
	for _, l := range r.Listeners {
		if l.Protocol == turn.UDP {
			c.Listeners = append(c.Listeners, l.Address)
		}
	}
	return c
}

func relayAddresses(r config.Resolved) (out []netip.Addr) {
	for _, l := range r.Rules.Relays {
		out = append(out, l.IP)
	}
	return out
}

// flushPatience is how long a daemon that stops waits for the kernel's last usage to be recorded.
const flushPatience = 2 * time.Second

// flushKernel has the usage of the kernel recorded before the log is closed. What it relays after that is counted on
// by the next run.
func (d *served) flushKernel() {
	if d.kernel == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
	defer cancel()
	if err := d.kernel.Flush(ctx); err != nil && !errors.Is(err, kernel.ErrStopped) {
		d.log.Warn().Err(err).Msg("the last usage of the kernel is not recorded: the next run goes on counting from it")
	}
}

// datapath says in one line who relays.
func (d *served) datapath() string {
	if d.kernel == nil {
		return "userspace: " + d.userspace
	}
	return "kernel, userspace for what it passes up"
}
