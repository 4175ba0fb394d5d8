// Package admin is the daemon's own interface: HTTP with JSON over a Unix socket that
// only its user can open. The commands are its clients.
package admin

import (
	"time"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/turn"
)

// Status is what a daemon says of itself.
type Status struct {
	Version     string            `json:"version"`
	PID         int               `json:"pid"`
	Started     time.Time         `json:"started"`
	Ready       bool              `json:"ready"`
	Draining    bool              `json:"draining"`
	Listeners   []string          `json:"listeners"`
	Ending      []string          `json:"ending"` // listeners that are open only for the allocations they have
	Relay       []string          `json:"relay"`
	Realm       string            `json:"realm"`
	Kernel      string            `json:"kernel"`
	Data        string            `json:"data"`
	Log         string            `json:"log"`
	Epoch       uint64            `json:"epoch"`
	Seq         turn.Seq          `json:"seq"`
	Room        string            `json:"room"`
	Allocations int               `json:"allocations"`
	Permissions int               `json:"permissions"`
	Channels    int               `json:"channels"`
	Connections int               `json:"connections"`
	Reserved    int               `json:"reservations"`
	Bans        int               `json:"bans"`
	ToPeer      turn.Count        `json:"to_peer"`
	ToClient    turn.Count        `json:"to_client"`
	Drops       map[string]uint64 `json:"drops"`
}

// Reloaded is what a reload did.
type Reloaded struct {
	Changed []config.Change `json:"changed"`
	Restart []string        `json:"restart"` // settings that have changed and stay as they were until one
}

// Drain is how a drain is going.
type Drain struct {
	State       string `json:"state"` // draining; and at its end drained, deadline or cancelled
	Allocations int    `json:"allocations"`
	Left        string `json:"left"` // until the deadline
}

// What a Drain can say.
const (
	Draining  = "draining"
	Drained   = "drained"
	Deadline  = "deadline"
	Cancelled = "cancelled"
)

// Allocation is an allocation as it is shown.
type Allocation struct {
	ID          turn.AllocationID `json:"id"`
	Client      string            `json:"client"`
	Server      string            `json:"server" table:"detail"`
	Protocol    turn.Protocol     `json:"protocol" table:"detail"`
	Relayed     []string          `json:"relayed"`
	Transport   string            `json:"transport" table:"detail"` // of what is relayed
	Username    string            `json:"username"`
	Realm       string            `json:"realm" table:"detail"`
	MovingTo    string            `json:"moving_to" table:"detail"` // where its client has asked to move, empty for nowhere
	Adrift      bool              `json:"adrift" table:"detail"`    // its client is nowhere: it was at Client
	Created     time.Time         `json:"created" table:"detail"`
	Expires     time.Time         `json:"expires"`
	Overdue     bool              `json:"overdue"`
	Addresses   []Address         `json:"addresses" table:"-"`
	Connections []Connection      `json:"connections" table:"-"`
	Permissions []Permission      `json:"permissions" table:"list"`
	Channels    []Channel         `json:"channels" table:"list"`
	Usage       []Usage           `json:"usage" table:"-"`
}

// Address is a relayed transport address as it is shown. Where there are two each has an end of its own.
type Address struct {
	Relayed string    `json:"relayed"`
	Expires time.Time `json:"expires"`
	Overdue bool      `json:"overdue"`
}

// Connection is a connection with a peer as it is shown.
type Connection struct {
	ID      turn.ConnectionID `json:"id"`
	Peer    string            `json:"peer"`
	Client  string            `json:"client"`           // the other end of its data connection, empty until there is one
	Expires time.Time         `json:"expires,omitzero"` // unless there is one by then
}

// Reservation is a reserved port as it is shown: who has its token is who asked for it.
type Reservation struct {
	Relayed  string    `json:"relayed"`
	Username string    `json:"username"`
	Realm    string    `json:"realm"`
	Made     time.Time `json:"made"`
	Expires  time.Time `json:"expires"`
	Overdue  bool      `json:"overdue"`
}

// Permission is a permission as it is shown.
type Permission struct {
	Peer    string    `json:"peer"`
	Expires time.Time `json:"expires"`
	Overdue bool      `json:"overdue"`
}

// Channel is a channel as it is shown.
type Channel struct {
	Number  turn.ChannelNumber `json:"number"`
	Peer    string             `json:"peer"`
	Expires time.Time          `json:"expires"`
	Overdue bool               `json:"overdue"`
}

// Usage is what the log knows a binding to have relayed.
type Usage struct {
	Channel  turn.ChannelNumber `json:"channel"`
	Peer     string             `json:"peer"`
	Path     turn.Path          `json:"path"`
	ToPeer   turn.Count         `json:"to_peer"`
	ToClient turn.Count         `json:"to_client"`
}

// steady is how far the clocks may drift apart before the wall time a grant promised is not shown any more.
const steady = 100 * time.Millisecond

// endOf is when d ends on the wall clock, as of m. It is what was promised, the same at every look, unless the wall
// clock was set since.
func endOf(d turn.Deadline, m turn.Moment) time.Time {
	at, promised := m.WallTime().Add(d.Uptime-m.Uptime), time.Unix(0, d.Wall).UTC()
	if at.Sub(promised).Abs() < steady {
		return promised
	}
	return at
}

// Describe shows a as of m: when things end on the wall clock, and what is over already.
func Describe(a *turn.Allocation, m turn.Moment) Allocation {
	ends := func(d turn.Deadline) time.Time { return endOf(d, m).Truncate(time.Millisecond) }
	out := Allocation{
		ID: a.ID, Client: a.FiveTuple.Client.String(), Server: a.FiveTuple.Server.String(), Protocol: a.FiveTuple.Protocol,
		Transport: "udp", Username: a.Username, Realm: a.Realm, Adrift: a.Adrift,
		Created: a.Created.WallTime(), Expires: ends(a.Deadline), Overdue: a.Deadline.Passed(m),
		Addresses: []Address{}, Connections: []Connection{}, Permissions: []Permission{}, Channels: []Channel{}, Usage: []Usage{},
	}
	if a.TCP() {
		out.Transport = "tcp"
	}
	if a.Next != (turn.FiveTuple{}) {
		out.MovingTo = a.Next.Client.String()
	}
	for _, r := range a.Relayed {
		out.Relayed = append(out.Relayed, r.String())
		d := a.DeadlineFor(r.Addr())
		out.Addresses = append(out.Addresses, Address{Relayed: r.String(), Expires: ends(d), Overdue: d.Passed(m)})
	}
	for _, c := range a.Connections {
		one := Connection{ID: c.ID, Peer: c.Peer.String()}
		if c.Client.Client.IsValid() {
			one.Client = c.Client.Client.String()
		} else {
			one.Expires = ends(c.Deadline)
		}
		out.Connections = append(out.Connections, one)
	}
	for _, p := range a.Permissions {
		out.Permissions = append(out.Permissions, Permission{Peer: p.Peer.String(), Expires: ends(p.Deadline), Overdue: p.Deadline.Passed(m)})
	}
	for _, c := range a.Channels {
		out.Channels = append(out.Channels, Channel{Number: c.Number, Peer: c.Peer.String(), Expires: ends(c.Deadline), Overdue: c.Deadline.Passed(m)})
	}
	for _, u := range a.Usage {
		out.Usage = append(out.Usage, DescribeUsage(u))
	}
	return out
}

// DescribeUsage shows u.
func DescribeUsage(u turn.Usage) Usage {
	out := Usage{Channel: u.Channel, Path: u.Path, ToPeer: u.ToPeer, ToClient: u.ToClient}
	if u.Peer.IsValid() {
		out.Peer = u.Peer.String()
	}
	return out
}

// Reservations shows those of s as of m, the one that ends first before the others.
func Reservations(s *turn.State, m turn.Moment) []Reservation {
	out := []Reservation{}
	for _, r := range s.Reservations() {
		out = append(out, Reservation{
			Relayed: r.Relayed.String(), Username: r.Username, Realm: r.Realm, Made: r.Made.WallTime(),
			Expires: endOf(r.Deadline, m).Truncate(time.Millisecond), Overdue: r.Deadline.Passed(m),
		})
	}
	return out
}
