package kernel

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// fibLimit is the number of routes up to which they are followed here.
const fibLimit = 16384

// fibRoute is a route of the kernel's.
type fibRoute struct {
	kind         uint8
	tos          uint8
	flags        uint32 // RTNH_F_DEAD, RTNH_F_LINKDOWN
	link         int
	gateway      netip.Addr // not valid where the destination is on link
	metric       uint32
	mtu          uint32 // 0: of the link
	encapsulated bool
	odd          string    // what only the kernel can judge: several next hops, a source
	until        time.Time // it lapses, unless somebody prolonged it, of which nobody tells; zero: never
}

// like says whether the kernel would take f as it takes g, but for how long.
func (f fibRoute) like(g fibRoute) bool {
	f.until = g.until
	return f == g
}

// lapsed says whether f may be none any more.
func (f fibRoute) lapsed() bool { return !f.until.IsZero() && !time.Now().Before(f.until) }

// fib holds the routes of all tables, to answer without asking the kernel where it is plain what the
// kernel would say.
type fib struct {
	tables map[fibKey][]fibRoute // in the order of the kernel
	plain  [2]bool               // by family: no rules but those of every host
	bits   [2][]int              // lengths of prefixes in the tables below, longest first
}

// fibKey names the routes that compete.
type fibKey struct {
	table  uint32
	prefix netip.Prefix
}

// errLarge says that there are too many routes to follow.
var errLarge = errors.New("too many routes")

// readRoutes reads rules and routes anew.
func (r *Router) readRoutes() error {
	if r.large {
		return nil
	}
	f := &fib{tables: map[fibKey][]fibRoute{}}
	lowered := map[netip.Addr]bool{}
	for i, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		var err error
		if f.plain[i], err = r.readRules(family); err != nil {
			return err
		}
		var tables map[fibKey][]fibRoute
		err = whole(func() (err error) {
			tables, err = r.readTables(family, lowered)
			return err
		})
		if errors.Is(err, errLarge) {
			r.fib, r.large = nil, true
			return nil
		}
		if err != nil {
			return fmt.Errorf("read routes: %w", err)
		}
		maps.Copy(f.tables, tables)
	}
	f.measure()
	r.fib, r.lowered = f, lowered
	return nil
}

// readTables reads the routes of a family, and the addresses of which the kernel learned how the path is.
func (r *Router) readTables(family uint8, lowered map[netip.Addr]bool) (map[fibKey][]fibRoute, error) {
	tables := map[fibKey][]fibRoute{}
	n := 0
	var broken error
	err := r.dump(unix.RTM_GETROUTE, unix.RTM_NEWROUTE, &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}}, func(m []byte) bool {
		if m[0] != family {
			return true
		}
		table, p, route, err := parseRoute(m)
		switch {
		case err != nil:
			broken = err
		case nl.DeserializeRtMsg(m).Flags&unix.RTM_F_CLONED != 0:
			lowered[p.Addr()] = true
		default:
			n++
			k := fibKey{table, p}
			tables[k] = append(tables[k], route)
		}
		return broken == nil && n <= fibLimit
	})
	if broken != nil {
		err = broken
	} else if n > fibLimit {
		err = errLarge
	}
	return tables, err
}

// measure notes what lookups need.
func (f *fib) measure() {
	for k := range f.tables {
		i := index4or6(k.prefix.Addr())
		switch k.table {
		case unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN:
			if !slices.Contains(f.bits[i], k.prefix.Bits()) {
				f.bits[i] = append(f.bits[i], k.prefix.Bits())
			}
		case unix.RT_TABLE_DEFAULT:
			f.plain[i] = false // a third table to fall back on
		}
	}
	for i := range f.bits {
		slices.Sort(f.bits[i])
		slices.Reverse(f.bits[i])
	}
}

// match finds the route to a. It is sure where the kernel would say the same: where the rules are plain and
// nothing depends on what is not seen here. valid says whether a neighbour is resolved.
func (f *fib) match(a netip.Addr, valid func(link int, address netip.Addr) bool) (best fibRoute, found, sure bool) {
	i := index4or6(a)
	if !f.plain[i] {
		return best, false, false
	}
	alternatives := false
	for _, bits := range f.bits[i] {
		p, err := a.Prefix(bits)
		if err != nil {
			return best, false, false
		}
		if l := f.tables[fibKey{unix.RT_TABLE_LOCAL, p}]; l != nil {
			if found { // whether main is asked first depends on what rules there once were
				return best, false, false
			}
			best, sure = only(l, p)
			return best, sure, sure
		}
		m := f.tables[fibKey{unix.RT_TABLE_MAIN, p}]
		switch {
		case m == nil:
		case found:
			alternatives = true
		default:
			if best, sure = only(m, p); !sure {
				return best, false, false
			}
			found = true
		}
	}
	if i == 1 && alternatives && best.gateway.IsValid() && !valid(best.link, best.gateway) {
		return best, false, false // IPv6 may prefer a worse route to a router that does not answer
	}
	return best, found, true
}

// only is the route that the kernel takes of some that compete for p, if that is plain.
func only(routes []fibRoute, p netip.Prefix) (best fibRoute, sure bool) {
	for _, r := range routes {
		switch {
		case r.odd != "" || r.flags != 0 || r.tos != 0 || r.kind >= unix.RTN_THROW || r.lapsed():
			return r, false
		case p.Addr().Is6() && len(routes) > 1:
			return r, false
		}
	}
	best = slices.MinFunc(routes, func(a, b fibRoute) int { return cmp.Compare(a.metric, b.metric) })
	return best, !balanced(routes, p)
}

// balanced says whether the kernel chooses among routes by their neighbours: of IPv4 it does between default routes.
func balanced(routes []fibRoute, p netip.Prefix) bool {
	if p.Bits() > 0 || p.Addr().Is6() {
		return false
	}
	for i, r := range routes {
		if slices.ContainsFunc(routes[i+1:], func(o fibRoute) bool { return o.metric == r.metric }) {
			return true
		}
	}
	return false
}

// local finds a among the addresses of this host.
func (f *fib) local(a netip.Addr) (fibRoute, bool) {
	for _, bits := range f.bits[index4or6(a)] {
		p, err := a.Prefix(bits)
		if err != nil {
			continue
		}
		if l := f.tables[fibKey{unix.RT_TABLE_LOCAL, p}]; l != nil {
			return l[0], l[0].kind == unix.RTN_LOCAL
		}
	}
	return fibRoute{}, false
}

// diff adds to c the prefixes whose routes are not the same in g.
func (f *fib) diff(g *fib, c *Change) {
	for k, routes := range f.tables {
		if !slices.EqualFunc(routes, g.tables[k], fibRoute.like) {
			c.add(k.prefix)
		}
	}
	for k := range g.tables {
		if _, ok := f.tables[k]; !ok {
			c.add(k.prefix)
		}
	}
	if f.plain != g.plain {
		c.All = true
	}
}

// through adds to c the prefixes of routes for which is holds.
func (f *fib) through(is func(fibRoute) bool, c *Change) {
	for k, routes := range f.tables {
		if slices.ContainsFunc(routes, is) {
			c.add(k.prefix)
		}
	}
}

// fallbacks adds to c the prefixes of routes through neighbours of some, and besides which the kernel has others
// to choose, as it does for IPv6.
func (f *fib) fallbacks(some map[neighbourKey]bool, c *Change) {
	for k, routes := range f.tables {
		chosen := k.prefix.Addr().Is6() || balanced(routes, k.prefix)
		if !chosen || !slices.ContainsFunc(routes, func(r fibRoute) bool { return r.through(some) }) {
			continue
		}
		others := len(routes) > 1 || routes[0].odd != ""
		for bits := k.prefix.Bits() - 1; bits >= 0 && !others; bits-- {
			others = f.tables[fibKey{k.table, netip.PrefixFrom(k.prefix.Addr(), bits).Masked()}] != nil
		}
		if others {
			c.add(k.prefix)
		}
	}
}

// through says whether f may lead through one of some neighbours.
func (f fibRoute) through(some map[neighbourKey]bool) bool {
	if some[neighbourKey{f.link, f.gateway}] {
		return true
	}
	if f.odd == "" {
		return false
	}
	for k := range some { // several next hops are there as the kernel tells of them
		if strings.Contains(f.odd, string(k.address.AsSlice())) {
			return true
		}
	}
	return false
}

// index4or6 is where arrays by family have that of a.
func index4or6(a netip.Addr) int {
	if a.Is4() {
		return 0
	}
	return 1
}

// Attributes of routes that golang.org/x/sys/unix lacks.
const (
	rtaNextHopID   = 30 // RTA_NH_ID
	metricMTU      = 2  // RTAX_MTU
	cacheInfoLapse = 8  // offset of rta_expires in struct rta_cacheinfo
)

// parseRoute reads a route message.
func parseRoute(m []byte) (table uint32, p netip.Prefix, f fibRoute, err error) {
	if len(m) < unix.SizeofRtMsg {
		return 0, p, f, errors.New("read a route: message too short")
	}
	h := nl.DeserializeRtMsg(m)
	f = fibRoute{kind: h.Type, tos: h.Tos, flags: h.Flags & (unix.RTNH_F_DEAD | unix.RTNH_F_LINKDOWN)}
	table = uint32(h.Table)
	destination := netip.IPv4Unspecified()
	if h.Family == unix.AF_INET6 {
		destination = netip.IPv6Unspecified()
	}
	err = attributes(m[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.RTA_TABLE:
			table = number(value)
		case unix.RTA_DST:
			if a, ok := netip.AddrFromSlice(value); ok {
				destination = a
			}
		default:
			f.take(kind, value)
		}
	})
	return table, netip.PrefixFrom(destination, int(h.Dst_len)).Masked(), f, err
}

// take takes over an attribute.
func (f *fibRoute) take(kind uint16, value []byte) {
	switch kind {
	case unix.RTA_OIF:
		f.link = int(number(value))
	case unix.RTA_GATEWAY:
		f.gateway, _ = netip.AddrFromSlice(value)
	case unix.RTA_VIA: // a family in two bytes, then the address
		if len(value) > 2 {
			f.gateway, _ = netip.AddrFromSlice(value[2:])
		}
	case unix.RTA_PRIORITY:
		f.metric = number(value)
	case unix.RTA_METRICS:
		_ = attributes(value, func(metric uint16, v []byte) {
			if metric == metricMTU {
				f.mtu = number(v)
			}
		})
	case unix.RTA_ENCAP_TYPE:
		f.encapsulated = len(value) >= 2 && (value[0] != 0 || value[1] != 0)
	case unix.RTA_CACHEINFO:
		if len(value) >= cacheInfoLapse+4 {
			if left := int32(number(value[cacheInfoLapse:])); left != 0 { // rounded down
				f.until = time.Now().Add(ticks(left + 1))
			}
		}
	case unix.RTA_MULTIPATH, rtaNextHopID, unix.RTA_SRC:
		f.odd += string(rune(kind)) + string(value)
	}
}

// readRules says whether the rules of a family are those that every host has.
func (r *Router) readRules(family uint8) (plain bool, err error) {
	var tables []uint32
	plain = true
	err = whole(func() error {
		tables, plain = nil, true
		h := &nl.RtMsg{RtMsg: unix.RtMsg{Family: family}}
		return r.dump(unix.RTM_GETRULE, unix.RTM_NEWRULE, h, func(m []byte) bool {
			if m[0] == family {
				table, ok := parseRule(m)
				tables, plain = append(tables, table), plain && ok
			}
			return true
		})
	})
	if errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) { // a kernel without rules, or the family
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("read rules: %w", err)
	}
	usual := []uint32{unix.RT_TABLE_LOCAL, unix.RT_TABLE_MAIN, unix.RT_TABLE_DEFAULT}
	return plain && len(tables) >= 2 && slices.Equal(tables, usual[:min(len(tables), len(usual))]), nil
}

// parseRule yields the table that a rule leads to; it is plain if it does so always.
func parseRule(m []byte) (table uint32, plain bool) {
	h := nl.DeserializeRtMsg(m) // struct fib_rule_hdr has its form: the type is the action, and flags may invert
	table, plain = uint32(h.Table), h.Type == unix.FR_ACT_TO_TBL && h.Flags&^fibRulePermanent == 0
	plain = plain && h.Src_len == 0 && h.Dst_len == 0 && h.Tos == 0
	err := attributes(m[unix.SizeofRtMsg:], func(kind uint16, value []byte) {
		switch kind {
		case unix.FRA_TABLE:
			table = number(value)
		case unix.FRA_PRIORITY, unix.FRA_PROTOCOL, unix.FRA_PAD:
		case unix.FRA_SUPPRESS_PREFIXLEN, unix.FRA_SUPPRESS_IFGROUP:
			plain = plain && int32(number(value)) == -1
		default:
			plain = false
		}
	})
	return table, plain && err == nil
}

// fibRulePermanent is FIB_RULE_PERMANENT: the rule cannot be deleted.
const fibRulePermanent = 1
