package doctor

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// The generic netlink family of network devices (linux/netdev.h), since Linux 6.3.
const (
	netdevFamily     = "netdev"
	netdevGet        = 1
	netdevIfindex    = 1
	netdevXDPAbility = 3
)

// genericHeader is the header of generic netlink: command, version, and two bytes that have to be zero, which
// [nl.Genlmsg] leaves to chance.
type genericHeader [nl.SizeofGenlmsg]byte

// Len is for the request; likewise below.
func (genericHeader) Len() int { return nl.SizeofGenlmsg }

// Serialize yields the header as it is sent.
func (h genericHeader) Serialize() []byte { return h[:] }

// abilities asks what a device can do for XDP.
func abilities(ifindex int) (Abilities, error) {
	family, err := netlink.GenlFamilyGet(netdevFamily)
	if errors.Is(err, unix.ENOENT) {
		return 0, errors.New("the kernel does not say before 6.3")
	}
	if err != nil {
		return 0, fmt.Errorf("ask for the netdev family: %w", err)
	}
	q := nl.NewNetlinkRequest(int(family.ID), 0)
	q.AddData(genericHeader{netdevGet, uint8(family.Version)})
	q.AddData(nl.NewRtAttr(netdevIfindex, nl.Uint32Attr(uint32(ifindex))))
	answers, err := q.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, fmt.Errorf("ask for the XDP features of interface %d: %w", ifindex, err)
	}
	for _, m := range answers {
		var a Abilities
		found := false
		err := attributes(m, nl.SizeofGenlmsg, func(kind uint16, value []byte) {
			if kind == netdevXDPAbility && len(value) >= 8 {
				a, found = Abilities(binary.NativeEndian.Uint64(value)), true
			}
		})
		if err != nil || found {
			return a, err
		}
	}
	return 0, errNothing
}

// attributes calls f with each attribute of a message behind its header, nested flags taken off.
func attributes(m []byte, header int, f func(kind uint16, value []byte)) error {
	if len(m) < header {
		return fmt.Errorf("a netlink message of %d bytes", len(m))
	}
	all, err := nl.ParseRouteAttr(m[header:])
	if err != nil {
		return fmt.Errorf("read netlink attributes: %w", err)
	}
	for _, a := range all {
		f(a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), a.Value)
	}
	return nil
}
