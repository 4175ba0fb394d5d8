package kernel

import (
	"errors"
	"fmt"
	"os"

	"turnstone/bpf"
	"turnstone/turn"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// interfaceSlots is INTERFACES of the program.
const interfaceSlots = 256

// attachment is an interface the program is to be attached to.
type attachment struct {
	link   Link
	mode   XDPMode // empty: it is not
	reason Reason  // why not
	taken  bool    // by a program of somebody else's
	driver driver
	pinned link.Link
}

// attachments are the interfaces by ifindex, and what attaches the program to them.
type attachments struct {
	pins   *pins
	router *Router
	wish   XDPMode // empty: native where it can be, else generic
	prog   *ebpf.Program
	ifs    *ebpf.Map
	egress *ebpf.Map
	layout [32]byte
	at     map[int]*attachment
	report func(turn.Event)
	note   func(a *attachment, what string)
}

// slotOf is where an interface stands in the program's maps.
func slotOf(ifindex int) uint32 { return uint32(ifindex) % interfaceSlots }

// plan brings the list of interfaces to the links that are wanted. It attaches
// nothing yet: the maps are filled first.
func (s *attachments) plan(wanted []Link) {
	keep := map[int]bool{}
	for _, l := range wanted {
		keep[l.Index] = true
		a := s.at[l.Index]
		if a == nil {
			a = &attachment{}
			s.at[l.Index] = a
		}
		a.link, a.reason, a.taken = l, s.unfit(l), false
	}
	for i, a := range s.at {
		if !keep[i] {
			s.detach(a)
			delete(s.at, i)
		}
	}
}

// unfit says why the program cannot be on l.
func (s *attachments) unfit(l Link) Reason {
	if l.Unfit != "" {
		return l.Unfit
	}
	for i, a := range s.at {
		if i != l.Index && slotOf(i) == slotOf(l.Index) && a.reason == "" {
			return Reason(fmt.Sprintf("its index collides with that of %s", a.link.Name))
		}
	}
	return ""
}

// usable says that packets on ifindex reach the program, or are about to.
func (s *attachments) usable(ifindex int) Reason {
	a := s.at[ifindex]
	if a == nil {
		return "the interface is not one of kernel.interfaces"
	}
	if a.reason != "" {
		return Reason(fmt.Sprintf("interface %s: %s", a.link.Name, a.reason))
	}
	return ""
}

// port says how frames are sent by ifindex: from its own arrivals straight back, from others' through
// the egress map, which asks for native mode wherever they come from.
func (s *attachments) port(ifindex int) (port uint32, buffers bool, why Reason) {
	if why := s.usable(ifindex); why != "" {
		return 0, false, why
	}
	a := s.at[ifindex]
	if a.mode == XDPGeneric {
		for _, other := range s.at {
			if other.mode == XDPNative {
				return 0, false, Reason(fmt.Sprintf("interface %s: attached in generic mode, and others natively", a.link.Name))
			}
		}
	}
	return slotOf(ifindex), a.driver.buffers, s.silent(a)
}

// placeAll lets the program know the interfaces, before it is on any of them.
func (s *attachments) placeAll() {
	for _, a := range s.at {
		if a.reason != "" || a.pinned != nil {
			continue
		}
		if err := s.place(a); err != nil {
			a.reason = Reason(err.Error())
		}
	}
}

// attach attaches the program where it is not, and replaces the one of an earlier run.
func (s *attachments) attach() error {
	var errs []error
	for _, a := range s.at {
		if a.reason != "" || a.pinned != nil {
			continue
		}
		if err := s.attachOne(a); err != nil {
			a.reason = Reason(err.Error())
			s.note(a, "not attached")
			errs = append(errs, fmt.Errorf("attach to %s: %w", a.link.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (s *attachments) attachOne(a *attachment) error {
	done, err := s.takeOver(a)
	if done || err != nil {
		return err
	}
	attached, err := s.router.XDP(a.link.Index)
	if err != nil {
		return err
	}
	if len(attached) > 0 {
		a.taken = true
		return fmt.Errorf("another program (id %d) has it, and is left alone", attached[0].Program)
	}
	var errs []error
	for _, mode := range s.modes(a) {
		flags := link.XDPDriverMode
		if mode == XDPGeneric {
			flags = link.XDPGenericMode
		}
		l, err := link.AttachXDP(link.XDPOptions{Program: s.prog, Interface: a.link.Index, Flags: flags})
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", mode, err))
			continue
		}
		if err := l.Pin(s.pins.link(a.link.Index)); err != nil {
			return errors.Join(fmt.Errorf("pin the link: %w", err), l.Close())
		}
		a.pinned, a.mode = l, mode
		s.note(a, "attached")
		for _, err := range errs {
			s.note(a, err.Error())
		}
		s.report(turn.ProgramAttached{Interface: a.link.Name, Mode: string(mode), Layout: s.layout})
		return nil
	}
	return errors.Join(errs...)
}

// modes are those to try in order. A frame sent natively by a veth vanishes, uncounted, unless its other
// end has a program too, and that end may be out of sight: so it is native only by wish.
func (s *attachments) modes(a *attachment) []XDPMode {
	switch {
	case s.wish != "":
		return []XDPMode{s.wish}
	case a.link.Kind == LinkVeth:
		return []XDPMode{XDPGeneric}
	}
	return []XDPMode{XDPNative, XDPGeneric}
}

// takeOver replaces the program of a link that an earlier run pinned. It is not there any more where
// the interface went, or somebody detached it.
func (s *attachments) takeOver(a *attachment) (bool, error) {
	name := s.pins.link(a.link.Index)
	l, err := link.LoadPinnedLink(name, nil)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("open the pinned link: %w", err), os.Remove(name))
	}
	info, err := l.Info()
	if err == nil && (info.XDP() == nil || int(info.XDP().Ifindex) != a.link.Index) {
		return false, errors.Join(l.Unpin(), l.Close()) // it hangs on nothing any more
	}
	if err != nil {
		return false, errors.Join(fmt.Errorf("look at the pinned link: %w", err), l.Close())
	}
	attached, err := s.router.XDP(a.link.Index)
	if err != nil {
		return false, errors.Join(err, l.Close())
	}
	mode := XDPNative
	if len(attached) > 0 {
		mode = attached[0].Mode
	}
	if s.wish != "" && s.wish != mode {
		return false, errors.Join(l.Unpin(), l.Close()) // it goes, and the wished mode comes
	}
	if err := l.Update(s.prog); err != nil {
		return false, errors.Join(fmt.Errorf("replace the program: %w", err), l.Close())
	}
	a.pinned, a.mode = l, mode
	s.note(a, "replaced")
	s.report(turn.ProgramReplaced{Interface: a.link.Name, To: s.layout})
	return true, nil
}

// place lets the program know the interface, and frames be sent by it.
func (s *attachments) place(a *attachment) error {
	slot, ifindex := slotOf(a.link.Index), uint32(a.link.Index)
	if err := s.ifs.Put(slot, bpf.TurnstoneInterface{Ifindex: ifindex, Mac: a.link.MAC}); err != nil {
		return fmt.Errorf("note the interface: %w", err)
	}
	if err := s.egress.Put(slot, ifindex); err != nil {
		return fmt.Errorf("open the way out: %w", err)
	}
	return nil
}

// detach takes the program off an interface.
func (s *attachments) detach(a *attachment) {
	if a.pinned != nil {
		_ = errors.Join(a.pinned.Unpin(), a.pinned.Close()) // the interface may be gone
		s.note(a, "detached")
	}
	a.pinned, a.mode = nil, ""
	_ = s.ifs.Put(slotOf(a.link.Index), bpf.TurnstoneInterface{})
	_ = s.egress.Delete(slotOf(a.link.Index))
}

// vacated says whether somebody else's program has gone from an interface that was left to it.
func (s *attachments) vacated() bool {
	for _, a := range s.at {
		if !a.taken {
			continue
		}
		if attached, err := s.router.XDP(a.link.Index); err == nil && len(attached) == 0 {
			return true
		}
	}
	return false
}

// placed says whether the program's maps have an interface as place put it there.
func (s *attachments) placed(a *attachment) bool {
	var known bpf.TurnstoneInterface
	var out uint32
	slot, ifindex := slotOf(a.link.Index), uint32(a.link.Index)
	return s.ifs.Lookup(slot, &known) == nil && known.Mac == a.link.MAC && known.Ifindex == ifindex &&
		s.egress.Lookup(slot, &out) == nil && out == ifindex
}

// check finds links that were detached or unpinned behind our back, and restores them.
func (s *attachments) check() (links, pins drift) {
	for _, a := range s.at {
		if a.pinned == nil {
			continue
		}
		if !s.placed(a) {
			links.changed++
			if err := s.place(a); err != nil {
				a.reason = Reason(err.Error())
			}
		}
		info, err := a.pinned.Info()
		if err != nil || info.XDP() == nil || int(info.XDP().Ifindex) != a.link.Index {
			links.added++
			_ = errors.Join(a.pinned.Unpin(), a.pinned.Close())
			a.pinned, a.mode = nil, ""
			continue // attach tries again
		}
		if _, err := os.Stat(s.pins.link(a.link.Index)); errors.Is(err, os.ErrNotExist) {
			pins.added++
			s.repin(a)
		}
	}
	return links, pins
}

// repin pins the link of a again. A link object remembers where it was pinned, so another is made of it.
func (s *attachments) repin(a *attachment) {
	type descriptor interface{ FD() int }
	d, ok := a.pinned.(descriptor)
	if !ok {
		return
	}
	fd, err := unix.FcntlInt(uintptr(d.FD()), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return
	}
	l, err := link.NewFromFD(fd)
	if err != nil {
		return
	}
	if l.Pin(s.pins.link(a.link.Index)) == nil {
		_ = a.pinned.Close()
		a.pinned = l
		return
	}
	_ = l.Close()
}

// close lets go of the links: they stay pinned, and the program attached.
func (s *attachments) close() error {
	var errs []error
	for _, a := range s.at {
		if a.pinned != nil {
			errs = append(errs, a.pinned.Close())
		}
	}
	return errors.Join(errs...)
}
