package relay

import (
	"net/netip"
	"slices"
	"sync/atomic"

	"turnstone/turn"
)

// grants are the permissions and channels of a flow. They do not change: a shard
// reads them without a lock, and another grant makes others. Only
// the deadlines and counters of what they hold move.
type grants struct {
	byNumber    []*binding
	byPeer      []*binding
	permissions []*permission // by peer
}

var noGrants grants

// permission lets one peer address through. It stays the same while it is refreshed.
type permission struct {
	peer     netip.Addr
	deadline atomic.Int64
}

// binding is a channel. It stays the same while it is refreshed.
type binding struct {
	number   turn.ChannelNumber
	peer     netip.AddrPort
	toPeer   sockaddr
	socket   *relayed
	deadline atomic.Int64

	counters counters
}

func byNumber(b *binding, n turn.ChannelNumber) int { return int(b.number) - int(n) }

func byPeer(b *binding, a netip.AddrPort) int { return b.peer.Compare(a) }

func byAddr(p *permission, a netip.Addr) int { return p.peer.Compare(a) }

// find finds the item with a key in a sorted list. Most lists hold one.
func find[T, K any](list []*T, key K, compare func(*T, K) int) *T {
	if i, ok := slices.BinarySearchFunc(list, key, compare); ok {
		return list[i]
	}
	return nil
}

func (g *grants) channel(n turn.ChannelNumber) *binding { return find(g.byNumber, n, byNumber) }

func (g *grants) channelTo(peer netip.AddrPort) *binding { return find(g.byPeer, peer, byPeer) }

func (g *grants) permission(peer netip.Addr) *permission { return find(g.permissions, peer, byAddr) }

// with is list and item, at its place. At the end it may share list's memory: nobody but
// the newest grants is ever added to, so what others see stays.
func with[T, K any](list []*T, item *T, key K, compare func(*T, K) int) []*T {
	i, _ := slices.BinarySearchFunc(list, key, compare)
	if i == len(list) {
		return append(list, item)
	}
	out := make([]*T, 0, len(list)+1)
	return append(append(append(out, list[:i]...), item), list[i:]...)
}

// without is list but for item.
func without[T any](list []*T, item *T) []*T {
	out := make([]*T, 0, max(len(list)-1, 0))
	for _, x := range list {
		if x != item {
			out = append(out, x)
		}
	}
	return out
}

// withBinding is g and b, in place of what had b's number or peer.
func (g *grants) withBinding(b *binding) *grants {
	for _, old := range [...]*binding{g.channel(b.number), g.channelTo(b.peer)} {
		if old != nil {
			g = g.withoutBinding(old)
		}
	}
	return &grants{
		byNumber: with(g.byNumber, b, b.number, byNumber), byPeer: with(g.byPeer, b, b.peer, byPeer),
		permissions: g.permissions,
	}
}

func (g *grants) withoutBinding(b *binding) *grants {
	return &grants{byNumber: without(g.byNumber, b), byPeer: without(g.byPeer, b), permissions: g.permissions}
}

func (g *grants) withPermission(p *permission) *grants {
	return &grants{byNumber: g.byNumber, byPeer: g.byPeer, permissions: with(g.permissions, p, p.peer, byAddr)}
}

func (g *grants) withoutPermission(p *permission) *grants {
	return &grants{byNumber: g.byNumber, byPeer: g.byPeer, permissions: without(g.permissions, p)}
}
