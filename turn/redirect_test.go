package turn

import (
	"slices"
	"testing"

	"github.com/pion/stun/v3"
)

func alternates(addresses ...string) (out []Alternate) {
	for _, a := range addresses {
		out = append(out, Alternate{Address: addrPort(a)})
	}
	return out
}

const (
	otherV4 = "203.0.113.200:3478"
	otherV6 = "[2001:db8:9::1]:3479"
)

// TestRedirect has clients sent to other servers (RFC 8489 section 10, RFC 8656 section 7.2).
func TestRedirect(t *testing.T) {
	v6 := newCaller("alice", "wonderland", "[2001:db8:5::1]:5000")
	v6.Server = addrPort("[2001:db8::1]:3478")
	over := func(p Protocol, c *caller) *caller {
		other := *c
		other.Protocol = p
		return &other
	}
	modern := alice().with(algorithmSHA256, false)
	for _, tt := range []struct {
		name       string
		who        *caller
		rules      func(*Rules)
		attributes []stun.Setter
		code       int
		servers    []string
		domain     string
	}{
		{name: "Drains", who: alice(), rules: func(r *Rules) { r.Draining = true }, code: 300, servers: []string{otherV4, otherV6}},
		{name: "FamilyOfTheClientFirst", who: v6, rules: func(r *Rules) { r.Draining = true }, code: 300, servers: []string{otherV6, otherV4}},
		{name: "Always", who: alice(), rules: func(r *Rules) { r.Redirect = true }, code: 300, servers: []string{otherV4, otherV6}},
		{name: "NotWhileItServes", who: alice(), rules: func(*Rules) {}},
		{name: "NoneOfTheFamily", who: alice(), rules: func(r *Rules) { r.Draining, r.Alternates = true, alternates(otherV6) }, code: 508},
		{name: "OnlyOfTheFamily", who: alice(), rules: func(r *Rules) { r.Draining, r.Alternates = true, alternates(otherV4) }, code: 300, servers: []string{otherV4}},
		{name: "None", who: alice(), rules: func(r *Rules) { r.Draining, r.Alternates = true, nil }, code: 508},
		{
			name: "OfTheTransport", who: over(TLS, alice()), code: 300, servers: []string{"203.0.113.201:5349", otherV6},
			rules: func(r *Rules) {
				r.Draining = true
				r.Alternates = append(r.Alternates, Alternate{Protocol: TLS, Address: addrPort("203.0.113.201:5349")})
			},
		},
		{
			name: "OfAnotherTransport", who: alice(), code: 508,
			rules: func(r *Rules) {
				r.Draining, r.Alternates = true, []Alternate{{Protocol: TLS, Address: addrPort("203.0.113.201:5349")}}
			},
		},
		{
			name: "Domain", who: over(TLS, modern), code: 300, servers: []string{otherV4, otherV6}, domain: "other.example.org",
			rules: func(r *Rules) { r.Draining, r.AlternateDomain = true, "other.example.org" },
		},
		{
			name: "DomainOverDTLS", who: over(DTLS, modern), code: 300, servers: []string{otherV4, otherV6}, domain: "other.example.org",
			rules: func(r *Rules) { r.Draining, r.AlternateDomain = true, "other.example.org" },
		},
		{
			name: "NoDomainWithoutSHA256", who: over(TLS, alice()), code: 300, servers: []string{otherV4, otherV6},
			rules: func(r *Rules) { r.Draining, r.AlternateDomain = true, "other.example.org" },
		},
		{
			name: "NoDomainOverUDP", who: modern, code: 300, servers: []string{otherV4, otherV6},
			rules: func(r *Rules) { r.Draining, r.AlternateDomain = true, "other.example.org" },
		},
		{name: "TokenIsOfThisServer", who: alice(), rules: func(r *Rules) { r.Draining = true }, attributes: []stun.Setter{token(ReservationToken{1})}, code: 508},
		{name: "NothingCanBeRecorded", who: alice(), rules: func(r *Rules) { r.Draining, r.Storage = true, RoomNone }, code: 508},
		{name: "Malformed", who: alice(), rules: func(r *Rules) { r.Draining = true }, attributes: []stun.Setter{set(stun.AttrLifetime, 1)}, code: 400},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newCore(t)
			c.rules.Alternates = alternates(otherV4, otherV6)
			tt.rules(&c.rules)
			got := c.mustDo(tt.code, tt.who, stun.MethodAllocate, append(tt.attributes, transport(17))...)
			var servers []string
			for _, s := range got.servers {
				servers = append(servers, s.String())
			}
			if !slices.Equal(servers, tt.servers) || got.domain != tt.domain {
				t.Errorf("got servers %v and domain %q, want %v and %q", servers, got.domain, tt.servers, tt.domain)
			}
			if tt.code != 300 {
				return
			}
			if len(got.events) != 1 || got.events[0].Kind() != KindClientRedirected {
				t.Errorf("got events %v, want one ClientRedirected", describeAll(got.events))
			}
			if proof := got.message.Contains(stun.AttrMessageIntegrity) || got.message.Contains(stun.AttrMessageIntegritySHA256); !proof {
				t.Error("the answer is not protected")
			}
		})
	}
}

// TestNobodyUnknownIsRedirected: who has proved nothing learns of no other server (RFC 8489 section 6.3).
func TestNobodyUnknownIsRedirected(t *testing.T) {
	c := newCore(t)
	c.rules.Alternates, c.rules.Redirect = alternates(otherV4, otherV6), true
	if got := c.send(alice(), plain(stun.MethodAllocate, txid(1), transport(17))); codeOf(got) != 401 || len(got.servers) > 0 {
		t.Errorf("got %d with %v, want 401 with none", codeOf(got), got.servers)
	}
}
