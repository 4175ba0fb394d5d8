package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"turnstone/turn"
)

func TestAlternates(t *testing.T) {
	c := loopback()
	c.AlternateServers = []string{"203.0.113.1:3478", "[2001:db8::1]:3478", "tls://203.0.113.2", "udp://[::ffff:203.0.113.3]:3479"}
	c.AlternateDomain, c.Redirect = "turn2.example.org", "always"
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	want := []turn.Alternate{
		{Address: at("203.0.113.1:3478")},
		{Address: at("[2001:db8::1]:3478")},
		{Protocol: turn.TLS, Address: at("203.0.113.2:5349")},
		{Protocol: turn.UDP, Address: at("203.0.113.3:3479")},
	}
	if !slices.Equal(r.Rules.Alternates, want) || r.Rules.AlternateDomain != "turn2.example.org" || !r.Rules.Redirect {
		t.Errorf("got %v, %q, always %t, want %v", r.Rules.Alternates, r.Rules.AlternateDomain, r.Rules.Redirect, want)
	}
}

func TestAlternatesErrors(t *testing.T) {
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"Name":     {func(c *Config) { c.AlternateServers = []string{"turn2.example.org:3478"} }, `alternate-servers: "turn2.example.org:3478" is no address`},
		"NoPort":   {func(c *Config) { c.AlternateServers = []string{"203.0.113.1"} }, "alternate-servers: "},
		"PortZero": {func(c *Config) { c.AlternateServers = []string{"203.0.113.1:0"} }, "alternate-servers: "},
		"Every":    {func(c *Config) { c.AlternateServers = []string{"0.0.0.0:3478"} }, "alternate-servers: "},
		"Twice": {
			func(c *Config) { c.AlternateServers = []string{"203.0.113.1:3478", "203.0.113.2:3478"} },
			`alternate-servers: "203.0.113.2:3478" is the second of its transport and address family`,
		},
		"Domain": {func(c *Config) { c.AlternateDomain = strings.Repeat("x", 256) }, "alternate-domain: "},
		"When":   {func(c *Config) { c.Redirect = "never" }, `redirect: "never" is none of drain, always`},
		"Where":  {func(c *Config) { c.Redirect = "always" }, "redirect: there are no alternate-servers"},
	} {
		c := loopback()
		tt.change(&c)
		if _, err := c.Resolve(); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, tt.want)
		}
	}
}
