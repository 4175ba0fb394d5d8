package doctor

import (
	"fmt"
	"strconv"
	"strings"
)

// Ports is a range of ports, ends included.
type Ports struct{ First, Last uint16 }

func (p Ports) String() string { return fmt.Sprintf("%d-%d", p.First, p.Last) }

// Overlap is the range of which the host gives ports to other sockets too, where that touches relayed ones which
// are not reserved. Local and reserved are what ip_local_port_range and ip_local_reserved_ports say.
func Overlap(relayed Ports, local, reserved string) (Ports, bool) {
	ends := strings.Fields(local)
	if len(ends) != 2 {
		return Ports{}, false
	}
	given, ok := ports(ends[0], ends[1])
	if !ok {
		return Ports{}, false
	}
	both := Ports{max(relayed.First, given.First), min(relayed.Last, given.Last)}
	return given, both.First <= both.Last && !covered(reserved, both)
}

func ports(first, last string) (Ports, bool) {
	a, err1 := strconv.ParseUint(first, 10, 16)
	b, err2 := strconv.ParseUint(last, 10, 16)
	return Ports{uint16(a), uint16(b)}, err1 == nil && err2 == nil
}

// covered says whether one of the ranges in reserved, "a-b,c,d-e", holds p.
func covered(reserved string, p Ports) bool {
	for _, part := range strings.Split(strings.TrimSpace(reserved), ",") {
		a, b, isRange := strings.Cut(part, "-")
		if !isRange {
			b = a
		}
		if r, ok := ports(a, b); ok && r.First <= p.First && p.Last <= r.Last {
			return true
		}
	}
	return false
}

// Reserve is the command that keeps p for the relay, besides what is reserved: a setting replaces the one before.
func Reserve(p Ports, reserved string) string {
	all := p.String()
	if others := strings.TrimSpace(reserved); others != "" {
		all = others + "," + all
	}
	return "sysctl -w net.ipv4.ip_local_reserved_ports=" + all
}

func checkPorts(f *Facts) []Row {
	const check = "relay-ports"
	relayed := Ports{f.First, f.Last}
	for _, fact := range []Known[string]{f.Local, f.Reserved} {
		if fact.Err != nil {
			return []Row{skip(check, fact.Err)}
		}
	}
	given, overlaps := Overlap(relayed, f.Local.Value, f.Reserved.Value)
	if !overlaps {
		return []Row{ok(check, "%v, which the host gives to nobody else", relayed)}
	}
	return []Row{ok(check, "%v overlap net.ipv4.ip_local_port_range (%v): another program can take one while the daemon is down, which ends that allocation", relayed, given).
		as(Warn, Reserve(relayed, f.Reserved.Value)+", and the same in /etc/sysctl.d")}
}
