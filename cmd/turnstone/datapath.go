package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"reflect"
	"slices"
	"sync"
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/kernel"
	"turnstone/turn"
	"turnstone/turn/relay"
)

// carriage is who relays besides userspace, at the moment.
type carriage struct {
	mu        sync.Mutex       // guards the fields below
	kernel    *kernel.Datapath // nil: userspace relays everything
	userspace string           // why it does
	end       func()           // has kernel follow the log no more, and waits for that; nil before it does
}

func (c *carriage) set(k *kernel.Datapath, why string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kernel, c.userspace, c.end = k, why, nil
}

// kernel is the kernel's side, nil where userspace relays everything.
func (d *served) kernel() *kernel.Datapath {
	d.carriage.mu.Lock()
	defer d.carriage.mu.Unlock()
	return d.carriage.kernel
}

// userspace says why userspace relays everything, where it does.
func (d *served) userspace() string {
	d.carriage.mu.Lock()
	defer d.carriage.mu.Unlock()
	return d.carriage.userspace
}

// openKernel opens the kernel's side of the relay, from state on. Where it cannot be had, userspace relays everything,
// unless it is required.
func (d *served) openKernel(r config.Resolved, state *turn.State) error {
	if r.Kernel.Mode == "off" {
		d.carriage.set(nil, "kernel.mode is off")
		return d.detachKernel(r)
	}
	var used *kernel.InUseError
	k, err := kernel.Open(d.kernelConfig(r, state))
	for end := time.Now().Add(d.patience); errors.As(err, &used) && time.Now().Before(end); {
		time.Sleep(50 * time.Millisecond) // whoever has it ends
		k, err = kernel.Open(d.kernelConfig(r, state.Clone()))
	}
	if err == nil {
		d.carriage.set(k, "")
		return nil
	}
	d.carriage.set(nil, err.Error())
	if r.Kernel.Mode == "required" {
		return fmt.Errorf("kernel.mode is required, and the kernel cannot relay: %w", err)
	}
	if !errors.As(err, &used) {
		err := d.detachKernel(r)
		if err != nil && !errors.Is(err, fs.ErrPermission) {
			return err
		}
		if err != nil {
			d.log.Warn().Err(err).Msg("if it is not somebody else's, it relays on as long as it was granted")
		}
	}
	d.log.Warn().Str("reason", d.userspace()).Msg("relaying in userspace")
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

// runKernel has the kernel's side, if there is one, follow the log from now on.
func (d *served) runKernel() {
	d.carriage.mu.Lock()
	defer d.carriage.mu.Unlock()
	k := d.carriage.kernel
	if k == nil {
		return
	}
	ctx, cancel := context.WithCancel(d.aside)
	ended := make(chan struct{})
	d.carriage.end = func() { cancel(); <-ended }
	d.group.Go(func() error {
		defer close(ended)
		defer cancel()
		return k.Run(ctx, d.relay.Record)
	})
}

// sameKernel says whether the kernel's side of two configurations is the same.
func (d *served) sameKernel(a, b config.Resolved) bool {
	return a.Kernel.Mode == b.Kernel.Mode && reflect.DeepEqual(d.kernelConfig(a, nil), d.kernelConfig(b, nil))
}

// changeKernel makes the kernel's side what r wants. What is attached relays on meanwhile; what is revoked waits.
// After an error all is as it was with before, as far as the kernel lets it.
func (d *served) changeKernel(ctx context.Context, before, r config.Resolved) error {
	d.flushKernel()
	if err := d.relay.Uncarry(ctx); err != nil {
		return errors.Join(err, d.relay.CarryOn(ctx, d.kernelCarries(), before.Caps))
	}
	d.endKernel()
	err := d.openAgain(ctx, r)
	if err == nil && before.Kernel.Instance != r.Kernel.Instance {
		err = d.detachKernel(before)
	}
	now := r
	if err != nil {
		now = before
		if again := d.openAgain(ctx, before); again != nil {
			d.log.Error().Err(again).Msg("the kernel relayed before, and cannot be had again")
		}
	}
	return errors.Join(err, d.carryOn(ctx, now))
}

func (d *served) endKernel() {
	d.carriage.mu.Lock()
	end := d.carriage.end
	d.carriage.end = nil
	d.carriage.mu.Unlock()
	if end != nil {
		end()
	}
}

func (d *served) openAgain(ctx context.Context, r config.Resolved) error {
	state, err := d.relay.Snapshot(ctx)
	if err != nil {
		return err
	}
	return d.openKernel(r, state)
}

// carryOn has the relay know who carries.
func (d *served) carryOn(ctx context.Context, r config.Resolved) error {
	d.runKernel()
	return d.relay.CarryOn(ctx, d.kernelCarries(), r.Caps)
}

// kernelCarries is the kernel's side as the relay knows it.
func (d *served) kernelCarries() relay.Datapath {
	if k := d.kernel(); k != nil {
		return k
	}
	return nil
}

// listenersRoom is how many listeners the maps have room for, in steps: another number makes other maps.
const listenersRoom = 16

func (d *served) kernelConfig(r config.Resolved, state *turn.State) kernel.Config {
	c := kernel.Config{
		Instance: r.Kernel.Instance, Log: d.store, State: state, Interfaces: r.Kernel.Interfaces, Logger: d.log,
		RelayFirst: r.Rules.FirstPort, RelayLast: r.Rules.LastPort, Relays: relayAddresses(r), Caps: r.Caps,
		Sizes: kernel.Sizes{Channels: uint32(r.Kernel.MaxChannels), Allocations: uint32(r.Kernel.MaxChannels)},
	}
	if r.Kernel.XDP != "auto" {
		c.Mode = kernel.XDPMode(r.Kernel.XDP)
	}
	for _, l := range r.Listeners {
		if l.Protocol == turn.UDP {
			c.Listeners = append(c.Listeners, l.Address)
		}
	}
	if state != nil { // those that a reload took away serve what they have
		for a := range state.Allocations() {
			if t := a.FiveTuple; t.Protocol == turn.UDP && !slices.Contains(c.Listeners, t.Server) {
				c.Listeners = append(c.Listeners, t.Server)
			}
		}
	}
	c.Sizes.Listeners = uint32(len(c.Listeners)+listenersRoom) / listenersRoom * listenersRoom
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
	k := d.kernel()
	if k == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
	defer cancel()
	if err := k.Flush(ctx); err != nil && !errors.Is(err, kernel.ErrStopped) {
		d.log.Warn().Err(err).Msg("the last usage of the kernel is not recorded: the next run goes on counting from it")
	}
}

// datapath says in one line who relays.
func (d *served) datapath() string {
	if d.kernel() == nil {
		return "userspace: " + d.userspace()
	}
	return "kernel, userspace for what it passes up"
}
