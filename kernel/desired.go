package kernel

import (
	"net/netip"
	"time"

	"turnstone/turn"
)

// Reason says for people why the kernel does not carry something, empty where it does.
type Reason string

// Reasons that are about the maps; those about routes and interfaces come from there.
const (
	ReasonFull       Reason = "the kernel's maps are full"
	ReasonStream     Reason = "the client's transport is a stream"
	ReasonAdrift     Reason = "the client is gone, and may come back from elsewhere"
	ReasonPermission Reason = "the peer has no permission"
	ReasonPort       Reason = "its port is none that the program was loaded for: restart the daemon"
	ReasonWrite      Reason = "a map could not be written; it is tried again"
)

// want is a flow as the log and the routes want it. Its gateway and meter are
// named, not numbered: that is the reconciler's.
type want struct {
	Flow
	via     Gateway // zero where it needs none
	metered bool
	reason  Reason // why the program is not to have it
}

// surroundings are what desired asks of the host besides the log.
type surroundings interface {
	// arrival says with what VLAN tag packets to a relayed address or a listener reach our program, or why they do not.
	arrival(local netip.AddrPort, listener bool) (vlan uint16, why Reason)
	// route says how packets from source leave to destination.
	route(source, destination netip.Addr) (Route, Reason)
	// isRelay says whether relayed transport addresses are made of a.
	isRelay(a netip.Addr) bool
	// metered says whether allocations have caps.
	metered() bool
}

// desired is what the program should know of a, one want for each direction of each channel and a
// guard for each relayed transport address. It depends on nothing else.
func desired(a *turn.Allocation, s surroundings) []want {
	if a.TCP() {
		return nil // there are no datagrams to relay
	}
	out := make([]want, 0, len(a.Relayed)+2*len(a.Channels))
	for _, r := range a.Relayed {
		w := want{Flow: Flow{Key: Key{Local: r}, Kind: Guard, Allocation: a.ID, Deadline: a.DeadlineFor(r.Addr()).Uptime}}
		w.VLAN, w.reason = s.arrival(r, false)
		out = append(out, w)
	}
	for _, c := range a.Channels {
		relayed, ok := a.RelayedFor(c.Peer.Addr())
		if !ok {
			continue
		}
		out = append(out, toPeer(a, c, relayed, s), toClient(a, c, relayed, s))
	}
	return out
}

// toPeer is the flow of a client's ChannelData. A peer that is a relayed address
// of ours has a record of its own, which knows the way.
func toPeer(a *turn.Allocation, c turn.Channel, relayed netip.AddrPort, s surroundings) want {
	w := want{Flow: Flow{
		Key:  Key{Remote: a.FiveTuple.Client, Local: a.FiveTuple.Server, Channel: c.Number},
		Kind: ToPeer, Allocation: a.ID, Deadline: min(a.DeadlineFor(relayed.Addr()).Uptime, c.Deadline.Uptime),
		Source: relayed, Destination: c.Peer, LocalPeer: s.isRelay(c.Peer.Addr()),
	}, metered: s.metered()}
	w.arrive(a, s)
	if w.reason == "" && !w.LocalPeer {
		w.leave(s)
	}
	return w
}

// toClient is the flow of what a peer sends to the relayed address. It needs a permission.
func toClient(a *turn.Allocation, c turn.Channel, relayed netip.AddrPort, s surroundings) want {
	w := want{Flow: Flow{
		Key:  Key{Remote: c.Peer, Local: relayed},
		Kind: ToClient, Allocation: a.ID, Deadline: min(a.DeadlineFor(relayed.Addr()).Uptime, c.Deadline.Uptime),
		Source: a.FiveTuple.Server, Destination: a.FiveTuple.Client, OutChannel: c.Number,
	}, metered: s.metered()}
	if p := a.Permission(c.Peer.Addr()); p != nil {
		w.Deadline = min(w.Deadline, p.Deadline.Uptime)
	} else {
		w.reason = ReasonPermission
	}
	w.arrive(a, s)
	if w.reason == "" {
		w.leave(s)
	}
	return w
}

func (w *want) arrive(a *turn.Allocation, s surroundings) {
	switch {
	case a.Adrift:
		w.reason = ReasonAdrift
	case a.FiveTuple.Protocol != turn.UDP:
		w.reason = ReasonStream
	}
	if w.reason == "" {
		w.VLAN, w.reason = s.arrival(w.Local, w.Kind == ToPeer)
	}
}

func (w *want) leave(s surroundings) {
	r, why := s.route(w.Source.Addr(), w.Destination.Addr())
	w.via, w.MTU, w.reason = r.Gateway, mtuOf(r), why
}

// listenerGuard lives as long as some allocation on the listener may.
func listenerGuard(listener netip.AddrPort, until time.Duration, s surroundings) want {
	w := want{Flow: Flow{Key: Key{Local: listener}, Kind: Guard, Deadline: until}}
	w.VLAN, w.reason = s.arrival(listener, true)
	return w
}

// channelOf is the channel a flow belongs to, 0 for a guard.
func (f *Flow) channelOf() turn.ChannelNumber {
	if f.Kind == ToPeer {
		return f.Channel
	}
	return f.OutChannel
}

// same says whether the record of f may stay for g: all but the deadline is equal.
func (f *Flow) same(g *Flow) bool {
	a, b := *f, *g
	a.Deadline, b.Deadline = 0, 0
	return a == b
}
