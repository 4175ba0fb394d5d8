package doctor

import (
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Chain is a chain of nf_tables that packets come to by themselves.
type Chain struct {
	Family string // ip, ip6, inet or netdev
	Table  string
	Name   string
	Hook   string // prerouting, input, forward, output, postrouting, ingress or egress
	Drops  bool   // by its policy
	Rules  []Rule
}

// Rule is what a rule asks of packets, as far as it can be told.
type Rule struct {
	Protocol int    // of the IP header, -1 for any
	In       string // name of an interface, empty for any
	Port     int    // destination, -1 for any
}

// Legacy is a table of iptables-legacy.
type Legacy struct {
	Family string // ip or ip6
	Table  string
	Rules  int
	Drops  bool // by a policy
}

// concerns says whether packets that the kernel relays could match r in a hook.
func (r *Rule) concerns(f *Facts, hook string) bool {
	arriving := hook == "prerouting" || hook == "input" || hook == "ingress"
	switch {
	case r.Protocol >= 0 && r.Protocol != unix.IPPROTO_UDP:
		return false
	case r.In != "" && !f.relaysOn(r.In):
		return false
	case arriving && r.Port >= 0 && !f.isOurs(r.Port):
		return false
	}
	return true
}

// isOurs says whether datagrams that are relayed can arrive at a port.
func (f *Facts) isOurs(port int) bool {
	for _, l := range f.Listeners {
		if int(l.Port()) == port {
			return true
		}
	}
	return int(f.First) <= port && port <= int(f.Last)
}

// relaysOn says whether the program can be on an interface. Where that is not known, it can.
func (f *Facts) relaysOn(name string) bool {
	name, wild := strings.CutSuffix(name, "*")
	return f.Links.Err != nil || slices.ContainsFunc(f.Links.Value, func(l Link) bool {
		return l.Link.Unfit == "" && (l.Link.Name == name || wild && strings.HasPrefix(l.Link.Name, name))
	})
}

// checkFirewall finds rules that packets relayed by the kernel do not come to.
func checkFirewall(f *Facts) []Row {
	const nft, legacy = "firewall", "firewall-legacy"
	if f.off() {
		return nil
	}
	var rows []Row
	if f.Chains.Err != nil {
		rows = append(rows, skip(nft, f.Chains.Err, "CAP_NET_ADMIN"))
	} else {
		rows = append(rows, bypassed(nft, f.chains(), "nft list ruleset"))
	}
	if f.Legacy.Err != nil {
		return append(rows, skip(legacy, f.Legacy.Err, "CAP_NET_ADMIN", "the user root"))
	}
	var tables []string
	for _, t := range f.Legacy.Value {
		text := fmt.Sprintf("%s table %s: %s", map[string]string{"ip": "iptables", "ip6": "ip6tables"}[t.Family], t.Table, count(t.Rules, "rule"))
		if t.Drops {
			text += ", a policy drops"
		}
		if t.Rules > 0 || t.Drops {
			tables = append(tables, text)
		}
	}
	return append(rows, bypassed(legacy, tables, "iptables-legacy-save and ip6tables-legacy-save"))
}

// chains are those of nf_tables with something to say about relayed datagrams.
func (f *Facts) chains() (out []string) {
	for _, c := range f.Chains.Value {
		n := 0
		for i := range c.Rules {
			if c.Rules[i].concerns(f, c.Hook) {
				n++
			}
		}
		text := fmt.Sprintf("%s %s %s (%s): %s", c.Family, c.Table, c.Name, c.Hook, count(n, "rule"))
		if c.Drops {
			text += ", policy drop"
		}
		if n > 0 || c.Drops {
			out = append(out, text)
		}
	}
	return out
}

// mostNamed is how many things a row names.
const mostNamed = 8

func bypassed(check string, found []string, show string) Row {
	if len(found) == 0 {
		return ok(check, "no rules that relayed datagrams would come to")
	}
	more := ""
	if len(found) > mostNamed {
		more = fmt.Sprintf("; and %d more", len(found)-mostNamed)
		found = found[:mostNamed]
	}
	return ok(check, "what the kernel relays does not come to these: %s%s", strings.Join(found, "; "), more).
		as(Warn, "see "+show+": what they are to do for relayed datagrams, say with peers.allow, peers.deny and limits.max-bandwidth, or keep relaying in userspace with kernel.mode = \"off\"")
}
