package config

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/rs/zerolog"
)

// Resolved is what a Config means on this host.
type Resolved struct {
	Listeners   []relay.Listener
	Rules       turn.Rules
	Gate        turn.GateConfig // without the nonce key
	UnauthRate  int
	UnauthBurst int
	Digest      [32]byte // of the configuration, secrets left out
	Data        string
	AdminSocket string
	Metrics     string // empty for none
	MetricsSet  bool   // it is not the default: being taken is an error
	Demo        bool   // nobody is configured: a demo user is to be made
	KernelMode  string
	Level       zerolog.Level
	LogFormat   string
}

// Resolve checks c and works out what it means. The error names every setting that is wrong.
func (c *Config) Resolve() (Resolved, error) {
	r := Resolved{
		UnauthRate: c.Limits.UnauthRate, UnauthBurst: c.Limits.UnauthBurst, KernelMode: c.Kernel.Mode,
		Data: c.DataDir(), AdminSocket: c.Socket(), LogFormat: c.Log.Format, Digest: c.digest(),
	}
	own, err := hostAddresses()
	problems := []error{err}
	check := func(key string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", key, err))
		}
	}
	r.Listeners, err = c.listeners(own)
	check("listen", err)
	r.Rules, err = c.rules(own, r.Listeners)
	problems = append(problems, err)
	r.Gate, err = c.gate()
	problems = append(problems, err)
	r.Demo = len(r.Gate.Users) == 0 && len(r.Gate.Secrets) == 0
	r.Metrics, err = c.metrics()
	check("metrics", err)
	r.MetricsSet = c.Metrics != DefaultMetrics
	r.Level, err = zerolog.ParseLevel(c.Log.Level)
	check("log.level", err)
	check("log.format", oneOf(c.Log.Format, "auto", "json", "console"))
	check("kernel.mode", oneOf(c.Kernel.Mode, "auto", "required", "off"))
	for key, n := range map[string]int{
		"limits.max-allocations": c.Limits.MaxAllocations, "limits.max-allocations-per-user": c.Limits.MaxAllocationsPerUser,
		"limits.unauth-rate": c.Limits.UnauthRate, "limits.unauth-burst": c.Limits.UnauthBurst,
	} {
		if n < 0 {
			check(key, fmt.Errorf("%d is negative", n))
		}
	}
	return r, errors.Join(problems...)
}

func oneOf(v string, choices ...string) error {
	if slices.Contains(choices, v) {
		return nil
	}
	return fmt.Errorf("%q is none of %s", v, strings.Join(choices, ", "))
}

// DataDir is the directory of the log.
func (c *Config) DataDir() string {
	if c.Data != "" {
		return c.Data
	}
	if d := os.Getenv("STATE_DIRECTORY"); d != "" {
		return d
	}
	return "turnstone-data"
}

// Socket is the path of the admin socket.
func (c *Config) Socket() string {
	if c.AdminSocket != "" {
		return c.AdminSocket
	}
	return filepath.Join(c.DataDir(), "admin.sock")
}

// digest identifies c for ConfigChanged. Who the users are is part of it, their secrets are not.
func (c *Config) digest() [32]byte {
	h := sha256.New()
	for _, s := range Settings(c) {
		fmt.Fprintf(h, "%s=%s\n", s.Key, s)
	}
	for _, u := range c.Auth.Users {
		name, _, _ := strings.Cut(u, ":")
		fmt.Fprintf(h, "user %q\n", name)
	}
	return [32]byte(h.Sum(nil))
}

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

func (c *Config) listeners(own []netip.Addr) ([]relay.Listener, error) {
	var out []relay.Listener
	var problems []error
	for _, s := range c.Listen {
		at, err := listenAddress(s)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		addrs := []netip.Addr{at.Addr()}
		if at.Addr().IsUnspecified() {
			addrs = slices.DeleteFunc(slices.Clone(own), func(a netip.Addr) bool { return a.Is4() != at.Addr().Is4() })
		}
		for _, a := range addrs {
			l := relay.Listener{Address: netip.AddrPortFrom(a, at.Port()), Protocol: turn.UDP}
			if !slices.Contains(out, l) {
				out = append(out, l)
			}
		}
	}
	if len(out) == 0 && len(problems) == 0 {
		problems = append(problems, errors.New("no address to listen on"))
	}
	return out, errors.Join(problems...)
}

func listenAddress(s string) (netip.AddrPort, error) {
	u, err := url.Parse(s)
	if err != nil || u.Host == "" {
		return netip.AddrPort{}, fmt.Errorf("%q is no address like udp://192.0.2.1:3478", s)
	}
	switch u.Scheme {
	case "udp":
	case "tcp", "tls", "dtls":
		return netip.AddrPort{}, fmt.Errorf("%q: %s is not supported yet, only udp", s, u.Scheme)
	default:
		return netip.AddrPort{}, fmt.Errorf("%q: unknown transport %q", s, u.Scheme)
	}
	host := u.Host
	if u.Port() == "" {
		host += ":3478"
	}
	at, err := netip.ParseAddrPort(host)
	if err != nil || at.Port() == 0 || (u.Path != "" && u.Path != "/") {
		return netip.AddrPort{}, fmt.Errorf("%q is no address like udp://192.0.2.1:3478", s)
	}
	return turn.Canonical(at), nil
}

func (c *Config) rules(own []netip.Addr, listeners []relay.Listener) (turn.Rules, error) {
	var problems []error
	check := func(key string, err error) {
		if err != nil {
			problems = append(problems, fmt.Errorf("%s: %w", key, err))
		}
	}
	r := turn.Rules{
		MaxAllocations: c.Limits.MaxAllocations, MaxPerOwner: c.Limits.MaxAllocationsPerUser,
		MaxPermissions: c.Limits.MaxPermissions, MaxChannels: c.Limits.MaxChannels,
		DefaultLifetime: time.Duration(c.Limits.DefaultLifetime), MaxLifetime: time.Duration(c.Limits.MaxLifetime),
		LastChannel: turn.ChannelLastRFC5766, Own: own,
	}
	for _, l := range listeners {
		if !slices.Contains(r.Own, l.Address.Addr()) {
			r.Own = append(r.Own, l.Address.Addr())
		}
	}
	if c.Limits.ChannelRange == "rfc8656" {
		r.LastChannel = turn.ChannelLast
	}
	check("limits.channel-range", oneOf(c.Limits.ChannelRange, "rfc5766", "rfc8656"))
	if c.Limits.MaxPermissions < 1 || c.Limits.MaxChannels < 1 {
		check("limits", errors.New("max-permissions and max-channels must be at least 1"))
	}
	if c.Limits.DefaultLifetime < Duration(time.Second) || c.Limits.MaxLifetime < c.Limits.DefaultLifetime || c.Limits.MaxLifetime > Duration(24*time.Hour) {
		check("limits", errors.New("want 1s <= default-lifetime <= max-lifetime <= 24h"))
	}
	var err error
	r.FirstPort, r.LastPort, err = portRange(c.RelayPorts)
	check("relay-ports", err)
	r.Policy.Allow, err = networks(c.Peers.Allow)
	check("peers.allow", err)
	r.Policy.Deny, err = networks(c.Peers.Deny)
	check("peers.deny", err)
	r.Relays, err = c.relays(own, listeners)
	problems = append(problems, err)
	return r, errors.Join(problems...)
}

// networks reads CIDRs; an address alone is the network of just it.
func networks(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, s := range list {
		if a, err := netip.ParseAddr(s); err == nil {
			out = append(out, netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()))
			continue
		}
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("%q is no network like 192.0.2.0/24", s)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

func (c *Config) relays(own []netip.Addr, listeners []relay.Listener) ([]turn.Relay, error) {
	var out []turn.Relay
	family := func(v4 bool) bool {
		return slices.ContainsFunc(out, func(r turn.Relay) bool { return r.IP.Is4() == v4 })
	}
	for _, s := range c.RelayIP {
		a, err := netip.ParseAddr(s)
		if err != nil || a.IsUnspecified() || a.Zone() != "" {
			return nil, fmt.Errorf("relay-ip: %q is no address", s)
		}
		if a = a.Unmap(); family(a.Is4()) {
			return nil, fmt.Errorf("relay-ip: %s is the second address of its family", s)
		}
		out = append(out, turn.Relay{IP: a, External: a})
	}
	if len(c.RelayIP) == 0 {
		for _, v4 := range []bool{true, false} {
			if a := likelyRelay(own, listeners, v4); a.IsValid() {
				out = append(out, turn.Relay{IP: a, External: a})
			}
		}
	}
	if len(out) == 0 {
		return nil, errors.New("relay-ip: the host has no address to relay from")
	}
	for _, r := range out {
		if err := bindable(r.IP); err != nil {
			return nil, fmt.Errorf("relay-ip: %w", err)
		}
	}
	return out, external(out, c.ExternalIP)
}

// likelyRelay is the address of a family that is most likely to be reached by
// peers: what is listened on first, global before private before loopback.
func likelyRelay(own []netip.Addr, listeners []relay.Listener, v4 bool) (best netip.Addr) {
	rank := func(a netip.Addr) int {
		switch {
		case a.IsLoopback():
			return 1
		case a.IsPrivate():
			return 2
		}
		return 3
	}
	for _, l := range listeners {
		a := l.Address.Addr()
		if a.Is4() == v4 && slices.Contains(own, a) && (!best.IsValid() || rank(a) > rank(best)) {
			best = a
		}
	}
	return best
}

// bindable says whether sockets can be opened at a.
func bindable(a netip.Addr) error {
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
	if err != nil {
		return fmt.Errorf("%s is no address of this host: %w", a, err)
	}
	return conn.Close()
}

// external reads PUBLIC or PUBLIC/PRIVATE into relays.
func external(relays []turn.Relay, list []string) error {
	for _, s := range list {
		public, private, named := strings.Cut(s, "/")
		p, err := netip.ParseAddr(public)
		if err != nil {
			return fmt.Errorf("external-ip: %q is no address", s)
		}
		p = p.Unmap()
		i := slices.IndexFunc(relays, func(r turn.Relay) bool {
			if named {
				return r.IP.String() == private
			}
			return r.IP.Is4() == p.Is4()
		})
		if i < 0 || relays[i].IP.Is4() != p.Is4() {
			return fmt.Errorf("external-ip: %q belongs to no relay address", s)
		}
		relays[i].External = p
	}
	return nil
}

func (c *Config) gate() (turn.GateConfig, error) {
	g := turn.GateConfig{
		Realm: c.Realm, Software: c.Software,
		NonceLifetime: time.Duration(c.Auth.NonceLifetime), CredentialGrace: time.Duration(c.Auth.CredentialGrace),
	}
	var problems []error
	if c.Realm == "" || len(c.Realm) > 127 || strings.ContainsAny(c.Realm, "\"\x00") {
		problems = append(problems, fmt.Errorf("realm: %q is empty, longer than 127 bytes or has a quote", c.Realm))
	}
	if len(c.Software) > 127 {
		problems = append(problems, errors.New("software: longer than 127 bytes"))
	}
	if c.Auth.NonceLifetime <= 0 {
		problems = append(problems, errors.New("auth.nonce-lifetime: a nonce has to end some time"))
	}
	for i, s := range c.Auth.Users {
		u, err := user(s)
		if err != nil {
			problems = append(problems, fmt.Errorf("auth.users: entry %d: %w", i+1, err))
			continue
		}
		g.Users = append(g.Users, u)
	}
	for i, s := range c.Auth.Secrets {
		if s == "" {
			problems = append(problems, fmt.Errorf("auth.secrets: entry %d is empty", i+1))
		}
		g.Secrets = append(g.Secrets, []byte(s))
	}
	return g, errors.Join(problems...)
}

// user reads NAME:PASSWORD or NAME:0xKEY. Its errors do not show the secret.
func user(s string) (turn.User, error) {
	name, password, found := strings.Cut(s, ":")
	if !found || name == "" || password == "" || len(name) > turn.MaxUsername {
		return turn.User{}, errors.New("not of the form NAME:PASSWORD")
	}
	u := turn.User{Name: name, Password: password}
	if rest, isKey := strings.CutPrefix(password, "0x"); isKey && len(rest) == 32 {
		key, err := hex.DecodeString(rest)
		if err != nil {
			return turn.User{}, fmt.Errorf("the key of %q is not hexadecimal", name)
		}
		u.Key = key
	}
	return u, nil
}

func (c *Config) metrics() (string, error) {
	if c.Metrics == "" || c.Metrics == "off" {
		return "", nil
	}
	if _, _, err := net.SplitHostPort(c.Metrics); err != nil {
		return "", fmt.Errorf("%q is no HOST:PORT", c.Metrics)
	}
	return c.Metrics, nil
}
