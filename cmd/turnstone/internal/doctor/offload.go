package doctor

import (
	"fmt"

	"turnstone/kernel"
)

// disturbance is an offload that keeps frames from being relayed by the kernel.
type disturbance struct {
	feature string // as the kernel calls it
	option  string // as ethtool -K does
	why     string
	applies func(l *Link, mode kernel.XDPMode, running bool) bool
}

// refused is for offloads with which a driver may refuse native mode. Where the program is on, it has not.
func refused(_ *Link, mode kernel.XDPMode, running bool) bool {
	return mode == kernel.XDPNative && !running
}

// merged is for offloads whose frames only a program in generic mode sees.
func merged(_ *Link, mode kernel.XDPMode, _ bool) bool { return mode == kernel.XDPGeneric }

var disturbances = []disturbance{
	{"rx-lro", "lro", "drivers refuse native mode with it, and generic is used then", refused},
	{"rx-gro-hw", "rx-gro-hw", "drivers may refuse native mode with it, and generic is used then", refused},
	{"rx-gro-list", "rx-gro-list", "it makes one frame of several, which userspace has to relay", merged},
	{"rx-udp-gro-forwarding", "rx-udp-gro-forwarding", "it makes one frame of several, which userspace has to relay", merged},
	{
		"tx-checksum-ip-generic", "tx", "what is sent over a veth has half a checksum, and userspace has to relay it",
		func(l *Link, _ kernel.XDPMode, _ bool) bool { return l.Link.Kind == kernel.LinkVeth },
	},
	{
		"rx-vlan-hw-parse", "rxvlan", "the tag is taken off before the program sees it, and userspace has to relay",
		func(l *Link, _ kernel.XDPMode, _ bool) bool { return len(l.VLANs) > 0 },
	},
}

// checkOffloads has a row for each offload that disturbs, or one that says none does.
func checkOffloads(f *Facts, l *Link) (rows []Row) {
	const check = "offloads"
	mode := f.mode(l)
	switch {
	case mode == "":
		return nil
	case l.Offloads.Err != nil:
		return []Row{skip(check, l.Offloads.Err)}
	}
	_, running := f.inUse(l)
	for _, d := range disturbances {
		o := l.Offloads.Value[d.feature]
		if !o.On || !d.applies(l, mode, running) {
			continue
		}
		r := ok(check, "%s is on: %s", d.feature, d.why)
		switch {
		case o.Fixed:
			r.Seen = fmt.Sprintf("%s is on and cannot be changed here: %s", d.feature, d.why)
			r = r.as(Warn, "nothing to do on this host; a virtual machine's host can switch it off")
		case l.Link.Kind == kernel.LinkVeth && d.option == "tx":
			r = r.as(Warn, "ethtool -K %s tx off, and the same at its other end", l.Link.Name)
		default:
			r = r.as(Warn, "ethtool -K %s %s off", l.Link.Name, d.option)
		}
		rows = append(rows, r)
	}
	if len(rows) == 0 {
		rows = []Row{ok(check, "none that disturbs")}
	}
	return rows
}

// causes are the verdicts that say that a host is set up badly, and what helps.
var causes = []struct {
	verdict kernel.Verdict
	remedy  string
}{
	{kernel.VerdictHalfChecksum, "switch the offload off that leaves checksums to the hardware: ethtool -K IF tx off on a virtual network"},
	{kernel.VerdictBuffers, "lower the MTU to 3498, or use drivers that send frames in several buffers"},
	{kernel.VerdictHeadroom, `the driver leaves no room for a longer header: kernel.xdp = "generic"`},
	{kernel.VerdictVLAN, "ethtool -K IF rxvlan off"},
	{kernel.VerdictMAC, "frames come on an interface that is none of kernel.interfaces, or to another station: name it with --interface"},
	{kernel.VerdictNextHop, "turnstone kernel status shows the gateways that do not resolve: ip neigh, ip route"},
	{kernel.VerdictMTU, "datagrams are larger than the path takes: have clients send less, or raise the MTU on the way"},
}

// checkPassedUp judges by the verdicts of a running daemon what its kernel leaves to userspace.
func checkPassedUp(f *Facts) (rows []Row) {
	const check = "passed-up"
	if f.Daemon.Err != nil || f.Daemon.Value.Kernel.Err != nil {
		return nil
	}
	counts := map[string]uint64{}
	var relayed uint64
	for i, v := range f.Daemon.Value.Kernel.Value.Verdicts {
		counts[v.Verdict] = v.Packets
		if kernel.Verdict(i).Relayed() {
			relayed += v.Packets
		}
	}
	for _, c := range causes {
		n := counts[c.verdict.String()]
		if n > 10 && n > relayed/100 {
			rows = append(rows, ok(check, "%d packets as %s, %d relayed by the kernel", n, c.verdict, relayed).as(Warn, c.remedy))
		}
	}
	if len(rows) == 0 {
		rows = []Row{ok(check, "nothing unusual: %d relayed by the kernel", relayed)}
	}
	return rows
}
