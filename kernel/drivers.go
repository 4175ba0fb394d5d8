package kernel

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"unsafe"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// driver is what the driver of an interface makes of the frames of our program.
type driver struct {
	mute    bool // sends none that come from another interface, a veth none at all
	buffers bool // sends those in several buffers
	strips  bool // takes VLAN tags off before the program sees the frame
}

// Reasons for which a driver is not used.
const (
	ReasonMute     Reason = "its driver sends no frames that an XDP program redirects"
	ReasonMuteVeth Reason = "the other end of the veth takes no frames of XDP programs: it needs a program too, or GRO"
	ReasonStrips   Reason = "it takes VLAN tags off what it receives: ethtool -K %s rxvlan off"
)

// abilities of a driver, as the kernel counts them: NETDEV_XDP_ACT of linux/netdev.h.
type abilities uint64

const (
	sendsRedirected abilities = 1 << 2 // NDO_XMIT
	sendsBuffers    abilities = 1 << 6 // NDO_XMIT_SG
)

// driverOf says what the driver of l does with a program in a mode. Before Linux 6.3 the kernel does not know what it can,
// and frames in several buffers that are redirected are lost.
func driverOf(l *Link, mode XDPMode, can abilities, known, strips bool) driver {
	d := driver{strips: strips && l.Kind != LinkVeth} // a veth strips nothing: what its other end did not put into the frame is not there
	if mode != XDPNative {
		return d // frames leave as packets of the stack: a driver may not take those in pieces
	}
	d.mute = known && can&sendsRedirected == 0
	d.buffers = known && can&sendsBuffers != 0
	return d
}

// sense asks what the drivers do, which changes with programs at other ends and with settings. It says whether flows may
// find their way differently now, and whether next hops may look different.
func (s *attachments) sense() (ways, hops bool) {
	for _, a := range s.at {
		can, known, err := s.router.abilities(a.link.Index)
		if err != nil {
			continue // the interface is going, of which a change tells
		}
		was := a.driver
		a.driver = driverOf(&a.link, a.mode, can, known, s.router.strips(a.link.Index))
		hops = hops || a.driver != was
		was.buffers = a.driver.buffers
		ways = ways || a.driver != was
	}
	return ways, hops
}

// silent says why frames of our program do not leave by a.
func (s *attachments) silent(a *attachment) Reason {
	if !a.driver.mute {
		return ""
	}
	if a.link.Kind == LinkVeth {
		return Reason(fmt.Sprintf("interface %s: %s", a.link.Name, ReasonMuteVeth))
	}
	for _, other := range s.at {
		if other != a && other.mode != "" {
			return Reason(fmt.Sprintf("interface %s: %s", a.link.Name, ReasonMute))
		}
	}
	return "" // only what arrives by it leaves by it, which takes no redirecting
}

// stripped says why tagged frames do not reach the program by the device below a VLAN device.
func (s *attachments) stripped(ifindex int) Reason {
	a := s.at[ifindex]
	if a == nil || !a.driver.strips {
		return ""
	}
	return Reason(fmt.Sprintf("interface %s: "+string(ReasonStrips), a.link.Name, a.link.Name))
}

// Of the generic netlink family of network devices (linux/netdev.h).
const (
	netdevFamily       = "netdev"
	netdevGet          = 1
	netdevIfindex      = 1
	netdevXDPAbilities = 3
)

// genericHeader is the header of generic netlink: command, version, and two bytes that have to be zero.
type genericHeader [nl.SizeofGenlmsg]byte

// Len is for the request; likewise below.
func (genericHeader) Len() int { return nl.SizeofGenlmsg }

// Serialize yields the header as it is sent.
func (h genericHeader) Serialize() []byte { return h[:] }

// generic makes a request to a generic netlink family, and calls f with each attribute of the answer.
func (r *Router) generic(family int, h genericHeader, a *nl.RtAttr, f func(kind uint16, value []byte)) error {
	q := r.request(family, 0, h)
	q.AddData(a)
	answer, err := q.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return err
	}
	for _, m := range answer {
		if len(m) < nl.SizeofGenlmsg {
			return errors.New("the answer is too short")
		}
		if err := attributes(m[nl.SizeofGenlmsg:], f); err != nil {
			return err
		}
	}
	return nil
}

// findNetdev finds the family of network devices. It stays 0 where there is none.
func (r *Router) findNetdev() error {
	err := r.generic(unix.GENL_ID_CTRL, genericHeader{nl.GENL_CTRL_CMD_GETFAMILY, nl.GENL_CTRL_VERSION},
		nl.NewRtAttr(nl.GENL_CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(netdevFamily)), func(kind uint16, value []byte) {
			if kind == nl.GENL_CTRL_ATTR_FAMILY_ID && len(value) >= 2 {
				r.netdev = int(binary.NativeEndian.Uint16(value))
			}
		})
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("find the netlink family of network devices: %w", err)
	}
	return nil
}

// abilities asks the kernel what the driver of a link can do with frames of XDP programs. It does not know before Linux 6.3.
func (r *Router) abilities(index int) (can abilities, known bool, err error) {
	if r.netdev == 0 {
		return 0, false, nil
	}
	err = r.generic(r.netdev, genericHeader{netdevGet, 1}, nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(index))), func(kind uint16, value []byte) {
		if kind == netdevXDPAbilities && len(value) >= 8 {
			can, known = abilities(binary.NativeEndian.Uint64(value)), true
		}
	})
	if err != nil {
		return 0, false, fmt.Errorf("ask what link %d can do for XDP: %w", index, err)
	}
	return can, known, nil
}

// flagVLAN is ETH_FLAG_RXVLAN of linux/ethtool.h.
const flagVLAN = 1 << 8

// strips asks whether a link takes VLAN tags off the frames it receives.
func (r *Router) strips(index int) bool {
	l, ok := r.links[index]
	if !ok {
		return false
	}
	flags, err := r.ethtoolFlags(l.Name)
	return err == nil && flags&flagVLAN != 0
}

// ethtoolFlags asks for the flags of a link.
func (r *Router) ethtoolFlags(name string) (uint32, error) {
	value := struct{ command, data uint32 }{command: unix.ETHTOOL_GFLAGS}
	request := struct {
		name  [unix.IFNAMSIZ]byte
		value unsafe.Pointer
		_     [16]byte
	}{value: unsafe.Pointer(&value)}
	copy(request.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(r.devices), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request)))
	if errno != 0 {
		return 0, fmt.Errorf("flags of %s: %w", name, &net.OpError{Op: "ioctl", Err: errno})
	}
	return value.data, nil
}
