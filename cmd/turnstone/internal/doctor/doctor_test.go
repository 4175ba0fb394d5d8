package doctor

import (
	"crypto/x509"
	"errors"
	"io/fs"
	"net/netip"
	"strings"
	"testing"
	"time"

	"turnstone/cmd/turnstone/internal/admin"
	"turnstone/kernel"
	"turnstone/turn"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const day = 24 * time.Hour

var noon = time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)

// healthy are facts of a host with nothing to complain about.
func healthy() *Facts {
	return &Facts{
		Wanted: Wanted{
			Mode: "auto", Instance: "default", First: 49152, Last: 65535, Data: "/var/lib/turnstone",
			Listeners: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:3478")}, Relays: []netip.Addr{netip.MustParseAddr("192.0.2.1")},
			Serves: []netip.AddrPort{netip.MustParseAddrPort("192.0.2.1:3478")}, Addresses: []turn.Relay{{IP: netip.MustParseAddr("192.0.2.1")}},
			Streams: 16384, Retain: 4 << 30,
		},
		Daemon: Known[Daemon]{Err: errNothing},
		Process: Process{
			Capabilities: Known[uint64]{Value: 1<<capBPF | 1<<capNetAdmin | 1<<capPerfmon},
			Files:        Known[Files]{Value: Files{1 << 20, 1 << 20}}, Memory: Known[uint64]{Value: 1 << 30},
		},
		Kernel: Kernel{
			Release: Known[string]{Value: "6.12.48+deb13-amd64"}, Loaded: Known[kernel.Loaded]{Value: kernel.Loaded{Instructions: 60_000, Compiled: true}},
			Features: Known[[]kernel.Feature]{Value: []kernel.Feature{{Group: "program", Name: "XDP"}, {Group: "map", Name: "Hash"}, {Group: "map", Name: "DevMap"}}},
			BTF:      Known[bool]{Value: true}, JIT: Known[int]{Value: 1}, BPFFS: Known[BPFFS]{Value: BPFFS{Mounted: true}},
			MapBytes: Known[uint64]{Value: 20 << 20},
		},
		Links:    Known[[]Link]{Value: []Link{card("eth0", 2)}},
		Local:    Known[string]{Value: "32768\t60999"},
		Reserved: Known[string]{Value: "49152-65535"},
		Receive:  Known[int]{Value: 4 << 20},
		Reverse:  Known[map[string]int]{Value: map[string]int{"eth0": 0}},
		Now:      noon,
		Own:      Known[[]netip.Addr]{Value: []netip.Addr{netip.MustParseAddr("192.0.2.1")}},
		Clock:    Known[Clock]{Value: Clock{Error: 20 * time.Millisecond, Written: noon.Add(-time.Second)}},
		Certificates: []Certificate{{
			File: "turn.pem", Names: []string{"turn.example.org"}, Begin: noon.Add(-30 * day), End: noon.Add(60 * day),
		}},
		Disk: Known[Disk]{Value: Disk{Free: 10 << 30, Total: 20 << 30, Type: "ext4", Sync: 100 * time.Microsecond}},
	}
}

func card(name string, index int) Link {
	return Link{
		Candidate: kernel.Candidate{
			Link:   kernel.Link{Index: index, Name: name, Kind: kernel.LinkPhysical, MTU: 1500, Up: true},
			Driver: "ice", Modes: []kernel.XDPMode{kernel.XDPNative, kernel.XDPGeneric},
		},
		Abilities: Known[Abilities]{Value: CanXDP | CanRedirect | CanTransmit | CanBuffers},
		Queues:    Known[Queues]{Value: Queues{4, 8}}, CPUs: 4,
		Offloads: Known[map[string]Offload]{Value: map[string]Offload{"rx-gro": {On: true}, "rx-gro-hw": {}, "tx-checksum-ip-generic": {On: true}}},
	}
}

func (f *Facts) link() *Link { return &f.Links.Value[0] }

// nat makes the relay's address another one, with what stands for it outside.
func (f *Facts) nat(ip, external string) {
	f.Addresses = []turn.Relay{{IP: netip.MustParseAddr(ip), External: netip.MustParseAddr(external)}}
}

// own adds an address of the host.
func (f *Facts) own(ip string) { f.Own.Value = append(f.Own.Value, netip.MustParseAddr(ip)) }

// second adds a second card.
func (f *Facts) second() { f.Links.Value = append(f.Links.Value, card("eth1", 3)) }

func veth(f *Facts) {
	f.link().Link.Kind, f.link().Modes = kernel.LinkVeth, []kernel.XDPMode{kernel.XDPGeneric}
	f.link().Offloads.Value["tx-checksum-ip-generic"] = Offload{}
}

// runs makes a daemon run.
func runs(f *Facts, mode kernel.XDPMode, why kernel.Reason) {
	f.Process.PID = 17
	f.Daemon = Known[Daemon]{Value: Daemon{
		Status: admin.Status{Ready: true, PID: 17, Kernel: "kernel, userspace for what it passes up"},
		Kernel: Known[kernel.Status]{Value: kernel.Status{Interfaces: []kernel.Interface{{Name: "eth0", Index: 2, Mode: mode, Reason: why}}}},
	}}
}

func verdicts(counts map[kernel.Verdict]uint64) []kernel.VerdictCounts {
	out := make([]kernel.VerdictCounts, kernel.Verdicts)
	for i := range out {
		out[i] = kernel.VerdictCounts{Verdict: kernel.Verdict(i).String(), Packets: counts[kernel.Verdict(i)]}
	}
	return out
}

func TestNothingToComplainAbout(t *testing.T) {
	running := healthy()
	runs(running, kernel.XDPNative, "")
	for name, f := range map[string]*Facts{"Away": healthy(), "Running": running} {
		for _, r := range Diagnose(f) {
			if r.Result != OK || r.Remedy != "" || r.Seen == "" {
				t.Errorf("%s: got %+v, want it ok, with what was seen", name, r)
			}
		}
	}
}

var denied error = &fs.PathError{Op: "open", Path: "x", Err: unix.EACCES}

// TestChecks changes one fact of a healthy host at a time, and wants one row to change with it.
func TestChecks(t *testing.T) {
	for name, c := range map[string]struct {
		edit   func(f *Facts)
		check  string
		on     string
		want   Result
		seen   string // part of it
		remedy string
	}{
		"Kernel5.17":         {func(f *Facts) { f.Kernel.Release.Value = "5.17.0" }, "kernel", "", Warn, "5.17", "Linux 6.1"},
		"Kernel5.17Required": {func(f *Facts) { f.Kernel.Release.Value, f.Mode = "5.17.0", "required" }, "kernel", "", Fail, "", "Linux 6.1"},
		"Kernel5.19":         {func(f *Facts) { f.Kernel.Release.Value, f.Mode = "5.19.1-x", "required" }, "kernel", "", Warn, "", "not tested"},
		"KernelUnread":       {func(f *Facts) { f.Kernel.Release.Value = "plan9" }, "kernel", "", Skip, "plan9", ""},
		"LacksFeature":       {func(f *Facts) { f.Kernel.Features.Value[2].Err = ebpf.ErrNotSupported }, "bpf-map", "", Warn, "lacks DevMap", "Linux 6.1"},
		"FeatureUntold":      {func(f *Facts) { f.Kernel.Features.Value[0].Err = unix.EPERM }, "bpf-program", "", Skip, "CAP_BPF", "as root"},
		"NoFeatures":         {func(f *Facts) { f.Kernel.Loaded.Err = errors.New("invalid argument") }, "bpf-load", "", Warn, "invalid argument", "Linux 6.1"},
		"LoadUntold":         {func(f *Facts) { f.Kernel.Loaded.Err = unix.EPERM }, "bpf-load", "", Skip, "CAP_BPF", "as root"},
		"TimeNamespace":      {func(f *Facts) { f.Process.BootOffset.Value = time.Hour }, "boot-clock", "", Warn, "1h0m0s", "outside the time namespace"},
		"ClockOfPrograms":    {func(f *Facts) { f.Kernel.Loaded.Value.Clock, f.Mode = errors.New("differs by 3s"), "required" }, "boot-clock", "", Fail, "differs by 3s", "time namespace"},
		"NoBTF":              {func(f *Facts) { f.Kernel.BTF.Value = false }, "btf", "", Warn, "vmlinux", "CONFIG_DEBUG_INFO_BTF"},
		"Interpreter":        {func(f *Facts) { f.Kernel.JIT.Value, f.Kernel.Loaded.Value.Compiled = 0, false }, "bpf-jit", "", Warn, "interpreted", "sysctl -w net.core.bpf_jit_enable=1"},
		"NoPerfmon":          {func(f *Facts) { f.Process.Capabilities.Value &^= 1 << capPerfmon }, "capabilities", "", Warn, "lacks CAP_PERFMON", "AmbientCapabilities=CAP_BPF"},
		"NoPerfmonRequired":  {func(f *Facts) { f.Process.Capabilities.Value &^= 1 << capPerfmon; f.Mode = "required" }, "capabilities", "", Fail, "", "setcap"},
		"NoBPFFS":            {func(f *Facts) { f.Kernel.BPFFS.Value.Mounted = false }, "bpffs", "", Warn, "may not mount", "mount -t bpf bpf /sys/fs/bpf"},
		"PrivateBPFFS": {func(f *Facts) {
			f.Kernel.BPFFS.Value.Mounted, f.Process.PrivateMount.Value = false, true
			f.Process.Capabilities.Value |= 1 << capSysAdmin
		}, "bpffs", "", Warn, "end with the daemon", "nsenter --net"},
		"PinsDenied":   {func(f *Facts) { f.Kernel.BPFFS.Value.Writes = unix.EACCES }, "bpffs", "", Warn, "by this user", "install -d -o USER -m 0700 /sys/fs/bpf/turnstone/default"},
		"PinsReadOnly": {func(f *Facts) { f.Kernel.BPFFS.Value.Writes = unix.EROFS }, "bpffs", "", Warn, "read-only", "remount,rw"},
		"SmallGroup":   {func(f *Facts) { f.Process.Memory.Value = 32 << 20 }, "memory", "", Warn, "20 MiB of the 32 MiB", "MemoryMax"},

		"NoInterface": {func(f *Facts) { f.Missing = []string{"eth7"} }, "interface", "eth7", Fail, "no such interface", "ip -br link"},
		"OnlyLoopback": {func(f *Facts) {
			f.link().Link = kernel.Link{Index: 1, Name: "lo", Kind: kernel.LinkLoopback, Unfit: kernel.ReasonLoopback, MTU: 65536, Up: true}
		}, "interface", "", Warn, "none that the program", "--interface"},
		"Down":     {func(f *Facts) { f.link().Link.Up = false }, "interface", "eth0", Warn, "down", "ip link set dev eth0 up"},
		"SmallMTU": {func(f *Facts) { f.link().Link.MTU = 1200 }, "interface", "eth0", Warn, "MTU 1200", "mtu 1500"},
		"Enslaved": {func(f *Facts) {
			f.second()
			f.Links.Value[1].Link.Unfit, f.Links.Value[1].Modes = kernel.ReasonEnslaved, nil
		}, "xdp", "eth1", Warn, "belongs to a bridge", "--interface"},
		"Foreign": {func(f *Facts) {
			f.link().Attached = []kernel.Attached{{Mode: kernel.XDPGeneric, Program: 9, Name: "theirs", Owner: kernel.OwnerOther}}
		}, "xdp", "eth0", Warn, `"theirs" (id 9) is attached in generic mode`, "ip link set dev eth0 xdpgeneric off"},
		"ForeignRequired": {func(f *Facts) {
			f.Mode = "required"
			f.link().Attached = []kernel.Attached{{Mode: kernel.XDPNative, Program: 9, Owner: kernel.OwnerOther}}
		}, "xdp", "eth0", Fail, "program 9", "xdpdrv off"},
		"OwnerUntold": {func(f *Facts) {
			f.link().Attached = []kernel.Attached{{Mode: kernel.XDPNative, Program: 9, Owner: kernel.OwnerUnknown}}
		}, "xdp", "eth0", Skip, "program 9", "as root"},
		"NoNative": {func(f *Facts) { f.link().Abilities.Value = 0 }, "xdp", "eth0", Warn, "generic: the driver has no native mode", "ip -d link show dev eth0"},
		"WishedNative": {func(f *Facts) {
			f.link().Abilities.Value, f.Wish = 0, kernel.XDPNative
			f.link().Modes = []kernel.XDPMode{kernel.XDPNative}
		}, "xdp", "eth0", Warn, "userspace: kernel.xdp is native", `kernel.xdp = "auto"`},
		"NotAttached": {func(f *Facts) { runs(f, "", "another program has it") }, "xdp", "eth0", Warn, "userspace: another program has it", "restart the daemon"},
		"NoTransmit":  {func(f *Facts) { f.second(); f.link().Abilities.Value &^= CanTransmit }, "xdp-features", "eth0", Warn, "redirect", `kernel.xdp = "generic"`},
		"NoRedirect":  {func(f *Facts) { f.second(); f.link().Abilities.Value &^= CanRedirect }, "xdp-features", "eth0", Warn, "transmit", "vanishes"},
		"Jumbo":       {func(f *Facts) { f.link().Link.MTU = 9000; f.link().Abilities.Value &^= CanBuffers }, "xdp-features", "eth0", Warn, "", "ip link set dev eth0 mtu 3498"},
		"FewQueues":   {func(f *Facts) { f.link().Queues.Value.Now = 1 }, "queues", "eth0", Warn, "1 of 8, on 4 CPUs", "ethtool -L eth0 combined 4"},

		"LRO":         {func(f *Facts) { f.link().Offloads.Value["rx-lro"] = Offload{On: true} }, "offloads", "eth0", Warn, "rx-lro is on", "ethtool -K eth0 lro off"},
		"GROHardware": {func(f *Facts) { f.link().Offloads.Value["rx-gro-hw"] = Offload{On: true} }, "offloads", "eth0", Warn, "rx-gro-hw is on", "ethtool -K eth0 rx-gro-hw off"},
		"GROFixed":    {func(f *Facts) { f.link().Offloads.Value["rx-gro-hw"] = Offload{On: true, Fixed: true} }, "offloads", "eth0", Warn, "cannot be changed", "virtual machine"},
		"GROList":     {func(f *Facts) { veth(f); f.link().Offloads.Value["rx-gro-list"] = Offload{On: true} }, "offloads", "eth0", Warn, "rx-gro-list is on", "ethtool -K eth0 rx-gro-list off"},
		"GROForwards": {func(f *Facts) { veth(f); f.link().Offloads.Value["rx-udp-gro-forwarding"] = Offload{On: true} }, "offloads", "eth0", Warn, "forwarding is on", "rx-udp-gro-forwarding off"},
		"VethSums":    {func(f *Facts) { veth(f); f.link().Offloads.Value["tx-checksum-ip-generic"] = Offload{On: true} }, "offloads", "eth0", Warn, "half a checksum", "ethtool -K eth0 tx off, and the same at its other end"},
		"VLANStrip": {func(f *Facts) {
			f.link().VLANs, f.link().Offloads.Value["rx-vlan-hw-parse"] = []uint16{100}, Offload{On: true}
		}, "offloads", "eth0", Warn, "tag is taken off", "ethtool -K eth0 rxvlan off"},
		"HalfChecksums": {func(f *Facts) {
			runs(f, kernel.XDPNative, "")
			f.Daemon.Value.Kernel.Value.Verdicts = verdicts(map[kernel.Verdict]uint64{kernel.VerdictHalfChecksum: 100, kernel.VerdictToPeer: 900})
		}, "passed-up", "", Warn, "100 packets as half-checksum, 900 relayed", "tx off"},
		"Headroom": {func(f *Facts) {
			runs(f, kernel.XDPNative, "")
			f.Daemon.Value.Kernel.Value.Verdicts = verdicts(map[kernel.Verdict]uint64{kernel.VerdictHeadroom: 50})
		}, "passed-up", "", Warn, "50 packets as headroom", `kernel.xdp = "generic"`},

		"NotReady": {func(f *Facts) { runs(f, kernel.XDPNative, ""); f.Daemon.Value.Status.Ready = false }, "daemon", "", Fail, "not ready", "turnstone status"},
		"Draining": {func(f *Facts) { runs(f, kernel.XDPNative, ""); f.Daemon.Value.Status.Draining = true }, "daemon", "", Warn, "pid 17", "drain --cancel"},
		"Userspace": {func(f *Facts) {
			runs(f, kernel.XDPNative, "")
			f.Daemon.Value.Status.Kernel = "userspace: no capability"
		}, "daemon", "", Warn, "no capability", "restart"},
		"Elsewhere": {func(f *Facts) {
			runs(f, kernel.XDPNative, "")
			f.Process.Elsewhere = []string{"net", "mnt"}
		}, "namespaces", "", Warn, "net, mnt", "nsenter --net=/proc/17/ns/net --mount=/proc/17/ns/mnt turnstone doctor"},
		"Taken":   {func(f *Facts) { f.Taken.Value = []Taken{{f.Listeners[0], unix.EADDRINUSE}} }, "listen", "", Fail, "192.0.2.1:3478 is taken", "ss -ulpn 'sport = :3478'"},
		"Low":     {func(f *Facts) { f.Taken.Value = []Taken{{f.Listeners[0], unix.EACCES}} }, "listen", "", Warn, "below 1024", "CAP_NET_BIND_SERVICE"},
		"Overlap": {func(f *Facts) { f.Reserved.Value = "8080" }, "relay-ports", "", Warn, "49152-65535 overlap net.ipv4.ip_local_port_range (32768-60999)", "sysctl -w net.ipv4.ip_local_reserved_ports=8080,49152-65535"},
		"Strict": {func(f *Facts) {
			f.Reverse.Value = map[string]int{"eth0": 0, "eth1": 1}
		}, "rp-filter", "eth1", Warn, "strict", "net.ipv4.conf.eth1.rp_filter=2"},
		"Buffers": {func(f *Facts) {
			f.Receive.Value, f.Mode = 212992, "off"
			f.Process.Capabilities.Value = 0
		}, "socket-buffers", "", Warn, "212992", "sysctl -w net.core.rmem_max=4194304"},

		"Firewall": {func(f *Facts) {
			f.Chains.Value = []Chain{{Family: "inet", Table: "filter", Name: "input", Hook: "input", Drops: true, Rules: []Rule{{-1, "", -1}}}}
		}, "firewall", "", Warn, "inet filter input (input): 1 rule, policy drop", "nft list ruleset"},
		"FirewallDenied": {func(f *Facts) { f.Chains.Err = unix.EPERM }, "firewall", "", Skip, "CAP_NET_ADMIN", "as root"},
		"IPTables": {func(f *Facts) {
			f.Legacy.Value = []Legacy{{"ip", "filter", 3, true}, {"ip6", "nat", 0, false}}
		}, "firewall-legacy", "", Warn, "iptables table filter: 3 rules, a policy drops", "iptables-legacy-save"},
		"IPTablesDenied": {func(f *Facts) { f.Legacy.Err = denied }, "firewall-legacy", "", Skip, "root", "as root"},

		"FewFiles": {func(f *Facts) { f.Process.Files.Value = Files{1024, 4096} }, "open-files", "", Warn, "4096 for this command, up to 16384 sockets of allocations and 16384 connections", "LimitNOFILE"},
		"FewFilesOfTheDaemon": {func(f *Facts) {
			runs(f, kernel.XDPNative, "")
			f.Process.Files.Value = Files{1000, 1 << 20}
		}, "open-files", "", Warn, "1000 for the daemon (pid 17)", "LimitNOFILE"},
		"PromisedFiles": {func(f *Facts) {
			f.Process.Files.Value, f.Allocations = Files{1024, 4096}, 5000
		}, "open-files", "", Fail, "limits.max-allocations = 5000 and limits.max-streams = 16384 take up to 21384", "ulimit -Hn 21640"},
		"Unsynced":        {func(f *Facts) { f.Clock.Value.Unsynced = true }, "clock", "", Warn, "deadlines are not", "chrony"},
		"UnsyncedSecrets": {func(f *Facts) { f.Clock.Value.Unsynced, f.Secrets = true, true }, "clock", "", Warn, "credentials end on it", "chrony"},

		"ClockBack":   {func(f *Facts) { f.Clock.Value.Written = noon.Add(3 * time.Hour) }, "clock", "", Warn, "it is 2026-11-26T12:00:00Z, and the log was written 3h0m0s later", "chrony"},
		"ClockUntold": {func(f *Facts) { f.Clock.Err = denied }, "clock", "", Skip, "may not", "as root"},

		"NotOurs":    {func(f *Facts) { f.nat("192.0.2.9", "192.0.2.9") }, "relay-address", "", Fail, "no interface has 192.0.2.9", "relay-ip"},
		"Private":    {func(f *Facts) { f.nat("10.0.0.5", "10.0.0.5"); f.own("10.0.0.5") }, "relay-address", "", Warn, "10.0.0.5: peers on the internet do not reach it", `external-ip = ["PUBLIC/10.0.0.5"]`},
		"Cloud":      {func(f *Facts) { f.nat("10.0.0.5", "10.0.0.5"); f.own("10.0.0.5"); f.Cloud = "Azure" }, "relay-address", "", Warn, "a machine of Azure", "external-ip"},
		"Loopback":   {func(f *Facts) { f.nat("127.0.0.1", "127.0.0.1") }, "relay-address", "", Warn, "127.0.0.1: only this host", "relay-ip"},
		"PrivateNAT": {func(f *Facts) { f.nat("192.0.2.1", "10.0.0.5") }, "relay-address", "", Warn, "external-ip has 10.0.0.5", "public address"},
		"NoNAT":      {func(f *Facts) { f.nat("192.0.2.1", "192.0.2.2"); f.own("192.0.2.2") }, "relay-address", "", Warn, "an address of this host and of no NAT", `relay-ip = ["192.0.2.2"]`},

		"CertificateOver":     {func(f *Facts) { f.Certificates[0].End = noon.Add(-day) }, "certificate", "", Fail, "turn.pem ended on 2026-11-25", "renew it"},
		"CertificateEarly":    {func(f *Facts) { f.Certificates[0].Begin = noon.Add(day) }, "certificate", "", Fail, "not good before 2026-11-27", "set the clock"},
		"CertificateSoon":     {func(f *Facts) { f.Certificates[0].End = noon.Add(12 * day) }, "certificate", "", Warn, "ends on 2026-12-08, in 12 days", "why nothing has renewed it"},
		"CertificateWeak":     {func(f *Facts) { f.Certificates[0].Weak = "an RSA key of 1024 bits" }, "certificate", "", Fail, "an RSA key of 1024 bits", "ECDSA"},
		"CertificateNameless": {func(f *Facts) { f.Certificates[0].Names = nil }, "certificate", "", Fail, "for no name", "subjectAltName"},
		"CertificateOfItself": {func(f *Facts) { f.Certificates[0].SelfSigned = true }, "certificate", "", Warn, "turn.pem for turn.example.org is signed by itself", "an authority"},
		"CertificateChain":    {func(f *Facts) { f.Certificates[0].Verified = x509.UnknownAuthorityError{} }, "certificate", "", Warn, "does not lead to an authority", "fullchain.pem"},
		"CertificateOther":    {func(f *Facts) { f.Certificates[0].Verified = errors.New("odd") }, "certificate", "", Warn, "odd", "anew"},
		"CertificateUntold":   {func(f *Facts) { f.Certificates[0] = Certificate{Err: denied} }, "certificate", "", Skip, "may not", "as root"},

		"DiskOutgrown": {func(f *Facts) { f.Disk.Value.Free, f.Disk.Value.Log = 2<<30, 1<<30 }, "disk-retention", "", Warn, "from 1024 MiB to 4096 MiB, and with 2048 MiB free", "log.retain-size smaller"},
		"DiskFull":     {func(f *Facts) { f.Disk.Value.Free = 8 << 20 }, "disk-room", "", Fail, "8192 KiB", "only what ends"},
		"DiskLow":      {func(f *Facts) { f.Disk.Value.Free = 40 << 20 }, "disk-room", "", Fail, "40 MiB", "new allocations are refused"},
		"DiskSoon":     {func(f *Facts) { f.Disk.Value.Free = 200 << 20 }, "disk-room", "", Warn, "200 MiB", "below 64 MiB"},
		"Memory":       {func(f *Facts) { f.Disk.Value.Type = "tmpfs" }, "disk-type", "", Warn, "tmpfs", "put --data on a disk"},
		"Overlay":      {func(f *Facts) { f.Disk.Value.Type = "overlay" }, "disk-type", "", Warn, "overlay", "mount a volume"},
		"SlowDisk":     {func(f *Facts) { f.Disk.Value.Sync = 7 * time.Millisecond }, "disk-sync", "", Warn, "7ms", "well under a millisecond"},
		"SyncUntold":   {func(f *Facts) { f.Disk.Value.SyncErr = denied }, "disk-sync", "", Skip, "may not", "as root"},
		"DataDenied":   {func(f *Facts) { f.DataOwner.Value = Access{UID: 100, User: 1000, Error: unix.EACCES} }, "data-access", "", Fail, "belongs to user 100", "chown -R 1000 /var/lib/turnstone"},
		"DataStrange":  {func(f *Facts) { f.DataOwner.Value = Access{UID: 100, Strangers: []string{"log.db"}} }, "data-access", "", Warn, "log.db to others", "chown -R 100"},
		"DataOpen":     {func(f *Facts) { f.Open = []Open{{"/var/lib/turnstone", "0755", "go"}} }, "data-private", "", Warn, "mode 0755", "chmod go= /var/lib/turnstone"},
		"DataForAll":   {func(f *Facts) { f.Open = []Open{{"/tmp", "0777", ""}} }, "data-private", "", Fail, "/tmp is open to everybody", "--data"},
		"KeysOpen":     {func(f *Facts) { f.Open = []Open{{"/var/lib/turnstone/keys/nonce", "0644", "go"}} }, "data-private", "", Fail, "nonce", "chmod go="},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			c.edit(f)
			found := false
			for _, r := range Diagnose(f) {
				if r.Result == OK {
					continue
				}
				if r.Check != c.check || r.Interface != c.on {
					if r.Result == Fail || !strings.HasPrefix(r.Check, "kernel-mode") {
						t.Errorf("got %+v too", r)
					}
					continue
				}
				found = true
				if r.Result != c.want || !strings.Contains(r.Seen, c.seen) || !strings.Contains(r.Remedy, c.remedy) {
					t.Errorf("got %+v, want %s, %q seen and the remedy %q", r, c.want, c.seen, c.remedy)
				}
				if r.Result != Skip && r.Remedy == "" {
					t.Errorf("%+v has no remedy", r)
				}
			}
			if !found {
				t.Errorf("got no complaint of %s, want %s", c.check, c.want)
			}
		})
	}
}

// TestNoComplaint changes facts that look bad and are not.
func TestNoComplaint(t *testing.T) {
	for name, edit := range map[string]func(f *Facts){
		"NoVLAN":        func(f *Facts) { f.link().Offloads.Value["rx-vlan-hw-parse"] = Offload{On: true} },
		"GROListNative": func(f *Facts) { f.link().Offloads.Value["rx-gro-list"] = Offload{On: true} },
		"GROHardwareInUse": func(f *Facts) {
			runs(f, kernel.XDPNative, "")
			f.link().Offloads.Value["rx-gro-hw"] = Offload{On: true}
		},
		"LROGeneric": func(f *Facts) { veth(f); f.link().Offloads.Value["rx-lro"] = Offload{On: true} },
		"OneNative":  func(f *Facts) { f.link().Abilities.Value = CanXDP },
		"Ours": func(f *Facts) {
			f.link().Attached = []kernel.Attached{{Mode: kernel.XDPNative, Program: 9, Owner: kernel.OwnerThis}}
		},
		"AllQueues": func(f *Facts) { f.link().Queues.Value = Queues{2, 2} },
		"NoQueues":  func(f *Facts) { f.link().Queues.Err = errNothing },
		"Reserved":  func(f *Facts) { f.Reserved.Value = "8080,40000-65535" },
		"Apart":     func(f *Facts) { f.Reserved.Value, f.Local.Value = "", "10000\t49151" },
		"OneStrict": func(f *Facts) { f.Reverse.Value["eth0"] = 1 },
		"NoGroup":   func(f *Facts) { f.Process.Memory.Err = errNothing },
		"RaisesFiles": func(f *Facts) {
			f.Process.Files.Value = Files{1024, 1024}
			f.Process.Capabilities.Value |= 1 << capSysResource
		},
		"FewPromised":   func(f *Facts) { f.Process.Files.Value, f.Allocations, f.Streams = Files{1024, 1024}, 500, 0 },
		"ExternalIs":    func(f *Facts) { f.nat("192.0.2.1", "203.0.113.7") },
		"PublicInCloud": func(f *Facts) { f.Cloud = "Amazon EC2" },
		"AllLoopback": func(f *Facts) {
			f.nat("127.0.0.1", "127.0.0.1")
			f.Serves = []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:3478"), netip.MustParseAddrPort("[2001:db8::1]:3478")}
		},
		"OwnUntold":    func(f *Facts) { f.Own = Known[[]netip.Addr]{Err: denied} },
		"NoLog":        func(f *Facts) { f.Clock.Value.Written = time.Time{} },
		"JustWritten":  func(f *Facts) { f.Clock.Value.Written = noon.Add(time.Second) },
		"NoBound":      func(f *Facts) { f.Retain, f.Disk.Value.Free = 0, 1<<30 },
		"LogIsThere":   func(f *Facts) { f.Disk.Value.Log, f.Disk.Value.Free = 4<<30, 1<<30 },
		"SysAdmin":     func(f *Facts) { f.Process.Capabilities.Value = 1<<capSysAdmin | 1<<capNetAdmin },
		"MountsBPFFS":  func(f *Facts) { f.Kernel.BPFFS.Value.Mounted = false; f.Process.Capabilities.Value |= 1 << capSysAdmin },
		"NoJITSetting": func(f *Facts) { f.Kernel.JIT.Err = errNothing },
		"NoData":       func(f *Facts) { f.DataOwner.Err = errNothing },
		"FewPassedUp": func(f *Facts) {
			runs(f, kernel.XDPNative, "")
			f.Daemon.Value.Kernel.Value.Verdicts = verdicts(map[kernel.Verdict]uint64{kernel.VerdictHalfChecksum: 100, kernel.VerdictToPeer: 1_000_000})
		},
		"FirewallOfOthers": func(f *Facts) {
			f.Chains.Value = []Chain{{Family: "inet", Table: "filter", Name: "input", Hook: "input", Rules: []Rule{
				{unix.IPPROTO_TCP, "", -1}, {-1, "lo", -1}, {-1, "wlan*", -1}, {unix.IPPROTO_UDP, "", 53},
			}}}
		},
		"LoopbackToo": func(f *Facts) {
			f.Links.Value = append(f.Links.Value, Link{Candidate: kernel.Candidate{
				Link: kernel.Link{Index: 1, Name: "lo", Kind: kernel.LinkLoopback, Unfit: kernel.ReasonLoopback, MTU: 65536, Up: true},
			}})
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := healthy()
			edit(f)
			for _, r := range Diagnose(f) {
				if r.Result != OK {
					t.Errorf("got %+v, want nothing to complain about", r)
				}
			}
		})
	}
}

func TestRulesThatConcern(t *testing.T) {
	f := healthy()
	for name, c := range map[string]struct {
		rule Rule
		hook string
		want bool
	}{
		"Any":          {Rule{-1, "", -1}, "input", true},
		"UDP":          {Rule{unix.IPPROTO_UDP, "", -1}, "forward", true},
		"Listener":     {Rule{unix.IPPROTO_UDP, "", 3478}, "input", true},
		"Relayed":      {Rule{unix.IPPROTO_UDP, "", 50000}, "prerouting", true},
		"Interface":    {Rule{-1, "eth0", -1}, "input", true},
		"Interfaces":   {Rule{-1, "eth*", -1}, "input", true},
		"PortOfAPeer":  {Rule{unix.IPPROTO_UDP, "", 53}, "output", true},
		"OtherPort":    {Rule{unix.IPPROTO_UDP, "", 53}, "input", false},
		"TCP":          {Rule{unix.IPPROTO_TCP, "", 3478}, "input", false},
		"OtherCard":    {Rule{-1, "eth1", -1}, "input", false},
		"OtherDevices": {Rule{-1, "docker*", -1}, "input", false},
	} {
		if got := c.rule.concerns(f, c.hook); got != c.want {
			t.Errorf("%s: got %t, want %t", name, got, c.want)
		}
	}
}

// TestKernelOff holds that nothing is said about a kernel that is not to relay.
func TestKernelOff(t *testing.T) {
	f := healthy()
	f.Mode, f.Kernel, f.Links.Value = "off", Kernel{}, nil
	f.Chains.Value = []Chain{{Family: "ip", Hook: "input", Drops: true}}
	rows := Diagnose(f)
	if Failed(rows) {
		t.Errorf("got a failure in %+v", rows)
	}
	for _, r := range rows {
		if strings.HasPrefix(r.Check, "bpf") || r.Check == "xdp" || r.Check == "firewall" || r.Check == "capabilities" {
			t.Errorf("got %+v, want no word of that", r)
		}
	}
	f.Open = []Open{{"/var/lib/turnstone/keys/nonce", "0644", "go"}}
	if !Failed(Diagnose(f)) {
		t.Error("keys that others may read: got no failure")
	}
}
