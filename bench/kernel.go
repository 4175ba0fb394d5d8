package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"

	"turnstone/internal/netlab"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Names of columns where turnstone relays in two ways.
const (
	kernelName    = "kernel"
	userspaceName = "userspace"
)

// byKernel is turnstone with its program in the kernel. It leaves pins, which stop removes.
var byKernel = kind{kernelName, kernelCommand, turnstoneVersion}

const pinsRoot = "/sys/fs/bpf/turnstone"

// instance names the pins of this run.
func instance() string { return fmt.Sprintf("bench-%d", os.Getpid()) }

func kernelCommand(l *lab, dir string) *exec.Cmd {
	c := turnstoneCommand(l, dir)
	c.Args = append(c.Args, "--kernel", "required", "--xdp", "native", "--kernel-instance", instance(), "--kernel-max-channels", "65536")
	return c
}

// removePins ends the relaying of a dead server. The kernel takes a program off in its own time.
func (n *network) removePins() error {
	if err := os.RemoveAll(filepath.Join(pinsRoot, instance())); err != nil {
		return err
	}
	return n.relay.Do(func() error {
		for began := time.Now(); time.Since(began) < 6*giveUpAfter; time.Sleep(time.Millisecond) {
			links, err := netlink.LinkList()
			if err != nil {
				return err
			}
			if !slices.ContainsFunc(links, func(l netlink.Link) bool { return l.Attrs().Xdp != nil && l.Attrs().Xdp.Attached }) {
				return nil
			}
		}
		return errors.New("a program stays attached")
	})
}

// kernelStatus is what turnstone says of the kernel's side.
type kernelStatus struct {
	Lag        uint64
	Flows      int
	Unresolved int
	Verdicts   []struct {
		Verdict string
		Packets int
	}
}

func (s *server) kernelStatus(ctx context.Context, l *lab) (st kernelStatus, err error) {
	out, err := command(ctx, exec.Command(l.binary, "kernel", "status", "-o", "json", "--admin-socket", filepath.Join(s.dir, "admin.sock")))
	if err == nil {
		err = json.Unmarshal(out, &st)
	}
	return st, err
}

// packets is how many left by a verdict.
func (st kernelStatus) packets(verdicts ...string) (n int) {
	for _, v := range st.Verdicts {
		for _, name := range verdicts {
			if v.Verdict == name {
				n += v.Packets
			}
		}
	}
	return n
}

// offloaded waits until the kernel carries n flows.
func (s *server) offloaded(ctx context.Context, l *lab, n int) error {
	for began := time.Now(); ; time.Sleep(10 * time.Millisecond) {
		st, err := s.kernelStatus(ctx, l)
		if err != nil {
			return err
		}
		if st.Flows >= n && st.Lag == 0 && st.Unresolved == 0 {
			return nil
		}
		if time.Since(began) > giveUpAfter {
			return fmt.Errorf("the kernel does not carry %d flows: %+v", n, st)
		}
	}
}

// channels makes the allocations and channels of a trial, and waits for the kernel where it is to relay.
func (l *lab) channels(ctx context.Context, s *server, c *clients) (t *traffic, err error) {
	t = &traffic{lab: l, server: s, byKernel: s.kind.name == kernelName}
	if t.relayed, err = c.allocateAll(0, flowCount); err != nil {
		return nil, err
	}
	if err := c.bindAll(0, flowCount); err != nil {
		return nil, err
	}
	if t.byKernel {
		return t, s.offloaded(ctx, l, 3*flowCount)
	}
	return t, nil
}

// column is where the figures of k stand.
func (k kind) column() string {
	if k.name == turnstoneName {
		return userspaceName
	}
	return k.name
}

// receiveOffload turns GRO on or off at all ends of the cables: with it a veth takes frames as network cards hand them over.
func (n *network) receiveOffload(on bool) error {
	value := uint32(0)
	if on {
		value = 1
	}
	set := func(names ...string) func() error {
		return func() (err error) {
			for _, name := range names {
				err = errors.Join(err, netlab.Ethtool(name, unix.ETHTOOL_SGRO, value))
			}
			return err
		}
	}
	return errors.Join(n.relay.Do(set("clients", "peers")), n.client.Do(set("relay")), n.peer.Do(set("relay")))
}
