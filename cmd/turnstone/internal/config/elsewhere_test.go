package config

import (
	"strings"
	"testing"
)

func TestCheckTextIsAboutNoHost(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"Empty", "", ""},
		{"OfAnotherHost", "listen = [\"udp://192.0.2.1:3478\"]\nrelay-ip = [\"192.0.2.2\"]\nexternal-ip = [\"198.51.100.1/192.0.2.2\"]", ""},
		{"DefaultRelay", "listen = [\"udp://192.0.2.1:3478\"]\nexternal-ip = [\"198.51.100.1\"]", ""},
		{"UnknownKey", "relm = \"a\"", `there is no setting "relm"`},
		{"NoAddress", "relay-ip = [\"here\"]", `relay-ip: "here" is no address`},
		{"NoRelay", "external-ip = [\"198.51.100.1/192.0.2.2\"]", `external-ip: "198.51.100.1/192.0.2.2" belongs to no relay address`},
		{"Limit", "limits = { max-channels = 0 }", "limits.max-channels: 0 is less than 1"},
	} {
		t.Run(row.name, func(t *testing.T) {
			err := CheckText("file", []byte(row.text))
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("%s: got %v, want %q", row.text, err, row.want)
			}
		})
	}
}
