package coturn

import (
	"flag"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"turnstone/cmd/turnstone/internal/config"

	"github.com/google/go-cmp/cmp"
	"github.com/pelletier/go-toml/v2"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write what the recipes are translated to")

// imported is what text is translated to, as turnstone reads it.
func imported(t *testing.T, text string) (config.Config, []Line) {
	t.Helper()
	r, err := Import("turnserver.conf", "/etc", text)
	if err != nil {
		t.Fatalf("import %q: %v", text, err)
	}
	c := config.Default()
	if err := toml.Unmarshal([]byte(r.TOML()), &c); err != nil {
		t.Fatalf("import %q: %v\n%s", text, err, r.TOML())
	}
	return c, r.Lines
}

// TestEveryKeyHasAFate holds the table to the keys that the documentation of two versions lists.
func TestEveryKeyHasAFate(t *testing.T) {
	for _, file := range []string{"testdata/keys-4.6.1.txt", "testdata/keys-4.7.txt"} {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		list := strings.Fields(string(text))
		if len(list) < 100 {
			t.Fatalf("%s: only %d keys", file, len(list))
		}
		for _, k := range list {
			if keys[k] == nil {
				t.Errorf("%s: %s is not known", file, k)
			}
		}
	}
}

func TestEveryFateHasAReason(t *testing.T) {
	for k := range keys {
		for _, value := range []string{"", "1", "off", "192.0.2.1", "192.0.2.1:3478", "ipv6", "a:b", "error"} {
			r, err := Import("turnserver.conf", "/etc", k+"="+value+"\nrealm=example.org\nuser=alice:secret\n")
			if err != nil {
				continue
			}
			for _, l := range r.Lines {
				if l.Fate != Mapped && l.Reason == "" || l.Fate == Mapped && l.Setting == "" {
					t.Errorf("%s=%s: got %+v, want a reason or a setting", k, value, l)
				}
			}
		}
	}
}

func TestMapping(t *testing.T) {
	for _, row := range []struct {
		name, text string
		change     func(*config.Config)
		fates      []Fate // of the lines, in their order
	}{
		{"Nothing", "# listening-port=1\n\n", func(*config.Config) {}, nil},
		{"Realm", "realm=example.org", func(c *config.Config) { c.Realm = "example.org" }, []Fate{Mapped}},
		{"Spaces", "  realm \t example.org  ", func(c *config.Config) { c.Realm = "example.org" }, []Fate{Mapped}},
		{"Quoted", `realm="example.org"`, func(c *config.Config) { c.Realm = "example.org" }, []Fate{Mapped}},
		{"CRLF", "realm=example.org\r\n", func(c *config.Config) { c.Realm = "example.org" }, []Fate{Mapped}},
		{"LastOne", "user-quota=1\nuser-quota=2", func(c *config.Config) { c.Limits.MaxAllocationsPerUser = 2 }, []Fate{Overruled, Mapped}},
		{"Comment", "user-quota=12 # of each", func(c *config.Config) { c.Limits.MaxAllocationsPerUser = 12 }, []Fate{Mapped}},
		{"UnknownKey", "user-qouta=12", func(*config.Config) {}, []Fate{Unknown}},
		{"Port", "listening-port=443", func(c *config.Config) { c.Listen = []string{"udp://0.0.0.0:443", "udp://[::]:443"} }, []Fate{Mapped}},
		{
			"Addresses", "listening-ip=192.0.2.1\nlistening-ip=2001:db8::1",
			func(c *config.Config) { c.Listen = []string{"udp://192.0.2.1:3478", "udp://[2001:db8::1]:3478"} },
			[]Fate{Mapped, Mapped},
		},
		{
			"Auxiliary", "listening-ip=192.0.2.1\naux-server=[2001:db8::1]:33478",
			func(c *config.Config) { c.Listen = []string{"udp://192.0.2.1:3478", "udp://[2001:db8::1]:33478"} },
			[]Fate{Mapped, Mapped},
		},
		{"SecretsOfOneKind", "static-auth-secret=a\nstatic-auth-secret=b # c", func(c *config.Config) { c.Auth.Secrets = []string{"a", "b # c"} }, []Fate{Mapped, Mapped}},
		{"Users", "user=alice:a:b\nuser=bob:c", func(c *config.Config) { c.Auth.Users = []string{"alice:a:b", "bob:c"} }, []Fate{Mapped, Mapped}},
		{
			"Key", "realm=r\nuser=alice:0x0123456789abcdef0123456789abcdef",
			func(c *config.Config) {
				c.Realm, c.Auth.Users = "r", []string{"alice:0x0123456789abcdef0123456789abcdef"}
			},
			[]Fate{Mapped, Mapped},
		},
		{"UsersBesideSecrets", "user=alice:a\nuse-auth-secret\nstatic-auth-secret=s", func(c *config.Config) { c.Auth.Secrets = []string{"s"} }, []Fate{Dropped, Anyway, Mapped}},
		{"SecretsInADatabase", "use-auth-secret\nuserdb=/var/lib/turn/turndb", func(*config.Config) {}, []Fate{Dropped, Dropped}},
		{"AccessTokens", "oauth\nserver-name=turn.example.org", func(c *config.Config) { c.Auth.AccessTokenServer = "turn.example.org" }, []Fate{Dropped, Mapped}},
		{"ServerNameOfNothing", "server-name=turn.example.org", func(*config.Config) {}, []Fate{Dropped}},
		{"Nonce", "stale-nonce", func(c *config.Config) { c.Auth.NonceLifetime = minutes(10) }, []Fate{Mapped}},
		{"NonceOf", "stale-nonce=1800", func(c *config.Config) { c.Auth.NonceLifetime = minutes(30) }, []Fate{Mapped}},
		{"NonceForEver", "stale-nonce=0", func(*config.Config) {}, []Fate{Dropped}},
		{"Lifetime", "max-allocate-lifetime=7200", func(c *config.Config) { c.Limits.MaxLifetime = minutes(120) }, []Fate{Mapped}},
		{"ShortLifetime", "max-allocate-lifetime=120", func(c *config.Config) { c.Limits.MaxLifetime, c.Limits.DefaultLifetime = minutes(2), minutes(2) }, []Fate{Mapped}},
		{"FixedLifetimes", "channel-lifetime=600\npermission-lifetime=60", func(*config.Config) {}, []Fate{Anyway, Dropped}},
		{"Ports", "max-port=50099\nmin-port=50000", func(c *config.Config) { c.RelayPorts = "50000-50099" }, []Fate{Mapped, Mapped}},
		{"PortsAbove", "min-port=60000", func(c *config.Config) { c.RelayPorts = "60000-65535" }, []Fate{Mapped}},
		{"RelayAddresses", "relay-ip=192.0.2.1\nrelay-ip=192.0.2.2\nrelay-ip=2001:db8::1", func(c *config.Config) { c.RelayIP = []string{"192.0.2.1", "2001:db8::1"} }, []Fate{Mapped, Dropped, Mapped}},
		{"External", "relay-ip=10.0.0.1\nexternal-ip=192.0.2.1", func(c *config.Config) { c.RelayIP, c.ExternalIP = []string{"10.0.0.1"}, []string{"192.0.2.1"} }, []Fate{Mapped, Mapped}},
		{
			"ExternalOfPrivate", "external-ip=192.0.2.1/10.0.0.1\nexternal-ip=192.0.2.2/10.0.0.2",
			func(c *config.Config) { c.RelayIP, c.ExternalIP = []string{"10.0.0.1"}, []string{"192.0.2.1/10.0.0.1"} },
			[]Fate{Mapped, Dropped},
		},
		{
			"ExternalBeforeRelay", "external-ip=192.0.2.2/10.0.0.2\nexternal-ip=192.0.2.1/10.0.0.1\nrelay-ip=10.0.0.1",
			func(c *config.Config) { c.RelayIP, c.ExternalIP = []string{"10.0.0.1"}, []string{"192.0.2.1/10.0.0.1"} },
			[]Fate{Dropped, Mapped, Mapped},
		},
		{
			"Quotas", "user-quota=5\ntotal-quota=100\nmax-bps=64000\nbps-capacity=1000000",
			func(c *config.Config) {
				c.Limits.MaxAllocationsPerUser, c.Limits.MaxAllocations, c.Limits.MaxBandwidth, c.Limits.MaxBandwidthTotal = 5, 100, 64000, 1_000_000
			},
			[]Fate{Mapped, Mapped, Mapped, Mapped},
		},
		{"NoQuotas", "user-quota=0\ntotal-quota=0\nmax-bps=0\nbps-capacity=0", func(*config.Config) {}, []Fate{Anyway, Anyway, Anyway, Anyway}},
		{"Range", "denied-peer-ip=192.0.2.0-192.0.2.255", func(c *config.Config) { c.Peers.Deny = []string{"192.0.2.0/24"} }, []Fate{Mapped}},
		{"OddRange", "denied-peer-ip=192.0.2.1-192.0.2.4", func(c *config.Config) { c.Peers.Deny = []string{"192.0.2.1/32", "192.0.2.2/31", "192.0.2.4/32"} }, []Fate{Mapped}},
		{"MappedRange", "denied-peer-ip=::ffff:0.0.0.0-::ffff:255.255.255.255", func(*config.Config) {}, []Fate{Anyway}},
		{"AllowedMapped", "allowed-peer-ip=::ffff:10.0.0.1", func(*config.Config) {}, []Fate{Dropped}},
		{"Allowed", "allowed-peer-ip=10.0.0.9\nallowed-peer-ip=10.1.0.0-10.1.255.255", func(c *config.Config) { c.Peers.Allow = []string{"10.0.0.9/32", "10.1.0.0/16"} }, []Fate{Mapped, Mapped}},
		{
			"AllowedItself", "listening-ip=192.0.2.1\nallowed-peer-ip=192.0.2.1",
			func(c *config.Config) { c.Listen = []string{"udp://192.0.2.1:3478"} },
			[]Fate{Mapped, Anyway},
		},
		{"DeniedAnyway", "denied-peer-ip=10.0.0.0-10.255.255.255\ndenied-peer-ip=::1", func(*config.Config) {}, []Fate{Anyway, Anyway}},
		{"DeniedInPart", "denied-peer-ip=10.255.255.255-11.0.0.0", func(c *config.Config) { c.Peers.Deny = []string{"11.0.0.0/32"} }, []Fate{Mapped}},
		{
			"DeniedAndAllowedItself", "listening-ip=192.0.2.1\nallowed-peer-ip=192.0.2.1\ndenied-peer-ip=192.0.2.0-192.0.2.255",
			func(c *config.Config) {
				c.Listen, c.Peers.Allow, c.Peers.Deny = []string{"udp://192.0.2.1:3478"}, []string{"192.0.2.1/32"}, []string{"192.0.2.0/24"}
			},
			[]Fate{Mapped, Mapped, Mapped},
		},
		{
			"PrivateDeniedAndAllowedItself", "listening-ip=10.0.0.1\nallowed-peer-ip=10.0.0.1\ndenied-peer-ip=10.0.0.0-10.255.255.255",
			func(c *config.Config) { c.Listen = []string{"udp://10.0.0.1:3478"} },
			[]Fate{Mapped, Anyway, Anyway},
		},
		{"Loopback", "allow-loopback-peers", func(c *config.Config) { c.Peers.Allow = []string{"127.0.0.0/8", "127.0.0.1/32", "::1/128"} }, []Fate{Mapped}},
		{"NoLoopback", "allow-loopback-peers=no\nno-loopback-peers\nno-multicast-peers", func(*config.Config) {}, []Fate{Anyway, Anyway, Anyway}},
		{"Software", "no-software-attribute", func(c *config.Config) { c.Software = "" }, []Fate{Mapped}},
		{"NewSoftware", "software-attribute=false", func(c *config.Config) { c.Software = "" }, []Fate{Mapped}},
		{"SoftwareAnyway", "no-software-attribute=0\nsoftware-attribute", func(*config.Config) {}, []Fate{Anyway, Anyway}},
		{"Verbose", "verbose", func(c *config.Config) { c.Log.Level = "debug" }, []Fate{Mapped}},
		{"Quiet", "log-min-level=warning", func(c *config.Config) { c.Log.Level = "warn" }, []Fate{Mapped}},
		{"QuietAndVerbose", "log-min-level=error\nVerbose", func(c *config.Config) { c.Log.Level = "trace" }, []Fate{Overruled, Mapped}},
		{"Metrics", "prometheus\nprometheus-port=9000", func(c *config.Config) { c.Metrics = ":9000" }, []Fate{Mapped, Mapped}},
		{"MetricsOfOne", "prometheus-address=192.0.2.1\nprometheus", func(c *config.Config) { c.Metrics = "192.0.2.1:9641" }, []Fate{Mapped, Mapped}},
		{"NoMetrics", "prometheus=no\nprometheus-port=9000", func(*config.Config) {}, []Fate{Anyway, Dropped}},
		{"Channels", "rfc5766-channel-numbers=no", func(c *config.Config) { c.Limits.ChannelRange = "rfc8656" }, []Fate{Mapped}},
		{
			"RateLimit", "unauthorized-ratelimit\nunauthorized-ratelimit-rps=20",
			func(c *config.Config) { c.Limits.UnauthRate, c.Limits.UnauthBurst = 20, 20 },
			[]Fate{Mapped, Mapped},
		},
		{"RateLimitDefault", "unauthorized-ratelimit", func(c *config.Config) { c.Limits.UnauthRate, c.Limits.UnauthBurst = 10, 10 }, []Fate{Mapped}},
		{"RateLimitOff", "unauthorized-ratelimit-rps=20", func(*config.Config) {}, []Fate{Dropped}},
		{"Switches", "no-cli\nno-cli=0\nfingerprint\nno-tlsv1\ntlsv1\nno-auth\nlt-cred-mech # yes", func(*config.Config) {}, []Fate{Overruled, Dropped, Anyway, Anyway, Dropped, Dropped, Anyway}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, lines := imported(t, row.text)
			want := config.Default()
			row.change(&want)
			onlyUDP(&want)
			onlyUDP(&got)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("%q (-want +got):\n%s", row.text, diff)
			}
			var fates []Fate
			for _, l := range lines {
				if l.Fate != Absent {
					fates = append(fates, l.Fate)
				}
			}
			if !slices.Equal(fates, row.fates) {
				t.Errorf("%q: got fates %v, want %v", row.text, fates, row.fates)
			}
		})
	}
}

// onlyUDP leaves out the other listeners, which [TestListeners] looks at.
func onlyUDP(c *config.Config) {
	c.Listen = slices.DeleteFunc(c.Listen, func(s string) bool { return !strings.HasPrefix(s, "udp://") })
}

func TestAbsent(t *testing.T) {
	const open = "coturn relays to private addresses unless they are denied"
	for _, row := range []struct {
		name, text, key string
		want            bool
	}{
		{"Users", "realm=r", "user", true},
		{"Secret", "static-auth-secret=s", "user", false},
		{"Realm", "user=a:b", "realm", true},
		{"RealmGiven", "realm=r", "realm", false},
		{"Private", "denied-peer-ip=10.0.0.0-10.255.255.255\ndenied-peer-ip=192.168.0.0-192.168.255.255", "denied-peer-ip", true},
		{"PrivateDenied", "denied-peer-ip=0.0.0.0-255.255.255.255", "denied-peer-ip", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, lines := imported(t, row.text)
			got := slices.ContainsFunc(lines, func(l Line) bool { return l.Fate == Absent && l.Key == row.key && l.Line == 0 })
			if got != row.want {
				t.Errorf("%q: says that %s is absent: got %v, want %v\n%+v", row.text, row.key, got, row.want, lines)
			}
		})
	}
	_, lines := imported(t, "")
	if !slices.ContainsFunc(lines, func(l Line) bool { return strings.HasPrefix(l.Reason, open) }) {
		t.Errorf("an empty file: got %+v, want %q", lines, open)
	}
}

func TestWrongValues(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"Number", "\nuser-quota=many", `turnserver.conf:2: user-quota: "many" is no number`},
		{"Negative", "total-quota=-1", `turnserver.conf:1: total-quota: "-1" is no number`},
		{"Port", "listening-port=65536", "turnserver.conf:1: listening-port: 65536 is no port"},
		{"Ports", "min-port=5\nmax-port=4", "turnserver.conf:1: min-port: min-port 5 is above max-port 4"},
		{"Address", "listening-ip=turn.example.org", `turnserver.conf:1: listening-ip: "turn.example.org" is no address`},
		{"External", "external-ip=192.0.2.1/x", `turnserver.conf:1: external-ip: "x" is no address`},
		{"Relay", "relay-ip=0.0.0.0", "turnserver.conf:1: relay-ip: 0.0.0.0 is not one address"},
		{"Auxiliary", "aux-server=192.0.2.1", `turnserver.conf:1: aux-server: "192.0.2.1" is no address like`},
		{"Range", "denied-peer-ip=192.0.2.9-192.0.2.1", `turnserver.conf:1: denied-peer-ip: "192.0.2.9-192.0.2.1" is no address and no range`},
		{"MixedRange", "denied-peer-ip=192.0.2.9-::1", "is no address and no range"},
		{"Switch", "no-udp=perhaps", `turnserver.conf:1: no-udp: "perhaps" is none of on, off`},
		{"User", "user=alice", "turnserver.conf:1: user: it is not of the form NAME:PASSWORD"},
		{"Key", "realm=r\nuser=alice:0x0123", "turnserver.conf:2: user: its key has not 32 hexadecimal digits"},
		{"KeyWithoutRealm", "user=alice:0x0123456789abcdef0123456789abcdef", "turnserver.conf:1: user: its key holds for one realm only"},
		{"UserCharacter", "user=alice:a\u00ad", "turnserver.conf:1: user: its name or password has a character"},
		{"Secret", "static-auth-secret=", "turnserver.conf:1: static-auth-secret: it has no value"},
		{"Control", "static-auth-secret=a\x01b", "turnserver.conf:1: static-auth-secret: its value is no text in UTF-8"},
		{"Realm", `realm=a"b`, "turnserver.conf:1: realm: "},
		{"Lifetime", "max-allocate-lifetime=86401", "turnserver.conf:1: max-allocate-lifetime: 24h0m1s is not between 1s and 24h"},
		{"Family", "allocation-default-address-family=ipx", `"ipx" is none of ipv4, ipv6, keep`},
		{"Level", "log-min-level=loud", `"loud" is none of debug`},
		{"Rate", "unauthorized-ratelimit\nunauthorized-ratelimit-rps=0", `turnserver.conf:2: unauthorized-ratelimit-rps: "0" is no number of answers`},
		{"NoTransport", "no-udp\nno-tcp\nno-tls=0", "turnserver.conf: it serves no transport"},
		{"Several", "user-quota=x\ntotal-quota=y", "turnserver.conf:2: total-quota"},
	} {
		t.Run(row.name, func(t *testing.T) {
			r, err := Import("turnserver.conf", "/etc", row.text)
			if err == nil || !strings.Contains(err.Error(), row.want) {
				t.Errorf("%q: got %v, want an error with %q", row.text, err, row.want)
			}
			if r != nil {
				t.Errorf("%q: got a result beside the error", row.text)
			}
		})
	}
}

// TestRecipes translates what projects that use a relay tell their operators to write.
func TestRecipes(t *testing.T) {
	files, err := filepath.Glob("testdata/*.conf")
	if err != nil || len(files) < 3 {
		t.Fatalf("found %v, %v", files, err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			r, err := Import(filepath.Base(file), "/etc", string(text))
			if err != nil {
				t.Fatal(err)
			}
			for _, l := range r.Lines {
				if l.Fate == Unknown {
					t.Errorf("%+v: a published recipe has only known keys", l)
				}
			}
			got := r.TOML()
			golden := strings.TrimSuffix(file, ".conf") + ".toml"
			if *update {
				if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(string(want), got); diff != "" {
				t.Errorf("%s (-want +got):\n%s", file, diff)
			}
		})
	}
}

// TestAnySecretIsCarriedOver holds that what a file says as text is what turnstone reads.
func TestAnySecretIsCarriedOver(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		secret := rapid.StringMatching(`[!-~äß€𝄞][ -~äß€𝄞\\"']{0,20}[!#-~äß€𝄞]`).Draw(rt, "secret")
		if strings.ContainsAny(secret[:1], `"=`) {
			rt.Skip("what coturn takes off itself")
		}
		r, err := Import("turnserver.conf", "/etc", "static-auth-secret="+secret)
		if err != nil {
			rt.Fatal(err)
		}
		c := config.Default()
		if err := toml.Unmarshal([]byte(r.TOML()), &c); err != nil {
			rt.Fatalf("%q: %v\n%s", secret, err, r.TOML())
		}
		if !slices.Equal(c.Auth.Secrets, []string{secret}) {
			rt.Errorf("got %q, want %q", c.Auth.Secrets, secret)
		}
		for _, l := range r.Lines {
			if len(secret) > 4 && strings.Contains(l.Key+l.Reason, secret) {
				rt.Errorf("%+v shows the secret %q", l, secret)
			}
		}
	})
}

// TestRangesAreCovered holds that a range becomes networks that hold its addresses and no others.
func TestRangesAreCovered(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		a, b := rapid.Uint16().Draw(rt, "first"), rapid.Uint16().Draw(rt, "last")
		first, last := min(a, b), max(a, b)
		base := rapid.SampledFrom([]string{"198.51.0.0", "255.255.0.0", "2001:db8::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:0"}).Draw(rt, "base")
		at := func(n uint16) netip.Addr {
			raw := netip.MustParseAddr(base).AsSlice()
			raw[len(raw)-2], raw[len(raw)-1] = byte(n>>8), byte(n)
			addr, _ := netip.AddrFromSlice(raw)
			return addr
		}
		list, err := networks(at(first).String() + "-" + at(last).String())
		if err != nil {
			rt.Fatal(err)
		}
		size := 0
		for _, p := range list {
			if p != p.Masked() || !p.IsValid() {
				rt.Errorf("%v is no network", p)
			}
			size += 1 << (p.Addr().BitLen() - p.Bits())
		}
		if want := int(last) - int(first) + 1; size != want {
			rt.Errorf("%v hold %d addresses, want %d", list, size, want)
		}
		for _, n := range []uint16{first, last, first + (last-first)/2, first - 1, last + 1} {
			got := slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(at(n)) })
			if want := n >= first && n <= last; got != want {
				rt.Errorf("%v hold %v: got %v, want %v", list, at(n), got, want)
			}
		}
	})
}

func TestWholeAddressSpaceIsOneNetwork(t *testing.T) {
	for text, want := range map[string]string{
		"0.0.0.0-255.255.255.255":                    "0.0.0.0/0",
		"::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff": "::/0",
		"255.255.255.255":                            "255.255.255.255/32",
		"10.1.2.3/8":                                 "10.0.0.0/8",
	} {
		got, err := networks(text)
		if err != nil || len(got) != 1 || got[0].String() != want {
			t.Errorf("%s: got %v, %v, want %s", text, got, err, want)
		}
	}
}

// FuzzImport holds that any text is refused, or becomes a configuration that is good.
func FuzzImport(f *testing.F) {
	for _, file := range []string{"synapse", "nextcloud", "jitsi"} {
		text, err := os.ReadFile("testdata/" + file + ".conf")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(text))
	}
	for k := range keys {
		f.Add(k + "=1\n" + k)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := Import("turnserver.conf", "/etc", text)
		if err != nil {
			return
		}
		if err := config.CheckText("result", []byte(r.TOML())); err != nil {
			t.Errorf("%q became a file that is wrong: %v\n%s", text, err, r.TOML())
		}
		n := 0
		for _, l := range r.Lines {
			if l.Fate != Absent {
				n++
			}
		}
		if want := len(entries(text)); n != want {
			t.Errorf("%q: %d lines have a fate, want %d", text, n, want)
		}
	})
}
