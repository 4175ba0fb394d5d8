package kernel

import (
	"turnstone/turn"
)

// probesAtOnce bounds how many paths are asked for in a tick.
const probesAtOnce = 500

// pathMTU is a way that flows take, with what they know of it.
type pathMTU struct {
	endpoints
	mtu uint16
	of  []turn.AllocationID
}

// probePaths asks the kernel, some paths a tick, how large packets may be there: what it has learned from ICMP
// errors it tells only if asked. A flow whose path takes less than it knew lets larger packets pass up.
func (d *Datapath) probePaths() {
	if len(d.probes) == 0 {
		d.probes = d.paths()
	}
	diff := d.r.newDiff()
	n := min(len(d.probes), probesAtOnce)
	for _, p := range d.probes[:n] {
		if _, err := d.router.PathMTU(p.source, p.destination); err != nil {
			continue // the route is gone, of which a change tells
		}
		if r, why := d.router.Route(p.source, p.destination); why == "" && mtuOf(r) != p.mtu {
			for _, id := range p.of {
				diff.allocation(id)
			}
		}
	}
	d.probes = d.probes[n:]
	diff.write()
}

// mtuOf is the MTU of a route as records hold it.
func mtuOf(r Route) uint16 { return uint16(min(r.MTU, 0xffff)) }

// paths are those of all flows, each once.
func (d *Datapath) paths() []pathMTU {
	seen := map[endpoints]int{}
	var out []pathMTU
	for _, h := range d.r.held {
		if h.Kind == Guard || h.LocalPeer {
			continue
		}
		e := endpoints{h.Source.Addr(), h.Destination.Addr()}
		i, known := seen[e]
		if !known {
			i = len(out)
			seen[e] = i
			out = append(out, pathMTU{endpoints: e, mtu: h.MTU})
		}
		out[i].of = append(out[i].of, h.Allocation)
	}
	return out
}
