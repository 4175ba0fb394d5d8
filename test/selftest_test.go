package test

import (
	"encoding/json"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"turnstone/internal/testenv"

	"github.com/vishvananda/netlink"
)

// trial is a row of turnstone doctor --self-test, as far as tests need it.
type trial struct {
	Server   string `json:"server"`
	Result   string `json:"result"`
	Mapped   string `json:"mapped"`
	Relayed  string `json:"relayed"`
	Returned int    `json:"returned"`
	Largest  int    `json:"largest"`
	Path     string `json:"path"`
	Seen     string `json:"seen"`
	Remedy   string `json:"remedy"`
}

// selfTest runs turnstone doctor --self-test in a space, and yields its exit code and rows by server.
func (d *daemon) selfTest(from *space, args ...string) (int, map[string]trial) {
	d.t.Helper()
	code, out, errs := (&daemon{t: d.t, space: from}).command(append([]string{"doctor", "--self-test", "--data", d.dir, "-o", "jsonl"}, args...)...)
	rows := map[string]trial{}
	for line := range strings.Lines(out) {
		var row trial
		if err := json.Unmarshal([]byte(line), &row); err != nil {
			d.t.Fatalf("read %q: %v", line, err)
		}
		rows[row.Server] = row
	}
	if len(rows) == 0 {
		d.t.Fatalf("doctor --self-test %v: exit code %d, no rows: %s", args, code, errs)
	}
	return code, rows
}

func wantTrial(t *testing.T, rows map[string]trial, server, result, seen, remedy string) {
	t.Helper()
	if r := rows[server]; r.Result != result || !strings.Contains(r.Seen, seen) || !strings.Contains(r.Remedy, remedy) {
		t.Errorf("%s: got %+v, want %s, %q seen and the remedy %q", server, r, result, seen, remedy)
	}
}

// everyListener are the flags of a daemon that listens at two addresses over all transports, with a certificate that ends then.
func everyListener(t *testing.T, file string, end time.Time, v4, v6 string) []string {
	t.Helper()
	writeCertificateUntil(t, file, "turn.example.org", end)
	flags := []string{"--cert", file}
	for _, ip := range []string{v4, "[" + v6 + "]"} {
		for protocol, port := range map[string]int{"udp": 3478, "tcp": 3478, "tls": 5349, "dtls": 5349} {
			flags = append(flags, "--listen", fmt.Sprintf("%s://%s:%d", protocol, ip, port))
		}
	}
	return flags
}

// secureURIs and plainURIs are those of everyListener at an address.
func secureURIs(ip string) []string {
	return []string{"turns:" + ip + ":5349?transport=tcp", "turns:" + ip + ":5349?transport=udp"}
}

func plainURIs(ip string) []string {
	return []string{"turn:" + ip + ":3478?transport=udp", "turn:" + ip + ":3478?transport=tcp"}
}

// TestSelfTestOfEveryListener has the daemon's host test it, first with a certificate that is over.
func TestSelfTestOfEveryListener(t *testing.T) {
	s := newSpace(t)
	file := filepath.Join(t.TempDir(), "turn.pem")
	flags := append(everyListener(t, file, time.Now().Add(-time.Hour), "127.0.0.1", "::1"),
		"--relay-ip", "127.0.0.1", "--relay-ip", "::1", "--realm", realm, "--user", username+":"+password, "--metrics", "off", "--kernel", "off")
	d := startDaemon(t, s, flags...)
	code, rows := d.selfTest(s, flags...)
	if code != 3 || len(rows) != 8 {
		t.Errorf("exit code %d with %d rows, want 3 and 8", code, len(rows))
	}
	for _, ip := range []string{"127.0.0.1", "[::1]"} {
		for _, uri := range plainURIs(ip) {
			wantTrial(t, rows, uri, "ok", "10 of 10 payloads came back", "")
		}
		for _, uri := range secureURIs(ip) {
			wantTrial(t, rows, uri, "fail", "the certificate ended at", "renew it")
		}
	}
	for uri, r := range rows {
		if r.Path != "userspace" || r.Largest < 1400 || r.Returned != 10 {
			t.Errorf("%s: got %+v, want it relayed in userspace, in payloads of 1400 bytes too", uri, r)
		}
	}
	writeCertificate(t, file, "turn.example.org")
	eventually(t, "the new certificate is in force", func() error {
		if code, rows := d.selfTest(s, flags...); code != 0 {
			return fmt.Errorf("exit code %d: %+v", code, rows)
		}
		return nil
	})
	if n := d.status().Allocations; n != 0 {
		t.Errorf("%d allocations are left", n)
	}
	d.stop()
	if code, rows = d.selfTest(s, flags...); code != 3 {
		t.Errorf("without a daemon: exit code %d, want 3", code)
	}
	for _, r := range rows {
		wantTrial(t, rows, r.Server, "fail", "nobody listens on", "start the daemon")
	}
	d.verify()
}

// nft runs nft in s with the rules of a table of its own in place of those before.
func nft(t *testing.T, s *space, rules string) {
	t.Helper()
	cmd := exec.Command(testenv.Tool(t, "nft"), "-f", "-")
	cmd.Stdin = strings.NewReader("flush ruleset\ntable ip doctor {\n" + rules + "\n}\n")
	if out, err := s.output(cmd); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
}

// TestSelfTestFromOutside tests a relay whose kernel relays from another host, and then one that firewalls keep from peers or
// clients.
func TestSelfTestFromOutside(t *testing.T) {
	l := newLab(t)
	file := filepath.Join(t.TempDir(), "turn.pem")
	d := startDaemon(t, l.relay, append(everyListener(t, file, time.Now().Add(time.Hour), labServer4, labServer6),
		"--relay-ip", labServer4, "--relay-ip", labServer6, "--realm", realm, "--auth-secret", "s3cret", "--metrics", "off",
		"--kernel", "required", "--xdp", "native", "--kernel-instance", l.instance, "--kernel-max-channels", "1024")...)
	var servers []string
	for _, ip := range []string{labServer4, "[" + labServer6 + "]"} {
		for _, uri := range append(plainURIs(ip), secureURIs(ip)...) {
			servers = append(servers, "--server", uri)
		}
	}
	_, rows := d.selfTest(l.clients, append(servers, "--auth-secret", "s3cret")...)
	for _, ip := range []string{labServer4, "[" + labServer6 + "]"} {
		for _, uri := range plainURIs(ip) {
			wantTrial(t, rows, uri, "ok", "10 of 10 payloads came back", "")
			wantTrial(t, rows, uri, "ok", "a peer reaches the relayed address, and is reached", "")
			if path := map[bool]string{true: "kernel", false: "userspace"}[strings.HasSuffix(uri, "=udp")]; rows[uri].Path != path {
				t.Errorf("%s: got %+v, want it relayed by %s", uri, rows[uri], path)
			}
		}
		for _, uri := range secureURIs(ip) {
			wantTrial(t, rows, uri, "fail", "clients do not take the certificate", "it is for: turn.example.org")
			wantTrial(t, rows, uri, "fail", "a peer reaches the relayed address, and is reached", "")
		}
	}
	if n := d.status().Allocations; n != 0 {
		t.Errorf("%d allocations are left", n)
	}

	udp, tcp := plainURIs(labServer4)[0], plainURIs(labServer4)[1]
	few := []string{"--server", udp, "--server", tcp, "--auth-secret", "s3cret"}
	nft(t, l.relay, "chain in {\ntype filter hook input priority 0\niifname relay0 udp dport 49152-65535 drop\n}")
	code, rows := d.selfTest(l.clients, few...)
	if code != 3 {
		t.Errorf("with relayed ports closed: exit code %d, want 3", code)
	}
	wantTrial(t, rows, udp, "fail", "what this host sends to the relayed address", "open relay-ports/udp")

	nft(t, l.relay, "chain in {\ntype filter hook input priority 0\niifname relay0 udp dport 3478 drop\n}")
	_, rows = d.selfTest(l.clients, few...)
	wantTrial(t, rows, udp, "fail", "no answer from "+labServer4+":3478", "open 3478/udp in every firewall")
	wantTrial(t, rows, tcp, "ok", "10 of 10", "")
}

// TestSelfTestThroughNAT has a 1:1 NAT stand in front of a relay, and then one with another address than the relay tells.
func TestSelfTestThroughNAT(t *testing.T) {
	const external, private = "203.0.113.7", "192.0.2.1"
	l := newLab(t)
	l.clients.do(func() error {
		_, all, err := net.ParseCIDR("0.0.0.0/0")
		if err != nil {
			return err
		}
		return netlink.RouteAdd(&netlink.Route{Dst: all, Gw: net.ParseIP(labServer4)})
	})
	nft(t, l.relay, "chain in {\ntype nat hook prerouting priority -100\nip daddr "+external+" dnat to "+private+"\n}")
	for told, want := range map[string]struct{ result, seen, remedy string }{
		external:      {"ok", "a peer reaches the relayed address, and is reached", ""},
		"203.0.113.9": {"fail", "what this host sends to the relayed address 203.0.113.9:", "see that 203.0.113.9 is an address of it (external-ip)"},
	} {
		d := startDaemon(t, l.relay, "--listen", "udp://"+private+":3478", "--relay-ip", private, "--external-ip", told+"/"+private,
			"--user", username+":"+password, "--metrics", "off", "--kernel", "off")
		uri := "turn:" + external + ":3478?transport=udp"
		_, rows := d.selfTest(l.clients, "--server", uri, "--auth-secret", "s3cret")
		wantTrial(t, rows, uri, "fail", "refused with 401", "does not know this user")
		d.stop()
		d.flags = append(d.flags, "--auth-secret", "s3cret")
		d.start()
		_, rows = d.selfTest(l.clients, "--server", uri, "--auth-secret", "s3cret")
		wantTrial(t, rows, uri, want.result, want.seen, want.remedy)
		if !strings.HasPrefix(rows[uri].Relayed, told+":") {
			t.Errorf("got %+v, want a relayed address of %s", rows[uri], told)
		}
		d.stop()
	}
}
