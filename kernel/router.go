package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink/nl"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Router follows the routes, links and neighbours of the network namespace it was made in, and keeps
// the neighbours that it is asked for resolved. It belongs to one goroutine, but for Changes. What it
// answers is as of the last Take.
type Router struct {
	requests map[int]*nl.SocketHandle // the sockets of requests by protocol, as nl wants them
	devices  int                      // a socket to ask drivers through
	netdev   int                      // the netlink family of network devices, 0 where there is none
	feed     *feed

	links      links
	addresses  map[netip.Addr]int   // of this host, to the lowest ifindex that has it
	fib        *fib                 // nil where it is too large to follow: the kernel is asked then
	large      bool                 // the fib is, once and for all
	answers    map[endpoints]answer // of the kernel
	lowered    map[netip.Addr]bool
	neighbours map[neighbourKey]neighbour
	mine       map[neighbourKey]bool // neighbours that are here for us
	told       map[Gateway]told
}

// timeout bounds a request to the kernel.
var timeout = unix.Timeval{Sec: 2}

// NewRouter reads the routes, links and neighbours of the calling thread's network namespace.
func NewRouter() (r *Router, err error) {
	r = &Router{
		devices: -1, answers: map[endpoints]answer{}, lowered: map[netip.Addr]bool{},
		neighbours: map[neighbourKey]neighbour{}, mine: map[neighbourKey]bool{}, told: map[Gateway]told{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("follow the host's routes: %w", err), r.Close())
			r = nil
		}
	}()
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_ROUTE)
	if err != nil {
		return r, fmt.Errorf("open netlink: %w", err)
	}
	r.requests = map[int]*nl.SocketHandle{unix.NETLINK_ROUTE: {Socket: s}}
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout), s.SetExtAck(true)); err != nil {
		return r, fmt.Errorf("set up netlink: %w", err)
	}
	if err := r.openGeneric(); err != nil {
		return r, err
	}
	if r.devices, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0); err != nil {
		return r, fmt.Errorf("open a socket for drivers: %w", err)
	}
	if r.feed, err = subscribe(); err != nil {
		return r, err
	}
	return r, r.reload()
}

// openGeneric opens a socket for generic netlink.
func (r *Router) openGeneric() error {
	s, err := nl.GetNetlinkSocketAt(netns.None(), netns.None(), unix.NETLINK_GENERIC)
	if err != nil {
		return fmt.Errorf("open generic netlink: %w", err)
	}
	r.requests[unix.NETLINK_GENERIC] = &nl.SocketHandle{Socket: s}
	if err := errors.Join(s.SetSendTimeout(&timeout), s.SetReceiveTimeout(&timeout)); err != nil {
		return fmt.Errorf("set up generic netlink: %w", err)
	}
	return r.findNetdev()
}

// Close ends the subscription and waits for its goroutine. The neighbours stay as they are: a frozen
// datapath needs them.
func (r *Router) Close() error {
	var errs []error
	if r.feed != nil {
		r.feed.close()
	}
	if r.devices >= 0 {
		errs = append(errs, unix.Close(r.devices))
		r.devices = -1
	}
	for _, s := range r.requests {
		s.Close()
	}
	r.requests = nil
	return errors.Join(errs...)
}

// Changes delivers when there is something to Take. It is never closed.
func (r *Router) Changes() <-chan struct{} { return r.feed.notify }

// reload reads everything anew.
func (r *Router) reload() error {
	if err := r.readLinks(); err != nil {
		return err
	}
	if err := r.readAddresses(); err != nil {
		return err
	}
	if err := r.readRoutes(); err != nil {
		return err
	}
	clear(r.answers)
	return r.readNeighbours()
}

// request is one to the kernel, with a fixed header.
func (r *Router) request(kind, flags int, header nl.NetlinkRequestData) *nl.NetlinkRequest {
	q := nl.NewNetlinkRequest(kind, flags)
	q.Sockets = r.requests
	q.AddData(header)
	return q
}

// dump calls f with each answer of a kind to a request for all.
func (r *Router) dump(kind int, answer uint16, header nl.NetlinkRequestData, f func(m []byte) bool) error {
	return r.request(kind, unix.NLM_F_DUMP, header).ExecuteIter(unix.NETLINK_ROUTE, answer, f)
}

// dumpTries is how often a dump is begun again that a change has interrupted.
const dumpTries = 5

// whole calls read, which dumps, until nothing changed meanwhile. Where something always does, it takes what
// there is: of the change that spoilt it the feed tells.
func whole(read func() error) error {
	for range dumpTries {
		if err := read(); !errors.Is(err, nl.ErrDumpInterrupted) {
			return err
		}
	}
	return nil
}

// attributes calls f with each attribute of b, nested flags taken off.
func attributes(b []byte, f func(kind uint16, value []byte)) error {
	all, err := nl.ParseRouteAttr(b)
	if err != nil {
		return fmt.Errorf("read netlink attributes: %w", err)
	}
	for _, a := range all {
		f(a.Attr.Type&^(unix.NLA_F_NESTED|unix.NLA_F_NET_BYTEORDER), a.Value)
	}
	return nil
}

// number is a 32-bit attribute, 0 if it is none.
func number(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return nl.NativeEndian().Uint32(b)
}

// ticks is a time as netlink tells it, in 1/100 s.
func ticks(n int32) time.Duration { return time.Duration(n) * 10 * time.Millisecond }
