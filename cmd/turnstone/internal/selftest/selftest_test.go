package selftest

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/doctor"
	"turnstone/internal/testenv"
	protocol "turnstone/turn"

	"github.com/pion/logging"
	"github.com/pion/turn/v4"
	"golang.org/x/sys/unix"
)

const (
	realm    = "example.org"
	username = "alice"
	password = "correct horse"
)

var alice = Credential{Username: username, Password: password}

// serverAddress is the loopback address of the servers. What is sent to it is from 127.0.0.1, so a client is not of the
// server's host as far as a test can tell.
const serverAddress = "127.0.0.2"

// relaying is how a server of a test relays.
type relaying struct {
	told    string                                // address of relayed transport addresses, empty: as it is
	loses   func(n int, from netip.AddrPort) bool // datagrams that relayed addresses never get
	forbids bool                                  // peers that are not on its own address
	full    bool
}

func (relaying) Validate() error { return nil }

func (r relaying) AllocatePacketConn(string, int) (net.PacketConn, net.Addr, error) {
	c, err := net.ListenPacket("udp4", serverAddress+":0")
	if err != nil {
		return nil, nil, err
	}
	told := *c.LocalAddr().(*net.UDPAddr)
	if r.told != "" {
		told.IP = net.ParseIP(r.told)
	}
	return lossy{c, r.loses}, &told, nil
}

func (relaying) AllocateConn(string, int) (net.Conn, net.Addr, error) {
	return nil, nil, errors.New("no connections")
}

// lossy is a socket that does not get everything.
type lossy struct {
	net.PacketConn
	loses func(n int, from netip.AddrPort) bool
}

func (l lossy) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := l.PacketConn.ReadFrom(b)
		if err != nil || l.loses == nil || !l.loses(n, netip.MustParseAddrPort(from.String())) {
			return n, from, err
		}
	}
}

// start starts a server of pion that relays as r says, and yields a target of it for each of protocols.
func start(t *testing.T, r relaying, certificate *tls.Certificate, protocols ...protocol.Protocol) (*turn.Server, []Target) {
	t.Helper()
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	c := turn.ServerConfig{
		Realm: realm, LoggerFactory: quiet,
		AuthHandler: func(name, realm string, _ net.Addr) ([]byte, bool) {
			return turn.GenerateAuthKey(name, realm, password), name == username
		},
		QuotaHandler: func(string, string, net.Addr) bool { return !r.full },
	}
	permits := func(_ net.Addr, peer net.IP) bool { return !r.forbids || peer.String() == serverAddress }
	var targets []Target
	for _, p := range protocols {
		at, err := testenv.Port(netip.MustParseAddr(serverAddress))
		if err != nil {
			t.Fatal(err)
		}
		if p == protocol.UDP {
			conn, err := net.ListenPacket("udp4", at.String())
			if err != nil {
				t.Fatal(err)
			}
			c.PacketConnConfigs = append(c.PacketConnConfigs, turn.PacketConnConfig{PacketConn: conn, RelayAddressGenerator: r, PermissionHandler: permits})
		} else {
			l, err := net.Listen("tcp4", at.String())
			if err != nil {
				t.Fatal(err)
			}
			if p == protocol.TLS {
				l = tls.NewListener(l, &tls.Config{Certificates: []tls.Certificate{*certificate}})
			}
			c.ListenerConfigs = append(c.ListenerConfigs, turn.ListenerConfig{Listener: l, RelayAddressGenerator: r, PermissionHandler: permits})
		}
		targets = append(targets, Target{URI: fmt.Sprintf("%v at %v", p, at), Protocol: p, Address: at})
	}
	s, err := turn.NewServer(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s, targets
}

// outcome tests the only target of a server that relays as r says.
func outcome(t *testing.T, r relaying, who Credential) Trial {
	t.Helper()
	s, targets := start(t, r, nil, protocol.UDP)
	trials := Run(t.Context(), targets, who, nil)
	if n := s.AllocationCount(); n != 0 {
		t.Errorf("%d allocations are left", n)
	}
	return trials[0]
}

func wants(t *testing.T, got Trial, result doctor.Result, seen, remedy string) {
	t.Helper()
	if got.Result != result || !strings.Contains(got.Seen, seen) || !strings.Contains(got.Remedy, remedy) {
		t.Errorf("got %+v, want %s, %q seen and the remedy %q", got, result, seen, remedy)
	}
	if Failed([]Trial{got}) != (result == doctor.Fail || result == doctor.Skip) {
		t.Errorf("%+v: failed is %t", got, Failed([]Trial{got}))
	}
}

func TestServerThatWorks(t *testing.T) {
	t.Parallel()
	s, targets := start(t, relaying{}, certificate(t, time.Now().Add(time.Hour)), protocol.UDP, protocol.TCP, protocol.TLS)
	var asked []netip.AddrPort
	trials := Run(t.Context(), targets, alice, func(_ context.Context, at netip.AddrPort) string {
		asked = append(asked, at)
		return "userspace"
	})
	if len(trials) != 3 || len(asked) != 3 {
		t.Fatalf("got %d trials, and %d clients looked for, want 3", len(trials), len(asked))
	}
	for i, got := range trials {
		wants(t, got, doctor.OK, "10 of 10 payloads came back", "")
		wants(t, got, doctor.OK, "a peer reaches the relayed address, and is reached", "")
		largest := map[protocol.Protocol]int{protocol.UDP: 1468, protocol.TCP: 1472, protocol.TLS: 1472}[targets[i].Protocol]
		if got.Largest != largest || got.Path != "userspace" || got.Returned != Rounds || got.LatencyMS <= 0 || got.Mapped != asked[i].String() {
			t.Errorf("got %+v, want %d bytes, by userspace, a latency, and %v", got, largest, asked[i])
		}
		if !strings.HasPrefix(got.Relayed, serverAddress+":") {
			t.Errorf("got the relayed address %s, want one of %s", got.Relayed, serverAddress)
		}
	}
	if n := s.AllocationCount(); n != 0 {
		t.Errorf("%d allocations are left", n)
	}
}

func TestKeyInPlaceOfPassword(t *testing.T) {
	t.Parallel()
	who := Credential{Username: username, Key: turn.GenerateAuthKey(username, realm, password)}
	wants(t, outcome(t, relaying{}, who), doctor.OK, "10 of 10", "")
}

func TestWhatIsWrong(t *testing.T) {
	server := netip.MustParseAddr(serverAddress)
	for name, c := range map[string]struct {
		how          relaying
		who          Credential
		want         doctor.Result
		seen, remedy string
	}{
		"Password":  {relaying{}, Credential{Username: username, Password: "wrong"}, doctor.Fail, "allocate: refused with 4", "the server"},
		"Quota":     {relaying{full: true}, alice, doctor.Fail, "allocate: refused with 486", "max-allocations-per-user"},
		"External":  {relaying{told: "127.0.0.9"}, alice, doctor.Fail, "send: what one client sends does not come", "external-ip"},
		"Firewall":  {relaying{loses: func(_ int, from netip.AddrPort) bool { return from.Addr() != server }}, alice, doctor.Fail, "peer: what this host sends", "open relay-ports/udp"},
		"Forbidden": {relaying{forbids: true}, alice, doctor.OK, "the server forbids 127.0.0.1", ""},
		"SmallMTU":  {relaying{loses: func(n int, _ netip.AddrPort) bool { return n > 1100 }}, alice, doctor.Warn, "more than 1000 bytes", "tunnel or VPN"},
		"Nothing":   {relaying{loses: func(n int, _ netip.AddrPort) bool { return n > 100 }}, alice, doctor.Fail, "send: what one client sends", "turnstone status"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wants(t, outcome(t, c.how, c.who), c.want, c.seen, c.remedy)
		})
	}
}

// TestLossIsSeen has every third datagram of relayed addresses get lost.
func TestLossIsSeen(t *testing.T) {
	t.Parallel()
	var seen atomic.Int32
	got := outcome(t, relaying{loses: func(n int, _ netip.AddrPort) bool {
		if n != voice {
			return false
		}
		return seen.Add(1)%3 == 0
	}}, alice)
	wants(t, got, doctor.Warn, fmt.Sprintf("%d of 10 payloads came back", got.Returned), "counts those that it drops")
	if got.Returned == 0 || got.Returned == Rounds {
		t.Errorf("%d payloads came back, want some of %d", got.Returned, Rounds)
	}
}

// mute is a target that answers nothing, or, where it is a stream, with text.
func mute(t *testing.T, p protocol.Protocol, text string) Target {
	t.Helper()
	at, err := testenv.Port(netip.MustParseAddr(serverAddress))
	if err != nil {
		t.Fatal(err)
	}
	target := Target{URI: "mute", Protocol: p, Address: at}
	if p == protocol.UDP {
		c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = c.Close() })
		return target
	}
	l, err := net.Listen("tcp", at.String())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, text)
			t.Cleanup(func() { _ = c.Close() })
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-done })
	return target
}

func TestUnreached(t *testing.T) {
	nobody, err := testenv.Port(netip.MustParseAddr(serverAddress))
	if err != nil {
		t.Fatal(err)
	}
	here := mute(t, protocol.UDP, "")
	here.Here = true
	for name, c := range map[string]struct {
		target       Target
		want         doctor.Result
		seen, remedy string
	}{
		"Silent":      {mute(t, protocol.UDP, ""), doctor.Fail, "no answer from 127.0.0.2:", "in every firewall on the way"},
		"SilentHere":  {here, doctor.Fail, "no answer", "nft list ruleset"},
		"Refused":     {Target{Protocol: protocol.UDP, Address: nobody}, doctor.Fail, "nobody listens on", "start the daemon"},
		"RefusedTCP":  {Target{Protocol: protocol.TCP, Address: nobody}, doctor.Fail, "nobody listens on", "start the daemon"},
		"RefusedDTLS": {Target{Protocol: protocol.DTLS, Address: nobody}, doctor.Fail, "nobody listens on", "start the daemon"},
		"Foreign":     {mute(t, protocol.TCP, "220 mail.example.org ESMTP\r\n"), doctor.Fail, "does not speak TURN", "another program has"},
		"Mute":        {mute(t, protocol.TCP, "SSH-2.0-OpenSSH\r\n"), doctor.Fail, "takes the connection", "another program has"},
		"NoTLS":       {mute(t, protocol.TLS, "SSH-2.0-OpenSSH\r\n"), doctor.Fail, "TLS", "a listener for tcp"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wants(t, Run(t.Context(), []Target{c.target}, alice, nil)[0], c.want, c.seen, c.remedy)
		})
	}
}

// TestNoWay holds that a name with an address that this host cannot reach is no failure where there are others.
func TestNoWay(t *testing.T) {
	for spare, want := range map[bool]doctor.Result{true: doctor.Skip, false: doctor.Fail} {
		tr := &trial{target: Target{Address: netip.MustParseAddrPort("[2001:db8::1]:3478"), Spare: spare}}
		tr.found(tr.explain(stepReach, &net.OpError{Op: "dial", Err: unix.ENETUNREACH}))
		wants(t, tr.outcome(), want, "no way from this host to 2001:db8::1", "ip route get 2001:db8::1")
	}
}

func certificate(t *testing.T, end time.Time) *tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"turn.example.org"}, NotBefore: end.Add(-24 * time.Hour), NotAfter: end}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func TestCertificateOfTheServer(t *testing.T) {
	now := time.Now()
	good, over, early := certificate(t, now.Add(time.Hour)), certificate(t, now.Add(-time.Hour)), certificate(t, now.Add(48*time.Hour))
	trusted := func() (*x509.CertPool, error) {
		p := x509.NewCertPool()
		p.AddCert(good.Leaf)
		return p, nil
	}
	nobody := func() (*x509.CertPool, error) { return x509.NewCertPool(), nil }
	for name, c := range map[string]struct {
		leaf         *tls.Certificate
		roots        rootsOf
		name         string
		want         doctor.Result
		seen, remedy string
	}{
		"Good":      {good, trusted, "turn.example.org", doctor.OK, "", ""},
		"Unasked":   {good, nobody, "", doctor.OK, "", ""},
		"Over":      {over, trusted, "", doctor.Fail, "the certificate ended at", "renew it"},
		"Early":     {early, trusted, "", doctor.Fail, "the certificate begins at", "set the clock"},
		"Name":      {good, trusted, "turn.example.com", doctor.Fail, "turn.example.com", "it is for: turn.example.org"},
		"Address":   {good, trusted, "192.0.2.1", doctor.Fail, "192.0.2.1", "it is for: turn.example.org"},
		"Authority": {good, nobody, "turn.example.org", doctor.Fail, "unknown authority", "the whole chain"},
		"NoRoots":   {good, func() (*x509.CertPool, error) { return nil, errors.New("no roots") }, "turn.example.org", doctor.Fail, "no roots", "turnstone doctor"},
	} {
		tr := &trial{target: Target{Name: c.name}, roots: c.roots, a: &client{link: &link{chain: []*x509.Certificate{c.leaf.Leaf}}}}
		tr.judgeCertificate(now)
		got := tr.outcome()
		if got.Result != c.want || !strings.Contains(got.Seen, c.seen) || !strings.Contains(got.Remedy, c.remedy) {
			t.Errorf("%s: got %+v, want %s, %q seen and the remedy %q", name, got, c.want, c.seen, c.remedy)
		}
	}
}

// TestCertificateIsLookedAt has a server whose certificate is over relay as any other.
func TestCertificateIsLookedAt(t *testing.T) {
	t.Parallel()
	_, targets := start(t, relaying{}, certificate(t, time.Now().Add(-time.Hour)), protocol.TLS)
	got := Run(t.Context(), targets, alice, nil)[0]
	wants(t, got, doctor.Fail, "the certificate ended at", "renew it")
	wants(t, got, doctor.Fail, "10 of 10 payloads came back", "")
}

func TestAddressesTold(t *testing.T) {
	at := netip.MustParseAddrPort
	private, public := at("10.0.0.5:50000"), at("198.51.100.7:50000")
	for name, c := range map[string]struct {
		target  Target
		relayed netip.AddrPort
		mapped  netip.AddrPort
		want    doctor.Result
		seen    string
	}{
		"Public":       {Target{Address: at("198.51.100.7:3478")}, public, at("192.0.2.2:1"), doctor.OK, ""},
		"Private":      {Target{Address: at("198.51.100.7:3478")}, private, at("192.0.2.2:1"), doctor.Fail, "10.0.0.5, which peers do not reach"},
		"PrivateBoth":  {Target{Address: at("10.0.0.5:3478")}, private, at("10.0.0.9:1"), doctor.OK, ""},
		"AsConfigured": {Target{Address: at("10.0.0.5:3478"), Here: true, External: []netip.Addr{public.Addr()}}, public, at("192.0.2.2:1"), doctor.OK, ""},
		"Reloaded":     {Target{Address: at("10.0.0.5:3478"), Here: true, External: []netip.Addr{public.Addr()}}, private, at("192.0.2.2:1"), doctor.Fail, "does not name"},
		"Translated":   {Target{Address: at("10.0.0.5:3478"), Here: true}, private, at("10.9.9.9:1"), doctor.Warn, "the server sees 192.0.2.2:1 as 10.9.9.9:1"},
	} {
		tr := &trial{target: c.target, a: &client{link: &link{local: at("192.0.2.2:1")}, relayed: c.relayed, mapped: c.mapped}}
		tr.judgeAddresses()
		if got := tr.outcome(); got.Result != c.want || !strings.Contains(got.Seen, c.seen) {
			t.Errorf("%s: got %+v, want %s and %q seen", name, got, c.want, c.seen)
		}
	}
}

func TestRefusalsHaveARemedy(t *testing.T) {
	for code, want := range map[int]string{
		300: "alternate-servers", 401: "clocks", 403: "peers.deny", 440: "relay-ip", 486: "max-allocations-per-realm", 508: "drain", 500: "audit --refused",
	} {
		f := new(trial).explain(stepPermit, &refusal{code: code, reason: "Reason"})
		if f.result != doctor.Fail || f.seen != fmt.Sprintf("permit: refused with %d Reason", code) || !strings.Contains(f.remedy, want) {
			t.Errorf("%d: got %+v, want the remedy %q", code, f, want)
		}
	}
}

func TestTargets(t *testing.T) {
	for uri, want := range map[string]Target{
		"turn:192.0.2.1":                     {URI: "turn:192.0.2.1:3478?transport=udp", Protocol: protocol.UDP, Address: netip.MustParseAddrPort("192.0.2.1:3478"), Name: "192.0.2.1"},
		"turn:192.0.2.1:99?transport=tcp":    {URI: "turn:192.0.2.1:99?transport=tcp", Protocol: protocol.TCP, Address: netip.MustParseAddrPort("192.0.2.1:99"), Name: "192.0.2.1"},
		"turns:[2001:db8::1]":                {URI: "turns:[2001:db8::1]:5349?transport=tcp", Protocol: protocol.TLS, Address: netip.MustParseAddrPort("[2001:db8::1]:5349"), Name: "2001:db8::1"},
		"turns:[2001:db8::1]?transport=udp":  {URI: "turns:[2001:db8::1]:5349?transport=udp", Protocol: protocol.DTLS, Address: netip.MustParseAddrPort("[2001:db8::1]:5349"), Name: "2001:db8::1"},
		"turn:192.0.2.1:3478?transport=sctp": {}, "stun:192.0.2.1": {}, "192.0.2.1:3478": {}, "turn:192.0.2.1:70000": {}, "turn:": {},
	} {
		got, err := Targets(t.Context(), uri)
		if want.URI == "" {
			if err == nil {
				t.Errorf("%s: got %+v, want an error", uri, got)
			}
			continue
		}
		if err != nil || len(got) != 1 || got[0].URI != want.URI ||
			got[0].Protocol != want.Protocol || got[0].Address != want.Address || got[0].Name != want.Name {
			t.Errorf("%s: got %+v, %v, want %+v", uri, got, err, want)
		}
	}
}

func TestInterrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := Run(ctx, []Target{{Protocol: protocol.UDP}}, alice, nil); len(got) != 0 || !Failed(got) {
		t.Errorf("got %+v, want nothing tested, which is no success", got)
	}
}
