package doctor

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/pem"
	"errors"
	"fmt"
	numbers "math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/certs"
	"turnstone/internal/testenv"
	"turnstone/kernel"
	"turnstone/store"
	"turnstone/turn"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// inNamespace runs f on a thread in a network namespace with a veth "relay" that has 192.0.2.1. It has no name,
// and ends with the thread.
func inNamespace(t *testing.T, f func() error) {
	t.Helper()
	testenv.Root(t)
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		ns, err := netns.New()
		if err == nil {
			defer ns.Close()
			err = addVeth()
		}
		if err == nil {
			err = f()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

func addVeth() error {
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "relay"}, PeerName: "end"}); err != nil {
		return err
	}
	for _, name := range []string{"lo", "relay", "end"} {
		l, err := netlink.LinkByName(name)
		if err != nil {
			return err
		}
		if err := netlink.LinkSetUp(l); err != nil {
			return err
		}
		if name == "relay" {
			err = netlink.AddrAdd(l, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{192, 0, 2, 1})})
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func look(t *testing.T, w Wanted) []Row {
	t.Helper()
	at := netip.MustParseAddrPort("192.0.2.1:3478")
	w.Listeners, w.Relays, w.First, w.Last = []netip.AddrPort{at}, []netip.Addr{at.Addr()}, 49152, 65535
	w.Addresses = []turn.Relay{{IP: at.Addr()}}
	w.Instance, w.Data = fmt.Sprintf("doctor-%d", os.Getpid()), t.TempDir()
	return Diagnose(Gather(context.Background(), w, Host{
		Socket: filepath.Join(w.Data, "admin.sock"), MemoryLimit: func(string) (int64, bool) { return 0, false },
		Datapath: kernel.Config{
			Instance: w.Instance, Listeners: w.Listeners, Relays: w.Relays, RelayFirst: w.First, RelayLast: w.Last, Mode: w.Wish,
			Sizes: kernel.Sizes{Channels: 100, Allocations: 100, Listeners: 1},
		},
	}))
}

// find yields the row of a check about an interface, "" for the host.
func find(t *testing.T, rows []Row, check, on string) Row {
	t.Helper()
	for _, r := range rows {
		if r.Check == check && r.Interface == on {
			return r
		}
	}
	t.Errorf("no row %s %s in %+v", check, on, rows)
	return Row{}
}

func want(t *testing.T, r Row, result Result, seen, remedy string) {
	t.Helper()
	if r.Result != result || !strings.Contains(r.Seen, seen) || !strings.Contains(r.Remedy, remedy) {
		t.Errorf("got %+v, want %s, %q seen and the remedy %q", r, result, seen, remedy)
	}
}

func TestLookAtThisHost(t *testing.T) {
	inNamespace(t, func() error {
		rows := look(t, Wanted{Mode: "auto"})
		want(t, find(t, rows, "bpf-helper", ""), OK, "all", "")
		want(t, find(t, rows, "bpf-load", ""), OK, "instructions verified", "")
		want(t, find(t, rows, "capabilities", ""), OK, "this command", "")
		want(t, find(t, rows, "bpffs", ""), OK, "", "")
		want(t, find(t, rows, "interface", "relay"), OK, "veth, MTU 1500", "")
		want(t, find(t, rows, "xdp", "relay"), OK, "generic: a veth", "")
		want(t, find(t, rows, "offloads", "relay"), Warn, "tx-checksum-ip-generic is on", "ethtool -K relay tx off")
		want(t, find(t, rows, "listen", ""), OK, "1 address can", "")
		want(t, find(t, rows, "relay-ports", ""), Warn, "overlap net.ipv4.ip_local_port_range (32768-60999)", "ip_local_reserved_ports=49152-65535")
		want(t, find(t, rows, "firewall", ""), OK, "no rules", "")
		want(t, find(t, rows, "relay-address", ""), OK, "192.0.2.1", "")
		want(t, find(t, rows, "rp-filter", ""), OK, "", "")
		want(t, find(t, rows, "disk-room", ""), OK, "free of", "")
		want(t, find(t, rows, "data-access", ""), OK, "can be written", "")
		if _, err := os.Stat(filepath.Join(kernel.DefaultRoot, fmt.Sprintf("doctor-%d", os.Getpid()))); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("looking left pins behind: %v", err)
		}

		native := look(t, Wanted{Mode: "auto", Wish: kernel.XDPNative})
		want(t, find(t, native, "xdp", "relay"), OK, "native, as kernel.xdp says", "")
		want(t, find(t, native, "xdp-features", "relay"), OK, "native, redirect", "")
		return nil
	})
}

func TestPortsReserved(t *testing.T) {
	inNamespace(t, func() error {
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_local_reserved_ports", []byte("49152-65535"), 0); err != nil {
			return err
		}
		want(t, find(t, look(t, Wanted{Mode: "off"}), "relay-ports", ""), OK, "nobody else", "")
		return nil
	})
}

func TestForeignProgram(t *testing.T) {
	inNamespace(t, func() error {
		p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
			Name: "theirs", Type: ebpf.XDP, License: "GPL", Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
		})
		if err != nil {
			return err
		}
		defer p.Close()
		l, err := netlink.LinkByName("relay")
		if err != nil {
			return err
		}
		if err := netlink.LinkSetXdpFdWithFlags(l, p.FD(), unix.XDP_FLAGS_SKB_MODE); err != nil {
			return err
		}
		rows := look(t, Wanted{Mode: "required"})
		want(t, find(t, rows, "xdp", "relay"), Fail, `another's program "theirs"`, "ip link set dev relay xdpgeneric off")
		return nil
	})
}

func TestTakenListener(t *testing.T) {
	inNamespace(t, func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: 3478}); err != nil {
			return err
		}
		want(t, find(t, look(t, Wanted{Mode: "off"}), "listen", ""), Fail, "192.0.2.1:3478 is taken", "ss -ulpn")
		return nil
	})
}

func TestReversePathOfTwoInterfaces(t *testing.T) {
	inNamespace(t, func() error {
		l, err := netlink.LinkByName("end")
		if err != nil {
			return err
		}
		if err := netlink.AddrAdd(l, &netlink.Addr{IPNet: netlink.NewIPNet([]byte{198, 51, 100, 1})}); err != nil {
			return err
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/conf/end/rp_filter", []byte("1"), 0); err != nil {
			return err
		}
		c := kernel.Config{Relays: []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("198.51.100.1")}}
		got := reverse(known(links(c)))
		if got.Err != nil || len(got.Value) != 2 || got.Value["end"] != 1 {
			t.Errorf("got %+v, want 1 for end", got)
		}
		return nil
	})
}

// ruleset has one rule of ours among others, a chain that drops, and one that nothing of ours comes to.
const ruleset = `
table inet filter {
	chain input {
		type filter hook input priority 0; policy drop;
		iifname "lo" accept
		iifname "docker*" accept
		tcp dport 22 accept
		udp dport 3478 accept
		udp dport 53 accept
		meta l4proto udp counter
		jump more
	}
	chain more {
		udp dport 3478 drop
	}
}
table ip nat {
	chain postrouting {
		type nat hook postrouting priority 100; policy accept;
		ip protocol tcp masquerade
	}
	chain prerouting {
		type nat hook prerouting priority -100; policy accept;
		ip saddr 203.0.113.0/24 accept
	}
}
table netdev early {
	chain ingress {
		type filter hook ingress device "relay" priority 0; policy accept;
		ip protocol udp accept
	}
}
table bridge b {
	chain forward {
		type filter hook forward priority 0; policy drop;
	}
}
`

func TestRulesOfNft(t *testing.T) {
	nft := testenv.Tool(t, "nft")
	inNamespace(t, func() error {
		cmd := exec.Command(nft, "-f", "-")
		cmd.Stdin = strings.NewReader(ruleset)
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft: %w: %s", err, out)
		}
		r := find(t, look(t, Wanted{Mode: "auto"}), "firewall", "")
		want(t, r, Warn, "", "nft list ruleset")
		for _, seen := range []string{"inet filter input (input): 3 rules, policy drop", "ip nat prerouting (prerouting): 1 rule", "netdev early ingress (ingress): 1 rule"} {
			if !strings.Contains(r.Seen, seen) {
				t.Errorf("got %q, want %q in it", r.Seen, seen)
			}
		}
		for _, not := range []string{"more", "postrouting", "bridge"} {
			if strings.Contains(r.Seen, not) {
				t.Errorf("got %q, want nothing of %q", r.Seen, not)
			}
		}
		return nil
	})
}

func TestReadProcess(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		t.Helper()
		file := filepath.Join(dir, name)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	if c := capabilities(write("status", "Name:\tx\nCapEff:\t000000c000001000\n")); c.Err != nil || c.Value != 1<<capBPF|1<<capPerfmon|1<<capNetAdmin {
		t.Errorf("capabilities: got %+v, want the three", c)
	}
	if c := capabilities(write("none", "Name:\tx\n")); c.Err == nil {
		t.Error("no line of capabilities: got no error")
	}
	if l := fileLimits(write("limits", "Limit  Soft  Hard  Units\nMax open files            1024                 524288               files     \n")); l.Err != nil || l.Value != (Files{1024, 524288}) {
		t.Errorf("limits: got %+v, want 1024 and 524288", l)
	}
	if l := fileLimits(write("endless", "Max open files  unlimited  unlimited  files\n")); l.Err != nil || l.Value.Hard < 1<<20 {
		t.Errorf("unlimited: got %+v", l)
	}
	if l := fileLimits(write("short", "Max open files  17\n")); l.Err == nil {
		t.Error("half a limit: got no error")
	}
	if p := process(0, func(string) (int64, bool) { return 5, true }); p.Capabilities.Err != nil || p.Files.Value.Hard == 0 || p.BootOffset.Err != nil || p.Memory.Value != 5 {
		t.Errorf("this process: got %+v", p)
	}
}

func TestListener(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "admin.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if pid, err := listener(socket); err != nil || pid != os.Getpid() {
		t.Errorf("got pid %d, %v, want %d", pid, err, os.Getpid())
	}
	p := processAt(filepath.Join(t.TempDir(), "none"), func(string) (int64, bool) { return 0, false })
	if p.PID != unseen || p.Capabilities.Err == nil || p.Files.Err == nil || p.Memory.Err == nil || p.BootOffset.Err == nil {
		t.Errorf("nobody listens: got %+v, want nothing known", p)
	}
}

func TestBootOffset(t *testing.T) {
	dir := t.TempDir()
	if o := bootOffset(dir); o.Err != nil || o.Value != 0 {
		t.Errorf("a kernel without time namespaces: got %+v, want no offset", o)
	}
	for name, target := range map[string]string{"time": "time:[1]", "time_for_children": "time:[1]"} {
		if err := os.MkdirAll(filepath.Join(dir, "ns"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, filepath.Join(dir, "ns", name)); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "timens_offsets"), []byte("monotonic           0         0\nboottime        -3600 500000000\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if o := bootOffset(dir); o.Err != nil || o.Value != -time.Hour+500*time.Millisecond {
		t.Errorf("got %+v, want an hour back but for half a second", o)
	}
	link := filepath.Join(dir, "ns", "time_for_children")
	if err := errors.Join(os.Remove(link), os.Symlink("time:[2]", link)); err != nil {
		t.Fatal(err)
	}
	if o := bootOffset(dir); o.Err == nil {
		t.Errorf("the clock of children: got %+v, want it not known", o)
	}
}

func TestReadable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	keys := filepath.Join(dir, "keys")
	secret := filepath.Join(t.TempDir(), "turnstone.toml")
	for _, err := range []error{
		os.MkdirAll(keys, 0o700), os.WriteFile(filepath.Join(keys, "nonce"), nil, 0o600),
		os.WriteFile(filepath.Join(dir, "log.db"), nil, 0o600), os.WriteFile(secret, nil, 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	paths := func() string {
		var out []string
		for _, o := range readable(dir, []string{secret}) {
			out = append(out, filepath.Base(o.Path)+" "+o.Mode)
		}
		return strings.Join(out, ", ")
	}
	mode := func(file string, mode os.FileMode) {
		t.Helper()
		if err := os.Chmod(file, mode); err != nil {
			t.Fatal(err)
		}
	}
	if got := paths(); got != "" {
		t.Errorf("as the daemon makes it: got %q, want nothing", got)
	}
	mode(filepath.Join(dir, "log.db"), 0o644)
	mode(filepath.Join(keys, "nonce"), 0o644)
	if got := paths(); got != "" {
		t.Errorf("behind a closed directory: got %q, want nothing", got)
	}
	mode(dir, 0o755)
	if got := paths(); got != "data 0755, log.db 0644" {
		t.Errorf("keys behind a closed directory: got %q", got)
	}
	mode(keys, 0o750)
	mode(secret, 0o640)
	if got := paths(); got != "data 0755, keys 0750, nonce 0644, log.db 0644" {
		t.Errorf("all open, but a configuration for its group: got %q", got)
	}
	mode(dir, 0o777|os.ModeSticky)
	if got := readable(dir, nil); len(got) != 1 || got[0].To != "" {
		t.Errorf("a directory for everybody: got %+v, want it alone", got)
	}
	mode(secret, 0o644)
	if got := paths(); !strings.HasSuffix(got, "turnstone.toml 0644") {
		t.Errorf("a configuration for all: got %q", got)
	}
}

func TestParseFeatures(t *testing.T) {
	names := make([]string, 40)
	names[1], names[33], names[34], names[35] = "low", "high", "fixed", "lacking"
	got := parseFeatures(names, words(0, 1<<1, 0, 1<<1, 0, 1<<1|1<<2, 0, 1<<2, 1<<2))
	if want := (Offload{Fixed: true}); got["lacking"] != want {
		t.Errorf("what the device lacks: got %+v, want it off and fixed", got["lacking"])
	}
	if want := (Offload{On: true}); got["low"] != want {
		t.Errorf("low: got %+v, want it on", got["low"])
	}
	if got["high"] != (Offload{}) {
		t.Errorf("high: got %+v, want it off", got["high"])
	}
	if want := (Offload{On: true, Fixed: true}); got["fixed"] != want {
		t.Errorf("fixed: got %+v, want %+v", got["fixed"], want)
	}
	if len(got) != 4 {
		t.Errorf("got %d features, want the 4 with names", len(got))
	}
}

func TestRulesOfLegacyTables(t *testing.T) {
	f := &legacyFamilies[0]
	info := words(0, 0, 0, 0, 0, 0, 0, 0, 0, 1<<1, 0, 0, 0, 0, 0, 0, 152, 0, 0, 0, 4, 328)
	entry := func(verdict int32) []byte {
		b := make([]byte, 152)
		binary.NativeEndian.PutUint16(b[88:], 112)
		binary.NativeEndian.PutUint32(b[112+32:], uint32(verdict))
		return b
	}
	accept, drop := entry(-2), entry(-1)
	if rules, drops := f.parse(info, append(drop, accept...)); rules != 2 || drops {
		t.Errorf("a rule that drops: got %d rules, policy drops %t, want 2, false", rules, drops)
	}
	if rules, drops := f.parse(info, append(accept, drop...)); rules != 2 || !drops {
		t.Errorf("a policy that drops: got %d rules, policy drops %t, want 2, true", rules, drops)
	}
	if _, drops := f.parse(info, drop); drops {
		t.Error("cut off before the policy: got a policy")
	}
}

func TestMalformedChains(t *testing.T) {
	for _, m := range [][]byte{nil, {1}, {1, 0, 0, 0, 200, 0, 1, 0}} {
		if c, base, err := parseChain(m); err == nil || base {
			t.Errorf("chain %v: got %+v, %t, want an error", m, c, base)
		}
		if _, r, err := parseRule(m); err == nil {
			t.Errorf("rule %v: got %+v, want an error", m, r)
		}
	}
}

// makeCertificate writes a certificate for names and its key into dir, signed by the certificate of a parent or itself.
func makeCertificate(t *testing.T, dir, name string, key crypto.Signer, names []string, parent *tls.Certificate) (certs.Files, *tls.Certificate) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: numbers.NewInt(1), Subject: pkix.Name{CommonName: name}, DNSNames: names, NotBefore: noon.Add(-day), NotAfter: noon.Add(60 * day),
		IsCA: names == nil, BasicConstraintsValid: true,
	}
	issuer, signer := template, crypto.PrivateKey(key)
	if parent != nil {
		issuer, signer = parent.Leaf, parent.PrivateKey
	}
	der, err := x509.CreateCertificate(rand.Reader, template, issuer, key.Public(), signer)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, name)
	text := append(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private})...)
	if err := os.WriteFile(file, text, 0o600); err != nil {
		t.Fatal(err)
	}
	loaded, err := certs.Load([]certs.Files{{Cert: file, Key: file}})
	if err != nil {
		t.Fatal(err)
	}
	return certs.Files{Cert: file, Key: file}, loaded[0]
}

func TestLookAtCertificates(t *testing.T) {
	dir := t.TempDir()
	curve := func() crypto.Signer {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024) //nolint:gosec // it is to be found weak
	if err != nil {
		t.Fatal(err)
	}
	names := []string{"turn.example.org"}
	_, authority := makeCertificate(t, dir, "authority.pem", curve(), nil, nil)
	self, _ := makeCertificate(t, dir, "self.pem", curve(), names, nil)
	weak, _ := makeCertificate(t, dir, "weak.pem", short, names, nil)
	issued, _ := makeCertificate(t, dir, "issued.pem", curve(), names, authority)
	got := certificates([]certs.Files{self, weak, issued, {Cert: filepath.Join(dir, "none.pem")}}, noon)

	for i, want := range []Certificate{
		{File: self.Cert, SelfSigned: true}, {File: weak.Cert, SelfSigned: true, Weak: "an RSA key of 1024 bits"}, {File: issued.Cert},
	} {
		c := got[i]
		var unknown x509.UnknownAuthorityError
		if c.File != want.File || c.SelfSigned != want.SelfSigned || c.Weak != want.Weak || !errors.As(c.Verified, &unknown) || c.Err != nil {
			t.Errorf("got %+v, want %+v, of an unknown authority", c, want)
		}
		if len(c.Names) != 1 || c.Names[0] != names[0] || !c.Begin.Equal(noon.Add(-day)) || !c.End.Equal(noon.Add(60*day)) {
			t.Errorf("%s: got %v from %v to %v", c.File, c.Names, c.Begin, c.End)
		}
	}
	if !errors.Is(got[3].Err, os.ErrNotExist) {
		t.Errorf("got %+v, want that it is not there", got[3])
	}
	ends := certificates([]certs.Files{self}, noon.Add(61*day))[0]
	var over x509.CertificateInvalidError
	if !errors.As(ends.Verified, &over) || over.Reason != x509.Expired {
		t.Errorf("past its end: got %v", ends.Verified)
	}
}

func TestCloudOfTheMachine(t *testing.T) {
	for name, c := range map[string]struct{ file, text, want string }{
		"Amazon": {"sys_vendor", "Amazon EC2\n", "Amazon EC2"},
		"Azure":  {"chassis_asset_tag", "7783-7084-3265-9085-8269-3286-77\n", "Azure"},
		"HyperV": {"sys_vendor", "Microsoft Corporation\n", ""},
		"None":   {"other", "", ""},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, c.file), []byte(c.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := cloud(dir); got != c.want {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestClockAndTheLog(t *testing.T) {
	dir := t.TempDir()
	if c, err := clock(dir); err != nil || !c.Written.IsZero() {
		t.Errorf("without a log: got %+v, %v", c, err)
	}
	file := filepath.Join(dir, store.FileName)
	if err := errors.Join(os.WriteFile(file, make([]byte, 5000), 0o600), os.Chtimes(file, noon, noon)); err != nil {
		t.Fatal(err)
	}
	if c, err := clock(dir); err != nil || !c.Written.Equal(noon) {
		t.Errorf("got %+v, %v, want it written at %v", c, err, noon)
	}
	if d, err := disk(dir); err != nil || d.Log != 5000 {
		t.Errorf("got a log of %d bytes, %v, want 5000", d.Log, err)
	}
}
