package turn

import (
	"net/netip"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/pion/stun/v3"
)

func TestPolicy(t *testing.T) {
	open := &Policy{}
	lists := &Policy{
		Allow: prefixes("10.1.0.0/16", "192.0.2.7/32", "fd00::/64"),
		Deny:  prefixes("10.1.2.0/24", "203.0.113.0/24", "2001:db8:bad::/48"),
	}
	for _, tt := range []struct {
		policy *Policy
		peer   string
		want   Verdict
	}{
		{open, "203.0.113.5", Unlisted},
		{open, "2001:db8::5", Unlisted},
		{open, "0.0.0.0", Special},
		{open, "0.1.2.3", Special},
		{open, "10.0.0.1", Special},
		{open, "11.0.0.0", Unlisted},
		{open, "100.64.0.1", Special},
		{open, "100.127.255.255", Special},
		{open, "100.128.0.0", Unlisted},
		{open, "100.100.100.200", Special},
		{open, "127.0.0.1", Special},
		{open, "127.255.255.255", Special},
		{open, "168.63.129.16", Special},
		{open, "169.254.169.254", Special},
		{open, "172.15.255.255", Unlisted},
		{open, "172.16.0.1", Special},
		{open, "172.31.255.255", Special},
		{open, "172.32.0.0", Unlisted},
		{open, "192.0.0.192", Special},
		{open, "192.168.1.1", Special},
		{open, "198.18.0.1", Special},
		{open, "224.0.0.1", Special},
		{open, "239.255.255.255", Special},
		{open, "255.255.255.255", Special},
		{open, "::", Special},
		{open, "::1", Special},
		{open, "fc00::1", Special},
		{open, "fd00:ec2::254", Special},
		{open, "fe80::1", Special},
		{open, "fe80::1%eth0", Special},
		{open, "fec0::1", Special},
		{open, "ff02::1", Special},
		{open, "64:ff9b:1::1", Special},
		// IPv4 addresses in other clothes.
		{open, "::ffff:10.0.0.1", Special},
		{open, "::ffff:203.0.113.5", Unlisted},
		{open, "::10.0.0.1", Special},
		{open, "::203.0.113.5", Unlisted},
		{open, "::ffff:0:10.0.0.1", Special},
		{open, "64:ff9b::10.0.0.1", Special},
		{open, "64:ff9b::169.254.169.254", Special},
		{open, "64:ff9b::203.0.113.5", Unlisted},
		{open, "2002:0a00:0001::1", Special},
		{open, "2002:7f00:0001::", Special},
		{open, "2002:cb00:7105::1", Unlisted},
		{open, "2001:0:7f00:1:0:0:34ff:8efa", Special},    // Teredo, its server is 127.0.0.1
		{open, "2001:0:cb00:7105:0:0:f5ff:fffe", Special}, // Teredo, its client is 10.0.0.1
		{open, "2001:0:cb00:7105:0:0:34ff:8ef9", Unlisted},
		{open, "2001:db8::5efe:10.0.0.1", Special}, // ISATAP
		{open, "2001:db8::200:5efe:10.0.0.1", Special},
		{open, "2001:db8::5efe:203.0.113.5", Unlisted},
		// Lists: allow wins, deny comes next.
		{lists, "10.1.2.3", Allowed},
		{lists, "10.2.0.1", Special},
		{lists, "::ffff:10.1.2.3", Allowed},
		{lists, "203.0.113.5", Denied},
		{lists, "::ffff:203.0.113.5", Denied},
		{lists, "64:ff9b::203.0.113.5", Denied},
		{lists, "2002:cb00:7105::1", Denied},
		{lists, "64:ff9b::10.1.5.3", Special}, // an entry opens what it names, not its encodings
		{lists, "2001:db8:bad::1", Denied},
		{lists, "fd00::1", Allowed},
		{lists, "fd01::1", Special},
	} {
		if got := tt.policy.Judge(addr(tt.peer)); got != tt.want {
			t.Errorf("Judge(%s): got %d, want %d", tt.peer, got, tt.want)
		}
		if got, want := tt.policy.Permits(addr(tt.peer)), tt.want == Unlisted || tt.want == Allowed; got != want {
			t.Errorf("Permits(%s): got %t, want %t", tt.peer, got, want)
		}
	}
}

func TestAllowsExactly(t *testing.T) {
	p := &Policy{Allow: prefixes("192.0.2.1/32", "192.0.2.0/24", "2001:db8::/64", "2001:db8::9/128")}
	for peer, want := range map[string]bool{"192.0.2.1": true, "192.0.2.2": false, "2001:db8::1": false, "2001:db8::9": true} {
		if got := p.AllowsExactly(addr(peer)); got != want {
			t.Errorf("AllowsExactly(%s): got %t, want %t", peer, got, want)
		}
	}
}

// behindNAT is a relay on a private address that the world sees as 192.0.2.99.
func behindNAT(c *core) {
	c.rules.Relays = []Relay{{IP: addr("10.0.0.5"), External: addr("192.0.2.99")}}
	c.rules.Own = []netip.Addr{addr("198.51.100.200")}
}

func TestOwnAddresses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		policy   Policy
		peer     string // LIVE stands for the relayed address of another allocation, as clients see it
		permit   int
		bind     int
		wantPeer string
	}{
		{"LiveAllocation", Policy{}, "LIVE", 0, 0, ""},
		{"DeadPort", Policy{}, "192.0.2.99:22", 0, 403, ""},
		{"DeadPortOfPrivateAddress", Policy{}, "10.0.0.5:22", 0, 403, ""},
		{"DeadPortMapped", Policy{}, "[::ffff:192.0.2.99]:22", 0, 403, ""},
		{"OtherOwnAddress", Policy{}, "198.51.100.200:22", 0, 403, ""},
		{"PrivateNeighbour", Policy{}, "10.0.0.6:22", 403, 403, ""},
		{"ExactEntryForExternal", Policy{Allow: prefixes("192.0.2.99/32")}, "192.0.2.99:22", 0, 0, "10.0.0.5:22"},
		{"ExactEntryForPrivate", Policy{Allow: prefixes("10.0.0.5/32")}, "192.0.2.99:22", 0, 0, "10.0.0.5:22"},
		{"ExactEntryForOther", Policy{Allow: prefixes("198.51.100.200/32")}, "198.51.100.200:22", 0, 0, "198.51.100.200:22"},
		{"WideEntry", Policy{Allow: prefixes("192.0.2.0/24", "10.0.0.0/8", "198.51.100.0/24")}, "192.0.2.99:22", 0, 403, ""},
		{"WideEntryForOther", Policy{Allow: prefixes("198.51.100.0/24")}, "198.51.100.200:22", 0, 403, ""},
		{"Denied", Policy{Deny: prefixes("192.0.2.0/24")}, "LIVE", 403, 403, ""},
		{"DeniedByPrivateAddress", Policy{Deny: prefixes("10.0.0.0/8")}, "LIVE", 403, 403, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			behindNAT(c)
			c.rules.Policy = tt.policy
			c.allocated(alice())
			live := c.mustDo(0, bob(), stun.MethodAllocate, transport(17)).relayed
			if live.Addr() != addr("192.0.2.99") {
				t.Errorf("got XOR-RELAYED-ADDRESS %v, want one of the external address", live)
			}
			held := c.state.ByFiveTuple(bob().FiveTuple).Relayed[0]
			if held.Addr() != addr("10.0.0.5") || held.Port() != live.Port() {
				t.Errorf("got relayed address %v held, want the private form of %v", held, live)
			}
			p, want := rawOrPeer(tt.peer), tt.wantPeer
			if tt.peer == "LIVE" {
				p, want = peer(live.String()), held.String()
			}
			c.mustDo(tt.permit, alice(), stun.MethodCreatePermission, p)
			got := c.mustDo(tt.bind, alice(), stun.MethodChannelBind, channel(0x4000), p)
			if tt.bind == 0 {
				if e := got.events[0].(ChannelBound); e.Peer != addrPort(want) {
					t.Errorf("got a channel to %v, want to %s", e.Peer, want)
				}
			}
		})
	}
}

func rawOrPeer(s string) stun.Setter {
	if s != "LIVE" && addrPort(s).Addr().Is4In6() {
		return rawPeer(s)
	}
	return peer(s)
}

func TestShownAndPrivateAreOpposites(t *testing.T) {
	c := newCore(t)
	behindNAT(c)
	for _, tt := range []struct{ private, shown string }{
		{"10.0.0.5:50000", "192.0.2.99:50000"},
		{"203.0.113.5:4000", "203.0.113.5:4000"},
		{"[2001:db8::5]:4000", "[2001:db8::5]:4000"},
	} {
		if got := c.rules.Shown(addrPort(tt.private)); got != addrPort(tt.shown) {
			t.Errorf("Shown(%s): got %v, want %s", tt.private, got, tt.shown)
		}
		if got := c.rules.Private(addrPort(tt.shown)); got != addrPort(tt.private) {
			t.Errorf("Private(%s): got %v, want %s", tt.shown, got, tt.private)
		}
	}
}

func TestReconcile(t *testing.T) {
	setUp := func(t *testing.T) *core {
		c := newCore(t)
		c.allocated(alice())
		c.allocated(bob())
		c.allocated(timeLimitedCaller("carol", "south", at(time.Hour), "198.51.100.3:5000"))
		for _, who := range []*caller{alice(), bob()} {
			c.mustDo(0, who, stun.MethodCreatePermission, peers(peerA, peerB)...)
			c.mustDo(0, who, stun.MethodChannelBind, channel(0x4000), peer(peerA))
		}
		return c
	}
	for _, tt := range []struct {
		name   string
		change func(*core, *GateConfig)
		want   []string
	}{
		{"Nothing", func(*core, *GateConfig) {}, nil},
		{"UserRemoved", func(_ *core, g *GateConfig) { g.Users = g.Users[1:] }, []string{
			"AllocationDeleted allocation=1 reason=user-removed",
		}},
		{"PasswordChanged", func(_ *core, g *GateConfig) { g.Users[0].Password = "other" }, nil},
		{"SecretRotated", func(_ *core, g *GateConfig) { g.Secrets = g.Secrets[:1] }, nil},
		{"SecretsRemoved", func(_ *core, g *GateConfig) { g.Secrets = nil }, []string{
			"AllocationDeleted allocation=3 reason=user-removed",
		}},
		{"PeerDenied", func(c *core, _ *GateConfig) { c.rules.Policy.Deny = prefixes("203.0.113.5/32") }, []string{
			"ChannelRevoked allocation=1 channel=0x4000 reason=policy", "PermissionRevoked allocation=1 peer=203.0.113.5 reason=policy",
			"ChannelRevoked allocation=2 channel=0x4000 reason=policy", "PermissionRevoked allocation=2 peer=203.0.113.5 reason=policy",
		}},
		{"UserRemovedAndPeerDenied", func(c *core, g *GateConfig) {
			c.rules.Policy.Deny = prefixes("203.0.113.6/32")
			g.Users = g.Users[:1]
		}, []string{
			"PermissionRevoked allocation=1 peer=203.0.113.6 reason=policy", "AllocationDeleted allocation=2 reason=user-removed",
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := setUp(t)
			config := testGateConfig()
			tt.change(c, &config)
			c.gate = NewGate(config)
			if diff := cmp.Diff(tt.want, describeAll(c.reload())); diff != "" {
				t.Errorf("events (-want +got):\n%s", diff)
			}
			if again := c.reload(); len(again) > 0 {
				t.Errorf("a second reload made %v", describeAll(again))
			}
		})
	}
}

func TestClose(t *testing.T) {
	c := newCore(t)
	a := c.allocated(alice())
	if got := Close(c.state, a.ID+1, ReasonOperator); got != nil {
		t.Errorf("got %v for an allocation that is not there", describeAll(got))
	}
	c.record(Close(c.state, a.ID, ReasonOperator)...)
	if c.state.Len() != 0 || len(c.state.Image().Answers) != 1 {
		t.Errorf("got %d allocations and %d answers, want 0 and that of the Allocate", c.state.Len(), len(c.state.Image().Answers))
	}
}

func TestSpecialNetwork(t *testing.T) {
	for text, want := range map[string]bool{
		"10.0.0.0/8": true, "10.1.2.3/32": true, "fd00::/8": true, "0.0.0.0/8": true,
		"0.0.0.0/0": false, "10.0.0.0/7": false, "192.0.2.0/24": false, "::/0": false, "2001:db8::/32": false,
	} {
		if got := SpecialNetwork(netip.MustParsePrefix(text)); got != want {
			t.Errorf("%s: got %v, want %v", text, got, want)
		}
	}
}
