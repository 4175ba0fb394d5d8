package test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestKernelFollowsInterfaces takes an interface of the relay away, with calls through it, and brings it back as another
// or by the same index: the kernel goes on where it can, and relays all again.
func TestKernelFollowsInterfaces(t *testing.T) {
	for _, row := range []struct {
		name      string
		of        string
		sameIndex bool
		flags     []string
	}{
		{"Clients", "relay0", false, nil},
		{"PeersSameIndex", "relay1", true, nil},
		{"ByName", "relay1", false, []string{"--interface", "relay0", "--interface", "relay1"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			t.Parallel() // most of it is waiting for neighbours
			l := newLab(t)
			d := l.start(row.flags...)
			calls := []*talker{
				l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4),
				l.dial("["+labClient6+"]:5002", "["+labServer6+"]:3478", "["+labPeer6+"]:6002", 0x4002, familyIPv6),
			}
			d.offloaded(8)
			talk := func() {
				for _, c := range calls {
					c.talk(100, func(i int) int { return 8 + i*12 })
				}
			}
			d.wantByKernel("at first", map[string]uint64{"to-peer": 200, "to-client": 200}, talk)

			old := l.ifindex(row.of)
			l.relay.do(func() error {
				nic, err := netlink.LinkByName(row.of)
				if err != nil {
					return err
				}
				return netlink.LinkDel(nic)
			})
			eventually(t, "the kernel's side lets go of the interface", func() error {
				for _, i := range d.kernel().Interfaces {
					if i.Interface == row.of {
						return fmt.Errorf("%+v", i)
					}
				}
				if n := d.kernel().Flows; n >= 8 {
					return fmt.Errorf("still %d flows", n)
				}
				if _, err := os.Stat(filepath.Join(pinsRoot, l.instance, "link-"+strconv.Itoa(old))); err == nil {
					return errors.New("the link of the interface is still pinned")
				}
				return nil
			})
			d.wantNothingExtra()

			index := 0
			if row.sameIndex {
				index = old
			}
			if row.of == "relay0" {
				l.joinAt(index, l.clients, []string{labClient4 + "/24", labClient6 + "/64"}, "relay0", []string{labServer4 + "/24", labServer6 + "/64"})
			} else {
				l.joinAt(index, l.peer, []string{labPeer4 + "/24", labPeer6 + "/64"}, "relay1", []string{labRelay4 + "/24", labRelay6 + "/64"})
			}
			eventually(t, "the interface is served again", func() error {
				for _, i := range d.kernel().Interfaces {
					if i.Interface == row.of && i.Mode == "native" {
						return nil
					}
				}
				return fmt.Errorf("%+v", d.kernel().Interfaces)
			})
			d.offloaded(8)
			d.wantByKernel("with the interface back", map[string]uint64{"to-peer": 200, "to-client": 200}, talk)
			attached := 0
			for _, e := range d.events() {
				if e.Kind == "ProgramAttached" && e.Event["interface"] == row.of {
					attached++
				}
			}
			if attached != 2 {
				t.Errorf("the log says %d times that the program was attached to %s, want twice", attached, row.of)
			}
		})
	}
}

// TestKernelFollowsAnInterfaceInOneStep has an interface come back by the same index while the daemon does not look.
func TestKernelFollowsAnInterfaceInOneStep(t *testing.T) {
	l := newLab(t)
	d := l.start()
	c := l.dial(labClient4+":5001", labServer4+":3478", labPeer4+":6001", 0x4001, familyIPv4)
	d.offloaded(4)
	old := l.ifindex("relay1")
	d.pause(syscall.SIGSTOP)
	l.relay.do(func() error {
		nic, err := netlink.LinkByName("relay1")
		if err != nil {
			return err
		}
		return netlink.LinkDel(nic)
	})
	l.joinAt(old, l.peer, []string{labPeer4 + "/24", labPeer6 + "/64"}, "relay1", []string{labRelay4 + "/24", labRelay6 + "/64"})
	d.pause(syscall.SIGCONT)
	d.wantKernelAgain(c, "the kernel relays by the interface that came back")
	d.offloaded(4)
	d.wantByKernel("with the interface back", map[string]uint64{"to-peer": 100, "to-client": 100}, func() {
		c.talk(100, func(i int) int { return 8 + i*12 })
	})
}

// pause stops the daemon, or has it go on.
func (d *daemon) pause(s syscall.Signal) {
	d.t.Helper()
	if err := syscall.Kill(d.pid(), s); err != nil {
		d.t.Fatal(err)
	}
}

// wantNothingExtra checks that the kernel holds nothing but what the log grants.
func (d *daemon) wantNothingExtra() {
	d.t.Helper()
	if code, out, _ := d.command("kernel", "diff", "-o", "jsonl", "--data", d.dir); code != 0 {
		d.t.Errorf("the kernel would relay what the log does not grant:\n%s", out)
	}
}
