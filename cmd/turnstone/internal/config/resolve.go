package config

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/cmd/turnstone/internal/users"
	"turnstone/store"
	"turnstone/turn"
	"turnstone/turn/relay"

	"github.com/rs/zerolog"
)

// Resolved is what a Config means on this host.
type Resolved struct {
	Listeners    []relay.Listener
	Streams      relay.Streams // without their TLS, which is of Certificates
	Certificates []certs.Files
	Rules        turn.Rules
	Gate         turn.GateConfig // without the nonce key
	UnauthRate   int
	UnauthBurst  int
	ICMP         relay.ICMP
	Mobility     bool
	Caps         turn.Caps // in each direction
	Digest       [32]byte  // of the configuration, secrets left out
	Data         string
	AdminSocket  string
	Metrics      string // empty for none
	Dashboard    string // empty for none
	Token        string // that the dashboard wants to be shown, empty: it is for reading only
	MetricsSet   bool   // it is not the default: being taken is an error
	Demo         bool   // nobody is configured: a demo user is to be made
	Kernel       Kernel
	Level        zerolog.Level
	LogFormat    string
	Encrypt      bool          // the event log
	ForgetAge    time.Duration // of encrypted segments, 0 for any
	Retention    store.Retention
	HashNames    bool // users are named by pseudonyms

	Publication    Publication
	Hook           Hook
	UsersFile      string         // empty for none
	UsersIdentity  users.Identity // of the file that the users in Gate are from
	UsersElsewhere int            // users of the file whose realm is none here
	static         []turn.User    // those of the configuration itself
	staticRealms   []turn.RealmConfig
	digest         [32]byte // without the file
}

// Publication says where checkpoints of the log are published; empty for nowhere.
type Publication struct{ File, URL string }

// levels of the log.
var levels = []string{"trace", "debug", "info", "warn", "error"}

// problems collects what is wrong, each under the key of its setting.
type problems []error

func (p *problems) check(key string, err error) {
	if err != nil {
		*p = append(*p, fmt.Errorf("%s: %w", key, err))
	}
}

// Resolve checks c and works out what it means. The error names every setting that is wrong.
func (c *Config) Resolve() (Resolved, error) {
	own, err := hostAddresses()
	if err != nil {
		return Resolved{}, err
	}
	return c.resolve(host{own: own, bindable: bindable, users: users.Read, certificates: loadable})
}

// icmpErrors are who is told of ICMP errors.
var icmpErrors = map[string]relay.ICMP{"probing": relay.ICMPToProbers, "all": relay.ICMPToAll, "none": relay.ICMPToNobody}

// host is where a configuration is to be in force.
type host struct {
	own          []netip.Addr
	bindable     func(netip.Addr) error
	users        func(path string) ([]users.User, error)
	certificates func([]certs.Files) error
}

func (c *Config) resolve(h host) (Resolved, error) {
	r := Resolved{
		UnauthRate: c.Limits.UnauthRate, UnauthBurst: c.Limits.UnauthBurst, ICMP: icmpErrors[c.Limits.ICMPErrors], Kernel: c.Kernel, Caps: c.Limits.caps(),
		Data: c.DataDir(), AdminSocket: c.Socket(), LogFormat: c.Log.Format, Digest: c.digest(),
		UsersFile: c.Auth.UsersFile, Metrics: c.Metrics, MetricsSet: c.Metrics != DefaultMetrics,
	}
	var p problems
	r.Listeners = c.listeners(h.own, &p)
	listens := len(p) == 0
	r.Rules = c.rules(h.own, r.Listeners, &p)
	if listens { // the relay addresses follow from the listeners
		r.Rules.Relays = c.relays(h, r.Listeners, &p)
	}
	c.alternates(&r.Rules, &p)
	p.check("mobility", oneOf(c.Mobility, "on", "off"))
	r.Mobility = c.Mobility == "on"
	r.Certificates = c.certificates(h, r.Listeners, &p)
	r.Streams = relay.Streams{Max: c.Limits.MaxStreams, MaxIdle: c.Limits.MaxIdleStreams}
	var err error
	r.Streams.Proxies, err = networks(c.ProxyProtocolFrom)
	p.check("proxy-protocol-from", err)
	r.Gate = c.gate(&p)
	r.Gate.Discoveries = c.discoveries(r.Listeners, r.Rules.Relays, &p)
	r.Gate.Realms = c.realms(r.Gate.Realm, h.own, r.Listeners, &p)
	for _, one := range r.Gate.Realms {
		r.Rules.Realms = append(r.Rules.Realms, one.Name)
	}
	r.static, r.staticRealms, r.digest = r.Gate.Users, r.Gate.Realms, r.Digest
	p.check("auth.users-file", r.readUsers(h.users))
	r.Hook, r.Gate.LookupSHA256 = c.hook(&p), c.Auth.HTTPKeys == "sha256"
	r.Demo = len(r.Gate.Users) == 0 && len(r.Gate.Secrets) == 0 && len(c.Auth.RealmUsers) == 0 && len(c.Auth.AccessTokenKeys) == 0 && r.UsersFile == "" && r.Hook.URL == ""
	if r.Metrics == "off" {
		r.Metrics = ""
	}
	p.check("metrics", hostPort(r.Metrics))
	if r.Dashboard = c.Dashboard; r.Dashboard == "off" {
		r.Dashboard = ""
	}
	p.check("dashboard", hostPort(r.Dashboard))
	r.Token = c.DashboardToken
	p.check("dashboard-token", goodToken(r.Token))
	if len(r.AdminSocket) > maxSocketPath {
		p.check("admin-socket", fmt.Errorf("%q has %d bytes, at most %d are possible", r.AdminSocket, len(r.AdminSocket), maxSocketPath))
	}
	c.checkKernel(&p)
	p.check("log.level", oneOf(c.Log.Level, levels...))
	r.Publication = Publication{File: c.Log.CheckpointFile, URL: c.Log.CheckpointURL}
	p.check("log.checkpoint-url", plainURL(c.Log.CheckpointURL, "whoever takes checkpoints sees by their signatures whose they are"))
	p.check("log.format", oneOf(c.Log.Format, "auto", "json", "console"))
	c.privacy(&r, &p)
	r.Retention = c.retention(&p)
	if err := errors.Join(p...); err != nil {
		return r, err
	}
	level, err := zerolog.ParseLevel(c.Log.Level)
	r.Level = level
	return r, err
}

func (c *Config) checkKernel(p *problems) {
	p.check("kernel.mode", oneOf(c.Kernel.Mode, "auto", "required", "off"))
	p.check("kernel.xdp", oneOf(c.Kernel.XDP, "auto", "native", "generic"))
	if c.Kernel.Instance == "" || strings.ContainsAny(c.Kernel.Instance, "/.") {
		p.check("kernel.instance", fmt.Errorf("%q is no name without dots and slashes", c.Kernel.Instance))
	}
	if c.Kernel.MaxChannels < 1 || c.Kernel.MaxChannels > maxKernelChannels {
		p.check("kernel.max-channels", fmt.Errorf("%d is not between 1 and %d", c.Kernel.MaxChannels, maxKernelChannels))
	}
}

// maxKernelChannels keeps the maps within 2 GiB.
const maxKernelChannels = 1 << 21

// maxSocketPath is how long the path of a Unix socket may be, in bytes (unix(7)).
const maxSocketPath = 107

func oneOf(v string, choices ...string) error {
	if slices.Contains(choices, v) {
		return nil
	}
	return fmt.Errorf("%q is none of %s", v, strings.Join(choices, ", "))
}

// hostPort checks an address to serve on; empty is none.
func hostPort(s string) error {
	if s == "" {
		return nil
	}
	if _, port, err := net.SplitHostPort(s); err == nil {
		if _, err := strconv.ParseUint(port, 10, 16); err == nil {
			return nil
		}
	}
	return fmt.Errorf("%q is neither HOST:PORT nor off", s)
}

// minToken is how many characters a token has that nobody guesses.
const minToken = 16

// goodToken checks a token that goes into a header; empty is none. Its error does not show it.
func goodToken(s string) error {
	switch {
	case s == "":
		return nil
	case len(s) < minToken:
		return fmt.Errorf("it has less than %d characters", minToken)
	case strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }):
		return errors.New("it has a character that is not of ASCII, or a space")
	}
	return nil
}

// dataHere is the directory of the log of a daemon that is told nothing.
const dataHere = "turnstone-data"

// DataDir is the directory of the log.
func (c *Config) DataDir() string {
	if c.Data != "" {
		return c.Data
	}
	if d := os.Getenv(stateDirectory); d != "" {
		return d
	}
	return dataHere
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
	for _, u := range slices.Concat(c.Auth.Users, c.Auth.RealmUsers, c.Auth.AccessTokenKeys) {
		name, _, _ := strings.Cut(u, ":")
		fmt.Fprintf(h, "user %q\n", name)
	}
	return [32]byte(h.Sum(nil))
}
