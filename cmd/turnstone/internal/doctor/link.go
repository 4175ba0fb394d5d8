package doctor

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"turnstone/kernel"
)

// checkInterfaces judges each interface that holds an address of the relay.
func checkInterfaces(f *Facts) (rows []Row) {
	if f.off() {
		return nil
	}
	for _, name := range f.Missing {
		rows = append(rows, ok("interface", "there is no such interface").on(name).
			as(Fail, "ip -br link shows those there are: correct kernel.interfaces"))
	}
	if f.Links.Err != nil {
		return append(rows, skip("interface", f.Links.Err))
	}
	if !slices.ContainsFunc(f.Links.Value, func(l Link) bool { return l.Link.Unfit == "" }) {
		rows = append(rows, ok("interface", "none that the program can be on holds an address of the relay").
			as(f.bad(), "listen on an address of a network card, or name one with --interface; on the loopback userspace relays"))
	}
	for i := range f.Links.Value {
		l := &f.Links.Value[i]
		list := append([]Row{checkLink(l), checkXDP(f, l)}, checkAbilities(f, l)...)
		if l.Link.Unfit == "" {
			list = append(list, checkQueues(f, l))
			list = append(list, checkOffloads(f, l)...)
		}
		for _, r := range list {
			rows = append(rows, r.on(l.Link.Name))
		}
	}
	return rows
}

// leastMTU is that of IPv6 (RFC 8200 section 5).
const leastMTU = 1280

func checkLink(l *Link) Row {
	what := string(l.Link.Kind)
	if l.Driver != "" && l.Driver != what {
		what += ", driver " + l.Driver
	}
	r := ok("interface", "%s, MTU %d", what, l.Link.MTU)
	switch {
	case !l.Link.Up:
		r.Seen += ", down"
		return r.as(Warn, "ip link set dev %s up", l.Link.Name)
	case l.Link.MTU < leastMTU:
		return r.as(Warn, "ip link set dev %s mtu 1500: IPv6 needs %d", l.Link.Name, leastMTU)
	}
	return r
}

// inUse is the mode in which a running daemon has the program on l, or why it has not.
func (f *Facts) inUse(l *Link) (kernel.Interface, bool) {
	if f.Daemon.Err != nil || f.Daemon.Value.Kernel.Err != nil {
		return kernel.Interface{}, false
	}
	for _, i := range f.Daemon.Value.Kernel.Value.Interfaces {
		if i.Index == l.Link.Index {
			return i, true
		}
	}
	return kernel.Interface{}, false
}

// mode is that in which the program is or will be on l, empty for userspace.
func (f *Facts) mode(l *Link) kernel.XDPMode {
	if i, running := f.inUse(l); running {
		return i.Mode
	}
	for _, m := range l.Modes {
		if m != kernel.XDPNative || l.Abilities.Err != nil || l.Abilities.Value&CanXDP != 0 {
			return m
		}
	}
	return ""
}

func checkXDP(f *Facts, l *Link) Row {
	const check = "xdp"
	if l.Link.Unfit != "" {
		r := ok(check, "userspace: %s", l.Link.Unfit)
		if l.Link.Kind == kernel.LinkLoopback {
			return r
		}
		return r.as(f.bad(), "listen and relay on an interface that is Ethernet and belongs to nothing else, or name one with --interface")
	}
	for _, a := range l.Attached {
		if a.Owner != kernel.OwnerThis {
			return checkForeign(f, l, a)
		}
	}
	if i, running := f.inUse(l); running {
		if i.Mode == "" {
			return ok(check, "userspace: %s", i.Reason).as(f.bad(), "remove the reason, and restart the daemon: it costs no call")
		}
		return ok(check, "%s, by the daemon that runs", i.Mode)
	}
	return checkPlanned(f, l)
}

// checkPlanned judges the mode that a daemon would come to.
func checkPlanned(f *Facts, l *Link) Row {
	const check = "xdp"
	can := l.Abilities.Err != nil || l.Abilities.Value&CanXDP != 0
	switch {
	case f.mode(l) == "":
		return ok(check, "userspace: kernel.xdp is %s, and the driver cannot", f.Wish).as(f.bad(), `kernel.xdp = "auto"`)
	case f.Wish != "":
		return ok(check, "%s, as kernel.xdp says", f.Wish)
	case l.Link.Kind == kernel.LinkVeth:
		return ok(check, `generic: a veth is native only with kernel.xdp = "native"`)
	case !can:
		return ok(check, "generic: the driver has no native mode").as(Warn, "relaying costs more than in native mode: ip -d link show dev %s names the driver, a card whose driver has XDP is better", l.Link.Name)
	case l.Abilities.Err != nil:
		return ok(check, "native if the driver can, else generic: what it can is not known (%s)", reason(l.Abilities.Err))
	}
	return ok(check, "native, generic if the driver refuses")
}

// checkForeign is for a program that is not known to be this instance's.
func checkForeign(f *Facts, l *Link, a kernel.Attached) Row {
	what := fmt.Sprintf("program %d", a.Program)
	if a.Name != "" {
		what = fmt.Sprintf("program %q (id %d)", a.Name, a.Program)
	}
	off := map[kernel.XDPMode]string{kernel.XDPNative: "xdpdrv", kernel.XDPGeneric: "xdpgeneric", kernel.XDPOffload: "xdpoffload"}[a.Mode]
	if a.Owner == kernel.OwnerUnknown {
		r := skip("xdp", fmt.Errorf("%s is attached in %s mode, and this user may not see whose it is", what, a.Mode))
		r.Remedy = "run turnstone doctor as root"
		return r
	}
	return ok("xdp", "userspace: another's %s is attached in %s mode, and is left alone", what, a.Mode).
		as(f.bad(), "bpftool net show dev %[1]s says whose it is; once it may go, ip link set dev %[1]s %[2]s off, and restart the daemon", l.Link.Name, off)
}

// checkAbilities judges what a driver can do with frames. In generic mode the kernel does all of it.
func checkAbilities(f *Facts, l *Link) (rows []Row) {
	if f.mode(l) != kernel.XDPNative {
		return nil
	}
	const check = "xdp-features"
	if l.Abilities.Err != nil {
		return []Row{skip(check, l.Abilities.Err)}
	}
	a := l.Abilities.Value
	natives := 0
	for i := range f.Links.Value {
		if f.mode(&f.Links.Value[i]) == kernel.XDPNative {
			natives++
		}
	}
	r := ok(check, "%s", a)
	switch {
	case natives > 1 && a&CanRedirect == 0:
		r = r.as(Warn, "what leaves by another interface vanishes: kernel.xdp = \"generic\"")
	case natives > 1 && a&CanTransmit == 0:
		r = r.as(Warn, "what arrives on another interface cannot leave here: kernel.xdp = \"generic\"; on a veth attach a program to its other end")
	case l.Link.MTU > oneBuffer && a&CanBuffers == 0:
		r = r.as(Warn, "the driver may refuse the program at MTU %d, and generic is used then: ip link set dev %s mtu %d", l.Link.MTU, l.Link.Name, oneBuffer)
	}
	return []Row{r}
}

// oneBuffer is the MTU up to which a frame with the room that XDP needs fits a page of 4 KiB.
const oneBuffer = 3498

func (a Abilities) String() string {
	var names []string
	for _, one := range []struct {
		bit  Abilities
		name string
	}{
		{CanXDP, "native"}, {CanRedirect, "redirect"}, {CanTransmit, "transmit"}, {CanBuffers, "several buffers in"}, {CanSendBufs, "several buffers out"},
	} {
		if a&one.bit != 0 {
			names = append(names, one.name)
		}
	}
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

func checkQueues(f *Facts, l *Link) Row {
	const check = "queues"
	q := l.Queues
	switch {
	case errors.Is(q.Err, errNothing):
		return ok(check, "the driver has no settings for them")
	case q.Err != nil:
		return skip(check, q.Err)
	case l.Link.Kind == kernel.LinkVeth && f.mode(l) == kernel.XDPGeneric:
		return ok(check, "frames are taken on the CPU that sends them")
	case q.Value.Now < min(l.CPUs, q.Value.Most):
		return ok(check, "%d of %d, on %d CPUs", q.Value.Now, q.Value.Most, l.CPUs).
			as(Warn, "ethtool -L %s combined %d, so that every CPU relays", l.Link.Name, min(l.CPUs, q.Value.Most))
	case q.Value.Now < l.CPUs:
		return ok(check, "%d, all there are, on %d CPUs", q.Value.Now, l.CPUs)
	}
	return ok(check, "%d on %d CPUs", q.Value.Now, l.CPUs)
}
