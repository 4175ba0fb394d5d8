// Package config is the configuration of the daemon: its settings with their
// defaults, where each value comes from, and what they mean for the parts.
package config

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// Config is the configuration as it is written. The tags name a setting in the
// file, on the command line and in the environment (TURNSTONE_ and the env tag); arg is
// what its value is called in the help, and doc is its documentation everywhere.
type Config struct {
	Listen      []string `toml:"listen" flag:"listen" arg:"URL" env:"LISTEN" doc:"Addresses clients send to, as udp://HOST:PORT, tcp://, tls:// or dtls://, IPv6 in brackets. Without a port it is 3478, for tls and dtls 5349. 0.0.0.0 and [::] stand for every address the host has at start, link-local ones excepted."`
	RelayIP     []string `toml:"relay-ip" flag:"relay-ip" arg:"IP" env:"RELAY_IP" doc:"Addresses relayed transport addresses are made of, at most one per family. Default: of each family that is listened on, a global address of the host, else a private one, else loopback."`
	ExternalIP  []string `toml:"external-ip" flag:"external-ip" arg:"IP" env:"EXTERNAL_IP" doc:"Address clients and peers see instead of the relay address, behind a 1:1 NAT: PUBLIC, or PUBLIC/PRIVATE where PRIVATE is the relay address it stands for."`
	RelayPorts  string   `toml:"relay-ports" flag:"relay-ports" arg:"RANGE" env:"RELAY_PORTS" doc:"Range of ports of relayed transport addresses, FIRST-LAST."`
	Realm       string   `toml:"realm" flag:"realm" arg:"NAME" env:"REALM" doc:"Realm of the credentials."`
	Software    string   `toml:"software" flag:"software" arg:"TEXT" env:"SOFTWARE" doc:"SOFTWARE attribute in every answer, empty for none."`
	Data        string   `toml:"data" flag:"data" arg:"DIR" env:"DATA" doc:"Directory of the log and the keys. Default: $STATE_DIRECTORY, as systemd sets it, else /var/lib/turnstone with the configuration of the packages, else ./turnstone-data."`
	AdminSocket string   `toml:"admin-socket" flag:"admin-socket" arg:"PATH" env:"ADMIN_SOCKET" doc:"Unix socket the other commands talk to. Default: admin.sock in the data directory."`
	Metrics     string   `toml:"metrics" flag:"metrics" arg:"ADDR" env:"METRICS" doc:"Address of /metrics, /healthz and /readyz, off for none. The default is given up where it is taken."`
	Dashboard   string   `toml:"dashboard" flag:"dashboard" arg:"ADDR" env:"DASHBOARD" doc:"Address of the dashboard, a web page that shows allocations, traffic and the log; off for none. It has no password for reading: every user of a machine reaches its loopback addresses, and sees who relays to whom. Where the address is taken there is no dashboard until it is free."`

	DashboardToken string `toml:"dashboard-token" flag:"dashboard-token" arg:"TOKEN" env:"DASHBOARD_TOKEN" secret:"true" doc:"Token of at least 16 characters; whoever shows it to the dashboard may end allocations there. Without one nobody may, and the dashboard is for reading only. See docs/dashboard.md."`

	ProxyProtocolFrom []string `toml:"proxy-protocol-from" flag:"proxy-protocol-from" arg:"CIDR" env:"PROXY_PROTOCOL_FROM" doc:"Networks (CIDR) of load balancers that begin each TCP or TLS connection with a PROXY protocol header, version 2. It is demanded of them, and of nobody else believed."`

	Mobility string `toml:"mobility" flag:"mobility" arg:"MODE" env:"MOBILITY" doc:"on: clients that ask for a ticket (RFC 8016) keep their allocation when their address changes; one made over TCP, TLS or DTLS outlives its connection then, until its lifetime is over. off: such clients are refused (405)."`

	StunDiscovery string `toml:"stun-discovery" flag:"stun-discovery" arg:"MODE" env:"STUN_DISCOVERY" doc:"auto: where listen has two addresses of a family with the same two ports each, over udp, clients can find out by them how their NAT behaves (RFC 5780), unless external-ip says that this host is behind one itself. off: they cannot."`

	AlternateServers []string `toml:"alternate-servers" flag:"alternate-server" arg:"ADDR" env:"ALTERNATE_SERVERS" doc:"Servers that clients are sent to (300 Try Alternate) instead of being given an allocation while this one drains: IP:PORT for clients of all transports, or udp://IP:PORT, tcp://, tls:// or dtls:// for those of one. At most one for each transport and address family; a client is sent to one of its own family."`
	AlternateDomain  string   `toml:"alternate-domain" flag:"alternate-domain" arg:"NAME" env:"ALTERNATE_DOMAIN" doc:"Name in the certificate of the alternate servers, where it is another than here. Clients over TLS and DTLS that authenticate by SHA-256 are told it."`
	Redirect         string   `toml:"redirect" flag:"redirect" arg:"WHEN" env:"REDIRECT" doc:"When clients are sent to the alternate servers: drain, or always."`

	Auth   Auth   `toml:"auth"`
	Peers  Peers  `toml:"peers"`
	Limits Limits `toml:"limits"`
	Kernel Kernel `toml:"kernel"`
	TLS    TLS    `toml:"tls"`
	Log    Log    `toml:"log"`
}

// Auth says who may use the relay.
type Auth struct {
	Users             []string `toml:"users" flag:"user" arg:"NAME:PASSWORD" env:"USERS" secret:"true" doc:"Long-term credentials, NAME:PASSWORD, or NAME:0xKEY with a key in hex: the MD5 one (32 digits), the SHA-256 one (64), or both in this order (96). While one user has an MD5 key alone, SHA-256 is offered to nobody. With neither users nor secrets, a demo credential is made and printed."`
	Realms            []string `toml:"realms" flag:"auth-realm" arg:"NAME=FROM..." env:"AUTH_REALMS" doc:"Further realms, each with users of its own: NAME=FROM, where FROM is a list, separated by spaces, of origins (https://app.example.org, as clients say them in ORIGIN) and of listeners as listen has them. What comes by a listener of a realm is for that realm alone."`
	RealmUsers        []string `toml:"realm-users" flag:"realm-user" arg:"REALM/NAME:PASSWORD" env:"REALM_USERS" secret:"true" doc:"Long-term credentials in further realms: the realm, a slash, and what users would have."`
	Secrets           []string `toml:"secrets" flag:"auth-secret" arg:"SECRET" env:"AUTH_SECRETS" secret:"true" doc:"Secrets of time-limited credentials (TURN REST). Several, so that one can be rotated in before the other goes."`
	AccessTokenKeys   []string `toml:"access-token-keys" flag:"access-token-key" arg:"KID:0xKEY" env:"ACCESS_TOKEN_KEYS" secret:"true" doc:"Keys shared with authorization servers, for access tokens of RFC 7635: the id that clients give as their username, and the key (AES-256-GCM, 64 hexadecimal digits). Several, so that they can be rotated."`
	AccessTokenServer string   `toml:"access-token-server" flag:"access-token-server" arg:"NAME" env:"ACCESS_TOKEN_SERVER" doc:"Name of this relay for authorization servers, which access tokens are made for. Default: the realm."`
	NonceLifetime     Duration `toml:"nonce-lifetime" flag:"nonce-lifetime" arg:"DURATION" env:"NONCE_LIFETIME" doc:"For how long a nonce is good."`
	CredentialGrace   Duration `toml:"credential-grace" flag:"credential-grace" arg:"DURATION" env:"CREDENTIAL_GRACE" doc:"For how long past its expiry a time-limited credential may still refresh what it holds; unlimited for as long as it likes."`
	UsersFile         string   `toml:"users-file" flag:"users-file" arg:"PATH" env:"USERS_FILE" doc:"File of users with their keys, mode 0600, which turnstone user add and remove change. It is read again within two seconds of a change; while it is wrong, the users before are in force."`
	HTTPURL           string   `toml:"http-url" flag:"auth-http-url" arg:"URL" env:"AUTH_HTTP_URL" doc:"Hook that is asked for users whom nothing else here names, once they come: see docs/authentication.md. Where it says nothing, nobody is let in."`
	HTTPToken         string   `toml:"http-token" flag:"auth-http-token" arg:"TOKEN" env:"AUTH_HTTP_TOKEN" secret:"true" doc:"Bearer token that goes to the hook with each question."`
	HTTPTimeout       Duration `toml:"http-timeout" flag:"auth-http-timeout" arg:"DURATION" env:"AUTH_HTTP_TIMEOUT" doc:"For how long an answer of the hook is waited for."`
	HTTPCache         Duration `toml:"http-cache" flag:"auth-http-cache" arg:"DURATION" env:"AUTH_HTTP_CACHE" doc:"For how long the keys of a user are kept, if the hook does not say less."`
	HTTPFresh         Duration `toml:"http-fresh" flag:"auth-http-fresh" arg:"DURATION" env:"AUTH_HTTP_FRESH" doc:"For how long the hook is not asked again after it said that there is no such user, or for a user who then proves nothing."`
	HTTPRate          int      `toml:"http-rate" flag:"auth-http-rate" arg:"N" env:"AUTH_HTTP_RATE" doc:"Questions to the hook a second, in all."`
	HTTPKeys          string   `toml:"http-keys" flag:"auth-http-keys" arg:"NAME" env:"AUTH_HTTP_KEYS" doc:"What the hook knows of every user: md5, or sha256 where it is the password or the SHA-256 key, so that clients may be offered SHA-256."`
}

// Peers says who may be reached through the relay.
type Peers struct {
	Allow       []string `toml:"allow" flag:"allow-peer" arg:"CIDR" env:"ALLOW_PEERS" doc:"Networks (CIDR) peers may be in although they are private, local or denied. Only a /32 or /128 opens an address of this host itself."`
	Connections string   `toml:"connections" flag:"peer-connections" arg:"on|off" env:"PEER_CONNECTIONS" doc:"on: clients on TCP and TLS may make allocations that relay connections of peers (RFC 6062). off: they are refused with 442."`
	Deny        []string `toml:"deny" flag:"deny-peer" arg:"CIDR" env:"DENY_PEERS" doc:"Networks (CIDR) peers may not be in, besides private, local and special ones."`
}

// Limits bound what clients can take.
type Limits struct {
	MaxAllocations         int      `toml:"max-allocations" flag:"max-allocations" arg:"N" env:"MAX_ALLOCATIONS" doc:"Allocations in total, 0 for as many as there are ports."`
	MaxAllocationsPerUser  int      `toml:"max-allocations-per-user" flag:"max-allocations-per-user" arg:"N" env:"MAX_ALLOCATIONS_PER_USER" doc:"Allocations of one user, 0 for no limit. Time-limited credentials of one user count together; a reserved port counts too."`
	MaxAllocationsPerRealm int      `toml:"max-allocations-per-realm" flag:"max-allocations-per-realm" arg:"N" env:"MAX_ALLOCATIONS_PER_REALM" doc:"Allocations in each realm, 0 for no limit."`
	MaxPermissions         int      `toml:"max-permissions" flag:"max-permissions" arg:"N" env:"MAX_PERMISSIONS" doc:"Permissions of one allocation."`
	MaxChannels            int      `toml:"max-channels" flag:"max-channels" arg:"N" env:"MAX_CHANNELS" doc:"Channels of one allocation."`
	MaxBandwidth           int      `toml:"max-bandwidth" flag:"max-bandwidth" arg:"N" env:"MAX_BANDWIDTH" doc:"Bytes of application data a second that one allocation may relay in each direction, by the kernel and userspace together; 0 for no limit."`
	MaxBandwidthPerUser    int      `toml:"max-bandwidth-per-user" flag:"max-bandwidth-per-user" arg:"N" env:"MAX_BANDWIDTH_PER_USER" doc:"The same of all allocations of one user together, with time-limited credentials of one user counted as one; 0 for no limit."`
	MaxBandwidthTotal      int      `toml:"max-bandwidth-total" flag:"max-bandwidth-total" arg:"N" env:"MAX_BANDWIDTH_TOTAL" doc:"The same of all allocations together; 0 for no limit."`
	DefaultLifetime        Duration `toml:"default-lifetime" flag:"default-lifetime" arg:"DURATION" env:"DEFAULT_LIFETIME" doc:"Lifetime of an allocation whose client asks for none or less."`
	MaxLifetime            Duration `toml:"max-lifetime" flag:"max-lifetime" arg:"DURATION" env:"MAX_LIFETIME" doc:"Lifetime of an allocation at most."`
	ChannelRange           string   `toml:"channel-range" flag:"channel-range" arg:"NAME" env:"CHANNEL_RANGE" doc:"Channel numbers clients may bind: rfc5766 (0x4000-0x7FFF), which clients in the field use, or rfc8656 (0x4000-0x4FFF)."`
	ICMPErrors             string   `toml:"icmp-errors" flag:"icmp-errors" arg:"WHO" env:"ICMP_ERRORS" doc:"Clients that are told of ICMP errors about what they sent to peers, in Data indications without DATA: probing, those that send with DONT-FRAGMENT; all, as RFC 8656 has it, which ends the reading of clients that do not expect it, that of pion/turn v4 among them; none."`
	MaxStreams             int      `toml:"max-streams" flag:"max-streams" arg:"N" env:"MAX_STREAMS" doc:"Connections of clients over TCP, TLS and DTLS in total. Each takes a file descriptor."`
	MaxIdleStreams         int      `toml:"max-idle-streams" flag:"max-idle-streams" arg:"N" env:"MAX_IDLE_STREAMS" doc:"Such connections of one IPv4 address or IPv6 /64 that have no allocation. Each of them ends after 30 s without a request."`
	UnauthRate             int      `toml:"unauth-rate" flag:"unauth-rate" arg:"N" env:"UNAUTH_RATE" doc:"Answers a second to one IPv4 address or IPv6 /64 that has not authenticated, loopback excepted; 0 for no limit."`
	UnauthBurst            int      `toml:"unauth-burst" flag:"unauth-burst" arg:"N" env:"UNAUTH_BURST" doc:"Such answers at once."`
}

// Kernel says what of the relaying the kernel does.
type Kernel struct {
	Mode        string   `toml:"mode" flag:"kernel" arg:"MODE" env:"KERNEL" doc:"auto: the kernel relays what it can, and userspace the rest; where the kernel cannot, it is said why. required: the daemon does not start without the kernel. off: userspace relays everything."`
	Interfaces  []string `toml:"interfaces" flag:"interface" arg:"IF" env:"INTERFACES" doc:"Interfaces the XDP program is attached to. Default: those that hold the listen and relay addresses."`
	XDP         string   `toml:"xdp" flag:"xdp" arg:"MODE" env:"XDP" doc:"native, generic, or auto: native where the driver can, else generic. A veth is native only if asked for: what it sends vanishes unless its other end has an XDP program too."`
	Instance    string   `toml:"instance" flag:"kernel-instance" arg:"NAME" env:"KERNEL_INSTANCE" doc:"Name of the pins under /sys/fs/bpf/turnstone. Each daemon of a host needs one of its own."`
	MaxChannels int      `toml:"max-channels" flag:"kernel-max-channels" arg:"N" env:"KERNEL_MAX_CHANNELS" doc:"Channels the kernel has room for; those beyond are relayed in userspace. A thousand take about a megabyte of kernel memory."`
}

// TLS names the certificates of TLS and DTLS listeners.
type TLS struct {
	Cert []string `toml:"cert" flag:"cert" arg:"FILE" env:"CERT" doc:"Files with a certificate chain each, PEM. A client is shown the first for the name it asks for, else the first. A file that changes is read again."`
	Key  []string `toml:"key" flag:"key" arg:"FILE" env:"KEY" doc:"Files with the private keys, PEM, in the same order. Default: the files of the certificates."`
}

// Log says what is logged on stderr, and how the event log is kept.
type Log struct {
	Level  string `toml:"level" flag:"log-level" arg:"LEVEL" env:"LOG_LEVEL" doc:"trace, debug, info, warn or error."`
	Format string `toml:"format" flag:"log-format" arg:"FORMAT" env:"LOG_FORMAT" doc:"json, console, or auto: console on a terminal."`

	Privacy   string   `toml:"privacy" flag:"log-privacy" arg:"FORM" env:"LOG_PRIVACY" doc:"How events about clients are kept in the event log: plain, or encrypted, each segment under a key of its own in the data directory, so that it can be forgotten. See docs/privacy.md."`
	ForgetAge Duration `toml:"forget-age" flag:"log-forget-age" arg:"DURATION" env:"LOG_FORGET_AGE" doc:"Age at which the keys of encrypted segments are erased, so that nobody can read them any more; unlimited for only when turnstone log forget says so."`
	Usernames string   `toml:"usernames" flag:"log-usernames" arg:"FORM" env:"LOG_USERNAMES" doc:"How users are named in the event log and in all output: plain, or hashed, by a pseudonym that takes a key in the data directory to be found from a name."`

	RetainAge  Duration `toml:"retain-age" flag:"log-retain-age" arg:"DURATION" env:"LOG_RETAIN_AGE" doc:"Age at which events leave the log's file, a whole segment (16 MiB) at a time, once snapshots cover it; unlimited for never. What state the relay was in, and who relayed to whom, can be asked for as long as they are there, or in an archive."`
	RetainSize Size     `toml:"retain-size" flag:"log-retain-size" arg:"SIZE" env:"LOG_RETAIN_SIZE" doc:"Size that the segments in the log's file may take together, such as 4GiB, each counted as 16 MiB; 0 for any. The file is a little larger: snapshots and free pages are in it too."`
	Archive    string   `toml:"archive" flag:"log-archive" arg:"WHERE" env:"LOG_ARCHIVE" doc:"Where a segment is written to, verified and made durable before it leaves the log's file: off for nowhere, on for archive in the data directory, or a directory. While it cannot be written, the segment stays."`
	ArchiveAge Duration `toml:"archive-age" flag:"log-archive-age" arg:"DURATION" env:"LOG_ARCHIVE_AGE" doc:"Age at which archives are removed; unlimited for never."`

	CheckpointFile string `toml:"checkpoint-file" flag:"log-checkpoint-file" arg:"PATH" env:"LOG_CHECKPOINT_FILE" doc:"File that signed checkpoints of the event log are appended to, besides the one in the data directory: best on another machine, out of the reach of whoever can change the log."`
	CheckpointURL  string `toml:"checkpoint-url" flag:"log-checkpoint-url" arg:"URL" env:"LOG_CHECKPOINT_URL" doc:"URL that signed checkpoints of the event log are sent to, each in the body of an HTTP POST."`
}

// Duration is a time.Duration that is written 10m, 1h30m, 7d, or unlimited, which is negative.
type Duration time.Duration

const (
	unlimited = "unlimited"
	day       = 24 * time.Hour
)

// UnmarshalText reads a duration.
func (d *Duration) UnmarshalText(b []byte) error {
	if string(b) == unlimited {
		*d = -1
		return nil
	}
	if days, is := strings.CutSuffix(string(b), "d"); is {
		if n, err := strconv.ParseUint(days, 10, 16); err == nil {
			*d = Duration(n) * Duration(day)
			return nil
		}
	}
	v, err := time.ParseDuration(string(b))
	if err != nil {
		return err
	}
	if v < 0 {
		return fmt.Errorf("a negative duration: %q", b)
	}
	*d = Duration(v)
	return nil
}

// MarshalText writes a duration.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

func (d Duration) String() string {
	if d < 0 {
		return unlimited
	}
	if v := time.Duration(d); v >= day && v%day == 0 {
		return fmt.Sprintf("%dd", v/day)
	}
	s := time.Duration(d).String()
	for _, zero := range []string{"m0s", "h0m"} {
		if strings.HasSuffix(s, zero) {
			s = strings.TrimSuffix(s, zero[1:])
		}
	}
	return s
}

// Size is a number of bytes that is written 64MiB, 4GiB, or as a number.
type Size int64

var sizeUnits = []struct {
	name string
	size Size
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(b []byte) error {
	text, unit := string(b), Size(1)
	for _, u := range sizeUnits {
		if number, is := strings.CutSuffix(text, u.name); is {
			text, unit = strings.TrimSpace(number), u.size
			break
		}
	}
	n, err := strconv.ParseUint(text, 10, 40)
	if err != nil || Size(n) > (1<<62)/unit {
		return fmt.Errorf("%q is no size such as 64MiB or 4GiB", b)
	}
	*s = Size(n) * unit
	return nil
}

// MarshalText writes a size.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range sizeUnits {
		if s >= u.size && s%u.size == 0 {
			return fmt.Sprintf("%d%s", s/u.size, u.name)
		}
	}
	return strconv.FormatInt(int64(s), 10)
}

// Default is the configuration without a file, environment or flags.
func Default() Config {
	return Config{
		Listen: []string{"udp://0.0.0.0:3478", "udp://[::]:3478", "tcp://0.0.0.0:3478", "tcp://[::]:3478"}, RelayPorts: "49152-65535",
		Realm: "turnstone", Software: "turnstone", Metrics: DefaultMetrics, Dashboard: DefaultDashboard, Mobility: "on", StunDiscovery: "auto", Redirect: "drain",
		Auth: Auth{
			NonceLifetime: Duration(time.Hour), CredentialGrace: -1,
			HTTPTimeout: Duration(2 * time.Second), HTTPCache: Duration(5 * time.Minute), HTTPFresh: Duration(10 * time.Second), HTTPRate: 100, HTTPKeys: "md5",
		},
		Limits: Limits{
			MaxPermissions: 1024, MaxChannels: 1024, DefaultLifetime: Duration(10 * time.Minute), MaxLifetime: Duration(time.Hour),
			ChannelRange: "rfc5766", ICMPErrors: "probing", MaxStreams: 16384, MaxIdleStreams: 256, UnauthRate: 100, UnauthBurst: 1000,
		},
		Peers:  Peers{Connections: "on"},
		Kernel: Kernel{Mode: "auto", XDP: "auto", Instance: "default", MaxChannels: 16384},
		Log:    Log{Level: "info", Format: "auto", Privacy: "plain", ForgetAge: -1, Usernames: "plain", RetainAge: Duration(7 * 24 * time.Hour), RetainSize: 4 << 30, Archive: "off", ArchiveAge: -1},
	}
}

// DefaultMetrics is where metrics are served unless something else is configured.
const DefaultMetrics = "127.0.0.1:9478"

// DefaultDashboard is where the dashboard is served unless something else is configured.
const DefaultDashboard = "127.0.0.1:9479"
