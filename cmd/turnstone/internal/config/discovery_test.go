package config

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"turnstone/turn"
)

func TestDiscoveries(t *testing.T) {
	addr := netip.MustParseAddr
	four := []string{"udp://127.0.0.1:3478", "udp://127.0.0.2:3479", "udp://127.0.0.1:3479", "udp://127.0.0.2:3478"}
	both := []turn.Discovery{{Addresses: [2]netip.Addr{addr("127.0.0.1"), addr("127.0.0.2")}, Ports: [2]uint16{3478, 3479}}}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []turn.Discovery
	}{
		"TwoByTwo":   {func(*Config) {}, both},
		"Off":        {func(c *Config) { c.StunDiscovery = "off" }, nil},
		"BehindNAT":  {func(c *Config) { c.ExternalIP = []string{"198.51.100.1"} }, nil},
		"OnePort":    {func(c *Config) { c.Listen = []string{four[0], four[3]} }, nil},
		"OneAddress": {func(c *Config) { c.Listen = []string{four[0], four[2]} }, nil},
		"OneMissing": {func(c *Config) { c.Listen = four[:3] }, nil},
		"OneOverTCP": {func(c *Config) { c.Listen = append(four[:3:3], "tcp://127.0.0.2:3478") }, nil},
	} {
		c := loopback()
		c.Listen, c.RelayIP = four, []string{"127.0.0.1"}
		tt.change(&c)
		r, err := c.Resolve()
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if !slices.Equal(r.Gate.Discoveries, tt.want) {
			t.Errorf("%s: got %v, want %v", name, r.Gate.Discoveries, tt.want)
		}
	}
	c := loopback()
	c.StunDiscovery = "on"
	if _, err := c.Resolve(); err == nil || !strings.Contains(err.Error(), `stun-discovery: "on" is none of auto, off`) {
		t.Errorf("got %v for an unknown mode", err)
	}
}
