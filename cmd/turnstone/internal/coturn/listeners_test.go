package coturn

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/config"
)

func minutes(n int) config.Duration { return config.Duration(time.Duration(n) * time.Minute) }

// TestListeners holds what is listened on.
func TestListeners(t *testing.T) {
	const certified = "cert=c\npkey=k\n"
	for _, row := range []struct{ name, text, want string }{
		{"Plain", "", "udp:3478 tcp:3478"},
		{"NoCertificate", "tls-listening-port=443\ncert=c", "udp:3478 tcp:3478"},
		{"Certified", certified, "udp:3478 tcp:3478 tls:5349 dtls:5349"},
		{"Ports", certified + "listening-port=80\ntls-listening-port=443", "udp:80 tcp:80 tls:443 dtls:443"},
		{"NoUDP", "no-udp", "tcp:3478"},
		{"NoTCP", "no-tcp", "udp:3478"},
		{"NoTLS", certified + "no-tls", "udp:3478 tcp:3478 dtls:5349"},
		{"NoDTLS", certified + "no-dtls", "udp:3478 tcp:3478 tls:5349"},
		{"DTLSOff", certified + "dtls=0", "udp:3478 tcp:3478 tls:5349"},
		{"NoDTLSOff", certified + "no-dtls=0", "udp:3478 tcp:3478 tls:5349 dtls:5349"},
		{"ZeroPorts", certified + "listening-port=0\ntls-listening-port=0", "udp:3478 tcp:3478 tls:5349 dtls:5349"},
		{"OnePort", certified + "listening-port=443\ntls-listening-port=443", "udp:443 tls:443"},
		{"OnePortNoUDP", certified + "listening-port=443\ntls-listening-port=443\nno-udp", "tls:443 dtls:443"},
		{"Auxiliary", "aux-server=192.0.2.1:9", "udp:3478 tcp:3478 udp:9 tcp:9"},
	} {
		t.Run(row.name, func(t *testing.T) {
			var want []string
			for _, w := range strings.Fields(row.want) {
				transport, port, _ := strings.Cut(w, ":")
				want = append(want, transport+"://192.0.2.1:"+port)
			}
			r, err := Import("turnserver.conf", "/etc", "listening-ip=192.0.2.1\n"+row.text)
			if err != nil {
				t.Fatal(err)
			}
			if got := r.settings["listen"].list; !slices.Equal(got, want) {
				t.Errorf("%q: got %v, want %v", row.text, got, want)
			}
		})
	}
}

// TestCertificateThatNobodyIsShown holds that no file is asked for that coturn would not miss.
func TestCertificateThatNobodyIsShown(t *testing.T) {
	for _, text := range []string{"cert=c", "pkey=k", "cert=c\npkey=k\nno-tls\nno-dtls", "cert=c\npkey=k\nno-tls\ndtls=off"} {
		r, err := Import("turnserver.conf", "/etc", text)
		if err != nil {
			t.Errorf("%q: %v", text, err)
			continue
		}
		if r.settings["tls.cert"] != nil || r.settings["tls.key"] != nil {
			t.Errorf("%q: got %v and %v, want none", text, r.settings["tls.cert"], r.settings["tls.key"])
		}
	}
}

// TestPathsAreFromTheFile holds that paths mean what they meant to coturn.
func TestPathsAreFromTheFile(t *testing.T) {
	r, err := Import("turnserver.conf", "/etc/turn", "cert=tls/cert.pem\npkey=/srv/key.pem")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := r.settings["tls.cert"].list[0], "/etc/turn/tls/cert.pem"; got != want {
		t.Errorf("cert: got %s, want %s", got, want)
	}
	if got, want := r.settings["tls.key"].list[0], "/srv/key.pem"; got != want {
		t.Errorf("pkey: got %s, want %s", got, want)
	}
}

// TestSecondPort holds when the second port of RFC 5780 is listened on.
func TestSecondPort(t *testing.T) {
	const two = "listening-ip=192.0.2.1\nlistening-ip=192.0.2.2\n"
	for _, row := range []struct {
		name, text string
		want       int // the port of two more listeners, 0 for none
		discovery  string
		fate       Fate
	}{
		{"Given", two + "alt-listening-port=9000", 9000, "auto", Mapped},
		{"Zero", two + "listening-port=80\nalt-listening-port=0", 81, "auto", Mapped},
		{"SwitchedOn", two + "rfc5780", 3479, "auto", Mapped},
		{"IPv6", "listening-ip=2001:db8::1\nlistening-ip=2001:db8::2\nrfc5780", 3479, "auto", Mapped},
		{"SwitchedOff", two + "rfc5780=off", 0, "off", Mapped},
		{"OneAddress", "listening-ip=192.0.2.1\nalt-listening-port=9000", 0, "auto", Dropped},
		{"OneAddressTwice", "listening-ip=192.0.2.1\nlistening-ip=192.0.2.1\nalt-listening-port=9000", 0, "auto", Dropped},
		{"OneOfEachFamily", "listening-ip=192.0.2.1\nlistening-ip=2001:db8::1\nalt-listening-port=9000", 0, "auto", Dropped},
		{"BehindNAT", two + "external-ip=198.51.100.1\nalt-listening-port=9000", 0, "auto", Dropped},
		{"OnePort", two + "listening-port=9000\nalt-listening-port=9000", 0, "auto", Dropped},
		{"PortOfDTLS", two + "cert=c\npkey=k\nalt-listening-port=5349", 0, "auto", Dropped},
		{"NoUDP", two + "no-udp\nalt-listening-port=9000", 0, "auto", Dropped},
		{"NotWanted", two + "no-rfc5780\nalt-listening-port=9000", 0, "off", Dropped},
		{"SecondOfTLS", two + "alt-tls-listening-port=9000", 0, "auto", Dropped},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, lines := imported(t, row.text)
			var ports []string
			for _, l := range c.Listen {
				if rest, ok := strings.CutPrefix(l, "udp://"); ok && !strings.HasSuffix(rest, ":3478") && !strings.HasSuffix(rest, ":80") {
					ports = append(ports, rest[strings.LastIndex(rest, ":")+1:])
				}
			}
			if row.name == "OnePort" { // the first one
				ports = slices.DeleteFunc(ports, func(p string) bool { return p == "9000" })
			}
			if want := strconv.Itoa(row.want); row.want == 0 && len(ports) > 0 || row.want > 0 && !slices.Equal(ports, []string{want, want}) {
				t.Errorf("got the second ports %v, want %d", ports, row.want)
			}
			if c.StunDiscovery != row.discovery {
				t.Errorf("got stun-discovery %s, want %s", c.StunDiscovery, row.discovery)
			}
			if !slices.ContainsFunc(lines, func(l Line) bool {
				return (strings.HasPrefix(l.Key, "alt-") || l.Key == "rfc5780") && l.Fate == row.fate
			}) {
				t.Errorf("got %+v, want the fate %s", lines, row.fate)
			}
		})
	}
}

// TestAlternateServers holds where clients are sent.
func TestAlternateServers(t *testing.T) {
	const certified = "cert=c\npkey=k\n"
	for _, row := range []struct {
		name, text string
		want       []string
		fates      []Fate // of the alternate servers
	}{
		{"Plain", "alternate-server=192.0.2.9", []string{"udp://192.0.2.9:3478", "tcp://192.0.2.9:3478"}, []Fate{Mapped}},
		{"Port", "alternate-server=192.0.2.9:80", []string{"udp://192.0.2.9:80", "tcp://192.0.2.9:80"}, []Fate{Mapped}},
		{"IPv6", "alternate-server=[2001:db8::9]:80", []string{"udp://[2001:db8::9]:80", "tcp://[2001:db8::9]:80"}, []Fate{Mapped}},
		{"IPv6WithoutPort", "alternate-server=[2001:db8::9]\nudp-alternate-server=2001:db8::8", []string{"udp://[2001:db8::9]:3478", "tcp://[2001:db8::9]:3478"}, []Fate{Mapped, Dropped}},
		{
			"BothFamilies", "alternate-server=192.0.2.9\nalternate-server=2001:db8::9",
			[]string{"udp://192.0.2.9:3478", "tcp://192.0.2.9:3478", "udp://[2001:db8::9]:3478", "tcp://[2001:db8::9]:3478"},
			[]Fate{Mapped, Mapped},
		},
		{"Several", "alternate-server=192.0.2.9\nalternate-server=192.0.2.8", []string{"udp://192.0.2.9:3478", "tcp://192.0.2.9:3478"}, []Fate{Mapped, Dropped}},
		{"OneTransport", "udp-alternate-server=192.0.2.9\nalternate-server=192.0.2.8", []string{"udp://192.0.2.9:3478", "tcp://192.0.2.8:3478"}, []Fate{Mapped, Mapped}},
		{"TLS", certified + "tls-alternate-server=192.0.2.9", []string{"tls://192.0.2.9:5349", "dtls://192.0.2.9:5349"}, []Fate{Mapped}},
		{"TLSAlone", certified + "no-dtls\ntls-alternate-server=192.0.2.9:443", []string{"tls://192.0.2.9:443"}, []Fate{Mapped}},
		{"NotSecure", "tls-alternate-server=192.0.2.9", nil, []Fate{Dropped}},
	} {
		t.Run(row.name, func(t *testing.T) {
			c, lines := imported(t, row.text)
			if !slices.Equal(c.AlternateServers, row.want) {
				t.Errorf("got %v, want %v", c.AlternateServers, row.want)
			}
			if want := map[bool]string{true: "always", false: "drain"}[len(row.want) > 0]; c.Redirect != want {
				t.Errorf("got redirect %s, want %s", c.Redirect, want)
			}
			var fates []Fate
			for _, l := range lines {
				if strings.HasSuffix(l.Key, "alternate-server") {
					fates = append(fates, l.Fate)
				}
			}
			if !slices.Equal(fates, row.fates) {
				t.Errorf("got fates %v, want %v", fates, row.fates)
			}
		})
	}
	for _, value := range []string{"turn.example.org", "192.0.2.9:99999", "0.0.0.0", "", "[::]:3478", "fe80::1%eth0"} {
		if _, err := Import("turnserver.conf", "/etc", "alternate-server="+value); err == nil || !strings.Contains(err.Error(), "turnserver.conf:1: alternate-server: ") {
			t.Errorf("%q: got %v, want it refused", value, err)
		}
	}
}
