package config

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"

	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/turn"
	"turnstone/turn/relay"
)

// hostAddresses are the addresses of the interfaces, link-local ones excepted.
func hostAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("list the host's addresses: %w", err)
	}
	var out []netip.Addr
	for _, a := range list {
		n, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		if ip, ok := netip.AddrFromSlice(n.IP); ok && !ip.Unmap().IsLinkLocalUnicast() {
			out = append(out, ip.Unmap())
		}
	}
	return out, nil
}

// listeners are the addresses of c.Listen, those that stand for every address of the host spelt out.
func (c *Config) listeners(own []netip.Addr, p *problems) []relay.Listener {
	var out []relay.Listener
	for _, s := range c.Listen {
		protocol, at, err := listenAddress(s)
		if err != nil {
			p.check("listen", err)
			continue
		}
		addrs := []netip.Addr{at.Addr()}
		if at.Addr().IsUnspecified() {
			addrs = slices.DeleteFunc(slices.Clone(own), func(a netip.Addr) bool { return a.Is4() != at.Addr().Is4() })
		}
		for _, a := range addrs {
			l := relay.Listener{Address: netip.AddrPortFrom(a, at.Port()), Protocol: protocol}
			if !slices.Contains(out, l) {
				out = append(out, l)
			}
		}
	}
	if len(out) == 0 && len(*p) == 0 {
		p.check("listen", errors.New("no address to listen on"))
	}
	p.check("listen", overlap(out))
	return out
}

// defaultPorts of the transports a listener can have (RFC 8656 section 6).
var defaultPorts = map[string]string{"udp": "3478", "tcp": "3478", "tls": "5349", "dtls": "5349"}

func listenAddress(s string) (p turn.Protocol, at netip.AddrPort, err error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return 0, at, fmt.Errorf("%q is no address like udp://192.0.2.1:3478", s)
	}
	port, known := defaultPorts[u.Scheme]
	if !known {
		return 0, at, fmt.Errorf("%q: unknown transport %q, it is none of udp, tcp, tls, dtls", s, u.Scheme)
	}
	if err := p.UnmarshalText([]byte(u.Scheme)); err != nil {
		return 0, at, err
	}
	host := u.Host
	if u.Port() == "" {
		host += ":" + port
	}
	at, err = netip.ParseAddrPort(host)
	if err != nil || at.Port() == 0 || (u.Path != "" && u.Path != "/") {
		return 0, at, fmt.Errorf("%q is no address like udp://192.0.2.1:3478", s)
	}
	return p, turn.Canonical(at), nil
}

// loadable says whether certificates can be read.
func loadable(files []certs.Files) error {
	_, err := certs.Load(files)
	return err
}

// certificates are the files of the certificates, which are checked. Listeners with TLS need one.
func (c *Config) certificates(h host, listeners []relay.Listener, p *problems) []certs.Files {
	var out []certs.Files
	for i, cert := range c.TLS.Cert {
		f := certs.Files{Cert: cert, Key: cert}
		if i < len(c.TLS.Key) {
			f.Key = c.TLS.Key[i]
		}
		out = append(out, f)
	}
	if n := len(c.TLS.Key); n > 0 && n != len(out) {
		p.check("tls.key", fmt.Errorf("there are %d keys for %d certificates", n, len(out)))
		return out
	}
	p.check("tls.cert", h.certificates(out))
	for _, l := range listeners {
		if len(out) == 0 && (l.Protocol == turn.TLS || l.Protocol == turn.DTLS) {
			p.check("tls.cert", fmt.Errorf("%v://%v needs a certificate", l.Protocol, l.Address))
			break
		}
	}
	return out
}

// overlap says what two listeners cannot share: TCP and TLS, or UDP and DTLS, are one port to the host.
func overlap(listeners []relay.Listener) error {
	type socket struct {
		stream bool
		at     netip.AddrPort
	}
	seen := map[socket]turn.Protocol{}
	for _, l := range listeners {
		k := socket{l.Protocol == turn.TCP || l.Protocol == turn.TLS, l.Address}
		if other, taken := seen[k]; taken {
			return fmt.Errorf("%v cannot be both %v and %v", l.Address, other, l.Protocol)
		}
		seen[k] = l.Protocol
	}
	return nil
}
