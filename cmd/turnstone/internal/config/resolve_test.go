package config

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/cmd/turnstone/internal/users"
	"turnstone/turn"
	"turnstone/turn/relay"
)

// loopback is a configuration that resolves on every host.
func loopback() Config {
	c := Default()
	c.Listen = []string{"udp://127.0.0.1:3478"}
	return c
}

func TestResolve(t *testing.T) {
	c := loopback()
	c.Listen = append(c.Listen, "udp://127.0.0.1", "udp://127.0.0.1:3479", "tcp://127.0.0.1", "tls://127.0.0.1", "dtls://127.0.0.1")
	certificate := makeCertificate(t)
	c.TLS.Cert = []string{certificate}
	c.ProxyProtocolFrom = []string{"192.0.2.9"}
	c.ExternalIP = []string{"198.51.100.1"}
	c.RelayPorts = "50000-50009"
	c.Peers.Allow = []string{"192.0.2.1", "::ffff:192.0.2.2", "10.1.2.3/8"}
	c.Peers.Deny = []string{"2001:db8::/32"}
	c.Auth.Users = []string{"alice:secret", "bob:0x00112233445566778899aabbccddeeff", "carol:0xshort"}
	c.Auth.Secrets = []string{"one", "two"}
	c.Limits.ChannelRange, c.Limits.ICMPErrors = "rfc8656", "all"
	c.Metrics = "off"
	c.Log.Level = "debug"
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	wantListeners := []relay.Listener{
		{Address: at("127.0.0.1:3478"), Protocol: turn.UDP},
		{Address: at("127.0.0.1:3479"), Protocol: turn.UDP},
		{Address: at("127.0.0.1:3478"), Protocol: turn.TCP},
		{Address: at("127.0.0.1:5349"), Protocol: turn.TLS},
		{Address: at("127.0.0.1:5349"), Protocol: turn.DTLS},
	}
	if r.ICMP != relay.ICMPToAll {
		t.Errorf("got %v told of ICMP errors, want all", r.ICMP)
	}
	if !slices.Equal(r.Listeners, wantListeners) {
		t.Errorf("listeners %v, want %v", r.Listeners, wantListeners)
	}
	wantRelays := []turn.Relay{{IP: netip.MustParseAddr("127.0.0.1"), External: netip.MustParseAddr("198.51.100.1")}}
	if !slices.Equal(r.Rules.Relays, wantRelays) {
		t.Errorf("relays %v, want %v", r.Rules.Relays, wantRelays)
	}
	if r.Rules.FirstPort != 50000 || r.Rules.LastPort != 50009 {
		t.Errorf("ports %d-%d, want 50000-50009", r.Rules.FirstPort, r.Rules.LastPort)
	}
	net := netip.MustParsePrefix
	if want := []netip.Prefix{net("192.0.2.1/32"), net("192.0.2.2/32"), net("10.0.0.0/8")}; !slices.Equal(r.Rules.Policy.Allow, want) {
		t.Errorf("allowed %v, want %v", r.Rules.Policy.Allow, want)
	}
	if want := []certs.Files{{Cert: certificate, Key: certificate}}; !slices.Equal(r.Certificates, want) {
		t.Errorf("certificates %v, want %v", r.Certificates, want)
	}
	if r.Streams.Max != 16384 || r.Streams.MaxIdle != 256 || !slices.Equal(r.Streams.Proxies, []netip.Prefix{net("192.0.2.9/32")}) {
		t.Errorf("got streams %+v", r.Streams)
	}
	if r.Rules.LastChannel != turn.ChannelLast || r.Rules.MaxLifetime != time.Hour || r.Metrics != "" || r.Demo {
		t.Errorf("got last channel %v, max lifetime %v, metrics %q, demo %t", r.Rules.LastChannel, r.Rules.MaxLifetime, r.Metrics, r.Demo)
	}
	if len(r.Gate.Users) != 3 || len(r.Gate.Users[1].Key) != 16 || r.Gate.Users[2].Password != "0xshort" || len(r.Gate.Secrets) != 2 {
		t.Errorf("gate has users %d, secrets %d", len(r.Gate.Users), len(r.Gate.Secrets))
	}
}

func TestResolveCaps(t *testing.T) {
	c := loopback()
	c.Limits.MaxBandwidth, c.Limits.MaxBandwidthPerUser, c.Limits.MaxBandwidthTotal = 1000, 2000, 3000
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if want := (turn.Caps{turn.ScopeAllocation: turn.NewCap(1000), turn.ScopeUser: turn.NewCap(2000), turn.ScopeTotal: turn.NewCap(3000)}); r.Caps != want {
		t.Errorf("got caps %+v, want %+v", r.Caps, want)
	}
	c = loopback()
	if r, err = c.Resolve(); err != nil || r.Caps != (turn.Caps{}) {
		t.Errorf("got caps %+v, %v, want none by default", r.Caps, err)
	}
	c.Limits.MaxBandwidthTotal = -1
	if _, err = c.Resolve(); err == nil || !strings.Contains(err.Error(), "limits.max-bandwidth-total") {
		t.Errorf("got %v, want the setting that is wrong", err)
	}
}

func TestResolveTokenKeys(t *testing.T) {
	c := loopback()
	c.Auth.AccessTokenKeys = []string{"one:0x" + strings.Repeat("0f", 32), "two:" + strings.Repeat("1e", 32)}
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	want := []turn.TokenKey{{ID: "one", Key: [32]byte(bytes.Repeat([]byte{0x0F}, 32))}, {ID: "two", Key: [32]byte(bytes.Repeat([]byte{0x1E}, 32))}}
	if !slices.Equal(r.Gate.TokenKeys, want) || r.Gate.TokenServer != c.Realm || r.Demo {
		t.Errorf("got keys %v, server %q, demo %t", r.Gate.TokenKeys, r.Gate.TokenServer, r.Demo)
	}
	c.Auth.AccessTokenServer = "turn.example.org"
	if r, err = c.Resolve(); err != nil || r.Gate.TokenServer != "turn.example.org" {
		t.Errorf("got server %q, %v, want turn.example.org", r.Gate.TokenServer, err)
	}
	c.Auth.AccessTokenKeys = nil
	if r, err = c.Resolve(); err != nil || r.Gate.TokenServer != "" {
		t.Errorf("got server %q, %v without keys, want none", r.Gate.TokenServer, err)
	}
}

func TestResolveRealms(t *testing.T) {
	c := loopback()
	c.Listen = append(c.Listen, "udp://127.0.0.1:3479", "udp://[::1]:3479")
	c.Auth.Realms = []string{
		"north.example.org=https://North.example.org  https://www.north.example.org:8443",
		" south.example.org = udp://127.0.0.1:3479 https://south.example.org udp://[::1]:3479",
	}
	c.Auth.RealmUsers = []string{"north.example.org/alice:a/b:c", "south.example.org/bob:0x00112233445566778899aabbccddeeff", "north.example.org/carol:x"}
	c.Limits.MaxAllocationsPerRealm = 7
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	at := netip.MustParseAddrPort
	want := []turn.RealmConfig{
		{
			Name: "north.example.org", Origins: []string{"https://north.example.org", "https://www.north.example.org:8443"},
			Users: []turn.User{{Name: "alice", Password: "a/b:c"}, {Name: "carol", Password: "x"}},
		},
		{
			Name: "south.example.org", Origins: []string{"https://south.example.org"},
			Listeners: []turn.Listen{{Protocol: turn.UDP, Address: at("127.0.0.1:3479")}, {Protocol: turn.UDP, Address: at("[::1]:3479")}},
			Users:     []turn.User{{Name: "bob", Key: []byte("\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff")}},
		},
	}
	if !reflect.DeepEqual(r.Gate.Realms, want) {
		t.Errorf("realms %+v, want %+v", r.Gate.Realms, want)
	}
	if !slices.Equal(r.Rules.Realms, []string{"north.example.org", "south.example.org"}) || r.Rules.MaxPerRealm != 7 || r.Demo {
		t.Errorf("got realms %v in the rules, %d for each, demo %t", r.Rules.Realms, r.Rules.MaxPerRealm, r.Demo)
	}
	for _, s := range Settings(&c) {
		if s.Key == "auth.realm-users" && s.String() != `["north.example.org/alice:<hidden>", "south.example.org/bob:<hidden>", "north.example.org/carol:<hidden>"]` {
			t.Errorf("shown as %s", s)
		}
	}
}

// TestUsersOfTheFileGoToTheirRealms reads them twice: what is read again is not doubled.
func TestUsersOfTheFileGoToTheirRealms(t *testing.T) {
	c := loopback()
	c.Auth.UsersFile = "users"
	c.Auth.Users = []string{"alice:a"}
	c.Auth.Realms = []string{"north=https://north.example.org"}
	c.Auth.RealmUsers = []string{"north/alice:n"}
	r, err := c.Resolve()
	if err == nil {
		t.Fatal("a file that is not there is no error")
	}
	list := []users.User{users.New("bob", "turnstone", "b"), users.New("bob", "north", "b"), users.New("carol", "north", "c"), users.New("dave", "other", "d")}
	read := func(string) ([]users.User, error) { return list, nil }
	for range 2 {
		if err := r.readUsers(read); err != nil {
			t.Fatal(err)
		}
		names := func(list []turn.User) (out []string) {
			for _, u := range list {
				out = append(out, u.Name)
			}
			return out
		}
		if got, want := names(r.Gate.Users), []string{"alice", "bob"}; !slices.Equal(got, want) {
			t.Errorf("users %v, want %v", got, want)
		}
		if got, want := names(r.Gate.Realms[0].Users), []string{"alice", "bob", "carol"}; !slices.Equal(got, want) {
			t.Errorf("users of north %v, want %v", got, want)
		}
	}
	before := r.Digest
	list = append(list, users.New("alice", "north", "x"))
	if err := r.readUsers(read); err == nil || !strings.Contains(err.Error(), `"alice" is a user of the configuration too`) {
		t.Errorf("got %v for a user of both", err)
	}
	if r.Digest != before || len(r.Gate.Realms[0].Users) != 3 {
		t.Error("the error changed something")
	}
}

func TestUser(t *testing.T) {
	md5, sha256 := "00112233445566778899aabbccddeeff", strings.Repeat("0123456789abcdef", 4)
	for _, tt := range []struct{ in, name, password, md5, sha256 string }{
		{"alice:secret", "alice", "secret", "", ""},
		{"alice:a:b", "alice", "a:b", "", ""},
		{"bob:0x" + md5, "bob", "", md5, ""},
		{"bob:0x" + sha256, "bob", "", "", sha256},
		{"bob:0x" + md5 + sha256, "bob", "", md5, sha256},
		{"carol:0xshort", "carol", "0xshort", "", ""},
		{"carol:0x" + md5 + "0", "carol", "0x" + md5 + "0", "", ""},
		{"e\u0301ve:\u212Bngstr\u00f6m\u00a01", "\u00e9ve", "\u00c5ngstr\u00f6m 1", "", ""},
	} {
		u, err := user(tt.in)
		if err != nil {
			t.Errorf("%q: %v", tt.in, err)
			continue
		}
		if u.Name != tt.name || u.Password != tt.password || hex.EncodeToString(u.Key) != tt.md5 || hex.EncodeToString(u.KeySHA256) != tt.sha256 {
			t.Errorf("%q: got %q, %q, %x, %x, want %q, %q, %s, %s", tt.in, u.Name, u.Password, u.Key, u.KeySHA256, tt.name, tt.password, tt.md5, tt.sha256)
		}
		if (u.Key == nil) != (tt.md5 == "") || (u.KeySHA256 == nil) != (tt.sha256 == "") {
			t.Errorf("%q: got keys %v and %v, want nil where there is none", tt.in, u.Key, u.KeySHA256)
		}
	}
}

func TestResolveDefaults(t *testing.T) {
	c := loopback()
	r, err := c.Resolve()
	if err != nil {
		t.Fatal(err)
	}
	if !r.Demo || r.MetricsSet || r.Metrics != DefaultMetrics || r.Gate.CredentialGrace >= 0 {
		t.Errorf("got demo %t, metrics set %t, metrics %q, grace %v", r.Demo, r.MetricsSet, r.Metrics, r.Gate.CredentialGrace)
	}
	if !slices.Contains(r.Rules.Own, netip.MustParseAddr("127.0.0.1")) {
		t.Errorf("own addresses %v lack the loopback one", r.Rules.Own)
	}
}

// makeCertificate makes a file with a certificate and its key.
func makeCertificate(t *testing.T) string {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"turn.example.org"}, NotAfter: time.Now().Add(365 * 24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "turn.pem")
	b := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pkcs8})...)
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return file
}

func TestResolveErrors(t *testing.T) {
	long := strings.Repeat("x", 128)
	for name, tt := range map[string]struct {
		change func(*Config)
		want   string
	}{
		"ListenNothing":  {func(c *Config) { c.Listen = nil }, "listen: no address to listen on"},
		"ListenName":     {func(c *Config) { c.Listen = []string{"udp://relay.example:3478"} }, `listen: "udp://relay.example:3478" is no address like`},
		"ListenNoScheme": {func(c *Config) { c.Listen = []string{"127.0.0.1:3478"} }, `listen: "127.0.0.1:3478" is no address like`},
		"ListenPortZero": {func(c *Config) { c.Listen = []string{"udp://127.0.0.1:0"} }, "is no address like"},
		"ListenPath":     {func(c *Config) { c.Listen = []string{"udp://127.0.0.1:1/x"} }, "is no address like"},
		"ListenTwice": {func(c *Config) {
			c.Listen, c.TLS.Cert = []string{"tcp://127.0.0.1:1", "tls://127.0.0.1:1"}, []string{makeCertificate(t)}
		}, "listen: 127.0.0.1:1 cannot be both tcp and tls"},
		"ListenTwiceUDP": {func(c *Config) {
			c.Listen, c.TLS.Cert = []string{"udp://127.0.0.1:1", "dtls://127.0.0.1:1"}, []string{makeCertificate(t)}
		}, "listen: 127.0.0.1:1 cannot be both udp and dtls"},
		"NoCertificate":     {func(c *Config) { c.Listen = []string{"tls://127.0.0.1"} }, "tls.cert: tls://127.0.0.1:5349 needs a certificate"},
		"NoCertificateFile": {func(c *Config) { c.TLS.Cert = []string{"/nowhere.pem"} }, "tls.cert: certificate /nowhere.pem"},
		"KeysMissing":       {func(c *Config) { c.TLS.Cert, c.TLS.Key = []string{"a", "b"}, []string{"c"} }, "tls.key: there are 1 keys for 2 certificates"},
		"ProxyName":         {func(c *Config) { c.ProxyProtocolFrom = []string{"haproxy"} }, `proxy-protocol-from: "haproxy" is no network`},
		"NoStreams":         {func(c *Config) { c.Limits.MaxStreams = 0 }, "limits.max-streams: 0 is less than 1"},
		"ListenUnknown":     {func(c *Config) { c.Listen = []string{"sctp://127.0.0.1"} }, `unknown transport "sctp"`},
		"RelayName":         {func(c *Config) { c.RelayIP = []string{"relay"} }, `relay-ip: "relay" is no address`},
		"RelayUnspecified":  {func(c *Config) { c.RelayIP = []string{"0.0.0.0"} }, `relay-ip: "0.0.0.0" is no address`},
		"RelayTwice":        {func(c *Config) { c.RelayIP = []string{"127.0.0.1", "127.0.0.2"} }, "relay-ip: 127.0.0.2 is the second address of its family"},
		"RelayForeign":      {func(c *Config) { c.RelayIP = []string{"203.0.113.9"} }, "relay-ip: 203.0.113.9 is no address of this host"},
		"RelayNone":         {func(c *Config) { c.Listen = []string{"udp://203.0.113.9:1"} }, "relay-ip: no address that is listened on is one of this host"},
		"ExternalName":      {func(c *Config) { c.ExternalIP = []string{"me"} }, `external-ip: "me" is no PUBLIC`},
		"ExternalFamily":    {func(c *Config) { c.ExternalIP = []string{"2001:db8::1"} }, `external-ip: "2001:db8::1" belongs to no relay address`},
		"ExternalForeign":   {func(c *Config) { c.ExternalIP = []string{"198.51.100.1/10.0.0.1"} }, "belongs to no relay address"},
		"PortsReversed":     {func(c *Config) { c.RelayPorts = "5-4" }, `relay-ports: "5-4" is no range`},
		"PortsZero":         {func(c *Config) { c.RelayPorts = "0-4" }, `relay-ports: "0-4" is no range`},
		"PortsHigh":         {func(c *Config) { c.RelayPorts = "1-65536" }, "is no range"},
		"RealmEmpty":        {func(c *Config) { c.Realm = "" }, "realm: it is empty"},
		"RealmLong":         {func(c *Config) { c.Realm = long }, "realm: it is longer"},
		"RealmQuote":        {func(c *Config) { c.Realm = `a"b` }, "realm: "},
		"SoftwareLong":      {func(c *Config) { c.Software = long }, "software: it is longer"},
		"MetricsNoPort":     {func(c *Config) { c.Metrics = "127.0.0.1" }, `metrics: "127.0.0.1" is neither`},
		"MetricsBadPort":    {func(c *Config) { c.Metrics = "127.0.0.1:http" }, "metrics: "},
		"SocketLong":        {func(c *Config) { c.AdminSocket = "/" + long }, "admin-socket: "},
		"SocketInLongDir":   {func(c *Config) { c.Data = "/" + long }, "admin-socket: "},
		"UserNoPassword":    {func(c *Config) { c.Auth.Users = []string{"a:b", "c4n4ry"} }, "auth.users: entry 2: not of the form NAME:PASSWORD"},
		"UserBadKey":        {func(c *Config) { c.Auth.Users = []string{"a:0x" + strings.Repeat("c4n4ryzz", 4)} }, `the key of "a" is not hexadecimal`},
		"UserName":          {func(c *Config) { c.Auth.Users = []string{"a\tb:c4n4ry"} }, "auth.users: entry 1: the name has a character"},
		"UserNameLong":      {func(c *Config) { c.Auth.Users = []string{strings.Repeat(long, 4) + ":c4n4ry"} }, "auth.users: entry 1: the name is longer than 508 bytes"},
		"UserPassword":      {func(c *Config) { c.Auth.Users = []string{"a:c4n4ry\u00ad"} }, `auth.users: entry 1: the password of "a" has a character`},
		"RealmCharacter":    {func(c *Config) { c.Realm = "a\u00ad" }, "realm: it has a character"},
		"RealmsForm":        {func(c *Config) { c.Auth.Realms = []string{"north.example.org"} }, `auth.realms: entry 1: "north.example.org" is not of the form NAME=ORIGIN`},
		"RealmsFromNothing": {func(c *Config) { c.Auth.Realms = []string{"north= "} }, "auth.realms: entry 1: "},
		"RealmsSlash":       {func(c *Config) { c.Auth.Realms = []string{"a/b=https://a.example"} }, "auth.realms: entry 1: "},
		"RealmsNoName":      {func(c *Config) { c.Auth.Realms = []string{"=https://a.example"} }, "auth.realms: entry 1: the name: it is empty"},
		"RealmsNoOrigin":    {func(c *Config) { c.Auth.Realms = []string{"a=a.example"} }, `"a.example" is neither an origin`},
		"RealmsTheFirst":    {func(c *Config) { c.Auth.Realms = []string{"turnstone=https://a.example"} }, `"turnstone" is a realm already`},
		"RealmsTwice":       {func(c *Config) { c.Auth.Realms = []string{"a=https://a.example", "a=https://b.example"} }, `entry 2: "a" is a realm already`},
		"RealmsOneOrigin":   {func(c *Config) { c.Auth.Realms = []string{"a=https://a.example", "b=https://A.example"} }, `entry 2: https://a.example belongs to "a" already`},
		"RealmsOneListener": {func(c *Config) { c.Auth.Realms = []string{"a=udp://127.0.0.1", "b=udp://127.0.0.1:3478"} }, `entry 2: udp://127.0.0.1:3478 belongs to "a" already`},
		"RealmsListener":    {func(c *Config) { c.Auth.Realms = []string{"a=udp://127.0.0.1:3479"} }, "udp://127.0.0.1:3479 is not listened on"},
		"RealmsListenerBad": {func(c *Config) { c.Auth.Realms = []string{"a=udp://here"} }, "is no address like"},
		"RealmUserForm":     {func(c *Config) { c.Auth.RealmUsers = []string{"c4n4ry:c4n4ry"} }, "auth.realm-users: entry 1: not of the form REALM/NAME:PASSWORD"},
		"RealmUserNoRealm":  {func(c *Config) { c.Auth.RealmUsers = []string{"a/b:c4n4ry"} }, "auth.realm-users: entry 1: its realm is none of auth.realms"},
		"RealmUserPassword": {func(c *Config) { c.Auth.RealmUsers = []string{"a/b"} }, "auth.realm-users: entry 1: not of the form NAME:PASSWORD"},
		"PerRealmBelow":     {func(c *Config) { c.Limits.MaxAllocationsPerRealm = -1 }, "limits.max-allocations-per-realm: -1"},
		"TokenKeyForm":      {func(c *Config) { c.Auth.AccessTokenKeys = []string{"c4n4ry"} }, "auth.access-token-keys: entry 1: not of the form KID:0xKEY"},
		"TokenKeyShort":     {func(c *Config) { c.Auth.AccessTokenKeys = []string{"a:0xc4n4ry"} }, `the key of "a" does not have 64 hexadecimal digits`},
		"TokenKeyLong":      {func(c *Config) { c.Auth.AccessTokenKeys = []string{"a:0x" + strings.Repeat("00", 33)} }, "auth.access-token-keys: entry 1: "},
		"TokenKeyTwice": {func(c *Config) {
			c.Auth.AccessTokenKeys = []string{"a:" + strings.Repeat("00", 32), "a:" + strings.Repeat("11", 32)}
		}, `entry 2: "a" is the id of another key`},
		"TokenKeyIsUser": {func(c *Config) {
			c.Auth.Users, c.Auth.AccessTokenKeys = []string{"a:c4n4ry"}, []string{"a:" + strings.Repeat("00", 32)}
		}, `entry 1: "a" is the id of another key or the name of a user`},
		"TokenServerLong": {func(c *Config) {
			c.Auth.AccessTokenKeys, c.Auth.AccessTokenServer = []string{"a:" + strings.Repeat("00", 32)}, long+long
		}, "auth.access-token-server: "},
		"SecretEmpty":       {func(c *Config) { c.Auth.Secrets = []string{"c4n4ry", ""} }, "auth.secrets: entry 2 is empty"},
		"HookURL":           {func(c *Config) { c.Auth.HTTPURL = "c4n4ry" }, "auth.http-url: it is no URL like"},
		"HookFTP":           {func(c *Config) { c.Auth.HTTPURL = "ftp://192.0.2.1/c4n4ry" }, "auth.http-url: it is no URL like"},
		"HookPassword":      {func(c *Config) { c.Auth.HTTPURL = "http://a:c4n4ry@192.0.2.1/" }, "auth.http-url: it has a name or password in it"},
		"HookToken":         {func(c *Config) { c.Auth.HTTPToken = "c4n4ry\nX: y" }, "auth.http-token: it has more than one line"},
		"HookTimeout":       {func(c *Config) { c.Auth.HTTPTimeout = 0 }, "auth.http-timeout: 0s is not above 0s"},
		"HookPatience":      {func(c *Config) { c.Auth.HTTPTimeout = Duration(time.Minute) }, "auth.http-timeout: 1m is not above 0s and at most 30s"},
		"HookFresh":         {func(c *Config) { c.Auth.HTTPFresh = 0 }, "auth.http-fresh: 0s is less than 1s"},
		"HookCache":         {func(c *Config) { c.Auth.HTTPCache = Duration(time.Second) }, "auth.http-cache: 1s is less than auth.http-fresh"},
		"HookRate":          {func(c *Config) { c.Auth.HTTPRate = 0 }, "auth.http-rate: 0 is less than 1"},
		"HookKeys":          {func(c *Config) { c.Auth.HTTPKeys = "sha1" }, `auth.http-keys: "sha1" is none of md5, sha256`},
		"NonceZero":         {func(c *Config) { c.Auth.NonceLifetime = 0 }, "auth.nonce-lifetime: 0s"},
		"NonceUnlimited":    {func(c *Config) { c.Auth.NonceLifetime = -1 }, "auth.nonce-lifetime: unlimited"},
		"AllowName":         {func(c *Config) { c.Peers.Allow = []string{"localnet"} }, `peers.allow: "localnet" is no network`},
		"DenyBits":          {func(c *Config) { c.Peers.Deny = []string{"10.0.0.0/33"} }, `peers.deny: "10.0.0.0/33" is no network`},
		"AllocationsBelow":  {func(c *Config) { c.Limits.MaxAllocations = -1 }, "limits.max-allocations: -1 is less than 0"},
		"PerUserBelow":      {func(c *Config) { c.Limits.MaxAllocationsPerUser = -1 }, "limits.max-allocations-per-user: -1"},
		"PermissionsNone":   {func(c *Config) { c.Limits.MaxPermissions = 0 }, "limits.max-permissions: 0 is less than 1"},
		"ChannelsNone":      {func(c *Config) { c.Limits.MaxChannels = 0 }, "limits.max-channels: 0 is less than 1"},
		"RateBelow":         {func(c *Config) { c.Limits.UnauthRate = -1 }, "limits.unauth-rate: -1"},
		"BurstBelow":        {func(c *Config) { c.Limits.UnauthBurst = -1 }, "limits.unauth-burst: -1"},
		"LifetimeShort":     {func(c *Config) { c.Limits.DefaultLifetime = 0 }, "limits.default-lifetime: 0s is less than 1s"},
		"LifetimesReversed": {func(c *Config) { c.Limits.MaxLifetime = Duration(time.Minute) }, "limits.max-lifetime: 1m is less than the default lifetime, 10m"},
		"LifetimeLong":      {func(c *Config) { c.Limits.MaxLifetime = Duration(25 * time.Hour) }, "limits.max-lifetime: 25h is more than 24h"},
		"Connections":       {func(c *Config) { c.Peers.Connections = "yes" }, `peers.connections: "yes" is none of on, off`},
		"ICMPErrors":        {func(c *Config) { c.Limits.ICMPErrors = "some" }, `limits.icmp-errors: "some" is none of probing, all, none`},
		"ChannelRange":      {func(c *Config) { c.Limits.ChannelRange = "rfc1" }, `limits.channel-range: "rfc1" is none of rfc5766, rfc8656`},
		"KernelMode":        {func(c *Config) { c.Kernel.Mode = "perhaps" }, `kernel.mode: "perhaps" is none of auto, required, off`},
		"LogLevel":          {func(c *Config) { c.Log.Level = "loud" }, `log.level: "loud" is none of trace, debug, info, warn, error`},
		"LogFormat":         {func(c *Config) { c.Log.Format = "xml" }, `log.format: "xml" is none of auto, json, console`},
	} {
		t.Run(name, func(t *testing.T) {
			c := loopback()
			tt.change(&c)
			_, err := c.Resolve()
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %q does not contain %q", err, tt.want)
			}
			if strings.Contains(err.Error(), "c4n4ry") {
				t.Errorf("error %q shows a secret", err)
			}
			if n := strings.Count(err.Error(), "\n"); n > 0 {
				t.Errorf("one mistake makes %d problems:\n%v", n+1, err)
			}
		})
	}
}

func TestResolveNamesEveryProblem(t *testing.T) {
	c := loopback()
	c.Listen = []string{"here", "there"}
	c.Realm, c.Log.Level = "", "loud"
	_, err := c.Resolve()
	if err == nil {
		t.Fatal("no error")
	}
	if got := strings.Count(err.Error(), "\n") + 1; got != 4 {
		t.Errorf("%d problems, want 4:\n%v", got, err)
	}
}

func TestDigest(t *testing.T) {
	digest := func(change func(*Config)) [32]byte {
		c := loopback()
		c.Auth.Users, c.Auth.Secrets = []string{"alice:secret"}, []string{"one"}
		change(&c)
		return c.digest()
	}
	plain := digest(func(*Config) {})
	if digest(func(c *Config) { c.Auth.Users[0] = "alice:other"; c.Auth.Secrets[0] = "two" }) != plain {
		t.Error("the digest depends on a secret")
	}
	for name, change := range map[string]func(*Config){
		"User":  func(c *Config) { c.Auth.Users = append(c.Auth.Users, "bob:x") },
		"Realm": func(c *Config) { c.Realm = "other" },
		"Peers": func(c *Config) { c.Peers.Allow = []string{"10.0.0.0/8"} },
	} {
		if digest(change) == plain {
			t.Errorf("%s: another configuration has the same digest", name)
		}
	}
}

func TestLikelyRelay(t *testing.T) {
	addr := netip.MustParseAddr
	own := []netip.Addr{addr("127.0.0.1"), addr("10.0.0.1"), addr("192.0.2.1"), addr("::1")}
	for _, tt := range []struct {
		listen []string
		v4     bool
		want   string
	}{
		{[]string{"127.0.0.1", "10.0.0.1", "192.0.2.1"}, true, "192.0.2.1"},
		{[]string{"127.0.0.1", "10.0.0.1"}, true, "10.0.0.1"},
		{[]string{"127.0.0.1"}, true, "127.0.0.1"},
		{[]string{"127.0.0.1", "::1"}, false, "::1"},
		{[]string{"203.0.113.1"}, true, ""},
	} {
		var listeners []relay.Listener
		for _, l := range tt.listen {
			listeners = append(listeners, relay.Listener{Address: netip.AddrPortFrom(addr(l), 3478)})
		}
		got := likelyRelay(own, listeners, tt.v4)
		if (tt.want == "") == got.IsValid() || tt.want != "" && got.String() != tt.want {
			t.Errorf("listening on %v, IPv4 %t: relay %v, want %s", tt.listen, tt.v4, got, tt.want)
		}
	}
}
