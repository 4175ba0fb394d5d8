package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"turnstone/cmd/turnstone/internal/config"
	"turnstone/turn"
	"turnstone/turn/relay"
)

func TestAdvisePorts(t *testing.T) {
	for name, tt := range map[string]struct {
		first, last     uint16
		local, reserved string
		warns           bool
	}{
		"Overlap":         {49152, 65535, "32768\t60999\n", "\n", true},
		"Inside":          {40000, 40009, "32768\t60999\n", "", true},
		"Apart":           {61000, 65535, "32768\t60999\n", "", false},
		"Below":           {20000, 32767, "32768\t60999\n", "", false},
		"Reserved":        {49152, 65535, "32768\t60999\n", "8080,49152-65535\n", false},
		"ReservedEnough":  {49152, 65535, "32768\t60999\n", "40000-60999\n", false},
		"ReservedInPart":  {49152, 65535, "32768\t60999\n", "49152-50000\n", true},
		"ReservedOnePort": {60999, 65535, "32768\t60999\n", "60999\n", false},
		"NotKnown":        {49152, 65535, "", "", false},
		"NotUnderstood":   {49152, 65535, "a b\n", "", false},
	} {
		t.Run(name, func(t *testing.T) {
			got := advisePorts(tt.first, tt.last, tt.local, tt.reserved)
			if warns := len(got) > 0; warns != tt.warns {
				t.Errorf("warns %t, want %t: %v", warns, tt.warns, got)
			}
			if len(got) > 0 && !strings.Contains(got[0].text, "sysctl -w net.ipv4.ip_local_reserved_ports=") {
				t.Errorf("advice %q names no remedy", got[0].text)
			}
		})
	}
}

func TestAdviseKeys(t *testing.T) {
	md5, sha256 := make([]byte, 16), make([]byte, 32)
	for name, tt := range map[string]struct {
		gate turn.GateConfig
		want []string
	}{
		"Nobody":    {turn.GateConfig{}, nil},
		"Passwords": {turn.GateConfig{Users: []turn.User{{Name: "a", Password: "p"}}}, nil},
		"BothKeys":  {turn.GateConfig{Users: []turn.User{{Name: "a", Key: md5, KeySHA256: sha256}}}, nil},
		"SHA256":    {turn.GateConfig{Users: []turn.User{{Name: "a", KeySHA256: sha256}}}, nil},
		"MD5": {
			turn.GateConfig{Realm: "r", Users: []turn.User{{Name: "a", Password: "p"}, {Name: "b", Key: md5}}},
			[]string{`of 1 users of the realm "r" only the MD5 key is known`},
		},
		"MD5InARealm": {
			turn.GateConfig{Realms: []turn.RealmConfig{{Name: "s", Users: []turn.User{{Name: "a", Key: md5}, {Name: "b", Key: md5}}}}},
			[]string{`of 2 users of the realm "s" only the MD5 key is known`},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := adviseKeys(tt.gate)
			if len(got) != len(tt.want) {
				t.Fatalf("got %v, want %q", got, tt.want)
			}
			for i := range got {
				if !strings.HasPrefix(got[i].text, tt.want[i]) {
					t.Errorf("got %q, want %q", got[i].text, tt.want[i])
				}
			}
		})
	}
}

func TestAdviseAddresses(t *testing.T) {
	for name, tt := range map[string]struct {
		listen, ip, external string
		want                 int
	}{
		"Loopback":        {"127.0.0.1", "127.0.0.1", "127.0.0.1", 0},
		"PrivateOutside":  {"10.0.0.1", "10.0.0.1", "10.0.0.1", 1},
		"BehindNAT":       {"10.0.0.1", "10.0.0.1", "198.51.100.1", 0},
		"Public":          {"203.0.113.1", "203.0.113.1", "203.0.113.1", 0},
		"LoopbackOutside": {"203.0.113.1", "127.0.0.1", "127.0.0.1", 1},
		"UniqueLocal":     {"fd00::1", "fd00::1", "fd00::1", 1},
		"OtherFamily":     {"203.0.113.1", "::1", "::1", 0},
	} {
		t.Run(name, func(t *testing.T) {
			addr := netip.MustParseAddr
			r := config.Resolved{Listeners: []relay.Listener{{Address: netip.AddrPortFrom(addr(tt.listen), 3478), Protocol: turn.UDP}}}
			r.Rules.Relays = []turn.Relay{{IP: addr(tt.ip), External: addr(tt.external)}}
			if got := adviseAddresses(r); len(got) != tt.want {
				t.Errorf("%d pieces of advice, want %d: %v", len(got), tt.want, got)
			}
		})
	}
}

func TestGroupLimit(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	self := write("self", "0::/system.slice/turnstone.service\n")
	if got, ok := groupLimit(self, root); ok {
		t.Errorf("without a limit: got %d", got)
	}
	write("system.slice/turnstone.service/memory.max", "max\n")
	write("system.slice/memory.max", "1073741824\n")
	if got, ok := groupLimit(self, root); !ok || got != 1<<30 {
		t.Errorf("limit of the slice: got %d, %t, want %d", got, ok, 1<<30)
	}
	write("system.slice/turnstone.service/memory.max", "536870912\n")
	if got, ok := groupLimit(self, root); !ok || got != 1<<29 {
		t.Errorf("limit of the service: got %d, %t, want %d", got, ok, 1<<29)
	}
	if _, ok := groupLimit(write("v1", "5:memory:/docker\n"), root); ok {
		t.Error("control groups v1: got a limit")
	}
}

func TestAdviseHook(t *testing.T) {
	for at, want := range map[string]bool{
		"": false, "https://directory.example.org/users": false, "http://127.0.0.1:8080/": false, "http://[::1]/": false,
		"http://localhost/users": false, "http://directory.example.org/users": true, "http://192.0.2.1/": true,
	} {
		if got := len(adviseHook(at)) > 0; got != want {
			t.Errorf("%q: got advice: %v, want %v", at, got, want)
		}
	}
}
