package kernel

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Change is what a change of the host's network touches.
type Change struct {
	All      bool           // all may have changed, the rest of this says nothing
	Prefixes []netip.Prefix // a route whose source or destination lies in one may have changed
	Gateways []Gateway      // known to [Router.Hop], which may now answer otherwise
	Links    []int          // ifindexes of links that came, went or changed
}

// Empty says whether nothing of interest changed.
func (c *Change) Empty() bool {
	return !c.All && len(c.Prefixes) == 0 && len(c.Gateways) == 0 && len(c.Links) == 0
}

// Touches says whether the route from source to destination has to be asked for again.
func (c *Change) Touches(source, destination netip.Addr) bool {
	if c.All {
		return true
	}
	for _, p := range c.Prefixes {
		if p.Contains(source) || p.Contains(destination) {
			return true
		}
	}
	return false
}

// add notes that routes of a prefix changed.
func (c *Change) add(p netip.Prefix) {
	switch {
	case c.All || slices.Contains(c.Prefixes, p):
	case len(c.Prefixes) == prefixLimit:
		c.All, c.Prefixes = true, nil
	default:
		c.Prefixes = append(c.Prefixes, p)
	}
}

// prefixLimit is the number of prefixes up to which it is worth it to name them.
const prefixLimit = 256

// Take brings what Route, Hop and Link answer up to date and says what that touches. On an error all may
// have changed; Changes tells when to try again.
func (r *Router) Take() (Change, error) {
	messages, lost := r.feed.take()
	if lost {
		if err := r.reload(); err != nil {
			r.feed.retry()
			return Change{All: true}, fmt.Errorf("read the host's network anew: %w", err)
		}
		r.revisit(func(Gateway, neighbourKey) bool { return true })
		return Change{All: true}, nil
	}
	n, err := r.sort(messages)
	if err == nil {
		var c Change
		if c, err = r.digest(n); err == nil {
			return c, nil
		}
	}
	r.feed.retry()
	return Change{All: true}, err
}

// news is what messages of the kernel are about.
type news struct {
	links      map[int]bool          // that were told of; once read, those that changed
	neighbours map[neighbourKey]bool // that are good for something else than before
	usable     map[neighbourKey]bool // through which routes may now be chosen or shunned
	routes     bool                  // routes, or what they depend on
	rules      bool
	addresses  bool
	all        bool // of what an event of a large fib touches
	prefixes   []netip.Prefix
}

// sort takes over what messages say of neighbours, and gathers what else has to be read again.
func (r *Router) sort(messages []syscall.NetlinkMessage) (*news, error) {
	n := &news{links: map[int]bool{}, neighbours: map[neighbourKey]bool{}, usable: map[neighbourKey]bool{}}
	for _, m := range messages {
		switch m.Header.Type {
		case unix.RTM_NEWLINK, unix.RTM_DELLINK:
			if len(m.Data) >= unix.SizeofIfInfomsg {
				n.links[int(nl.DeserializeIfInfomsg(m.Data).Index)] = true
			}
		case unix.RTM_NEWADDR, unix.RTM_DELADDR:
			n.addresses, n.routes, n.all = true, true, true
		case unix.RTM_NEWRULE, unix.RTM_DELRULE:
			n.routes, n.rules, n.all = true, true, true
		case unix.RTM_NEWNEXTHOP, unix.RTM_DELNEXTHOP:
			n.routes, n.all = true, true
		case unix.RTM_NEWROUTE, unix.RTM_DELROUTE:
			_, p, _, err := parseRoute(m.Data)
			if err != nil {
				return nil, err
			}
			n.routes = true
			n.prefixes = append(n.prefixes, p)
		case unix.RTM_NEWNEIGH, unix.RTM_DELNEIGH:
			k, v, err := parseNeighbour(m.Data)
			if err != nil {
				return nil, err
			}
			if k.address.IsValid() {
				r.hear(k, v, m.Header.Type == unix.RTM_NEWNEIGH, n)
			}
		}
	}
	return n, nil
}

// digest reads again what the news is about, and says what changed by it.
func (r *Router) digest(n *news) (c Change, err error) {
	c.All = n.rules
	rerouted, err := r.refreshLinks(n, &c)
	if err != nil {
		return c, err
	}
	if n.addresses {
		if err := r.readAddresses(); err != nil {
			return c, err
		}
	}
	if n.routes {
		before := r.fib
		if err := r.readRoutes(); err != nil {
			return c, err
		}
		if before != nil && r.fib != nil {
			before.diff(r.fib, &c)
		} else {
			c.All = c.All || n.all
			for _, p := range n.prefixes {
				c.add(p)
			}
		}
	}
	switch {
	case len(rerouted) > 0 && r.fib == nil:
		c.All = true
	case len(rerouted) > 0:
		r.fib.through(func(f fibRoute) bool { return f.odd != "" || rerouted[f.link] }, &c)
	}
	if r.fib != nil && len(n.usable) > 0 {
		r.fib.fallbacks(n.usable, &c)
	}
	r.forget(&c)
	c.Gateways = r.revisit(func(g Gateway, k neighbourKey) bool {
		return n.neighbours[k] || n.links[k.link] || n.links[g.Link]
	})
	return c, nil
}

// refreshLinks reads the links of the news again. It yields those whose routes lead elsewhere now.
func (r *Router) refreshLinks(n *news, c *Change) (rerouted map[int]bool, err error) {
	if len(n.links) == 0 {
		return nil, nil
	}
	before := r.links
	if err := r.readLinks(); err != nil {
		return nil, err
	}
	for i := range before {
		n.links[i] = true
	}
	for i := range r.links {
		n.links[i] = true
	}
	rerouted = map[int]bool{}
	for i := range n.links { // of one that is read here already, nothing new comes when it is told of
		was, had := before[i]
		is, has := r.links[i]
		if was == is && had == has {
			delete(n.links, i)
			continue
		}
		c.Links = append(c.Links, i)
		n.routes, n.all = true, true // IPv4 tells of no route that a link takes with it
		was.Up, was.Name, was.MAC = is.Up, is.Name, is.MAC
		if was != is || had != has {
			rerouted[i] = true
			for j, l := range r.links {
				if l.Parent == i {
					rerouted[j] = true
				}
			}
		}
	}
	slices.Sort(c.Links)
	return rerouted, nil
}

// feed gathers what the kernel tells until it is taken.
type feed struct {
	socket *nl.NetlinkSocket
	notify chan struct{}
	end    sync.Once
	closed chan struct{} // closed to end the goroutine
	done   chan struct{} // closed when it has ended

	mu      sync.Mutex // guards what follows
	pending []syscall.NetlinkMessage
	lost    bool // there was more than is pending
}

// retryAfter is how long what failed is left alone.
const retryAfter = 500 * time.Millisecond

// Bounds of what waits, in the kernel and here.
const (
	feedBuffer  = 4 << 20
	feedPending = 16384
)

// subscribe hears of changes from its return on.
func subscribe() (*feed, error) {
	s, err := nl.Subscribe(unix.NETLINK_ROUTE, unix.RTNLGRP_LINK, unix.RTNLGRP_NEIGH,
		unix.RTNLGRP_IPV4_IFADDR, unix.RTNLGRP_IPV4_ROUTE, unix.RTNLGRP_IPV4_RULE,
		unix.RTNLGRP_IPV6_IFADDR, unix.RTNLGRP_IPV6_ROUTE, unix.RTNLGRP_IPV6_RULE, unix.RTNLGRP_IPV6_IFINFO,
		unix.RTNLGRP_NEXTHOP)
	if err != nil {
		return nil, fmt.Errorf("subscribe to network changes: %w", err)
	}
	if s.SetReceiveBufferSize(feedBuffer, true) != nil {
		_ = s.SetReceiveBufferSize(feedBuffer, false) // less is only slower: what is lost is read anew
	}
	f := &feed{socket: s, notify: make(chan struct{}, 1), closed: make(chan struct{}), done: make(chan struct{})}
	go f.run()
	return f, nil
}

func (f *feed) close() {
	f.end.Do(func() {
		close(f.closed)
		f.socket.Close()
	})
	<-f.done
}

func (f *feed) run() {
	defer close(f.done)
	for {
		messages, from, err := f.socket.Receive()
		switch {
		case err == nil:
			if from.Pid == nl.PidKernel {
				f.add(messages)
			}
			continue
		case errors.Is(err, unix.ENOBUFS):
			f.lose()
			continue
		}
		select {
		case <-f.closed:
			return
		case <-time.After(retryAfter):
			f.lose() // whatever it was, nothing may have been heard meanwhile
		}
	}
}

func (f *feed) add(messages []syscall.NetlinkMessage) {
	f.mu.Lock()
	if len(f.pending)+len(messages) > feedPending {
		f.pending, f.lost = nil, true
	}
	if !f.lost {
		f.pending = append(f.pending, messages...)
	}
	f.mu.Unlock()
	f.tell()
}

// lose has everything read anew.
func (f *feed) lose() {
	f.mu.Lock()
	f.pending, f.lost = nil, true
	f.mu.Unlock()
	f.tell()
}

// retry has everything read anew, a little later.
func (f *feed) retry() {
	f.mu.Lock()
	f.pending, f.lost = nil, true
	f.mu.Unlock()
	time.AfterFunc(retryAfter, f.tell)
}

func (f *feed) tell() {
	select {
	case f.notify <- struct{}{}:
	default:
	}
}

func (f *feed) take() (messages []syscall.NetlinkMessage, lost bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	messages, lost = f.pending, f.lost
	f.pending, f.lost = nil, false
	return messages, lost
}
