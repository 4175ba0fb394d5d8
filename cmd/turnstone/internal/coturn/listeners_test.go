package coturn

import (
	"slices"
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
