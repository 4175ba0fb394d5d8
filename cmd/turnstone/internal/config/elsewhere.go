package config

import (
	"net/netip"

	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/cmd/turnstone/internal/users"
)

// CheckText checks the text of a file that may be meant for another host: all that
// does not depend on the addresses, the files and the environment of this one.
func CheckText(name string, text []byte) error {
	c := Default()
	if err := decode(&c, name, text, Origins{}); err != nil {
		return err
	}
	_, err := c.resolve(c.elsewhere())
	return err
}

// elsewhere is a host that fits c: it has the addresses that c names, and those every host has.
func (c *Config) elsewhere() host {
	own := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()}
	for _, s := range c.Listen {
		if _, at, err := listenAddress(s); err == nil && !at.Addr().IsUnspecified() {
			own = append(own, at.Addr())
		}
	}
	return host{
		own: own, bindable: func(netip.Addr) error { return nil },
		users:        func(string) ([]users.User, error) { return nil, nil },
		certificates: func([]certs.Files) error { return nil },
	}
}
